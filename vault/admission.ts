/**
 * How many requests may be under way at once, of a connection and of a caller. A request costs memory from its head to its answer,
 * so without these one caller that sends and does not wait would take it all (20,000 pipelined requests took 900 MB), and
 * the queue of everybody else with it.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** Requests on one connection whose answers are not written yet. HTTP/1.1 clients that pipeline at all send a handful. */
const maxPerConnection = 64;

export class Admission {
  readonly #maxPerCaller: number;
  readonly #ofConnection = new WeakMap<Socket, number>();
  readonly #ofCaller = new Map<string, number>();

  constructor(maxPerCaller: number) {
    this.#maxPerCaller = maxPerCaller;
  }

  /**
   * Whether a request may be looked at. One too many on its connection closes that connection: to pause it would not do, as Node has
   * read a whole packet of requests before it looks up.
   */
  admit(request: IncomingMessage, response: ServerResponse): boolean {
    const { socket } = request;
    const count = (this.#ofConnection.get(socket) ?? 0) + 1;
    if (count > maxPerConnection) socket.destroy();
    if (socket.destroyed) {
      // Node parses on in a packet whose connection was closed. What comes of it may hold a card.
      request.on('data', (chunk: Buffer) => chunk.fill(0));
      return false;
    }
    this.#ofConnection.set(socket, count);
    // Not told for the answers that wait behind another when the connection closes: its count goes with it.
    response.once('close', () => this.#ofConnection.set(socket, (this.#ofConnection.get(socket) ?? 1) - 1));
    return true;
  }

  /** Takes a place of the caller: the function gives it back, and may be called again. Null if the caller has none left. */
  enter(caller: string): (() => void) | null {
    const count = this.#ofCaller.get(caller) ?? 0;
    if (count >= this.#maxPerCaller) return null;
    this.#ofCaller.set(caller, count + 1);
    let left = false;
    return () => {
      if (left) return;
      left = true;
      const now = this.#ofCaller.get(caller)! - 1;
      if (now === 0) this.#ofCaller.delete(caller);
      else this.#ofCaller.set(caller, now);
    };
  }
}
