/**
 * The Merkle tree of RFC 6962, section 2.1, over SHA-256: its hashes, its growing edge, its proofs and their verification. Pure.
 *
 * A leaf hashes to SHA-256(0x00 || entry), an inner node to SHA-256(0x01 || left || right), the empty tree to SHA-256 of nothing.
 * Sizes and indexes are safe integers: 2**53 entries are more than any log will hold, and bit operators, which end at 32 bits, are
 * not used on them. All hashes are 32 bytes.
 */
import { hash } from 'node:crypto';

const hashBytes = 32;

/** What leafHash and nodeHash hash from, instead of allocating: each call fills what it hashes, and no call waits for anything. */
let leafInput = Buffer.alloc(4096);
const nodeInput = Buffer.alloc(1 + 2 * hashBytes, 0x01);

/** SHA-256 of `bytes`. The detour over a Latin-1 string was measured: three times as fast as having node:crypto make the Buffer. */
function sha256(bytes: Uint8Array): Buffer {
  return Buffer.from(hash('sha256', bytes, 'binary'), 'latin1');
}

/** The root of the tree without entries. */
export const emptyRoot: Buffer = sha256(Buffer.alloc(0));

/** The hash of an entry as a leaf. */
export function leafHash(entry: Uint8Array): Buffer {
  if (leafInput.length < 1 + entry.length) leafInput = Buffer.alloc(1 + entry.length);
  leafInput.set(entry, 1);
  return sha256(leafInput.subarray(0, 1 + entry.length));
}

/** The hash of the node above two hashes of 32 bytes. */
export function nodeHash(left: Uint8Array, right: Uint8Array): Buffer {
  nodeInput.set(left, 1);
  nodeInput.set(right, 1 + hashBytes);
  return sha256(nodeInput);
}

/**
 * The root of the complete subtree over `count` hashes of `row`, hashes one after the other, from the one with index `first` on.
 * `count` is a power of two. `row` is left as it is.
 */
export function completeRoot(row: Buffer, first: number, count: number): Buffer {
  let level = row;
  let at = first * hashBytes;
  const above = Buffer.allocUnsafe(Math.max(1, count / 2) * hashBytes);
  for (let width = count / 2; width >= 1; width /= 2) {
    for (let index = 0; index < width; index++) {
      level.copy(nodeInput, 1, at + index * 2 * hashBytes, at + (index + 1) * 2 * hashBytes);
      // Overwrites only what this level has read already.
      above.write(hash('sha256', nodeInput, 'binary'), index * hashBytes, 'latin1');
    }
    level = above;
    at = 0;
  }
  return Buffer.from(level.subarray(at, at + hashBytes));
}

/** The largest power of two that is at most `size`; `size` is at least 1. */
function powerWithin(size: number): number {
  let power = 1;
  while (power * 2 <= size) power *= 2;
  return power;
}

