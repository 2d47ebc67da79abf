/**
 * When a new connection may begin its TLS handshake. A handshake costs 2.5 ms of processor time and who asks for it is not known before it, so
 * what is limited is how many begin in a second; the others wait, and the addresses that they come from take turns. A connection that waits has
 * cost a socket and no cryptography. Nothing here knows of TLS.
 */
import type { Socket } from 'node:net';
import { Allowance } from './allowance.ts';

export interface HandshakeLimits {
  /** Handshakes that may begin in a second in the long run. */
  readonly perSecond: number;
  /** That may begin after a calm before `perSecond` binds, one in each turn of the event loop. */
  readonly burst: number;
  /** Connections whose handshake has not begun. */
  readonly maxWaiting: number;
  /** How long a connection may wait. The handshake's own time is the caller's to limit. */
  readonly timeoutMs: number;
}

/** Why a connection was closed before its handshake was done. */
export type HandshakeRefusal =
  | 'too many connections wait'
  | 'waited too long'
  | 'said too much before its handshake'
  | 'slower than the handshakes that wait'
  | 'gone while it waited'
  | 'the handshake failed';

/** Connections of one address that wait. Sets keep the order in which they came. */
interface Share {
  /** Have sent nothing yet. They make room first. */
  readonly silent: Set<Socket>;
  /** Their handshake can begin. */
  readonly ready: Set<Socket>;
}

interface UnderWay {
  readonly socket: Socket;
  readonly address: string;
  readonly sinceMs: number;
}

interface Waiting {
  readonly address: string;
  readonly share: Share;
  readonly timer: NodeJS.Timeout;
}

/** A handshake under way is left alone for so long: time for any network, and for a client that has hundreds of them to do on a busy core; not for ever, for one that means to hold up the others. */
const patienceMs = 5000;
/** A client says its hello, at most one TLS record, and then nothing until it is answered. */
const maxHelloBytes = 16 * 1024 + 5;

export class Handshakes {
  readonly #limits: HandshakeLimits;
  readonly #begin: (socket: Socket) => void;
  readonly #refused: (reason: HandshakeRefusal) => void;
  readonly #allowance: Allowance;
  /** By address, in the order of their turns. */
  readonly #shares = new Map<string, Share>();
  readonly #waiting = new Map<Socket, Waiting>();
  /** By address and port, the oldest first. */
  readonly #underWay = new Map<string, UnderWay>();
  /** How many of them each address has. */
  readonly #underWayOf = new Map<string, number>();
  /** As many as begin in a second. More would be a store of second halves, 1 ms each, that one peer can call in at the same moment. */
  readonly #maxUnderWay: number;
  readonly #nowMs: () => number;
  /** Set while this turn of the event loop has had its handshake. */
  #immediate: NodeJS.Immediate | null = null;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  /** `begin` starts a handshake, `refused` is told of each connection that was closed; neither may throw. */
  constructor(limits: HandshakeLimits, begin: (socket: Socket) => void, refused: (reason: HandshakeRefusal) => void, nowMs: () => number = () => performance.now()) {
    this.#limits = limits;
    this.#begin = begin;
    this.#refused = refused;
    this.#nowMs = nowMs;
    this.#allowance = new Allowance(limits.burst, limits.perSecond, nowMs);
    this.#maxUnderWay = limits.perSecond;
  }

