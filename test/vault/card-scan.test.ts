import { randomUUID } from 'node:crypto';
import * as fc from 'fast-check';
import t from 'tap';
import { holdsCardNumber } from '../../vault/card-scan.ts';
import { inIssuedRange } from '../../vault/pan.ts';
import { makeToken, pooledRandom } from '../../vault/token.ts';
import { TEST_RANGES, madeCard, passesLuhn, seeded, withCheckDigit } from '../support/made-cards.ts';

const VISA = '4111111111111111';
const anyCard = fc.tuple(fc.constantFrom(...TEST_RANGES), fc.nat()).map(([range, serial]) => madeCard(range, serial));
const grouped = (digits: string, size: number, separator: string): string => digits.match(new RegExp(`.{1,${size}}`, 'g'))!.join(separator);
/** The digits of another script: each digit moved to where that script's zero is. */
const inScript = (digits: string, zero: number): string => Array.from(digits).map((digit) => String.fromCodePoint(zero + Number(digit))).join('');

t.test('a card number is found however it is written', async (t) => {
  for (const text of [
    VISA, `card${VISA}x`, `x${VISA}`, `${VISA}é`, `"${VISA}"`, `(${VISA})`, `#${VISA}:`, `pan=${VISA}&x=1`, `a\n${VISA}\n`,
    ...[' ', '  ', '-', ' - ', '.', '/', '_', '+', '\t', '\r\n', '\u00a0', '\u2009', '\u200b', '\u2011', '\u2013', '\u2014', '\u202f', '\u3000', '\ufeff', '\u00ad', '\u00b7', '\uff0d', ','].map((s) => grouped(VISA, 4, s)),
    grouped(VISA, 1, ' '), grouped(VISA, 3, ','), grouped('378282246310005', 5, '-'), '3782 822463 10005', grouped(VISA, 1, '-'), ` - ${VISA} - `,
    '4111 1111 1111 1111 12/27', '4111 1111 1111 1111 1227 737', `12 ${VISA}`, `12/27 ${VISA}`, `${VISA} 737`, `${VISA}-1227`, `2026-11-24 ${VISA}`, `1 2 3 ${grouped(VISA, 4, ' ')} 4 5 6`,
    `${VISA}1227`, `${VISA}2712`, `${VISA}122027`, `${VISA}202712`, `${VISA}1227737`, `${VISA}12271234`, `${VISA}122027737`, '3782822463100051227', '378282246310005122027', `4111 1111 1111 11111227`,
    `000${VISA}`, `0000${VISA}`, `id 0000000000${VISA}`, `0000-${VISA}`,
    inScript(VISA, 0xff10), inScript(VISA, 0x660), inScript(VISA, 0x966), inScript(VISA, 0x1d7ce), `4111${inScript('111111111111', 0xff10)}`,
    `+${VISA}`, '+4222222222222 12', '4222222222222', '30569309025904', '6304000000000000', '41111111-1111-1111-8111-111111111111', `00-4bf92f3577b34da6a3ce929d0e0e4736-${VISA}-01`,
  ]) t.ok(holdsCardNumber(text), JSON.stringify(text));
});

t.test('track data is found', async (t) => {
  for (const text of [`%B${VISA}^DOE/JOHN^27121010000000000?`, `%b${VISA}^ ^2712`, '%B4111 1111 1111 1111^DOE/J^2712', `;${VISA}=27121010000000000000?`, `;123456789012=2712?`, `${VISA}=2712101`, `${VISA}D27121010000000000000F`, `x${VISA}d2712101`]) {
    t.ok(holdsCardNumber(text), text);
  }
});

