/**
 * Reads certificate revocation lists (RFC 5280 5), strictly and without a library: the list decides who is let in, has one fixed form, and may hold
 * a hundred thousand entries that must not stall the event loop. Reads only; whether to believe a list is revocation.ts's question. Pure.
 */

export interface Crl {
  /** The signed bytes. Borrowed from the input. */
  readonly tbs: Buffer;
  /** The whole DER of the issuer's name. Borrowed from the input. */
  readonly issuer: Buffer;
  /** Dotted. */
  readonly signatureAlgorithm: string;
  /** Borrowed from the input. */
  readonly signature: Buffer;
  readonly thisUpdate: Date;
  readonly nextUpdate: Date;
  readonly number: bigint;
  /** Lower-case hex without leading zeros. */
  readonly serials: ReadonlySet<string>;
}

const oids = { authorityKeyIdentifier: '2.5.29.35', crlNumber: '2.5.29.20' };

/**
 * Every list of a file: one in DER, or any number in PEM with text between them ignored.
 *
 * @throws Error with a constant message on anything that is not a complete list: delta, indirect and partitioned lists are marked by critical
 * extensions (RFC 5280 5.2.4, 5.2.5, 5.3.3), and every critical extension is refused; so is a list without nextUpdate or without a number.
 */
export function parseCrls(file: Buffer): readonly Crl[] {
  if (file[0] === 0x30) return [parseCrl(file)];
  const blocks = [...file.toString('latin1').matchAll(/-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----/g)];
  if (blocks.length === 0) throw new Error('the file holds no revocation list');
  return blocks.map(([, base64 = '']) => parseCrl(Buffer.from(base64, 'base64')));
}

/**
 * The names in a certificate, from its DER: each as the whole DER of the name, as a list's `issuer` has it (RFC 5280 4.1). Borrowed.
 *
 * @throws Error with a constant message where it is not DER.
 */
export function namesOf(certificate: Buffer): { readonly issuer: Buffer; readonly subject: Buffer } {
  const tbs = new Reader(certificate).enter(0x30).enter(0x30);
  if (tbs.next() === 0xa0) tbs.take(0xa0);
  tbs.take(0x02); // serial number
  tbs.take(0x30); // signature
  const issuer = tbs.whole(0x30);
  tbs.take(0x30); // validity
  return { issuer, subject: tbs.whole(0x30) };
}

function parseCrl(bytes: Buffer): Crl {
  const file = new Reader(bytes);
  const outer = file.enter(0x30);
  file.end();
  const tbs = outer.whole(0x30);
  const outerAlgorithm = outer.whole(0x30);
  const signature = outer.take(0x03);
  outer.end();
  if (signature[0] !== 0) throw new Error('the signature of a revocation list is not whole bytes');

  const list = new Reader(tbs).enter(0x30);
  const version = list.take(0x02);
  if (version.length !== 1 || version[0] !== 1) throw new Error('a revocation list is not of version 2');
  // RFC 5280 5.1.2.2: the signed copy of the algorithm must be the one outside, or an attacker could choose.
  if (!list.whole(0x30).equals(outerAlgorithm)) throw new Error('a revocation list names two signature algorithms');
  const issuer = list.whole(0x30);
  const thisUpdate = time(list);
  if (list.next() !== 0x17 && list.next() !== 0x18) throw new Error('a revocation list does not say when the next one comes');
  const nextUpdate = time(list);

  const serials = new Set<string>();
  if (list.next() === 0x30) {
    const entries = list.enter(0x30);
    while (entries.next() !== null) {
      const entry = entries.enter(0x30);
      serials.add(serialOf(entry.take(0x02)));
      // When it was revoked decides nothing here, and reading it is half the time that a long list takes.
      entry.take(entry.next() === 0x18 ? 0x18 : 0x17);
      if (entry.next() !== null) for (const { critical } of extensions(entry.enter(0x30))) if (critical) throw new Error('an entry of a revocation list has a critical extension');
      entry.end();
    }
  }

  let number: bigint | null = null;
  if (list.next() === 0xa0) {
    const wrapper = list.enter(0xa0);
    const seen = new Set<string>();
    for (const { id, critical, value } of extensions(wrapper.enter(0x30))) {
      // RFC 5280 4.2, for lists as for certificates.
      if (seen.has(id)) throw new Error('a revocation list has an extension twice');
      seen.add(id);
      if (id === oids.crlNumber) {
        const reader = new Reader(value);
        const integer = reader.take(0x02);
        reader.end();
        if (integer.length > 20 || (integer[0] ?? 0x80) >= 0x80) throw new Error('the number of a revocation list is out of range');
        number = BigInt(`0x${integer.toString('hex')}`);
      } else if (critical && id !== oids.authorityKeyIdentifier) {
        throw new Error('a revocation list has a critical extension, so it is not a complete list');
      }
    }
    wrapper.end();
  }
  list.end();
  if (number === null) throw new Error('a revocation list has no number');

  const signatureAlgorithm = dotted(new Reader(outerAlgorithm).enter(0x30).take(0x06));
  return { tbs, issuer, signatureAlgorithm, signature: signature.subarray(1), thisUpdate, nextUpdate, number, serials };
}