  /** Takes charge of a connection that has just been accepted. */
  connected(socket: Socket): void {
    socket.on('error', () => undefined);
    if (this.#closed) {
      socket.destroy();
      return;
    }
    // Undefined: the peer is gone already.
    const address = networkOf(socket.remoteAddress ?? '');
    if (this.#waiting.size >= this.#limits.maxWaiting && !this.#makeRoom(address)) return this.#refuse(socket, 'too many connections wait');
    let share = this.#shares.get(address);
    if (share === undefined) this.#shares.set(address, (share = { silent: new Set(), ready: new Set() }));
    share.silent.add(socket);
    const timer = setTimeout(() => this.#refuse(socket, 'waited too long'), this.#limits.timeoutMs).unref();
    this.#waiting.set(socket, { address, share, timer });
    socket.once('close', () => {
      if (this.#forget(socket)) this.#refused('gone while it waited');
    });
    // What is read now is kept by the socket, and given to TLS when it begins.
    socket.on('readable', () => this.#heard(socket));
  }

  /** To be told of a connection whose handshake is done, by either of its two sockets. */
  done(socket: Socket): void {
    if (this.#leave(nameOf(socket))) this.#go();
  }

  /** Closes what waits, what has not ended its handshake, and whatever comes from now on. Told to nobody: it is the vault that goes. */
  close(): void {
    this.#closed = true;
    const sockets = [...this.#waiting.keys(), ...[...this.#underWay.values()].map(({ socket }) => socket)];
    this.#underWay.clear();
    this.#underWayOf.clear();
    for (const socket of sockets) {
      this.#forget(socket);
      socket.destroy();
    }
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  get underWay(): number {
    return this.#underWay.size;
  }

  #heard(socket: Socket): void {
    const waiting = this.#waiting.get(socket);
    if (waiting === undefined) return;
    if (socket.readableLength === 0) {
      // Nothing to be read: its end.
      socket.destroy();
      return;
    }
    if (socket.readableLength > maxHelloBytes) return this.#refuse(socket, 'said too much before its handshake');
    waiting.share.silent.delete(socket);
    waiting.share.ready.add(socket);
    this.#go();
  }

  /** Begins a handshake if one may begin now, and comes again for the others: what else happens in the vault has its time between two. */
  #go(): void {
    if (this.#immediate !== null) return;
    const crowdedMs = this.#crowdedMs();
    const socket = this.#next(crowdedMs > 0);
    const waitMs = socket === null ? crowdedMs : this.#allowance.waitMs;
    if (waitMs > 0) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#go(), Math.ceil(waitMs)).unref();
    } else if (socket !== null) {
      this.#immediate = setImmediate(() => {
        this.#immediate = null;
        this.#go();
      });
      this.#start(socket);
    }
  }

  /** Until one of those under way may be closed for another: 0 if none need be, or one may. */
  #crowdedMs(): number {
    if (this.#underWay.size < this.#maxUnderWay) return 0;
    const [oldest] = this.#underWay.values();
    return Math.max(0, oldest!.sinceMs + patienceMs - this.#nowMs());
  }

  /** Whose turn it is: the first to come of the first share that has one ready. It stays where it is. While it is crowded, only who has none under way has a turn. */
  #next(crowded: boolean): Socket | null {
    if (crowded && this.#underWay.size >= 2 * this.#maxUnderWay) return null;
    for (const [address, { ready }] of this.#shares) {
      if (crowded && this.#underWayOf.has(address)) continue;
      for (const socket of ready) return socket;
    }
    return null;
  }

  #start(socket: Socket): void {
    const { address, share } = this.#waiting.get(socket)!;
    this.#forget(socket);
    // Its next turn comes after everybody else's.
    if (this.#shares.delete(address) && share.silent.size + share.ready.size > 0) this.#shares.set(address, share);
    const [oldest] = this.#underWay;
    if (oldest !== undefined && this.#underWay.size >= this.#maxUnderWay && this.#crowdedMs() === 0) {
      this.#leave(oldest[0]);
      this.#refuse(oldest[1].socket, 'slower than the handshakes that wait');
    }
    const name = nameOf(socket);
    this.#allowance.take();
    // The name of one that is gone, and whose end is still to be told.
    this.#leave(name);
    this.#underWay.set(name, { socket, address, sinceMs: this.#nowMs() });
    this.#underWayOf.set(address, (this.#underWayOf.get(address) ?? 0) + 1);
    socket.once('close', () => {
      if (this.#underWay.get(name)?.socket === socket) {
        this.#leave(name);
        this.#refused('the handshake failed');
      }
      this.#go();
    });
    this.#begin(socket);
  }

  /** Whether it was under way. */
  #leave(name: string): boolean {
    const handshake = this.#underWay.get(name);
    if (handshake === undefined) return false;
    this.#underWay.delete(name);
    const left = this.#underWayOf.get(handshake.address)! - 1;
    if (left === 0) this.#underWayOf.delete(handshake.address);
    else this.#underWayOf.set(handshake.address, left);
    return true;
  }

  /** Makes a place for one of `address`: the share with the most loses its oldest silent connection, else its oldest, unless it is the one that asks. */
  #makeRoom(address: string): boolean {
    let largest: [string, Share] | null = null;
    const sizeOf = ({ silent, ready }: Share): number => silent.size + ready.size;
    for (const entry of this.#shares) if (largest === null || sizeOf(entry[1]) > sizeOf(largest[1])) largest = entry;
    if (largest === null) return false;
    const [whose, { silent, ready }] = largest;
    const victim = silent.values().next().value ?? (whose === address ? undefined : ready.values().next().value);
    if (victim === undefined) return false;
    this.#refuse(victim, 'too many connections wait');
    return true;
  }

  #refuse(socket: Socket, reason: HandshakeRefusal): void {
    this.#forget(socket);
    socket.destroy();
    this.#refused(reason);
  }

  /** Whether it waited. */
  #forget(socket: Socket): boolean {
    const waiting = this.#waiting.get(socket);
    if (waiting === undefined) return false;
    const { address, share, timer } = waiting;
    clearTimeout(timer);
    this.#waiting.delete(socket);
    socket.removeAllListeners('readable');
    share.silent.delete(socket);
    share.ready.delete(socket);
    if (share.silent.size + share.ready.size === 0 && this.#shares.get(address) === share) this.#shares.delete(address);
    return true;
  }
}

function nameOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`;
}

/** What one machine has for itself: an address of IPv4, or 64 bits of IPv6. Of text as the system writes it. */
export function networkOf(address: string): string {
  // With a dot: IPv4, also as IPv6 writes it.
  if (!address.includes(':') || address.includes('.')) return address;
  const [head, tail] = address.split('::');
  const left = head === '' ? [] : head!.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  while (tail !== undefined && left.length + right.length < 8) left.push('0');
  return [...left, ...right].slice(0, 4).join(':');
}
