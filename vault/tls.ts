/** The TLS side of a listener: who may connect, how tickets and certificates change, and which connections are closed for it. */
import type { ServerOptions } from 'node:https';
import type { Socket } from 'node:net';
import type { Server, TLSSocket } from 'node:tls';
import { Allowance } from './allowance.ts';
import { normalSerial } from './caller.ts';
import { Handshakes, type HandshakeRefusal } from './handshakes.ts';
import { OpenConnections } from './open-connections.ts';
import { peerCertificate } from './peer-certificate.ts';
import { TicketSecret, ticketRotationMs } from './ticket-secret.ts';
import { isIssuedBy, readMaterial, signatureOf } from './tls-material.ts';
import type { TlsFiles, TlsMaterial } from './tls-material.ts';

export interface TlsListenerOptions {
  /** Tells listeners apart: a session of one is not resumed at another. At most 32 ASCII characters. */
  readonly name: string;
  readonly files: TlsFiles;
  /**
   * Connections open at once, handshake done. Beyond them one is closed: the oldest that is owed nothing of the caller who has most of them, if that caller has more
   * even then than the one who comes; else the one that comes. So a caller may have all of them while nobody else wants any, and locks nobody out.
   */
  readonly maxConnections: number;
  /** Of them with one certificate; more are closed at once. */
  readonly maxConnectionsPerCertificate: number;
  /** Handshakes that may begin in a second; see `Handshakes`. */
  readonly handshakesPerSecond: number;
  /** And after a calm; see `Handshakes`. */
  readonly handshakeBurst: number;
  /** Connections that wait for their handshake; see `Handshakes`. */
  readonly maxHandshakesWaiting: number;
  /** Full handshakes of one certificate in a minute, all of them at once if it likes; a resumed session is none. A connection beyond them is closed. */
  readonly maxFullHandshakesPerCertificate: number;
  /** For waiting, and then for the handshake itself. */
  readonly handshakeTimeoutMs: number;
  /** How long a ticket may be resumed. Every resumption skips the handshake's check of the chain, so keep it short. */
  readonly sessionTimeoutSeconds?: number;
  /** What its ticket keys are made from, and changed by whoever shares it. Without one it has its own, changed each `ticketRotationMs`. */
  readonly tickets?: TicketSecret;
  readonly ticketRotationMs?: number;
  /** Told of what an operator may want to know. Constant words: nothing of a peer or of a key. */
  readonly report?: (event: TlsEvent) => void;
}

export type TlsEvent =
  | { readonly kind: 'reloaded' }
  | { readonly kind: 'reload_refused'; readonly reason: string }
  | { readonly kind: 'connection_refused'; readonly reason: ConnectionRefusal }
  | { readonly kind: 'connections_closed'; readonly count: number };

/** Why a connection was closed before any request on it was looked at, or between two. */
export type ConnectionRefusal =
  | HandshakeRefusal
  | 'no client certificate'
  | 'not issued by an authority of ours'
  | 'no usable serial number'
  | 'too many full handshakes with one certificate'
  | 'too many connections'
  | 'gave way to a caller with fewer'
  | 'too many connections with one certificate';

/** What whoever reads the requests knows of a connection. Must not throw. */
export interface Requests {
  /** Who its requests are taken to be of; '' for all of which that cannot be told. */
  callerOf(socket: TLSSocket): string;
  /** Whether it may be closed for another one without anybody missing an answer. */
  isOwedNothing(socket: TLSSocket): boolean;
}

/**
 * The TLS side of one listener: TLS 1.3, a client certificate always, resumption under ticket keys of ours, and the connections by the serial
 * of their certificate. Give `serverOptions()` to the HTTPS server and then `attach` that server.
 */
export class TlsListener {
  readonly #options: TlsListenerOptions;
  readonly #open = new OpenConnections();
  /** Of full handshakes, by serial. One that is whole again is not kept. */
  readonly #allowances = new Map<string, Allowance>();
  #material: TlsMaterial;
  readonly #tickets: TicketSecret;
  #server: Server | null = null;
  #requests: Requests | null = null;
  #handshakes: Handshakes | null = null;
  #timers: NodeJS.Timeout[] = [];
  #pending: Promise<unknown> = Promise.resolve();
  /** Why the files were refused last; null once they were taken. */
  #refused: string | null = null;

  private constructor(options: TlsListenerOptions, material: TlsMaterial) {
    this.#options = options;
    this.#material = material;
    this.#tickets = options.tickets ?? new TicketSecret();
    this.#tickets.onChange(() => this.#useTicketKeys());
  }

