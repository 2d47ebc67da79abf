/** Starts and stops what is measured: the vault itself, and the bare server. Each has its own folder, ports and PostgreSQL. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { hardened } from '../../docker/find-node.js';
import { createDevelopmentPki } from '../../platform-adapters/pki/development.ts';
import { startEmbedded } from '../../platform-adapters/postgres/embedded.ts';

export type DevelopmentCaller = 'checkout' | 'getnet' | 'intruder';

export interface Target {
  readonly name: 'real' | 'bare';
  readonly pid: number;
  readonly port: number;
  readonly folder: string;
  /** Prometheus text, or null where there is none. */
  readonly telemetryPort: number | null;
  /** Connects to its database as the owner; null where the vault runs its own PostgreSQL. Holds a password. */
  readonly databaseUrl: string | null;
  /** Certificate files of a development caller. */
  tlsFiles(caller: DevelopmentCaller): { ca: string; cert: string; key: string };
  /** Ends the server, then what is left of it. May be called again. */
  stop(): Promise<void>;
}

const repository = fileURLToPath(new URL('../../', import.meta.url));
const vaultProgram = join(repository, 'vault/bin/cofre.ts');
const startSeconds = 60;
const stopSeconds = 20;

/** Whether this clone has a vault to start. */
export const hasVault = (): boolean => existsSync(vaultProgram);

/** A PostgreSQL beside the server under measurement, below its folder. */
export interface PostgresOptions {
  /** Ends it also where it is interrupted before it is ready: to prepare a large database takes minutes. */
  readonly stack: AsyncDisposableStack;
  /** Server settings beside or instead of the usual ones. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Brings the database to what is to be measured: called once the server has made its tables, while no server uses them. */
  readonly prepare?: (databaseUrl: string) => Promise<void>;
}

export interface RealOptions {
  /** Without root, only a dumpable process's memory can be searched. */
  readonly dumpable?: boolean;
  /** Serving processes. */
  readonly workers?: number;
  readonly custody?: 'envelope' | 'direct';
  /** More of `cofre.config.yaml`. */
  readonly config?: object;
  /** Instead of the PostgreSQL that the vault starts by itself. */
  readonly postgres?: PostgresOptions;
}

/** Starts `cofre serve` on a fresh COFRE_HOME and resolves once it says that it is ready. Throws Error with the place of its output if it does not. */
export async function startReal(folder: string, options: RealOptions = {}): Promise<Target> {
  mkdirSync(folder, { recursive: true });
  const config = { workers: options.workers ?? 1, hardening: { dumpable: options.dumpable === true }, hsm: { custody: options.custody ?? 'envelope' }, ...options.config };
  // JSON is YAML.
  writeFileSync(join(folder, 'cofre.config.yaml'), JSON.stringify(config));
  const [api, admin, telemetry] = await freePorts(3);
  const env = { ...process.env, COFRE_HOME: folder, COFRE_API_PORT: String(api), COFRE_ADMIN_PORT: String(admin), COFRE_TELEMETRY_PORT: String(telemetry) };
  const start = (databaseUrl: string | null): Promise<ChildProcess> =>
    startServer(hardened(process.execPath, [vaultProgram, 'serve']), databaseUrl === null ? env : { ...env, DATABASE_URL: databaseUrl }, /^cofre ready /, join(folder, 'bench-server.log'));
  const { child, databaseUrl, stop } = await startOverPostgres(folder, options.postgres ?? null, start);
  return { name: 'real', pid: child.pid!, port: api!, folder, telemetryPort: telemetry!, databaseUrl, tlsFiles: (caller) => tlsFilesIn(join(folder, 'pki'), caller), stop };
}

export interface BareOptions {
  /** Connections to PostgreSQL, each process. */
  readonly pool: number;
  readonly processes: number;
  readonly postgres: PostgresOptions;
}

/** Starts PostgreSQL with the vault's settings and the bare server on it. */
export async function startBare(folder: string, options: BareOptions): Promise<Target> {
  const pki = join(folder, 'pki');
  mkdirSync(folder, { recursive: true });
  createDevelopmentPki(pki, { trustDomain: 'cofre.dev', now: () => new Date() });
  const [port] = await freePorts(1);
  const env = { ...process.env, BARE_PKI: pki, BARE_PORT: String(port), BARE_POOL: String(options.pool), BARE_PROCESSES: String(options.processes) };
  const start = (databaseUrl: string | null): Promise<ChildProcess> =>
    startServer([process.execPath, fileURLToPath(new URL('bare-server.ts', import.meta.url))], { ...env, BARE_DATABASE_URL: databaseUrl ?? '' }, /^bare ready /, join(folder, 'bench-server.log'));
  const { child, databaseUrl, stop } = await startOverPostgres(folder, options.postgres, start);
  return { name: 'bare', pid: child.pid!, port: port!, folder, telemetryPort: null, databaseUrl, tlsFiles: (caller) => tlsFilesIn(pki, caller), stop };
}

interface Started {
  readonly child: ChildProcess;
  readonly databaseUrl: string | null;
  readonly stop: () => Promise<void>;
}

/** Starts PostgreSQL if it is asked for, prepares it, and starts the server over it. */
async function startOverPostgres(folder: string, options: PostgresOptions | null, start: (databaseUrl: string | null) => Promise<ChildProcess>): Promise<Started> {
  if (options === null) {
    const child = await start(null);
    return { child, databaseUrl: null, stop: () => stopServer(child) };
  }
  // Not where the vault would have its own, which it would take for one of an earlier run.
  const postgres = await startEmbedded({ folder: join(folder, 'database'), diesWithParent: true, ...(options.settings === undefined ? {} : { settings: options.settings }) });
  options.stack.defer(() => postgres.stop());
  try {
    const databaseUrl = postgres.adminUrl;
    let child = await start(databaseUrl);
    if (options.prepare !== undefined) {
      await stopServer(child);
      await options.prepare(databaseUrl);
      child = await start(databaseUrl);
    }
    const stop = async (): Promise<void> => {
      await stopServer(child);
      await postgres.stop();
    };
    return { child, databaseUrl, stop };
  } catch (error) {
    await postgres.stop();
    throw error;
  }
}

function tlsFilesIn(pki: string, caller: DevelopmentCaller): { ca: string; cert: string; key: string } {
  return { ca: join(pki, 'ca.pem'), cert: join(pki, `${caller}.pem`), key: join(pki, `${caller}.key`) };
}

async function startServer([program, ...args]: string[], env: NodeJS.ProcessEnv, ready: RegExp, logFile: string): Promise<ChildProcess> {
  // Detached: Ctrl-C reaches this process only, which then stops the server in order.
  const child = spawn(program!, args, { cwd: repository, env, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  const log = createWriteStream(logFile, { flags: 'a' });
  child.stdout.pipe(log, { end: false });
  child.stderr.pipe(log, { end: false });
  const isReady = new Promise<boolean>((resolve) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (ready.test(line)) resolve(true);
    });
    child.once('exit', () => resolve(false));
    child.once('error', () => resolve(false));
    setTimeout(() => resolve(false), startSeconds * 1000).unref();
  });
  if (await isReady) return child;
  await stopServer(child);
  throw new Error(`the server did not become ready: see ${logFile}`);
}

async function stopServer(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), stopSeconds * 1000);
  await exited;
  clearTimeout(timer);
}

/** Ports that were free a moment ago; all are held open until the last is known, so they differ. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      return server;
    }),
  );
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}
