import { secretBytes } from '../hsm/secret-bytes.ts';
import { isIssuedPrefix } from './pan.ts';

/**
 * Finds card numbers and track data where they do not belong. The rules, for text as code points:
 *
 * - Digits are the decimal digits of every script (Unicode Nd). A group is a run of digits. Groups that only separators part
 *   (spaces, dashes, dot, slash, underscore, plus, invisible characters; any number of them) form a chain; anything else, a
 *   letter as well, ends it. A comma joins only groups of up to four digits, as people write thousands, so that lists of ids
 *   stay apart.
 * - A card number is a stretch of whole neighbouring groups of a chain, 12 to 19 digits in all, that passes Luhn and lies in
 *   an issued range of that length. Zeros at the head of a group may be left away (fixed-width fields are filled so).
 * - A card number glued to what follows it on a card is found too: the last group may go on with an expiry (MMYY, YYMM,
 *   MMYYYY, YYYYMM; years 2020 to 2049), alone or with a code of three or four digits. Other runs of 20 and more digits are
 *   no card numbers: cut at every place, one in three would be taken for one.
 * - Passed over: a UUID (RFC 9562, with at least one letter), a W3C traceparent (a letter in both ids), an IBAN (ISO
 *   13616, its country's length and right check digits, in one piece or in groups of four), a Brazilian company's tax number
 *   as it is written (CNPJ, check digits right), and a chain that starts after `+` and has at most 13 digits in all: a phone
 *   number (E.164), where only 13-digit Visa numbers, no longer issued, could be missed.
 * - Track data: `%B`, digits, `^`, `^`; or `;`, 12 to 19 digits, `=`; or a card number, `=` or `D`, and seven digits.
 *
 * Rates of false alarm, measured in card-scan.test.ts. None: UUIDs, traceparents, IBANs, ISO 8601 and Unix times, IPv4
 * addresses, phone numbers with `+`, tokens. Rare: ULIDs and nanoids (below 1 in 20,000), 16, 32, 64 hexadecimal digits (1 in 10,000,
 * 4,000, 1,500). Digits and nothing else cannot be told from a card number: of random numbers of 16 digits one in 24, of 14
 * one in 200. Long lists of small numbers with spaces between them hold many stretches, and the chance grows with each.
 */
export const NOTHING = 0;
export const CARD_NUMBER = 1;
export const TRACK_DATA = 2;
export type Found = typeof NOTHING | typeof CARD_NUMBER | typeof TRACK_DATA;

/** Fewer digits than this hold nothing that the scan looks for. */
export const MIN_DIGITS = 12;

// Classes of code points below 128. Digits have their value.
const SEPARATOR = 16;
const COMMA = 17;
const LETTER = 18;
const OTHER = 19;
const CLASS = new Uint8Array(128).fill(OTHER);
for (let c = 0; c < 10; c++) CLASS[0x30 + c] = c;
for (let c = 0x41; c <= 0x5a; c++) CLASS[c] = CLASS[c + 0x20] = LETTER;
for (const c of ' \t\n\v\f\r-./_+') CLASS[c.charCodeAt(0)] = SEPARATOR;
CLASS[0x2c] = COMMA;

// The zeros of the scripts' decimal digits beyond ASCII, each followed by its one to nine: Unicode 17, general category Nd.
const ND_ZEROS = [
  0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20, 0x1040, 0x1090,
  0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50,
  0xabf0, 0xff10, 0x104a0, 0x10d30, 0x10d40, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0,
  0x116d0, 0x116da, 0x11730, 0x118e0, 0x11950, 0x11bf0, 0x11c50, 0x11d50, 0x11da0, 0x11de0, 0x11f50, 0x16130, 0x16a60, 0x16ac0,
  0x16b50, 0x16d70, 0x1ccf0, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e4f0, 0x1e5f1, 0x1e950, 0x1fbf0,
];

// Spaces (Zs), dashes (Pd), dots, and what is not seen at all (Cf, variation selectors), beyond ASCII.
const WIDE_SEPARATORS: readonly (readonly [number, number])[] = [
  [0x85, 0x85], [0xa0, 0xa0], [0xad, 0xad], [0xb7, 0xb7], [0x34f, 0x34f], [0x58a, 0x58a], [0x61c, 0x61c], [0x1680, 0x1680],
  [0x180b, 0x180f], [0x2000, 0x2015], [0x2022, 0x2022], [0x2024, 0x2024], [0x2027, 0x202f], [0x2043, 0x2044], [0x205f, 0x206f],
  [0x20e3, 0x20e3], [0x2212, 0x2212], [0x2215, 0x2215], [0x22c5, 0x22c5], [0x3000, 0x3000], [0x301c, 0x301c], [0x30fb, 0x30fb],
  [0xfe00, 0xfe0f], [0xfe31, 0xfe33], [0xfe58, 0xfe58], [0xfe63, 0xfe63], [0xfeff, 0xfeff], [0xff0b, 0xff0b], [0xff0d, 0xff0f],
  [0xff3f, 0xff3f], [0xff65, 0xff65], [0xe0000, 0xe007f],
];

