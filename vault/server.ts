/**
 * The API listener: steps 1 and 2 of docs/MONEY-PATH.md for every request, and step 6's last part, the answer.
 *
 * 1. Authenticate: the caller comes from the connection's certificate, and its revocation is checked on every request.
 * 2. Take the digits out: before anything parses the body, card numbers leave it and are overwritten there.
 */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { createServer as createHttpsServer } from 'node:https';
import Fastify from 'fastify';
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { Admission } from './admission.ts';
import type { AdmissionLimits, Refusal } from './admission.ts';
import { MAX_ITEMS, MAX_VALUES, takeCards } from './body.ts';
import type { TakenCards, Where } from './body.ts';
import type { Call } from './call.ts';
import { callerOf } from './caller.ts';
import type { RevocationCheck } from './caller.ts';
import { holdsCardNumber } from './card-scan.ts';
import { VaultError, renderProblem } from './errors.ts';
import type { ErrorCode } from './errors.ts';
import { RequestAborted, discardBody, readBody } from './request-body.ts';
import type { TlsListener } from './tls.ts';

/** What a route says of itself. */
export interface RouteFacts {
  /** As the log, the metrics and the policy name it. */
  readonly action: string;
  /** Where its body holds card numbers. */
  readonly cards: Where;
  readonly maxBodyBytes: number;
  /** What `/openapi.json` says of its body, where that is more than is checked before its handler. */
  readonly documentedBody?: object;
  /** Whether a refusal on the way to it is an entry of the log; false only for what shows nothing of anybody. */
  readonly audited: boolean;
}

declare module 'fastify' {
  interface FastifyContextConfig extends Partial<RouteFacts> {}
  interface FastifyRequest {
    /** Made by the first hook; every later step may rely on it. */
    call: Call;
    /** The card numbers of the body; wiped by whoever ends the request. */
    taken: TakenCards | null;
    outcomeCode: ErrorCode | null;
    /** Whether its connection ends with its answer. */
    closing: boolean;
    /** To be called when the answer is made: see `Admission`. */
    dealtWith: () => void;
    /** Counts a large answer of so many bytes to its caller's bodies. @throws VaultError `overloaded` where they would be too many: it is then not to be given. */
    holdAnswer: (bytes: number) => void;
    /** Calls back once the answer has left, or cannot any more. */
    whenGone: (then: () => void) => void;
  }
}

/** Told of each answered request; must not throw. */
export interface RequestObserver {
  answered(action: string, outcome: string, seconds: number): void;
  /** The vault failed in a way that the caller is not told of. `error` may be logged, by its name and stack only. */
  failed(requestId: string, error: unknown): void;
  /** A request or connection that was turned away before anything looked at it, or whose answer is not read. */
  turnedAway(reason: Refusal): void;
}

export interface ServerOptions {
  readonly tls: TlsListener;
  readonly trustDomain: string;
  readonly revocation: RevocationCheck;
  /** Whether a caller may do nothing here until operators resume it. Asked of each request. */
  isSuspended(spiffeId: string): boolean;
  readonly observer: RequestObserver;
  readonly now: () => Date;
  /** Writes the entry of a call that was refused before it came to a transaction of its own. @throws VaultError if it cannot. */
  recordRefusal(call: Call, action: string, refused: VaultError): Promise<void>;
  /** Told of each request with a body once it is dealt with, whatever became of it: the buffers that it came through may hold a card. Must not throw. */
  readonly bodyPassed: () => void;
  /** What may be under way at once. */
  readonly admission: AdmissionLimits;
  /** A body or a header must arrive within this time. */
  readonly requestTimeoutMs: number;
  /** An answer must be read within this time. */
  readonly answerTimeoutMs: number;
  readonly keepAliveTimeoutMs: number;
}

const unknownRoute: RouteFacts = { action: 'unknown_route', cards: 'none', maxBodyBytes: 16 * 1024, audited: true };
/** Headers of a request. Each takes some 100 bytes for as long as the request is under way, however short it is: 800 of them, which Node has room for, 90 KB. */
const maxHeaders = 100;
/** What a value takes once it is parsed, beside the bytes of its text: an empty object takes 64. */
const valueBytes = 64;
/** How long a client may read the answer to what was no request. */
const lingerMs = 1000;
/** These come from the commit itself: nothing could be written then, and trying again would only add to the load. */
const unwritten: ReadonlySet<ErrorCode> = new Set(['store_unavailable', 'audit_unavailable', 'outcome_unknown', 'overloaded']);
const traceparent = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/u;

