import * as fc from 'fast-check';
import t from 'tap';
import { holdsCardNumber } from '../../vault/card-scan.ts';
import { TOKEN_LENGTH, makeToken, parseToken, pooledRandom } from '../../vault/token.ts';

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const P = 14_776_331n;
const random = pooledRandom();
const now = new Date('2026-11-24T12:00:00Z');
const someTokens = (count: number): string[] => Array.from({ length: count }, () => makeToken(now, random));

/** The check as the comment in token.ts states it, in exact arithmetic. */
function checkOf(payload: string): string {
  let sum = 0n;
  Array.from(payload).forEach((char, i) => (sum += BigInt(ALPHABET.indexOf(char)) * 63n ** BigInt(28 - i)));
  let check = '';
  for (let value = sum % P; check.length < 4; value /= 62n) check = ALPHABET[Number(value % 62n)]! + check;
  return check;
}

t.test('a token has 36 characters: prefix, second, 22 random ones, and the check as documented', async (t) => {
  for (const token of someTokens(200)) {
    t.match(token, /^tok_[0-9A-Za-z]{32}$/);
    t.equal(token.length, TOKEN_LENGTH);
    t.equal(token.slice(32), checkOf(token.slice(4, 32)));
    t.same(parseToken(token), { format: 'opaque' });
    t.notOk(holdsCardNumber(token));
  }
});

t.test('tokens sort by the second in which they were made', async () => {
  const second = fc.integer({ min: 0, max: 62 ** 6 - 1 });
  fc.assert(fc.property(second, second, (a, b) => {
    const [first, other] = [makeToken(new Date(a * 1000), random), makeToken(new Date(b * 1000 + 999), random)];
    return a === b ? first.slice(0, 10) === other.slice(0, 10) : Buffer.compare(Buffer.from(first), Buffer.from(other)) < 0 === a < b;
  }));
});

t.test('every wrong character and every swap of neighbours is caught, at every place', async (t) => {
  let tried = 0;
  for (const token of someTokens(40)) {
    for (let at = 0; at < token.length; at++) {
      for (const char of `${ALPHABET}_- .\u00e9`) {
        if (char === token[at]) continue;
        tried++;
        if (parseToken(token.slice(0, at) + char + token.slice(at + 1)) !== null) t.fail(`a wrong character at ${at} passed`);
      }
      if (at + 1 < token.length && token[at] !== token[at + 1]) {
        tried++;
        if (parseToken(token.slice(0, at) + token[at + 1] + token[at] + token.slice(at + 2)) !== null) t.fail(`a swap at ${at} passed`);
      }
    }
  }
  t.ok(tried > 90_000, `${tried} wrong tokens`);
});

t.test('for all tokens: no one or two wrong characters, nor any swap, can leave the check right', async (t) => {
  // With weights w[i] = 63^(28 - i) for the payload and -62^(3 - m) for the check, an error of d at one place and e at another
  // goes unseen only if w[i] d + w[j] e = 0 mod p, that is if w[i] / w[j] is a quotient of two differences. Within the check
  // alone an error gives another number below 62^4, which is another check. One error: w[i] d is never 0, as p is prime.
  const power = (base: bigint, exponent: bigint): bigint => {
    let result = 1n;
    for (let b = base % P, e = exponent; e > 0n; e >>= 1n, b = (b * b) % P) if ((e & 1n) === 1n) result = (result * b) % P;
    return result;
  };
  const inverse = (x: bigint): bigint => power(x, P - 2n);
  for (let k = 2n; k * k <= P; k++) if (P % k === 0n) t.fail('p is not prime');
  t.equal(62n ** 4n - P, 5n, 'every check fits four characters');
  const quotients = new Set<bigint>();
  for (let d = 1n; d < 62n; d++) for (let e = 1n; e < 62n; e++) {
    const q = (d * inverse(e)) % P;
    quotients.add(q);
    quotients.add(P - q);
  }
  for (let distance = 1n; distance < 28n; distance++) t.notOk(quotients.has(power(63n, distance)));
  for (let k = 1n; k <= 28n; k++) for (let m = 0n; m < 4n; m++) {
    if (quotients.has((power(63n, k) * inverse(62n ** m)) % P)) t.fail(`63^${k} and 62^${m}`);
  }
});

