/** Each role as a process of its own, over one database: what it serves, what its host holds, and what it cannot do. */
import { cpSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'pg';
import t from 'tap';
import { startAppliance, unstartedAppliance, type Appliance } from '../support/appliance.ts';
import { freshDatabase } from '../support/database.ts';
import { readLog } from '../support/log-reader.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const database = await freshDatabase(t, { migrated: false });
// The admin process makes the state of development, HSM token and keys included, and prepares the database.
const admin = await startAppliance(t, { database, config: { roles: ['admin'] } });
const passwords = JSON.parse(readFileSync(join(admin.home, 'secrets/database-roles.json'), 'utf8')) as Record<string, string>;

/** A host of one role: the files that it needs, and of the database's passwords its own. */
function hostOf(role: 'tokenize' | 'detokenize'): Appliance {
  const [name, password] = Object.entries(passwords).find(([login]) => login.endsWith(`_${role}`))!;
  const url = new URL(database.adminUrl.replace('@/', '@socket.invalid/'));
  url.username = encodeURIComponent(name);
  url.password = encodeURIComponent(password);
  const host = unstartedAppliance(t, { config: { roles: [role] }, env: { DATABASE_URL: url.href.replace('@socket.invalid/', '@/'), SOFTHSM2_CONF: join(admin.home, 'hsm/softhsm2.conf') } });
  for (const folder of ['pki', 'policies', 'hsm']) cpSync(join(admin.home, folder), join(host.home, folder), { recursive: true });
  mkdirSync(join(host.home, 'secrets'), { mode: 0o700 });
  // SoftHSM2 has one user, so the PIN of all roles is one; what users of their own are worth shows test/hsm/users.test.ts. Whoever may make keys and users stays with the custodians.
  writeFileSync(join(host.home, 'secrets/hsm-pin'), readFileSync(join(admin.home, 'secrets/hsm-pin')), { mode: 0o600 });
  return host;
}

const tokenizing = hostOf('tokenize');
const detokenizing = hostOf('detokenize');
await tokenizing.start();
await detokenizing.start();
let token = '';

await t.test('each process serves its own calls and knows no others', async (t) => {
  const made = await tokenizing.client('checkout').post('/v1/tokenize', { pan: cardText(1), expiry: '2030-01', cardholder: 'ANA SOUZA' });
  t.equal(made.status, 201);
  token = made.json()['token'] as string;
  t.equal((await tokenizing.client('checkout').post('/v1/validate', { token })).json()['valid'], true);
  t.same((await detokenizing.client('getnet').post('/v1/detokenize', { token, purpose: 'refund' })).json(), { pan: cardText(1), expiry: '2030-01', cardholder: 'ANA SOUZA' });
  const batch = await detokenizing.client('getnet').post('/v1/detokenize/batch', { tokens: [token], purpose: 'refund' });
  t.match(batch.json(), { items: [{ pan: cardText(1) }] });

  isProblem(t, await tokenizing.client('getnet').post('/v1/detokenize', { token, purpose: 'refund' }), 'not_found');
  isProblem(t, await tokenizing.client('getnet').post('/v1/detokenize/batch', { tokens: [token], purpose: 'refund' }), 'not_found');
  isProblem(t, await detokenizing.client('checkout').post('/v1/validate', { token }), 'not_found');
  isProblem(t, await detokenizing.client('checkout').call('DELETE', `/v1/tokens/${token}`), 'not_found');
  t.equal((await admin.client('auditor', { admin: true }).get('/v1/status')).status, 200);
  t.same([tokenizing.adminPort, detokenizing.adminPort], [0, 0], 'and only the admin process has the admin listener');
});

await t.test('each keeps chains of its own role, certified by the HSM', async (t) => {
  const entries = await readLog(admin);
  const role = (action: string): string[] => [...new Set(entries.filter(({ value }) => value['action'] === action).map((entry) => entry.role))];
  t.same(role('tokenize'), ['tokenize']);
  t.same(role('detokenize'), ['detokenize']);
  t.same(role('status'), ['admin']);
});

/** Runs a statement as whoever the process of this host is. @returns 'done' or the SQLSTATE. */
async function asHost(host: Appliance, sql: string): Promise<string> {
  const env = readFileSync(`/proc/${host.pid}/environ`, 'utf8').split('\0').find((line) => line.startsWith('DATABASE_URL='))!;
  const client = new Client({ connectionString: env.slice('DATABASE_URL='.length) });
  await client.connect();
  try {
    await client.query(sql);
    return 'done';
  } catch (error) {
    return (error as { code: string }).code;
  } finally {
    await client.end();
  }
}

await t.test('what a stolen host could ask of the database with all that lies on it', async (t) => {
  const denied = '42501';
  t.equal(await asHost(tokenizing, 'SELECT token, last4 FROM cards'), 'done');
  for (const sql of ['SELECT sealed_pan FROM cards', 'SELECT sealed_name FROM cards', 'SELECT * FROM cards', "UPDATE cards SET sealed_pan = sealed_pan", 'SELECT * FROM quota_usage', 'DELETE FROM batches', 'TRUNCATE cards', 'CREATE TABLE mine (n int)', "SET ROLE postgres"]) t.equal(await asHost(tokenizing, sql), denied, `tokenize: ${sql}`);
  t.equal(await asHost(detokenizing, 'SELECT sealed_pan FROM cards'), 'done', 'the detokenizing host reads what is sealed: it is the one that must be guarded');
  for (const sql of ["UPDATE cards SET status = 0", "UPDATE tokens SET status = 0", "UPDATE cards SET sealed_pan = ''", 'DELETE FROM cards', 'INSERT INTO cards SELECT * FROM cards', 'SELECT * FROM idempotency_keys', 'UPDATE batches SET kind = 1']) t.equal(await asHost(detokenizing, sql), denied, `detokenize: ${sql}`);
  for (const host of [tokenizing, detokenizing]) t.notMatch(readFileSync(`/proc/${host.pid}/environ`, 'utf8'), new RegExp(passwords[Object.keys(passwords).find((name) => name.endsWith('_admin'))!]!), 'and it has no password of another role');
});

await t.test('no host of a role has what the HSM was set up with', async (t) => {
  const securityOfficer = readFileSync(join(admin.home, 'secrets/hsm-so-pin'), 'utf8').trim();
  for (const host of [tokenizing, detokenizing]) {
    for (const file of readdirSync(host.home, { recursive: true, withFileTypes: true })) if (file.isFile()) t.notOk(readFileSync(join(file.parentPath, file.name)).includes(securityOfficer), file.name);
  }
});

await t.test('a process without the admin role refuses a database that is not prepared for it', async (t) => {
  const empty = await freshDatabase(t, { migrated: false });
  const ended = await tokenizing.stop().then(() => tokenizing.launch({ DATABASE_URL: empty.adminUrl }));
  t.equal(ended?.code, 1);
  t.match(tokenizing.err.trim().split('\n').at(-1), /^cofre: the database has no schema yet: start a process with the admin role first$/u);
  const none = await tokenizing.launch({ DATABASE_URL: '' });
  t.equal(none?.code, 1);
  t.match(tokenizing.err.trim().split('\n').at(-1), /^cofre: a process without the admin role needs DATABASE_URL/u);
});