function isSize(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

/**
 * The edge at which a tree grows: the roots of the maximal complete subtrees of its first `size` leaves, largest first, one for each
 * bit of `size`. It is all that appending and the root need.
 */
export class Frontier {
  #size: number;
  readonly #hashes: Buffer[];

  /** @throws RangeError if `hashes` are not as many as `size` has bits, or not of 32 bytes each. */
  constructor(size = 0, hashes: readonly Buffer[] = []) {
    let bits = 0;
    if (!isSize(size)) throw new RangeError('not the size of a tree');
    for (let rest = size; rest > 0; rest = Math.floor(rest / 2)) bits += rest % 2;
    if (hashes.length !== bits || hashes.some((hash) => hash.length !== hashBytes)) throw new RangeError('not the frontier of a tree of this size');
    this.#size = size;
    this.#hashes = [...hashes];
  }

  /** Leaves. */
  get size(): number {
    return this.#size;
  }

  /** Valid until the next append. */
  get hashes(): readonly Buffer[] {
    return this.#hashes;
  }

  /** Adds a leaf hash, which must not change afterwards. One node hash on average. */
  append(leaf: Buffer): void {
    let hash = leaf;
    // Each 1 at the end of the size is a complete subtree that this leaf completes to the next larger one.
    for (let rest = this.#size; rest % 2 === 1; rest = (rest - 1) / 2) hash = nodeHash(this.#hashes.pop()!, hash);
    this.#hashes.push(hash);
    this.#size += 1;
  }

  root(): Buffer {
    return foldFrontier(this.#hashes);
  }

  clone(): Frontier {
    return new Frontier(this.#size, this.#hashes);
  }
}

/** The root over complete subtrees that follow one another, largest first. */
function foldFrontier(hashes: readonly Buffer[]): Buffer {
  let root = hashes.at(-1) ?? emptyRoot;
  for (let index = hashes.length - 2; index >= 0; index--) root = nodeHash(hashes[index]!, root);
  return root;
}

/** What proofs are made from. Calls may run side by side. */
export interface HashReader {
  /**
   * The hash of the complete subtree of 2**level leaves that begins at leaf index * 2**level.
   *
   * @throws if the subtree is not within the tree, or cannot be read.
   */
  node(level: number, index: number): Promise<Buffer>;
}

/** Leaves `start` to before `end`. `start` is a multiple of a power of two that is at least `end - start`. */
type Range = readonly [start: number, end: number];

/** The maximal complete subtrees of a range, largest first. */
function subtreesOf([start, end]: Range): { level: number; index: number }[] {
  const subtrees = [];
  for (let at = start; at < end; ) {
    const width = powerWithin(end - at);
    subtrees.push({ level: Math.log2(width), index: at / width });
    at += width;
  }
  return subtrees;
}

/** The roots of ranges; what they are made of is read side by side. */
async function readRoots(ranges: readonly Range[], reader: HashReader): Promise<Buffer[]> {
  const parts = ranges.map(subtreesOf);
  const nodes = await Promise.all(parts.flat().map(({ level, index }) => reader.node(level, index)));
  return parts.map((subtrees) => foldFrontier(nodes.splice(0, subtrees.length)));
}

/**
 * The frontier of the tree of `size` leaves.
 *
 * @throws RangeError if `size` is none, and what `reader` throws.
 */
export async function frontierOf(size: number, reader: HashReader): Promise<Frontier> {
  if (!isSize(size)) throw new RangeError('not the size of a tree');
  return new Frontier(size, await Promise.all(subtreesOf([0, size]).map(({ level, index }) => reader.node(level, index))));
}

/**
 * The proof that leaf `index` is in the tree of `size` leaves (RFC 6962, section 2.1.1): from its sibling up to the root's child.
 *
 * @throws RangeError if it is not, and what `reader` throws.
 */
export async function inclusionProof(index: number, size: number, reader: HashReader): Promise<Buffer[]> {
  if (!isSize(index) || !isSize(size) || index >= size) throw new RangeError('no such leaf in a tree of this size');
  const siblings: Range[] = [];
  let start = 0;
  let end = size;
  while (end - start > 1) {
    const middle = start + powerWithin(end - start - 1);
    if (index < middle) {
      siblings.push([middle, end]);
      end = middle;
    } else {
      siblings.push([start, middle]);
      start = middle;
    }
  }
  return await readRoots(siblings.toReversed(), reader);
}

/**
 * The proof that the tree of `to` leaves begins with the tree of `from` leaves (RFC 6962, section 2.1.2). Empty if the sizes are the
 * same, and from the empty tree, which every tree begins with.
 *
 * @throws RangeError if `from` is larger than `to`, and what `reader` throws.
 */
export async function consistencyProof(from: number, to: number, reader: HashReader): Promise<Buffer[]> {
  if (!isSize(from) || !isSize(to) || from > to) throw new RangeError('no consistency between these sizes');
  if (from === 0) return [];
  const ranges: Range[] = [];
  let start = 0;
  let end = to;
  while (from !== end) {
    const middle = start + powerWithin(end - start - 1);
    if (from <= middle) {
      ranges.push([middle, end]);
      end = middle;
    } else {
      ranges.push([start, middle]);
      start = middle;
    }
  }
  // Where the older tree is this whole subtree from leaf 0 on, the verifier knows its root.
  if (start > 0) ranges.push([start, end]);
  return await readRoots(ranges.toReversed(), reader);
}

/** Whether `proof` shows that `leaf` is at `index` in the tree of `size` leaves with this root (RFC 9162, section 2.1.3.2). Never throws. */
export function verifyInclusion(leaf: Buffer, index: number, size: number, root: Buffer, proof: readonly Buffer[]): boolean {
  if (!isSize(index) || !isSize(size) || index >= size || leaf.length !== hashBytes || proof.some((hash) => hash.length !== hashBytes)) return false;
  let node = index;
  let last = size - 1;
  let hash = leaf;
  for (const sibling of proof) {
    if (last === 0) return false;
    if (node % 2 === 1 || node === last) {
      hash = nodeHash(sibling, hash);
      // A last node without a right sibling stands for itself on the levels above, up to where it is a right one.
      while (node % 2 === 0 && node !== 0) [node, last] = [half(node), half(last)];
    } else {
      hash = nodeHash(hash, sibling);
    }
    [node, last] = [half(node), half(last)];
  }
  return last === 0 && hash.equals(root);
}

/**
 * Whether `proof` shows that the tree of `to` leaves with root `toRoot` begins with the one of `from` leaves with root `fromRoot`
 * (RFC 9162, section 2.1.4.2). Two trees of one size are consistent if their roots are the same, and with the empty tree any tree is:
 * both without proof. Never throws.
 */
export function verifyConsistency(from: number, to: number, fromRoot: Buffer, toRoot: Buffer, proof: readonly Buffer[]): boolean {
  if (!isSize(from) || !isSize(to) || from > to || proof.some((hash) => hash.length !== hashBytes)) return false;
  if (from === 0) return proof.length === 0 && fromRoot.equals(emptyRoot) && (to > 0 || toRoot.equals(emptyRoot));
  if (from === to) return proof.length === 0 && fromRoot.equals(toRoot);
  let node = from - 1;
  let last = to - 1;
  while (node % 2 === 1) [node, last] = [half(node), half(last)];
  // Only where `from` is a power of two is its root a node of the newer tree, which the proof leaves out.
  const [first, ...rest] = node === 0 ? [fromRoot, ...proof] : proof;
  if (first?.length !== hashBytes || proof.length === 0) return false;
  let older = first;
  let newer = first;
  for (const hash of rest) {
    if (last === 0) return false;
    if (node % 2 === 1 || node === last) {
      older = nodeHash(hash, older);
      newer = nodeHash(hash, newer);
      while (node % 2 === 0 && node !== 0) [node, last] = [half(node), half(last)];
    } else {
      newer = nodeHash(newer, hash);
    }
    [node, last] = [half(node), half(last)];
  }
  return last === 0 && older.equals(fromRoot) && newer.equals(toRoot);
}

function half(value: number): number {
  return Math.floor(value / 2);
}
