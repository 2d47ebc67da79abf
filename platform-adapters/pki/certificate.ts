import { createHash, createPublicKey, randomBytes, sign, type KeyObject } from 'node:crypto';
import { isIPv4, isIPv6 } from 'node:net';

import * as der from './der.ts';

/** A distinguished name of at most two parts; more is not needed here. */
export interface SubjectFields {
  readonly organization: string;
  readonly commonName: string;
}

export interface AlternativeName {
  readonly type: 'uri' | 'dns' | 'ip' | 'email';
  readonly value: string;
}

/** Who signs: an authority's name and its P-256 private key. */
export interface Issuer {
  readonly subject: SubjectFields;
  readonly key: KeyObject;
}

export interface CertificateFields {
  readonly subject: SubjectFields;
  readonly names: readonly AlternativeName[];
  /** Extended key usages; empty leaves the extension out. */
  readonly usages: readonly ('serverAuth' | 'clientAuth')[];
  /** Makes it an authority's certificate, with this many authorities below it. */
  readonly authority?: { readonly pathLength: number };
  readonly notBefore: Date;
  readonly notAfter: Date;
  /** Magnitude, big-endian; by default 16 random bytes. */
  readonly serial?: Uint8Array;
}

export interface CrlFields {
  /** Grows with every list that this authority signs (RFC 5280 5.2.3). */
  readonly number: bigint;
  readonly thisUpdate: Date;
  readonly nextUpdate: Date;
  /** Serials in hex, each with the moment of its revocation. */
  readonly revoked: readonly { readonly serial: string; readonly at: Date }[];
}

const usageOids = { serverAuth: '1.3.6.1.5.5.7.3.1', clientAuth: '1.3.6.1.5.5.7.3.2' };

/**
 * Signs an X.509 v3 certificate (RFC 5280 4.1) with ECDSA P-256 and SHA-256, for `publicKey`. Gives basicConstraints, keyUsage, both key
 * identifiers, and whatever names and usages the fields say: it judges nothing, so that tests can make odd ones.
 *
 * @returns the certificate in PEM.
 */
export function makeCertificate(fields: CertificateFields, publicKey: KeyObject, issuer: Issuer): string {
  const extensions = [
    extension('2.5.29.19', true, fields.authority === undefined ? der.sequence() : der.sequence(der.yes(), der.integerOf(BigInt(fields.authority.pathLength)))),
    // keyUsage bits (RFC 5280 4.2.1.3): 0 digitalSignature, 5 keyCertSign, 6 cRLSign.
    extension('2.5.29.15', true, fields.authority === undefined ? der.namedBits(0) : der.namedBits(5, 6)),
    extension('2.5.29.14', false, der.octets(keyIdentifier(publicKey))),
    extension('2.5.29.35', false, authorityKeyIdentifier(issuer)),
  ];
  if (fields.usages.length > 0) extensions.push(extension('2.5.29.37', false, der.sequence(...fields.usages.map((usage) => der.oid(usageOids[usage])))));
  if (fields.names.length > 0) extensions.push(extension('2.5.29.17', false, der.sequence(...fields.names.map(alternativeName))));
  const tbs = der.sequence(
    der.tagged(0, der.integerOf(2n)),
    der.integer(fields.serial ?? randomSerial()),
    ecdsaWithSha256(),
    name(issuer.subject),
    der.sequence(der.time(fields.notBefore), der.time(fields.notAfter)),
    name(fields.subject),
    publicKey.export({ type: 'spki', format: 'der' }),
    der.tagged(3, der.sequence(...extensions)),
  );
  return pem('CERTIFICATE', signed(tbs, issuer.key));
}

/**
 * Signs a complete revocation list (RFC 5280 5.1, version 2) with its number and the authority's key identifier.
 *
 * @returns the list in PEM.
 */
export function makeCrl(fields: CrlFields, issuer: Issuer): string {
  const entries = fields.revoked.map(({ serial, at }) => der.sequence(der.integer(Buffer.from(serial.length % 2 === 0 ? serial : `0${serial}`, 'hex')), der.time(at)));
  const tbs = der.sequence(
    der.integerOf(1n),
    ecdsaWithSha256(),
    name(issuer.subject),
    der.time(fields.thisUpdate),
    der.time(fields.nextUpdate),
    // RFC 5280 5.1.2.6: without entries the list is absent, not empty.
    ...(entries.length === 0 ? [] : [der.sequence(Buffer.concat(entries))]),
    der.tagged(0, der.sequence(extension('2.5.29.35', false, authorityKeyIdentifier(issuer)), extension('2.5.29.20', false, der.integerOf(fields.number)))),
  );
  return pem('X509 CRL', signed(tbs, issuer.key));
}

/** 128 random bits, the first one set so that every serial has the same length and none is zero. 16 bytes. */
function randomSerial(): Buffer {
  const serial = randomBytes(16);
  serial[0] = (serial[0] ?? 0) | 0x80;
  return serial;
}

function signed(tbs: Buffer, key: KeyObject): Buffer {
  return der.sequence(tbs, ecdsaWithSha256(), der.bits(sign('sha256', tbs, key)));
}

function ecdsaWithSha256(): Buffer {
  return der.sequence(der.oid('1.2.840.10045.4.3.2'));
}

/** RFC 7093 2, method 4: SHA-256 over the whole SubjectPublicKeyInfo. 32 bytes. */
function keyIdentifier(publicKey: KeyObject): Buffer {
  return createHash('sha256').update(publicKey.export({ type: 'spki', format: 'der' })).digest();
}

function authorityKeyIdentifier(issuer: Issuer): Buffer {
  return der.sequence(der.taggedPrimitive(0, keyIdentifier(createPublicKey(issuer.key))));
}

function extension(id: string, critical: boolean, value: Buffer): Buffer {
  return der.sequence(der.oid(id), ...(critical ? [der.yes()] : []), der.octets(value));
}

function name(subject: SubjectFields): Buffer {
  const part = (id: string, text: string): Buffer => der.set(der.sequence(der.oid(id), der.utf8(text)));
  return der.sequence(part('2.5.4.10', subject.organization), part('2.5.4.3', subject.commonName));
}

function alternativeName({ type, value }: AlternativeName): Buffer {
  // GeneralName (RFC 5280 4.2.1.6): 1 email, 2 DNS, 6 URI, 7 IP address in network order.
  if (type === 'ip') return der.taggedPrimitive(7, address(value));
  return der.taggedPrimitive({ email: 1, dns: 2, uri: 6 }[type], Buffer.from(value, 'utf8'));
}

function address(text: string): Buffer {
  if (isIPv4(text)) return Buffer.from(text.split('.').map(Number));
  if (!isIPv6(text)) throw new Error('an IP name of a certificate is no address');
  const [head = '', tail] = text.split('::');
  const groups = (part: string): number[] => (part === '' ? [] : part.split(':').map((group) => Number.parseInt(group, 16)));
  const left = groups(head);
  const right = groups(tail ?? '');
  const all = tail === undefined ? left : [...left, ...Array.from({ length: 8 - left.length - right.length }, () => 0), ...right];
  const bytes = Buffer.alloc(16);
  for (const [index, group] of all.entries()) bytes.writeUInt16BE(group, index * 2);
  return bytes;
}

function pem(label: string, content: Buffer): string {
  const lines = content.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}
