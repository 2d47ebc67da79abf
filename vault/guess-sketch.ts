/**
 * How many distinct card numbers of a group were seen, for any number of groups, in memory that is fixed from the start. Pure.
 *
 * Two layers. `cells` is a byte for each of 2^23 hashes of groups: a card sets one of its group's eight bits, and a group with six
 * set is crowded. That takes 9.7 distinct cards on average, fewer where groups share a cell; nearly all groups never get there. A crowded group
 * gets a place in `slots`, with a Bloom filter of its own of at least 16 bits for each card of the limit, and 10 bits a card. Its cards
 * are counted by the bits that are set. Places are kept in sets of eight; where a set is full the group with the fewest cards gives way.
 *
 * What follows from the sizes, for a limit of 200 (4096 bits a filter), shown with fixed seeds in test/vault/guess-sketch.test.ts:
 * - No group is refused for what other groups did, however many there are: they can only bring it into `slots` early, which counts
 *   as `crowd` (9) cards that it may not have had. Counting by bits is off by 2.5 cards (standard deviation). So 180 distinct cards of a group
 *   are granted, but for one case in 70,000.
 * - A group is stopped at 200 on average; the cards before it was crowded make that uncertain by 3. Behind that a new card is taken for a known
 *   one, and granted, in one case of 19,000. Of 1,700 groups of which all 100,000 candidates were tried 205 were granted on average,
 *   195 at least and 223 at most. Limits up to 10 are kept exactly, but for a few cases in 1,000.
 * - A group that gave way begins anew. That needs more than 32,768 crowded groups, and takes the one with the fewest cards: beside 10 million honest cards a day over
 *   2,000 bins (148,000 crowded groups) one that is guessed at 2,000 times in the day is stopped at 200 all the same.
 */
import type { SipResult } from './siphash.ts';

/** What a card is to its group: one of those that count, one that was there before, or one beyond the limit. */
export type Standing = 'within' | 'known' | 'beyond';

/** One group's filter, to be shared with other processes. */
export interface GroupFilter {
  readonly tenantId: number;
  /** Hash of the group, 8 bytes: low word, high word, little-endian. */
  readonly group: Buffer;
  readonly seen: Buffer;
}

export interface SketchOptions {
  /** Distinct cards of a group. 1 to 4000. */
  readonly limit: number;
  /** Powers of two. */
  readonly cells: number;
  readonly slotBytes: number;
}

const ways = 8;
/** Bits of a filter that a card sets. */
const bitsACard = 10;
/** Bits of a cell, of eight, that make its groups crowded. */
const crowdedBits = 6;
/** Cards that a crowded group is taken to have had: one less than it takes on average, sum of 8/8 to 8/3, because the one that crowds it is counted in its filter. */
const crowd = 9;
/** Below this limit the first layer would blur too much: every group gets a place at once. */
const minLimitForCells = 50;

const ones = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll('0', '').length);

/** Bits of a filter: a power of two, at least 16 for each card, so that a new card finds its ten bits set in one of 19,000 cases at the limit. */
export function filterBits(limit: number): number {
  return Math.max(2048, 2 ** Math.ceil(Math.log2(16 * limit)));
}

/**
 * Zeroed memory of which no more is resident than was touched: it grows into its size with the groups of the day. A plain array comes from the C library, which under
 * MALLOC_PERTURB_ (docker/find-node.js) writes all over it; what could be resized, V8 takes from the system by pages.
 */
function zeroPages(bytes: number): Uint8Array {
  return new Uint8Array(new ArrayBuffer(bytes, { maxByteLength: bytes }), 0, bytes);
}

export class GuessSketch {
  readonly #mask: number;
  readonly #filterBytes: number;
  /** Null for a small limit. */
  readonly #cells: Uint8Array | null;
  readonly #base: number;
  readonly #sets: number;
  /** Low and high word of the group in each place. */
  readonly #groups: Uint32Array;
  /** Whose group it is; 0 for a free place. */
  readonly #tenants: Int32Array;
  readonly #ones: Uint32Array;
  readonly #filters: Uint8Array;
  /** Ones of a filter that is full. */
  readonly #full: number;
  /** Ones from which a group is worth sharing. */
  readonly #shared: number;
  /** Of each place: 1 if it has bits that were not shared, plus 2 if it stands in `waiting`. */
  readonly #unshared: Uint8Array;
  readonly #waiting: number[] = [];
  #most = 0;

  constructor({ limit, cells, slotBytes }: SketchOptions) {
    const bits = filterBits(limit);
    this.#mask = bits - 1;
    this.#filterBytes = bits / 8;
    this.#cells = limit < minLimitForCells ? null : zeroPages(cells);
    this.#base = this.#cells === null ? 0 : crowd;
    const slots = slotBytes / this.#filterBytes;
    this.#sets = slots / ways;
    this.#groups = new Uint32Array(2 * slots);
    this.#tenants = new Int32Array(slots);
    this.#ones = new Uint32Array(slots);
    this.#filters = zeroPages(slotBytes);
    this.#unshared = new Uint8Array(slots);
    this.#full = this.#onesOf(limit - this.#base - 0.5);
    this.#shared = this.#cells === null ? this.#onesOf(Math.max(1, limit / 8) - 0.5) : 1;
  }

