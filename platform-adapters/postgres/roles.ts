import { randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import type { ClientBase } from 'pg';
import { replaceFile } from '../linux/durable-file.ts';

/** The process roles of Cofre. Each connects to PostgreSQL as itself, so that the database enforces what each may touch. */
export const PROCESS_ROLES = ['tokenize', 'detokenize', 'sequencer', 'relay', 'admin'] as const;

export type ProcessRole = (typeof PROCESS_ROLES)[number];

/** PostgreSQL cuts identifiers at 63 bytes without an error; the longest suffix is `_detokenize`. */
const MAX_DATABASE_NAME_BYTES = 63 - '_detokenize'.length;

/** How long the holder of a lock may say nothing between two statements, in a transaction or outside of one. */
const HOLDER_PATIENCE = `'15s'`;
const idleSettings = ['idle_session_timeout', 'idle_in_transaction_session_timeout'] as const;

/** Advisory locks are per database, so one constant is enough ("cofre ro" in ASCII). */
const ROLES_LOCK = '7165064689041568367';

/**
 * Returns the login role's name of a process role, `<database>_<role>`: roles belong to the whole server, so the database's name keeps two vaults on one server apart.
 *
 * @throws if the name would not fit PostgreSQL's 63 bytes.
 */
export function roleName(database: string, role: ProcessRole): string {
  if (Buffer.byteLength(database) > MAX_DATABASE_NAME_BYTES) throw new Error(`the database name is longer than ${MAX_DATABASE_NAME_BYTES} bytes, so its role names would not fit PostgreSQL's 63`);
  return `${database}_${role}`;
}

/** Returns `name` as a quoted SQL identifier. */
export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/**
 * Returns the passwords in the role file, keyed by the login role's name.
 *
 * @throws if the file is absent, is readable by others than its owner, or is not what {@link ensureRoles} wrote.
 */
export function readRoleFile(file: string): ReadonlyMap<string, string> {
  const stat = statSync(file);
  if (!stat.isFile()) throw new Error(`${file} is not a file: restore it from a backup`);
  if ((stat.mode & 0o077) !== 0) throw new Error(`${file} holds database passwords and is open to other users: chmod 600 it`);
  const parsed = parseJson(readFileSync(file, 'utf8'));
  const entries = typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed) ? Object.entries(parsed) : [['', null] as const];
  const passwords = new Map<string, string>();
  for (const [name, password] of entries) {
    if (typeof password !== 'string' || password.length < 32) throw new Error(`${file} does not hold role names and passwords: restore it from a backup`);
    passwords.set(name, password);
  }
  return passwords;
}

/**
 * Creates the five login roles of `database` on the server that `client` is connected to, and nobody else's right to connect to it. Running it again, or many at once on one database, changes nothing.
 *
 * Passwords are 256 random bits each, made once and kept in `file` (JSON, mode 0600). The file is durable before the first role exists, so a crash in between leaves nothing that cannot go on.
 * A role that exists while the file does not know its password was made from another COFRE_HOME: it is refused, because a new password would lock the other one out.
 *
 * `client` is the administrator's, connected to `database`, idle (no open transaction), and owns the database.
 *
 * @throws one clear line if the user lacks CREATEROLE, a role has rights that Cofre never gives, or the file does not fit the server.
 */
export async function ensureRoles(client: ClientBase, options: { database: string; file: string }): Promise<void> {
  const names = new Map(PROCESS_ROLES.map((role) => [role, roleName(options.database, role)]));
  await holdingLock(client, ROLES_LOCK, async () => {
    const known = await client.query<{ rolname: string; powerful: boolean }>(
      `SELECT rolname, rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls AS powerful
         FROM pg_catalog.pg_roles WHERE rolname = ANY ($1)`,
      [[...names.values()]],
    );
    const powerful = known.rows.find((row) => row.powerful);
    if (powerful !== undefined)
      throw new Error(`the database role ${powerful.rolname} has more rights than Cofre gives: ALTER ROLE it to NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS`);

    const passwords = new Map(existsAsFile(options.file) ? readRoleFile(options.file) : []);
    const existing = new Set(known.rows.map((row) => row.rolname));
    for (const name of existing) {
      if (!passwords.has(name)) throw new Error(`the database role ${name} exists, but ${options.file} has no password for it: copy the file from the COFRE_HOME that made the role, or drop the role`);
    }

    const missing = [...names.values()].filter((name) => !existing.has(name));
    if (missing.length > 0) {
      const rights = await client.query<{ may: boolean }>('SELECT rolsuper OR rolcreaterole AS may FROM pg_catalog.pg_roles WHERE rolname = current_user');
      if (rights.rows[0]?.may !== true) throw new Error("the database URL's user lacks CREATEROLE: grant it, or create the login roles by hand and put their passwords into the role file");
      for (const name of missing) if (!passwords.has(name)) passwords.set(name, randomBytes(32).toString('base64url'));
      mkdirSync(dirname(options.file), { recursive: true, mode: 0o700 });
      replaceFile(options.file, `${JSON.stringify(Object.fromEntries(passwords), null, 2)}\n`, 0o600);
      for (const name of missing) {
        // A password cannot be a parameter here; base64url has no character that needs quoting.
        await client.query(`CREATE ROLE ${quoteIdentifier(name)} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD '${passwords.get(name)!}'`);
      }
    }

    const database = quoteIdentifier(options.database);
    const list = [...names.values()].map(quoteIdentifier).join(', ');
    await client.query(`REVOKE ALL ON DATABASE ${database} FROM PUBLIC`);
    await client.query(`GRANT CONNECT ON DATABASE ${database} TO ${list}`);
    await client.query('REVOKE CREATE ON SCHEMA public FROM PUBLIC');
  });
}

/**
 * Runs `work` while this session holds the advisory lock `key` of its database, so that any number of processes may call at once. `client` is idle before and after.
 *
 * Rejects with what `work` threw. A session that is lost meanwhile releases its lock by itself; one whose machine is gone closes no connection, so the server ends it where it says nothing for a while.
 */
export async function holdingLock<T>(client: ClientBase, key: string, work: () => Promise<T>): Promise<T> {
  const set = (patience: string): Promise<unknown> => client.query(idleSettings.map((name) => `SET ${name} = ${patience}`).join('; '));
  await set(HOLDER_PATIENCE);
  await client.query('SELECT pg_advisory_lock($1)', [key]);
  try {
    return await work();
  } finally {
    await client.query('SELECT pg_advisory_unlock($1)', [key]).catch(() => undefined);
    await set('DEFAULT').catch(() => undefined);
  }
}

/** Returns what `text` holds, or null if it is not JSON: the parser's own message quotes the text around the fault, which may be a password. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function existsAsFile(file: string): boolean {
  return statSync(file, { throwIfNoEntry: false }) !== undefined;
}
