import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Client } from 'pg';
import t, { type Test } from 'tap';
import { adminConnection } from '../../../platform-adapters/postgres/connect.ts';
import { assertSchema, migrate } from '../../../platform-adapters/postgres/migrate.ts';
import { ensureRoles } from '../../../platform-adapters/postgres/roles.ts';
import { freshDatabase, withClient, type FreshDatabase } from '../../support/database.ts';

/** A folder of migrations and a database without a schema, for one test. */
async function emptyDatabase(t: Test, files: Record<string, string>): Promise<{ fresh: FreshDatabase; folder: string; write: (name: string, sql: string) => void }> {
  const fresh = await freshDatabase(t, { migrated: false });
  const folder = join(t.testdir({}), 'migrations');
  mkdirSync(folder);
  const write = (name: string, sql: string): void => writeFileSync(join(folder, name), sql);
  for (const [name, sql] of Object.entries(files)) write(name, sql);
  await asOwner(fresh, (client) => ensureRoles(client, { database: fresh.database, file: fresh.rolesFile }));
  return { fresh, folder, write };
}

function asOwner<T>(fresh: FreshDatabase, work: (client: Client) => Promise<T>): Promise<T> {
  return withClient(adminConnection(fresh.adminUrl), work);
}

const TWO = { '0001_first.sql': 'CREATE TABLE a (n int); GRANT SELECT ON a TO {role:tokenize};', '0002_second.sql': 'CREATE TABLE b (n int);' };

t.test('twenty at once apply each file once', async (t) => {
  const { fresh, folder } = await emptyDatabase(t, TWO);
  const counts = await Promise.all(Array.from({ length: 20 }, () => asOwner(fresh, (client) => migrate(client, { database: fresh.database, folder }))));
  t.same(
    counts.sort((a, b) => b - a),
    [2, ...Array.from({ length: 19 }, () => 0)],
  );
  const rows = await asOwner(fresh, (client) => client.query('SELECT number, name, length(sha256) AS hex FROM schema_migrations ORDER BY number'));
  t.same(rows.rows, [
    { number: 1, name: '0001_first.sql', hex: 64 },
    { number: 2, name: '0002_second.sql', hex: 64 },
  ]);
});

t.test('a grant reaches the role that the file names, and no other', async (t) => {
  const { fresh, folder } = await emptyDatabase(t, TWO);
  await asOwner(fresh, (client) => migrate(client, { database: fresh.database, folder }));
  t.equal((await withClient(fresh.connect('tokenize'), (client) => client.query('SELECT * FROM a'))).rowCount, 0);
  await t.rejects(
    withClient(fresh.connect('relay'), (client) => client.query('SELECT * FROM a')),
    { code: '42501' },
  );
  await t.rejects(
    withClient(fresh.connect('tokenize'), (client) => client.query('CREATE TABLE c (n int)')),
    { code: '42501' },
  );
});

t.test('a file that fails leaves the files before it, and nothing of itself', async (t) => {
  const { fresh, folder, write } = await emptyDatabase(t, { ...TWO, '0003_broken.sql': 'CREATE TABLE c (n int); SELECT 1/0;' });
  await t.rejects(
    asOwner(fresh, (client) => migrate(client, { database: fresh.database, folder })),
    { message: 'migration 0003_broken.sql failed: division by zero' },
  );
  const left = await asOwner(fresh, (client) => client.query(`SELECT count(*)::int AS applied, to_regclass('c') AS c FROM schema_migrations`));
  t.same(left.rows, [{ applied: 2, c: null }]);
  write('0003_broken.sql', 'CREATE TABLE c (n int);');
  t.equal(await asOwner(fresh, (client) => migrate(client, { database: fresh.database, folder })), 1, 'a mended file goes on from there');
});

t.test('a file and its row in the table stand together or not at all', async (t) => {
  const { fresh, folder } = await emptyDatabase(t, TWO);
  await t.rejects(
    asOwner(fresh, (client) => {
      const query = client.query.bind(client) as (...args: unknown[]) => Promise<unknown>;
      client.query = ((...args: unknown[]) => (String(args[0]).startsWith('INSERT INTO schema_migrations') ? Promise.reject(new Error('cut off')) : query(...args))) as never;
      return migrate(client, { database: fresh.database, folder });
    }),
    { message: 'migration 0001_first.sql failed: cut off' },
  );
  const left = await asOwner(fresh, (client) => client.query(`SELECT count(*)::int AS applied, to_regclass('a') AS a FROM schema_migrations`));
  t.same(left.rows, [{ applied: 0, a: null }]);
  t.equal(await asOwner(fresh, (client) => migrate(client, { database: fresh.database, folder })), 2);
});

t.test('an edited file, a newer schema, a late number and a doubled number are refused', async (t) => {
  const { fresh, folder, write } = await emptyDatabase(t, TWO);
  const run = (): Promise<number> => asOwner(fresh, (client) => migrate(client, { database: fresh.database, folder }));
  await run();

  write('0001_first.sql', 'CREATE TABLE a (n bigint);');
  await t.rejects(run(), { message: /^migration 0001_first\.sql was edited/ });
  write('0001_first.sql', TWO['0001_first.sql']);

  rmSync(join(folder, '0002_second.sql'));
  await t.rejects(run(), { message: /^the database has migration 0002_second\.sql, which this Cofre does not know/ });
  write('0002_second.sql', TWO['0002_second.sql']);

  write('0002_again.sql', '');
  await t.rejects(run(), { message: /^two migrations have the number 0002/ });
  rmSync(join(folder, '0002_again.sql'));

  write('0005_fifth.sql', 'SELECT 1');
  t.equal(await run(), 1);
  write('0004_fourth.sql', 'SELECT 1');
  await t.rejects(run(), { message: /^migration 0004_fourth\.sql is numbered below/ });
});

t.test('an unknown role and a badly named file are refused', async (t) => {
  const { fresh, folder, write } = await emptyDatabase(t, { '0001_first.sql': 'GRANT SELECT ON a TO {role:root}' });
  await t.rejects(
    asOwner(fresh, (client) => migrate(client, { database: fresh.database, folder })),
    { message: /names the unknown role root/ },
  );
  write('notes.txt', '');
  await t.rejects(
    asOwner(fresh, (client) => migrate(client, { database: fresh.database, folder })),
    { message: /^notes\.txt in the migrations folder/ },
  );
});

t.test('a process role can tell an older, a newer and a matching schema apart', async (t) => {
  const { fresh, folder, write } = await emptyDatabase(t, TWO);
  const look = (): Promise<void> => withClient(fresh.connect('relay'), (client) => assertSchema(client, { folder }));
  await t.rejects(look(), { message: /has no schema yet/ });
  await asOwner(fresh, (client) => migrate(client, { database: fresh.database, folder }));
  await t.resolves(look());
  write('0003_third.sql', 'SELECT 1');
  await t.rejects(look(), { message: /lacks migration 0003_third\.sql/ });
  rmSync(join(folder, '0003_third.sql'));
  rmSync(join(folder, '0002_second.sql'));
  await t.rejects(look(), { message: /a newer Cofre made it/ });
});
