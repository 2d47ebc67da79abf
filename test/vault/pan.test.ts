import { readFileSync } from 'node:fs';
import { format, inspect } from 'node:util';
import * as fc from 'fast-check';
import t from 'tap';
import { Pan, inIssuedRange, isIssuedPrefix, luhn } from '../../vault/pan.ts';
import { TEST_RANGES, madeCandidate, madeCard, passesLuhn, withCheckDigit } from '../support/made-cards.ts';

interface Card {
  pan: string;
  brand: string;
}
const { cards } = JSON.parse(readFileSync(new URL('../vectors/cards.json', import.meta.url), 'utf8')) as { cards: Card[] };
const bytes = (text: string): Buffer => Buffer.from(text, 'latin1');
const digits = fc.string({ unit: fc.constantFrom(...'0123456789'.split('')), maxLength: 25 });
const anyCard = fc.tuple(fc.constantFrom(...TEST_RANGES), fc.nat()).map(([range, serial]) => madeCard(range, serial));

t.test('published test cards parse, with their brand, length and truncation', async (t) => {
  for (const { pan: number, brand } of cards) {
    using pan = Pan.parse(bytes(number));
    t.ok(pan !== null && pan.brand === brand && pan.length === number.length, `${brand} ${number.length}`);
    if (pan === null) continue;
    t.equal(pan.reveal().toString(), number);
    t.equal(pan.last4, number.slice(-4));
    t.equal(pan.bin, number.length >= 15 ? number.slice(0, 6) : null);
    t.ok(inIssuedRange(bytes(`..${number}`), 2, 2 + number.length));
  }
});

t.test('Luhn agrees with the example that texts on it use, and with the textbook', async (t) => {
  // The number that texts on Luhn's formula use, 7992739871 with the check digit 3: the other nine are wrong.
  for (let digit = 0; digit < 10; digit++) t.equal(luhn(bytes(`7992739871${digit}`), 0, 11), digit === 3);
  fc.assert(fc.property(digits, fc.nat(3), (text, pad) => {
    const padded = bytes('9'.repeat(pad) + text + '9'.repeat(pad));
    return luhn(padded, pad, pad + text.length) === (text.length > 0 && passesLuhn(text));
  }));
  t.notOk(luhn(bytes('00'), 0, 0));
  t.notOk(luhn(bytes('00'), 0, 3), 'a span beyond the end is no number');
  t.notOk(luhn(bytes('00'), -1, 2));
  t.notOk(luhn(bytes('0:'), 0, 2), 'the byte after 9 is no digit');
  t.notOk(luhn(bytes('/0'), 0, 2), 'the byte before 0 is no digit');
});

t.test('one wrong digit, and two neighbours swapped except 0 and 9, fail Luhn', async () => {
  fc.assert(fc.property(anyCard, fc.nat(18), fc.integer({ min: 1, max: 9 }), (card, place, by) => {
    const at = place % card.length;
    const wrong = card.slice(0, at) + String((Number(card[at]) + by) % 10) + card.slice(at + 1);
    return Pan.parse(bytes(wrong)) === null;
  }));
  fc.assert(fc.property(anyCard, fc.nat(17), (card, place) => {
    const at = place % (card.length - 1);
    const swapped = card.slice(0, at) + card[at + 1] + card[at] + card.slice(at + 2);
    const unseen = card[at] === card[at + 1] || ['09', '90'].includes(card.slice(at, at + 2));
    return (Pan.parse(bytes(swapped)) !== null) === unseen;
  }));
});

t.test('parse takes exactly 12 to 19 ASCII digits that pass Luhn', async (t) => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 24 }), (any) => {
    const text = Buffer.from(any).toString('latin1');
    using pan = Pan.parse(any);
    return (pan !== null) === (/^[0-9]{12,19}$/.test(text) && passesLuhn(text));
  }));
  for (let length = 2; length < 25; length++) {
    const number = withCheckDigit('9'.repeat(length - 1));
    t.equal(Pan.parse(bytes(number)) !== null, length >= 12 && length <= 19, `${length} digits`);
  }
  t.equal(Pan.parse(bytes('4111 1111 1111 1111')), null);
  t.equal(Pan.parse(Buffer.from('４111111111111111')), null);
});

t.test('a number in no issued range is a card of unknown brand', async (t) => {
  using pan = Pan.parse(bytes(withCheckDigit('999999999999999')));
  t.equal(pan?.brand, 'unknown');
  t.notOk(inIssuedRange(pan?.reveal() ?? Buffer.alloc(16), 0, 16));
  using short = Pan.parse(bytes(withCheckDigit('41111111111')));
  t.equal(short?.brand, 'unknown', 'the right prefix with a length that is not issued');
});

