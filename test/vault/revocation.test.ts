import { generateKeyPairSync, sign, X509Certificate } from 'node:crypto';
import { readFileSync, rmSync, truncateSync } from 'node:fs';

import t from 'tap';

import { makeCertificate } from '../../platform-adapters/pki/certificate.ts';
import * as der from '../../platform-adapters/pki/der.ts';
import type { CertifiedCaller } from '../../vault/caller.ts';
import { namesOf, parseCrls } from '../../vault/crl.ts';
import { RevocationList, type RevocationReload } from '../../vault/revocation.ts';
import { put, serialOf, testPki, type TestPki } from '../support/pki.ts';

const hourMs = 3_600_000;

/** A caller with this serial, of the authority of a test set or of the one in `trustDomain`. */
function caller(serial: string, notAfter = new Date(Date.now() + hourMs), authority = authorityOf(t)): CertifiedCaller {
  return { spiffeId: 'spiffe://cofre.dev/tenant/acme/service/checkout', tenant: 'acme', service: 'checkout', serial, notAfter, authority };
}

/** The name that every authority of a trust domain has here. */
const authorityOf = (() => {
  const names = new Map<string, string>();
  return (t: Parameters<typeof testPki>[0], trustDomain = 'cofre.dev'): string => {
    const known = names.get(trustDomain) ?? subjectOf(readFileSync(testPki(t, { trustDomain }).path('ca.pem'))).toString('hex');
    names.set(trustDomain, known);
    return known;
  };
})();

function subjectOf(pem: string | Buffer): Buffer {
  return namesOf(new X509Certificate(pem).raw).subject;
}

async function open(set: TestPki, options: { maxAgeMs?: number; now?: () => Date } = {}): Promise<RevocationList> {
  return RevocationList.load({ crlFile: set.path('crl.pem'), caFile: set.path('ca.pem'), maxAgeMs: options.maxAgeMs ?? 24 * hourMs, now: options.now ?? (() => new Date()) });
}

function toDer(pem: string): Buffer {
  return Buffer.from(pem.replaceAll(/-----[^-]+-----|\s/g, ''), 'base64');
}

/** A list newer than the one on disk. PEM. */
function fresh(set: TestPki, serials: readonly string[] = ['ab1']): string {
  return set.crl({ revoked: serials.map((serial) => ({ serial, at: new Date() })) });
}

t.test('a list in PEM or DER tells the revoked from the good', async (t) => {
  const set = testPki(t);
  const revoked = set.pki.revoke('checkout');
  for (const form of ['pem', 'der']) {
    const pem = readFileSync(set.path('crl.pem'), 'utf8');
    if (form === 'der') put(set.path('crl.pem'), toDer(pem));
    const list = await open(set);
    t.equal(list.check(caller(revoked), new Date()), 'revoked', form);
    t.equal(list.check(caller(serialOf(set.credentials('getnet').cert)), new Date()), 'good', form);
    t.equal(list.status().revoked, 1);
  }
});

t.test('serials with a high first bit, an odd number of digits and one byte are found', async (t) => {
  const set = testPki(t);
  const serials = ['ff00000000000000000000000000000001', 'abc', '7', '80'];
  put(set.path('crl.pem'), fresh(set, serials));
  const list = await open(set);
  for (const serial of serials) t.equal(list.check(caller(serial), new Date()), 'revoked', serial);
  t.equal(list.check(caller('8'), new Date()), 'good');
});

t.test('a certificate that expires under an open connection is expired at its next request', async (t) => {
  const list = await open(testPki(t));
  const notAfter = new Date(Date.now() + 60_000);
  t.equal(list.check(caller('1', notAfter), notAfter), 'good', 'RFC 5280 4.1.2.5: the last moment counts');
  t.equal(list.check(caller('1', notAfter), new Date(notAfter.getTime() + 1)), 'expired');
});

