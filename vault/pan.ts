import { inspect } from 'node:util';
import table from './brand-ranges.json' with { type: 'json' };
import { secretBytes } from '../hsm/secret-bytes.ts';

/** Shortest and longest PAN in digits: ISO/IEC 7812-1 allows up to 19; below 12 nothing is issued. */
export const MIN_PAN_DIGITS = 12;
export const MAX_PAN_DIGITS = 19;

const ZERO = 0x30;

// What an ASCII digit adds to the Luhn sum as it is, and doubled with its two decimal digits summed (ISO/IEC 7812-1 Annex B).
// Any other byte adds more than all digits of the longest text could.
const NO_DIGIT = 2 ** 30;
const PLAIN = new Int32Array(256).fill(NO_DIGIT);
const DOUBLED = new Int32Array(256).fill(NO_DIGIT);
for (let digit = 0; digit < 10; digit++) {
  PLAIN[ZERO + digit] = digit;
  DOUBLED[ZERO + digit] = digit < 5 ? 2 * digit : 2 * digit - 9;
}

/**
 * Whether the ASCII digits in bytes[start, end) pass the Luhn check (ISO/IEC 7812-1 Annex B).
 * False for an empty span, a span outside the array, or one that holds anything but ASCII digits. Makes no copy; never throws.
 */
export function luhn(bytes: Uint8Array, start: number, end: number): boolean {
  if (start < 0 || start >= end || end > bytes.length) return false;
  let sum = 0;
  let i = end - 1;
  for (; i > start; i -= 2) sum += PLAIN[bytes[i]!]! + DOUBLED[bytes[i - 1]!]!;
  if (i === start) sum += PLAIN[bytes[i]!]!;
  return sum < NO_DIGIT && sum % 10 === 0;
}

// Ranges as a two-level table: a cell for each 4-digit prefix, holding a class, or 0x8000 + a page of 100 classes for the
// next two digits. 20 KB plus a few pages, so that a look-up is two loads and stays in the cache.
// Class 0 is "no range"; class k is brand CLASS_BRAND[k] with the lengths in the bits of CLASS_LENGTHS[k].
const CLASS_BRAND: string[] = ['unknown'];
const CLASS_LENGTHS: number[] = [0];
const CELLS = new Uint16Array(10_000);
let pages = new Uint8Array(0);

{
  const entries = table.ranges.map((entry) => {
    const width = entry.from.length;
    const scale = 10 ** (6 - width);
    const from = Number(entry.from) * scale;
    const to = (Number(entry.to) + 1) * scale - 1;
    if (width !== entry.to.length || width < 1 || width > 6 || !(from <= to)) throw new Error('brand-ranges.json: a range is not a range');
    let lengths = 0;
    for (const length of entry.lengths) {
      if (length < MIN_PAN_DIGITS || length > MAX_PAN_DIGITS) throw new Error('brand-ranges.json: a length is not a PAN length');
      lengths |= 1 << length;
    }
    return { brand: entry.brand, from, to, lengths };
  });
  // The widest span is laid down first, so that the narrowest wins.
  entries.sort((a, b) => b.to - b.from - (a.to - a.from));
  const classOf = new Uint8Array(1_000_000);
  for (const { brand, from, to, lengths } of entries) {
    let k = CLASS_BRAND.findIndex((known, i) => known === brand && CLASS_LENGTHS[i] === lengths);
    if (k < 0) {
      k = CLASS_BRAND.push(brand) - 1;
      CLASS_LENGTHS.push(lengths);
    }
    classOf.fill(k, from, to + 1);
  }
  const split: Uint8Array[] = [];
  for (let prefix = 0; prefix < 10_000; prefix++) {
    const page = classOf.subarray(prefix * 100, prefix * 100 + 100);
    const first = page[0]!;
    CELLS[prefix] = page.every((k) => k === first) ? first : 0x8000 + split.push(page) - 1;
  }
  pages = new Uint8Array(split.length * 100);
  split.forEach((page, i) => pages.set(page, i * 100));
}

/** The class of a number that starts with `prefix` (its first six digits, 0 to 999999) and has `length` digits; 0 for none. */
function rangeClass(prefix: number, length: number): number {
  const cell = CELLS[Math.trunc(prefix / 100)] ?? 0;
  const k = cell < 0x8000 ? cell : pages[(cell - 0x8000) * 100 + (prefix % 100)]!;
  return (CLASS_LENGTHS[k]! & (1 << length)) === 0 ? 0 : k;
}

/**
 * Whether a number of `length` digits that starts with the six digits `prefix` (0 to 999999) lies in a range that some brand
 * issues (brand-ranges.json). Never throws for numbers.
 */
export function isIssuedPrefix(prefix: number, length: number): boolean {
  return length >= MIN_PAN_DIGITS && length <= MAX_PAN_DIGITS && rangeClass(prefix, length) !== 0;
}

/**
 * Whether the ASCII digits in bytes[start, end) lie in a range that some brand issues with that length (brand-ranges.json).
 * Looks at the first six digits and the length alone: the caller checks the rest. Never throws.
 */
export function inIssuedRange(bytes: Uint8Array, start: number, end: number): boolean {
  const length = end - start;
  if (length < MIN_PAN_DIGITS || length > MAX_PAN_DIGITS || start < 0 || end > bytes.length) return false;
  return isIssuedPrefix(decimal(bytes, start, 6), length);
}

