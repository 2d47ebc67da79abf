import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import t from 'tap';
import { MAX_DEPTH, MAX_ITEMS, MAX_VALUES, takeCards, type Where } from '../../vault/body.ts';
import { depthOf, disagreement, take } from '../support/body-oracle.ts';
import { TEST_RANGES, madeCard } from '../support/made-cards.ts';

const VISA = '4111111111111111';
const AMEX = '378282246310005';
const MASTERCARD = '5555555555554444';
const refusal = (body: string | Uint8Array, where: Where): string => {
  const outcome = take(body, where);
  return typeof outcome === 'string' ? outcome : 'ok';
};

/** Why the second item of this batch is refused, whose first is a card; the first must be taken all the same, and nothing of the second be left. */
const itemRefusal = (item: string): string => {
  const outcome = take(`{"items":[{"pan":"${MASTERCARD}"}, ${item} ]}`, 'batch');
  if (typeof outcome === 'string') return `all: ${outcome}`;
  if (outcome.pans.length !== 2 || outcome.pans[0] !== MASTERCARD || outcome.pans[1] !== 'absent' || outcome.itemCount !== 2) throw new Error('its neighbour was not taken');
  if (JSON.stringify(JSON.parse(outcome.json)) !== `{"items":[{"pan":"${'x'.repeat(16)}"},null]}`) throw new Error(`something was left: ${outcome.json}`);
  return outcome.refused?.['1'] ?? 'ok';
};

t.test('a single card number is taken and overwritten', async (t) => {
  t.same(take(`{"pan":"${VISA}","expiry":"2027-12"}`, 'single'), { json: '{"pan":"xxxxxxxxxxxxxxxx","expiry":"2027-12"}', pans: [VISA], itemCount: 0 });
  t.same(take(` { "expiry" : null , "pan" : "${AMEX}" } `, 'single'), { json: ' { "expiry" : null , "pan" : "xxxxxxxxxxxxxxx" } ', pans: [AMEX], itemCount: 0 });
});

t.test('escapes in the name and in the value are decoded', async (t) => {
  t.same(take(String.raw`{"\u0070an":"\u0034111111111111111"}`, 'single'), { json: String.raw`{"\u0070an":"xxxxxxxxxxxxxxxxxxxxx"}`, pans: [VISA], itemCount: 0 });
  const all = Array.from(VISA).map((digit) => String.raw`\u003${digit}`).join('');
  t.same(take(`{"\\u0070\\u0061\\u006E":"${all}"}`, 'single'), { json: `{"\\u0070\\u0061\\u006E":"${'x'.repeat(96)}"}`, pans: [VISA], itemCount: 0 });
});

t.test('a string that is no card number is overwritten too, and told apart from no string', async (t) => {
  for (const value of ['', '4', '4111111111111112', '4111 1111 1111 1111', `${VISA} 737`, `x${VISA}`, VISA.repeat(2), VISA.repeat(10), '４111111111111111', 'é', String.raw`\n`, String.raw`\ud83d\ude00`, String.raw`4111\u0000`, 'a'.repeat(5000)]) {
    const length = Buffer.byteLength(value);
    t.same(take(`{"pan":"${value}"}`, 'single'), { json: `{"pan":"${'x'.repeat(length)}"}`, pans: [null], itemCount: 0 }, value.slice(0, 30));
  }
  for (const body of ['{}', '{"pan":null}', '{"pan":true}', '{"pan":[]}', '{"pan":{}}', '{"PAN":"1"}', '{"pan ":"1"}', '{"ｐａｎ":"1"}', '[]', '[{"pan":"1"}]', '"pan"', 'null', '{"a":{"pan":"1"}}', '{"items":[{"pan":"1"}]}']) {
    t.same(take(body, 'single'), { json: body, pans: ['absent'], itemCount: 0 }, body);
  }
});

