import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import t from 'tap';
import { adminConnection, assertDurable, connectionFor, databaseOf, withDatabase } from '../../../platform-adapters/postgres/connect.ts';
import { PROCESS_ROLES, ensureRoles, holdingLock, quoteIdentifier, roleName } from '../../../platform-adapters/postgres/roles.ts';
import { freshDatabase, withClient, type FreshDatabase } from '../../support/database.ts';
import { Relay } from '../../support/relay.ts';

function asOwner<T>(fresh: FreshDatabase, work: (client: Client) => Promise<T>): Promise<T> {
  return withClient(adminConnection(fresh.adminUrl), work);
}

function ensure(fresh: FreshDatabase): Promise<void> {
  return asOwner(fresh, (client) => ensureRoles(client, { database: fresh.database, file: fresh.rolesFile }));
}

t.test('each process role connects as itself, without any right over the server', async (t) => {
  const fresh = await freshDatabase(t, { migrated: false });
  await ensure(fresh);
  for (const role of PROCESS_ROLES) {
    const rows = await withClient(fresh.connect(role), (client) =>
      client.query('SELECT rolname, rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls AS powerful FROM pg_roles WHERE rolname = current_user'),
    );
    t.same(rows.rows, [{ rolname: `${fresh.database}_${role}`, powerful: false }]);
  }
});

t.test('twenty at once make one set of passwords, and later runs keep it', async (t) => {
  const fresh = await freshDatabase(t, { migrated: false });
  await Promise.all(Array.from({ length: 20 }, () => ensure(fresh)));
  const made = readFileSync(fresh.rolesFile, 'utf8');
  await ensure(fresh);
  t.equal(readFileSync(fresh.rolesFile, 'utf8'), made);
  t.equal(statSync(fresh.rolesFile).mode & 0o777, 0o600);
  for (const role of PROCESS_ROLES) await t.resolves(withClient(fresh.connect(role), (client) => client.query('SELECT 1')));
});

t.test('a machine that is gone, and closed no connection, keeps the others waiting for a while only', { timeout: 120_000 }, async (t) => {
  const fresh = await freshDatabase(t, { migrated: false });
  const relay = await Relay.open(t, fresh.adminUrl);
  const gone = new Client(adminConnection(relay.url));
  gone.on('error', () => undefined);
  await gone.connect();
  const { promise: holds, resolve: hold } = Promise.withResolvers<undefined>();
  void holdingLock(gone, '42', () => {
    relay.silence(true);
    hold(undefined);
    return new Promise(() => undefined);
  });
  await holds;
  const held = asOwner(fresh, async (client) => {
    const answer = await holdingLock(client, '42', async () => 'held');
    const { rows } = await client.query<{ setting: string }>(`SELECT setting FROM pg_settings WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout')`);
    t.same(rows, [{ setting: '0' }, { setting: '0' }], 'and who held it may be idle again');
    return answer;
  });
  t.equal(await Promise.race([held, sleep(60_000, 'late', { ref: false })]), 'held');
});

t.test('a crash after the file and before the roles is gone on from', async (t) => {
  const fresh = await freshDatabase(t, { migrated: false });
  await ensure(fresh);
  const made = readFileSync(fresh.rolesFile, 'utf8');
  await asOwner(fresh, async (client) => {
    const relay = quoteIdentifier(roleName(fresh.database, 'relay'));
    await client.query(`REVOKE ALL ON DATABASE ${quoteIdentifier(fresh.database)} FROM ${relay}`);
    await client.query(`DROP ROLE ${relay}`);
  });
  await ensure(fresh);
  t.equal(readFileSync(fresh.rolesFile, 'utf8'), made);
  await t.resolves(withClient(fresh.connect('relay'), (client) => client.query('SELECT 1')));
});

t.test('nobody may create in a schema that an older server left open to everybody', async (t) => {
  const fresh = await freshDatabase(t, { migrated: false });
  await asOwner(fresh, (client) => client.query('GRANT CREATE ON SCHEMA public TO PUBLIC'));
  await ensure(fresh);
  for (const role of PROCESS_ROLES) await t.rejects(withClient(fresh.connect(role), (client) => client.query('CREATE TABLE mine (n int)')), { code: '42501' }, role);
});

t.test('another database is closed to the roles of this one', async (t) => {
  const [one, other] = [await freshDatabase(t, { migrated: false }), await freshDatabase(t, { migrated: false })];
  await ensure(one);
  await ensure(other);
  const config = connectionFor('tokenize', { adminUrl: one.adminUrl, file: one.rolesFile });
  await t.rejects(
    withClient({ ...config, connectionString: withDatabase(config.connectionString!, other.database) }, (client) => client.query('SELECT 1')),
    { code: '42501' },
  );
});