t.test('a list past its nextUpdate, or older than the configured age, is stale; revoked stays revoked', async (t) => {
  const set = testPki(t);
  const thisUpdate = new Date(Math.floor(Date.now() / 1000) * 1000);
  const after = (ms: number): Date => new Date(thisUpdate.getTime() + ms);
  put(set.path('crl.pem'), set.crl({ thisUpdate, nextUpdate: after(2 * hourMs), revoked: [{ serial: 'ab1', at: thisUpdate }] }));
  const unexpired = (serial: string): CertifiedCaller => caller(serial, after(99 * hourMs));
  const byNextUpdate = await open(set, { maxAgeMs: 24 * hourMs });
  t.equal(byNextUpdate.check(unexpired('1'), after(2 * hourMs)), 'good');
  t.equal(byNextUpdate.check(unexpired('1'), after(2 * hourMs + 1)), 'stale');
  t.equal(byNextUpdate.check(unexpired('ab1'), after(2 * hourMs + 1)), 'revoked');
  const byAge = await open(set, { maxAgeMs: hourMs });
  t.same(byAge.status().freshUntil, after(hourMs));
  t.equal(byAge.check(unexpired('1'), after(hourMs)), 'good');
  t.equal(byAge.check(unexpired('1'), after(hourMs + 1)), 'stale');
});

t.test('a stale list is loaded, refuses, and a fresh one ends it', async (t) => {
  const set = testPki(t);
  const old = new Date(Date.now() - 48 * hourMs);
  put(set.path('crl.pem'), set.crl({ thisUpdate: old, nextUpdate: new Date(old.getTime() + hourMs) }));
  const list = await open(set);
  t.equal(list.check(caller('1'), new Date()), 'stale');
  put(set.path('crl.pem'), fresh(set));
  t.equal((await list.reload()).outcome, 'loaded');
  t.equal(list.check(caller('1'), new Date()), 'good');
});

t.test('a reload says which serials are new, and that an unchanged file is unchanged', async (t) => {
  const set = testPki(t);
  set.pki.signCrl(['a1']);
  const list = await open(set);
  t.match(await list.reload(), { outcome: 'unchanged', newlyRevoked: new Set() });
  set.pki.signCrl(['a2', 'a3']);
  t.same(await list.reload(), { outcome: 'loaded', reason: null, newlyRevoked: new Set(['a2', 'a3']) });
  t.equal(list.status().revoked, 3);
});

t.test('what cannot be believed is refused and leaves the list in force', async (t) => {
  const set = testPki(t);
  const stranger = testPki(t);
  const number = BigInt(Date.now()) * 10n;
  const moment = new Date();
  const inForce = set.crl({ number, thisUpdate: moment, revoked: [{ serial: 'ab1', at: moment }] });
  put(set.path('crl.pem'), inForce);
  const list = await open(set);
  const later = { number: number + 1n, thisUpdate: new Date(moment.getTime() + 2000) };
  const flipped = toDer(set.crl(later));
  flipped[flipped.length - 20] = (flipped[flipped.length - 20] ?? 0) ^ 1;
  const table: readonly (readonly [string, string, string])[] = [
    ['of another authority with the same name', stranger.crl(later), 'a revocation list is not signed by an authority of ours'],
    ['with a broken signature', flipped.toString('latin1'), 'a revocation list is not signed by an authority of ours'],
    ['with a lower number', set.crl({ ...later, number: number - 1n }), 'a revocation list is older than the one in force'],
    ['with an earlier thisUpdate', set.crl({ number: number + 1n, thisUpdate: new Date(moment.getTime() - 2000) }), 'a revocation list is older than the one in force'],
    ['with the same number and other entries', set.crl({ number, thisUpdate: later.thisUpdate }), 'two different revocation lists have the same number'],
    ['from the future', set.crl({ number: number + 1n, thisUpdate: new Date(Date.now() + hourMs) }), 'a revocation list is from the future'],
    ['twice', set.crl(later) + set.crl(later), 'the file has two revocation lists of one authority'],
    ['empty', '', 'the file holds no revocation list'],
    ['half written', inForce.slice(0, 200), 'the file holds no revocation list'],
    ['of other words', 'hello', 'the file holds no revocation list'],
    ['a certificate', readFileSync(set.path('ca.pem'), 'utf8'), 'the file holds no revocation list'],
  ];
  for (const [what, content, reason] of table) {
    put(set.path('crl.pem'), Buffer.from(content, 'latin1'));
    t.same(await list.reload(), { outcome: 'refused', reason, newlyRevoked: new Set() }, what);
    t.equal(list.check(caller('ab1'), new Date()), 'revoked', what);
  }
  rmSync(set.path('crl.pem'));
  t.same(await list.reload(), { outcome: 'refused', reason: 'the file cannot be read (ENOENT)', newlyRevoked: new Set() });
  t.equal(list.check(caller('ab1'), new Date()), 'revoked');
});

