/** What a writer's session promises over a real PostgreSQL, whatever its role or its database were told. */
import { Client } from 'pg';
import t from 'tap';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { quoteIdentifier, roleName } from '../../platform-adapters/postgres/roles.ts';
import { createWriterConnector } from '../../platform-adapters/postgres/writer-connector.ts';
import { begin, classify, prepareSession } from '../../vault/writer-session.ts';
import { freshDatabase, withClient } from '../support/database.ts';

t.test('a session waits for its commits and writes in transactions only, though its role was told otherwise', async (t) => {
  const database = await freshDatabase(t);
  await withClient(adminConnection(database.adminUrl), async (client) => {
    for (const setting of ['synchronous_commit = off', 'default_transaction_read_only = off', "default_transaction_isolation = 'serializable'", 'statement_timeout = 0', 'idle_in_transaction_session_timeout = 0']) {
      await client.query(`ALTER ROLE ${quoteIdentifier(roleName(database.database, 'tokenize'))} SET ${setting}`);
    }
  });
  const session = await createWriterConnector(database.connect('tokenize'), { connectTimeoutMs: 5000, queryTimeoutMs: 5000 }).connect();
  t.teardown(() => session.end());
  const { client } = session;
  const setting = async (name: string): Promise<unknown> => (await client.query<{ setting: string }>('SELECT current_setting($1) AS setting', [name])).rows[0]!.setting;
  t.equal(await setting('synchronous_commit'), 'off', 'so it would be');

  await prepareSession(client, 10_000);
  for (const [name, value] of [['synchronous_commit', 'on'], ['statement_timeout', '10s'], ['idle_in_transaction_session_timeout', '15s']] as const) t.equal(await setting(name), value, name);
  const write = `DELETE FROM idempotency_keys WHERE tenant_id = 1`;
  await t.rejects(client.query(write), { code: '25006' }, 'a statement whose BEGIN failed writes nothing');
  t.equal(await setting('transaction_isolation'), 'read committed', 'also of a transaction that begins in other words, as the one of a tombstone');
  await client.query('SET default_transaction_isolation = serializable');
  await client.query(begin);
  t.equal(await setting('transaction_isolation'), 'read committed');
  await t.resolves(client.query(write));
  await client.query('COMMIT');
});

t.test('an error says what became of its transaction: as the server tells it', async (t) => {
  const database = await freshDatabase(t);
  const failing = async (sql: string): Promise<unknown> =>
    await withClient(adminConnection(database.adminUrl), (client) => client.query(sql)).then(() => t.fail(`${sql} did not fail`), (error: unknown) => error);
  for (const [sql, failure] of [
    ["DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40001'; END $$", 'conflict'],
    ["DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40P01'; END $$", 'conflict'],
    ["DO $$ BEGIN RAISE EXCEPTION SQLSTATE '55P03'; END $$", 'conflict'],
    ["DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40003'; END $$", 'lost'],
    ["DO $$ BEGIN RAISE EXCEPTION SQLSTATE '08006'; END $$", 'lost'],
    ['SELECT pg_terminate_backend(pg_backend_pid())', 'lost'],
    ['SELECT 1 / 0', 'poison'],
    ["SELECT 'x'::int", 'poison'],
    ['CREATE TEMP TABLE a (b int NOT NULL); INSERT INTO a VALUES (NULL)', 'poison'],
    ["DO $$ BEGIN RAISE 'by a trigger'; END $$", 'poison'],
    ["DO $$ BEGIN RAISE EXCEPTION SQLSTATE '53100'; END $$", 'refused'],
    ['BEGIN READ ONLY; CREATE TABLE a (b int)', 'refused'],
    ['SELECT * FROM absent', 'refused'],
    ["SET statement_timeout = '10ms'; SELECT pg_sleep(5)", 'slow'],
    ['SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(5)', 'slow'],
  ] as const) t.equal(classify(await failing(sql)), failure, sql);
});

t.test('what is no answer of the server leaves open what became of the transaction', async (t) => {
  const refused = await new Client({ host: '127.0.0.1', port: 1 }).connect().catch((error: unknown) => error);
  t.match(refused, { code: 'ECONNREFUSED' });
  for (const error of [refused, new Error('Query read timeout'), null, undefined, 'text', { code: 40001 }, { code: '4000' }, { code: 'EPIPE' }, { code: 'EPERM' }]) t.equal(classify(error), 'lost');
});
