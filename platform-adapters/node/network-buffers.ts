/**
 * Overwrites the buffers of Node and OpenSSL through which the last requests came. Nobody can wipe them from JavaScript: the HTTP parser's
 * (64 KiB, one for all connections of a process) and the place on the stack where TLSWrap puts what it has decrypted. What a request left there
 * stays until another one of its length takes the same way; of 20 batches of 1,000 cards, 350 card numbers were found so.
 *
 * So a request of our own takes it: over TLS and a Unix socket of this process, with nothing in it.
 */
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { Agent, createServer, request } from 'node:https';
import type { Server } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Twice the parser's buffer. */
const filler = Buffer.alloc(128 * 1024);
/** After the last request that is told of, and as long as they keep coming. */
const quietMs = 50;
const busyMs = 1000;

export interface NetworkBuffersOptions {
  /** PEM files of any certificate and its key: the connection leaves this process for nowhere. */
  readonly certificate: string;
  readonly key: string;
  /** Told of each time. Must not throw. */
  readonly overwritten: () => void;
}

/** The two ends of a connection of this process to itself. */
interface Loop {
  readonly agent: Agent;
  readonly server: Server;
}

export class NetworkBuffers {
  readonly #options: NetworkBuffersOptions;
  #loop: Loop | null = null;
  #timer: NodeJS.Timeout | null = null;
  /** When (monotonic, ms) the first request came that was not covered since. */
  #since = 0;
  #asked = false;
  #running = false;
  #closed = false;

  private constructor(options: NetworkBuffersOptions) {
    this.#options = options;
  }

  /** @throws what reading the files, TLS or listening throws. */
  static async open(options: NetworkBuffersOptions): Promise<NetworkBuffers> {
    const buffers = new NetworkBuffers(options);
    await buffers.#overwrite();
    return buffers;
  }

  /** To be told of every request whose body may have held a card, once it is dealt with. Costs a comparison. */
  used(): void {
    if (this.#closed) return;
    const now = performance.now();
    if (this.#timer !== null) {
      // They keep coming: later, but not for ever.
      if (now - this.#since < busyMs) this.#timer.refresh();
      return;
    }
    this.#since = now;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      void this.#run();
    }, quietMs).unref();
  }

  close(): void {
    this.#closed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#end();
  }

  /** One at a time: of two that make the connection, the earlier one's would stay open for good. What is asked for meanwhile is done behind it. */
  async #run(): Promise<void> {
    this.#asked = true;
    if (this.#running) return;
    this.#running = true;
    while (this.#asked && !this.#closed) {
      this.#asked = false;
      const isNew = this.#loop === null;
      try {
        await this.#overwrite();
      } catch {
        this.#end();
        // One that broke is made anew at once: what the request left is still there. One that cannot be made waits for the next request.
        this.#asked ||= !isNew;
      }
    }
    this.#running = false;
    if (this.#closed) this.#end();
  }

  #end(): void {
    this.#loop?.agent.destroy();
    this.#loop?.server.close();
    this.#loop?.server.closeAllConnections();
    this.#loop = null;
  }

  async #overwrite(): Promise<void> {
    if (this.#loop !== null) await send(this.#loop.agent);
    else {
      const folder = mkdtempSync(join(tmpdir(), 'cofre-'));
      try {
        this.#loop = await makeLoop(this.#options, join(folder, 'buffers'));
        await send(this.#loop.agent);
      } finally {
        // The connection stays; nobody else finds a way to it.
        rmSync(folder, { recursive: true, force: true });
      }
    }
    this.#options.overwritten();
  }
}

async function makeLoop({ certificate, key }: NetworkBuffersOptions, socketPath: string): Promise<Loop> {
  const server = createServer({ cert: readFileSync(certificate), key: readFileSync(key), minVersion: 'TLSv1.3', keepAliveTimeout: 0 }, (incoming, response) => {
    incoming.resume().once('end', () => response.end());
  });
  // By this process itself, also where it is a worker whose primary listens for it otherwise.
  server.listen({ path: socketPath, exclusive: true });
  await once(server, 'listening');
  server.unref();
  return { server, agent: new Agent({ keepAlive: true, maxSockets: 1, socketPath, rejectUnauthorized: false } as object) };
}

async function send(agent: Agent): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<undefined>();
  const outgoing = request({ agent, method: 'POST', path: '/', headers: { 'content-length': filler.length } }, (answer) => {
    answer.resume().once('end', () => resolve(undefined));
  });
  outgoing.once('error', reject);
  outgoing.once('socket', (socket) => socket.unref());
  outgoing.end(filler);
  await promise;
}
