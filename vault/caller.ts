import type { X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';

import { namesOf } from './crl.ts';
import { VaultError } from './errors.ts';
import { peerCertificate } from './peer-certificate.ts';

/** Who calls: all that authorization, quotas and the log know of a client. Made only from a verified certificate. */
export interface Caller {
  /** The certificate's one URI name, `spiffe://<trust-domain>/tenant/<tenant>/service/<service>`. */
  readonly spiffeId: string;
  readonly tenant: string;
  readonly service: string;
  /** The certificate's serial number in lower-case hex without leading zeros: the form that RevocationList keeps. */
  readonly serial: string;
  /** The last moment at which the certificate is valid. Checked on every request, because a connection may outlive it. */
  readonly notAfter: Date;
}

/** A caller as its certificate shows it: with the authority that vouches for it, on whose revocation list it would stand. */
export interface CertifiedCaller extends Caller {
  /** The DER of the issuer's name, in hex: the form that RevocationList keeps. */
  readonly authority: string;
}

/** What step 1 asks of every request, after `callerOf`. O(1); anything but `good` is to be refused. */
export interface RevocationCheck {
  check(caller: CertifiedCaller, now: Date): 'good' | 'revoked' | 'expired' | 'stale';
}

/** One label of a SPIFFE path here: what a DNS label may be, so that tenants and services fit everywhere names go. */
const label = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?';
const path = new RegExp(`^/tenant/(${label})/service/(${label})$`);
const clientAuth = '1.3.6.1.5.5.7.3.2';

/**
 * Reads the caller out of a client certificate. Attacker-controlled as far as a certificate authority lets its clients choose names.
 *
 * Accepts exactly one URI subject alternative name in the whole certificate, which is our form of a SPIFFE ID (SPIFFE X.509-SVID
 * 2 and 4.1) in our trust domain: compared as bytes, so no port, user, query, fragment, percent-encoding or upper case fits. Names of other types
 * are ignored, as SPIFFE asks. Does not verify the chain: the TLS handshake did.
 *
 * @throws VaultError `not_authorized`; its `cause` says which rule, in constant words.
 */
export function parseCaller(certificate: X509Certificate, trustDomain: string): CertifiedCaller {
  const uri = onlyUri(certificate.subjectAltName);
  const prefix = `spiffe://${trustDomain}`;
  if (!uri.startsWith(`${prefix}/`)) throw refusal('the URI name is of another trust domain');
  // SPIFFE ID 2.4 caps an id at 2048 bytes; two labels keep it far below.
  const match = path.exec(uri.slice(prefix.length));
  const tenant = match?.[1];
  const service = match?.[2];
  if (tenant === undefined || service === undefined) throw refusal('the URI name does not have the form of a caller');

  // SPIFFE X.509-SVID 4.2: a leaf must not be an authority. RFC 5280 4.2.1.12: usages, where they are given, bind. Node calls them `keyUsage`.
  if (certificate.ca) throw refusal('the certificate is of an authority');
  const usages: readonly string[] | undefined = certificate.keyUsage;
  if (usages !== undefined && !usages.includes(clientAuth)) throw refusal('the certificate is not for clients');

  return { spiffeId: uri, tenant, service, serial: normalSerial(certificate.serialNumber), notAfter: certificate.validToDate, authority: namesOf(certificate.raw).issuer.toString('hex') };
}

/**
 * The one form in which serial numbers are compared and logged: lower-case hex without leading zeros.
 *
 * @throws VaultError `not_authorized` on anything else than hex digits (a negative serial: RFC 5280 4.1.2.2 wants it positive).
 */
export function normalSerial(hex: string): string {
  if (!/^[0-9a-fA-F]{1,64}$/.test(hex)) throw refusal('the serial number is not positive');
  const serial = hex.toLowerCase().replace(/^0+/, '');
  if (serial === '') throw refusal('the serial number is not positive');
  return serial;
}

const known = new WeakMap<TLSSocket, { readonly caller: CertifiedCaller } | { readonly refused: VaultError }>();

/**
 * The caller behind a connection, the certificate being read once a connection. Right for resumed sessions as well: the ticket carries
 * the certificate of the first handshake. It does not look at revocation: ask `RevocationCheck` on every request.
 *
 * @throws VaultError `not_authorized` for a connection without a verified certificate. `authorized` alone does not say so: older releases
 * of Node 24 set it for every resumed TLS 1.3 session without a certificate (nodejs/node issue 35317; 24.21 does not).
 */
export function callerOf(socket: TLSSocket, trustDomain: string): CertifiedCaller {
  let entry = known.get(socket);
  if (entry === undefined) {
    entry = identify(socket, trustDomain);
    known.set(socket, entry);
  }
  if ('refused' in entry) throw entry.refused;
  return entry.caller;
}

function identify(socket: TLSSocket, trustDomain: string): { readonly caller: CertifiedCaller } | { readonly refused: VaultError } {
  try {
    const certificate = socket.authorized ? peerCertificate(socket) : null;
    if (certificate === null) throw refusal('the connection has no verified certificate');
    return { caller: parseCaller(certificate, trustDomain) };
  } catch (error) {
    return { refused: error instanceof VaultError ? error : refusal('the certificate cannot be read') };
  }
}

function onlyUri(names: string | undefined): string {
  // Node joins names with ', ' and puts those that hold a comma, a quote or a control character in quotes (CVE-2021-44532). Without any quote
  // the text is therefore unambiguous; with one we do not try.
  if (names === undefined) throw refusal('the certificate has no alternative name');
  if (names.includes('"')) throw refusal('an alternative name is ambiguous');
  const uris = names.split(', ').filter((name) => name.startsWith('URI:'));
  const [only] = uris;
  if (only === undefined || uris.length !== 1) throw refusal('the certificate does not have exactly one URI name');
  return only.slice('URI:'.length);
}

function refusal(reason: string): VaultError {
  return new VaultError('not_authorized', { cause: new Error(reason) });
}
