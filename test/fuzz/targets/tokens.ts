/** The token parsers, and the makers: the input is a text, and then the random source of new tokens. */
import { holdsCardNumber } from '../../../vault/card-scan.ts';
import { isNumericToken, makeNumericToken } from '../../../vault/numeric-token.ts';
import source from '../../../vault/numeric-token-prefix.json' with { type: 'json' };
import { TOKEN_LENGTH, makeToken, parseToken } from '../../../vault/token.ts';
import { passesLuhn } from '../../support/made-cards.ts';
import type { Target } from '../target.ts';

const alphabet = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';

/** What token.ts says of an opaque token, in big integers and without its tables. */
function isOpaque(text: string): boolean {
  if (!/^tok_[0-9A-Za-z]{32}$/u.test(text) || /[0-9]{12}/u.test(text)) return false;
  const values = Array.from(text.slice(4), (letter) => BigInt(alphabet.indexOf(letter)));
  const check = values.slice(0, 28).reduce((sum, value, k) => sum + value * 63n ** BigInt(28 - k), 0n) % 14_776_331n;
  return check === values.slice(28).reduce((sum, value) => sum * 62n + value, 0n);
}

function isNumeric(text: string): boolean {
  return /^[0-9]{15,19}$/u.test(text) && text.startsWith(source.prefix) && !passesLuhn(text);
}

function check(text: string): 'opaque' | 'numeric' | null {
  const format = parseToken(text)?.format ?? null;
  if (format !== (isOpaque(text) ? 'opaque' : isNumeric(text) ? 'numeric' : null)) throw new Error('a text is taken for what it is not');
  if (isNumericToken(text) !== (format === 'numeric')) throw new Error('the two parsers disagree');
  if (format !== null && holdsCardNumber(text)) throw new Error('a token is taken for a card number');
  return format;
}

/** What `make` returns, or null where the random source is of no use, as one of a few bytes is not. */
function made(make: () => string): string | null {
  try {
    return make();
  } catch (error) {
    if ((error as Error).message === 'the random source is not random') return null;
    throw error;
  }
}

export const target: Target = {
  parallel: 1,
  maxBytes: 128,
  words: ['tok_', source.prefix, '000000', 'zzzzzz', '111111111111'],
  run(input) {
    const text = input.toString('utf8');
    const format = check(text);
    check(input.toString('latin1'));
    if (format === 'opaque') {
      for (let at = 0; at < text.length; at++) if (parseToken(text.slice(0, at) + (text[at] === 'x' ? 'y' : 'x') + text.slice(at + 1)) !== null) throw new Error('a token with a wrong character is taken');
    }
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      value = { toString: () => text };
    }
    if (typeof value !== 'string' && parseToken(value) !== null) throw new Error('what is no text is taken for a token');

    let at = 0;
    const random = (count: number): Uint8Array => Uint8Array.from({ length: count }, () => input[at++ % Math.max(1, input.length)] ?? 0);
    const seconds = input.length >= 4 ? input.readUInt32BE(0) : 0;
    const opaque = made(() => makeToken(new Date(seconds * 1000), random));
    if (opaque !== null && (opaque.length !== TOKEN_LENGTH || check(opaque) !== 'opaque')) throw new Error('a new token is none');
    const last4 = String(seconds % 10_000).padStart(4, '0');
    const length = 15 + ((input[4] ?? 0) % 5);
    const numeric = made(() => makeNumericToken(length, last4, random));
    if (numeric !== null && (numeric.length !== length || !numeric.endsWith(last4) || check(numeric) !== 'numeric')) throw new Error('a new numeric token is none');
    return undefined;
  },
};
