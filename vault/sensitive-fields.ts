/**
 * Names of fields that hold sensitive authentication data (SAD), which is refused whatever the value.
 *
 * Source, in own words: PCI DSS v4.0.1, Appendix G (glossary), "Sensitive Authentication Data", "Card Verification Code",
 * "PIN", "PIN Block", "Track Data". SAD is the card verification code, the PIN or PIN block, and the full track from the
 * stripe or its equivalent on the chip. The brands name the code CAV2 (JCB), CVC2 (Mastercard), CVN2 (UnionPay), CVV2 (Visa),
 * CID (American Express, Discover), CVE (Elo), CVP2 (Mir), CVD (Discover). The further spellings are what public payment
 * APIs use, those of Brazil and its neighbours among them. `pincode` is left out: in India that is the postal code.
 */

const CODES = [
  'cav', 'cav2', 'cvc', 'cvc2', 'cvv', 'cvv2', 'cvn', 'cvn2', 'cid', 'csc', 'cve', 'cve2', 'cvd', 'cvd2', 'cvp', 'cvp2', 'cv2',
  'ccv', 'ccv2', 'icvv', 'dcvv', 'securitycode', 'verificationvalue', 'pin', 'pinblock',
];
const CODE_PREFIXES = ['', 'card', 'cc', 'creditcard'];
const CODE_SUFFIXES = ['', 'value', 'number', 'no', 'data'];

const OTHERS = [
  'cvvcode', 'cvv2code', 'cvccode', 'cvc2code', 'cvncode', 'cardcvvcode', 'cardcvccode',
  'cardverificationcode', 'cardverificationnumber', 'cardvalidationcode', 'cardvalidationvalue', 'cardvalidationnumber',
  'cardauthenticationvalue', 'cardauthenticationcode', 'cardidentificationcode', 'cardcode', 'cardidcode',
  'codigoseguranca', 'codigodeseguranca', 'codseguranca', 'codigoseguridad', 'codigodeseguridad',
  'encryptedpin', 'encryptedpinblock', 'pinencrypted', 'pinblockdata', 'epb',
  'track', 'track1', 'track2', 'track3', 'trackone', 'tracktwo', 'tracks', 'trackdata', 'track1data', 'track2data', 'track3data',
  'trackonedata', 'tracktwodata', 'fulltrack', 'fulltrackdata', 'track1equivalentdata', 'track2equivalentdata',
  'track2equivalent', 'cardtrack', 'cardtrackdata', 'encryptedtrack', 'encryptedtrack2', 'magstripe', 'magstripedata',
  'magneticstripe', 'magneticstripedata', 'swipe', 'swipedata', 'swipedtrack',
];

// A rolling hash over the folded name, so that a name is looked up without becoming a string: nothing from a body does before
// it is known to hold no card number. The filter answers for nearly all names with one load.
const names = new Map<number, Uint8Array[]>();
const filter = new Uint8Array(4096);
let longest = 0;

// What a byte counts as in a name: lower case for letters, itself for digits; 0 for `_`, `-` and space, which are left out;
// 1 for what parts a name that was flattened out of several (card.cvv, card[cvv]), each part of which counts; else itself.
const FOLD = new Uint8Array(256);
for (let c = 0; c < 256; c++) FOLD[c] = c >= 0x41 && c <= 0x5a ? c + 0x20 : c;
for (const c of '_- ') FOLD[c.charCodeAt(0)] = 0;
for (const c of '.[]/:') FOLD[c.charCodeAt(0)] = 1;

const step = (hash: number, folded: number): number => (Math.imul(hash, 31) + folded) | 0;

for (const name of [...CODES.flatMap((code) => CODE_PREFIXES.flatMap((p) => CODE_SUFFIXES.map((s) => p + code + s))), ...OTHERS]) {
  const bytes = Buffer.from(name, 'latin1');
  const hash = bytes.reduce(step, 0);
  const same = names.get(hash);
  if (same === undefined) names.set(hash, [bytes]);
  else same.push(bytes);
  filter[hash & 4095] = 1;
  longest = Math.max(longest, bytes.length);
}

/**
 * Whether the member name in bytes[start, end) names sensitive authentication data: case, `_`, `-` and space do not count, and
 * each part of a flattened name (`card.cvv`, `card[cvv]`) counts by itself. Makes no string; never throws.
 */
export function isSensitiveName(bytes: Uint8Array, start: number, end: number): boolean {
  let hash = 0;
  let length = 0;
  let partStart = start;
  for (let i = start; i < end; i++) {
    const folded = FOLD[bytes[i]!]!;
    if (folded > 1) {
      hash = (Math.imul(hash, 31) + folded) | 0;
      length++;
    } else if (folded === 1) {
      if (filter[hash & 4095] === 1 && length <= longest && isListed(hash, bytes, partStart, i, length)) return true;
      hash = 0;
      length = 0;
      partStart = i + 1;
    }
  }
  return filter[hash & 4095] === 1 && length <= longest && isListed(hash, bytes, partStart, end, length);
}

function isListed(hash: number, bytes: Uint8Array, start: number, end: number, length: number): boolean {
  const candidates = names.get(hash);
  if (candidates === undefined) return false;
  for (const name of candidates) {
    if (name.length !== length) continue;
    let k = 0;
    for (let i = start; i < end; i++) {
      const folded = FOLD[bytes[i]!]!;
      if (folded === 0) continue;
      if (folded !== name[k]) break;
      k++;
    }
    if (k === length) return true;
  }
  return false;
}
