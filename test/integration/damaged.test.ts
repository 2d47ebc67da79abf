/** A start over a damaged file: one clear line that names the file and holds nothing of it, none of it in the words of Node or OpenSSL. */
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { plainLines, startAppliance } from '../support/appliance.ts';
import { freshDatabase } from '../support/database.ts';

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database });
await appliance.stop();
const at = (file: string): string => join(appliance.home, file);

// Certificates of its own, as in production: the development set makes its server's and its list anew at every start.
mkdirSync(at('own'), { mode: 0o700 });
for (const name of ['ca.pem', 'crl.pem', 'server.pem', 'server.key']) copyFileSync(at(`pki/${name}`), at(`own/${name}`));
const own = JSON.stringify({ tls: { certificate: 'own/server.pem', key: 'own/server.key', client_ca: 'own/ca.pem', revocation_list: 'own/crl.pem' } });
writeFileSync(at('cofre.config.yaml'), own);

/** Starts it with one file replaced (null: by a folder), and asserts that it ends with that one line. Puts the file back. */
async function refuses(t: Test, file: string, content: string | Buffer | null, wanted: string, code = 1): Promise<void> {
  const before = readFileSync(at(file));
  rmSync(at(file));
  if (content === null) mkdirSync(at(file), { mode: 0o700 });
  else writeFileSync(at(file), content, { mode: 0o600 });
  const label = `${file}: ${content === null ? 'a folder' : content.length === 0 ? 'empty' : `${content.length} bytes`}`;
  await refusesToStart(t, {}, wanted, [before.toString('latin1'), content?.toString('latin1') ?? ''], label, code);
  rmSync(at(file), { recursive: true });
  writeFileSync(at(file), before, { mode: 0o600 });
}

async function refusesToStart(t: Test, env: Readonly<Record<string, string>>, wanted: string, secrets: readonly string[], label: string, code = 1): Promise<void> {
  const mark = { out: appliance.out.length, err: appliance.err.length };
  const ended = await appliance.launch(env);
  const err = appliance.err.slice(mark.err);
  if (ended === null) await appliance.stop();
  t.same(ended, { code, signal: null }, label);
  t.same(plainLines(err), [`cofre: ${wanted}`], label);
  t.equal(appliance.out.length, mark.out, 'nothing was served');
  // Of what the file held and should have held, no word of eight letters or digits stands in a line or a message, names of files aside.
  const said = err.replaceAll(appliance.home, '').replaceAll(wanted.replaceAll(appliance.home, ''), '');
  const words = new Set(secrets.flatMap((secret) => secret.match(/[A-Za-z0-9+]{8,}/gu) ?? []));
  t.same([...words].filter((word) => said.includes(word)), [], label);
  t.notMatch(err, /routines|error:[0-9A-F]{8}|at position|Unexpected (?:token|end)|Cannot read prop|\bE[A-Z]+: |^\s+at |file:\/\/|node:/mu, label);
}

const text = (file: string): string => readFileSync(at(file), 'utf8');
const half = (file: string): Buffer => readFileSync(at(file)).subarray(0, readFileSync(at(file)).length / 2);

await t.test('it starts over these files while they are whole', async (t) => {
  await appliance.start();
  t.same(await appliance.stop(), { code: 0, signal: null });
});

await t.test('the authorities of clients', async (t) => {
  const name = at('own/ca.pem');
  for (const broken of ['', half('own/ca.pem'), 'hunter2hunter2']) await refuses(t, 'own/ca.pem', broken, `${name}: the file of authorities holds no certificate`);
  await refuses(t, 'own/ca.pem', `${text('own/ca.pem').slice(0, 200)}\n-----END CERTIFICATE-----\n`, `${name}: a certificate in the file of authorities cannot be read`);
  await refuses(t, 'own/ca.pem', text('own/server.pem'), `${name}: a certificate in the file of authorities is not of an authority`);
  await refuses(t, 'own/ca.pem', null, `${name}: the file cannot be read (EISDIR)`);
  // The development authority itself, which is never made anew over an old one.
  for (const broken of ['', half('pki/ca.pem')]) await refuses(t, 'pki/ca.pem', broken, `${at('pki/ca.pem')} does not hold a certificate: restore it, or move the directory away to have a new authority made`);
  await refuses(t, 'pki/ca.pem', null, `${at('pki/ca.pem')} cannot be read (EISDIR)`);
  await refuses(t, 'pki/ca.key', half('pki/ca.key'), `${at('pki/ca.key')} does not hold a private key`);
  await refuses(t, 'pki/ca.key', text('pki/checkout.key'), `${at('pki/ca.pem')} and ca.key do not belong together: move the directory away to have a new authority made`);
});

await t.test('the server\'s certificate and key', async (t) => {
  const name = at('own/server.key');
  await refuses(t, 'own/server.key', text('pki/checkout.key'), `${name}: is not the key of ${at('own/server.pem')}`);
  for (const broken of ['', half('own/server.key'), text('own/server.pem')]) await refuses(t, 'own/server.key', broken, `${name}: does not hold a private key`);
  await refuses(t, 'own/server.pem', half('own/server.pem'), `${at('own/server.pem')}: does not hold a certificate`);
  await refuses(t, 'own/server.key', null, `${name}: cannot be read (EISDIR)`);
});

