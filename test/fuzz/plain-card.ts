import { isIssuedPrefix } from '../../vault/pan.ts';
import { passesLuhn } from '../support/made-cards.ts';

const edge = String.raw`[|:()[\]<>!?*&$@~"'#{}]`;
const alone = new RegExp(`(?:^|(?<=${edge}))[0-9]{12,19}(?=$|${edge})`, 'gu');

/** Whether a card number stands in the text by itself: all its digits in one run, and nothing beside it that could make it a part of something longer. The least that any scan must find. */
export function hasPlainCard(text: string): boolean {
  return (text.match(alone) ?? []).some((digits) => passesLuhn(digits) && isIssuedPrefix(Number(digits.slice(0, 6)), digits.length));
}
