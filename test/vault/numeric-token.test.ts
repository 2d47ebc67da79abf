import * as fc from 'fast-check';
import t from 'tap';
import { takeCards } from '../../vault/body.ts';
import { holdsCardNumber } from '../../vault/card-scan.ts';
import { isNumericToken, makeNumericToken } from '../../vault/numeric-token.ts';
import { MAX_PAN_DIGITS, MIN_PAN_DIGITS, inIssuedRange, isIssuedPrefix } from '../../vault/pan.ts';
import { parseToken, pooledRandom, type RandomBytes } from '../../vault/token.ts';
import { passesLuhn, seeded } from '../support/made-cards.ts';
import { cardText } from '../support/test-cards.ts';

const lengths = [15, 16, 17, 18, 19] as const;
const random = pooledRandom();
/** The same bytes in every run. */
const seededBytes = (seed: number): RandomBytes => {
  const next = seeded(seed);
  return (count) => Buffer.from(Array.from({ length: count }, () => next(256)));
};
const last4 = fc.nat(9999).map((n) => String(n).padStart(4, '0'));
/** Numeric tokens of every length, by the real source. */
const tokens = fc.tuple(fc.constantFrom(...lengths), last4).map(([length, tail]) => makeNumericToken(length, tail, random));
const someTokens = (each: number): string[] => lengths.flatMap((length) => Array.from({ length: each }, (_, n) => makeNumericToken(length, String((n * 7919) % 10_000).padStart(4, '0'), random)));

t.test('a numeric token is as long as its card number, has its last four digits, begins with 99, never passes Luhn, and lies in no issued range', async () => {
  fc.assert(
    fc.property(fc.constantFrom(...lengths), last4, (length, tail) => {
      const token = makeNumericToken(length, tail, random);
      const digits = Buffer.from(token, 'latin1');
      return new RegExp(`^99[0-9]{${length - 6}}${tail}$`, 'u').test(token) && !passesLuhn(token) && !inIssuedRange(digits, 0, digits.length);
    }),
    { numRuns: 5000 },
  );
});

t.test('no range of any brand, of any length, begins as a numeric token does', async (t) => {
  let issued = 0;
  for (let prefix = 990_000; prefix <= 999_999; prefix += 1) for (let length = MIN_PAN_DIGITS; length <= MAX_PAN_DIGITS; length += 1) if (isIssuedPrefix(prefix, length)) issued += 1;
  t.equal(issued, 0);
  t.ok(isIssuedPrefix(411_111, 16), 'the table is not empty');
});

t.test('what is made is a token, and says which kind', async () => {
  fc.assert(fc.property(tokens, (token) => isNumericToken(token) && parseToken(token)?.format === 'numeric'), { numRuns: 2000 });
});

t.test('what is no numeric token is none: another length or prefix, other characters, and digits that pass Luhn', async (t) => {
  fc.assert(
    fc.property(tokens, fc.nat(), fc.constantFrom(' ', '-', 'a', '\u0000', '\u0660', '\uff11', '\u0131', '+', '.'), (token, place, character) => {
      const at = place % token.length;
      const forms = [
        token.slice(0, at) + character + token.slice(at + 1),
        token.slice(0, at) + character + token.slice(at),
        token.slice(0, 14),
        token + '0'.repeat(20 - token.length),
        ...['98', '89', '90', '00', '09'].map((prefix) => prefix + token.slice(2)),
      ];
      return forms.every((form) => !isNumericToken(form) && parseToken(form) === null);
    }),
    { numRuns: 2000 },
  );
  // Of the ten last digits one passes Luhn: that one is no token, the nine others are.
  for (const token of someTokens(40)) {
    const ends = Array.from({ length: 10 }, (_, digit) => `${token.slice(0, -1)}${digit}`);
    t.same(ends.map((end) => isNumericToken(end)), ends.map((end) => !passesLuhn(end)));
    t.equal(ends.filter((end) => parseToken(end) === null).length, 1);
  }
  for (const value of [undefined, null, 9_912_345_678_901_234, 9_912_345_678_901_234n, ['99'], '', '99']) t.equal(parseToken(value), null);
  t.equal(isNumericToken('9'.repeat(1_000_000)), false, 'and the length is looked at first');
});

t.test('each digit is equally likely, at each place', async (t) => {
  for (const length of lengths) {
    const bytes = seededBytes(20_261_124 + length);
    const places = length - 6;
    const counts = Array.from({ length: places }, () => Array.from({ length: 10 }, () => 0));
    const made = 20_000;
    for (let n = 0; n < made; n += 1) {
      const token = makeNumericToken(length, '1234', bytes);
      for (let place = 0; place < places; place += 1) counts[place]![Number(token[2 + place])]! += 1;
    }
    const chiSquare = (observed: readonly number[], total: number): number => observed.reduce((sum, count) => sum + (count - total / 10) ** 2 / (total / 10), 0);
    // 9 degrees of freedom: 35 is exceeded once in 17,000 times. The seed is fixed, so it is exceeded always or never.
    t.same(counts.map((observed) => chiSquare(observed, made)).filter((value) => value > 35), [], `${length} digits, place by place`);
    // All places together: sensitive enough to see a byte taken modulo 10 without a rejection.
    t.ok(chiSquare(Array.from({ length: 10 }, (_, digit) => counts.reduce((sum, observed) => sum + observed[digit]!, 0)), made * places) < 35, `${length} digits, together`);
  }
});

