/** The database of a process: prepared by whoever has the admin role, reached by each role as itself. */
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import type { ClientConfig, Pool } from 'pg';
import { LastBatchFile } from '../../audit/last-batch-file.ts';
import { adminConnection, assertDurable, connectionFor, databaseOf, withoutCredentials } from '../../platform-adapters/postgres/connect.ts';
import { assertSchema, migrate } from '../../platform-adapters/postgres/migrate.ts';
import { ensureRoles } from '../../platform-adapters/postgres/roles.ts';
import type { ProcessRole } from '../../platform-adapters/postgres/roles.ts';
import { ensureTenants, readTenants } from '../../platform-adapters/postgres/tenants.ts';
import type { TenantRow } from '../../platform-adapters/postgres/tenants.ts';
import type { Config } from '../config.ts';
import { assertKeysOfCards, assertLastBatch } from './continuity.ts';

/** What a serving process needs to reach the database as its roles; nothing in it lets it be the administrator. */
export interface DatabaseAccess {
  /** Server and database; with credentials only where they are those of the process's one role. */
  readonly url: string;
  /** Where the passwords of the roles stand; absent where the URL has the role's own. */
  readonly roleFile: string | null;
}

/**
 * As the owner: roles, schema and tenants as this version wants them, and refusals to go on over a database that does not belong to the rest.
 *
 * @throws Error of one line.
 */
export async function prepareDatabase(adminUrl: string, roleFile: string, lastBatchFiles: readonly string[], config: Config): Promise<DatabaseAccess> {
  // A migration may take long, so its answer is waited for.
  const { query_timeout: _, ...owner } = { ...adminConnection(adminUrl), ...patience };
  await asClient(owner, 'DATABASE_URL', async (client) => {
    await assertDurable(client);
    await ensureRoles(client, { database: databaseOf(adminUrl), file: roleFile });
    await migrate(client, { database: databaseOf(adminUrl) });
    await assertKeysOfCards(client);
    for (const file of lastBatchFiles) {
      const last = await new LastBatchFile(file).read();
      if (last !== null) await assertLastBatch(client, last, file);
    }
    await ensureTenants(client, tenantsOf(config));
  });
  return { url: withoutCredentials(adminUrl), roleFile };
}

/**
 * Access of a process without the admin role, which finds the database prepared. Its URL carries the credentials of its one role, or none: then
 * the role file has them.
 *
 * @throws Error of one line.
 */
export function givenDatabase(url: string, roleFile: string, config: Config): DatabaseAccess {
  if (existsSync(roleFile)) return { url: withoutCredentials(url), roleFile };
  if (config.roles.length > 1) throw new Error(`${roleFile} is missing: a process of several roles needs the password of each`);
  return { url, roleFile: null };
}

/**
 * A database that has fallen silent (a pulled cable, a host that is gone) is given up on after these times. Without them a statement would wait as long as TCP repeats itself, a
 * quarter of an hour, although another server has long taken over: the lease of the next seals, or the key that a card is opened with.
 */
const patience = { connectionTimeoutMillis: 5000, query_timeout: 15_000, keepAlive: true, keepAliveInitialDelayMillis: 30_000 } satisfies ClientConfig;

/** How a process connects as one of its roles, and how long it waits for answers. @throws Error of one line. */
export function connectionOf(access: DatabaseAccess, role: ProcessRole): ClientConfig {
  const connection = access.roleFile === null ? { ...adminConnection(access.url), application_name: `cofre ${role}` } : connectionFor(role, { adminUrl: access.url, file: access.roleFile });
  return { ...connection, ...patience };
}

/** The configured tenants, after the schema was found to be this version's. @throws Error of one line. */
export async function tenantsInDatabase(connection: ClientConfig, config: Config): Promise<TenantRow[]> {
  return await asClient(connection, 'DATABASE_URL', async (client) => {
    await assertDurable(client);
    await assertSchema(client);
    return await readTenants(client, tenantsOf(config));
  });
}

/** How long a connection may take to close: a database that has fallen silent does not answer that either. */
const endMs = 2000;

/** Closes a pool or a connection, and does not wait for a database that is silent. Never throws. */
export async function endInTime(connected: Pool | Client): Promise<void> {
  await Promise.race([connected.end().catch(() => undefined), sleep(endMs, undefined, { ref: false })]);
}

function tenantsOf(config: Config): { name: string; keyDomain: string }[] {
  return config.tenants.map((tenant) => ({ name: tenant.name, keyDomain: tenant.key_domain ?? tenant.name }));
}

/** Does some work on a connection of its own. @throws Error of one line if the database does not answer, and what `work` throws. */
export async function asClient<T>(connection: ClientConfig, source: string, work: (client: Client) => Promise<T>): Promise<T> {
  const client = new Client(connection);
  client.on('error', () => undefined);
  await client.connect().catch((error: unknown) => {
    throw new Error(`the database does not answer (${(error as { code?: string }).code ?? 'unknown'}): check ${source}`, { cause: error });
  });
  try {
    return await work(client);
  } finally {
    await endInTime(client);
  }
}
