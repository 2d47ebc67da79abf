import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client, type ClientConfig } from 'pg';
import t from 'tap';
import { adminConnection, connectionFor, withDatabase } from '../../platform-adapters/postgres/connect.ts';
import { startEmbedded } from '../../platform-adapters/postgres/embedded.ts';
import { migrate } from '../../platform-adapters/postgres/migrate.ts';
import { PROCESS_ROLES, ensureRoles, quoteIdentifier, roleName, type ProcessRole } from '../../platform-adapters/postgres/roles.ts';

export interface FreshDatabase {
  /** Connects as the owner, who is no superuser. */
  readonly adminUrl: string;
  readonly database: string;
  /** The role file, as `COFRE_HOME/secrets/database-roles.json` would be. */
  readonly rolesFile: string;
  /** How a process of that role connects. Clients are the caller's to end: in a teardown registered after this one, which runs before it. */
  connect(role: ProcessRole): ClientConfig;
}

/** The part of a tap test that is used here. */
interface Teardown {
  teardown(handler: () => Promise<void>): void;
}

/**
 * Resolves to a new database with the whole schema and its own login roles, which the test's teardown drops again.
 *
 * The server is the one in COFRE_TEST_DATABASE_URL (test/run.ts starts it). A test file run by hand starts one of its own in a temporary folder and stops it when the file is done.
 * Every database runs the migrations itself: copying a migrated template would leave grants to the template's roles, and saves less than 0.1 s.
 */
export async function freshDatabase(t: Teardown, options: { migrated?: boolean } = {}): Promise<FreshDatabase> {
  const server = await serverUrl();
  const database = `t_${randomBytes(6).toString('hex')}`;
  const folder = mkdtempSync(join(tmpdir(), 'cofre-test-'));
  const rolesFile = join(folder, 'database-roles.json');
  const adminUrl = withDatabase(server, database);

  t.teardown(async () => {
    await withClient(adminConnection(server), async (client) => {
      await client.query(`DROP DATABASE IF EXISTS ${quoteIdentifier(database)} WITH (FORCE)`);
      for (const role of PROCESS_ROLES) await client.query(`DROP ROLE IF EXISTS ${quoteIdentifier(roleName(database, role))}`);
    });
    rmSync(folder, { recursive: true });
  });

  await withClient(adminConnection(server), (client) => client.query(`CREATE DATABASE ${quoteIdentifier(database)}`));
  if (options.migrated !== false) {
    await withClient(adminConnection(adminUrl), async (client) => {
      await ensureRoles(client, { database, file: rolesFile });
      await migrate(client, { database });
    });
  }
  return { adminUrl, database, rolesFile, connect: (role) => connectionFor(role, { adminUrl, file: rolesFile }) };
}

/** Connects, runs `work`, and disconnects, whatever happens. */
export async function withClient<T>(config: ClientConfig, work: (client: Client) => Promise<T>): Promise<T> {
  const client = new Client(config);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

let own: Promise<string> | null = null;

async function serverUrl(): Promise<string> {
  const given = process.env['COFRE_TEST_DATABASE_URL'];
  if (given !== undefined && given !== '') return given;
  own ??= (async () => {
    const folder = mkdtempSync(join(tmpdir(), 'cofre-pg-'));
    const server = await startEmbedded({ folder, diesWithParent: true });
    t.teardown(async () => {
      await server.stop();
      rmSync(folder, { recursive: true });
    });
    return server.adminUrl;
  })();
  return own;
}