function decimal(bytes: Uint8Array, start: number, count: number): number {
  let value = 0;
  for (let i = start; i < start + count; i++) value = value * 10 + bytes[i]! - ZERO;
  return value;
}

/**
 * The only holder of a card number's digits: 12 to 19 ASCII digits that pass Luhn (ISO/IEC 7812-1). Its memory is its own or
 * a slab of other Pans, never Node's shared pool. Every way of printing it is masked; reveal() is the one way to the digits.
 *
 * `length`, `brand`, `bin` and `last4` stay readable after it is disposed: they are the truncation that may be kept
 * (PCI SSC FAQ 1091: at most the first six and the last four), and one truncation of a PAN is used everywhere.
 */
export class Pan implements Disposable {
  readonly length: number;
  readonly #slab: Buffer;
  readonly #at: number;
  readonly #class: number;
  readonly #first6: number; // -1 when the number is too short to show it
  readonly #last4: number;
  #view: Buffer | null = null;
  #wiped = false;

  private constructor(slab: Buffer, at: number, length: number) {
    this.#slab = slab;
    this.#at = at;
    this.length = length;
    const first6 = decimal(slab, at, 6);
    this.#class = rangeClass(first6, length);
    // PCI SSC FAQ 1091 speaks of first six and last four for 15 digits and more. Of 12 digits that would hide two, one of
    // which Luhn gives away. So below 15 the first six are not kept at all, and the last four leave 8 to 10 digits hidden.
    this.#first6 = length >= 15 ? first6 : -1;
    this.#last4 = decimal(slab, at + length - 4, 4);
  }

  /**
   * A Pan with a copy of `digits` in memory of its own, or null unless they are 12 to 19 ASCII digits that pass Luhn.
   * The caller still owns, and wipes, what it passed in. Never throws for bytes.
   */
  static parse(digits: Uint8Array): Pan | null {
    return Pan.parseInto(digits, 0, digits.length, null, 0);
  }

  /**
   * As parse(), for source[start, end), with the copy put into slab[at, at + 19), which must not come from Node's pool.
   * The Pan owns those bytes from then on. A null slab gives it memory of its own. For body.ts, where one allocation for
   * many Pans takes a third of the time.
   */
  static parseInto(source: Uint8Array, start: number, end: number, slab: Buffer | null, at: number): Pan | null {
    const length = end - start;
    if (length < MIN_PAN_DIGITS || length > MAX_PAN_DIGITS || !luhn(source, start, end)) return null;
    const memory = slab ?? secretBytes(length);
    for (let i = 0; i < length; i++) memory[at + i] = source[start + i]!;
    return new Pan(memory, at, length);
  }

  /** 'visa', 'mastercard', 'amex', … as in brand-ranges.json; 'unknown' when no range with this length holds the number. */
  get brand(): string {
    return CLASS_BRAND[this.#class]!;
  }

  /** The first six digits, or null below 15 digits. */
  get bin(): string | null {
    return this.#first6 < 0 ? null : String(this.#first6).padStart(6, '0');
  }

  /**
   * The first `digits` digits (6 to 8) as far as they may be kept: eight at most of 16 digits and more, six of 15, none below (PCI SSC FAQ
   * 1091). With six it is `bin`. Throws a plain Error after disposal, as more than six must be read from the digits.
   */
  head(digits: number): string | null {
    const kept = this.length >= 16 ? Math.min(digits, 8) : 6;
    return kept === 6 || this.#first6 < 0 ? this.bin : this.reveal().toString('latin1', 0, kept);
  }

  /**
   * A number that all card numbers with this truncation share, below 2^40: first six and last four digits, or where the first six are not shown
   * brand, length and last four. For counting only; it tells no digit that `bin` and `last4` do not.
   */
  get group(): number {
    return (this.#first6 < 0 ? 1_000_000 + this.#class * 20 + this.length : this.#first6) * 10_000 + this.#last4;
  }

  /** The last four digits. */
  get last4(): string {
    return String(this.#last4).padStart(4, '0');
  }

  /**
   * The digits in ASCII: borrowed, not copied. They read as zeros once this is disposed, so nothing may keep them longer.
   * Throws a plain Error after disposal: using a wiped PAN is a fault of the program.
   */
  reveal(): Buffer {
    if (this.#wiped) throw new Error('a card number was used after it was wiped');
    this.#view ??= this.#slab.subarray(this.#at, this.#at + this.length);
    return this.#view;
  }

  /** Zeroes the digits. Safe to call again. */
  [Symbol.dispose](): void {
    if (this.#wiped) return;
    this.#wiped = true;
    const end = this.#at + this.length;
    for (let i = this.#at; i < end; i++) this.#slab[i] = 0;
    this.#view = null;
  }

  /** The truncated number, stars for what is hidden: all of it that may be shown. */
  toString(): string {
    const shown = this.bin ?? '';
    return shown + '*'.repeat(this.length - shown.length - 4) + this.last4;
  }

  toJSON(): string {
    return this.toString();
  }

  [inspect.custom](): string {
    return `Pan(${this.toString()})`;
  }
}
