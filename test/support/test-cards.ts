/** The published test numbers of test/vectors/cards.json, and made ones as text for requests. */
import { readFileSync } from 'node:fs';
import { cardDigits, cardNumber } from './cards.ts';
import { TEST_RANGES, madeCard } from './made-cards.ts';

export interface TestCard {
  readonly pan: string;
  readonly brand: string;
}

/** Published test numbers, none of which can be charged. */
export const publishedCards: readonly TestCard[] = (JSON.parse(readFileSync(new URL('../vectors/cards.json', import.meta.url), 'utf8')) as { cards: TestCard[] }).cards;

/** The n-th 16-digit number of test/support/cards.ts, as text. */
export function cardText(n: number): string {
  const digits = Buffer.alloc(cardDigits);
  cardNumber(n, digits);
  return digits.toString('latin1');
}

/** A made card of that length, in a test range: 12, 13, 14, 15, 16 or 19 digits. */
export function cardOfLength(length: number, serial: number): string {
  const range = TEST_RANGES.find((candidate) => candidate.length === length);
  if (range === undefined) throw new Error('no test range has this length');
  return madeCard(range, serial);
}
