/** How a process reaches its database, where the database does not answer. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Client, Pool } from 'pg';
import t from 'tap';
import { asClient, connectionOf, prepareDatabase } from '../../vault/bin/database.ts';
import { loadConfig } from '../../vault/config.ts';
import { freshDatabase } from '../support/database.ts';
import { Relay } from '../support/relay.ts';

t.test('a database that has fallen silent is given up on, and the next one is reached', { timeout: 60_000 }, async (t) => {
  const database = await freshDatabase(t);
  const relay = await Relay.open(t, database.adminUrl);
  const connection = connectionOf({ url: relay.url, roleFile: database.rolesFile }, 'tokenize');
  const pool = new Pool({ ...connection, max: 1 });
  pool.on('error', () => undefined);
  t.teardown(() => pool.end());
  await pool.query('SELECT 1');

  relay.silence(true);
  const stranger = new Client(connection);
  stranger.on('error', () => undefined);
  await Promise.all([t.rejects(pool.query('SELECT 1'), 'a statement'), t.rejects(stranger.connect(), 'a connection')]);
  relay.silence(false);
  t.same((await pool.query<{ one: number }>('SELECT 1 AS one')).rows, [{ one: 1 }]);
});

t.test('a database that does not answer fails the start that would prepare it, in one line and in time', { timeout: 60_000 }, async (t) => {
  const database = await freshDatabase(t, { migrated: false });
  const relay = await Relay.open(t, database.adminUrl);
  relay.silence(true);
  const config = loadConfig({ home: '/nowhere', file: null, env: {} });
  const late = sleep(20_000, 'late', { ref: false });
  t.match(await Promise.race([prepareDatabase(relay.url, database.rolesFile, [], config).catch((error: unknown) => error), late]), { message: 'the database does not answer (unknown): check DATABASE_URL' });
});

t.test('one that falls silent once the work is done is not waited for', { timeout: 60_000 }, async (t) => {
  const database = await freshDatabase(t);
  const relay = await Relay.open(t, database.adminUrl);
  const done = asClient(connectionOf({ url: relay.url, roleFile: database.rolesFile }, 'tokenize'), 'DATABASE_URL', async (client) => {
    await client.query('SELECT 1');
    relay.silence(true);
    return 'done';
  });
  t.equal(await Promise.race([done, sleep(20_000, 'late', { ref: false })]), 'done');
});
