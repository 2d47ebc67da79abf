import { spawn, spawnSync } from 'node:child_process';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { createServer, type TLSSocket } from 'node:tls';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { createDevelopmentPki, developmentClients } from '../../../platform-adapters/pki/development.ts';
import { parseCrls } from '../../../vault/crl.ts';
import { serialOf, testPki } from '../../support/pki.ts';

const dayMs = 86_400_000;
const names = ['server', ...developmentClients.map(({ name }) => name)];

function emptyDirectory(t: Test): string {
  const directory = mkdtempSync(join(tmpdir(), 'cofre-pki-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Every file of a set but those that each start renews. */
function contents(directory: string): Record<string, string> {
  const files = readdirSync(directory).filter((name) => name !== 'crl.pem' && name !== 'revoked.json');
  return Object.fromEntries(files.sort().map((name) => [name, readFileSync(join(directory, name), 'latin1')]));
}

/** Each certificate of the set is of its key and of the authority. */
function assertWhole(t: Test, directory: string): void {
  const authority = new X509Certificate(readFileSync(join(directory, 'ca.pem')));
  for (const name of ['ca', ...names]) {
    const certificate = new X509Certificate(readFileSync(join(directory, `${name}.pem`)));
    t.ok(certificate.checkPrivateKey(createPrivateKey(readFileSync(join(directory, `${name}.key`)))), `${name}.pem is for ${name}.key`);
    t.ok(certificate.checkIssued(authority) && certificate.verify(authority.publicKey), `${name}.pem is of the authority`);
  }
  t.ok(existsSync(join(directory, '.complete')));
  t.same(readdirSync(directory).filter((name) => name.endsWith('.tmp')), []);
}

t.test('the set holds an authority, a server, every client of the contract and a revocation list, with closed keys', (t) => {
  const { directory, path } = testPki(t);
  assertWhole(t, directory);
  t.equal(statSync(directory).mode & 0o777, 0o700);
  for (const name of ['ca', ...names]) t.equal(statSync(path(`${name}.key`)).mode & 0o777, 0o600, `${name}.key`);
  const read = (name: string): X509Certificate => new X509Certificate(readFileSync(path(`${name}.pem`)));
  t.equal(read('server').subjectAltName, 'DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1');
  t.same(read('server').keyUsage, ['1.3.6.1.5.5.7.3.1']);
  t.ok(read('ca').ca);
  const ids = Object.fromEntries(developmentClients.map(({ name }) => [name, read(name).subjectAltName]));
  t.same(ids, {
    checkout: 'URI:spiffe://cofre.dev/tenant/acme/service/checkout',
    getnet: 'URI:spiffe://cofre.dev/tenant/acme/service/getnet',
    'checkout-globex': 'URI:spiffe://cofre.dev/tenant/globex/service/checkout',
    intruder: 'URI:spiffe://cofre.dev/tenant/acme/service/intruder',
    auditor: 'URI:spiffe://cofre.dev/tenant/platform/service/auditor',
    'operator-a': 'URI:spiffe://cofre.dev/tenant/platform/service/operator-a',
    'operator-b': 'URI:spiffe://cofre.dev/tenant/platform/service/operator-b',
  });
  for (const { name } of developmentClients) {
    t.same(read(name).keyUsage, ['1.3.6.1.5.5.7.3.2'], name);
    t.notOk(read(name).ca, name);
  }
  const serials = ['ca', ...names].map((name) => read(name).serialNumber);
  t.equal(new Set(serials).size, serials.length, 'no serial twice');
  t.ok(serials.every((serial) => serial.length === 32), '128 bits each');
  t.end();
});

t.test('a second start leaves every certificate and key byte for byte', (t) => {
  const { directory } = testPki(t);
  const before = contents(directory);
  createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => new Date() });
  t.same(contents(directory), before);
  t.end();
});

t.test('a half-finished set is completed, and what was whole stays', (t) => {
  const { directory, path } = testPki(t);
  const before = contents(directory);
  rmSync(path('.complete'));
  rmSync(path('getnet.pem'));
  rmSync(path('auditor.key'));
  truncateSync(path('server.pem'), 300);
  writeFileSync(path('intruder.pem'), before['checkout.pem'] ?? '', 'latin1');
  rmSync(path('crl.pem'));
  writeFileSync(path('ca.key.999999999-0b3d1c7e-0000-4000-8000-000000000000.tmp'), 'left by a process that died');
  createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => new Date() });
  assertWhole(t, directory);
  const after = contents(directory);
  const changed = Object.keys(before).filter((name) => before[name] !== after[name]);
  t.same(changed, ['auditor.key', 'auditor.pem', 'getnet.pem', 'intruder.pem', 'server.pem']);
  t.ok(existsSync(path('crl.pem')));
  t.end();
});