function classOf(code: number): number {
  if (code < 128) return CLASS[code]!;
  for (const [from, to] of WIDE_SEPARATORS) if (code >= from && code <= to) return SEPARATOR;
  if (code < 0x660) return OTHER;
  for (const zero of ND_ZEROS) if (code >= zero && code < zero + 10) return code - zero;
  return OTHER;
}

/** Whether a code point is one of those that may part the groups of a card number. */
export function isSeparator(code: number): boolean {
  return classOf(code) === SEPARATOR;
}

const DOUBLED = Uint8Array.of(0, 2, 4, 6, 8, 1, 3, 5, 7, 9);

// The last 32 digits of a chain: longer than a card number with the longest tail (19 + 9). For digit k: its value, whether a
// card number may start there, and the Luhn sums of all digits before it, once with the even-numbered digits doubled and once
// with the odd-numbered. A stretch passes Luhn when the right sum has the same remainder at both its ends: one subtraction
// instead of up to 19 steps, so that "1 1 1 1 …" stays cheap. Outside V8's heap, as they hold digits, and zeroed after each scan.
const RING = 31;
const value = secretBytes(32);
const starts = new Uint8Array(32);
const evenDoubled = secretBytes(32);
const oddDoubled = secretBytes(32);

/**
 * What codes[0, n) holds: code points of a text, see the rules above. Linear in n. Keeps nothing of the text; never throws.
 */
export function scan(codes: Uint32Array, n: number): Found {
  let found: Found = NOTHING;
  let tracks = false;

  let count = 0; // digits in the chain
  let group = 0; // digits in the current group, 0 between groups
  let leadingZeros = true; // the current group has had zeros only
  let phone = false; // the chain starts after a plus
  let phoneCard = false; // … and is a card number if it turns out to be no phone number
  let even = 0;
  let odd = 0;
  let joined = false; // a comma was accepted before the next group

  for (let i = 0; i <= n; i++) {
    const k = i < n ? classOf(codes[i]!) : OTHER;
    if (k < 10) {
      if (count === 0) phone = i > 0 && (codes[i - 1] === 0x2b || codes[i - 1] === 0xff0b);
      if (group === 0) {
        if (i + SHORTEST_ID <= n && !joined) {
          const skip = idLength(codes, i, n);
          if (skip > 0) {
            if (phoneCard && count > 13) found = CARD_NUMBER;
            phoneCard = false;
            count = 0;
            i += skip - 1;
            continue;
          }
        }
        leadingZeros = true;
        joined = false;
      }
      starts[count & RING] = group === 0 || leadingZeros ? 1 : 0;
      if (k !== 0) leadingZeros = false;
      value[count & RING] = k;
      evenDoubled[count & RING] = even;
      oddDoubled[count & RING] = odd;
      even = (even + ((count & 1) === 0 ? DOUBLED[k]! : k)) % 10;
      odd = (odd + ((count & 1) === 1 ? DOUBLED[k]! : k)) % 10;
      count++;
      group++;
      continue;
    }
    if (group > 0) {
      evenDoubled[count & RING] = even;
      oddDoubled[count & RING] = odd;
      if (count >= MIN_DIGITS && found === NOTHING && endsCard(count, group)) {
        if (phone && count <= 13) phoneCard = true;
        else found = CARD_NUMBER;
      }
    }
    if (k === SEPARATOR) {
      group = 0;
      continue;
    }
    if (k === COMMA && group > 0 && group <= 4 && groupAfter(codes, i + 1, n) <= 4) {
      group = 0;
      joined = true;
      continue;
    }
    if (phoneCard && count > 13) found = CARD_NUMBER;
    phoneCard = false;
    phone = false;
    joined = false;
    count = 0;
    group = 0;
    even = 0;
    odd = 0;
    if (k === LETTER) {
      if (i + SHORTEST_ID <= n) {
        const skip = idLength(codes, i, n);
        if (skip > 0) {
          i += skip - 1;
          continue;
        }
      }
      if ((codes[i]! | 0x20) === 0x64) tracks = true; // D
    } else if (i < n && (codes[i] === 0x5e || codes[i] === 0x3d)) tracks = true; // ^ =
  }
  value.fill(0);
  evenDoubled.fill(0);
  oddDoubled.fill(0);
  return tracks && holdsTrack(codes, n) ? TRACK_DATA : found;
}