function* extensions(list: Reader): Generator<{ id: string; critical: boolean; value: Buffer }> {
  while (list.next() !== null) {
    const extension = list.enter(0x30);
    const id = dotted(extension.take(0x06));
    const critical = extension.next() === 0x01 && extension.take(0x01)[0] !== 0;
    const value = extension.take(0x04);
    extension.end();
    yield { id, critical, value };
  }
}

function serialOf(integer: Buffer): string {
  return integer.toString('hex').replace(/^0+/, '');
}

/** UTCTime or GeneralizedTime, to the second and in UTC (RFC 5280 5.1.2.4 to 5.1.2.6). */
function time(reader: Reader): Date {
  const generalized = reader.next() === 0x18;
  const text = reader.take(generalized ? 0x18 : 0x17).toString('latin1');
  const digits = generalized ? text : `${text < '50' ? '20' : '19'}${text}`;
  const match = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/.exec(digits);
  const moment = match === null ? Number.NaN : Date.parse(`${match[1]}-${match[2]}-${match[3]}T${match[4]}:${match[5]}:${match[6]}Z`);
  if (Number.isNaN(moment)) throw new Error('a time in a revocation list is malformed');
  return new Date(moment);
}

function dotted(content: Buffer): string {
  const arcs: number[] = [];
  let arc = 0;
  for (const byte of content) {
    arc = arc * 128 + (byte & 0x7f);
    if (byte < 0x80) {
      arcs.push(arc);
      arc = 0;
    }
  }
  const [first = 0, ...rest] = arcs;
  const top = Math.min(2, Math.floor(first / 40));
  return [top, first - top * 40, ...rest].join('.');
}

/** Walks DER elements in place. Every step checks its tag and that it stays inside its parent. */
class Reader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  /** The tag of the next element, null at the end. */
  next(): number | null {
    return this.#bytes[this.#at] ?? null;
  }

  /** The next element with its tag and length. */
  whole(tag: number): Buffer {
    const start = this.#at;
    this.take(tag);
    return this.#bytes.subarray(start, this.#at);
  }

  enter(tag: number): Reader {
    return new Reader(this.take(tag));
  }

  end(): void {
    if (this.#at !== this.#bytes.length) throw malformed();
  }

  /** The content of the next element. */
  take(tag: number): Buffer {
    if (this.#bytes[this.#at] !== tag) throw malformed();
    let length = this.#bytes[this.#at + 1] ?? 0x80;
    let start = this.#at + 2;
    if (length >= 0x80) {
      const count = length - 0x80;
      // 0 would be BER's open end; four bytes are more than any list.
      if (count < 1 || count > 4) throw malformed();
      length = 0;
      for (let index = 0; index < count; index += 1) length = length * 256 + (this.#bytes[start + index] ?? Number.NaN);
      if (!(length >= 0x80) || length < 256 ** (count - 1)) throw malformed();
      start += count;
    }
    const end = start + length;
    if (end > this.#bytes.length) throw malformed();
    this.#at = end;
    return this.#bytes.subarray(start, end);
  }
}

function malformed(): Error {
  return new Error('a revocation list or certificate is not DER');
}
