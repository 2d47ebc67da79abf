/** The reader of revocation lists and of names in certificates: the input is a file, or steps that build one in which every length is right. Of a list that is made from it every field must come back. */
import { X509Certificate, generateKeyPairSync } from 'node:crypto';
import { makeCrl } from '../../../platform-adapters/pki/certificate.ts';
import { element } from '../../../platform-adapters/pki/der.ts';
import { namesOf, parseCrls } from '../../../vault/crl.ts';
import type { Target } from '../target.ts';

const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
const issuer = { subject: { organization: 'Fuzz', commonName: 'Fuzz CA' }, key: privateKey };
const constant = /^(?:the file holds no revocation list|(?:a|an entry of a|the signature of a|the number of a|a time in a) revocation list .{5,80})$/u;

/** What `read` returns, or where it refuses in words of its own, these. */
function refusing<T extends object>(read: () => T): T | string {
  try {
    return read();
  } catch (error) {
    if (error instanceof Error && error.constructor === Error && constant.test(error.message)) return error.message;
    throw error;
  }
}

/** What a first byte of 1 begins: elements, each as its tag and either the length of its content, which follows, or 0x80 where elements are its content, up to the tag 0. */
function built(steps: Buffer): Buffer {
  let at = 1;
  const elements = (depth: number): Buffer => {
    const content: Buffer[] = [];
    while (at + 1 < steps.length) {
      const tag = steps[at++]!;
      if (tag === 0 && depth > 0) break;
      const length = steps[at++]!;
      if (length === 0x80 && depth < 12) content.push(element(tag, elements(depth + 1)));
      else {
        content.push(element(tag, steps.subarray(at, at + length)));
        at += length;
      }
    }
    return Buffer.concat(content);
  };
  return elements(0);
}

/** Whether a CRL number (RFC 5280 5.2.3), looked for in all bytes, has that value: not negative, and alone in its extension. */
function saysNumber(bytes: Buffer, number: bigint): boolean {
  const id = Buffer.from([0x06, 0x03, 0x55, 0x1d, 0x14]);
  for (let at = bytes.indexOf(id); at >= 0; at = bytes.indexOf(id, at + 1)) {
    const value = bytes.subarray(at + id.length + (bytes[at + id.length] === 0x01 ? 3 : 0));
    const length = value[3] ?? 0;
    const integer = value.subarray(4, 4 + length);
    if (value[0] === 0x04 && value[1] === length + 2 && value[2] === 0x02 && integer.length === length && length > 0 && integer[0]! < 0x80 && BigInt(`0x${integer.toString('hex')}`) === number) return true;
  }
  return false;
}

/** Whether the length of the first element in the bytes is written as DER wants it, and reaches to their end. */
const isWhole = (bytes: Buffer): boolean => {
  const header = (bytes[1] ?? 0) < 0x80 ? 2 : 2 + ((bytes[1] ?? 0) & 0x7f);
  return element(bytes[0] ?? 0, bytes.subarray(header)).equals(bytes);
};

const isWithin = (part: Uint8Array, bytes: Uint8Array): boolean => part.byteOffset >= bytes.byteOffset && part.byteOffset + part.length <= bytes.byteOffset + bytes.length;

export const target: Target = {
  parallel: 1,
  maxBytes: 700,
  words: ['\x30\x80', '\x00', '\x30\x80\x06\x03\x55\x1d\x14\x01\x01\xff\x04\x03\x02\x01\x05\x00', '\xa0\x80\x30\x80', '\x30\x80\x02\x01\x05\x17\x0d261124120000Z\x00', '-----BEGIN X509 CRL-----\n', '\n-----END X509 CRL-----\n', '\x30\x82', '\x30\x81', '\x30\x84', '\x02\x01\x01', '\x17\x0d261124120000Z', '\x18\x0f20261124120000Z', '\xa0\x0f\x30\x0d', '\x06\x03\x55\x1d\x14\x04\x03\x02\x01\x05', '\x06\x03\x55\x1d\x1b\x01\x01\xff\x04\x03\x02\x01\x05', '\x03\x02\x00\x01', '\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02', '\x01\x01\xff', '\x01\x01\x00', '\x01\x01', '\xff\xff\xff\xff', '\x02\x00'],
  run(given) {
    const input = given[0] === 1 ? built(given) : given;
    const isDer = input[0] === 0x30;
    const lists = refusing(() => parseCrls(input));
    if (typeof lists !== 'string') for (const list of lists) {
      if (!(list.thisUpdate.getTime() === list.thisUpdate.getTime() && list.nextUpdate.getTime() === list.nextUpdate.getTime() && list.number >= 0n)) throw new Error('a list without a time or a number is taken');
      for (const serial of list.serials) if (!/^(?:[1-9a-f][0-9a-f]*)?$/u.test(serial)) throw new Error('a serial has another form');
      if (!saysNumber(list.tbs, list.number)) throw new Error('a number is read that is not there');
      if (!isWhole(list.tbs) || !isWhole(list.issuer) || (isDer && !isWhole(input))) throw new Error('a length is not as DER wants it');
      if (isDer && !(isWithin(list.tbs, input) && isWithin(list.issuer, list.tbs) && isWithin(list.signature, input))) throw new Error('a part is not a part of the file');
    }
    const names = refusing(() => namesOf(input));
    if (typeof names !== 'string' && !(isWithin(names.issuer, input) && isWithin(names.subject, input))) throw new Error('a name is not a part of the certificate');
    if (typeof names === 'string') {
      let isCertificate = true;
      try {
        isCertificate = new X509Certificate(input).raw.equals(input);
      } catch {
        isCertificate = false;
      }
      if (isCertificate) throw new Error('the names of a certificate that OpenSSL reads are not read');
    }

    // A list whose serials and times are the input's bytes.
    const way = typeof lists === 'string' ? lists : `${lists.length} lists of ${lists.reduce((sum, list) => sum + list.serials.size, 0)}`;
    if (input.length < 8 || input.length > 64) return way;
    const moment = input.readUInt32BE(0) * 1000;
    const serials = Array.from({ length: (input[4] ?? 0) % 6 }, (_, k) => input.subarray(5 + k, 5 + k + 1 + ((input[5] ?? 0) % 20)).toString('hex')).filter((serial) => /[1-9a-f]/u.test(serial));
    const fields = { number: BigInt(`0x${input.subarray(4, 4 + 1 + ((input[6] ?? 0) % 19)).toString('hex')}`), thisUpdate: new Date(moment), nextUpdate: new Date(moment + (input[7] ?? 0) * 86_400_000), revoked: serials.map((serial) => ({ serial, at: new Date(moment) })) };
    const [read, ...more] = parseCrls(Buffer.from(makeCrl(fields, issuer)));
    if (read === undefined || more.length > 0) throw new Error('one list is not read as one');
    const wanted = new Set(serials.map((serial) => serial.replace(/^0+/u, '')));
    if (read.number !== fields.number || read.thisUpdate.getTime() !== moment || read.nextUpdate.getTime() !== fields.nextUpdate.getTime() || read.serials.size !== wanted.size || [...wanted].some((serial) => !read.serials.has(serial))) throw new Error('a list is read differently than it was made');
    return way;
  },
};
