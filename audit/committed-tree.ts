/**
 * The tree as the database has it, and what it proves of a batch. It trusts no row: where a batch is said to stand is a hint, and what stands there is
 * recomputed from the tiles up to a root that the caller knows.
 */
import { encodeBatchLeaf } from './batch-leaf.ts';
import { batchHeader, headerHash } from './chain.ts';
import type { Batch } from './chain.ts';
import { inclusionProof, leafHash, verifyInclusion } from './merkle.ts';
import type { HashReader } from './merkle.ts';
import { LogFault } from './sequenced-log.ts';
import type { LogHead, TreeStore } from './sequenced-log.ts';
import { tileReader } from './tiles.ts';

/** The tree of a log as it was with `size` leaves. */
export type Tree = Pick<LogHead, 'logId' | 'size' | 'root'>;

/** Reads a tree from the store's tiles. The reader throws LogFault for a tile that is not there as wide as it must be, and what the store throws. */
export function treeReader(store: Pick<TreeStore, 'tile'>, { logId, size }: Pick<Tree, 'logId' | 'size'>, cachedTiles?: number): HashReader {
  return tileReader(size, async (ref) => await wholeTile(store, logId, ref.level, ref.index, ref.width), cachedTiles);
}

/** The first `width` hashes of a tile. @throws LogFault if it has fewer. */
export async function wholeTile(store: Pick<TreeStore, 'tile'>, logId: number, level: number, index: number, width: number): Promise<Buffer> {
  const tile = await store.tile(logId, level, index);
  if (tile === null || tile.length < width * 32) throw new LogFault('corrupt', `tile ${level}/${index} of the log is missing or cut short`);
  return tile.subarray(0, width * 32);
}

/** Index of a batch's leaf in `tree`, if the batch as it is given stands where the store says; null if it does not, or the store does not say. */
export async function provenPlace(store: Pick<TreeStore, 'tile' | 'placeOf' | 'certificates'>, batch: Batch, tree: Tree, reader: HashReader = treeReader(store, tree)): Promise<number | null> {
  const place = await store.placeOf(tree.logId, batch.writer, batch.number);
  if (place === null || place >= tree.size || headerHashOf(batch) === null) return null;
  const leaf = await leafHashOf(store, batch);
  return verifyInclusion(leaf, place, tree.size, tree.root, await inclusionProof(place, tree.size, reader)) ? place : null;
}

/** Leaf hash of a batch; of batch 0 with the certificate that the store has of its writer. @throws RangeError for one that no header can hold (`headerHashOf`). */
export async function leafHashOf(store: Pick<TreeStore, 'certificates'>, batch: Batch): Promise<Buffer> {
  const [registered] = batch.number === 0n ? await store.certificates([batch.writer]) : [];
  return leafHash(encodeBatchLeaf(batch, batch.number === 0n ? (registered?.certificate ?? '') : null));
}

/** Header hash of a batch as the database has it; null where the row holds what no header can. */
export function headerHashOf(batch: Batch): Buffer | null {
  try {
    return headerHash(batchHeader(batch));
  } catch {
    return null;
  }
}