t.test('roles without their passwords, a readable file, a broken file and a role with rights are refused', async (t) => {
  const fresh = await freshDatabase(t, { migrated: false });
  await ensure(fresh);
  const made = readFileSync(fresh.rolesFile, 'utf8');

  chmodSync(fresh.rolesFile, 0o640);
  await t.rejects(ensure(fresh), { message: /is open to other users: chmod 600 it$/ });
  rmSync(fresh.rolesFile);
  await t.rejects(ensure(fresh), { message: /has no password for it: copy the file/ });
  t.notOk(existsSync(fresh.rolesFile), 'no new password is made, which would lock the other home out');
  for (const broken of ['', made.slice(0, 100), made.slice(0, -3), 'SECRET', '7', 'null', '[]', made.replace(/"[^"]{32,}"/, '7'), made.replace(/[^"]{32,}/, 'SECRET')]) {
    t.not(broken, made);
    writeFileSync(fresh.rolesFile, broken, { mode: 0o600 });
    await t.rejects(ensure(fresh), { message: `${fresh.rolesFile} does not hold role names and passwords: restore it from a backup` }, 'the message does not repeat what the file holds');
  }
  rmSync(fresh.rolesFile);
  mkdirSync(fresh.rolesFile);
  await t.rejects(ensure(fresh), { message: `${fresh.rolesFile} is not a file: restore it from a backup` });
  rmSync(fresh.rolesFile, { recursive: true });
  writeFileSync(fresh.rolesFile, made, { mode: 0o600 });

  await asOwner(fresh, (client) => client.query(`ALTER ROLE ${quoteIdentifier(roleName(fresh.database, 'relay'))} CREATEROLE`));
  await t.rejects(ensure(fresh), { message: /_relay has more rights than Cofre gives/ });
});

t.test('a user without CREATEROLE is told so, before anything is written', async (t) => {
  const fresh = await freshDatabase(t, { migrated: false });
  await asOwner(fresh, async (client) => {
    const weak = quoteIdentifier(`${fresh.database}_weak`);
    await client.query(`CREATE ROLE ${weak}; GRANT ${weak} TO current_user; SET ROLE ${weak}`);
    await t.rejects(ensureRoles(client, { database: fresh.database, file: fresh.rolesFile }), { message: /lacks CREATEROLE/ });
    await client.query(`RESET ROLE; DROP ROLE ${weak}`);
  });
  t.notOk(existsSync(fresh.rolesFile));
});

t.test('a name that PostgreSQL would cut is refused', async (t) => {
  t.equal(roleName('d'.repeat(52), 'detokenize').length, 63);
  t.throws(() => roleName('d'.repeat(53), 'tokenize'), { message: /longer than 52 bytes/ });
  t.equal(quoteIdentifier('a"b'), '"a""b"');
});

t.test('a database URL is understood with a host and with a socket, and a bad one is not repeated', async (t) => {
  t.equal(databaseOf('postgresql://u:p@db.internal:5432/vault?sslmode=verify-full'), 'vault');
  t.equal(databaseOf('postgresql://u:p@/vault?host=%2Frun%2Fpg'), 'vault');
  t.equal(withDatabase('postgresql://u:p@/vault?host=%2Frun%2Fpg', 'other'), 'postgresql://u:p@/other?host=%2Frun%2Fpg');
  const form = 'the database URL (DATABASE_URL) is not of the form postgresql://user:password@host:5432/database, with what is special in it percent-encoded';
  for (const bad of ['', 'secret', 'mysql://u:secret@h/d', 'http://u:secret@h/d', 'postgresql://u:secret@h:port/d', 'postgresql://u:secret@h/%ZZ', 'postgresql://u:secret@h/d%E9', 'postgresql://u:secret@/%?host=%2Frun%2Fpg']) {
    t.throws(() => databaseOf(bad), { message: form }, bad);
    t.throws(() => adminConnection(bad), { message: form }, bad);
  }
  t.throws(() => databaseOf('postgresql://u:secret@h/'), { message: 'the database URL names no database' });
});

t.test('a server that could lose what it acknowledged is refused', async (t) => {
  const fresh = await freshDatabase(t, { migrated: false });
  await asOwner(fresh, async (client) => {
    await t.resolves(assertDurable(client));
    await client.query('SET synchronous_commit = local');
    await t.resolves(assertDurable(client));
    await client.query('SET synchronous_commit = off');
    await t.rejects(assertDurable(client), { message: /synchronous_commit=off, so acknowledged tokens could be lost/ });
  });
  // The other settings are of a whole server, and so is its version.
  const told = { version: 180_004, fsync: 'on', full_page_writes: 'on', synchronous_commit: 'on' };
  const server = (change: object): Client => ({ query: async () => ({ rows: [{ ...told, ...change }] }) }) as unknown as Client;
  await t.resolves(assertDurable(server({ version: 150_000 })));
  await t.rejects(assertDurable(server({ version: 140_012 })), { message: 'PostgreSQL 14 is too old: Cofre needs 15 or newer' });
});