t.test('percent escapes are decoded, several layers deep, and malformed ones do no harm', async (t) => {
  const escaped = Array.from(VISA).map((digit) => `%3${digit}`).join('');
  for (const text of [escaped, escaped.replaceAll('%', '%25'), escaped.replaceAll('%', '%2525'), `/v1/tokens/${VISA}`, `/v1/x?pan=${VISA}`, '/4111%201111%201111%201111', '/4111+1111+1111+1111', '4111%C2%A01111%C2%A01111%C2%A01111', encodeURIComponent(inScript(VISA, 0xff10)), encodeURIComponent(`%B${VISA}^DOE/J^2712`), `%zz${VISA}`, `%${VISA}`, `${VISA}%`, `${VISA}%4`, `%E4${VISA}%`]) {
    t.ok(holdsCardNumber(text), text);
  }
  for (const text of ['%', '%%%%%%%%%%%%%%%%', '%4%1%1%1%1%1%1%1%1%1%1%1%1%1%1%1', '%ff%fe%f0%9f%e2%82'.repeat(20), escaped.slice(0, -3)]) t.notOk(holdsCardNumber(text), text);
});

t.test('what is no card number passes', async (t) => {
  for (const text of [
    '', 'a', '411111111111111', '4111111111111112', '4111 1111 1111 1112', '4111a1111b1111c1111', '4111:1111:1111:1111', '411111111111,1111', '41111111,11111111', withCheckDigit('999999999999999'),
    '2026-11-24T12:34:56.789Z', '20261124T123456Z', '2026-11-24 12:34:56.789012', '1795521600000', '1795521600', '192.168.100.200', '2001:db8:85a3::8a2e:370:7334',
    '0000000000000000', '00000000-0000-0000-0000-000000000000', '+5511912345678', '+4222222222222', 'tel +4222222222222.', '1 2 3 4 5 6 7 8 9 10 11 12', '12.345.678/0001-95', 'order-12345678', `${VISA}737`, `${VISA}9999`, `${VISA}1111111111`, '12'.repeat(500),
  ]) t.notOk(holdsCardNumber(text), text);
});

t.test('every way to group a card number is found, wherever it stands', async () => {
  const gap = fc.constantFrom('', '', '', ' ', '-', '. ', '_', '\u00a0', ' - ');
  fc.assert(fc.property(anyCard, fc.array(gap, { minLength: 19, maxLength: 19 }), fc.constantFrom('', 'x', 'a ', ':', '12/27 ', '#1 '), fc.constantFrom('', 'x', ' b', ';', ' 12/27', ' 737', '?'), (card, gaps, before, after) => {
    const text = Array.from(card).map((digit, i) => digit + (i + 1 < card.length ? gaps[i]! : '')).join('');
    return holdsCardNumber(before + text + after);
  }), { numRuns: 1000 });
});

/** The rules without tails, commas, ids and phone numbers, in the plainest words: every stretch of groups of every chain. */
function plainRules(text: string): boolean {
  for (const chain of text.match(/[0-9](?:[ ./_-]*[0-9])*/g) ?? []) {
    const groups = chain.split(/[ ./_-]+/);
    for (let from = 0; from < groups.length; from++) {
      for (let to = from + 1; to <= groups.length; to++) {
        const joined = groups.slice(from, to).join('');
        const zeros = /^0*/.exec(groups[from]!)![0].length;
        for (let skip = 0; skip <= zeros; skip++) {
          const digits = joined.slice(skip);
          if (digits.length >= 12 && digits.length <= 19 && passesLuhn(digits) && inIssuedRange(Buffer.from(digits), 0, digits.length)) return true;
        }
      }
    }
  }
  return false;
}

t.test('the scan agrees with the rules in their plainest form', async () => {
  const piece = fc.oneof(
    fc.string({ unit: fc.constantFrom(...'0123456789'.split('')), maxLength: 6 }),
    fc.string({ unit: fc.constantFrom(...'444155036'.split('')), minLength: 4, maxLength: 4 }),
    fc.constantFrom(' ', '-', '.', '/', '_', 'x', ':', '  ', '00', '4111', '1111'),
    anyCard,
  );
  // Groups that could carry a tail are left out by keeping them short or exact; a tail only ever adds to what is found.
  fc.assert(fc.property(fc.array(piece, { maxLength: 14 }), (pieces) => {
    const text = pieces.join('');
    const found = holdsCardNumber(text);
    if (plainRules(text)) return found;
    return !found || /[0-9]{5}/.test(text);
  }), { numRuns: 5000 });
});

