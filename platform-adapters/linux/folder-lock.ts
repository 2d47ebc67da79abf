/** One process at a time in a folder. */
import { spawn, spawnSync } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';

/**
 * Claims the folder for this process and returns how to give it up. The lock hangs on an open file, so the kernel frees it when the process dies: no stale lock can be left. A process that is just stopping is waited for,
 * `patienceMs` at most.
 *
 * @throws one clear line if another process holds it, or it cannot be opened.
 */
export async function lockFolder(folder: string, patienceMs: number): Promise<() => void> {
  let fd: number;
  try {
    fd = openSync(folder, 'r');
  } catch (cause) {
    throw new Error(`the state folder ${folder} cannot be opened (${(cause as NodeJS.ErrnoException).code ?? 'unknown'}): it belongs to another user, or is gone`, { cause });
  }
  // flock(1) locks the open file that it shares with us, and ends; children do not inherit it (O_CLOEXEC).
  const flock = spawn('flock', ['--timeout', String(Math.ceil(patienceMs / 1000)), '3'], { stdio: ['ignore', 'ignore', 'ignore', fd] });
  const { promise, resolve, reject } = Promise.withResolvers<number | null>();
  flock.once('error', (cause) => reject(new Error('the command flock is missing: install the package util-linux', { cause })));
  flock.once('exit', resolve);
  try {
    if ((await promise) !== 0) throw new Error(`another process already uses ${folder}: stop it, or set COFRE_HOME to another folder`);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  let held = true;
  return () => {
    if (held) closeSync(fd);
    held = false;
  };
}

/**
 * Does `work`, which takes moments, while no other process does any in the folder, and returns what it returns. It blocks until then, 10 s at most. The same lock as {@link lockFolder}'s: not for a folder
 * that this process has claimed.
 *
 * @throws one clear line if another process holds it all that time; and what `work` throws.
 */
export function inTurn<T>(folder: string, work: () => T): T {
  const fd = openSync(folder, 'r');
  try {
    const { status, error } = spawnSync('flock', ['--timeout', '10', '3'], { stdio: ['ignore', 'ignore', 'ignore', fd] });
    if (error !== undefined) throw new Error('the command flock is missing: install the package util-linux', { cause: error });
    if (status !== 0) throw new Error(`another process has held ${folder} for 10 s: see which, and stop it`);
    return work();
  } finally {
    closeSync(fd);
  }
}
