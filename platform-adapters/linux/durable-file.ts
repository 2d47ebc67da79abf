/** Files that are whole, and still there, after the machine itself has failed. */
import { randomUUID } from 'node:crypto';
import { closeSync, fchmodSync, fsyncSync, openSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

/**
 * Replaces `path` by `text`, with exactly `mode`: after a crash it holds the old text or the new, and the new once this returned.
 *
 * @throws what the file system says, a full disk for one; the old file stands then.
 */
export function replaceFile(path: string, text: string | Uint8Array, mode: number): void {
  renameSync(writeBeside(path, text, mode), path);
  flushFolder(dirname(path));
}

/**
 * Writes `text`, whole and flushed, under a new name in the folder of `path`, which it returns: `<path>.<process id>-<uuid>.tmp`. To be renamed or linked.
 *
 * @throws what the file system says, and leaves nothing.
 */
export function writeBeside(path: string, text: string | Uint8Array, mode: number): string {
  const name = `${path}.${process.pid}-${randomUUID()}.tmp`;
  const fd = openSync(name, 'wx', mode);
  try {
    // Not writeSync, which may write a part and say so by a number.
    writeFileSync(fd, text);
    // The umask may have taken bits away from what others are to read.
    fchmodSync(fd, mode);
    fsyncSync(fd);
  } catch (error) {
    rmSync(name, { force: true });
    throw error;
  } finally {
    closeSync(fd);
  }
  return name;
}

/** What was made, renamed or removed in `folder` stays so. */
export function flushFolder(folder: string): void {
  flush(folder);
}

/** Everything below `folder` is on disk, whoever wrote it. */
export function flushTree(folder: string): void {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) flushTree(path);
    else if (entry.isFile()) flush(path);
  }
  flush(folder);
}

function flush(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
