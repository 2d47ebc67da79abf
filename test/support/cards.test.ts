import t from 'tap';
import { cardCount, cardDigits, cardLines, cardNumber } from './cards.ts';

function passesLuhn(digits: Uint8Array): boolean {
  let sum = 0;
  for (let fromRight = 0; fromRight < digits.length; fromRight++) {
    const digit = digits[digits.length - 1 - fromRight]! - 0x30;
    sum += fromRight % 2 === 0 ? digit : digit * 2 - (digit > 4 ? 9 : 0);
  }
  return sum % 10 === 0;
}

await t.test('every number passes Luhn, keeps the test prefix and is distinct', async (t) => {
  const seen = new Set<number>();
  const out = Buffer.alloc(cardDigits);
  for (let n = 0; n < 200_000; n++) {
    cardNumber(n, out);
    if (!passesLuhn(out) || out.compare(Buffer.from('411111'), 0, 6, 0, 6) !== 0) t.fail('a number is not a test card');
    let key = 0;
    for (let i = 6; i < 16; i++) key = key * 10 + out[i]! - 0x30;
    seen.add(key);
  }
  t.equal(seen.size, 200_000);
});

await t.test('a seed gives the same numbers again, and another seed others', async (t) => {
  t.ok(cardLines(5, 100, 7).equals(cardLines(5, 100, 7)));
  t.notOk(cardLines(5, 100, 7).equals(cardLines(5, 100, 8)));
  const one = Buffer.alloc(cardDigits);
  cardNumber(42, one, 0, 7);
  t.ok(cardLines(42, 1, 7).subarray(0, cardDigits).equals(one));
});

await t.test('an index out of range or a short buffer is refused', async (t) => {
  for (const n of [-1, 0.5, cardCount, Number.NaN]) t.throws(() => cardNumber(n, Buffer.alloc(16)), RangeError);
  t.throws(() => cardNumber(0, Buffer.alloc(15)), RangeError);
  t.throws(() => cardNumber(0, Buffer.alloc(16), 1), RangeError);
});
