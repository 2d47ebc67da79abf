/**
 * Finds any of many digit strings in raw memory, as ASCII and as UTF-16LE, in one pass whose cost hardly depends on how many there are.
 * Pure: bytes in, matches out.
 */

export type Encoding = 'ascii' | 'utf16le';

export interface Match {
  /** Index of the needle among the distinct needles. */
  readonly needle: number;
  /** Byte offset of the first digit in the scanned data. */
  readonly offset: number;
  /** Bytes covered. */
  readonly bytes: number;
  readonly encoding: Encoding;
  /** The whole needle, or only its last digits: what stays when the allocator has written its links over the head of a freed block. */
  readonly part: 'whole' | 'tail';
}

const minDigits = 8;
const maxDigits = 19;

/** Bytes to carry from one chunk into the next so that no match across the border is missed: the longest match (19 UTF-16 units) and eight neighbours. */
export const carryBytes = maxDigits * 2 + 8;

const lineFeed = 0x0a;
const isDigit = (byte: number): boolean => byte >= 0x30 && byte <= 0x39;

/** Open-addressing hash table over digit strings that lie in one Buffer: no string is ever made, and a lookup reads the scanned bytes in place. */
class DigitTable {
  readonly lengths: number[] = [];
  readonly #bytes: Buffer;
  readonly #slots: Int32Array;
  readonly #starts: number[] = [];
  readonly #digits: number[] = [];
  readonly #needles: number[] = [];

  constructor(bytes: Buffer, expected: number) {
    this.#bytes = bytes;
    this.#slots = new Int32Array(2 ** Math.ceil(Math.log2(Math.max(expected, 1) * 4)));
  }

