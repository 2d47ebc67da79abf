/** The log in the database as a source to copy from: what the sequencer stored, and bundles put together from the batches. */
import type { ClientBase } from 'pg';
import { MissingEntries, readBundle } from './log-reader.ts';
import type { LogSource } from './log-source.ts';
import { readCheckpoint, readTile } from './tree-store.ts';

/** What of log `logId` is in the database; entries that were taken out of it are not there. As any role that reads the log. */
export function databaseLog(client: Pick<ClientBase, 'query'>, logId: number): LogSource {
  return {
    checkpoint: () => readCheckpoint(client, logId),
    async tile({ level, index, width }) {
      const tile = await readTile(client, logId, level, index);
      // A narrower tile is the beginning of what stands there now.
      return tile === null || tile.length < width * 32 ? null : tile.subarray(0, width * 32);
    },
    async bundle({ index, width }) {
      try {
        return await readBundle(client, logId, index, width);
      } catch (error) {
        if (error instanceof MissingEntries) return null;
        throw error;
      }
    },
  };
}