t.test('of members with one name the last counts, and the others are wiped', async (t) => {
  t.same(take(`{"pan":"${VISA}","pan":"${AMEX}"}`, 'single'), { json: `{"pan":"${'x'.repeat(16)}","pan":"${'x'.repeat(15)}"}`, pans: [AMEX], itemCount: 0 });
  t.same(take(`{"pan":"${VISA}","p\\u0061n":"1"}`, 'single'), { json: `{"pan":"${'x'.repeat(16)}","p\\u0061n":"x"}`, pans: [null], itemCount: 0 });
  t.same(take(`{"pan":"${VISA}","pan":null}`, 'single'), { json: `{"pan":"${'x'.repeat(16)}","pan":null}`, pans: ['absent'], itemCount: 0 });
  t.same(take(`{"items":[{"pan":"${VISA}"},{}],"items":[{"pan":"${AMEX}","pan":"${MASTERCARD}"}]}`, 'batch'), { json: `{"items":[{"pan":"${'x'.repeat(16)}"},{}],"items":[{"pan":"${'x'.repeat(15)}","pan":"${'x'.repeat(16)}"}]}`, pans: [MASTERCARD], itemCount: 1 });
  t.same(take(`{"items":[{"pan":"${VISA}"}],"items":null}`, 'batch'), { json: `{"items":[{"pan":"${'x'.repeat(16)}"}],"items":null}`, pans: [], itemCount: 0 });
});

t.test('each item of a batch has its place', async (t) => {
  t.same(take(`{"x":1,"items":[{"pan":"${VISA}"},5,{},{"pan":"1"},null,[{"pan":"1"}],{"a":{"pan":"2"},"pan":"${AMEX}"}],"pan":"3"}`, 'batch'), {
    json: `{"x":1,"items":[{"pan":"${'x'.repeat(16)}"},5,{},{"pan":"x"},null,[{"pan":"1"}],{"a":{"pan":"2"},"pan":"${'x'.repeat(15)}"}],"pan":"3"}`,
    pans: [VISA, 'absent', 'absent', null, 'absent', 'absent', AMEX],
    itemCount: 7,
  });
  for (const body of ['{}', '{"items":[]}', '{"items":{"pan":"1"}}', '{"items":"x"}', '{"a":{"items":[{"pan":"1"}]}}', '[{"items":[{"pan":"1"}]}]', '{"Items":[{"pan":"1"}]}']) {
    t.same(take(body, 'batch'), { json: body, pans: [], itemCount: 0 }, body);
  }
});

t.test('values are counted, at any depth', async (t) => {
  const valuesOf = (body: string, where: Where): number => {
    using taken = takeCards(Buffer.from(body), where);
    return taken.ok ? taken.values : Number.NaN;
  };
  const counts: [string, number][] = [['1', 1], ['[]', 1], ['{}', 1], ['[[],{},"",1,true,null]', 7], ['{"pan":"1","metadata":{"a":1,"b":"x"}}', 5], ['{"items":[{"pan":"1"},[[]],5]}', 7], [`${'['.repeat(MAX_DEPTH)}${']'.repeat(MAX_DEPTH)}`, MAX_DEPTH]];
  for (const [body, count] of counts) for (const where of ['none', 'single', 'batch'] as const) t.equal(valuesOf(body, where), count, body);
  const metadata = Object.fromEntries(Array.from({ length: 16 }, (_, n) => [`name${n}`, n]));
  const items = Array.from({ length: MAX_ITEMS }, (_, n) => ({ pan: madeCard(TEST_RANGES[0], n), expiry: '2030-01', cardholder: 'A', format: 'opaque', reuse: true, ttl_seconds: 1, metadata }));
  t.equal(valuesOf(JSON.stringify({ items }), 'batch'), 24_002);
  t.ok(MAX_VALUES >= 24_002, 'the largest batch that there may be is taken');
});

t.test('items beyond the thousandth are counted and wiped, not kept', async (t) => {
  const items = Array.from({ length: MAX_ITEMS + 5 }, (_, i) => ({ pan: madeCard(TEST_RANGES[0], i) }));
  const outcome = take(JSON.stringify({ items }), 'batch');
  if (typeof outcome === 'string') throw new Error(outcome);
  t.same(outcome.pans, items.slice(0, MAX_ITEMS).map((item) => item.pan));
  t.equal(outcome.itemCount, MAX_ITEMS + 5);
  t.notOk(/[0-9]/.test(outcome.json));
});

