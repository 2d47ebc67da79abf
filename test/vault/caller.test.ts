import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { TLSSocket } from 'node:tls';

import t from 'tap';

import type { AlternativeName } from '../../platform-adapters/pki/certificate.ts';
import { callerOf, normalSerial, parseCaller } from '../../vault/caller.ts';
import { namesOf } from '../../vault/crl.ts';
import { VaultError } from '../../vault/errors.ts';
import { serialOf, testPki } from '../support/pki.ts';

const pki = testPki(t);
const certificate = (...names: readonly AlternativeName[]): X509Certificate => new X509Certificate(pki.issue({ names }).cert);
const uri = (value: string): AlternativeName => ({ type: 'uri', value });

/** The constant reason behind a refusal; fails the test on anything else. */
function reasonOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    if (error instanceof VaultError && error.code === 'not_authorized') return (error.cause as Error).message;
    throw error;
  }
  throw new Error('it was let in');
}

t.test('a certificate with one URI name of our form gives the caller', (t) => {
  const { cert } = pki.credentials('checkout-globex');
  const read = new X509Certificate(cert);
  t.same(parseCaller(read, 'cofre.dev'), {
    spiffeId: 'spiffe://cofre.dev/tenant/globex/service/checkout',
    tenant: 'globex',
    service: 'checkout',
    serial: serialOf(cert),
    notAfter: read.validToDate,
    authority: namesOf(new X509Certificate(readFileSync(pki.path('ca.pem'))).raw).subject.toString('hex'),
  });
  t.end();
});

t.test('names of other types beside the URI are ignored', (t) => {
  const caller = parseCaller(certificate({ type: 'dns', value: 'checkout.acme.example' }, uri('spiffe://cofre.dev/tenant/acme/service/checkout'), { type: 'ip', value: '::1' }), 'cofre.dev');
  t.equal(caller.service, 'checkout');
  t.end();
});

t.test('labels may be one character and 63, and no longer', (t) => {
  const long = 'a'.repeat(63);
  t.equal(parseCaller(certificate(uri(`spiffe://cofre.dev/tenant/a/service/${long}`)), 'cofre.dev').service, long);
  t.throws(() => parseCaller(certificate(uri(`spiffe://cofre.dev/tenant/a/service/${long}a`)), 'cofre.dev'), { code: 'not_authorized' });
  t.end();
});

t.test('a URI that differs from the form in any way is refused', (t) => {
  const form = 'the URI name does not have the form of a caller';
  const domain = 'the URI name is of another trust domain';
  const ambiguous = 'an alternative name is ambiguous';
  const table: readonly (readonly [string, string])[] = [
    ['spiffe://cofre.dev/tenant/acme/service/checkout/', form],
    ['spiffe://cofre.dev/tenant/acme/service/checkout?x=1', form],
    ['spiffe://cofre.dev/tenant/acme/service/checkout#x', form],
    ['spiffe://cofre.dev/tenant/acme/service/', form],
    ['spiffe://cofre.dev/tenant//service/checkout', form],
    ['spiffe://cofre.dev//tenant/acme/service/checkout', form],
    ['spiffe://cofre.dev/tenant/acme/service/check%6fut', form],
    ['spiffe://cofre.dev/tenant/acme/service/../service/checkout', form],
    ['spiffe://cofre.dev/tenant/Acme/service/checkout', form],
    ['spiffe://cofre.dev/tenant/acme/service/-checkout', form],
    ['spiffe://cofre.dev/tenant/acme/service/checkout-', form],
    ['spiffe://cofre.dev/tenant/ac_me/service/checkout', form],
    ['spiffe://cofre.dev/tenant/acme/service/checkout\n', ambiguous],
    ['spiffe://cofre.dev/tenant/acme/service/a, URI:spiffe://cofre.dev/tenant/acme/service/b', ambiguous],
    ['spiffe://cofre.dev/tenant/acme/service/"', ambiguous],
    ['spiffe://cofre.dev/service/checkout/tenant/acme', form],
    ['spiffe://cofre.dev', domain],
    ['spiffe://cofre.dev:443/tenant/acme/service/checkout', domain],
    ['spiffe://cofre@cofre.dev/tenant/acme/service/checkout', domain],
    ['spiffe://cofre.dev.example/tenant/acme/service/checkout', domain],
    ['spiffe://COFRE.dev/tenant/acme/service/checkout', domain],
    ['SPIFFE://cofre.dev/tenant/acme/service/checkout', domain],
    ['https://cofre.dev/tenant/acme/service/checkout', domain],
    ['spiffe://other.dev/tenant/acme/service/checkout', domain],
    ['', domain],
  ];
  for (const [value, reason] of table) t.equal(reasonOf(() => parseCaller(certificate(uri(value)), 'cofre.dev')), reason, JSON.stringify(value));
  t.end();
});

