/** Makes the names in a folder durable. */
import { open } from 'node:fs/promises';

/** Resolves once what was created in, renamed into or removed from `folder` survives a crash of the machine. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
