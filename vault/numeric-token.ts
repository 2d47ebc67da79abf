/**
 * Numeric tokens: for systems that have room for nothing but a card number. As long as the card number, with its last four digits,
 * and never a possible card number: they begin with a prefix that no issuer has (numeric-token-prefix.json) and never pass Luhn.
 * Pure.
 *
 * A token of 16 digits has 10 random ones, one in ten of which would pass Luhn: 9 * 10^9 for each tenant and last four; of 15 digits
 * 9 * 10^8. They are drawn at random, so a share of them that is in use is the chance that a new one is taken.
 */
import source from './numeric-token-prefix.json' with { type: 'json' };
import { luhn } from './pan.ts';
import type { RandomBytes } from './token.ts';

const PREFIX: string = source.prefix;
const ZERO = 0x30;
/** Below this a token would have too few random digits. */
export const MIN_NUMERIC_DIGITS = 15;
const MAX_NUMERIC_DIGITS = 19;
/** Digits of a byte that is below this are uniform. */
const REJECT_FROM = 250;

/**
 * A new numeric token of `length` digits (15 to 19) that ends in `last4`.
 *
 * @throws Error for another length, or when the random source gives nothing usable.
 */
export function makeNumericToken(length: number, last4: string, random: RandomBytes): string {
  if (length < MIN_NUMERIC_DIGITS || length > MAX_NUMERIC_DIGITS || last4.length !== 4) throw new Error('a numeric token has 15 to 19 digits');
  const digits = Buffer.allocUnsafe(length);
  digits.write(PREFIX, 0, 'latin1');
  digits.write(last4, length - 4, 'latin1');
  for (let draws = 0; draws < 100; draws += 1) {
    let at = PREFIX.length;
    for (const byte of random(32)) {
      if (at === length - 4) break;
      if (byte < REJECT_FROM) digits[at++] = ZERO + (byte % 10);
    }
    // Nine draws in ten are good.
    if (at === length - 4 && !luhn(digits, 0, length)) return digits.toString('latin1');
  }
  throw new Error('the random source is not random');
}

/** Whether `text` has the form of a numeric token. Says nothing about whether such a token was ever made. */
export function isNumericToken(text: string): boolean {
  const { length } = text;
  if (length < MIN_NUMERIC_DIGITS || length > MAX_NUMERIC_DIGITS || !text.startsWith(PREFIX)) return false;
  const digits = Buffer.from(text, 'latin1');
  for (let i = 0; i < length; i += 1) if (text.charCodeAt(i) < ZERO || text.charCodeAt(i) > ZERO + 9) return false;
  return !luhn(digits, 0, length);
}
