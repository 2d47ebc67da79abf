/**
 * The tree as tiles (https://c2sp.org/tlog-tiles): their names, which ones a growing tree changes, reading hashes from them, and
 * building them. Pure.
 *
 * The tile with index n of level l is up to 256 hashes of 32 bytes, one after the other; hash i is the root of the 256**l leaves from
 * (n * 256 + i) * 256**l on. A tile with fewer is partial, and its name ends in its width. Entry bundles are cut like level 0.
 */
import { completeRoot, Frontier, type HashReader } from './merkle.ts';

/** Hashes in a full tile, entries in a full bundle. */
export const tileWidth = 256;
/** Levels of a tile: each hash of a tile stands for a full tile, of this height, of the level below. */
const tileHeight = 8;
const maxLevel = 63;
const hashBytes = 32;

export interface TileRef {
  /** 0 to 63; 0 holds the leaf hashes. */
  readonly level: number;
  readonly index: number;
  /** Hashes: 1 to 256. */
  readonly width: number;
}

export interface BundleRef {
  readonly index: number;
  /** Entries: 1 to 256. */
  readonly width: number;
}

/** A tile with its hashes: 32 * width bytes. */
export interface Tile extends TileRef {
  readonly hashes: Buffer;
}

/**
 * Where a tile lies under the prefix of a log: `tile/0/x001/234.p/5`.
 *
 * @throws RangeError if there can be no such tile.
 */
export function tilePath(ref: TileRef): string {
  if (!Number.isInteger(ref.level) || ref.level < 0 || ref.level > maxLevel) throw new RangeError('not a tile');
  return `tile/${ref.level}/${indexPath(ref)}`;
}

/**
 * Where an entry bundle lies under the prefix of a log: `tile/entries/x001/234.p/5`.
 *
 * @throws RangeError if there can be no such bundle.
 */
export function bundlePath(ref: BundleRef): string {
  return `tile/entries/${indexPath(ref)}`;
}

/** The index in groups of three digits, of which all but the last begin with an `x`, and the width of what is not full. */
function indexPath({ index, width }: BundleRef): string {
  if (!Number.isSafeInteger(index) || index < 0 || !Number.isInteger(width) || width < 1 || width > tileWidth) throw new RangeError('not a tile');
  let path = String(index % 1000).padStart(3, '0');
  for (let rest = Math.floor(index / 1000); rest > 0; rest = Math.floor(rest / 1000)) path = `x${String(rest % 1000).padStart(3, '0')}/${path}`;
  return width === tileWidth ? path : `${path}.p/${width}`;
}

/**
 * Reads a path under the prefix of a log. Null if it is not, character for character, one that this file or the specification
 * gives: so it is safe to look up in a file system.
 */
export function parsePath(path: string): { kind: 'checkpoint' } | ({ kind: 'tile' } & TileRef) | ({ kind: 'entries' } & BundleRef) | null {
  if (path === 'checkpoint') return { kind: 'checkpoint' };
  const match = /^tile\/(entries|\d{1,2})\/((?:x\d{3}\/){0,5}\d{3})(?:\.p\/(\d{1,3}))?$/u.exec(path);
  if (match === null) return null;
  const [, level = '', digits = '', partial] = match;
  const index = Number(digits.replaceAll(/\D/gu, ''));
  const width = partial === undefined ? tileWidth : Number(partial);
  if (Number(level) > maxLevel || !Number.isSafeInteger(index) || width < 1 || width > tileWidth) return null;
  // Whatever spells a number in another way (a leading zero, a group x000 before the first digit, .p/256) is not found again.
  if (level === 'entries') return bundlePath({ index, width }) === path ? { kind: 'entries', index, width } : null;
  const ref = { level: Number(level), index, width };
  return tilePath(ref) === path ? { kind: 'tile', ...ref } : null;
}

/** The width of a tile in a tree of `size` leaves; 0 if it is not there. */
export function tileWidthAt(level: number, index: number, size: number): number {
  return Math.min(Math.max(hashesAt(level, size) - index * tileWidth, 0), tileWidth);
}

/** How many hashes a level of tiles has in a tree of `size` leaves. */
function hashesAt(level: number, size: number): number {
  return Math.floor(size / tileWidth ** level);
}

/**
 * The tiles of a tree of `to` leaves that are new or wider than in one of `from`: level 0 first, and then by index.
 *
 * @throws RangeError if `from` is larger than `to`.
 */
export function* changedTiles(from: number, to: number): Generator<TileRef, void, undefined> {
  if (!Number.isSafeInteger(from) || !Number.isSafeInteger(to) || from < 0 || from > to) throw new RangeError('not the sizes of a growing tree');
  for (let level = 0; hashesAt(level, from) < hashesAt(level, to); level++) {
    for (let index = Math.floor(hashesAt(level, from) / tileWidth); index * tileWidth < hashesAt(level, to); index++) {
      yield { level, index, width: tileWidthAt(level, index, to) };
    }
  }
}

/**
 * The entry bundles of a log of `to` entries that are new or wider than in one of `from`, by index.
 *
 * @throws RangeError if `from` is larger than `to`.
 */
export function* changedBundles(from: number, to: number): Generator<BundleRef, void, undefined> {
  for (const { level, index, width } of changedTiles(from, to)) {
    if (level > 0) return;
    yield { index, width };
  }
}

/**
 * Reads the hashes of the tree of `size` leaves from its tiles, of which it keeps the last `cachedTiles` (8 KiB each) that it used.
 * It trusts the tiles: what is made from them is to be held against a root that somebody signed. `read` gives away the bytes it
 * returns, and throws if the tile is not there.
 *
 * The reader throws RangeError for a subtree that is not within the tree, Error naming the tile if its length is not 32 * width,
 * and what `read` throws; a tile that could not be read is asked for again.
 */