t.test('an authority whose certificate was never written is finished with the key that is there', (t) => {
  const { directory, path } = testPki(t);
  const key = readFileSync(path('ca.key'), 'utf8');
  rmSync(path('ca.pem'));
  createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => new Date() });
  t.equal(readFileSync(path('ca.key'), 'utf8'), key);
  assertWhole(t, directory);
  t.end();
});

t.test('an authority is never replaced: without its key, with a broken or another one, of another domain or expired it is an error', (t) => {
  const now = (): Date => new Date();
  const { directory, path } = testPki(t);
  const before = contents(directory);
  const refused = (wanted: RegExp, options = { trustDomain: 'cofre.dev', now }): void => {
    const present = contents(directory);
    t.throws(() => createDevelopmentPki(directory, options), wanted);
    t.same(contents(directory), present, 'nothing changed');
  };
  refused(/of another trust domain/, { trustDomain: 'other.dev', now });
  refused(/has expired/, { trustDomain: 'cofre.dev', now: () => new Date(Date.now() + 6 * 365 * dayMs) });
  writeFileSync(path('ca.key'), before['server.key'] ?? '');
  refused(/do not belong together/);
  writeFileSync(path('ca.key'), 'SECRET-LOOKING');
  refused(/ca\.key does not hold a private key$/);
  rmSync(path('ca.key'));
  refused(/without ca\.key/);
  writeFileSync(path('ca.key'), before['ca.key'] ?? '');
  for (const broken of ['', 'SECRET-LOOKING', (before['ca.pem'] ?? '').slice(0, 300)]) {
    writeFileSync(path('ca.pem'), broken);
    refused(/^[^\n]*\/ca\.pem does not hold a certificate: restore it, or move the directory away to have a new authority made$/);
  }
  t.end();
});

t.test('a damaged memory of who was revoked is told by its name alone, and no list is made without it', (t) => {
  const { directory, path, pki } = testPki(t);
  pki.signCrl(['ab12']);
  const good = readFileSync(path('revoked.json'), 'utf8');
  const list = readFileSync(path('crl.pem'), 'utf8');
  for (const broken of ['', '{', '7', 'null', '[]', '{"SECRET": "LOOKING"', good.slice(0, -8), good.replace('ab12', 'xyz'), good.replace(/"at": "[^"]*"/, '"at": "SECRET"'), good.replace(/"number": \d+/, '"number": "1"'), good.replace('"revoked"', '"other"')]) {
    t.not(broken, good);
    writeFileSync(path('revoked.json'), broken);
    t.throws(() => createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => new Date() }), { message: `${path('revoked.json')} is damaged, and without it a new revocation list would forget who was revoked: restore it` }, broken);
    t.equal(readFileSync(path('crl.pem'), 'utf8'), list);
  }
  rmSync(path('revoked.json'));
  mkdirSync(path('revoked.json'));
  t.throws(() => createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => new Date() }), { message: `${path('revoked.json')} cannot be read (EISDIR)` });
  rmSync(path('revoked.json'), { recursive: true });
  writeFileSync(path('revoked.json'), good);
  createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => new Date() });
  t.match(readFileSync(path('revoked.json'), 'utf8'), /ab12/);
  t.end();
});

t.test('certificates are renewed under the same key when less than 30 days remain, not before', (t) => {
  const { directory } = testPki(t);
  const before = contents(directory);
  const later = (days: number) => (): Date => new Date(Date.now() + days * dayMs);
  createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: later(59) });
  t.same(contents(directory), before);
  createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: later(61) });
  const after = contents(directory);
  t.same(Object.keys(before).filter((name) => before[name] !== after[name]), names.map((name) => `${name}.pem`).sort());
  assertWhole(t, directory);
  t.end();
});

t.test('no certificate outlives the authority', (t) => {
  const { directory, path } = testPki(t);
  const authority = new X509Certificate(readFileSync(path('ca.pem')));
  const lastMonth = new Date(authority.validToDate.getTime() - 40 * dayMs);
  createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => lastMonth });
  t.equal(new X509Certificate(readFileSync(path('server.pem'))).validTo, authority.validTo);
  t.end();
});

t.test('processes that start at once in an empty directory end up with one whole set', async (t) => {
  const directory = emptyDirectory(t);
  const module = new URL('../../../platform-adapters/pki/development.ts', import.meta.url).href;
  const program = `import { createDevelopmentPki } from ${JSON.stringify(module)}; createDevelopmentPki(${JSON.stringify(directory)}, { trustDomain: 'cofre.dev', now: () => new Date() });`;
  const children = Array.from({ length: 4 }, () => spawn(process.execPath, ['--input-type=module', '--eval', program], { stdio: 'ignore' }));
  const codes = await Promise.all(children.map(async (child) => (await once(child, 'exit'))[0] as number));
  t.same(codes, [0, 0, 0, 0]);
  assertWhole(t, directory);
});

