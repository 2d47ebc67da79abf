import { randomFillSync } from 'node:crypto';
import { isNumericToken } from './numeric-token.ts';

// tok_ (4) || Unix seconds (6) || random (22) || check (4), all base62 after the prefix.
const PREFIX = 'tok_';
const TIME_CHARS = 6;
const RANDOM_CHARS = 22;
const CHECK_CHARS = 4;
const PAYLOAD_END = PREFIX.length + TIME_CHARS + RANDOM_CHARS;

/** The characters of an opaque token, which are as many bytes: all of them ASCII. */
export const TOKEN_LENGTH = PAYLOAD_END + CHECK_CHARS;

// ASCII order, so that tokens sort by the second in which they were made under COLLATE "C": neighbours in time are
// neighbours in the index, and a new token dirties a page that is already in memory.
const ALPHABET = Buffer.from('0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz', 'latin1');
const BASE = ALPHABET.length;
const VALUE = new Int8Array(128).fill(-1);
for (let i = 0; i < BASE; i++) VALUE[ALPHABET[i]!] = i;

// The largest multiple of 62 in a byte: a byte from here on is thrown away, so that every character is equally likely.
const REJECT_FROM = 256 - (256 % BASE);

// The check is a code over the prime field GF(p), p = 62^4 - 5, the largest prime that four characters can hold:
//     check = sum of v[i] * 63^(28 - i) mod p, over the values v[0] to v[27] of the payload's characters, written in base 62.
// - One wrong character adds d * 63^k with 0 < |d| < 62: never 0 mod p. One wrong check character is another check.
// - Two swapped neighbours add (a - b)(63^k - 63^(k-1)): never 0 mod p, as 63^k differs from 63^(k-1).
// - 63 is the smallest base for which also no two wrong characters, wherever they stand (in the check too), go unseen: no
//   63^j (1 <= j < 28), and no 63^k / 62^m for the check's characters, is a quotient of two differences below 62 mod p.
//   token.test.ts proves this by trying every case. So the distance of the code is at least 3.
// - Of 62^4 possible checks exactly one fits a payload, so random text passes with a chance of 1 in 14,776,336.
// A weighted sum with a small base was taken over a CRC because its strength against swaps and pairs can be read off, and
// because every step stays below 2^31.
const CHECK_PRIME = 14_776_331;
const CHECK_BASE = 63;

// Twelve digits in a row could be a card number: no token has them, and text that has them is no token. So the scan for card
// numbers passes every token as it stands, wherever it stands, and needs no exemption for them.
const MAX_DIGITS_IN_A_ROW = 11;

/**
 * `count` bytes from a cryptographic source. They are borrowed until the next call; the consumer does not keep them.
 * Throws when the source fails.
 */
export type RandomBytes = (count: number) => Uint8Array;

/**
 * A RandomBytes that draws from the system's generator 8 KiB at a time, as a call for each token would cost more than the
 * token. What was handed out is overwritten by the next refill. Throws for counts above 8192.
 */
export function pooledRandom(): RandomBytes {
  const pool = Buffer.allocUnsafeSlow(8192);
  let used = pool.length;
  return (count) => {
    if (count > pool.length) throw new Error('more random bytes were asked for than the pool holds');
    if (used + count > pool.length) {
      randomFillSync(pool);
      used = 0;
    }
    used += count;
    return pool.subarray(used - count, used);
  };
}

/**
 * A new opaque token: 36 characters, of which 22 are uniformly random (131 bits). Tokens sort by their second.
 * Throws a plain Error when the clock is before 1970 or after 3769, or when the random source gives nothing usable.
 */
export function makeToken(now: Date, random: RandomBytes): string {
  let seconds = Math.floor(now.getTime() / 1000);
  if (!(seconds >= 0 && seconds < BASE ** TIME_CHARS)) throw new Error('the clock is outside the range of a token');
  const bytes = Buffer.allocUnsafe(TOKEN_LENGTH);
  bytes.write(PREFIX, 'latin1');
  for (let i = PREFIX.length + TIME_CHARS - 1; i >= PREFIX.length; i--) {
    bytes[i] = ALPHABET[seconds % BASE]!;
    seconds = Math.floor(seconds / BASE);
  }
  // A draw that leaves twelve digits in a row comes about once in 10^8 tokens. A sound source cannot fail ten times.
  for (let draws = 0; draws < 10; draws++) {
    fillUniform(bytes, PREFIX.length + TIME_CHARS, PAYLOAD_END, random);
    let check = checkOf(bytes, 0);
    for (let i = TOKEN_LENGTH - 1; i >= PAYLOAD_END; i--) {
      bytes[i] = ALPHABET[check % BASE]!;
      check = Math.floor(check / BASE);
    }
    if (longestDigitRun(bytes, 0) <= MAX_DIGITS_IN_A_ROW) return bytes.toString('latin1');
  }
  throw new Error('the random source is not random');
}

function fillUniform(bytes: Uint8Array, start: number, end: number, random: RandomBytes): void {
  let at = start;
  // 32 bytes give 22 characters in all but one of 10^11 draws.
  for (let draws = 0; draws < 10; draws++) {
    const drawn = random(32);
    for (let i = 0; i < drawn.length && at < end; i++) {
      const byte = drawn[i]!;
      if (byte < REJECT_FROM) bytes[at++] = ALPHABET[byte % BASE]!;
    }
    if (at === end) return;
  }
  throw new Error('the random source is not random');
}

function checkOf(bytes: ArrayLike<number>, start: number): number {
  let sum = 0;
  for (let i = start + PREFIX.length; i < start + PAYLOAD_END; i++) sum = ((sum + VALUE[bytes[i]!]!) * CHECK_BASE) % CHECK_PRIME;
  return sum;
}

function longestDigitRun(bytes: ArrayLike<number>, start: number): number {
  let longest = 0;
  let run = 0;
  for (let i = start; i < start + TOKEN_LENGTH; i++) {
    run = VALUE[bytes[i]!]! >= 0 && VALUE[bytes[i]!]! < 10 ? run + 1 : 0;
    if (run > longest) longest = run;
  }
  return longest;
}

const scratch = new Uint8Array(TOKEN_LENGTH);

/**
 * What kind of token `text` is, or null when it is none: no numeric token either, and wrong length, prefix, alphabet or check, twelve
 * digits in a row, or no string at all. Takes any value from outside, at most 36 steps whatever its length, and never throws. It says nothing
 * about whether such a token was ever made.
 */
export function parseToken(text: unknown): { readonly format: 'opaque' | 'numeric' } | null {
  if (typeof text !== 'string') return null;
  if (isNumericToken(text)) return { format: 'numeric' };
  if (text.length !== TOKEN_LENGTH || !text.startsWith(PREFIX)) return null;
  for (let i = 0; i < TOKEN_LENGTH; i++) {
    const code = text.charCodeAt(i);
    if (i >= PREFIX.length && (code > 127 || VALUE[code]! < 0)) return null;
    scratch[i] = code;
  }
  let given = 0;
  for (let i = PAYLOAD_END; i < TOKEN_LENGTH; i++) given = given * BASE + VALUE[scratch[i]!]!;
  if (given !== checkOf(scratch, 0) || longestDigitRun(scratch, 0) > MAX_DIGITS_IN_A_ROW) return null;
  return { format: 'opaque' };
}
