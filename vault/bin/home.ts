/** The folders of a home that every vault needs. */
import { mkdirSync, readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';

/**
 * Makes the home and what is in it before anything else, or leaves it as it is. Others may pass through the home, but not list it; its secrets are the owner's alone.
 *
 * @throws Error of one line that names the folder.
 */
export function makeHome(home: string): void {
  for (const [folder, mode] of [[home, 0o711], [join(home, 'secrets'), 0o700], [join(home, 'writers'), 0o700], [join(home, 'witness'), 0o700]] as const) {
    try {
      makeFolder(folder, mode);
    } catch (error) {
      throw new Error(`the state folder ${folder} cannot be made (${(error as NodeJS.ErrnoException).code ?? 'unknown'}): set --home or COFRE_HOME to a folder of your own`, { cause: error });
    }
  }
}

/** Where the writers of this home, in all its processes, have noted their last batches. */
export function lastBatchFiles(home: string): string[] {
  const folder = join(home, 'writers');
  return readdirSync(folder).filter((name) => name.endsWith('.json')).map((name) => join(folder, name));
}

/** By single steps: Node 24's recursive mkdir tries for ever where a parent that is there answers ENOENT, as all of /proc does. */
function makeFolder(folder: string, mode: number): void {
  if (isFolder(folder)) return;
  if (!isFolder(dirname(folder))) makeFolder(dirname(folder), mode);
  try {
    mkdirSync(folder, { mode });
  } catch (error) {
    // Another process made it meanwhile.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST' || !isFolder(folder)) throw error;
  }
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}