t.test('a revoked serial stays on every later list, whose number grows', (t) => {
  const { pki, directory, credentials } = testPki(t);
  const serial = pki.revoke('intruder');
  t.equal(serial, serialOf(credentials('intruder').cert));
  const register = (): { number: number; revoked: { serial: string }[] } => JSON.parse(readFileSync(join(directory, 'revoked.json'), 'utf8')) as never;
  const first = register();
  pki.signCrl(['0AB1', 'ab1', serial.toUpperCase()]);
  createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => new Date() });
  const last = register();
  t.same(last.revoked.map((entry) => entry.serial), [serial, 'ab1']);
  t.ok(last.number > first.number);
  t.equal(serialOf(credentials('intruder').cert), serial, 'a start does not replace a revoked certificate');
  t.end();
});

t.test('of processes that revoke at once none loses what another revoked', async (t) => {
  const { directory } = testPki(t);
  const module = new URL('../../../platform-adapters/pki/development.ts', import.meta.url).href;
  const serials = (process: number): string[] => Array.from({ length: 10 }, (_, n) => `${process + 1}f${n}`);
  const children = Array.from({ length: 3 }, (_, process_) => {
    const program = `import { createDevelopmentPki } from ${JSON.stringify(module)};
      const pki = createDevelopmentPki(${JSON.stringify(directory)}, { trustDomain: 'cofre.dev', now: () => new Date() });
      for (const serial of ${JSON.stringify(serials(process_))}) pki.signCrl([serial]);`;
    return spawn(process.execPath, ['--input-type=module', '--eval', program], { stdio: 'ignore' });
  });
  t.same(await Promise.all(children.map(async (child) => (await once(child, 'exit'))[0] as number)), [0, 0, 0]);
  const { revoked } = JSON.parse(readFileSync(join(directory, 'revoked.json'), 'utf8')) as { revoked: { serial: string }[] };
  t.same(revoked.map(({ serial }) => serial).sort(), [0, 1, 2].flatMap(serials).sort());
  const [list] = parseCrls(readFileSync(join(directory, 'crl.pem')));
  t.same([...list!.serials].sort(), revoked.map(({ serial }) => serial).sort(), 'and the list has them all');
});

t.test('a reissued certificate has a new key and serial and the same caller', (t) => {
  const { pki, directory, credentials } = testPki(t);
  const before = credentials('checkout');
  const issued = pki.reissue('checkout');
  const after = credentials('checkout');
  t.same(after, { cert: issued.certificate, key: issued.key });
  t.not(serialOf(after.cert), serialOf(before.cert));
  t.not(after.key, before.key);
  t.equal(new X509Certificate(after.cert).subjectAltName, new X509Certificate(before.cert).subjectAltName);
  assertWhole(t, directory);
  t.throws(() => pki.reissue('nobody'), /no certificate of this name/);
  t.end();
});

/** OpenSSL as it judges a client: with the list given, which the vault itself does not hand to it. */
async function opensslLetsIn(t: Test, set: ReturnType<typeof testPki>, name: string): Promise<string | true> {
  const server = createServer({ ...set.credentials('server'), ca: readFileSync(set.path('ca.pem')), crl: readFileSync(set.path('crl.pem')), requestCert: true, rejectUnauthorized: false });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const [[accepted]] = (await Promise.all([once(server, 'secureConnection'), set.connect((server.address() as AddressInfo).port, set.credentials(name))])) as [[TLSSocket], TLSSocket];
  t.teardown(() => server.close());
  return accepted.authorized ? true : String((accepted as unknown as { authorizationError: unknown }).authorizationError);
}

t.test('OpenSSL accepts the server, the clients and the list, and refuses a client on it', async (t) => {
  const set = testPki(t);
  t.equal(await opensslLetsIn(t, set, 'checkout'), true);
  t.equal(await opensslLetsIn(t, set, 'server'), 'INVALID_PURPOSE', 'a server certificate is not a client one');
  set.pki.revoke('checkout');
  t.equal(await opensslLetsIn(t, set, 'checkout'), 'CERT_REVOKED');
  t.equal(await opensslLetsIn(t, set, 'getnet'), true);
});

if (spawnSync('openssl', ['version']).status === 0) {
  t.test('the openssl command finds nothing wrong under -x509_strict, with the list', (t) => {
    const { directory } = testPki(t);
    const openssl = (...options: string[]): string => {
      const { status, stdout, stderr } = spawnSync('openssl', options, { cwd: directory, encoding: 'utf8' });
      return status === 0 ? stdout.trim() : stderr;
    };
    const strict = ['verify', '-x509_strict', '-check_ss_sig', '-CAfile', 'ca.pem', '-crl_check', '-CRLfile', 'crl.pem'];
    t.equal(openssl(...strict, '-purpose', 'sslserver', '-verify_hostname', 'localhost', 'server.pem'), 'server.pem: OK');
    for (const { name } of developmentClients) t.equal(openssl(...strict, '-purpose', 'sslclient', `${name}.pem`), `${name}.pem: OK`);
    t.end();
  });
}
