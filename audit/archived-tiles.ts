/**
 * The tree in the database, and what has left it from where it was copied to: whoever holds a checkpoint of months ago, as an instance that has not led since,
 * needs tiles that are in the archive only. What a tile proves, no one has to be believed for.
 */
import { readTile } from './log-source.ts';
import type { Archive } from './retention.ts';
import type { TreeStore } from './sequenced-log.ts';
import { tileWidth } from './tiles.ts';

/** `store`, but for tiles that are in the archive only: those are read there. `archive` null for none. */
export function withArchivedTiles<Store extends TreeStore>(store: Store, archive: Pick<Archive, 'of'> | null): Store {
  if (archive === null) return store;
  return { ...store, tile: async (logId, level, index) => (await store.tile(logId, level, index)) ?? (await readTile(archive.of(logId), { level, index, width: tileWidth })) };
}