/** How many digits follow at `at`, up to five; five as well for none, so that a comma before no group never joins. */
function groupAfter(codes: Uint32Array, at: number, n: number): number {
  let length = 0;
  while (length < 5 && at + length < n && classOf(codes[at + length]!) < 10) length++;
  return length === 0 ? 5 : length;
}

/** Whether a card number ends at digit `end` of the chain, whose current group has `group` digits, or ends there with a tail. */
function endsCard(end: number, group: number): boolean {
  if (isCardBefore(end)) return true;
  if (group < 5) return false;
  for (let tail = 4; tail <= 9 && tail < group; tail++) {
    if (tail !== 5 && isExpiry(end - tail, tail) && isCardBefore(end - tail)) return true;
  }
  return false;
}

function isCardBefore(end: number): boolean {
  const sums = (end & 1) === 0 ? evenDoubled : oddDoubled; // the last digit, end - 1, is not doubled
  const sum = sums[end & RING]!;
  for (let length = MIN_DIGITS; length <= 19 && length <= end; length++) {
    const start = end - length;
    if (starts[start & RING] === 0 || sums[start & RING] !== sum) continue;
    let prefix = 0;
    for (let k = start; k < start + 6; k++) prefix = prefix * 10 + value[k & RING]!;
    if (isIssuedPrefix(prefix, length)) return true;
  }
  return false;
}

/** Whether the digits at `at` read as an expiry, `tail` digits with a code of three or four behind it or none. */
function isExpiry(at: number, tail: number): boolean {
  const two = (k: number): number => value[(at + k) & RING]! * 10 + value[(at + k + 1) & RING]!;
  const isMonth = (m: number): boolean => m >= 1 && m <= 12;
  const isYear = (y: number): boolean => y >= 20 && y <= 49;
  const short = (isMonth(two(0)) && isYear(two(2))) || (isYear(two(0)) && isMonth(two(2)));
  if (short && (tail === 4 || tail === 7 || tail === 8)) return true;
  const long = (isMonth(two(0)) && two(2) === 20 && isYear(two(4))) || (two(0) === 20 && isYear(two(2)) && isMonth(two(4)));
  return long && (tail === 6 || tail === 9);
}

const isAlphanumeric = (code: number): boolean => code < 128 && CLASS[code]! !== OTHER && CLASS[code]! !== SEPARATOR && CLASS[code]! !== COMMA;
const isHex = (code: number): boolean => (code >= 0x30 && code <= 0x39) || ((code | 0x20) >= 0x61 && (code | 0x20) <= 0x66);

/**
 * The length of the UUID (RFC 9562 section 4), traceparent (W3C Trace Context section 3.2), IBAN or formatted CNPJ that starts
 * at `at` and ends before a character that is neither letter nor digit nor dash; 0 where there is none, or where a UUID or
 * traceparent lacks letters: then it could be digits that someone grouped so.
 */
function idLength(codes: Uint32Array, at: number, n: number): number {
  if (at > 0 && isAlphanumeric(codes[at - 1]!)) return 0;
  const dash = 0x2d;
  if (codes[at]! > 0x40 && codes[at + 1]! > 0x40 && CLASS[codes[at + 2]!]! < 10) {
    const iban = ibanLength(codes, at, n);
    if (iban > 0) return iban;
  }
  if (codes[at + 2] === 0x2e && codes[at + 6] === 0x2e && codes[at + 10] === 0x2f && codes[at + 15] === dash) return isCnpj(codes, at, n) ? 18 : 0;
  if (at + 36 > n) return 0;
  if (codes[at + 8] === dash && codes[at + 13] === dash && codes[at + 18] === dash && codes[at + 23] === dash) {
    const version = codes[at + 14]!;
    const variant = codes[at + 19]!;
    const isVersioned = version >= 0x31 && version <= 0x38 && (variant === 0x38 || variant === 0x39 || (variant | 0x21) === 0x61 || (variant | 0x20) === 0x62);
    if (isVersioned && isHexWithDashes(codes, at, 36, n) && hasLetter(codes, at, 36)) return 36;
  }
  if (at + 55 <= n && codes[at + 2] === dash && codes[at + 35] === dash && codes[at + 52] === dash) {
    if (isHexWithDashes(codes, at, 55, n) && hasLetter(codes, at + 3, 32) && hasLetter(codes, at + 36, 16)) return 55;
  }
  return 0;
}

