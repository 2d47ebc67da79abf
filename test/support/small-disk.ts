/** A small file system of a test's own, to fill. */
import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, rmdirSync, statfsSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const variable = 'COFRE_TEST_SMALL_DISK';
const megabyte = 1024 * 1024;

/**
 * Runs the test file again where a small file system of its own is mounted, and does not return; in that run, returns it. In a mount namespace, so that it goes
 * with the process. Who is not root takes a user namespace, in which root may mount, and another one to be itself again: PostgreSQL refuses uid 0.
 */
export function onSmallDisk(file: string, size: string): SmallDisk {
  const given = process.env[variable];
  if (given !== undefined) return new SmallDisk(given);
  const folder = mkdtempSync(join(tmpdir(), 'cofre-disk-'));
  const self = process.getuid!() === 0 ? '' : `unshare --user --map-user=${process.getuid!()} --map-group=${process.getgid!()} -- `;
  const outer = process.getuid!() === 0 ? ['--mount'] : ['--user', '--map-root-user', '--mount'];
  const mount = `mount -t tmpfs -o size=${size},mode=755 none '${folder}'`;
  const may = spawnSync('unshare', [...outer, '--', '/bin/sh', '-c', `${mount} && ${self}true`], { encoding: 'utf8' });
  if (may.status !== 0) throw new Error(`no small file system can be mounted here (${may.stderr.trim() || (may.error?.message ?? 'unshare failed')}): a full disk cannot be tried`);
  const again = spawnSync('setpriv', ['--pdeathsig', 'KILL', '--', 'unshare', ...outer, '--', '/bin/sh', '-c', `${mount} && exec ${self}'${process.execPath}' '${file}'`], { stdio: 'inherit', env: { ...process.env, [variable]: folder } });
  rmdirSync(folder);
  process.exit(again.status ?? 1);
}

export class SmallDisk {
  readonly folder: string;
  readonly #ballast: string;

  constructor(folder: string) {
    this.folder = folder;
    this.#ballast = join(folder, 'ballast');
  }

  /** Bytes that are free. */
  get room(): number {
    const { bavail, bsize } = statfsSync(this.folder);
    return bavail * bsize;
  }

  /** Takes all room but so many bytes. Others may take some of it meanwhile. */
  fill(left: number): void {
    const file = openSync(this.#ballast, 'a');
    try {
      while (this.room > left) writeSync(file, Buffer.alloc(Math.min(megabyte, this.room - left), 1));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
    } finally {
      closeSync(file);
    }
  }

  /** Gives back what was filled. */
  clear(): void {
    rmSync(this.#ballast);
  }
}