await t.test('the revocation list', async (t) => {
  const name = at('own/crl.pem');
  for (const broken of ['', half('own/crl.pem')]) await refuses(t, 'own/crl.pem', broken, `${name}: the file holds no revocation list`);
  const der = Buffer.from(text('own/crl.pem').replaceAll(/-----[^-]+-----|\s/gu, ''), 'base64');
  await refuses(t, 'own/crl.pem', der.subarray(0, der.length / 2), `${name}: a revocation list or certificate is not DER`);
  for (const broken of ['', half('pki/revoked.json'), '{"hunter2hunter2": oops', '7']) await refuses(t, 'pki/revoked.json', broken, `${at('pki/revoked.json')} is damaged, and without it a new revocation list would forget who was revoked: restore it`);
});

await t.test('the passwords of the database\'s roles', async (t) => {
  const name = at('secrets/database-roles.json');
  const cut = text('secrets/database-roles.json').slice(0, -10);
  for (const broken of ['', half('secrets/database-roles.json'), cut, '{"hunter2hunter2": oops', '7', '{"hunter2hunter2": "short"}']) await refuses(t, 'secrets/database-roles.json', broken, `${name} does not hold role names and passwords: restore it from a backup`);
  await refuses(t, 'secrets/database-roles.json', null, `${name} is not a file: restore it from a backup`);
});

await t.test('what the writers left, the policies, and the ceremony', async (t) => {
  const [writer] = readdirSync(at('writers')).filter((name) => name.endsWith('.json'));
  const last = `writers/${writer!}`;
  for (const broken of ['', half(last), '{"hunter2hunter2": oops']) await refuses(t, last, broken, `${at(last)}: does not hold the last batch, from which a cut-off log is seen: restore it`);
  await refuses(t, last, null, `${at(last)}: the last batch cannot be read (EISDIR)`);
  for (const broken of ['', '// all gone\n']) await refuses(t, 'policies/tenancy.cedar', broken, 'tenancy.cedar: holds no policy');
  await refuses(t, 'policies/acme.cedar', null, 'acme.cedar: cannot be read (EISDIR)');
  await refuses(t, 'hsm/ceremony.json', half('hsm/ceremony.json'), `${at('hsm/ceremony.json')} is damaged: restore it`, 2);
  await refuses(t, 'secrets/hsm-pin', '', `hsm.pin_file: ${at('secrets/hsm-pin')} is empty`, 2);
});

await t.test('the configuration', async (t) => {
  const name = at('cofre.config.yaml');
  for (const [broken, why] of [
    [own.slice(0, -1), `is not YAML: missing char at line 1, column ${own.length}`],
    ['tls:\n\thunter2hunter2: 1', 'is not YAML: tab as indent at line 2, column 1'],
    ['profile: *hunter2hunter2', 'is not YAML: an alias cannot be resolved'],
    ['%YAML 9.9\n---\nhunter2hunter2', 'must be object'],
  ] as const) {
    await refuses(t, 'cofre.config.yaml', broken, `${name}: ${why}`, 2);
  }
  await refuses(t, 'cofre.config.yaml', null, `${name}: cannot be read (EISDIR)`, 2);
});

await t.test('what a worker process meets is said as its primary would say it', async (t) => {
  writeFileSync(at('cofre.config.yaml'), JSON.stringify({ ...(JSON.parse(own) as object), workers: 2 }));
  await refuses(t, 'own/server.key', text('pki/checkout.key'), `${at('own/server.key')}: is not the key of ${at('own/server.pem')}`);
  await refuses(t, 'own/ca.pem', '', `${at('own/ca.pem')}: the file of authorities holds no certificate`);
  rmSync(at('policies'), { recursive: true });
  writeFileSync(at('policies'), 'hunter2hunter2');
  await refusesToStart(t, {}, `${at('policies')}: cannot be used (ENOTDIR)`, ['hunter2hunter2'], 'policies that are a file');
  writeFileSync(at('cofre.config.yaml'), own);
  await refusesToStart(t, {}, `${at('policies')}: cannot be used (ENOTDIR)`, ['hunter2hunter2'], 'and without workers');
  // The next start makes those of development anew.
  rmSync(at('policies'));
});

await t.test('DATABASE_URL, which holds a password', async (t) => {
  const form = 'the database URL (DATABASE_URL) is not of the form postgresql://user:password@host:5432/database, with what is special in it percent-encoded';
  for (const url of ['mysql://cofre:hunter2hunter2@127.0.0.1:9/cofre', 'hunter2hunter2', 'postgresql://cofre:hunter2hunter2@127.0.0.1:port/cofre', 'postgresql://cofre:hunter2hunter2@127.0.0.1:9/%ZZ', 'postgresql://cofre:hunter2hunter2@/%ZZ?host=%2Frun']) {
    await refusesToStart(t, { DATABASE_URL: url }, form, ['hunter2hunter2'], url);
  }
  await refusesToStart(t, { DATABASE_URL: 'postgresql://cofre:hunter2hunter2@127.0.0.1:9/' }, 'the database URL names no database', ['hunter2hunter2'], 'no database');
  for (const url of ['postgresql://cofre:hunter2hunter2%ZZ@127.0.0.1:9/cofre', 'postgresql://cofre%ZZ:hunter2hunter2@127.0.0.1:9/cofre']) {
    await refusesToStart(t, { DATABASE_URL: url }, 'the database does not answer (ECONNREFUSED): check DATABASE_URL', ['hunter2hunter2'], url);
  }
  await refusesToStart(t, { DATABASE_URL: 'postgresql://cofre:hunter2hunter2@127.0.0.1:9/cofre?sslmode=verify-full&sslrootcert=/nonexistent.pem' }, '/nonexistent.pem: cannot be used (ENOENT)', ['hunter2hunter2'], 'a certificate that is not there');
});

await t.test('and after all that it starts', async (t) => {
  await appliance.start();
  t.same(await appliance.stop(), { code: 0, signal: null });
});