  /** False if these digits are in the table already. */
  add(start: number, digits: number, needle: number): boolean {
    const mask = this.#slots.length - 1;
    let slot = this.#hash(this.#bytes, start, 1, digits) & mask;
    for (let entry = this.#slots[slot]!; entry !== 0; entry = this.#slots[slot]!) {
      if (this.#equals(entry - 1, this.#bytes, start, 1, digits)) return false;
      slot = (slot + 1) & mask;
    }
    this.#starts.push(start);
    this.#digits.push(digits);
    this.#needles.push(needle);
    this.#slots[slot] = this.#starts.length;
    if (!this.lengths.includes(digits)) this.lengths.push(digits);
    return true;
  }

  /** The needle whose digits stand at `start`, `step` bytes apart, or -1. */
  find(data: Uint8Array, start: number, step: number, digits: number): number {
    const mask = this.#slots.length - 1;
    let slot = this.#hash(data, start, step, digits) & mask;
    for (let entry = this.#slots[slot]!; entry !== 0; entry = this.#slots[slot]!) {
      if (this.#equals(entry - 1, data, start, step, digits)) return this.#needles[entry - 1]!;
      slot = (slot + 1) & mask;
    }
    return -1;
  }

  #hash(data: Uint8Array, start: number, step: number, digits: number): number {
    let hash = digits;
    for (let i = 0, at = start; i < digits; i++, at += step) hash = Math.imul(hash ^ data[at]!, 0x01000193);
    return (hash ^ (hash >>> 15)) >>> 0;
  }

  #equals(entry: number, data: Uint8Array, start: number, step: number, digits: number): boolean {
    if (this.#digits[entry] !== digits) return false;
    const own = this.#starts[entry]!;
    for (let i = 0; i < digits; i++) if (this.#bytes[own + i] !== data[start + i * step]) return false;
    return true;
  }
}

export class NeedleFinder {
  /** Distinct needles. */
  readonly count: number;
  /** Places where a tail was looked up so far: times count / 10^tailDigits, it is the number of tails to expect by chance. */
  tailLookups = 0;
  readonly #whole: DigitTable;
  readonly #tails: DigitTable | null;
  readonly #tailDigits: number;
  readonly #stride: number;

  /**
   * `lines` holds needles of 8 to 19 ASCII digits, each ended by a line feed (the last one may lack it); repeated ones count once. It is
   * borrowed for the finder's life. `tailDigits` above 0 also looks for the last so many digits of each needle where the whole is not there.
   * Throws Error, without the content, if a line is anything else or there is none.
   */
  constructor(lines: Buffer, tailDigits = 0) {
    const starts: number[] = [];
    const lengths: number[] = [];
    for (let start = 0; start < lines.length; ) {
      const found = lines.indexOf(lineFeed, start);
      const end = found === -1 ? lines.length : found;
      const digits = end - start;
      if (digits < minDigits || digits > maxDigits) throw new Error('a needle must have 8 to 19 digits');
      for (let i = start; i < end; i++) if (!isDigit(lines[i]!)) throw new Error('a needle must consist of digits');
      starts.push(start);
      lengths.push(digits);
      start = end + 1;
    }
    if (starts.length === 0) throw new Error('there are no needles');
    const shortest = Math.min(...new Set(lengths));
    if (tailDigits !== 0 && (tailDigits < minDigits || tailDigits >= shortest)) throw new Error('a tail must have 8 digits or more and be shorter than every needle');
    this.#whole = new DigitTable(lines, starts.length);
    this.#tails = tailDigits === 0 ? null : new DigitTable(lines, starts.length);
    this.#tailDigits = tailDigits;
    let count = 0;
    for (const [i, start] of starts.entries()) {
      const digits = lengths[i]!;
      if (!this.#whole.add(start, digits, count)) continue;
      this.#tails?.add(start + digits - tailDigits, tailDigits, count);
      count++;
    }
    this.count = count;
    // A run of m ASCII digits has one of them at every m-th byte. A UTF-16LE run has them at every second byte of 2m - 1: two neighbours
    // of an odd stride s <= m - 1 both fall into it and differ in parity, so one of them is a digit. So most bytes need not be looked at.
    const units = tailDigits === 0 ? shortest : tailDigits;
    this.#stride = (units - 1) % 2 === 1 ? units - 1 : units - 2;
  }

  /**
   * Reports every match in data[0, length) that ends after byte `from`: those that end before were seen when these bytes closed the chunk
   * before. A needle inside a longer run of digits counts.
   */
  scan(data: Uint8Array, length: number, from: number, onMatch: (match: Match) => void): void {
    let asciiDone = 0;
    const wideDone = [0, 0];
    for (let i = this.#stride - 1; i < length; i += this.#stride) {
      if (!isDigit(data[i]!)) continue;
      if (i >= asciiDone) {
        let start = i;
        while (start > 0 && isDigit(data[start - 1]!)) start--;
        let end = i + 1;
        while (end < length && isDigit(data[end]!)) end++;
        this.#searchRun(data, start, end - start, 1, from, onMatch);
        asciiDone = end;
      }
      const parity = i % 2;
      if (i + 1 < length && data[i + 1] === 0 && i >= wideDone[parity]!) {
        let start = i;
        while (start >= 2 && data[start - 1] === 0 && isDigit(data[start - 2]!)) start -= 2;
        let end = i + 2;
        while (end + 1 < length && isDigit(data[end]!) && data[end + 1] === 0) end += 2;
        this.#searchRun(data, start, (end - start) / 2, 2, from, onMatch);
        wideDone[parity] = end;
      }
    }
  }

  #searchRun(data: Uint8Array, start: number, digits: number, step: 1 | 2, from: number, onMatch: (match: Match) => void): void {
    const encoding = step === 1 ? 'ascii' : 'utf16le';
    for (const size of this.#whole.lengths) {
      const firstNew = Math.max(0, Math.floor((from - start) / step) - size + 1);
      for (let first = firstNew; first + size <= digits; first++) {
        const offset = start + first * step;
        const needle = this.#whole.find(data, offset, step, size);
        if (needle !== -1) onMatch({ needle, offset, bytes: size * step, encoding, part: 'whole' });
      }
    }
    if (this.#tails === null) return;
    const size = this.#tailDigits;
    const firstNew = Math.max(0, Math.floor((from - start) / step) - size + 1);
    for (let first = firstNew; first + size <= digits; first++) {
      const offset = start + first * step;
      this.tailLookups++;
      const needle = this.#tails.find(data, offset, step, size);
      if (needle === -1) continue;
      const wholeHere = this.#whole.lengths.some((whole) => first + size >= whole && this.#whole.find(data, offset - (whole - size) * step, step, whole) !== -1);
      if (!wholeHere) onMatch({ needle, offset, bytes: size * step, encoding, part: 'tail' });
    }
  }
}
