import { isIssuedPrefix } from '../../vault/pan.ts';
import { passesLuhn } from '../support/made-cards.ts';

const edge = String.raw`[|:()[\]<>!?*&$@~"'#{}]`;
const chains = new RegExp(`(?:^|(?<=${edge}))\\+?[0-9]{1,19}(?:[ ./-][0-9]{1,19}){0,20}(?=$|${edge})`, 'gu');
/** A Brazilian company's tax number as it is written, which is passed over where its check digits are right. */
const cnpj = /[0-9]{2}\.[0-9]{3}\.[0-9]{3}\/[0-9]{4}-[0-9]{2}/u;

/** Whether a card number stands in the text in whole groups of ASCII digits, with nothing but more such groups beside it. The least that any scan must find, by the rules of card-scan.ts. */
export function hasPlainCard(text: string): boolean {
  for (const [chain] of text.matchAll(chains)) {
    const groups = chain.replace('+', '').split(/[ ./-]/u);
    // A phone number.
    if (chain.startsWith('+') && groups.join('').length <= 13) continue;
    if (cnpj.test(chain)) continue;
    for (let first = 0; first < groups.length; first++) {
      let digits = '';
      for (let next = first; next < groups.length && digits.length < 19; next++) {
        digits += groups[next]!;
        if (digits.length >= 12 && digits.length <= 19 && passesLuhn(digits) && isIssuedPrefix(Number(digits.slice(0, 6)), digits.length)) return true;
      }
    }
  }
  return false;
}
