/** A small client of the API: JSON over mutual TLS on kept connections, and raw bytes for what no client would send. */
import { Agent, request } from 'node:https';
import type { IncomingHttpHeaders } from 'node:http';
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';
import type { Credentials } from './pki.ts';

/** An answer as it was read. */
export interface Reply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
  /** The body as JSON. @throws SyntaxError if it is none. */
  json(): Record<string, unknown>;
}

/** Every answer of a client with its request's line: what a search for card numbers goes through. */
export type Transcript = { readonly call: string; readonly bytes: Buffer }[];

export interface ApiClientOptions {
  readonly port: number;
  readonly authority: string;
  readonly credentials: Credentials | null;
  /** Connections open at once. */
  readonly connections: number;
  readonly transcript: Transcript;
}

export interface CallOptions {
  readonly headers?: Readonly<Record<string, string | readonly string[]>>;
  /** JSON unless it is bytes; bytes are sent as they are, with `application/json`. */
  readonly body?: unknown;
  /** Sends the body without a length, in chunks. */
  readonly chunked?: boolean;
}

/** An answer that takes longer does not come. */
const answerMs = 20_000;

export class ApiClient {
  readonly #options: ApiClientOptions;
  readonly #agent: Agent;
  readonly #sockets = new Set<TLSSocket>();

  constructor(options: ApiClientOptions) {
    this.#options = options;
    this.#agent = new Agent({ keepAlive: true, maxSockets: options.connections, ca: options.authority, servername: 'localhost', ...options.credentials });
  }

  async post(path: string, body: unknown, headers: CallOptions['headers'] = {}): Promise<Reply> {
    return await this.call('POST', path, { body, headers });
  }

  async get(path: string, headers: CallOptions['headers'] = {}): Promise<Reply> {
    return await this.call('GET', path, { headers });
  }

  /** @throws Error if the connection fails, or no answer comes. */
  async call(method: string, path: string, options: CallOptions = {}): Promise<Reply> {
    const { body } = options;
    const bytes = body === undefined ? null : Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body), 'utf8');
    const { promise, resolve, reject } = Promise.withResolvers<Reply>();
    const outgoing = request(
      {
        host: '127.0.0.1',
        port: this.#options.port,
        agent: this.#agent,
        method,
        path,
        headers: { ...(bytes === null ? {} : { 'content-type': 'application/json', ...(options.chunked === true ? { 'transfer-encoding': 'chunked' } : { 'content-length': bytes.length }) }), ...(options.headers as Record<string, string | string[]>) },
        signal: AbortSignal.timeout(answerMs),
      },
      (incoming) => {
        const chunks: Buffer[] = [];
        incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
        incoming.once('error', reject);
        incoming.once('end', () => {
          const whole = Buffer.concat(chunks);
          const head = Buffer.from(`${incoming.statusCode}\n${incoming.rawHeaders.join('\n')}\n`, 'utf8');
          this.#options.transcript.push({ call: `${method} ${path} ${incoming.statusCode}`, bytes: Buffer.concat([head, whole]) });
          resolve({ status: incoming.statusCode ?? 0, headers: incoming.headers, body: whole, json: () => JSON.parse(whole.toString('utf8')) as Record<string, unknown> });
        });
      },
    );
    outgoing.once('error', reject);
    if (bytes !== null && options.chunked === true) {
      // In several pieces, so that no piece alone is the body.
      for (let at = 0; at < bytes.length; at += 4096) outgoing.write(bytes.subarray(at, at + 4096));
    } else if (bytes !== null) outgoing.write(bytes);
    outgoing.end();
    return await promise;
  }

  /** A TLS connection of its own, for whoever writes HTTP by hand. Closed with the client. */
  async connect(extra: ConnectionOptions & { allowHalfOpen?: boolean } = {}): Promise<TLSSocket> {
    const { promise, resolve, reject } = Promise.withResolvers<TLSSocket>();
    const socket = this.open(extra);
    socket.once('error', reject);
    socket.once('secureConnect', () => {
      socket.off('error', reject);
      // Whoever waits for the end listens for 'close'.
      socket.on('error', () => undefined);
      resolve(socket);
    });
    return await promise;
  }

  /** As `connect`, and does not wait for the handshake. */
  open(extra: ConnectionOptions & { allowHalfOpen?: boolean; localAddress?: string } = {}): TLSSocket {
    const socket = connect({ host: '127.0.0.1', servername: 'localhost', port: this.#options.port, ca: this.#options.authority, ...this.#options.credentials, ...extra });
    this.#sockets.add(socket);
    socket.once('close', () => this.#sockets.delete(socket));
    return socket;
  }

  /** Sends these bytes on a connection of its own and resolves to all that came back until the server closed it. */
  async exchange(bytes: Buffer | string): Promise<Buffer> {
    const socket = await this.connect();
    const back = readToEnd(socket);
    socket.write(bytes);
    const answer = await back;
    this.#options.transcript.push({ call: 'raw', bytes: answer });
    return answer;
  }

  close(): void {
    this.#agent.destroy();
    for (const socket of this.#sockets) socket.destroy();
  }
}

/** All that comes on a connection until it is closed. @throws Error if that takes too long. */
export function readToEnd(socket: TLSSocket): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const chunks: Buffer[] = [];
  const timer = setTimeout(() => {
    socket.destroy();
    reject(new Error(`the server neither answered nor closed; it sent ${JSON.stringify(Buffer.concat(chunks).toString('latin1'))}`));
  }, answerMs);
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  socket.on('error', () => undefined);
  socket.once('close', () => {
    clearTimeout(timer);
    resolve(Buffer.concat(chunks));
  });
  return promise;
}

/** The answers in what came over a connection: each answer here carries a Content-Length. */
export function parseReplies(bytes: Buffer): Reply[] {
  const replies: Reply[] = [];
  for (let at = 0; at < bytes.length; ) {
    const headEnd = bytes.indexOf('\r\n\r\n', at);
    if (headEnd < 0) throw new Error('an answer has no complete head');
    const [first = '', ...lines] = bytes.toString('latin1', at, headEnd).split('\r\n');
    const headers: IncomingHttpHeaders = {};
    for (const line of lines) headers[line.slice(0, line.indexOf(':')).toLowerCase()] = line.slice(line.indexOf(':') + 1).trim();
    const status = Number(/^HTTP\/1\.1 (\d{3}) /u.exec(first)?.[1] ?? Number.NaN);
    const start = headEnd + 4;
    at = start + (status === 100 ? 0 : Number(headers['content-length']));
    if (Number.isNaN(at)) throw new Error('an answer has no length');
    const body = bytes.subarray(start, at);
    if (status !== 100) replies.push({ status, headers, body, json: () => JSON.parse(body.toString('utf8')) as Record<string, unknown> });
  }
  return replies;
}
