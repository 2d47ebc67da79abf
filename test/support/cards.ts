/**
 * Card numbers for tests and measurements, made at run time as bytes: no number stands in the sources, and none becomes a JavaScript
 * string, so a scan of the process that made them finds only what the code under test left behind.
 *
 * Every number is `411111` (the well-known Visa test range of 4111 1111 1111 1111) || nine digits that depend on n || Luhn check digit.
 */

/** Length of every number here, in digits and so in ASCII bytes. */
export const cardDigits = 16;

/** How many distinct numbers there are: n runs from 0 to cardCount - 1. */
export const cardCount = 1_000_000_000;

const prefix = Buffer.from('411111', 'latin1');

// Coprime to 10, so that n -> n * stride mod 10^9 visits every value once; n * stride stays below 2^53.
const stride = 2_654_437;
const seedStride = 7_368_787;

/**
 * Writes the n-th test number of `seed` as 16 ASCII digits into `out` at byte `at` and keeps nothing of it. Distinct n (0 <= n < 10^9)
 * give distinct numbers under one seed; the same (n, seed) gives the same number in every process. Two seeds share the same 10^9 numbers in
 * another order (seed: a non-negative integer): parts of a test that must not meet use one seed and ranges of n that do not overlap. Neighbouring n differ in their last
 * four digits, so a cap on numbers that share BIN and last four is met late. Throws RangeError if n is out of range or `out` too short.
 */
export function cardNumber(n: number, out: Uint8Array, at = 0, seed = 0): void {
  if (!Number.isInteger(n) || n < 0 || n >= cardCount) throw new RangeError('card index out of range');
  if (at < 0 || at + cardDigits > out.length) throw new RangeError('no room for a card number');
  let counter = (n * stride + (seed % 1_000_003) * seedStride) % cardCount;
  out.set(prefix, at);
  for (let i = 14; i >= prefix.length; i--) {
    out[at + i] = 0x30 + (counter % 10);
    counter = Math.floor(counter / 10);
  }
  // ISO/IEC 7812-1 Annex B: from the right, every second digit beginning beside the check digit is doubled; here those at even places.
  let sum = 0;
  for (let i = 0; i < 15; i++) {
    const digit = out[at + i]! - 0x30;
    sum += i % 2 === 1 ? digit : digit > 4 ? digit * 2 - 9 : digit * 2;
  }
  out[at + 15] = 0x30 + ((10 - (sum % 10)) % 10);
}

/** Returns a Buffer of 17 * count bytes that the caller owns: numbers `first` to `first + count - 1` of `seed`, each with a line feed after it. This is the form of the memory scanner's needle file. */
export function cardLines(first: number, count: number, seed = 0): Buffer {
  const lines = Buffer.alloc(count * (cardDigits + 1), 0x0a);
  for (let i = 0; i < count; i++) cardNumber(first + i, lines, i * (cardDigits + 1), seed);
  return lines;
}
