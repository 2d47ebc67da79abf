/**
 * How many requests may be under way at once, of a connection and of a caller, and how many bytes their bodies may take together. A request costs
 * memory from its head until its answer has left, so without these one caller that sends and does not wait, or does not read, would take it all, and
 * the queue of everybody else with it (20,000 pipelined requests took 900 MB). What is too much is turned away before anything else looks at it.
 */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { VaultError, renderProblem } from './errors.ts';
import { LinkedList } from './linked-list.ts';

/** Requests on one connection whose answers have not left yet. HTTP/1.1 clients that pipeline at all send a handful. */
const maxPerConnection = 64;

export interface AdmissionLimits {
  readonly maxRequestsPerCaller: number;
  /** Bytes of the bodies of one caller's requests under way, together. */
  readonly maxBodyBytesPerCaller: number;
  /** Of all callers' requests. */
  readonly maxBodyBytes: number;
}

/** What one caller has under way. Large answers count among the bodies. */
interface Share {
  requests: number;
  bodyBytes: number;
}

/** What was turned away, or closed: requests beyond a connection's share (with it), beyond a caller's, bodies beyond what a caller or all may send at once, and answers that nobody reads (with their connection). */
export type Refusal = 'too many requests on one connection' | 'too many requests of one caller' | 'too many bytes of bodies' | 'an answer was not read';

/** One request's place. It is free again once the request is dealt with and its answer has left, or cannot any more. */
interface Place {
  readonly caller: string;
  readonly share: Share;
  bodyBytes: number;
  free: boolean;
  dealtWith: boolean;
  gone: boolean;
  /** Since when (monotonic, ms) it was seen to be made and not to have left, with no other answer before it; null while it was not. */
  unreadSince: number | null;
  /** Whom to tell. */
  readonly whenGone: (() => void)[];
}

/** On the request itself: a WeakMap of what comes and goes all the time costs every collection of young objects a walk through it. */
const placeOf = Symbol('place');
type Admitted = IncomingMessage & { [placeOf]?: Place };

export class Admission {
  readonly #limits: AdmissionLimits;
  readonly #callerOf: (socket: Socket) => string;
  readonly #report: (reason: Refusal) => void;
  /** Requests whose answers have not left yet, of every open connection. */
  readonly #underWay = new Map<Socket, LinkedList<Admitted>>();
  readonly #shares = new Map<string, Share>();
  #bodyBytes = 0;

  /** `callerOf` names whoever a connection belongs to, '' where it cannot be told; it must not throw, nor must `report`. */
  constructor(limits: AdmissionLimits, callerOf: (socket: Socket) => string, report: (reason: Refusal) => void = () => undefined) {
    this.#limits = limits;
    this.#callerOf = callerOf;
    this.#report = report;
  }

