import { createHash } from 'node:crypto';
import type { HashReader } from '../../audit/merkle.ts';

/**
 * RFC 6962, section 2.1, as its text defines it, apart from the product: what audit/merkle.ts and audit/tiles.ts are held against. D[start:end] is the list of entries from `start` to before `end`.
 * It remembers the hash of each list that it was asked for, and reads as a HashReader.
 */
export class NaiveTree implements HashReader {
  readonly #entries: readonly Uint8Array[];
  readonly #known = new Map<number, Buffer>();

  constructor(entries: readonly Uint8Array[]) {
    this.#entries = entries;
  }

  /** MTH(D[start:end]). */
  root(start: number, end: number): Buffer {
    const key = start * (this.#entries.length + 1) + end;
    let hash = this.#known.get(key);
    if (hash === undefined) {
      const k = split(end - start);
      if (end - start === 0) hash = createHash('sha256').digest();
      else if (end - start === 1)
        hash = createHash('sha256')
          .update(Buffer.concat([Buffer.from([0]), this.#entries[start]!]))
          .digest();
      else
        hash = createHash('sha256')
          .update(Buffer.concat([Buffer.from([1]), this.root(start, start + k), this.root(start + k, end)]))
          .digest();
      this.#known.set(key, hash);
    }
    return hash;
  }

  /** PATH(m, D[start:end]), section 2.1.1. */
  path(m: number, start: number, end: number): Buffer[] {
    if (end - start === 1) return [];
    const k = split(end - start);
    return m < k ? [...this.path(m, start, start + k), this.root(start + k, end)] : [...this.path(m - k, start + k, end), this.root(start, start + k)];
  }

  /** SUBPROOF(m, D[start:end], whole), section 2.1.2; PROOF(m, D[n]) is SUBPROOF(m, D[0:n], true). */
  proof(m: number, start: number, end: number, whole = true): Buffer[] {
    if (m === end - start) return whole ? [] : [this.root(start, end)];
    const k = split(end - start);
    return m <= k ? [...this.proof(m, start, start + k, whole), this.root(start + k, end)] : [...this.proof(m - k, start + k, end, false), this.root(start, start + k)];
  }

  async node(level: number, index: number): Promise<Buffer> {
    const width = 2 ** level;
    if ((index + 1) * width > this.#entries.length) throw new Error(`${index} of level ${level} is not within the tree`);
    return this.root(index * width, (index + 1) * width);
  }
}

/** The largest power of two that is smaller than n. */
function split(n: number): number {
  let k = 1;
  while (k * 2 < n) k *= 2;
  return k;
}

/** Entries that differ. */
export function numberedEntries(count: number): Buffer[] {
  return Array.from({ length: count }, (_, index) => Buffer.from(`entry ${index}`));
}
