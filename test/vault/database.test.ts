/** How a process reaches its database, where the database does not answer. */
import { Client, Pool } from 'pg';
import t from 'tap';
import { connectionOf } from '../../vault/bin/database.ts';
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