t.test('a vault does not start without a list that can be believed', async (t) => {
  const set = testPki(t);
  put(set.path('crl.pem'), testPki(t).crl());
  await t.rejects(open(set), { message: `${set.path('crl.pem')}: a revocation list is not signed by an authority of ours` });
  const good = set.crl();
  const der = Buffer.from(good.replaceAll(/-----[^-]+-----|\s/g, ''), 'base64');
  for (const [what, broken, reason] of [
    ['empty', '', 'the file holds no revocation list'],
    ['cut off', good.slice(0, good.length / 2), 'the file holds no revocation list'],
    ['cut off inside', `${good.slice(0, 150)}\n-----END X509 CRL-----\n`, 'a revocation list or certificate is not DER'],
    ['DER, cut off', der.subarray(0, -10), 'a revocation list or certificate is not DER'],
  ] as const) {
    put(set.path('crl.pem'), broken);
    await t.rejects(open(set), { message: `${set.path('crl.pem')}: ${reason}` }, what);
  }
  put(set.path('crl.pem'), der);
  t.equal((await open(set)).status().revoked, 0, 'whole, it is taken');
  rmSync(set.path('crl.pem'));
  await t.rejects(open(set), { message: `${set.path('crl.pem')}: the file cannot be read (ENOENT)` });
});

t.test('nor without authorities, and then it is their file that is named', async (t) => {
  const set = testPki(t);
  const good = readFileSync(set.path('ca.pem'), 'utf8');
  for (const [what, broken, reason] of [
    ['empty', '', 'the file of authorities holds no certificate'],
    ['cut off', good.slice(0, 300), 'the file of authorities holds no certificate'],
    ['cut off inside', `${good.slice(0, 300)}\n-----END CERTIFICATE-----\n`, 'a certificate in the file of authorities cannot be read'],
    ['a second one, cut off inside', `${good}${good.slice(0, 300)}\n-----END CERTIFICATE-----\n`, 'a certificate in the file of authorities cannot be read'],
    ['of a server', readFileSync(set.path('server.pem'), 'utf8'), 'a certificate in the file of authorities is not of an authority'],
  ] as const) {
    put(set.path('ca.pem'), broken);
    await t.rejects(open(set), { message: `${set.path('ca.pem')}: ${reason}` }, what);
  }
  rmSync(set.path('ca.pem'));
  await t.rejects(open(set), { message: `${set.path('ca.pem')}: the file cannot be read (ENOENT)` });
});

t.test('with two authorities each needs its list, each has its own numbers, and the one that ages first decides', async (t) => {
  const one = testPki(t);
  const two = testPki(t, { trustDomain: 'cofre.two' });
  const thisUpdate = new Date(Math.floor(Date.now() / 1000) * 1000);
  put(one.path('ca.pem'), readFileSync(one.path('ca.pem'), 'utf8') + readFileSync(two.path('ca.pem'), 'utf8'));
  const ofOne = one.crl({ number: 9n, thisUpdate, nextUpdate: new Date(thisUpdate.getTime() + 9 * hourMs), revoked: [{ serial: 'a1', at: thisUpdate }] });
  const ofTwo = two.crl({ number: 1n, thisUpdate, nextUpdate: new Date(thisUpdate.getTime() + 2 * hourMs), revoked: [{ serial: 'b2', at: thisUpdate }] });
  put(one.path('crl.pem'), ofOne + ofTwo);
  const list = await open(one);
  t.equal(list.check(caller('a1'), new Date()), 'revoked');
  t.equal(list.check(caller('b2'), new Date()), 'revoked');
  t.same(list.status().freshUntil, new Date(thisUpdate.getTime() + 2 * hourMs));
  t.same(list.status().numbers, [9n, 1n]);
  const ofTheSecond = caller('1', undefined, authorityOf(t, 'cofre.two'));
  t.equal(list.check(ofTheSecond, new Date()), 'good');
  put(one.path('crl.pem'), ofOne);
  t.match(await list.reload(), { outcome: 'refused', reason: 'an authority has no revocation list' });
});