t.test('where ranges overlap, the narrowest gives the brand', async (t) => {
  const brandOf = (prefix: string): string | undefined => Pan.parse(bytes(withCheckDigit(prefix.padEnd(15, '0'))))?.brand;
  t.equal(brandOf('401178'), 'elo');
  t.equal(brandOf('401177'), 'visa');
  t.equal(brandOf('401180'), 'visa');
  t.equal(brandOf('606282'), 'hipercard');
  t.equal(brandOf('650031'), 'elo');
  t.equal(brandOf('650034'), 'discover');
  t.equal(brandOf('508500'), 'rupay');
  t.equal(brandOf('222099'), 'unknown');
  t.equal(brandOf('222100'), 'mastercard');
  t.equal(brandOf('272099'), 'mastercard');
  t.equal(brandOf('272100'), 'unknown');
  t.equal(brandOf('220000'), 'mir');
});

t.test('a range is looked up safely outside its bounds', async (t) => {
  t.notOk(inIssuedRange(bytes('4111'), 0, 4));
  t.notOk(inIssuedRange(bytes('4111111111111111'), 1, 17));
  t.notOk(inIssuedRange(bytes('4111111111111111'), -1, 15));
  t.notOk(isIssuedPrefix(411111, 11));
  t.notOk(isIssuedPrefix(411111, 20));
  t.notOk(isIssuedPrefix(411111, 32 + 16), 'a shift does not wrap around');
});

t.test('the digits are a copy in memory of their own, zeroed on disposal', async (t) => {
  const source = bytes('4111111111111111');
  const pan = Pan.parse(source);
  if (pan === null) throw new Error('a test card did not parse');
  source.fill(0);
  const view = pan.reveal();
  t.equal(view.toString(), '4111111111111111');
  t.equal(view.buffer.byteLength, 16, 'not a part of the shared pool');
  pan[Symbol.dispose]();
  t.ok(view.every((byte) => byte === 0), 'also for who borrowed them');
  t.throws(() => pan.reveal(), { name: 'Error', message: 'a card number was used after it was wiped' });
  pan[Symbol.dispose]();
  t.equal(pan.last4, '1111', 'the truncation stays');
  t.equal(pan.bin, '411111');
  t.equal(pan.brand, 'visa');
});

t.test('cards in one slab do not touch one another', async (t) => {
  const slab = Buffer.allocUnsafeSlow(38);
  const source = bytes('x378282246310005,5555555555554444');
  const amex = Pan.parseInto(source, 1, 16, slab, 0);
  const mastercard = Pan.parseInto(source, 17, 33, slab, 19);
  t.equal(Pan.parseInto(source, 0, 16, slab, 0), null, 'what is no card writes nothing');
  t.equal(amex?.reveal().toString(), '378282246310005');
  amex?.[Symbol.dispose]();
  t.equal(mastercard?.reveal().toString(), '5555555555554444');
  mastercard?.[Symbol.dispose]();
});

t.test('every way of printing is masked', async (t) => {
  for (const [number, shown] of [['4111111111111111', '411111******1111'], ['378282246310005', '378282*****0005'], ['30569309025904', '**********5904'], ['4222222222222', '*********2222']] as const) {
    using pan = Pan.parse(bytes(number));
    if (pan === null) throw new Error('a test card did not parse');
    t.equal(String(pan), shown);
    const revealed = pan.reveal();
    t.ok(revealed.length > 0);
    for (const printed of [
      JSON.stringify({ pan }), JSON.stringify([pan, Object.assign({}, pan)]), ''.concat(pan as unknown as string), inspect(pan), inspect({ deep: { pan } }, { depth: 9, showHidden: true, getters: true }),
      inspect(pan, { customInspect: false, showHidden: true }), format('%s %o %O %j %d', pan, pan, pan, pan, pan), inspect(structuredClone(pan)),
      Object.values(pan).join(), new Error('x', { cause: pan }).message, inspect(new Error('x', { cause: pan })),
    ]) {
      t.notOk(printed.includes(number), 'nothing prints the number');
      t.notOk(printed.includes(number.slice(4, -4)), 'nor its middle');
    }
  }
});

t.test('the group of a number is told by what may be shown of it, and by nothing else', async (t) => {
  const groupOf = (digits: string): number => {
    using pan = Pan.parse(Buffer.from(digits, 'latin1'));
    return pan!.group;
  };
  const groups = new Map<string, number>();
  for (const range of TEST_RANGES) {
    for (let serial = 0; serial < 3000; serial += 1) {
      const digits = madeCard(range, serial);
      using pan = Pan.parse(Buffer.from(digits, 'latin1'));
      const shown = pan!.bin === null ? `${pan!.brand} ${pan!.length} ${pan!.last4}` : `${pan!.bin} ${pan!.last4}`;
      const { group } = pan!;
      if ((groups.get(shown) ?? group) !== group) t.fail(`${shown} has two groups`);
      groups.set(shown, group);
      if (!Number.isInteger(group) || group < 0 || group >= 2 ** 40) t.fail('a group is not below 2^40');
    }
  }
  t.equal(new Set(groups.values()).size, groups.size, 'no two of them are one');
  t.equal(groupOf(madeCandidate(TEST_RANGES[0], '4242', 0)), groupOf(madeCandidate(TEST_RANGES[0], '4242', 99_999)));
  t.equal(groupOf(madeCandidate(TEST_RANGES[0], '4242', 0)), 4_111_114_242);
});
