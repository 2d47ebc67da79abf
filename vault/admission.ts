/**
 * How many requests may be under way at once, of a connection and of a caller. A request costs memory from its head until its answer has
 * left, so without these one caller that sends and does not wait, or does not read, would take it all, and the queue of everybody else with it
 * (20,000 pipelined requests took 900 MB). What is too much is turned away before anything else looks at it.
 */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { VaultError, renderProblem } from './errors.ts';

/** Requests on one connection whose answers have not left yet. HTTP/1.1 clients that pipeline at all send a handful. */
const maxPerConnection = 64;

/** One request's place. It is free again once the request is dealt with and its answer has left, or cannot any more. */
interface Place {
  readonly caller: string;
  dealtWith: boolean;
  gone: boolean;
  /** Since when (monotonic, ms) it was seen to be made and not to have left, with no other answer before it; null while it was not. */
  unreadSince: number | null;
  /** Whom to tell. */
  readonly whenGone: (() => void)[];
}

export class Admission {
  readonly #maxPerCaller: number;
  readonly #callerOf: (socket: Socket) => string;
  /** Requests whose answers have not left yet, of every open connection. */
  readonly #underWay = new Map<Socket, Set<IncomingMessage>>();
  readonly #places = new WeakMap<IncomingMessage, Place>();
  readonly #ofCaller = new Map<string, number>();

  /** `callerOf` names whoever a connection belongs to, '' where it cannot be told; it must not throw. */
  constructor(maxPerCaller: number, callerOf: (socket: Socket) => string) {
    this.#maxPerCaller = maxPerCaller;
    this.#callerOf = callerOf;
  }

  /** Takes charge of a connection: what is under way on it when it closes is gone. */
  connected(socket: Socket): void {
    const requests = new Set<IncomingMessage>();
    this.#underWay.set(socket, requests);
    socket.once('close', () => {
      this.#underWay.delete(socket);
      // Answers that wait behind another are not told themselves.
      for (const request of requests) this.#gone(request);
    });
  }

  /**
   * Whether a request may be looked at. One too many on its connection closes that connection: to pause it would not do, as Node has
   * read a whole packet of requests before it looks up. One too many of its caller is told `overloaded`, and closes its connection if others are
   * under way there: who waits for each answer may try again on it.
   */
  admit(request: IncomingMessage, response: ServerResponse): boolean {
    const { socket } = request;
    const requests = this.#underWay.get(socket);
    if (requests === undefined || socket.destroyed || requests.size >= maxPerConnection) {
      socket.destroy();
      // Node parses on in a packet whose connection was closed. What comes of it may hold a card.
      discard(request);
      return false;
    }
    const caller = this.#callerOf(socket);
    const count = this.#ofCaller.get(caller) ?? 0;
    const alone = requests.size === 0;
    requests.add(request);
    response.once('close', () => {
      requests.delete(request);
      this.#gone(request);
    });
    if (count >= this.#maxPerCaller) {
      discard(request);
      refuse(response, !alone);
      return false;
    }
    this.#places.set(request, { caller, dealtWith: false, gone: false, unreadSince: null, whenGone: [] });
    this.#ofCaller.set(caller, count + 1);
    return true;
  }

  /** To be told when the answer to a request is made, or there will be none. May be told again. */
  dealtWith(request: IncomingMessage): void {
    const place = this.#places.get(request);
    if (place === undefined || place.dealtWith) return;
    place.dealtWith = true;
    if (place.gone) this.#free(place);
  }

  /** Calls `then` once the answer to a request has left, or cannot any more: at once where that is so already. Node tells the answers that wait behind another of neither. */
  whenGone(request: IncomingMessage, then: () => void): void {
    const place = this.#places.get(request);
    if (place === undefined || place.gone) then();
    else place.whenGone.push(then);
  }

  /** Closes the connections that the vault owes nothing: none of their requests is under way or, with `incomplete`, only such as have not arrived whole. */
  closeWaiting(incomplete: boolean): void {
    for (const [socket, requests] of this.#underWay) {
      if (requests.size === 0 || (incomplete && [...requests].every((request) => !request.complete))) socket.destroy();
    }
  }

  /**
   * Closes the connections whose client does not read: the answer whose turn it is was made, and `maxMs` later has not left. Whoever never reads would otherwise hold its
   * place, and an answer with card numbers in memory, for as long as he likes. To be called often.
   */
  closeUnread(maxMs: number, nowMs: number): void {
    for (const [socket, requests] of this.#underWay) {
      const [first] = requests;
      const place = first === undefined ? undefined : this.#places.get(first);
      if (place?.dealtWith !== true) continue;
      place.unreadSince ??= nowMs;
      if (nowMs - place.unreadSince >= maxMs) socket.destroy();
    }
  }

  #gone(request: IncomingMessage): void {
    const place = this.#places.get(request);
    if (place === undefined || place.gone) return;
    place.gone = true;
    for (const then of place.whenGone) then();
    if (place.dealtWith) this.#free(place);
  }

  #free({ caller }: Place): void {
    const count = this.#ofCaller.get(caller)! - 1;
    if (count === 0) this.#ofCaller.delete(caller);
    else this.#ofCaller.set(caller, count);
  }
}

function discard(request: IncomingMessage): void {
  request.on('data', (chunk: Buffer) => chunk.fill(0));
}

/** By hand: the framework would cost several times as much, and this is what a flood meets. */
function refuse(response: ServerResponse, close: boolean): void {
  const requestId = randomUUID();
  const { problem, retryAfterSeconds } = renderProblem(new VaultError('overloaded'), requestId);
  const body = JSON.stringify(problem);
  response.writeHead(problem.status, {
    'content-type': 'application/problem+json',
    'content-length': Buffer.byteLength(body),
    'cache-control': 'no-store',
    'x-request-id': requestId,
    'retry-after': String(retryAfterSeconds ?? 1),
    ...(close ? { connection: 'close' } : {}),
  });
  response.end(body);
}