  /** Takes charge of a connection: what is under way on it when it closes is gone. */
  connected(socket: Socket): void {
    const requests = new LinkedList<Admitted>();
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
      // What comes behind it in the packet is of the same connection.
      if (!socket.destroyed) this.#report('too many requests on one connection');
      socket.destroy();
      // Node parses on in a packet whose connection was closed. What comes of it may hold a card.
      discard(request);
      return false;
    }
    const caller = this.#callerOf(socket);
    const share = this.#shares.get(caller) ?? { requests: 0, bodyBytes: 0 };
    const alone = requests.size === 0;
    const node = requests.append(request);
    response.once('close', () => {
      requests.remove(node);
      this.#gone(request);
    });
    if (share.requests >= this.#limits.maxRequestsPerCaller) {
      // It has no place, but its answer must be read like any other.
      (request as Admitted)[placeOf] = { ...placeOfShare(caller, share), free: true, dealtWith: true };
      discard(request);
      this.#report('too many requests of one caller');
      refuse(response, !alone);
      return false;
    }
    (request as Admitted)[placeOf] = placeOfShare(caller, share);
    share.requests += 1;
    this.#shares.set(caller, share);
    return true;
  }

  /**
   * Says that the body of a request takes `bytes` by now, in place of what was said before. False, and nothing is counted, where its caller's bodies would be too many: more
   * than one caller may have or, beside others', more than is left then. So several callers that take all they can leave room for one more, half as much as each of them has.
   * What a body takes is given back with the request's place: until then its fields are in memory, whatever became of its bytes.
   */
  holdBody(request: IncomingMessage, bytes: number): boolean {
    const place = (request as Admitted)[placeOf];
    if (place === undefined || place.free) return false;
    const more = bytes - place.bodyBytes;
    const { maxBodyBytesPerCaller, maxBodyBytes } = this.#limits;
    const taken = place.share.bodyBytes + more;
    const left = maxBodyBytes - this.#bodyBytes - more;
    const alone = this.#bodyBytes === place.share.bodyBytes;
    if (more > 0 && (taken > maxBodyBytesPerCaller || left < (alone ? 0 : taken))) {
      this.#report('too many bytes of bodies');
      return false;
    }
    this.#hold(place, more);
    return true;
  }

  #hold(place: Place, more: number): void {
    place.bodyBytes += more;
    place.share.bodyBytes += more;
    this.#bodyBytes += more;
  }

  /**
   * Says that the answer to a request takes `bytes`, for as long as it has not left; beside bodies, which it counts like. False, and nothing is counted, where that is more than its caller may have.
   * To be asked for answers that may be large and that a client could leave unread. Where its caller has nothing else, any answer may be given: it could never be had otherwise.
   */
  holdAnswer(request: IncomingMessage, bytes: number): boolean {
    const place = (request as Admitted)[placeOf];
    if (place === undefined || place.free) return false;
    if (place.share.bodyBytes !== place.bodyBytes) return this.holdBody(request, place.bodyBytes + bytes);
    this.#hold(place, bytes);
    return true;
  }

  /** To be told when the answer to a request is made, or there will be none. May be told again. */
  dealtWith(request: IncomingMessage): void {
    const place = (request as Admitted)[placeOf];
    if (place === undefined || place.dealtWith) return;
    place.dealtWith = true;
    if (place.gone) this.#free(place);
  }

  /** Calls `then` once the answer to a request has left, or cannot any more: at once where that is so already. Node tells the answers that wait behind another of neither. */
  whenGone(request: IncomingMessage, then: () => void): void {
    const place = (request as Admitted)[placeOf];
    if (place === undefined || place.gone) then();
    else place.whenGone.push(then);
  }

  /** Closes the connections that the vault owes nothing: none of their requests is under way or, with `incomplete`, only such as have not arrived whole. */
  closeWaiting(incomplete: boolean): void {
    for (const [socket, requests] of this.#underWay) {
      if (requests.size === 0 || (incomplete && this.isOwedNothing(socket))) socket.destroy();
    }
  }

  /** Whether a connection may be closed without anybody missing an answer: no request has arrived whole on it that was not answered. */
  isOwedNothing(socket: Socket): boolean {
    for (const request of this.#underWay.get(socket) ?? []) if (request.complete) return false;
    return true;
  }

  /**
   * Closes the connections whose client does not read: the answer whose turn it is was made, and `maxMs` later has not left. Whoever never reads would otherwise hold its
   * place, and an answer with card numbers in memory, for as long as he likes. To be called often.
   */
  closeUnread(maxMs: number, nowMs: number): void {
    for (const [socket, requests] of this.#underWay) {
      const place = requests.first?.value[placeOf];
      if (place?.dealtWith !== true) continue;
      place.unreadSince ??= nowMs;
      if (nowMs - place.unreadSince < maxMs) continue;
      this.#report('an answer was not read');
      socket.destroy();
    }
  }

  #gone(request: IncomingMessage): void {
    const place = (request as Admitted)[placeOf];
    if (place === undefined || place.gone) return;
    place.gone = true;
    for (const then of place.whenGone) then();
    if (place.dealtWith && !place.free) this.#free(place);
  }

  #free(place: Place): void {
    const { share, bodyBytes } = place;
    place.free = true;
    share.bodyBytes -= bodyBytes;
    this.#bodyBytes -= bodyBytes;
    share.requests -= 1;
    if (share.requests === 0) this.#shares.delete(place.caller);
  }
}

function placeOfShare(caller: string, share: Share): Place {
  return { caller, share, bodyBytes: 0, free: false, dealtWith: false, gone: false, unreadSince: null, whenGone: [] };
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