t.test('a client of an authority whose list is not in force is refused, though its serial stands nowhere', async (t) => {
  const set = testPki(t);
  const list = await open(set);
  const stranger = caller('1', undefined, authorityOf(t, 'cofre.two'));
  t.equal(list.check(stranger, new Date()), 'stale');
  // The listeners may take the new file of authorities; the lists, lacking one, are refused as a whole.
  put(set.path('ca.pem'), readFileSync(set.path('ca.pem'), 'utf8') + readFileSync(testPki(t, { trustDomain: 'cofre.two' }).path('ca.pem'), 'utf8'));
  t.match(await list.reload(), { outcome: 'refused', reason: 'an authority has no revocation list' });
  t.equal(list.check(stranger, new Date()), 'stale');
  t.equal(list.check(caller('1'), new Date()), 'good');
});

t.test('lists follow the authorities: one that is taken out takes its list along', async (t) => {
  const set = testPki(t);
  const stranger = testPki(t, { trustDomain: 'cofre.two' });
  const list = await open(set);
  put(set.path('ca.pem'), readFileSync(stranger.path('ca.pem'), 'utf8'));
  put(set.path('crl.pem'), stranger.crl());
  t.match(await list.reload(), { outcome: 'loaded' });
  t.equal(list.check(caller('1'), new Date()), 'stale');
  t.equal(list.check(caller('1', undefined, authorityOf(t, 'cofre.two')), new Date()), 'good');
});

t.test('watching tells of a change and of a refusal once, and not of silence', async (t) => {
  const set = testPki(t);
  const list = await open(set);
  // The list's own timer does not keep a process alive.
  const alive = setInterval(() => {}, 1000);
  t.teardown(() => {
    list.close();
    clearInterval(alive);
  });
  const seen: RevocationReload[] = [];
  let notify = (): void => {};
  const next = async (): Promise<RevocationReload> => {
    const before = seen.length;
    while (seen.length === before) await new Promise<void>((resolve) => (notify = resolve));
    return seen[seen.length - 1]!;
  };
  list.watch(5, (reload) => {
    seen.push(reload);
    notify();
  });
  set.pki.signCrl(['a1']);
  t.same((await next()).newlyRevoked, new Set(['a1']));
  put(set.path('crl.pem'), 'rubbish');
  t.equal((await next()).outcome, 'refused');
  rmSync(set.path('crl.pem'));
  t.equal((await next()).reason, 'the file cannot be read (ENOENT)');
  // It is looked for again and again from now on.
  await new Promise((resolve) => setTimeout(resolve, 30));
  set.pki.signCrl(['a2']);
  t.same((await next()).newlyRevoked, new Set(['a2']));
  t.same(seen.map(({ outcome }) => outcome), ['loaded', 'refused', 'refused', 'loaded']);
});

t.test('a list is believed under an RSA or Ed25519 authority too, and never under SHA-1', async (t) => {
  const directory = testPki(t);
  const ed25519 = generateKeyPairSync('ed25519');
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const subject = { organization: 'Elsewhere', commonName: 'CA' };
  const table = [
    { keys: ed25519, algorithm: der.sequence(der.oid('1.3.101.112')), digest: null, believed: true },
    { keys: rsa, algorithm: der.sequence(der.oid('1.2.840.113549.1.1.11'), Buffer.from('0500', 'hex')), digest: 'sha256', believed: true },
    { keys: rsa, algorithm: der.sequence(der.oid('1.2.840.113549.1.1.5'), Buffer.from('0500', 'hex')), digest: 'sha1', believed: false },
    { keys: rsa, algorithm: der.sequence(der.oid('1.3.101.112')), digest: 'sha256', believed: false },
  ];
  for (const { keys, algorithm, digest, believed } of table) {
    const issuer = generateKeyPairSync('ec', { namedCurve: 'prime256v1' }).privateKey;
    const certificate = makeCertificate({ subject, names: [], usages: [], authority: { pathLength: 0 }, notBefore: new Date(0), notAfter: new Date(Date.now() + hourMs) }, keys.publicKey, { subject, key: issuer });
    put(directory.path('ca.pem'), certificate);
    const tbs = bodyOf({ issuer: subjectOf(certificate) }, algorithm);
    put(directory.path('crl.pem'), der.sequence(tbs, algorithm, der.bits(sign(digest, tbs, keys.privateKey))));
    if (believed) t.equal((await open(directory)).check(caller('ab1'), new Date()), 'revoked', algorithm.toString('hex'));
    else await t.rejects(open(directory), /not signed by an authority of ours/);
  }
});

