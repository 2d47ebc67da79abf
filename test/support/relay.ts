/** Stands between a vault and its PostgreSQL as the network does: can be cut, can swallow everything in silence, and can lead to another server. */
import { createConnection, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { Client } from 'pg';

export class Relay {
  /** Where new connections lead: a URL as `EmbeddedPostgres` gives it. */
  target: string;
  readonly #server: Server;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  #silent = false;

  private constructor(server: Server, target: string) {
    this.#server = server;
    this.target = target;
    server.on('connection', (socket) => this.#accept(socket));
  }

  /** Listens on a port of the loopback. Closed with the test. */
  static async open(t: { teardown(handler: () => void): void }, target: string): Promise<Relay> {
    const server = createServer();
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    const relay = new Relay(server, target);
    t.teardown(() => relay.close());
    return relay;
  }

  /** `target`, reached through here. */
  get url(): string {
    const { user, password, database } = new Client(this.target);
    return `postgresql://${encodeURIComponent(user ?? '')}:${encodeURIComponent(String(password))}@127.0.0.1:${(this.#server.address() as AddressInfo).port}/${encodeURIComponent(database ?? '')}`;
  }

  /** Ends every connection, in the middle of whatever it does. */
  cut(): void {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
  }

  /** While silent nothing passes in either direction, and no end says so: a cable that was pulled. */
  silence(silent: boolean): void {
    this.#silent = silent;
    for (const pair of this.#pairs) {
      for (const socket of pair) {
        if (silent) socket.pause();
        else socket.resume();
      }
    }
  }

  close(): void {
    this.cut();
    this.#server.close();
  }

  #accept(client: Socket): void {
    const { host, port } = new Client(this.target);
    const server = host.startsWith('/') ? createConnection(`${host}/.s.PGSQL.${port}`) : createConnection(port, host);
    const pair = [client, server] as const;
    this.#pairs.add(pair);
    for (const [from, to] of [[client, server], [server, client]] as const) {
      from.setNoDelay?.(true);
      from.on('error', () => undefined);
      from.on('data', (bytes: Buffer) => to.write(bytes));
      from.once('close', () => {
        to.destroy();
        this.#pairs.delete(pair);
      });
      if (this.#silent) from.pause();
    }
  }
}