export function tileReader(size: number, read: (ref: TileRef) => Promise<Uint8Array>, cachedTiles = 64): HashReader {
  // In the order of their last use. Promises, so that reads side by side ask for a tile once.
  const cache = new Map<string, Promise<Buffer>>();

  function tile(level: number, index: number): Promise<Buffer> {
    const ref = { level, index, width: tileWidthAt(level, index, size) };
    const path = tilePath(ref);
    const hashes = cache.get(path) ?? readTile(ref, path);
    cache.delete(path);
    cache.set(path, hashes);
    hashes.catch(() => cache.delete(path));
    if (cache.size > cachedTiles) cache.delete(cache.keys().next().value ?? path);
    return hashes;
  }

  async function readTile(ref: TileRef, path: string): Promise<Buffer> {
    const bytes = await read(ref);
    if (bytes.length !== ref.width * hashBytes) throw new Error(`${path} is not ${ref.width} hashes long`);
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  return {
    async node(level, index) {
      if (!Number.isSafeInteger(level) || !Number.isSafeInteger(index) || level < 0 || index < 0 || (index + 1) * 2 ** level > size)
        throw new RangeError('not a subtree of this tree');
      const count = 2 ** (level % tileHeight);
      const first = index * count;
      const hashes = await tile(Math.floor(level / tileHeight), Math.floor(first / tileWidth));
      return completeRoot(hashes, first % tileWidth, count);
    },
  };
}

/**
 * Makes the tiles of a growing tree, from the tree's edge on. It holds every tile that is filled until it is taken: 8 KiB for each 256
 * leaves.
 */
export class TileBuilder {
  #size: number;
  /** The size at the last take. */
  #taken: number;
  /** The unfinished tile of each level, and how many hashes it holds: the digits of the size to base 256, lowest first. */
  readonly #partial: Buffer[] = [];
  readonly #widths: number[] = [];
  /** The tiles of each level that were filled since the last take. */
  #full: Buffer[][] = [];

  /**
   * @param edges the partial tile of each level in the tree of `size` leaves, by level; none where that would be empty.
   * @throws RangeError if they are not.
   */
  constructor(size: number, edges: ReadonlyMap<number, Buffer>) {
    if (!Number.isSafeInteger(size) || size < 0) throw new RangeError('not the size of a tree');
    this.#size = size;
    this.#taken = size;
    let partial = 0;
    for (let level = 0; hashesAt(level, size) > 0; level++) {
      const width = hashesAt(level, size) % tileWidth;
      const edge = edges.get(level);
      if ((edge?.length ?? 0) !== width * hashBytes) throw new RangeError('not the edge of a tree of this size');
      if (width > 0) partial += 1;
      this.#openTile(level);
      this.#widths[level] = width;
      edge?.copy(this.#partial[level]!);
    }
    if (edges.size !== partial) throw new RangeError('not the edge of a tree of this size');
  }

  /** Leaves. */
  get size(): number {
    return this.#size;
  }

  /** Adds a leaf hash of 32 bytes, which is copied. One node hash on average. */
  append(leafHash: Buffer): void {
    let hash = leafHash;
    for (let level = 0; ; level++) {
      if (level === this.#partial.length) this.#openTile(level);
      const tile = this.#partial[level]!;
      const width = this.#widths[level]!;
      tile.set(hash, width * hashBytes);
      this.#widths[level] = width + 1;
      if (width + 1 < tileWidth) break;
      (this.#full[level] ??= []).push(tile);
      this.#openTile(level);
      hash = completeRoot(tile, 0, tileWidth);
    }
    this.#size += 1;
  }

  #openTile(level: number): void {
    this.#partial[level] = Buffer.allocUnsafe(tileWidth * hashBytes);
    this.#widths[level] = 0;
  }

  /** The tiles that changed since the last call, in the order of `changedTiles`; for good the caller's. */
  take(): Tile[] {
    // changedTiles gives full tiles by level and index too, so they come in this order.
    const full = this.#full.flat().values();
    const tiles: Tile[] = [];
    for (const ref of changedTiles(this.#taken, this.#size)) {
      const hashes = ref.width === tileWidth ? full.next().value! : this.#edge(ref.level);
      tiles.push({ ...ref, hashes });
    }
    this.#full = [];
    this.#taken = this.#size;
    return tiles;
  }

  /** The partial tile of each level, by level, as the constructor takes them: copies. */
  get edges(): Map<number, Buffer> {
    const edges = new Map<number, Buffer>();
    for (const [level, width] of this.#widths.entries()) if (width > 0) edges.set(level, this.#edge(level));
    return edges;
  }

  /** A copy of the unfinished tile of a level. */
  #edge(level: number): Buffer {
    return Buffer.from(this.#partial[level]!.subarray(0, this.#widths[level]! * hashBytes));
  }

  /** The frontier of the tree, whose root is the tree's. Up to 255 node hashes a level. */
  frontier(): Frontier {
    const hashes: Buffer[] = [];
    for (let level = this.#widths.length - 1; level >= 0; level--) {
      // Within a tile, the bits of its width are the complete subtrees that it holds, as for a tree.
      let first = 0;
      for (let count = tileWidth / 2; count >= 1; count /= 2) {
        if (first + count > this.#widths[level]!) continue;
        hashes.push(completeRoot(this.#partial[level]!, first, count));
        first += count;
      }
    }
    return new Frontier(this.#size, hashes);
  }
}
