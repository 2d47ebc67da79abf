/** The tenants of this vault: their short numbers and their keys. */
import type { TenantKeys } from '../hsm/keyring.ts';
import { VaultError } from './errors.ts';

export interface Tenant {
  readonly id: number;
  readonly name: string;
  readonly keys: TenantKeys;
}

/** Read once at the start: a new tenant needs keys, and so a restart. */
export class Tenants {
  readonly #byName: ReadonlyMap<string, Tenant>;

  constructor(tenants: Iterable<Tenant>) {
    this.#byName = new Map(Array.from(tenants, (tenant) => [tenant.name, tenant]));
  }

  /** By their short numbers. */
  get byId(): ReadonlyMap<number, Tenant> {
    return new Map([...this.#byName.values()].map((tenant) => [tenant.id, tenant]));
  }

  /** @throws VaultError `not_authorized` for a tenant that this vault does not hold: its callers have no business here. */
  get(name: string): Tenant {
    const tenant = this.#byName.get(name);
    if (tenant === undefined) throw new VaultError('not_authorized', { cause: new Error('the tenant is not one of this vault') });
    return tenant;
  }
}