t.test('tokens of one card differ in all that is random, and do not repeat', async (t) => {
  const made = new Set(Array.from({ length: 10_000 }, () => makeNumericToken(16, '1111', random)));
  // 10,000 of 9 * 10^9: two are the same once in 180 runs, three pairs once in 36 million.
  t.ok(made.size >= 9998, `${made.size}`);
});

t.test('every other length is refused, of the token and of what it ends with', async (t) => {
  for (const length of [-1, 0, 4, 12, 13, 14, 20, 32, Number.POSITIVE_INFINITY]) t.throws(() => makeNumericToken(length, '1111', random), { message: 'a numeric token has 15 to 19 digits' }, `${length}`);
  for (const tail of ['', '1', '111', '11111']) t.throws(() => makeNumericToken(16, tail, random), { message: 'a numeric token has 15 to 19 digits' }, JSON.stringify(tail));
});

t.test('a broken random source throws instead of making a weak token', async (t) => {
  for (const length of lengths) {
    t.throws(() => makeNumericToken(length, '1111', (count) => Buffer.alloc(count, 250)), { message: 'the random source is not random' }, 'bytes that would favour some digits');
    t.throws(() => makeNumericToken(length, '1111', () => Buffer.alloc(0)), { message: 'the random source is not random' });
    t.throws(() => makeNumericToken(length, '1111', () => { throw new Error('no entropy'); }), { message: 'no entropy' });
  }
  // A source that repeats what passes Luhn: the same digits again and again are not a token.
  const passing = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map((digit) => `99${String(digit).repeat(10)}1111`).findIndex(passesLuhn);
  t.throws(() => makeNumericToken(16, '1111', (count) => Buffer.alloc(count, passing)), { message: 'the random source is not random' });
});

t.test('however a numeric token is sent, it is not taken for a card number', async (t) => {
  const inUrls = (token: string): string[] => {
    const escaped = Array.from(token).map((digit) => `%3${digit}`).join('');
    return [token, `/v1/tokens/${token}`, `/v1/tokens/${token}/suspend`, `/v1/tokens/${token}/resume`, `/v1/tokens?token=${token}&limit=10`, `/v1/tokens/${escaped}`, `/v1/tokens/${escaped.replaceAll('%', '%25')}`, `/v1/tokens/${token}#2029-12`, `Bearer ${token}`, `token=${token}; path=/`, `${token}:1`, `token ${token}`, `"${token}"`, `${token},${token}`];
  };
  const inBodies = (token: string, other: string): string[] => {
    const escaped = Array.from(token).map((digit) => `\\u003${digit}`).join('');
    return [
      JSON.stringify({ token }),
      JSON.stringify({ token, purpose: 'capture', reference: token }),
      JSON.stringify({ tokens: [token, other, token], purpose: 'refund' }),
      JSON.stringify({ tokens: [token, other, token], purpose: 'refund' }, null, 2),
      `{"token":"${escaped}"}`,
      `{"token":${token}}`,
      `{"token" : \t"${token}"\r\n}`,
      JSON.stringify({ metadata: { [`t${token}`]: token, note: `instead of ${token}` } }),
      JSON.stringify({ [token]: 1 }),
      JSON.stringify([token]),
      JSON.stringify(token),
    ];
  };
  const all = someTokens(400);
  const faults = new Map<string, number>();
  const fault = (what: string): void => void faults.set(what, (faults.get(what) ?? 0) + 1);
  for (const [n, token] of all.entries()) {
    for (const [form, text] of inUrls(token).entries()) if (holdsCardNumber(text)) fault(`URL or header, form ${form}`);
    for (const [form, text] of inBodies(token, all[(n + 1) % all.length]!).entries()) {
      for (const where of ['none', 'single', 'batch'] as const) {
        using taken = takeCards(Buffer.from(text, 'utf8'), where);
        if (!taken.ok) fault(`body, form ${form}, ${where}`);
        else if (taken.json.toString('utf8') !== text) fault(`body, form ${form}, ${where}: changed`);
      }
    }
  }
  t.same([...faults], []);
});

t.test('beside a card number a numeric token stays as it is, and in its place it is none', async (t) => {
  const [token] = someTokens(1);
  const body = Buffer.from(JSON.stringify({ items: [{ pan: cardText(1), metadata: { replaces: token } }, { pan: token }] }), 'utf8');
  using taken = takeCards(body, 'batch');
  t.ok(taken.ok);
  if (!taken.ok) return;
  t.equal(taken.pans.length, 2);
  t.equal(taken.pans[1], null, 'a numeric token is no card number');
  t.same(taken.refused, new Map());
  t.match(taken.json.toString('utf8'), `"replaces":"${token}"`);
});