t.test('a body for which no card number is expected is scanned all the same', async (t) => {
  t.same(take('{"pan":"1","items":[{"pan":"2"}]}', 'none'), { json: '{"pan":"1","items":[{"pan":"2"}]}', pans: [], itemCount: 0 });
  t.equal(refusal(`{"pan":"${VISA}"}`, 'none'), 'pan_in_other_field');
  t.equal(refusal(`{"items":[{"pan":"${VISA}"}]}`, 'none'), 'pan_in_other_field');
});

t.test('a card number in any other place is refused', async (t) => {
  for (const body of [
    `{"x":"${VISA}"}`, `{"${VISA}":1}`, `{"a":{"b":["${VISA}"]}}`, `["${VISA}"]`, `"${VISA}"`, VISA, `[${VISA}]`, `{"x":${VISA}}`, `{"x":-${VISA}}`, `{"PAN":"${VISA}"}`, `{"pan":{"number":"${VISA}"}}`, `{"pan":["${VISA}"]}`, `{"pan":[${VISA}]}`,
    `{"pan":"${AMEX}","x":"${VISA}"}`, `{"x":"${VISA}","pan":"${AMEX}"}`, `{"x":"card${VISA}x"}`, '{"x":"4111 1111 1111 1111 12/27"}', `{"x":"${VISA} 737"}`, String.raw`{"x":"\u0034111111111111111"}`, String.raw`{"x":"4111\t1111\n1111\u00a01111"}`, `{"x":"４１１１１１１１１１１１１１１１"}`, String.raw`{"x":"\uff14111111111111111"}`, String.raw`{"x":"\ud835\udfd2111111111111111"}`,
    String.raw`{"\u0034111111111111111":1}`, `{"card_${VISA}":1}`, '{"x":4.111111111111111e15}', '{"x":4.111111111111111E+15}', '{"x":41111111111111110e-1}', '{"x":0.0004111111111111111e19}', '{"x":4111111111111111.0}', '{"x":4111111111111111.5}', '{"x":4111111111111111000e-3}', '{"x":4.1111111111111115e15}', '{"x":0.4111111111111111e16}', '{"x":0.041111111111111115e17}', `{"x":${VISA}e0}`, `{"x":${VISA}00000000e-8}`,
    `{"metadata":{"note":"${'clean text '.repeat(500)}${VISA}"}}`, `{"x":"${'ä'.repeat(2000)}${VISA}"}`, `{"x":"tok_${VISA}aaaaaaaaaaaaaaaa"}`, `{"x":"${VISA}-aaaa-4aaa-8aaa-aaaaaaaaaaaa"}`, `{"x":"${VISA}D271210"}`,
  ]) {
    t.equal(refusal(body, 'single'), 'pan_in_other_field', body.slice(0, 60));
    t.equal(refusal(body, 'none'), 'pan_in_other_field');
    t.equal(itemRefusal(body), 'pan_in_other_field', `alone in a batch: ${body.slice(0, 60)}`);
  }
  t.equal(refusal(`{"pan":"${VISA}"}`, 'batch'), 'pan_in_other_field', 'a batch has no card number beside its items');
  t.equal(refusal(`{"items":{"pan":"${VISA}"}}`, 'batch'), 'pan_in_other_field');
  t.equal(itemRefusal(`[{"pan":"${VISA}"}]`), 'pan_in_other_field');
  t.equal(refusal(`{"a":{"items":[{"pan":"${VISA}"}]}}`, 'batch'), 'pan_in_other_field');
  t.equal(refusal(`{"ｐａｎ":"${VISA}"}`, 'single'), 'pan_in_other_field', 'a name that merely looks like it');
});

t.test('what is wrong beside the items, or is no JSON, refuses the whole batch', async (t) => {
  t.equal(refusal(`{"items":[{"pan":"${VISA}"}],"cvv":1}`, 'batch'), 'sad_refused');
  t.equal(refusal(`{"note":"${VISA}","items":[{"pan":"${VISA}"}]}`, 'batch'), 'pan_in_other_field');
  t.equal(refusal(`{"cvv":1,"items":[{"pan":"${VISA}"},{"x":"${VISA}"},`, 'batch'), 'sad_refused', 'what was found before the end counts');
  t.equal(refusal(`{"items":[{"pan":"${VISA}"},{"x":"${VISA}",`, 'batch'), 'pan_in_other_field', 'also inside of an item');
  const outcome = take(`{"items":[{"cvv":1},{"cvv":1,"x":"${VISA}"}],"items":[{"pan":"${VISA}"}]}`, 'batch');
  t.match(outcome, { pans: [VISA], itemCount: 1 }, 'of two lists the last counts');
  t.notOk(typeof outcome === 'string' || outcome.refused !== undefined);
});