const SHORTEST_ID = 15;

// IBAN lengths by country: SWIFT's IBAN registry, the public list under ISO 13616-2.
const IBAN_LENGTHS = new Map<number, number>();
for (const entry of (
  'AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 ' +
  'FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ' +
  'ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ' +
  'ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30'
).split(' ')) {
  IBAN_LENGTHS.set(entry.charCodeAt(0) * 256 + entry.charCodeAt(1), Number(entry.slice(2)));
}

/** How far the IBAN at `at` reaches, with its blanks, its check digits being right (ISO 7064, modulo 97); 0 for none. */
function ibanLength(codes: Uint32Array, at: number, n: number): number {
  const upper = (code: number): number => (code >= 0x61 && code <= 0x7a ? code - 0x20 : code);
  const characters = IBAN_LENGTHS.get(upper(codes[at]!) * 256 + upper(codes[at + 1]!)) ?? 0;
  const isGrouped = codes[at + 4] === 0x20;
  const end = at + characters + (isGrouped ? Math.ceil(characters / 4) - 1 : 0);
  if (characters === 0 || end > n || (end < n && isAlphanumeric(codes[end]!))) return 0;
  const valueAt = (k: number): number => {
    const code = codes[at + k + (isGrouped ? Math.trunc(k / 4) : 0)]!;
    if (isGrouped && k > 0 && k % 4 === 0 && codes[at + k + k / 4 - 1] !== 0x20) return -1;
    return isAlphanumeric(code) ? (code <= 0x39 ? code - 0x30 : upper(code) - 55) : -1;
  };
  let rest = 0;
  for (let k = 0; k < characters; k++) {
    const value = valueAt((k + 4) % characters); // the country and the check digits come last
    if (value < 0) return 0;
    rest = (rest * (value > 9 ? 100 : 10) + value) % 97;
  }
  return rest === 1 ? end - at : 0;
}

/** Whether a CNPJ, dd.ddd.ddd/dddd-dd, stands at `at`, with both of its check digits right (Receita Federal: modulo 11). */
function isCnpj(codes: Uint32Array, at: number, n: number): boolean {
  if (at + 18 > n) return false;
  if (at + 18 < n && (isAlphanumeric(codes[at + 18]!) || codes[at + 18] === 0x2d)) return false;
  let first = 0;
  let second = 0;
  let count = 0;
  for (let i = at; i < at + 18; i++) {
    if (i === at + 2 || i === at + 6 || i === at + 10 || i === at + 15) continue;
    const digit = codes[i]! - 0x30;
    if (digit < 0 || digit > 9) return false;
    // Weights 5 4 3 2 9 8 … 2 for the first check digit, 6 5 4 3 2 9 … 2 for the second.
    if (count === 12 && digit !== (first % 11 < 2 ? 0 : 11 - (first % 11))) return false;
    if (count === 13) return digit === (second % 11 < 2 ? 0 : 11 - (second % 11));
    first += digit * (count < 4 ? 5 - count : 13 - count);
    second += digit * (count < 5 ? 6 - count : 14 - count);
    count++;
  }
  return false;
}

function isHexWithDashes(codes: Uint32Array, at: number, length: number, n: number): boolean {
  if (at + length < n && (isAlphanumeric(codes[at + length]!) || codes[at + length] === 0x2d)) return false;
  let dashes = 0;
  for (let i = at; i < at + length; i++) {
    if (codes[i] === 0x2d) dashes++;
    else if (!isHex(codes[i]!)) return false;
  }
  return dashes === (length === 36 ? 4 : 3);
}

function hasLetter(codes: Uint32Array, at: number, length: number): boolean {
  for (let i = at; i < at + length; i++) if (codes[i]! > 0x40) return true;
  return false;
}

