/**
 * Copies a log: only what the copy does not have yet, and only what the signed checkpoint vouches for.
 *
 * Nothing is written before it is shown that the new checkpoint extends the copy's own, and no file before it is shown to belong to the new
 * tree. The checkpoint is replaced last. So a run that dies anywhere leaves the older copy, valid as before, and files that the next run finds in
 * their places.
 */
import { openCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import { decodeBundle } from './entry.ts';
import { readBundle, readTile } from './log-source.ts';
import type { LogSource, LogTarget } from './log-source.ts';
import { completeRoot, consistencyProof, leafHash, verifyConsistency } from './merkle.ts';
import type { NoteVerifier } from './note.ts';
import { bundlePath, changedTiles, TileBuilder, tilePath, tileReader, tileWidth, tileWidthAt } from './tiles.ts';
import type { BundleRef, TileRef } from './tiles.ts';

export interface ExportProgress {
  /** Entries of the copy, of those that it will have. */
  readonly done: number;
  readonly total: number;
}

export interface ExportOptions {
  /** Keys whose checkpoints count, by origin. */
  readonly verifiers: readonly NoteVerifier[];
  /** Called after each bundle. */
  readonly onProgress?: (progress: ExportProgress) => void;
  /** Files under way at once; 16 by default. */
  readonly parallel?: number;
}

export interface Exported {
  readonly checkpoint: Checkpoint;
  /** The signed note. */
  readonly note: string;
  /** Entries that the copy had before. */
  readonly from: number;
}

const hashBytes = 32;

/**
 * Brings `target` up to the source's checkpoint.
 *
 * @throws Error if the source's checkpoint is not signed, does not extend the copy's, or does not vouch for what the source gives; and what the
 *   source and the target throw. The copy's own checkpoint then stands as it did.
 */
export async function exportLog(source: LogSource, target: LogTarget, options: ExportOptions): Promise<Exported> {
  const { verifiers, parallel = 16 } = options;

  // 1. What is there, and what is to be there.
  const oldNote = await target.checkpoint();
  const old = oldNote === null ? null : openCheckpoint(oldNote, verifiers);
  if (oldNote !== null && old === null) throw new Error('the checkpoint of the copy is not signed by this log\'s key: it is a copy of another log, or damaged');
  const note = await source.checkpoint();
  if (note === null) throw new Error('the log has no checkpoint yet');
  const checkpoint = openCheckpoint(note, verifiers);
  if (checkpoint === null) throw new Error('the checkpoint of the log is not signed by its key');
  const { size } = checkpoint;
  const from = old?.size ?? 0;
  if (old !== null && old.origin !== checkpoint.origin) throw new Error(`the copy is of the log ${old.origin}, not of ${checkpoint.origin}: each goes to a place of its own`);
  if (from > size) throw new Error(`the copy has ${from} entries, but the log only ${size}: the log was cut off or restored from a backup`);

  // 2. That the one extends the other, by the source's tiles as far as they give the two roots.
  const tree = new SignedTree(source, checkpoint);
  if (old !== null) {
    const proof = from === size ? [] : await consistencyProof(from, size, tileReader(size, (ref) => sourceTile(source, ref)));
    if (!verifyConsistency(from, size, old.root, checkpoint.root, proof)) throw new Error(`the log does not begin with the ${from} entries of the copy: it was rewritten, or its tiles are damaged`);
  }
  if (from === size && old !== null) return { checkpoint: old, note: oldNote!, from };

  // 3. Each file, once the tree vouches for it. Dies here: files that no checkpoint speaks of yet.
  await tree.open();
  // A run that was cut off may have left files in their places, from the first on: they are taken from there until some are missing.
  let missing = 0;
  async function copyBundle(ref: BundleRef, hashes: Buffer): Promise<void> {
    if (missing < parallel) {
      const there = await target.bundle(ref);
      if (there !== null && holds(there, hashes)) return;
      missing += 1;
    }
    const bundle = await readBundle(source, ref);
    const range = `entries ${ref.index * tileWidth} to ${ref.index * tileWidth + ref.width - 1}`;
    if (bundle === null) throw new Error(`the log does not give its ${range} (${bundlePath(ref)}): they may have been moved out of it`);
    if (!holds(bundle, hashes)) throw new Error(`${range} of the log (${bundlePath(ref)}) are not those that its checkpoint signs`);
    await target.put(bundlePath(ref), bundle);
  }
  let done = from;
  await eachOf(changedTiles(from, size), parallel, async (ref) => {
    const hashes = await tree.tile(ref.level, ref.index);
    if (ref.level === 0) await copyBundle(ref, hashes);
    await target.put(tilePath(ref), hashes);
    if (ref.level > 0) return;
    // The first one may hold entries that the copy has in a narrower bundle.
    done += ref.width - Math.max(0, from - ref.index * tileWidth);
    options.onProgress?.({ done, total: size });
  });

  // 4. The checkpoint, for which all is there now, unless another export brought a later one meanwhile: a copy that went back would look cut off.
  const nowNote = await target.checkpoint();
  const there = nowNote === null ? null : openCheckpoint(nowNote, verifiers);
  if (there !== null && there.origin === checkpoint.origin && there.size >= size) {
    if (there.size === size && !there.root.equals(checkpoint.root)) throw new Error(`the log has signed two different trees of ${size} entries`);
    return { checkpoint: there, note: nowNote!, from };
  }
  await target.put('checkpoint', Buffer.from(note, 'utf8'));
  return { checkpoint, note, from };
}

/** Whether a bundle holds exactly the entries with these leaf hashes. */
export function holds(bundle: Uint8Array, hashes: Buffer): boolean {
  let entries;
  try {
    entries = decodeBundle(bundle);
  } catch {
    return false;
  }
  return entries.length * hashBytes === hashes.length && entries.every((entry, index) => leafHash(entry).equals(hashes.subarray(index * hashBytes, (index + 1) * hashBytes)));
}

async function sourceTile(source: LogSource, ref: TileRef): Promise<Buffer> {
  const tile = await readTile(source, ref);
  if (tile === null) throw new Error(`the log does not give ${tilePath(ref)}`);
  if (tile.length !== ref.width * hashBytes) throw new Error(`${tilePath(ref)} of the log is not as long as it must be`);
  return tile;
}

/** The tiles of the tree that a checkpoint signs, and no others: the unfinished ones by the root, each full one by the hash above it. */
export class SignedTree {
  readonly #source: LogSource;
  readonly #checkpoint: Checkpoint;
  #edges: ReadonlyMap<number, Buffer> = new Map();
  /** In the order of their last use: neighbours have the same tile above them. */
  readonly #above = new Map<string, Promise<Buffer>>();

  constructor(source: LogSource, checkpoint: Checkpoint) {
    this.#source = source;
    this.#checkpoint = checkpoint;
  }

  /** Reads the unfinished tiles. @throws Error if they do not give the root. */
  async open(): Promise<void> {
    const { size, root } = this.#checkpoint;
    const edges = new Map<number, Buffer>();
    for (let level = 0; Math.floor(size / tileWidth ** level) > 0; level++) {
      const index = Math.floor(size / tileWidth ** (level + 1));
      const width = tileWidthAt(level, index, size);
      if (width > 0) edges.set(level, await sourceTile(this.#source, { level, index, width }));
    }
    if (!new TileBuilder(size, edges).frontier().root().equals(root)) throw new Error('the tiles of the log do not give the root that its checkpoint signs');
    this.#edges = edges;
  }

  /** The hashes of a tile. @throws Error if they are not those of the signed tree. */
  async tile(level: number, index: number): Promise<Buffer> {
    const { size } = this.#checkpoint;
    const width = tileWidthAt(level, index, size);
    if (width < tileWidth) return this.#edges.get(level)!;
    const ref = { level, index, width };
    const [tile, above] = await Promise.all([sourceTile(this.#source, ref), this.#tileAbove(level, index)]);
    const at = (index % tileWidth) * hashBytes;
    if (!completeRoot(tile, 0, tileWidth).equals(above.subarray(at, at + hashBytes))) throw new Error(`${tilePath(ref)} of the log is not the tile that its checkpoint signs`);
    return tile;
  }

  #tileAbove(level: number, index: number): Promise<Buffer> {
    const key = `${level + 1}/${Math.floor(index / tileWidth)}`;
    const known = this.#above.get(key) ?? this.tile(level + 1, Math.floor(index / tileWidth));
    this.#above.delete(key);
    this.#above.set(key, known);
    if (this.#above.size > 16) this.#above.delete(this.#above.keys().next().value!);
    // Whoever waits for it gets its failure.
    known.catch(() => undefined);
    return known;
  }
}

/** Does `work` for each item, `parallel` at once, in their order as far as they begin. Throws the first failure, when all that had begun has ended. */
export async function eachOf<Item>(items: Iterable<Item>, parallel: number, work: (item: Item) => Promise<void>): Promise<void> {
  const iterator = items[Symbol.iterator]();
  let failed = false;
  let failure: unknown;
  await Promise.all(
    Array.from({ length: parallel }, async () => {
      for (let next = iterator.next(); next.done !== true && !failed; next = iterator.next()) {
        try {
          await work(next.value);
        } catch (error) {
          if (!failed) failure = error;
          failed = true;
        }
      }
    }),
  );
  if (failed) throw failure;
}