t.test('not exactly one URI name is refused', (t) => {
  const valid = uri('spiffe://cofre.dev/tenant/acme/service/checkout');
  const one = 'the certificate does not have exactly one URI name';
  t.equal(reasonOf(() => parseCaller(certificate(valid, uri('spiffe://cofre.dev/tenant/globex/service/checkout')), 'cofre.dev')), one);
  t.equal(reasonOf(() => parseCaller(certificate(valid, uri('https://example.com/')), 'cofre.dev')), one, 'even where the other is no SPIFFE ID');
  t.equal(reasonOf(() => parseCaller(certificate(valid, valid), 'cofre.dev')), one);
  t.equal(reasonOf(() => parseCaller(certificate({ type: 'dns', value: 'checkout.acme.example' }), 'cofre.dev')), one);
  t.equal(reasonOf(() => parseCaller(certificate(), 'cofre.dev')), 'the certificate has no alternative name');
  t.end();
});

t.test('a name of another type cannot pass for a URI', (t) => {
  const disguised = 'x, URI:spiffe://cofre.dev/tenant/acme/service/checkout';
  for (const type of ['dns', 'email'] as const) t.equal(reasonOf(() => parseCaller(certificate({ type, value: disguised }), 'cofre.dev')), 'an alternative name is ambiguous', type);
  t.end();
});

t.test('an authority and a certificate for servers only are refused, one without any usage is let in', (t) => {
  const read = (request: Parameters<typeof pki.issue>[0]): X509Certificate => new X509Certificate(pki.issue(request).cert);
  t.equal(reasonOf(() => parseCaller(read({ authority: { pathLength: 0 } }), 'cofre.dev')), 'the certificate is of an authority');
  t.equal(reasonOf(() => parseCaller(read({ usages: ['serverAuth'] }), 'cofre.dev')), 'the certificate is not for clients');
  t.equal(parseCaller(read({ usages: ['serverAuth', 'clientAuth'] }), 'cofre.dev').tenant, 'acme');
  t.equal(parseCaller(read({ usages: [] }), 'cofre.dev').tenant, 'acme');
  t.end();
});

t.test('serials have one form, and only positive ones count', (t) => {
  t.equal(normalSerial('00AB0C'), 'ab0c');
  t.equal(normalSerial('0A'), 'a');
  for (const odd of ['', '0', '00', '-1', 'xyz', 'a'.repeat(65)]) t.equal(reasonOf(() => normalSerial(odd)), 'the serial number is not positive', odd);
  t.end();
});

/** What callerOf reads of a connection, and how often. */
function connection(authorized: boolean, peer: X509Certificate | undefined): { readonly socket: TLSSocket; readonly reads: () => number } {
  let reads = 0;
  const socket = { authorized, getPeerCertificate: () => ((reads += 1), peer === undefined ? {} : { raw: peer.raw }) };
  return { socket: socket as unknown as TLSSocket, reads: () => reads };
}

t.test('the certificate of a connection is read once, refused or not', (t) => {
  const good = connection(true, new X509Certificate(pki.credentials('checkout').cert));
  t.equal(callerOf(good.socket, 'cofre.dev'), callerOf(good.socket, 'cofre.dev'));
  t.equal(good.reads(), 1);
  const odd = connection(true, certificate(uri('spiffe://other.dev/tenant/acme/service/checkout')));
  reasonOf(() => callerOf(odd.socket, 'cofre.dev'));
  reasonOf(() => callerOf(odd.socket, 'cofre.dev'));
  t.equal(odd.reads(), 1);
  t.end();
});

t.test('a connection that is not authorized, or has no certificate, has no caller', (t) => {
  const reason = 'the connection has no verified certificate';
  t.equal(reasonOf(() => callerOf(connection(false, new X509Certificate(pki.credentials('checkout').cert)).socket, 'cofre.dev')), reason);
  t.equal(reasonOf(() => callerOf(connection(true, undefined).socket, 'cofre.dev')), reason);
  t.end();
});