t.test('no truncation and no single wrong byte of a list is taken for it', (t) => {
  const set = testPki(t);
  const list = toDer(fresh(set, ['ab1', 'ff00000000000000000000000000000001']));
  for (let length = 0; length < list.length; length += 1) t.throws(() => parseCrls(list.subarray(0, length)), `${length} bytes`);
  t.throws(() => parseCrls(Buffer.concat([list, Buffer.of(0)])), /not DER/, 'nor with a byte after it');
  // A wrong byte may leave a list that parses; then what is signed, or the signature, is another.
  const whole = parseCrls(list)[0]!;
  for (let at = 0; at < list.length; at += 1) {
    for (const bit of [0x01, 0x80]) {
      const wrong = Buffer.from(list);
      wrong[at] = wrong[at]! ^ bit;
      let read;
      try {
        read = parseCrls(wrong)[0]!;
      } catch (error) {
        if (!(error instanceof Error) || error instanceof TypeError || error instanceof RangeError) t.fail(`byte ${at}`);
        continue;
      }
      if (read.tbs.equals(whole.tbs) && read.signature.equals(whole.signature) && read.signatureAlgorithm === whole.signatureAlgorithm) t.fail(`byte ${at}`);
    }
  }
  t.end();
});

t.test('lists that are not complete ones are refused by their form', (t) => {
  const set = testPki(t);
  const list = toDer(fresh(set));
  const replaced = (from: string, to: string): Buffer => {
    const hex = list.toString('hex');
    if (from.length !== to.length || !hex.includes(from)) throw new Error('the test does not fit the list');
    return Buffer.from(hex.replace(from, to), 'hex');
  };
  t.throws(() => parseCrls(replaced('0603551d14', '0603551d63')), /has no number/, 'its number under an unknown extension');
  t.throws(() => parseCrls(replaced('020101300a06082a8648ce3d040302', '020100300a06082a8648ce3d040302')), /not of version 2/);
  t.throws(() => parseCrls(replaced('020101300a06082a8648ce3d040302', '020101300a06082a8648ce3d040303')), /two signature algorithms/);
  t.throws(() => parseCrls(handMade({ extensions: [der.sequence(der.oid('2.5.29.27'), der.yes(), der.octets(der.integerOf(1n)))] })), /critical extension, so it is not a complete list/, 'delta');
  t.throws(() => parseCrls(handMade({ extensions: [der.sequence(der.oid('2.5.29.28'), der.yes(), der.octets(der.sequence()))] })), /critical extension, so it is not a complete list/, 'partitioned');
  t.throws(() => parseCrls(handMade({ entry: [der.sequence(der.sequence(der.oid('2.5.29.29'), der.yes(), der.octets(der.sequence())))] })), /an entry of a revocation list has a critical extension/, 'indirect');
  t.throws(() => parseCrls(handMade({ nextUpdate: false })), /does not say when the next one comes/);
  t.equal(parseCrls(handMade({ entry: [der.sequence(der.sequence(der.oid('2.5.29.21'), der.octets(Buffer.from('0a0101', 'hex'))))] }))[0]!.serials.has('ab1'), true, 'a reason is no obstacle');
  t.end();
});

t.test('a list is strict DER, to its last element and in the shortest form', (t) => {
  const algorithm = der.sequence(der.oid('1.2.840.10045.4.3.2'));
  // A signature long enough for the list's length to take two bytes.
  const parts = [bodyOf({}, algorithm), algorithm, der.bits(Buffer.alloc(256))];
  const list = Buffer.concat(parts);
  const outer = (length: string): Buffer => Buffer.concat([Buffer.from(`30${length}`, 'hex'), list]);
  const two = list.length.toString(16).padStart(4, '0');
  t.equal(parseCrls(outer(`82${two}`)).length, 1, 'as it should be');
  for (const length of [`8300${two}`, `840000${two}`, `85000000${two}`, '80']) t.throws(() => parseCrls(outer(length)), /is not DER/, `its length as ${length}`);
  t.throws(() => parseCrls(der.sequence(...parts, der.integerOf(1n))), /is not DER/, 'more behind the signature');
  const reason = der.sequence(der.sequence(der.oid('2.5.29.21'), der.octets(Buffer.from('0a0101', 'hex'))));
  t.throws(() => parseCrls(handMade({ entry: [reason, der.integerOf(1n)] })), /is not DER/, 'more behind the extensions of an entry');
  t.throws(() => parseCrls(handMade({ behind: [der.integerOf(1n)] })), /is not DER/, 'more behind the extensions of the list');
  t.end();
});