t.test('what is no card number passes', async (t) => {
  for (const value of ['"2027-12"', '"4111111111111112"', '"411111111111111"', '"123e4567-e89b-42d3-a456-426614174000"', '1795521600000', '1e15', '4e15', '1e400', '-1e-400', '0e99999999999', '4.1e15', '1234567890', '0.1', '"+4222222222222"', '"2026-11-24T12:34:56.789Z"', '"José da Silva"']) {
    t.equal(refusal(`{"pan":"${VISA}","x":${value}}`, 'single'), 'ok', value);
  }
});

t.test('a number at the place of a card number is an invalid request', async (t) => {
  for (const body of [`{"pan":${VISA}}`, '{"pan":1}', `{"pan":4.111111111111111e15}`, `{"pan":${VISA},"pan":"${VISA}"}`, `{"pan":"${VISA}","pan":${VISA}}`]) t.equal(refusal(body, 'single'), 'invalid_request', body);
  t.equal(itemRefusal(`{"pan":${VISA}}`), 'invalid_request');
  t.equal(refusal(`{"pan":${VISA}}`, 'none'), 'pan_in_other_field');
});

t.test('sensitive authentication data is refused at any depth and whatever the value', async (t) => {
  for (const body of [
    '{"cvv":"737"}', '{"cvv":null}', '{"cvv":[]}', '{"pan":"1","CVV2":""}', '{"a":[{"b":{"card-security code":1}}]}', String.raw`{"\u0063vv":1}`, String.raw`{"c\u005fvv":1}`, '{"ｃｖｖ":1}', '{"cv\u200bv":1}', `{"${'_'.repeat(3000)}c\\u0076v":1}`, '{"metadata":{"card.cvc":"1"}}', '{"pin_block":"x"}', '{"track2":null}',
    `{"x":"%B${VISA}^DOE/JOHN^2712"}`, `{"x":";${VISA}=27121010000?"}`, `{"pan":"%B${VISA}^DOE/JOHN^2712"}`, `{"pan":"${VISA}=27121010000"}`, `{"x":"${VISA}D2712101"}`, `{";${VISA}=2712101?":1}`, String.raw`{"x":"\u0025B4111111111111111^A^"}`,
  ]) {
    for (const where of ['none', 'single', 'batch'] as const) t.equal(refusal(body, where), 'sad_refused', body.slice(0, 60));
    t.equal(itemRefusal(body), 'sad_refused', `alone in a batch: ${body.slice(0, 60)}`);
  }
});

t.test('of several reasons the gravest is given, as far as the syntax allows to see', async (t) => {
  t.equal(refusal(`{"pan":${VISA},"x":"${VISA}","cvv":1}`, 'single'), 'sad_refused');
  t.equal(refusal(`{"cvv":1,"x":"${VISA}"}`, 'single'), 'sad_refused');
  t.equal(refusal(`{"pan":1,"x":"${VISA}"}`, 'single'), 'pan_in_other_field');
  t.equal(refusal(`{"x":"${VISA}",`, 'single'), 'pan_in_other_field');
  t.equal(refusal(`{"x":"${VISA}","cvv"`, 'single'), 'sad_refused');
  t.equal(refusal(`{,"x":"${VISA}","cvv":1}`, 'single'), 'invalid_request');
  t.equal(refusal(Buffer.concat([Buffer.from(`{"x":"${VISA}"}`), Buffer.of(0xff)]), 'single'), 'invalid_request', 'no pass over what is not UTF-8');
});