t.test('random text of the right shape passes no more often than one in 62^4', async (t) => {
  // Of 62^4 checks one fits: every 97th of one payload is tried, the right one among them.
  const [token] = someTokens(1);
  const right = Array.from(token!.slice(32)).reduce((value, char) => value * 62 + ALPHABET.indexOf(char), 0);
  let passed = 0;
  for (let i = right % 97; i < 62 ** 4; i += 97) {
    let check = '';
    for (let value = i, k = 0; k < 4; k++, value = Math.floor(value / 62)) check = ALPHABET[value % 62]! + check;
    if (parseToken(token!.slice(0, 32) + check) !== null) passed++;
  }
  t.equal(passed, 1);
});

t.test('parseToken answers null for anything else and never throws', async (t) => {
  fc.assert(fc.property(fc.anything({ withBigInt: true, withDate: true, withNullPrototype: true, withTypedArray: true, withSparseArray: true }), (value) => parseToken(value) === null));
  fc.assert(fc.property(fc.string({ unit: 'binary', minLength: 32, maxLength: 32 }), (text) => parseToken(`tok_${text}`) === null));
  const [token] = someTokens(1);
  for (const value of [undefined, null, 0, '', 'tok_', new String(token), { toString: () => token }, [token], `${token} `, ` ${token}`, `${token}0`, token!.slice(0, -1), token!.replace('tok_', 'TOK_'), 'tok_'.padEnd(1e6, '0'), Symbol('tok_')]) {
    t.equal(parseToken(value), null);
  }
});

t.test('twelve digits in a row are neither made nor accepted', async (t) => {
  const digits = '1xVda04111111111111111abcdef';
  t.equal(parseToken(`tok_${digits}${checkOf(digits)}`), null, 'a card number with a right check is no token');
  const eleven = '1xVda0a41111111111bcdefghijk';
  const check = checkOf(eleven);
  t.equal(parseToken(`tok_${eleven}${check}`) !== null, true, 'eleven are');
  let draws = 0;
  const token = makeToken(now, (count) => {
    draws++;
    return draws === 1 ? Buffer.alloc(count, 4) : random(count);
  });
  t.equal(draws, 2, 'a draw of digits only is thrown away');
  t.ok(parseToken(token));
});

t.test('bytes that would favour some characters are drawn again', async (t) => {
  let call = 0;
  const token = makeToken(now, (count) => {
    call++;
    if (call === 1) return Buffer.from(Array.from({ length: count }, (_, i) => (i % 2 === 0 ? 248 : 10))); // 248 is 4 * 62: the first to refuse
    return Buffer.from(Array.from({ length: count }, (_, i) => (i % 2 === 0 ? 255 : 247)));
  });
  t.equal(token.slice(10, 32), 'A'.repeat(16) + 'z'.repeat(6), '247 is the last of the alphabet');
  t.equal(call, 2);
});

t.test('each character is equally likely', async (t) => {
  const counts = new Map<string, number>();
  const tokens = 4000;
  for (const token of someTokens(tokens)) for (const char of token.slice(10, 32)) counts.set(char, (counts.get(char) ?? 0) + 1);
  const expected = (tokens * 22) / 62;
  let chiSquare = 0;
  for (const char of ALPHABET) chiSquare += ((counts.get(char) ?? 0) - expected) ** 2 / expected;
  t.ok(chiSquare < 150, 'chi-square of 61 degrees of freedom; a sound source exceeds 150 once in 10^9 runs');
});

t.test('a broken clock or random source throws instead of making a weak token', async (t) => {
  t.throws(() => makeToken(new Date(Number.NaN), random), { message: 'the clock is outside the range of a token' });
  t.throws(() => makeToken(new Date(-1000), random));
  t.throws(() => makeToken(new Date(62 ** 6 * 1000), random));
  t.throws(() => makeToken(now, (count) => Buffer.alloc(count, 255)), { message: 'the random source is not random' });
  t.throws(() => makeToken(now, (count) => Buffer.alloc(count, 7)), { message: 'the random source is not random' }, 'digits only, for ever');
  t.throws(() => makeToken(now, () => Buffer.alloc(0)));
});

t.test('the pool hands out fresh bytes only', async (t) => {
  const source = pooledRandom();
  const seen = new Set<string>();
  for (let i = 0; i < 3000; i++) seen.add(Buffer.from(source(16)).toString('hex'));
  t.equal(seen.size, 3000);
  t.equal(source(8192).length, 8192);
  t.throws(() => source(8193));
});
