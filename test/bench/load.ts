/**
 * Load over HTTP/1.1 and mutual TLS: keep-alive connections, one request in flight on each, raw bytes in both directions. For measurements it
 * runs in a process of its own (load-client.ts); tests may call runLoad() directly.
 */
import type { OnReadOpts } from 'node:net';
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';
import { ResponseReader, type Response } from './http-response.ts';

export interface LoadTls {
  /** PEM. */
  readonly ca: string | Buffer;
  readonly cert: string | Buffer;
  readonly key: string | Buffer;
}

export interface LoadOptions {
  readonly port: number;
  /** 127.0.0.1 by default; the server's certificate must name it. */
  readonly host?: string;
  readonly tls: LoadTls;
  readonly connections: number;
  /** Ends after so many requests in all … */
  readonly requests?: number;
  /** … or so many seconds of counted time; one of the two. */
  readonly seconds?: number;
  /** At most so many requests a second over all connections; what a slow answer delayed is caught up. Without it each answer is followed by the next request at once. */
  readonly perSecond?: number;
  /** Load before the counted time, 0 by default. Connections are set up before it. */
  readonly warmupSeconds?: number;
  /** Room for one request, 1024 bytes by default. */
  readonly maxRequestBytes?: number;
  /** A request that is not answered in this time fails and its connection is closed; 30,000 by default. */
  readonly timeoutMs?: number;
  /**
   * Writes the request with this number (0, 1, 2 … over all connections, each used once) into `into`, head and body, and returns its bytes.
   * `into` belongs to one connection and still holds that connection's last request, so that what does not change need not be written
   * again; it is all zeros at first.
   */
  readonly makeRequest: (sequence: number, into: Buffer) => number;
  /** Judges an answer, which is lent for the call: null if it is right, otherwise a short constant name of what is wrong, counted under `failures`. By default every 2xx is right. */
  readonly onResponse?: (response: Response, sequence: number) => string | null;
  /** Told of a request that was sent, wholly or not, and never answered: its outcome is unknown. */
  readonly onLost?: (sequence: number) => void;
  /** Called when the counted time begins, and when it ends. */
  readonly onMeasuring?: (begins: boolean) => void;
}

export interface Latency {
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
  readonly max: number;
}

export interface LoadResult {
  /** Answers in the counted time that were right. */
  readonly answered: number;
  readonly seconds: number;
  readonly perSecond: number;
  /** From the write of a request to its whole answer, of all answers in the counted time. */
  readonly latencyMs: Latency;
  /** Answers by status, in the whole run, warm-up included. */
  readonly statuses: Readonly<Record<string, number>>;
  /** What went wrong, by name, in the whole run: wrong answers, lost connections, `timeout`. Empty after a good run. */
  readonly failures: Readonly<Record<string, number>>;
  /** Requests made, warm-up included: the next free sequence number. */
  readonly sent: number;
}

/** A connection that cannot be set up is tried again at this interval, and given up after so many failures in a row: 10 s, time for a server to restart. */
const reconnectMs = 20;
const maxConnectFailures = 500;

/**
 * Runs a load and resolves to its result once every request in flight is answered or lost. Lost connections are made anew. Errors of the
 * server or the network never reject: they are counted. Rejects if a callback throws.
 */