// ISO/IEC 7813: track 1 is % B PAN ^ name ^ expiry service discretionary ?, track 2 is ; PAN = expiry service discretionary ?.
// EMV's track 2 equivalent data (tag 57) has D for =.
function holdsTrack(codes: Uint32Array, n: number): boolean {
  for (let i = 0; i < n; i++) {
    const code = codes[i]!;
    const digit = classOf(code);
    if (code === 0x25 && i + 1 < n && (codes[i + 1]! | 0x20) === 0x62) {
      const end = skipDigitsAndSpaces(codes, i + 2, n);
      if (end - i >= 10 && codes[end] === 0x5e && end < n) {
        for (let j = end + 1; j < n && j <= end + 40; j++) if (codes[j] === 0x5e) return true;
      }
    } else if (digit < 10 && (i === 0 || classOf(codes[i - 1]!) >= 10)) {
      let end = i;
      while (end < n && classOf(codes[end]!) < 10) end++;
      const mark = end < n ? codes[end]! : 0;
      const length = end - i;
      if (length >= 12 && length <= 19 && (mark === 0x3d || (mark | 0x20) === 0x64)) {
        if (mark === 0x3d && i > 0 && codes[i - 1] === 0x3b) return true;
        let after = end + 1;
        while (after < n && classOf(codes[after]!) < 10) after++;
        if (after - end > 7 && isCard(codes, i, end)) return true;
      }
      i = end - 1;
    }
  }
  return false;
}

function skipDigitsAndSpaces(codes: Uint32Array, at: number, n: number): number {
  let i = at;
  while (i < n && (classOf(codes[i]!) < 10 || codes[i] === 0x20)) i++;
  return i;
}

function isCard(codes: Uint32Array, start: number, end: number): boolean {
  let sum = 0;
  let prefix = 0;
  for (let i = start; i < end; i++) {
    const k = classOf(codes[i]!);
    sum += ((end - i) & 1) === 0 ? DOUBLED[k]! : k;
    if (i < start + 6) prefix = prefix * 10 + k;
  }
  return sum % 10 === 0 && isIssuedPrefix(prefix, end - start);
}

/**
 * Whether a text that Node has made a string already (a URL, a header) holds a card number or track data, by the rules above;
 * as it stands, and with percent escapes decoded up to three times over. A malformed escape stands for itself. Linear in the
 * length; never throws; keeps nothing.
 */
export function holdsCardNumber(text: string): boolean {
  if (text.length < MIN_DIGITS) return false;
  const codes = new Uint32Array(Math.max(text.length, 32)); // V8 keeps arrays of up to 64 bytes in its heap, and copies them
  let n = 0;
  let suspects = 0;
  let escaped = false;
  for (let i = 0; i < text.length; i++) {
    let code = text.charCodeAt(i);
    if (code >= 0xd800 && code < 0xdc00 && i + 1 < text.length) {
      const low = text.charCodeAt(i + 1);
      if (low >= 0xdc00 && low < 0xe000) {
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        i++;
      }
    }
    if (code > 127 || CLASS[code]! < 10) suspects++;
    if (code === 0x25) escaped = true;
    codes[n++] = code;
  }
  if (suspects < MIN_DIGITS) return false; // a percent escape of a digit holds a digit itself
  let found = scan(codes, n) !== NOTHING;
  for (let layer = 0; layer < 3 && escaped && !found; layer++) {
    const decoded = decodePercent(codes, n);
    escaped = decoded < n;
    n = decoded;
    found = scan(codes, n) !== NOTHING;
  }
  codes.fill(0);
  return found;
}

/** Decodes the percent escapes of codes[0, n) in place, as UTF-8 where they are, else byte by byte; returns the new length. */
function decodePercent(codes: Uint32Array, n: number): number {
  let out = 0;
  let i = 0;
  const byteAt = (at: number): number => {
    if (at + 2 >= n || codes[at] !== 0x25 || !isHex(codes[at + 1]!) || !isHex(codes[at + 2]!)) return -1;
    return hexValue(codes[at + 1]!) * 16 + hexValue(codes[at + 2]!);
  };
  while (i < n) {
    const byte = byteAt(i);
    if (byte < 0) {
      codes[out++] = codes[i++]!;
      continue;
    }
    i += 3;
    const more = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : byte >= 0xc2 ? 1 : 0;
    let code = more === 0 ? byte : byte & (0x3f >> more);
    let taken = 0;
    while (taken < more) {
      const next = byteAt(i + taken * 3);
      if (next < 0x80 || next > 0xbf) break;
      code = code * 64 + (next & 0x3f);
      taken++;
    }
    if (taken === more) i += more * 3;
    else code = byte;
    codes[out++] = code;
  }
  return out;
}

function hexValue(code: number): number {
  return code <= 0x39 ? code - 0x30 : (code | 0x20) - 0x61 + 10;
}