t.test('no text makes it throw', async () => {
  fc.assert(fc.property(fc.string({ unit: 'binary', maxLength: 300 }), (text) => typeof holdsCardNumber(text) === 'boolean'));
  fc.assert(fc.property(fc.string({ unit: fc.constantFrom(...'%0123456789abcdefEF^=;?BD -,+.\ud800\udc00'.split('')), maxLength: 300 }), (text) => typeof holdsCardNumber(text) === 'boolean'), { numRuns: 2000 });
});

/** How many of `count` texts are taken for card numbers. */
function alarms(count: number, make: (below: (bound: number) => number) => string): number {
  const below = seeded(20261124);
  let alarms = 0;
  for (let i = 0; i < count; i++) if (holdsCardNumber(make(below))) alarms++;
  return alarms;
}
const draw = (below: (bound: number) => number, alphabet: string, length: number): string => Array.from({ length }, () => alphabet[below(alphabet.length)]!).join('');
const HEX = '0123456789abcdef';
const DEC = '0123456789';
const pad = (value: number, width: number): string => String(value).padStart(width, '0');

/** A CNPJ as it is written, with the two check digits of Receita Federal's rule. */
function madeCnpj(twelve: string): string {
  const weights = [6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2];
  let digits = twelve;
  while (digits.length < 14) {
    const rest = Array.from(digits).reduce((sum, digit, i) => sum + Number(digit) * weights[weights.length - digits.length + i]!, 0) % 11;
    digits += String(rest < 2 ? 0 : 11 - rest);
  }
  return digits.replace(/(..)(...)(...)(....)(..)/, '$1.$2.$3/$4-$5');
}

/** An IBAN with the check digits of ISO 7064. */
function madeIban(country: string, account: string): string {
  const number = account + Array.from(country, (letter) => String(letter.charCodeAt(0) - 55)).join('');
  return `${country}${pad(98 - Number(BigInt(`${number}00`) % 97n), 2)}${account}`;
}

t.test('an IBAN passes when its length and check digits are right, and hides no card number otherwise', async (t) => {
  t.equal(madeIban('DE', '370400440532013000'), 'DE89370400440532013000', 'the example of the IBAN registry');
  for (const text of [`XX89 ${grouped(VISA, 4, ' ')} 00`, `DE89 ${grouped(VISA, 4, ' ')} 0`, `DE99 ${grouped(VISA, 4, ' ')} 00`, `DE89 3704 0044 0532 0130 00 ${VISA}`, `${VISA} DE89370400440532013000`]) t.ok(holdsCardNumber(text), text);
});

t.test('a card number that is grouped like a tax number is found', async (t) => {
  t.equal(madeCnpj('123456780001'), '12.345.678/0001-95', 'the example that texts on CNPJ use');
  t.ok(holdsCardNumber('30.569.309/0259-04'));
  t.ok(holdsCardNumber(`12.345.678/0001-95 ${VISA}`));
});

