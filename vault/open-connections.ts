/** The open connections of a listener, handshake done: whose they are, how many each has, and which one gives way to another caller's. */
import type { TLSSocket } from 'node:tls';

/** Whose a connection is. */
interface Peer {
  readonly serial: string;
  readonly caller: string;
}

export class OpenConnections {
  /** In the order in which they came: all of them, those of each certificate by its serial, and those of each caller. */
  readonly #open = new Map<TLSSocket, Peer>();
  readonly #sockets = new Map<string, Set<TLSSocket>>();
  readonly #callers = new Map<string, Set<TLSSocket>>();

  get size(): number {
    return this.#open.size;
  }

  /** How many there are with one certificate. */
  withCertificate(serial: string): number {
    return this.#sockets.get(serial)?.size ?? 0;
  }

  /** Those with one certificate. */
  of(serial: string): Iterable<TLSSocket> {
    return this.#sockets.get(serial) ?? [];
  }

  all(): Iterable<TLSSocket> {
    return this.#open.keys();
  }

  /** Takes charge of one until it closes. */
  add(socket: TLSSocket, serial: string, caller: string): void {
    this.#open.set(socket, { serial, caller });
    addAt(this.#sockets, serial, socket);
    addAt(this.#callers, caller, socket);
    socket.once('close', () => this.#forget(socket));
  }

  /**
   * Takes out the one that gives way to one of `caller`, for the listener to close; null if none does. The largest share comes first; one that would be no larger then than the other's gives nothing, nor does a connection that
   * `isOwedNothing` says false of.
   */
  makeRoom(caller: string, isOwedNothing: (socket: TLSSocket) => boolean): TLSSocket | null {
    const own = this.#callers.get(caller)?.size ?? 0;
    const larger = [...this.#callers.values()].filter(({ size }) => size > own + 1).sort((a, b) => b.size - a.size);
    for (const sockets of larger) {
      for (const socket of sockets) {
        if (!isOwedNothing(socket)) continue;
        this.#forget(socket);
        return socket;
      }
    }
    return null;
  }

  #forget(socket: TLSSocket): void {
    const peer = this.#open.get(socket);
    if (peer === undefined) return;
    this.#open.delete(socket);
    deleteAt(this.#sockets, peer.serial, socket);
    deleteAt(this.#callers, peer.caller, socket);
  }
}

function addAt(sets: Map<string, Set<TLSSocket>>, key: string, socket: TLSSocket): void {
  const set = sets.get(key);
  if (set === undefined) sets.set(key, new Set([socket]));
  else set.add(socket);
}

function deleteAt(sets: Map<string, Set<TLSSocket>>, key: string, socket: TLSSocket): void {
  const set = sets.get(key);
  set?.delete(socket);
  if (set?.size === 0) sets.delete(key);
}
