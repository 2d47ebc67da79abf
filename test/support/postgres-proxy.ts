/**
 * Stands between a client and PostgreSQL and understands as much of its protocol as it takes to strike at a chosen message: the network's
 * ways to fail, made to happen on purpose. https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
import { createConnection, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { Client, type ClientConfig } from 'pg';

/** A message from the client, after the start of its session. */
export interface FrontendMessage {
  /** `Q` query, `P` parse, `B` bind, `D` describe, `E` execute, `S` sync, `p` password, `X` end. */
  readonly type: string;
  /** The text of a simple query (a BEGIN, `COMMIT`), else empty. */
  readonly query: string;
  /** Counts the messages of this session from 0, those of authentication left out. */
  readonly index: number;
  /** Counts the sessions of the proxy from 0. */
  readonly session: number;
}

/**
 * What becomes of a message: `pass`; `cut` ends both connections and the message never arrives; `answer_lost` lets it arrive, waits until
 * PostgreSQL has answered it, and ends both connections instead of passing the answer on; `hold` lets it arrive and keeps the answer until `release()`.
 */
export type Verdict = 'pass' | 'cut' | 'answer_lost' | 'hold';

interface Session {
  readonly client: Socket;
  readonly server: Socket;
  readonly number: number;
  messages: number;
  /** Ends at the answer to this many further ReadyForQuery messages; null if it is not to. */
  endsAfter: number | null;
  held: Buffer[] | null;
  /** ReadyForQuery messages that are still to come: every query and every sync brings one. */
  awaited: number;
}

export class PostgresProxy {
  /** Asked for each message before it is passed on. */
  judge: (message: FrontendMessage) => Verdict = () => 'pass';
  /** While true, every new connection is ended at once. */
  away = false;
  /** How many messages were struck. */
  strikes = 0;
  readonly #server: Server;
  readonly #target: { readonly host: string; readonly port: number };
  readonly #sessions = new Set<Session>();
  #opened = 0;

  private constructor(server: Server, target: { host: string; port: number }) {
    this.#server = server;
    this.#target = target;
    server.on('connection', (socket) => this.#accept(socket));
  }

  /** Listens on a port of the loopback. Closed with the test. @returns also how to connect through it, as `config` says otherwise. */
  static async open(t: { teardown(handler: () => void): void }, config: ClientConfig): Promise<{ proxy: PostgresProxy; through: ClientConfig }> {
    const { host, port, user, password, database } = new Client(config);
    const server = createServer();
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    const proxy = new PostgresProxy(server, { host, port });
    t.teardown(() => proxy.close());
    return { proxy, through: { host: '127.0.0.1', port: (server.address() as AddressInfo).port, ...(user === undefined ? {} : { user }), ...(typeof password === 'string' ? { password } : {}), ...(database === undefined ? {} : { database }) } };
  }

  /** Ends every connection, in the middle of whatever it does. */
  cutAll(): void {
    for (const session of this.#sessions) end(session);
  }

  /** Passes on what is held. */
  release(): void {
    for (const session of this.#sessions) {
      for (const bytes of session.held ?? []) session.client.write(bytes);
      session.held = null;
    }
  }

  close(): void {
    this.cutAll();
    this.#server.close();
  }

  #accept(client: Socket): void {
    client.on('error', () => undefined);
    if (this.away) {
      client.destroy();
      return;
    }
    const { host, port } = this.#target;
    const server = host.startsWith('/') ? createConnection(`${host}/.s.PGSQL.${port}`) : createConnection(port, host);
    server.on('error', () => undefined);
    const session: Session = { client, server, number: this.#opened++, messages: 0, endsAfter: null, held: null, awaited: 1 };
    this.#sessions.add(session);
    for (const socket of [client, server]) {
      socket.setNoDelay?.(true);
      socket.once('close', () => {
        end(session);
        this.#sessions.delete(session);
      });
    }
    // The first message of a session has no type.
    let started = false;
    client.on('data', framer((message) => this.#fromClient(session, message), () => {
      if (started) return true;
      started = true;
      return false;
    }));
    server.on('data', framer((message) => this.#fromServer(session, message), () => true));
  }

  #fromClient(session: Session, message: Buffer): void {
    const type = String.fromCharCode(message[0]!);
    // The start (whose first byte is part of its length) and the password are not counted.
    if (message[0] === 0 || type === 'p') {
      session.server.write(message);
      return;
    }
    const query = type === 'Q' ? message.toString('utf8', 5, message.length - 1) : '';
    const verdict = this.judge({ type, query, index: session.messages++, session: session.number });
    if (verdict !== 'pass') this.strikes += 1;
    if (verdict === 'cut') {
      end(session);
      return;
    }
    if (type === 'Q' || type === 'S') session.awaited += 1;
    if (verdict === 'answer_lost') session.endsAfter = session.awaited;
    if (verdict === 'hold') session.held = [];
    session.server.write(message);
  }

  #fromServer(session: Session, message: Buffer): void {
    const isReady = message[0] === 0x5a;
    if (isReady) session.awaited -= 1;
    if (session.endsAfter !== null) {
      if (isReady) session.endsAfter -= 1;
      if (session.endsAfter === 0) {
        end(session);
        return;
      }
      // What answers earlier messages still passes; the struck one's answer begins behind the last ReadyForQuery before it.
      if (session.endsAfter === 1 && !isReady) return;
    }
    if (session.held === null) session.client.write(message);
    else session.held.push(message);
  }
}

function end(session: Session): void {
  session.client.destroy();
  session.server.destroy();
}

/** Cuts a stream into messages: a type (1 byte, where `hasType` says so) and a length (4, itself included), then the rest. */
function framer(take: (message: Buffer) => void, hasType: () => boolean): (chunk: Buffer) => void {
  let rest = Buffer.alloc(0);
  let typed: boolean | null = null;
  return (chunk) => {
    rest = Buffer.concat([rest, chunk]);
    for (;;) {
      typed ??= hasType();
      const at = typed ? 1 : 0;
      if (rest.length < at + 4) return;
      const length = at + rest.readUInt32BE(at);
      if (rest.length < length) return;
      const message = rest.subarray(0, length);
      rest = rest.subarray(length);
      typed = null;
      take(message);
    }
  };
}