  /** @throws Error naming the file at fault, and nothing of what it holds. */
  static async open(options: TlsListenerOptions): Promise<TlsListener> {
    return new TlsListener(options, await readMaterial(options.files));
  }

  /** For `https.createServer`, or Fastify's `https`. Add HTTP limits as you like; leave the TLS ones alone. */
  serverOptions(): ServerOptions {
    return {
      ...this.#context(),
      requestCert: true,
      rejectUnauthorized: true,
      ALPNProtocols: ['http/1.1'],
      handshakeTimeout: this.#options.handshakeTimeoutMs,
      sessionTimeout: this.#options.sessionTimeoutSeconds ?? 300,
    };
  }

  /** Takes charge of the server's connections and tickets. Once, before it listens. */
  attach(server: Server, requests: Requests): void {
    this.#server = server;
    this.#requests = requests;
    // The server's own listener begins the handshake: it is called when a connection's turn has come.
    const begin = server.listeners('connection') as ((socket: Socket) => void)[];
    server.removeAllListeners('connection');
    const { handshakesPerSecond, handshakeBurst, maxHandshakesWaiting, handshakeTimeoutMs } = this.#options;
    const handshakes = new Handshakes(
      { perSecond: handshakesPerSecond, burst: handshakeBurst, maxWaiting: maxHandshakesWaiting, timeoutMs: handshakeTimeoutMs },
      (socket) => begin.forEach((listener) => listener.call(server, socket)),
      (reason) => this.#report({ kind: 'connection_refused', reason }),
    );
    this.#handshakes = handshakes;
    server.on('connection', (socket: Socket) => handshakes.connected(socket));
    // Node's cluster gives each worker that listens the keys that the first one began with, rotated or not: one that was started again would take tickets
    // from before a revocation, and none of the others'.
    server.on('listening', () => this.#useTicketKeys());
    // Before the HTTP server's own listeners. There is nobody yet to be told in words of HTTP, and a refused connection must not reach a parser.
    server.prependListener('tlsClientError', (_error: Error, socket: TLSSocket) => socket.destroy());
    server.prependListener('secureConnection', (socket: TLSSocket) => this.#admit(socket));
    if (this.#options.tickets === undefined) this.#timers.push(setInterval(() => this.rotateTicketKeys(), this.#options.ticketRotationMs ?? ticketRotationMs).unref());
    this.#timers.push(setInterval(() => this.#forgetAllowances(), 60_000).unref());
  }

  /** Closes the connections whose handshake has not been done. For a server that closes: it would wait for them. */
  closeHandshakes(): void {
    this.#handshakes?.close();
  }

  /**
   * Ends every connection of these certificates at once, requests in flight included, and rotates the ticket keys, so that none of them is
   * resumed. Serials as RevocationList gives them. Returns how many were closed.
   */
  closeRevoked(serials: ReadonlySet<string>): number {
    if (serials.size === 0) return 0;
    // Keys first: a client that reconnects at once must not find its ticket good.
    this.rotateTicketKeys();
    let closed = 0;
    for (const serial of serials) {
      for (const socket of this.#open.of(serial)) {
        socket.destroy();
        closed += 1;
      }
    }
    if (closed > 0) this.#report({ kind: 'connections_closed', count: closed });
    return closed;
  }

  /** Makes every ticket given out so far worthless; its owner does a full handshake. Open connections go on. */
  rotateTicketKeys(): void {
    this.#tickets.rotate();
  }

  /**
   * Reads the three files again and uses them for new connections. A pair that does not match (half written), or anything else wrong with them, leaves
   * the old ones in use and is reported once. Open connections go on, except those whose certificate none of the new authorities issued. Never throws.
   *
   * @returns null, or why the files were refused.
   */
  reload(): Promise<string | null> {
    const next = this.#pending.then(() => this.#reload());
    this.#pending = next;
    return next;
  }

  /** Reloads whenever a file has changed, looking every `everyMs`. Does not keep the process alive. */
  watch(everyMs: number): void {
    let seen = this.#material.files;
    let looking = false;
    const look = async (): Promise<void> => {
      if (looking) return;
      looking = true;
      const files = await signatureOf(this.#options.files).catch(() => 'missing');
      // What was refused is looked at again each time: the cause may have been the reading and not the files.
      if (files !== seen && (await this.reload()) === null) seen = files;
      looking = false;
    };
    this.#timers.push(setInterval(() => void look(), everyMs).unref());
  }

  /** Open connections, handshake done. */
  get connections(): number {
    return this.#open.size;
  }

  /** Connections that wait for their handshake. */
  get handshakesWaiting(): number {
    return this.#handshakes?.waiting ?? 0;
  }

  /** Stops the timers. The server and its connections are the owner's to close. */
  close(): void {
    for (const timer of this.#timers) clearInterval(timer);
    this.#timers = [];
  }

  #context(): ServerOptions {
    return {
      cert: this.#material.certificate,
      key: this.#material.key,
      ca: this.#material.ca,
      minVersion: 'TLSv1.3',
      ciphers: 'TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256',
      honorCipherOrder: true,
      sessionIdContext: `cofre-${this.#options.name}`.slice(0, 32),
      ticketKeys: this.#tickets.keysOf(this.#options.name),
    };
  }

  #useTicketKeys(): void {
    this.#server?.setTicketKeys(this.#tickets.keysOf(this.#options.name));
  }

  #admit(socket: TLSSocket): void {
    this.#handshakes?.done(socket);
    const certificate = socket.authorized ? peerCertificate(socket) : null;
    // Older releases of Node 24 call a resumed TLS 1.3 session without a certificate `authorized` (nodejs/node issue 35317). No such ticket leaves
    // this server, which hangs up first; that is not enough to stake the door on.
    if (certificate === null) return this.#refuse(socket, 'no client certificate');
    // Directly issued: only for these authorities is there a revocation list. It also stops a session whose authority was taken out since.
    if (!isIssuedBy(certificate, this.#material.authorities)) return this.#refuse(socket, 'not issued by an authority of ours');
    let serial: string;
    try {
      serial = normalSerial(certificate.serialNumber);
    } catch {
      return this.#refuse(socket, 'no usable serial number');
    }
    if (!socket.isSessionReused() && !this.#allowanceOf(serial).take()) return this.#refuse(socket, 'too many full handshakes with one certificate');
    if (this.#open.withCertificate(serial) >= this.#options.maxConnectionsPerCertificate) return this.#refuse(socket, 'too many connections with one certificate');
    // A caller may have a certificate for each of its processes, each with the name of its machine beside the caller's, and get new ones.
    const caller = this.#requests?.callerOf(socket) ?? '';
    if (this.#open.size >= this.#options.maxConnections) {
      const victim = this.#open.makeRoom(caller, (other) => this.#requests?.isOwedNothing(other) !== false);
      if (victim === null) return this.#refuse(socket, 'too many connections');
      this.#refuse(victim, 'gave way to a caller with fewer');
    }
    this.#open.add(socket, serial, caller);
  }

  #allowanceOf(serial: string): Allowance {
    const known = this.#allowances.get(serial);
    if (known !== undefined) return known;
    const most = this.#options.maxFullHandshakesPerCertificate;
    const made = new Allowance(most, most / 60, () => performance.now());
    this.#allowances.set(serial, made);
    return made;
  }

  #forgetAllowances(): void {
    for (const [serial, allowance] of this.#allowances) if (allowance.full) this.#allowances.delete(serial);
  }

  #refuse(socket: TLSSocket, reason: ConnectionRefusal): void {
    socket.destroy();
    this.#report({ kind: 'connection_refused', reason });
  }

  async #reload(): Promise<string | null> {
    let material: TlsMaterial;
    try {
      material = await readMaterial(this.#options.files);
    } catch (error) {
      const reason = (error as Error).message;
      if (reason !== this.#refused) this.#report({ kind: 'reload_refused', reason });
      this.#refused = reason;
      return reason;
    }
    this.#refused = null;
    const otherAuthorities = !material.ca.equals(this.#material.ca);
    this.#material = material;
    if (otherAuthorities) this.rotateTicketKeys();
    this.#server?.setSecureContext(this.#context());
    if (otherAuthorities) this.#closeForeign();
    this.#report({ kind: 'reloaded' });
    return null;
  }

  #closeForeign(): void {
    let count = 0;
    for (const socket of this.#open.all()) {
      const certificate = peerCertificate(socket);
      if (certificate !== null && isIssuedBy(certificate, this.#material.authorities)) continue;
      socket.destroy();
      count += 1;
    }
    if (count > 0) this.#report({ kind: 'connections_closed', count });
  }

  #report(event: TlsEvent): void {
    this.#options.report?.(event);
  }
}
