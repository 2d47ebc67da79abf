/** The scan for card numbers in text: the input is the text, in UTF-8. */
import { takeCards } from '../../../vault/body.ts';
import { MIN_DIGITS, holdsCardNumber } from '../../../vault/card-scan.ts';
import { hasPlainCard } from '../plain-card.ts';
import type { Target } from '../target.ts';

/** Whether the body scanner takes the text for clean, where it stands in a string of JSON. */
function isCleanInBody(text: string): boolean {
  using taken = takeCards(Buffer.from(JSON.stringify([text])), 'none');
  if (!taken.ok && taken.refusal === 'invalid_request') throw new Error('what JSON.stringify wrote is refused as no JSON');
  return taken.ok;
}

export const target: Target = {
  parallel: 1,
  maxBytes: 300,
  words: ['4111111111111111', '4111 1111 1111 1111', '378282246310005', '123e4567-e89b-42d3-a456-426614174000', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', 'DE89370400440532013000', '11.222.333/0001-81', '+4930123456', '+4222222222222', '|', '%34', '%2534', '\u00a0', '\u{1d7d2}', '\uff14', '1227', ';4111111111111111=2712101', '%B4111111111111111^A^', 'tok_', '1,234,567'],
  run(input) {
    const text = input.toString('utf8');
    const found = holdsCardNumber(text);
    if (hasPlainCard(text) && !found) throw new Error('a card number in plain groups is not found');
    // With fewer characters that may be digits neither looks closer; but a body counts bytes, and so looks at short track data in odd text.
    if ((text.match(/[0-9]|[^\0-\x7f]/gu)?.length ?? 0) >= MIN_DIGITS) {
      const clean = isCleanInBody(text);
      if (!found && !clean) throw new Error('what a body may not hold passes as a header');
      // Only a URL or a header is also read with its percent escapes decoded.
      if (found && clean && !text.includes('%')) throw new Error('what a header may not hold passes in a body');
    } else if (found) throw new Error('something is found in too few digits');
    if (!holdsCardNumber(`${text}|4111111111111111|${text}`)) throw new Error('a card number is hidden by what stands around it');
    return undefined;
  },
};