t.test('a list has each extension once, its number above all', (t) => {
  const again = der.sequence(der.oid('2.5.29.20'), der.octets(der.integerOf(2n)));
  t.throws(() => parseCrls(handMade({ extensions: [again] })), /an extension twice/);
  t.end();
});

t.test('the number of a list is positive and has at most 20 bytes, as RFC 5280 5.2.3 wants', (t) => {
  const numbered = (hex: string): Buffer => handMade({ number: der.element(0x02, Buffer.from(hex, 'hex')) });
  t.equal(parseCrls(numbered(`7f${'ff'.repeat(19)}`))[0]!.number, 2n ** 159n - 1n);
  for (const hex of ['80', 'ff', `00${'ff'.repeat(20)}`, '']) t.throws(() => parseCrls(numbered(hex)), /number of a revocation list is out of range/, hex);
  t.end();
});

t.test('a time of two digits is of 1950 to 2049, one of four of its own century, and no other form is one', (t) => {
  const thisUpdateOf = (time: Buffer): Date => parseCrls(handMade({ thisUpdate: time }))[0]!.thisUpdate;
  const utc = (text: string): Buffer => der.element(0x17, Buffer.from(text));
  // RFC 5280 4.1.2.5.1
  t.same(thisUpdateOf(utc('500101000000Z')), new Date('1950-01-01T00:00:00Z'));
  t.same(thisUpdateOf(utc('491231235959Z')), new Date('2049-12-31T23:59:59Z'));
  t.same(thisUpdateOf(der.element(0x18, Buffer.from('20500101000000Z'))), new Date('2050-01-01T00:00:00Z'));
  for (const text of ['2611240000Z', '261124000000+0000', '261124000000', '261332000000Z', '261124000000.5Z']) t.throws(() => thisUpdateOf(utc(text)), /a time in a revocation list is malformed/, text);
  t.end();
});

t.test('a file beyond 64 MiB is refused before it is read', async (t) => {
  const set = testPki(t);
  const list = await open(set);
  // Sparse: it takes no room on the disk.
  truncateSync(set.path('crl.pem'), 64 * 1024 * 1024 + 1);
  t.match(await list.reload(), { outcome: 'refused', reason: 'the file of revocation lists is larger than 64 MiB' });
});

t.test('the subject of a certificate is read as the bytes that a list names as its issuer', (t) => {
  const set = testPki(t);
  const authority = new X509Certificate(readFileSync(set.path('ca.pem')));
  t.ok(namesOf(authority.raw).subject.equals(parseCrls(toDer(fresh(set)))[0]!.issuer));
  t.end();
});

interface Shape {
  readonly extensions?: readonly Buffer[];
  readonly entry?: readonly Buffer[];
  readonly nextUpdate?: boolean;
  readonly issuer?: Buffer;
  readonly number?: Buffer;
  readonly thisUpdate?: Buffer;
  /** Elements behind the list's extensions, inside their tag. */
  readonly behind?: readonly Buffer[];
}

/** A list of any form, its signature rubbish. */
function handMade(shape: Shape): Buffer {
  const algorithm = der.sequence(der.oid('1.2.840.10045.4.3.2'));
  return der.sequence(bodyOf(shape, algorithm), algorithm, der.bits(Buffer.alloc(64)));
}

function bodyOf(shape: Shape, algorithm: Buffer): Buffer {
  const moment = new Date();
  return der.sequence(
    der.integerOf(1n),
    algorithm,
    shape.issuer ?? der.sequence(),
    shape.thisUpdate ?? der.time(moment),
    ...(shape.nextUpdate === false ? [] : [der.time(new Date(moment.getTime() + hourMs))]),
    der.sequence(der.sequence(der.integerOf(0xab1n), der.time(moment), ...(shape.entry ?? []))),
    der.tagged(0, der.sequence(der.sequence(der.oid('2.5.29.20'), der.octets(shape.number ?? der.integerOf(1n))), ...(shape.extensions ?? [])), ...(shape.behind ?? [])),
  );
}
