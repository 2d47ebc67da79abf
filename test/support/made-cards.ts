/**
 * Card numbers made when a test runs, so that no file holds one beyond those that schemes and processors publish.
 * They start with the first six digits of published test numbers; of the rest the last digit makes Luhn pass.
 */

/** First six digits and length, as in test/vectors/cards.json. */
export const TEST_RANGES = [
  { prefix: '411111', length: 16 },
  { prefix: '422222', length: 13 },
  { prefix: '555555', length: 16 },
  { prefix: '222300', length: 16 },
  { prefix: '378282', length: 15 },
  { prefix: '601111', length: 16 },
  { prefix: '305693', length: 14 },
  { prefix: '353011', length: 16 },
  { prefix: '630400', length: 16 },
  { prefix: '630400', length: 12 },
  { prefix: '630400', length: 19 },
] as const;

/** The Luhn sum of a string of digits, written as the textbook has it: the check on the product's own. */
export function passesLuhn(digits: string): boolean {
  let sum = 0;
  for (let fromRight = 0; fromRight < digits.length; fromRight++) {
    const digit = Number(digits[digits.length - 1 - fromRight]);
    const doubled = digit * 2;
    sum += fromRight % 2 === 0 ? digit : Math.floor(doubled / 10) + (doubled % 10);
  }
  return sum % 10 === 0;
}

/** `body` with the one digit behind it that makes it pass Luhn. */
export function withCheckDigit(body: string): string {
  for (let digit = 0; digit < 10; digit++) if (passesLuhn(body + String(digit))) return body + String(digit);
  throw new Error('Luhn has no digit for this');
}

/** The `serial`-th card number of a test range. */
export function madeCard(range: (typeof TEST_RANGES)[number], serial: number): string {
  const room = range.length - range.prefix.length - 1;
  return withCheckDigit(range.prefix + String(serial % 10 ** room).padStart(room, '0'));
}

/** Numbers below `bound` from a fixed seed (xorshift32), so that a rate that a test states is the same in every run. */
export function seeded(seed: number): (bound: number) => number {
  let state = seed;
  return (bound) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % bound;
  };
}

/** The `serial`-th (0 to 99,999) of the numbers of a 16-digit test range that end in `last4`: what a guesser who knows both ends would try. */
export function madeCandidate(range: (typeof TEST_RANGES)[number], last4: string, serial: number): string {
  if (range.length !== 16 || serial >= 100_000) throw new RangeError('no such candidate');
  // Luhn leaves one digit of the six hidden ones without a choice.
  for (let digit = 0; digit < 10; digit++) {
    const candidate = range.prefix + String(serial).padStart(5, '0') + String(digit) + last4;
    if (passesLuhn(candidate)) return candidate;
  }
  throw new Error('Luhn has no digit for this');
}