  /**
   * Counts a card of a group. `fingerprint` is at least 21 bytes that differ for each card and look random. With `refuses` a card
   * beyond the limit leaves no trace; without, it is counted on, to about 15 times the limit.
   */
  add(group: SipResult, tenantId: number, fingerprint: Uint8Array, refuses: boolean): Standing {
    let slot = this.#find(group.low, group.high);
    if (slot < 0) {
      if (this.#cells !== null) {
        const cell = group.low & (this.#cells.length - 1);
        const marked = this.#cells[cell]! | (1 << (fingerprint[20]! & 7));
        this.#cells[cell] = marked;
        if (ones[marked]! < crowdedBits) return 'within';
      }
      slot = this.#take(this.#weakest(group.high), group.low, group.high, tenantId);
    }
    const filters = this.#filters;
    const start = slot * this.#filterBytes;
    const mask = this.#mask;
    const isFull = this.#ones[slot]! >= this.#full;
    let missing = 0;
    for (let i = 0; i < 2 * bitsACard; i += 2) {
      const bit = (fingerprint[i]! | (fingerprint[i + 1]! << 8)) & mask;
      const at = start + (bit >> 3);
      const byte = filters[at]!;
      const set = byte | (1 << (bit & 7));
      if (set === byte) continue;
      missing += 1;
      if (isFull && refuses) return 'beyond';
      filters[at] = set;
    }
    if (missing === 0) return 'known';
    const count = this.#ones[slot]! + missing;
    this.#ones[slot] = count;
    if (count > this.#most) this.#most = count;
    if (count >= this.#shared) this.#toShare(slot);
    return isFull ? 'beyond' : 'within';
  }

  /** Adds what other processes, or this one before a restart, saw of a group. A filter of another size is passed over. */
  absorb({ tenantId, group, seen }: GroupFilter): void {
    if (seen.length !== this.#filterBytes || group.length !== 8) return;
    const low = group.readUInt32LE(0);
    const high = group.readUInt32LE(4);
    let slot = this.#find(low, high);
    if (slot < 0) {
      let theirs = 0;
      for (const byte of seen) theirs += ones[byte]!;
      const weakest = this.#weakest(high);
      if (this.#tenants[weakest] !== 0 && this.#ones[weakest]! >= theirs) return;
      slot = this.#take(weakest, low, high, tenantId);
    }
    const start = slot * this.#filterBytes;
    let count = 0;
    for (let i = 0; i < seen.length; i += 1) {
      const byte = this.#filters[start + i]! | seen[i]!;
      this.#filters[start + i] = byte;
      count += ones[byte]!;
    }
    this.#ones[slot] = count;
    if (count > this.#most) this.#most = count;
  }

  /** At most `limit` groups that have bits which were not shared yet, as copies. They count as shared from now on. */
  unshared(limit: number): GroupFilter[] {
    const filters: GroupFilter[] = [];
    while (filters.length < limit) {
      const slot = this.#waiting.pop();
      if (slot === undefined) break;
      const isUnshared = (this.#unshared[slot]! & 1) !== 0;
      this.#unshared[slot] = 0;
      // Its group gave way, and the next one has nothing to share yet.
      if (!isUnshared) continue;
      const group = Buffer.alloc(8);
      group.writeUInt32LE(this.#groups[2 * slot]!, 0);
      group.writeUInt32LE(this.#groups[2 * slot + 1]!, 4);
      filters.push({ tenantId: this.#tenants[slot]!, group, seen: Buffer.from(this.#filters.subarray(slot * this.#filterBytes, (slot + 1) * this.#filterBytes)) });
    }
    return filters;
  }

  /** Takes back that these were shared. */
  keepUnshared(filters: readonly GroupFilter[]): void {
    for (const { group } of filters) {
      const slot = this.#find(group.readUInt32LE(0), group.readUInt32LE(4));
      if (slot >= 0) this.#toShare(slot);
    }
  }

  /** Cards of the group that has most, as far as can be told: to about 15 times the limit. 0 while none is crowded. */
  get most(): number {
    if (this.#most === 0) return 0;
    const bits = this.#mask + 1;
    // With k bits a card, n cards leave a bit unset with the probability e^(-kn/m).
    return Math.round(this.#base - (bits / bitsACard) * Math.log(1 - Math.min(this.#most, bits - 1) / bits));
  }

  /** Bytes of memory, touched or not. */
  get bytes(): number {
    return [this.#cells, this.#groups, this.#tenants, this.#ones, this.#filters, this.#unshared].reduce((sum, array) => sum + (array?.byteLength ?? 0), 0);
  }

  #onesOf(cards: number): number {
    const bits = this.#mask + 1;
    return Math.max(1, Math.round(bits * (1 - Math.exp((-bitsACard * cards) / bits))));
  }

  #find(low: number, high: number): number {
    const first = (high & (this.#sets - 1)) * ways;
    for (let slot = first; slot < first + ways; slot += 1) {
      if (this.#groups[2 * slot] === low && this.#groups[2 * slot + 1] === high && this.#tenants[slot] !== 0) return slot;
    }
    return -1;
  }

  /** The free place of a set, or the one with the fewest cards. */
  #weakest(high: number): number {
    const first = (high & (this.#sets - 1)) * ways;
    let weakest = first;
    for (let slot = first; slot < first + ways; slot += 1) {
      if (this.#tenants[slot] === 0) return slot;
      if (this.#ones[slot]! < this.#ones[weakest]!) weakest = slot;
    }
    return weakest;
  }

  #take(slot: number, low: number, high: number, tenantId: number): number {
    if (this.#tenants[slot] !== 0) this.#filters.fill(0, slot * this.#filterBytes, (slot + 1) * this.#filterBytes);
    this.#groups[2 * slot] = low;
    this.#groups[2 * slot + 1] = high;
    this.#tenants[slot] = tenantId;
    this.#ones[slot] = 0;
    this.#unshared[slot]! &= 2;
    return slot;
  }

  #toShare(slot: number): void {
    if (this.#unshared[slot] === 3) return;
    if (this.#unshared[slot] === 0) this.#waiting.push(slot);
    this.#unshared[slot] = 3;
  }
}
