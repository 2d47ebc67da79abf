/**
 * The real appliance as a child process: on free ports, with a home of its own under the system's temporary folder, over an embedded
 * PostgreSQL or a database that is given. Whatever it starts ends with the test, however the test ends.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, readlinkSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { hardened } from '../../docker/find-node.js';
import { createDevelopmentPki, type DevelopmentPki } from '../../platform-adapters/pki/development.ts';
import { ApiClient, type Transcript } from './api-client.ts';
import type { FreshDatabase } from './database.ts';
import type { Credentials } from './pki.ts';

const root = resolve(import.meta.dirname, '../..');
/** A start that takes longer hangs. */
const startMs = 60_000;
/** A stop that takes longer hangs: the drain timeout of the configuration, twice, and room. */
const stopMs = 45_000;

export interface ApplianceOptions {
  /** A database from `freshDatabase(t, { migrated: false })`; without one the appliance runs its own PostgreSQL. */
  readonly database?: FreshDatabase;
  /** Becomes `cofre.config.yaml`. */
  readonly config?: object;
  /** Environment beside the ports and the home. */
  readonly env?: Readonly<Record<string, string>>;
}

/** What a run of `cofre` left behind. */
export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

interface Cleanup {
  teardown(handler: () => Promise<void>): void;
}

/** Starts an appliance and resolves once it says that it is ready. Stopped, and its home removed, with the test. */
export async function startAppliance(t: Cleanup, options: ApplianceOptions = {}): Promise<Appliance> {
  const appliance = new Appliance(options);
  t.teardown(() => appliance.destroy());
  await appliance.start();
  return appliance;
}

/** An appliance whose home is there, not started yet: for starts that are meant to fail. Its home is removed with the test. */
export function unstartedAppliance(t: Cleanup, options: ApplianceOptions = {}): Appliance {
  const appliance = new Appliance(options);
  t.teardown(() => appliance.destroy());
  return appliance;
}

