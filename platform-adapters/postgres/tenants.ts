/** The tenants that the configuration names, as rows. Run by the owner of the database, at the start. */
import type { ClientBase } from 'pg';

export interface TenantRow {
  readonly id: number;
  readonly name: string;
  readonly keyDomain: string;
}

/**
 * Adds the tenants that are missing and returns all that were asked for.
 *
 * @throws Error if one is there with another key domain: its cards are sealed under that one, and nothing here may change it.
 */
export async function ensureTenants(client: ClientBase, tenants: readonly { readonly name: string; readonly keyDomain: string }[]): Promise<TenantRow[]> {
  await client.query({
    text: 'INSERT INTO tenants (name, key_domain) SELECT t.name, t.key_domain FROM unnest($1::text[], $2::text[]) AS t(name, key_domain) ON CONFLICT (name) DO NOTHING',
    values: [tenants.map((tenant) => tenant.name), tenants.map((tenant) => tenant.keyDomain)],
  });
  return await readTenants(client, tenants);
}

/**
 * The rows of these tenants. Any process role may ask.
 *
 * @throws Error if one is missing, or is there with another key domain.
 */
export async function readTenants(client: ClientBase, tenants: readonly { readonly name: string; readonly keyDomain: string }[]): Promise<TenantRow[]> {
  const { rows } = await client.query<{ tenant_id: number; name: string; key_domain: string }>({
    text: 'SELECT tenant_id, name, key_domain FROM tenants WHERE name = ANY ($1::text[]) ORDER BY tenant_id',
    values: [tenants.map((tenant) => tenant.name)],
  });
  const missing = tenants.find(({ name }) => !rows.some((row) => row.name === name));
  if (missing !== undefined) throw new Error(`tenant ${missing.name} is not in the database yet: start a process with the admin role first`);
  return rows.map((row) => {
    const asked = tenants.find((tenant) => tenant.name === row.name);
    if (asked !== undefined && asked.keyDomain !== row.key_domain)
      throw new Error(`tenant ${row.name} belongs to key domain ${row.key_domain}, not ${asked.keyDomain}: the configuration and the database disagree`);
    return { id: row.tenant_id, name: row.name, keyDomain: row.key_domain };
  });
}
