/** Small files that an auditor gives and gets: keys, checkpoints, proofs. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { open, rename, stat, writeFile } from 'node:fs/promises';

/** No key, checkpoint or proof is as large as this. */
const maxTextBytes = 1024 * 1024;

/** What stands in a file that somebody gave; `cut`: only its end, for it is larger and the `end` will do. @throws Error with a code. */
export function readText(file: string, end = false): { readonly text: string; readonly cut: boolean } {
  const descriptor = openSync(file, 'r');
  try {
    const status = fstatSync(descriptor);
    const skipped = end && status.isFile() ? Math.max(0, status.size - maxTextBytes) : 0;
    const bytes = Buffer.alloc(maxTextBytes + 1);
    let length = 0;
    for (let read = -1; read !== 0 && length < bytes.length; length += Math.max(0, read)) read = readSync(descriptor, bytes, length, bytes.length - length, status.isFile() ? skipped + length : null);
    if (length > maxTextBytes && skipped === 0) throw Object.assign(new Error('too large'), { code: 'EFBIG' });
    return { text: bytes.toString('utf8', 0, length), cut: skipped > 0 };
  } finally {
    closeSync(descriptor);
  }
}

/** Writes a file whole or not at all. */
export async function writeWhole(path: string, text: string): Promise<void> {
  // Renamed over a device or a pipe, a file would take its place.
  if ((await stat(path).catch(() => null))?.isFile() === false) {
    await writeFile(path, text);
    return;
  }
  const temporary = `${path}.${process.pid}.new`;
  const file = await open(temporary, 'w', 0o640);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
}
