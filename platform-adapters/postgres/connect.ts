import type { ClientBase, ClientConfig } from 'pg';
import { readRoleFile, roleName, type ProcessRole } from './roles.ts';

/** The oldest PostgreSQL that Cofre is tested to understand: 15 took CREATE on `public` from everybody. */
const MIN_SERVER_VERSION = 150_000;

/** Stands in for the host where a URL names a socket folder by `?host=` and has none; WHATWG URLs refuse a user without a host. */
const NO_HOST = 'socket.invalid';

/**
 * Returns how the administrator connects: `adminUrl` itself, with a name that shows in `pg_stat_activity`.
 *
 * @throws one clear line, without the URL (it holds a password), if it is not a PostgreSQL URL that names a database.
 */
export function adminConnection(adminUrl: string): ClientConfig {
  databaseOf(adminUrl);
  return { connectionString: adminUrl, application_name: 'cofre owner' };
}

/**
 * Returns how a process of `role` connects: the server and database of `adminUrl`, as `<database>_<role>`, with the password from the role file.
 *
 * @throws if the URL is malformed, or the file is absent or does not know the role.
 */
export function connectionFor(role: ProcessRole, options: { adminUrl: string; file: string }): ClientConfig {
  const url = parse(options.adminUrl);
  const name = roleName(databaseOf(options.adminUrl), role);
  const password = readRoleFile(options.file).get(name);
  if (password === undefined) throw new Error(`${options.file} has no password for the database role ${name}: start a process with the admin role first`);
  url.username = encodeURIComponent(name);
  url.password = encodeURIComponent(password);
  url.searchParams.delete('user');
  url.searchParams.delete('password');
  return { connectionString: print(url), application_name: `cofre ${role}` };
}

/**
 * Returns the URL without a user and a password: where the server and its database are.
 *
 * @throws one clear line, without the URL, if it is malformed.
 */
export function withoutCredentials(adminUrl: string): string {
  const url = parse(adminUrl);
  // A user must stand there where the host is empty, or the URL would not be one.
  url.username = 'role';
  url.password = '';
  url.searchParams.delete('user');
  url.searchParams.delete('password');
  return print(url);
}

/**
 * Returns the database that a PostgreSQL URL names.
 *
 * @throws one clear line, without the URL, if it is malformed or names none.
 */
export function databaseOf(adminUrl: string): string {
  let name: string;
  try {
    name = decodeURIComponent(parse(adminUrl).pathname.slice(1));
  } catch (error) {
    if (error instanceof URIError) throw malformed();
    throw error;
  }
  if (name === '') throw new Error('the database URL names no database');
  return name;
}

/**
 * Returns `adminUrl` with another database.
 *
 * @throws as {@link databaseOf}.
 */
export function withDatabase(adminUrl: string, database: string): string {
  const url = parse(adminUrl);
  url.pathname = `/${encodeURIComponent(database)}`;
  return print(url);
}

/**
 * Resolves if what this connection commits survives a crash of the server: Cofre answers a caller only after COMMIT, so a server that acknowledges early would lose cards and entries that were promised.
 *
 * `synchronous_commit` is judged as this connection has it, so settings of the role and the database count too. `local` and `remote_write` flush to the own disk and pass.
 *
 * @throws one clear line that names the setting.
 */
export async function assertDurable(client: ClientBase): Promise<void> {
  const result = await client.query<{ version: number; fsync: string; full_page_writes: string; synchronous_commit: string }>(
    `SELECT current_setting('server_version_num')::int AS version, current_setting('fsync') AS fsync,
            current_setting('full_page_writes') AS full_page_writes, current_setting('synchronous_commit') AS synchronous_commit`,
  );
  const server = result.rows[0]!;
  if (server.version < MIN_SERVER_VERSION) throw new Error(`PostgreSQL ${Math.floor(server.version / 10_000)} is too old: Cofre needs 15 or newer`);
  for (const setting of ['fsync', 'full_page_writes', 'synchronous_commit'] as const) {
    if (server[setting] === 'off') throw new Error(`PostgreSQL runs with ${setting}=off, so acknowledged tokens could be lost: set it to on`);
  }
}

function parse(adminUrl: string): URL {
  // `postgresql://user:password@/database?host=/folder` is the usual way to name a socket.
  const url = URL.parse(adminUrl.replace(/^(postgres(?:ql)?:\/\/[^/@]*@)\//, `$1${NO_HOST}/`));
  if (url === null || (url.protocol !== 'postgres:' && url.protocol !== 'postgresql:')) throw malformed();
  return url;
}

/** Without the URL, which holds a password. */
function malformed(): Error {
  return new Error('the database URL (DATABASE_URL) is not of the form postgresql://user:password@host:5432/database, with what is special in it percent-encoded');
}

function print(url: URL): string {
  return url.href.replace(`@${NO_HOST}/`, '@/');
}