t.test('false alarms: none for what has a shape of its own', async (t) => {
  const random = pooledRandom();
  const uuid = (below: (bound: number) => number): string => `${draw(below, HEX, 8)}-${draw(below, HEX, 4)}-4${draw(below, HEX, 3)}-${'89ab'[below(4)]}${draw(below, HEX, 3)}-${draw(below, HEX, 12)}`;
  t.equal(alarms(60_000, uuid), 0, 'random UUIDs');
  t.equal(alarms(20_000, () => randomUUID().toUpperCase()), 0, 'UUIDs in upper case');
  t.equal(alarms(20_000, (below) => `/v1/tokens/${uuid(below)}/suspend?x=${uuid(below)}`), 0, 'UUIDs in a URL');
  t.equal(alarms(20_000, (below) => `00-${draw(below, HEX, 31)}a-${draw(below, HEX, 15)}b-01`), 0, 'traceparent');
  t.equal(alarms(20_000, (below) => new Date(below(4_102_444_800) * 1000 + below(1000)).toISOString()), 0, 'ISO 8601 times to 2099');
  t.equal(alarms(20_000, (below) => new Date(below(4_102_444_800) * 1000 + below(1000)).toISOString().replace('T', ' ').replace('Z', pad(below(1000), 3))), 0, 'SQL times with microseconds');
  t.equal(alarms(20_000, (below) => String(1_600_000_000_000 + below(400_000_000) * 1000)), 0, 'Unix milliseconds to 2033');
  t.equal(alarms(20_000, (below) => `${1_600_000_000 + below(400_000_000)}${pad(below(1_000_000), 6)}`), 0, 'Unix microseconds to 2033');
  t.equal(alarms(20_000, (below) => [256, 256, 256, 256].map(below).join('.')), 0, 'IPv4');
  t.equal(alarms(20_000, (below) => `+55 ${11 + below(89)} 9${pad(below(10_000), 4)}-${pad(below(10_000), 4)}`), 0, 'Brazilian mobile numbers');
  t.equal(alarms(20_000, (below) => `+49 15${below(10)} ${pad(below(100_000_000), 8)}`), 0, 'German mobile numbers, 13 digits');
  t.equal(alarms(20_000, (below) => `57 3${pad(below(1_000_000_000), 9)}`), 0, 'Colombian mobile numbers without plus, 12 digits');
  t.equal(alarms(20_000, (below) => `${pad(below(1000), 3)}.${pad(below(1000), 3)}.${pad(below(1000), 3)}-${pad(below(100), 2)}`), 0, 'Brazilian tax numbers of persons (CPF), 11 digits');
  t.equal(alarms(20_000, (below) => madeCnpj(`3${draw(below, DEC, 7)}${pad(1 + below(20), 4)}`)), 0, 'Brazilian tax numbers of companies (CNPJ), 14 digits');
  t.equal(alarms(20_000, (below) => `${draw(below, 'abcdefghij', 6)}.${pad(below(10_000), 4)}@${draw(below, 'abcdefghij', 6)}.example`), 0, 'e-mail addresses');
  t.equal(alarms(20_000, (below) => grouped(madeIban('DE', draw(below, DEC, 18)), 4, ' ')), 0, 'IBANs in groups');
  t.equal(alarms(20_000, (below) => `iban:${madeIban('ES', draw(below, DEC, 20))}, x`), 0, 'IBANs in one piece');
  t.equal(alarms(20_000, () => makeToken(new Date(), random)), 0, 'tokens');
});

t.test('false alarms: rare where letters and digits mix, certain to come where there are digits only', async (t) => {
  const share = (count: number, make: (below: (bound: number) => number) => string): number => alarms(count, make) / count;
  const ulid = share(60_000, (below) => `01K${draw(below, '0123456789ABCDEFGHJKMNPQRSTVWXYZ', 23)}`);
  const span = share(60_000, (below) => draw(below, HEX, 16));
  const trace = share(30_000, (below) => draw(below, HEX, 32));
  const digest = share(20_000, (below) => draw(below, HEX, 64));
  const nano = share(20_000, (below) => draw(below, '0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-', 21));
  const sixteen = share(20_000, (below) => draw(below, DEC, 16));
  const cnpj = share(20_000, (below) => draw(below, DEC, 14));
  const nineteen = share(20_000, (below) => draw(below, DEC, 19));
  const twenty = share(20_000, (below) => draw(below, DEC, 20));
  const double = share(20_000, (below) => `0.${draw(below, DEC, 16)}`);
  t.comment(JSON.stringify({ ulid, span, trace, digest, nano, sixteen, cnpj, nineteen, twenty, double }));
  t.ok(ulid < 0.00005, 'ULIDs: less than 1 in 20,000');
  t.ok(span < 0.0002, '16 hexadecimal digits: about 1 in 10,000');
  t.ok(trace < 0.0006, '32 hexadecimal digits: about 1 in 4,000');
  t.ok(digest < 0.0012, '64 hexadecimal digits: about 1 in 1,500');
  t.ok(nano < 0.00005, 'nanoids: less than 1 in 20,000');
  t.ok(cnpj < 0.007, '14 digits: about 1 in 200');
  t.ok(twenty < 0.01, '20 digits: about 1 in 140, by their zeros or what reads as an expiry');
  t.ok(sixteen > 0.03 && sixteen < 0.05, '16 digits: about 1 in 24');
  t.ok(nineteen < 0.05, '19 digits: about 1 in 30');
  t.ok(double < 0.05, 'fractions of 16 digits: about 1 in 24');
});
