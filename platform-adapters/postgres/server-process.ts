/** The server as a process: what of it runs on a data folder, whether it is ready, and how it is ended. A pid alone names nobody: its start time does, beside it. */
import { closeSync, existsSync, openSync, readFileSync, readSync, readdirSync, readlinkSync, realpathSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** Recovery from a crash replays as much as 4 GB (max_wal_size), and begins anew where it is broken off: a server that is only slow must be let. */
const READY_TIMEOUT_MS = 15 * 60_000;
const FAST_SHUTDOWN_MS = 10_000;
const IMMEDIATE_SHUTDOWN_MS = 5_000;

/**
 * Finds what an earlier process left running on this data folder. Returns the pid of a healthy server with the same program and settings; otherwise ends whatever is there and returns null.
 *
 * A pid file alone proves nothing (the number may be somebody else's by now): a process is ours if its working directory is the data folder, which PostgreSQL enters at start, and its program is named postgres.
 */
export async function settleEarlierServer(dataFolder: string, postgres: string, args: readonly string[], healthy: () => Promise<boolean>): Promise<number | null> {
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

/** PostgreSQL refuses to start over a lock file whose number is in use, be it by an unrelated program or by its own zombie that nobody has reaped. No process of ours is left here, so such a file is stale. */
export function removeForeignLock(file: string): void {
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

/** Null where there is no such file. */
export function readText(file: string): string | null {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

/** The kernel's start time in clock ticks since boot: with the pid it names a process for good. Null if it is gone (or a zombie). */
export function startTimeOf(pid: number): string | null {
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

/** Resolves once the server accepts connections. @throws Error with its own reason where it ends before, or with none after a quarter of an hour; where it is not wanted any more, after it was ended. */
export async function untilReady(dataFolder: string, pid: number, gone: () => boolean, logFile: string, unwanted?: AbortSignal): Promise<void> {
  const deadline = Date.now() + READY_TIMEOUT_MS;
  for (;;) {
    const file = readPidFile(dataFolder);
    if (file?.pid === pid && file.ready) return;
    if (gone()) throw new Error(`PostgreSQL did not start: ${lastFatal(logFile) ?? `see ${logFile}`}`);
    if (Date.now() > deadline) {
      signal(pid, 'SIGQUIT');
      throw new Error(`PostgreSQL was not ready after ${READY_TIMEOUT_MS / 1000} s: see ${logFile}`);
    }
    if (unwanted?.aborted === true) {
      await end(pid, gone);
      throw new Error('PostgreSQL was told to end while it started');
    }
    await sleep(10);
  }
}

/**
 * Whether the server stands still for good: it neither recovers (no startup process) nor runs (no WAL writer). PostgreSQL 18.4 comes to that where its startup process is killed while it recovers from the kill of another: it then
 * refuses all log-ins (57P03) and waits for nothing. Between two phases it looks so for moments; only a state that lasts tells. False where the server is gone.
 */
export function isStranded(pid: number): boolean {
  const read = (path: string): string | null => {
    try {
      return readFileSync(path, 'utf8');
    } catch {
      // Gone, at whatever moment.
      return null;
    }
  };
  const children = read(`/proc/${pid}/task/${pid}/children`);
  if (children === null) return false;
  return !children.trim().split(' ').some((child) => child !== '' && /^postgres: (startup|walwriter)/u.test(read(`/proc/${child}/cmdline`) ?? ''));
}

/** Ends the server as a crash would, which loses nothing that was committed. */
export function endAtOnce(pid: number): void {
  signal(pid, 'SIGQUIT');
}

export async function untilGone(gone: () => boolean): Promise<void> {
  while (!gone()) await sleep(200);
}

/** Fast shutdown (SIGINT), then immediate (SIGQUIT), then SIGKILL. Resolves when the process is gone. */
export async function end(pid: number, gone: () => boolean): Promise<void> {
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

export function lastLine(text: string): string | null {
  return text.trim().split('\n').at(-1)?.trim() || null;
}