/** A listener without routes: `vault/routes.ts` adds them. Does not listen yet. */
export function createServer(options: ServerOptions): FastifyInstance {
  const { tls, revocation, observer, now, trustDomain } = options;
  const callerAt = (socket: TLSSocket): string => {
    try {
      return callerOf(socket, trustDomain).spiffeId;
    } catch {
      return '';
    }
  };
  const admission = new Admission(options.admission, (socket) => callerAt(socket as TLSSocket), (reason) => observer.turnedAway(reason));
  let draining = false;
  /** Connections of which something was no request, and that have been told. */
  const answered = new WeakSet<object>();
  const bodyOf = (request: IncomingMessage, { maxBodyBytes }: RouteFacts): Promise<Buffer> => readBody(request, maxBodyBytes, (bytes) => admission.holdBody(request, bytes));

  const app = Fastify({
    serverFactory: (handle) =>
      createHttpsServer(
        {
          ...tls.serverOptions(),
          // Node looks for late requests each half minute unless told to.
          requestTimeout: options.requestTimeoutMs,
          headersTimeout: options.requestTimeoutMs,
          connectionsCheckingInterval: Math.min(1000, options.requestTimeoutMs),
          keepAliveTimeout: options.keepAliveTimeoutMs,
          // `identify` refuses a request without Host, in the words of the API.
          requireHostHeader: false,
        },
        (request, response) => {
          if (admission.admit(request, response)) handle(request, response);
        },
      ),
    logger: false,
    genReqId: () => randomUUID(),
    requestIdHeader: false,
    bodyLimit: 64 * 1024 * 1024, // readBody enforces each route's own limit; Fastify does not, for a parser that takes the stream.
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    exposeHeadRoutes: false,
    routerOptions: { maxParamLength: 1024 },
    // A numeric PAN must not become a string, and an unknown field must not vanish.
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false, useDefaults: false, allErrors: false, strictTypes: false } },
    clientErrorHandler(error, socket) {
      // The packet that could not be parsed may hold anything, so it is wiped and the answer is constant.
      const { rawPacket } = error as unknown as { rawPacket?: Buffer };
      rawPacket?.fill(0);
      // What the client still sends behind it is no request either. To cut it off now would take its answer from it.
      if (answered.has(socket)) return;
      // While an earlier request, whole by itself, waits for its answer, this one would be taken for it.
      const pending = (socket as { _httpMessage?: { req?: { complete?: boolean } } | null })._httpMessage;
      if (!socket.writable || pending?.req?.complete === true) {
        socket.destroy();
        return;
      }
      answered.add(socket);
      const { problem } = renderProblem(new VaultError('invalid_request'), randomUUID());
      const body = JSON.stringify(problem);
      socket.end(`HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n${body}`);
      // Not at once, or what the client still sends would have its answer thrown away; but a client that never ends its side would hold on for ever.
      setTimeout(() => socket.destroy(), lingerMs).unref();
    },
    frameworkErrors(error, request, reply) {
      void answerUnrouted(error, request as FastifyRequest, reply as FastifyReply);
    },
  });
  // RFC 9110 section 10.1.1 lets an unknown expectation pass. Node would answer it by itself, past every hook.
  app.server.on('checkExpectation', (request, response) => app.server.emit('request', request, response));
  // CONNECT is no method of ours, and Node hands over what came behind its head.
  app.server.on('connect', (_request, socket, head: Buffer) => {
    head.fill(0);
    socket.destroy();
  });
  // Node leaves out what is beyond, but for some more that it has read by then: `identify` sees that there were too many, and refuses.
  app.server.maxHeadersCount = maxHeaders;
  tls.attach(app.server, { callerOf: callerAt, isOwedNothing: (socket) => admission.isOwedNothing(socket) });
  app.server.on('secureConnection', (socket) => admission.connected(socket));
  const unread = setInterval(() => admission.closeUnread(options.answerTimeoutMs, performance.now()), Math.min(1000, options.answerTimeoutMs)).unref();
  app.addHook('onClose', async () => clearInterval(unread));
  app.decorateRequest('call', null as unknown as Call);
  app.decorateRequest('taken', null);
  app.decorateRequest('outcomeCode', null);
  app.decorateRequest('closing', false);
  // On the prototype, and not closures of each request: with those the garbage of one request kept the next ones' alive until the whole heap was collected, 3 KB of each.
  app.decorateRequest('dealtWith', function (this: FastifyRequest) {
    admission.dealtWith(this.raw);
  });
  app.decorateRequest('holdAnswer', function (this: FastifyRequest, bytes: number) {
    if (!admission.holdAnswer(this.raw, bytes)) throw new VaultError('overloaded');
  });
  app.decorateRequest('whenGone', function (this: FastifyRequest, then: () => void) {
    admission.whenGone(this.raw, then);
  });

  /** Step 1. Also refuses what may not stand in a URL or a header, or a body where none belongs. */
  async function identify(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    reply.header('cache-control', 'no-store').header('x-request-id', request.id);
    if (hasBody(request)) admission.whenGone(request.raw, options.bodyPassed);
    const facts = factsOf(request);
    const socket = request.raw.socket as TLSSocket;
    const at = now();
    request.call = { requestId: request.id, at, caller: null, from: socket.remoteAddress ?? '' };
    // 1. Authenticate.
    let caller;
    try {
      caller = callerOf(socket, trustDomain);
    } catch (error) {
      throw new VaultError('not_authorized', { cause: error });
    }
    request.call = { requestId: request.id, at, caller, from: socket.remoteAddress ?? '' };
    const standing = revocation.check(caller, at);
    if (standing !== 'good') {
      request.closing = true;
      reply.header('connection', 'close');
      throw new VaultError('not_authorized', { cause: new Error(`the certificate is ${standing}`) });
    }
    if (options.isSuspended(caller.spiffeId)) throw new VaultError('not_authorized', { facts: { detail: { why: 'suspended' } } });
    if (request.raw.rawHeaders.length > 2 * maxHeaders) throw new VaultError('invalid_request');
    // RFC 9112 section 3.2: one Host, and no more. A trailer would be a header that nobody has looked at.
    const hosts = request.raw.rawHeaders.filter((name, index) => index % 2 === 0 && name.length === 4 && name.toLowerCase() === 'host').length;
    if (hosts > 1 || (hosts === 0 && request.raw.httpVersion === '1.1') || request.raw.headers.trailer !== undefined) throw new VaultError('invalid_request');
    // A card number in the URL or a header is a string already, beyond wiping: it is refused, and named nowhere.
    if (holdsCardNumber(request.raw.url ?? '') || headersHoldCardNumber(request)) throw new VaultError('pan_in_other_field');
    // Bodies where none belongs are wiped as well: a client may send a card anywhere.
    if ((request.method === 'GET' || request.method === 'HEAD') && hasBody(request)) {
      (await bodyOf(request.raw, facts)).fill(0);
      throw new VaultError('invalid_request');
    }
  }
  app.addHook('onRequest', identify);

  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', async (request: FastifyRequest, payload: FastifyRequest['raw']) => {
    const facts = factsOf(request);
    const body = await bodyOf(payload, facts);
    try {
      if (payload.rawTrailers.length > 0) throw new VaultError('invalid_request');
      const type = request.headers['content-type'];
      // 2. Take the digits out, also of what will be refused.
      const taken = takeCards(body, facts.cards);
      if (!taken.ok) throw new VaultError(taken.refusal);
      request.taken = taken;
      if (type === undefined || !/^application\/json\s*(;|$)/iu.test(type)) throw new VaultError('invalid_request');
      if (taken.itemCount > MAX_ITEMS) throw new VaultError('too_many_items');
      if (taken.values > MAX_VALUES) throw new VaultError('invalid_request');
      if (!admission.holdBody(payload, body.length + taken.values * valueBytes)) throw new VaultError('overloaded');
      // From here on the text holds no card number.
      return JSON.parse(taken.json.toString('utf8')) as unknown;
    } finally {
      body.fill(0);
    }
  });

  async function answerError(error: unknown, request: FastifyRequest, reply: FastifyReply): Promise<void> {
    try {
      await refuse(error, request, reply);
    } finally {
      admission.dealtWith(request.raw);
    }
  }
  async function refuse(error: unknown, request: FastifyRequest, reply: FastifyReply): Promise<void> {
    request.taken?.[Symbol.dispose]();
    discardBody(request.raw);
    const facts = factsOf(request);
    const call = request.call as Call | null;
    if (error instanceof RequestAborted) {
      // Nobody is there to be answered, but the log knows of the call.
      request.outcomeCode = 'invalid_request';
      reply.hijack();
      request.raw.destroy();
      if (!facts.audited || call === null) return;
      try {
        await options.recordRefusal(call, facts.action, new VaultError('invalid_request'));
      } catch (recordError) {
        observer.failed(request.id, recordError);
      }
      return;
    }
    let refusal = toVaultError(error);
    if (facts.audited && !refusal.recorded && !unwritten.has(refusal.code) && call !== null) {
      try {
        await options.recordRefusal(call, facts.action, refusal);
      } catch (recordError) {
        // If the log cannot be written, the vault refuses for that reason, whatever else there was.
        refusal = toVaultError(recordError);
      }
    }
    // What the database or the load did is counted; a line for each call would only be a second flood.
    if (refusal.status >= 500 && !unwritten.has(refusal.code)) observer.failed(request.id, refusal.cause ?? refusal);
    request.outcomeCode = refusal.code;
    const { problem, retryAfterSeconds } = renderProblem(refusal, request.id);
    if (retryAfterSeconds !== undefined) reply.header('retry-after', retryAfterSeconds);
    // What is left of a refused body is thrown away by readBody; the connection is not used again. A client that asked for its end is told of it, or it would send its next request on a connection that closes.
    const ends = refusal.code === 'payload_too_large' || (refusal.code === 'overloaded' && !request.raw.complete) || request.closing || !reply.raw.shouldKeepAlive;
    if (ends) reply.header('connection', 'close');
    // Fastify would say so of every body that a parser refused.
    else if (request.raw.complete) reply.removeHeader('connection');
    reply.code(problem.status).type('application/problem+json').serializer(JSON.stringify);
    await reply.send(problem);
  }
  /** A URL that the router cannot read comes without any hook: who asks is established here, before anything is answered. */
  async function answerUnrouted(error: unknown, request: FastifyRequest, reply: FastifyReply): Promise<void> {
    let refusal = error;
    try {
      await identify(request, reply);
    } catch (stranger) {
      refusal = stranger;
    }
    await answerError(refusal, request, reply);
  }
  app.setErrorHandler(answerError);
  app.setNotFoundHandler(async (request, reply) => {
    await answerError(new VaultError('not_found'), request, reply);
  });

  // With a callback: a promise more for each request is measurable.
  app.addHook('onSend', (request, reply, payload, done) => {
    admission.dealtWith(request.raw);
    if (draining) reply.header('connection', 'close');
    done(null, payload);
  });
  app.addHook('onResponse', (request, reply, done) => {
    request.taken?.[Symbol.dispose]();
    observer.answered(factsOf(request).action, request.outcomeCode ?? 'ok', reply.elapsedTime / 1000);
    done();
  });
  app.addHook('preClose', async () => {
    draining = true;
    // Node no longer looks for late requests on a server that closes.
    admission.closeWaiting(false);
    tls.closeHandshakes();
    setTimeout(() => admission.closeWaiting(true), options.requestTimeoutMs).unref();
  });
  return app;
}