t.test('the grammar is that of RFC 8259', async (t) => {
  const vectors = JSON.parse(readFileSync(new URL('../vectors/json.json', import.meta.url), 'utf8')) as Record<'valid' | 'invalid', Record<string, string[]>>;
  for (const [section, texts] of Object.entries(vectors.valid)) for (const text of texts) {
    for (const wrapped of [text, `[${text}]`, `{"a":${text},"b":[${text}]}`]) {
      JSON.parse(wrapped);
      t.equal(refusal(wrapped, 'single'), 'ok', `section ${section}: ${encodeURIComponent(wrapped)}`);
    }
  }
  for (const [section, texts] of Object.entries(vectors.invalid)) for (const text of texts) {
    t.throws(() => void JSON.parse(text));
    t.equal(refusal(text, 'single'), 'invalid_request', `section ${section}: ${encodeURIComponent(text)}`);
    if (section !== '2') t.equal(refusal(`{"pan":"${VISA}","a":${text}}`, 'single'), 'invalid_request');
  }
});

t.test('bytes that are not UTF-8 are refused wherever they stand', async (t) => {
  for (const bad of [[0xff], [0x80], [0xc0, 0xaf], [0xc3], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80], [0xf5, 0x80, 0x80, 0x80], [0xe2, 0x82]]) {
    t.equal(refusal(Buffer.concat([Buffer.from('{"a":"'), Buffer.from(bad), Buffer.from('"}')]), 'single'), 'invalid_request');
  }
});

t.test('nesting stops at 16, far before any stack does', async (t) => {
  const nested = (depth: number, open: string, close: string): string => open.repeat(depth) + close.repeat(depth);
  t.equal(refusal(nested(MAX_DEPTH, '[', ']'), 'none'), 'ok');
  t.equal(refusal(nested(MAX_DEPTH + 1, '[', ']'), 'none'), 'invalid_request');
  t.equal(refusal(`${'{"a":'.repeat(MAX_DEPTH)}1${'}'.repeat(MAX_DEPTH)}`, 'single'), 'ok');
  t.equal(refusal(`${'{"a":'.repeat(MAX_DEPTH + 1)}1${'}'.repeat(MAX_DEPTH + 1)}`, 'single'), 'invalid_request');
  t.equal(refusal('['.repeat(1_000_000), 'batch'), 'invalid_request');
});

// Properties. A raw text is made by a serializer of its own, so that names repeat, escapes and blanks stand anywhere.
const blank = fc.constantFrom('', '', '', ' ', '\n', '\t\r ');
const card = fc.tuple(fc.constantFrom(...TEST_RANGES), fc.nat()).map(([range, serial]) => madeCard(range, serial));
const rawString = (text: fc.Arbitrary<string>): fc.Arbitrary<string> => fc.tuple(text, fc.infiniteStream(fc.nat(9))).map(([value, stream]) => {
  let raw = '"';
  for (let i = 0; i < value.length; i++) {
    const unit = value.charCodeAt(i);
    const mustEscape = unit < 0x20 || unit === 0x22 || unit === 0x5c || (unit >= 0xd800 && unit < 0xe000);
    raw += mustEscape || stream.next().value === 0 ? `\\u${unit.toString(16).padStart(4, '0')}` : value[i]!;
  }
  return `${raw}"`;
});
const anyText = fc.oneof(fc.string({ unit: 'binary', maxLength: 12 }), fc.constantFrom('a', '2027-12', 'x y'), fc.string({ unit: fc.constantFrom(...'0123456789 -x'.split('')), maxLength: 20 }));
const { value: rawValue } = fc.letrec<{ value: string; object: string; array: string }>((tie) => ({
  value: fc.oneof({ depthSize: 'small', withCrossShrink: true }, rawString(anyText), rawString(card), fc.constantFrom('null', 'true', '0', '-1.5e3', '1E2', '12345678901234'), fc.double({ noNaN: true, noDefaultInfinity: true }).map((x) => JSON.stringify(x)), tie('object'), tie('array')),
  object: fc.tuple(blank, fc.array(fc.tuple(rawString(fc.oneof({ weight: 3, arbitrary: fc.constantFrom('pan', 'items', 'expiry', 'Pan', 'a') }, { weight: 1, arbitrary: anyText })), blank, tie('value'), blank), { maxLength: 5 })).map(([first, members]) => `{${first}${members.map(([name, a, value, b]) => `${name}${a}:${b}${value}${a}`).join(`,${first}`)}}`),
  array: fc.tuple(blank, fc.array(tie('value'), { maxLength: 5 })).map(([b, values]) => `[${b}${values.join(`${b},${b}`)}]`),
}));
const singleBody = fc.tuple(rawValue, rawString(card), fc.boolean(), rawValue).map(([a, pan, first, b]) => (first ? `{"pan":${pan},"a":${a},"pan":${pan}}` : `{"a":${a},"pan":${pan},"b":${b}}`));
const batchBody = fc.array(fc.oneof(rawString(card).map((pan) => `{"pan":${pan}}`), fc.tuple(rawString(card), rawValue).map(([pan, x]) => `{"x":${x},"pan":${pan}}`), rawValue), { maxLength: 8 }).map((items) => `{"items":[${items.join(',')}]}`);
const anyBody = fc.oneof(rawValue, singleBody, batchBody);
const anyWhere = fc.constantFrom('none', 'single', 'batch');

