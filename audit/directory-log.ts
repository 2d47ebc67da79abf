/**
 * A log in a folder, file for file as c2sp.org/tlog-tiles names them: what public tools read, and what an export writes.
 *
 * A file is written beside the others under a name of its own, synced, and renamed, so that a name holds all of its bytes or does not exist.
 */
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { lstat, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import type { WritableLogFiles } from './log-source.ts';
import { syncFolder } from './sync-folder.ts';

/** Where files are written before they get their names. What a crash leaves here is of no use, and is removed by a later export. */
const incoming = '.incoming';
const temporaryName = /^[0-9]+-[0-9a-f]+$/u;
const abandonedAfterMs = 60 * 60_000;

/**
 * The files of a log in `folder`, which is made with the first file.
 *
 * Reading follows no symbolic link that stands for a file; writing follows none below `folder`, neither for a file nor for a folder. @throws Error of one line, from each method, that names the file.
 */
export function directoryFiles(folder: string): WritableLogFiles {
  const root = resolve(folder);
  let prepared: Promise<void> | null = null;
  const syncs = new FolderSyncs();

  async function prepare(): Promise<void> {
    await makeFolder(root, syncs);
    await makeFolderInside(root, incoming, syncs);
    for (const name of (await readdir(join(root, incoming))).filter((entry) => temporaryName.test(entry))) {
      const path = join(root, incoming, name);
      const status = await lstat(path).catch(() => null);
      if (status?.isFile() === true && Date.now() - status.mtimeMs > abandonedAfterMs) await rm(path, { force: true });
    }
  }

  async function write(path: string, bytes: Uint8Array): Promise<void> {
    try {
      await (prepared ??= prepare());
      // Of two processes, in containers or one after the other, both may have the same pid.
      const temporary = join(root, incoming, `${process.pid}-${randomBytes(6).toString('hex')}`);
      const file = await open(temporary, 'wx', 0o640);
      try {
        await file.writeFile(bytes);
        await file.sync();
      } finally {
        await file.close();
      }
      const folderOf = dirname(join(root, path));
      await makeFolderInside(root, dirname(path), syncs);
      await rename(temporary, join(root, path));
      await syncs.sync(folderOf);
    } catch (error) {
      prepared = null;
      throw new Error(`${join(root, path)}: cannot be written (${codeOf(error)})`, { cause: error });
    }
  }

  return {
    async read(path, maxBytes) {
      const whole = join(root, path);
      try {
        const file = await open(whole, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
        try {
          const status = await file.stat();
          if (!status.isFile()) throw new Error(`${whole}: is not a file`);
          if (status.size > maxBytes) throw new Error(`${whole}: is larger than it can be`);
          const bytes = Buffer.allocUnsafeSlow(status.size);
          let at = 0;
          while (at < bytes.length) {
            const { bytesRead } = await file.read(bytes, at, bytes.length - at, at);
            if (bytesRead === 0) break;
            at += bytesRead;
          }
          return bytes.subarray(0, at);
        } finally {
          await file.close();
        }
      } catch (error) {
        if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR') return null;
        if (codeOf(error) === 'unknown') throw error;
        throw new Error(`${whole}: cannot be read (${codeOf(error)})`, { cause: error });
      }
    },
    async create(path, bytes) {
      const there = await lstat(join(root, path)).catch((error: unknown) => {
        if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR') return null;
        throw new Error(`${join(root, path)}: cannot be read (${codeOf(error)})`, { cause: error });
      });
      if (there !== null) {
        // Else a file that lies elsewhere would be taken for the copy's.
        await makeFolderInside(root, dirname(path), syncs).catch((error: unknown) => {
          throw new Error(`${join(root, path)}: cannot be written (${codeOf(error)})`, { cause: error });
        });
        // Another run may have died between giving it its name and syncing that.
        await syncs.sync(dirname(join(root, path)));
        return false;
      }
      // Two exports at once write the same bytes here, for both hold them against the same tree.
      await write(path, bytes);
      return true;
    },
    replace: write,
  };
}

function codeOf(error: unknown): string {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return typeof code === 'string' ? code : 'unknown';
}

/** By single steps: Node 24's recursive mkdir tries for ever where a parent that is there answers ENOENT, as all of /proc does. */
async function makeFolder(folder: string, syncs: FolderSyncs): Promise<void> {
  if ((await stat(folder).catch(() => null))?.isDirectory() === true) return;
  if (dirname(folder) === folder) return;
  await makeFolder(dirname(folder), syncs);
  try {
    await mkdir(folder, { mode: 0o750 });
  } catch (error) {
    // Another one made it meanwhile.
    if (codeOf(error) !== 'EEXIST' || !(await stat(folder)).isDirectory()) throw error;
  }
  await syncs.sync(dirname(folder));
}

/**
 * Makes `path`, which is relative, below `root`. The root may be reached by a link, since whoever runs the export names it; what lies in it may come from
 * somebody else, and a link there would have files removed, and written, wherever it leads. Who may change the copy while it is written is not stopped by this.
 *
 * @throws Error with a code if one of the folders is a link, or no folder.
 */
async function makeFolderInside(root: string, path: string, syncs: FolderSyncs): Promise<void> {
  let folder = root;
  for (const name of path.split('/').filter((part) => part !== '.')) {
    folder = join(folder, name);
    const there = await lstat(folder).catch(() => null);
    if (there === null) await makeFolder(folder, syncs);
    if (!(there ?? (await lstat(folder))).isDirectory()) throw Object.assign(new Error('not a folder'), { code: 'ENOTDIR' });
  }
}

/** Syncs folders, once for all who wait for the same one: hundreds of tiles lie in one. */
class FolderSyncs {
  readonly #running = new Map<string, Promise<void>>();
  readonly #next = new Map<string, Promise<void>>();

  /** Resolves once the names that stand in `folder` now are durable. */
  async sync(folder: string): Promise<void> {
    const running = this.#running.get(folder);
    if (running === undefined) {
      await this.#start(folder);
      return;
    }
    // The one that runs may have begun before the caller's name was there.
    let next = this.#next.get(folder);
    if (next === undefined) {
      next = running.catch(() => undefined).then(() => {
        this.#next.delete(folder);
        return this.#start(folder);
      });
      this.#next.set(folder, next);
    }
    await next;
  }

  #start(folder: string): Promise<void> {
    const sync = syncFolder(folder).finally(() => {
      if (this.#running.get(folder) === sync) this.#running.delete(folder);
    });
    this.#running.set(folder, sync);
    return sync;
  }
}
