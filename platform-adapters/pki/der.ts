/**
 * Writes DER (X.690 10): the dozen forms that a certificate and a revocation list need. Every function returns a whole element, tag and length
 * included, as a new Buffer. Reading is not done here.
 */

/** One element: `tag (1) || length (1..5) || content`. */
export function element(tag: number, ...content: readonly Uint8Array[]): Buffer {
  const length = content.reduce((sum, part) => sum + part.length, 0);
  return Buffer.concat([Buffer.from([tag]), lengthOf(length), ...content]);
}

export const sequence = (...content: readonly Uint8Array[]): Buffer => element(0x30, ...content);
export const set = (...content: readonly Uint8Array[]): Buffer => element(0x31, ...content);
export const octets = (content: Uint8Array): Buffer => element(0x04, content);
export const utf8 = (text: string): Buffer => element(0x0c, Buffer.from(text, 'utf8'));
export const yes = (): Buffer => element(0x01, Buffer.from([0xff]));
/** Context-specific and constructed: an EXPLICIT tag, or an IMPLICIT one over a constructed form. */
export const tagged = (number: number, ...content: readonly Uint8Array[]): Buffer => element(0xa0 | number, ...content);
/** Context-specific and primitive: an IMPLICIT tag over a primitive form. */
export const taggedPrimitive = (number: number, content: Uint8Array): Buffer => element(0x80 | number, content);

/** A non-negative INTEGER from its big-endian magnitude, leading zeros allowed. */
export function integer(magnitude: Uint8Array): Buffer {
  let start = 0;
  while (start < magnitude.length - 1 && magnitude[start] === 0) start += 1;
  const digits = magnitude.subarray(start);
  const negativeLooking = digits.length === 0 || (digits[0] ?? 0) >= 0x80;
  return element(0x02, negativeLooking ? Buffer.concat([Buffer.of(0), digits]) : digits);
}

/** A non-negative INTEGER. */
export function integerOf(value: bigint): Buffer {
  const hex = value.toString(16);
  return integer(Buffer.from(hex.length % 2 === 0 ? hex : `0${hex}`, 'hex'));
}

/** A BIT STRING of whole bytes. */
export const bits = (content: Uint8Array): Buffer => element(0x03, Buffer.of(0), content);

/** A BIT STRING of named bits (X.690 11.2.2: trailing zero bits are left out), e.g. KeyUsage. */
export function namedBits(...numbers: readonly number[]): Buffer {
  const highest = Math.max(...numbers);
  const content = Buffer.alloc(Math.floor(highest / 8) + 1);
  for (const number of numbers) {
    const at = Math.floor(number / 8);
    content[at] = (content[at] ?? 0) | (0x80 >> (number % 8));
  }
  return element(0x03, Buffer.of(7 - (highest % 8)), content);
}

export function oid(dotted: string): Buffer {
  const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number);
  const content: number[] = [];
  for (const arc of [first * 40 + second, ...rest]) {
    const groups = [arc % 128];
    for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128)) groups.unshift((left % 128) | 0x80);
    content.push(...groups);
  }
  return element(0x06, Buffer.from(content));
}

/** Time as RFC 5280 4.1.2.5 wants it: UTCTime to 2049, GeneralizedTime after; whole seconds, UTC. */
export function time(moment: Date): Buffer {
  const text = `${moment.toISOString().slice(0, 19).replaceAll(/[-:T]/g, '')}Z`;
  return moment.getUTCFullYear() < 2050 ? element(0x17, Buffer.from(text.slice(2))) : element(0x18, Buffer.from(text));
}

function lengthOf(length: number): Buffer {
  if (length < 0x80) return Buffer.of(length);
  const bytes: number[] = [];
  for (let left = length; left > 0; left = Math.floor(left / 256)) bytes.unshift(left % 256);
  return Buffer.from([0x80 | bytes.length, ...bytes]);
}