t.test('any JSON text is read as JSON.parse reads it', async (t) => {
  let accepted = 0;
  fc.assert(fc.property(anyBody, anyWhere, (text, where) => {
    const wrong = disagreement(Buffer.from(text), where);
    if (wrong !== null) throw new Error(wrong);
    if (refusal(text, where) === 'ok') accepted++;
  }), { numRuns: 3000 });
  t.ok(accepted > 300, `${accepted} were accepted`);
});

t.test('any bytes, and near-JSON, are refused or read as JSON.parse reads them', async () => {
  const agrees = (bytes: Uint8Array, where: Where): void => {
    const wrong = disagreement(bytes, where);
    if (wrong !== null) throw new Error(wrong);
  };
  fc.assert(fc.property(fc.uint8Array({ maxLength: 60 }), anyWhere, agrees), { numRuns: 2000 });
  const soup = fc.array(fc.constantFrom('{', '}', '[', ']', ',', ':', '"', '"pan"', '"items"', `"${VISA}"`, '1', '-', '.', 'e', '0', 'null', 'true', ' ', '\\', '\\u0034', 'a', '\u00e9'), { maxLength: 20 });
  fc.assert(fc.property(soup, anyWhere, (pieces, where) => agrees(Buffer.from(pieces.join('')), where)), { numRuns: 5000 });
});

t.test('a body cut anywhere or with any byte changed is refused or read as JSON.parse reads it', async () => {
  const agrees = (bytes: Uint8Array, where: Where): void => {
    const wrong = disagreement(bytes, where);
    if (wrong !== null) throw new Error(wrong);
  };
  fc.assert(fc.property(anyBody, anyWhere, fc.nat(), (text, where, cut) => {
    const bytes = Buffer.from(text);
    agrees(bytes.subarray(0, cut % (bytes.length + 1)), where);
  }), { numRuns: 2000 });
  fc.assert(fc.property(anyBody, anyWhere, fc.array(fc.tuple(fc.nat(), fc.oneof(fc.nat(255), fc.constantFrom(...Buffer.from('"{}[]:,\\0e')))), { minLength: 1, maxLength: 3 }), (text, where, changes) => {
    const bytes = Buffer.from(text);
    for (const [at, byte] of changes) if (bytes.length > 0) bytes[at % bytes.length] = byte;
    agrees(bytes, where);
  }), { numRuns: 3000 });
  const whole = Buffer.from(`{"items":[{"pan":"${VISA}","expiry":"2027-12"},{"\\u0070an":"\\u0033${AMEX.slice(1)}"}]}`);
  for (let cut = 0; cut < whole.length; cut++) if (typeof take(whole.subarray(0, cut), 'batch') !== 'string') throw new Error('accepted a cut body');
});

t.test('a card number added anywhere to an accepted body makes it refused', async () => {
  const name = fc.constantFrom('a', 'note', 'metadata', 'Pan');
  fc.assert(fc.property(anyBody, rawString(card), name, anyWhere, (text, pan, name, where) => {
    const before = refusal(text, where);
    const after = refusal(`{"x":${text},"${name}":{"y":[${pan}]}}`, where);
    if (before === 'ok' && depthOf(JSON.parse(text)) < MAX_DEPTH - 1 && after !== 'pan_in_other_field') throw new Error(after);
  }), { numRuns: 1000 });
});