export async function runLoad(options: LoadOptions): Promise<LoadResult> {
  if ((options.requests === undefined) === (options.seconds === undefined)) throw new Error('give requests or seconds');
  const { makeRequest, onResponse, timeoutMs = 30_000, maxRequestBytes = 1024 } = options;
  const latencies = new Samples();
  const statuses = new Map<number, number>();
  const failures = new Map<string, number>();
  let sequence = 0;
  let answered = 0;
  let measuring = false;
  let ending = false;
  let fatal: unknown;
  let finish: () => void = () => {};

  const fail = (name: string): void => void failures.set(name, (failures.get(name) ?? 0) + 1);
  const abort = (error: unknown): void => {
    fatal ??= error;
    ending = true;
    for (const lane of lanes) lane.close();
    finish();
  };

  class Lane {
    readonly #request = Buffer.alloc(maxRequestBytes);
    readonly #incoming = Buffer.allocUnsafeSlow(65_536);
    #socket: TLSSocket | null = null;
    #current = -1;
    #startedMs = 0;
    #connectFailures = 0;
    /** Settles when the connection is set up for the first time, or given up. */
    readonly ready: Promise<void>;
    #isReady: () => void = () => {};
    closed = false;

    constructor() {
      this.ready = new Promise((resolve) => (this.#isReady = resolve));
      this.#connect();
    }

    get idle(): boolean {
      return this.#current === -1;
    }

    #connect(): void {
      let lostAs = 'connection_closed';
      let established = false;
      const reader = new ResponseReader((response) => this.#answered(response));
      const settings: ConnectionOptions & { onread: OnReadOpts } = {
        host: options.host ?? '127.0.0.1', port: options.port, ca: options.tls.ca, cert: options.tls.cert, key: options.tls.key, minVersion: 'TLSv1.3',
        // One buffer for all that a connection receives: no garbage, and no stream machinery between the socket and the reader.
        onread: {
          buffer: this.#incoming,
          callback: (bytes: number): boolean => {
            try {
              reader.feed(this.#incoming.subarray(0, bytes));
            } catch (error) {
              if ((error as Error).name !== 'ResponseError') abort(error);
              lostAs = 'malformed_answer';
              socket.destroy();
            }
            return true;
          },
        },
      };
      const socket: TLSSocket = connect(settings);
      this.#socket = socket;
      socket.setNoDelay(true);
      socket.once('secureConnect', () => {
        established = true;
        this.#connectFailures = 0;
        this.#isReady();
        if (started) this.next();
      });
      socket.on('error', (error: NodeJS.ErrnoException) => (lostAs = error.code ?? 'connection_error'));
      socket.once('close', () => {
        if (this.#current !== -1) {
          const lost = this.#current;
          this.#current = -1;
          fail(this.#timedOut ? 'timeout' : lostAs);
          options.onLost?.(lost);
        } else if (!established && !this.closed) {
          fail(lostAs);
        }
        if (!established) this.#connectFailures++;
        this.#timedOut = false;
        this.#socket = null;
        if (this.closed || (ending && started) || this.#connectFailures >= maxConnectFailures) {
          this.closed = true;
          this.#isReady();
          settle();
        } else if (established) {
          this.#connect();
        } else {
          setTimeout(() => (ending ? settle() : this.#connect()), reconnectMs);
        }
      });
    }

    #timedOut = false;

    next(): void {
      if (this.#socket === null || this.#current !== -1) return;
      if (ending || (options.requests !== undefined && sequence >= options.requests)) return settle();
      if (options.perSecond !== undefined) {
        const earlyMs = loadStartedMs + (sequence * 1000) / options.perSecond - performance.now();
        // Another connection may take this number meanwhile; then this one waits for the one after it.
        if (earlyMs > 0) {
          setTimeout(() => this.next(), earlyMs);
          return;
        }
      }
      this.#current = sequence++;
      let bytes: number;
      try {
        bytes = makeRequest(this.#current, this.#request);
      } catch (error) {
        return abort(error);
      }
      this.#startedMs = performance.now();
      this.#socket.write(bytes === this.#request.length ? this.#request : this.#request.subarray(0, bytes));
    }

    #answered(response: Response): void {
      const current = this.#current;
      if (current === -1) {
        fail('unasked_answer');
        this.#socket?.destroy();
        return;
      }
      const endedMs = performance.now();
      this.#current = -1;
      statuses.set(response.status, (statuses.get(response.status) ?? 0) + 1);
      const wrong = onResponse !== undefined ? onResponse(response, current) : response.status >= 200 && response.status < 300 ? null : `status_${response.status}`;
      if (wrong !== null) fail(wrong);
      if (measuring) {
        latencies.add(endedMs - this.#startedMs);
        if (wrong === null) answered++;
      }
      if (response.keepAlive) this.next();
      else this.#socket?.destroy();
    }

    expire(nowMs: number): void {
      if (this.#current === -1 || nowMs - this.#startedMs < timeoutMs) return;
      this.#timedOut = true;
      this.#socket?.destroy();
    }

    close(): void {
      this.closed = true;
      this.#socket?.destroy();
    }
  }

  const isDone = (): boolean => ending || (options.requests !== undefined && sequence >= options.requests);
  const settle = (): void => {
    if (lanes.every((lane) => lane.closed) || (isDone() && lanes.every((lane) => lane.idle))) finish();
  };

  let started = false;
  let loadStartedMs = 0;
  const lanes: Lane[] = [];
  // The fields of a Lane refer to `started` and `lanes`, so both exist before the first one is made.
  for (let i = 0; i < options.connections; i++) lanes.push(new Lane());
  const expiry = setInterval(() => {
    const nowMs = performance.now();
    for (const lane of lanes) lane.expire(nowMs);
  }, Math.min(1000, timeoutMs));
  try {
    await Promise.all(lanes.map((lane) => lane.ready));
    const finished = new Promise<void>((resolve) => (finish = resolve));
    started = true;
    loadStartedMs = performance.now();
    for (const lane of lanes) lane.next();
    settle();
    if (options.warmupSeconds) await Promise.race([finished, delay(options.warmupSeconds)]);
    const startedMs = performance.now();
    measuring = true;
    options.onMeasuring?.(true);
    await (options.seconds === undefined ? finished : Promise.race([finished, delay(options.seconds)]));
    const seconds = (performance.now() - startedMs) / 1000;
    measuring = false;
    options.onMeasuring?.(false);
    ending = true;
    settle();
    await finished;
    if (fatal !== undefined) throw fatal;
    return {
      answered, seconds, perSecond: answered / seconds, latencyMs: latencies.summary(), sent: sequence,
      statuses: Object.fromEntries([...statuses].map(([status, count]) => [String(status), count])), failures: Object.fromEntries(failures),
    };
  } finally {
    clearInterval(expiry);
    ending = true;
    for (const lane of lanes) lane.close();
  }
}

function delay(seconds: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
  });
}

/** Every sample, so that percentiles are exact; 8 bytes each. */
class Samples {
  #values = new Float64Array(65_536);
  #count = 0;

  add(value: number): void {
    if (this.#count === this.#values.length) {
      const grown = new Float64Array(this.#count * 2);
      grown.set(this.#values);
      this.#values = grown;
    }
    this.#values[this.#count++] = value;
  }

  /** Nearest-rank percentiles; zeros without samples. */
  summary(): Latency {
    const sorted = this.#values.slice(0, this.#count).sort();
    const rank = (share: number): number => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0;
    return { p50: rank(0.5), p95: rank(0.95), p99: rank(0.99), max: rank(1) };
  }
}