/**
 * Writes an answer that holds card numbers: the head first, then the body as one lone Buffer, which is wiped as soon as it is
 * sent or the client is gone. Several buffers in one write would be copied inside Node's TLS layer, where nobody wipes them;
 * so an answer that stands behind another one on its connection is not given to Node before its turn.
 */
export function sendSecret(request: FastifyRequest, reply: FastifyReply, body: Buffer): void {
  reply.hijack();
  request.dealtWith();
  const { raw } = reply;
  const wipe = (): void => {
    body.fill(0);
  };
  raw.once('finish', wipe);
  request.whenGone(wipe);
  if (raw.destroyed || request.raw.socket.destroyed) return wipe();
  const send = (): void => {
    raw.writeHead(200, { ...(reply.getHeaders() as Record<string, string>), 'content-type': 'application/json; charset=utf-8', 'content-length': body.length });
    raw.flushHeaders();
    const { socket } = raw;
    // Whatever waits in front of the body (the head behind a 100 Continue) would be sent in one write with it.
    if (waited && socket !== null && socket.writableLength > 0) socket.write('', () => raw.end(body));
    else raw.end(body);
  };
  const waited = raw.socket === null;
  if (waited) raw.once('socket', send);
  else send();
}

function factsOf(request: FastifyRequest): RouteFacts {
  const { config } = request.routeOptions;
  return config.action === undefined ? unknownRoute : (config as RouteFacts);
}

function hasBody(request: FastifyRequest): boolean {
  const { 'content-length': length, 'transfer-encoding': encoding } = request.headers;
  return encoding !== undefined || (length !== undefined && length !== '0');
}

function headersHoldCardNumber(request: FastifyRequest): boolean {
  const headers = request.raw.rawHeaders;
  for (let index = 0; index < headers.length; index += 2) {
    const value = headers[index + 1]!;
    // Names are scanned as well. A trace id is random hex in an exact form, and would be mistaken now and then.
    if (value.length >= 12 && holdsCardNumber(value) && !traceparent.test(value)) return true;
    if (headers[index]!.length >= 12 && holdsCardNumber(headers[index]!)) return true;
  }
  return false;
}

/** Fastify's own refusals (schema, malformed URL, …) are the client's fault and say so without their text, which may quote input. */
function toVaultError(error: unknown): VaultError {
  if (error instanceof VaultError) return error;
  const status = (error as Partial<FastifyError> | null)?.statusCode;
  if (status !== undefined && status >= 400 && status < 500) return new VaultError(status === 413 ? 'payload_too_large' : 'invalid_request', { cause: error });
  return new VaultError('internal', { cause: error });
}
