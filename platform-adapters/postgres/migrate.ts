import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { ClientBase } from 'pg';
import { PROCESS_ROLES, holdingLock, quoteIdentifier, roleName, type ProcessRole } from './roles.ts';

/** The SQL files of this Cofre. Others pass their own folder in tests only. */
const MIGRATIONS = fileURLToPath(new URL('migrations/', import.meta.url));

/** "cofre mi" in ASCII. Advisory locks are per database. */
const MIGRATE_LOCK = '7165064689041238377';

interface Migration {
  readonly number: number;
  readonly name: string;
  /** SHA-256 of the file as it stands on disk, before role names are put in: the same for every database. */
  readonly sha256: string;
  readonly text: string;
}

/**
 * Brings the schema of `database` up to this Cofre's, by the numbered SQL files in `migrations/`, and returns how many were applied. Any number may run at once: one applies, the others wait and find nothing to do.
 *
 * Each file runs in a transaction of its own together with its row in `schema_migrations`, so a crash leaves whole files only. In a file, `{role:tokenize}` stands for the quoted login role of that process role.
 * `client` is the administrator's, connected to `database`, idle (no open transaction); the roles exist already (see roles.ts).
 *
 * @throws one clear line if an applied file was edited, the schema is newer than this Cofre, or a file is numbered below one that is applied already; the database's own error, with the file's name, if a file fails.
 */
export async function migrate(client: ClientBase, options: { database: string; folder?: string }): Promise<number> {
  const migrations = readMigrations(options.folder ?? MIGRATIONS);
  return holdingLock(client, MIGRATE_LOCK, async () => {
    await client.query(`
      CREATE TABLE IF NOT EXISTS schema_migrations (
        number     integer     PRIMARY KEY,
        name       text        NOT NULL,
        sha256     text        NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
      )`);
    await client.query(`GRANT SELECT ON schema_migrations TO ${PROCESS_ROLES.map((role) => quoteIdentifier(roleName(options.database, role))).join(', ')}`);
    const pending = await compare(client, migrations);
    for (const migration of pending) {
      const sql = withRoleNames(migration, options.database);
      await client.query('BEGIN');
      try {
        await client.query(sql);
        await client.query('INSERT INTO schema_migrations (number, name, sha256) VALUES ($1, $2, $3)', [migration.number, migration.name, migration.sha256]);
        await client.query('COMMIT');
      } catch (cause) {
        await client.query('ROLLBACK').catch(() => undefined);
        throw new Error(`migration ${migration.name} failed: ${cause instanceof Error ? cause.message : 'unknown error'}`, { cause });
      }
    }
    return pending.length;
  });
}

/**
 * Resolves if the schema is exactly this Cofre's; needs no more than a process role's rights. A process that does not migrate calls it at start.
 *
 * @throws one clear line if the schema is older, newer, or from an edited file.
 */
export async function assertSchema(client: ClientBase, options: { folder?: string } = {}): Promise<void> {
  const found = await client.query<{ table: string | null }>(`SELECT to_regclass('schema_migrations') AS table`);
  if (found.rows[0]?.table !== 'schema_migrations') throw new Error('the database has no schema yet: start a process with the admin role first');
  const pending = await compare(client, readMigrations(options.folder ?? MIGRATIONS));
  if (pending.length > 0) throw new Error(`the database lacks migration ${pending[0]!.name}: start a process with the admin role first`);
}

/** Returns the files that are not applied yet, in order; throws on any disagreement between files and table. */
async function compare(client: ClientBase, migrations: readonly Migration[]): Promise<Migration[]> {
  const applied = await client.query<{ number: number; name: string; sha256: string }>('SELECT number, name, sha256 FROM schema_migrations ORDER BY number');
  const byNumber = new Map(migrations.map((migration) => [migration.number, migration]));
  let last = 0;
  for (const row of applied.rows) {
    const migration = byNumber.get(row.number);
    if (migration === undefined) throw new Error(`the database has migration ${row.name}, which this Cofre does not know: a newer Cofre made it, run that one`);
    if (migration.sha256 !== row.sha256) throw new Error(`migration ${migration.name} was edited after it was applied: undo the edit and add a new file`);
    last = row.number;
  }
  const pending = migrations.slice(applied.rows.length === 0 ? 0 : migrations.findIndex((migration) => migration.number === last) + 1);
  if (pending.length + applied.rows.length !== migrations.length) {
    const known = new Set(applied.rows.map((row) => row.number));
    const late = migrations.find((migration) => migration.number < last && !known.has(migration.number))!;
    throw new Error(`migration ${late.name} is numbered below one that is applied already: give it the next free number`);
  }
  return pending;
}

function readMigrations(folder: string): Migration[] {
  const migrations: Migration[] = [];
  for (const name of readdirSync(folder).sort()) {
    const match = /^(\d{4})_[a-z0-9_]+\.sql$/.exec(name);
    if (match === null) throw new Error(`${name} in the migrations folder is not named like 0001_tenants.sql`);
    const bytes = readFileSync(`${folder}/${name}`);
    const number = Number(match[1]);
    if (migrations.at(-1)?.number === number) throw new Error(`two migrations have the number ${match[1]!}: ${migrations.at(-1)!.name} and ${name}`);
    migrations.push({ number, name, sha256: createHash('sha256').update(bytes).digest('hex'), text: bytes.toString('utf8') });
  }
  return migrations;
}

function withRoleNames(migration: Migration, database: string): string {
  return migration.text.replaceAll(/\{role:([^}]*)\}/g, (_, role: string) => {
    if (!(PROCESS_ROLES as readonly string[]).includes(role)) throw new Error(`migration ${migration.name} names the unknown role ${role}`);
    return quoteIdentifier(roleName(database, role as ProcessRole));
  });
}