/** Runs `cofre <args>` to its end, in a home of its own unless `env` names one. */
export async function runCofre(t: Cleanup, args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Ended & { readonly out: string; readonly err: string }> {
  const home = mkdtempSync(join(tmpdir(), 'cofre-run-'));
  const child = launch(args, { COFRE_HOME: home, ...env });
  const ended = endOf(child);
  t.teardown(async () => {
    child.kill('SIGKILL');
    await ended;
    rmSync(home, { recursive: true, force: true });
  });
  const out: string[] = [];
  const err: string[] = [];
  child.stdout!.setEncoding('utf8').on('data', (text: string) => out.push(text));
  child.stderr!.setEncoding('utf8').on('data', (text: string) => err.push(text));
  const result = await ended;
  return { ...result, out: out.join(''), err: err.join('') };
}

export class Appliance {
  /** COFRE_HOME. */
  readonly home: string;
  /** Every answer that a client of this appliance read, in order; see ApiClient. */
  readonly transcript: Transcript = [];
  readonly #options: ApplianceOptions;
  readonly #clients = new Set<ApiClient>();
  #child: ChildProcess | null = null;
  #ended: Promise<Ended> | null = null;
  #out = '';
  #err = '';
  #telemetryPort = 0;
  #destroyed = false;
  /** Where the output of the current run begins. */
  #mark = { out: 0, err: 0 };

  constructor(options: ApplianceOptions) {
    this.#options = options;
    // Short, for the path of PostgreSQL's socket. Passable for others: under root PostgreSQL runs as another user.
    this.home = realpathSync(mkdtempSync(join(tmpdir(), 'cofre-it-')));
    chmodSync(this.home, 0o711);
    this.configure(options.config);
  }

  /** Writes the configuration file, for the next start. */
  configure(config: object | undefined): void {
    // JSON is YAML.
    if (config !== undefined) writeFileSync(join(this.home, 'cofre.config.yaml'), `${JSON.stringify(config, null, 2)}\n`);
  }

  /** Everything that was written to standard output, by all runs. */
  get out(): string {
    return this.#out;
  }

  /** Everything that was written to standard error, by all runs. */
  get err(): string {
    return this.#err;
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  get apiPort(): number {
    return Number(/^cofre ready https:\/\/127\.0\.0\.1:(\d+)$/mu.exec(this.#out.slice(this.#mark.out))?.[1] ?? 0);
  }

  get adminPort(): number {
    return Number(/^admin https:\/\/127\.0\.0\.1:(\d+)$/mu.exec(this.#out.slice(this.#mark.out))?.[1] ?? 0);
  }

  get telemetryUrl(): string {
    return `http://127.0.0.1:${this.#telemetryPort}`;
  }

  /** How to connect to its database as one who may read every table: the superuser of an embedded PostgreSQL, else the owner. Holds a password. */
  get databaseUrl(): string {
    const given = this.#options.database;
    if (given !== undefined) return given.adminUrl;
    const { postgres } = JSON.parse(readFileSync(join(this.home, 'postgres/cluster/passwords.json'), 'utf8')) as { postgres: string };
    return `postgresql://postgres:${postgres}@/cofre?host=${encodeURIComponent(join(this.home, 'postgres/socket'))}`;
  }

  /** The messages of the process that are JSON lines. */
  messages(): readonly Record<string, unknown>[] {
    return this.#err.split('\n').flatMap((line) => (line.startsWith('{') ? [JSON.parse(line) as Record<string, unknown>] : []));
  }

  /** Resolves once a message fulfils the condition. */
  async untilMessage(condition: (message: Record<string, unknown>) => boolean): Promise<void> {
    await until(() => this.messages().some(condition), 'the message');
  }

  /** Starts it and resolves once it is ready. @throws Error with its standard error if it ends first. */
  async start(): Promise<void> {
    const ended = await this.launch();
    if (ended !== null) throw new Error(`the appliance ended with ${ended.code ?? ended.signal}: ${this.#err.slice(this.#mark.err)}`);
  }

  /** Starts it and resolves to null once it is ready, or to how it ended before. */
  async launch(env: Readonly<Record<string, string>> = {}): Promise<Ended | null> {
    for (let tries = 0; ; tries += 1) {
      const ended = await this.#launchOnce(env);
      // Another process may have taken the port for telemetry between our look and its start.
      if (ended === null || tries >= 3 || 'COFRE_TELEMETRY_PORT' in env || !this.#err.slice(this.#mark.err).includes('COFRE_TELEMETRY_PORT chooses another')) return ended;
    }
  }

  async #launchOnce(env: Readonly<Record<string, string>>): Promise<Ended | null> {
    if (this.#destroyed) throw new Error('the test is over');
    this.#telemetryPort = await freePort();
    this.#mark = { out: this.#out.length, err: this.#err.length };
    const { database } = this.#options;
    const child = launch(['serve'], {
      COFRE_HOME: this.home,
      COFRE_API_PORT: '0',
      COFRE_ADMIN_PORT: '0',
      COFRE_TELEMETRY_PORT: String(this.#telemetryPort),
      ...(database === undefined ? {} : { DATABASE_URL: database.adminUrl }),
      ...this.#options.env,
      ...env,
    });
    this.#child = child;
    this.#ended = endOf(child);
    const ready = new Promise<null>((done) => {
      child.stdout!.setEncoding('utf8').on('data', (text: string) => {
        this.#out += text;
        if (this.apiPort !== 0) done(null);
      });
    });
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#err += text;
    });
    const outcome = await withDeadline(Promise.race([ready, this.#ended]), startMs, 'the start');
    if (outcome !== null) this.#child = null;
    return outcome;
  }

  /** Tells it to stop and resolves to how it ended. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<Ended> {
    this.closeClients();
    const { ended } = this.#running();
    this.signal(signal);
    const result = await withDeadline(ended, stopMs, 'the stop');
    this.#child = null;
    return result;
  }

  /** Whoever read its output is gone. */
  closeOutput(): void {
    const { child } = this.#running();
    child.stdout!.destroy();
    child.stderr!.destroy();
  }

  /** Kills the process where it stands. An embedded PostgreSQL lives on, as it does in an accident. */
  async kill9(): Promise<void> {
    const { ended } = this.#running();
    this.signal('SIGKILL');
    await ended;
    this.#child = null;
    this.closeClients();
  }

  /** Its embedded PostgreSQL: the server and all its processes. */
  postgresPids(): number[] {
    const server = Number.parseInt(readFileSync(join(this.home, 'postgres/cluster/data/postmaster.pid'), 'utf8'), 10);
    const children = readFileSync(`/proc/${server}/task/${server}/children`, 'utf8').trim().split(' ').map(Number);
    return [server, ...children.filter((pid) => pid > 0)];
  }

  /** Kills the server of its embedded PostgreSQL where it stands; the server's processes notice and end by themselves. */
  killPostgres(): void {
    process.kill(this.postgresPids()[0]!, 'SIGKILL');
  }

  /** Starts it again, after `stop` or `kill9`, or after a stop of its own. */
  async restart(): Promise<void> {
    if (this.#child !== null) await this.stop();
    await this.start();
  }

  signal(name: NodeJS.Signals): void {
    this.#running().child.kill(name);
  }

  /** What a development caller brings to a handshake. */
  credentials(name: string): Credentials {
    const read = (file: string): string => readFileSync(join(this.home, 'pki', file), 'utf8');
    return { cert: read(`${name}.pem`), key: read(`${name}.key`) };
  }

  get authority(): string {
    return readFileSync(join(this.home, 'pki/ca.pem'), 'utf8');
  }

  /** The development authority itself, to issue odd certificates and to revoke. */
  pki(): DevelopmentPki {
    return createDevelopmentPki(join(this.home, 'pki'), { trustDomain: 'cofre.dev', now: () => new Date() });
  }

  /** A client of the API listener, by the name of a development certificate or with credentials of its own. */
  client(who: string | Credentials | null, options: { readonly connections?: number; readonly admin?: boolean } = {}): ApiClient {
    const client = new ApiClient({
      port: options.admin === true ? this.adminPort : this.apiPort,
      authority: this.authority,
      credentials: typeof who === 'string' ? this.credentials(who) : who,
      connections: options.connections ?? 4,
      transcript: this.transcript,
    });
    this.#clients.add(client);
    return client;
  }

  closeClients(): void {
    for (const client of this.#clients) client.close();
    this.#clients.clear();
  }

  /** Ends whatever still runs and removes the home. */
  async destroy(): Promise<void> {
    this.#destroyed = true;
    this.closeClients();
    if (this.#child !== null) {
      this.signal('SIGTERM');
      const late = setTimeout(() => this.signal('SIGKILL'), stopMs);
      await this.#ended;
      clearTimeout(late);
      this.#child = null;
    }
    await this.#endPostgres();
    rmSync(this.home, { recursive: true, force: true });
  }

  /** Ends the PostgreSQL that a killed appliance left. It is ours if it works in our data folder. */
  async #endPostgres(): Promise<void> {
    const data = join(this.home, 'postgres/cluster/data');
    let pid: number;
    try {
      pid = Number.parseInt(readFileSync(join(data, 'postmaster.pid'), 'utf8'), 10);
    } catch {
      return;
    }
    const ours = (): boolean => {
      try {
        return readlinkSync(`/proc/${pid}/cwd`) === data;
      } catch {
        return false;
      }
    };
    if (ours()) process.kill(pid, 'SIGQUIT');
    await until(() => !ours(), 'the end of PostgreSQL');
  }

  #running(): { child: ChildProcess; ended: Promise<Ended> } {
    if (this.#child === null || this.#ended === null) throw new Error('the appliance does not run');
    return { child: this.#child, ended: this.#ended };
  }
}

/** What a person reads on standard error: every line that is no JSON message. */
export function plainLines(text: string): string[] {
  return text.split('\n').filter((line) => line !== '' && !line.startsWith('{'));
}

/** Resolves once `condition` holds, looking every 20 ms. @throws Error after half a minute, naming `what` did not come. */
export async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (let tries = 0; tries < 1500; tries += 1) {
    if (await condition()) return;
    await sleep(20);
  }
  throw new Error(`${what} did not come`);
}

/** @throws Error if `work` takes longer: what is waited for hangs. */
export async function withDeadline<T>(work: Promise<T>, ms: number, what: string): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`${what} hangs`)), ms);
  try {
    return await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** A port of the loopback that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}

function launch(args: readonly string[], env: Readonly<Record<string, string>>): ChildProcess {
  // Nothing of the test's own settings: a SOFTHSM2_CONF or DATABASE_URL from outside would not be this appliance's.
  const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => ['PATH', 'HOME', 'LANG', 'TMPDIR'].includes(name)));
  mkdirSync(env['COFRE_HOME'] ?? root, { recursive: true });
  // setpriv becomes the appliance: it is told to stop when this process dies, however it dies.
  return spawn('setpriv', ['--pdeathsig', 'TERM', '--', ...hardened(process.execPath, [join(root, 'vault/bin/cofre.ts'), ...args])], {
    cwd: root,
    env: { ...inherited, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

function endOf(child: ChildProcess): Promise<Ended> {
  return new Promise((done, failed) => {
    child.once('error', failed);
    child.once('close', (code, signal) => done({ code, signal }));
  });
}
