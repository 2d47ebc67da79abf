/** The keys of a process, and what happens to them. */
import { resolve } from 'node:path';
import { Pool } from 'pg';
import type { Entry } from '../../audit/entry.ts';
import { openKeyring } from '../../hsm/keyring.ts';
import type { Keyring } from '../../hsm/keyring.ts';
import { postgresKeyStore } from '../../platform-adapters/postgres/key-store.ts';
import type { ProcessRole } from '../../platform-adapters/postgres/roles.ts';
import type { TenantRow } from '../../platform-adapters/postgres/tenants.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import type { Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import { milliseconds } from '../config.ts';
import { connectionOf, endInTime } from './database.ts';
import { readPin } from './development.ts';
import type { ProcessOptions } from './process.ts';
import { mendTokens } from './soft-token.ts';

/** Events of the key layer that belong in the log: a key came to be, or may be in the HSM without a row that names it, the HSM went or came, somebody turned a counter back. */
const auditedKeyEvents: ReadonlySet<string> = new Set(['data_key_made', 'fingerprint_key_made', 'key_object_unsettled', 'key_object_left', 'data_key_lease_count_went_back', 'hsm_away', 'hsm_back']);

/** Events of the key layer, kept until there is a writer that takes them. */
export class KeyEvents {
  readonly #now: () => Date;
  readonly #log: Log;
  readonly #metrics: Metrics;
  readonly #kept: Entry[] = [];
  #record: ((entry: Entry) => void) | null = null;

  constructor(now: () => Date, log: Log, metrics: Metrics) {
    this.#now = now;
    this.#log = log;
    this.#metrics = metrics;
  }

  at(level: 'info' | 'warn'): (event: string, fields: Readonly<Record<string, string | number | boolean>>) => void {
    return (event, fields) => {
      this.#log[level](event, typeof fields['kind'] === 'string' ? { kind: fields['kind'] } : {});
      this.#metrics.hsmEvent(event);
      if (!auditedKeyEvents.has(event)) return;
      const entry: Entry = { action: event.startsWith('hsm') ? 'hsm.state' : 'key.event', at: this.#now(), outcome: level === 'info' ? 'allowed' : 'failed', detail: { event, ...(typeof fields['version'] === 'number' ? { version: fields['version'] } : {}) } };
      if (this.#record === null) this.#kept.push(entry);
      else this.#record(entry);
    };
  }

  recordWith(record: (entry: Entry) => void): void {
    this.#record = record;
    for (const entry of this.#kept.splice(0)) record(entry);
  }
}

/** Opens the keys that its roles have use for; they are closed with the stack. @throws what the HSM or the database throws. */
export async function openKeys(stack: AsyncDisposableStack, { home, config, access, metrics }: ProcessOptions, role: ProcessRole, tenants: readonly TenantRow[], events: KeyEvents): Promise<Keyring> {
  const pool = new Pool({ ...connectionOf(access, role), max: 2, application_name: 'cofre keys' });
  pool.on('error', () => undefined);
  stack.defer(() => endInTime(pool));
  const seals = config.roles.includes('tokenize');
  const opens = config.roles.includes('detokenize');
  // One process may be killed as it logs in, and its successor is to find the token.
  if (config.profile === 'development') mendTokens(home);
  const keyring = await openKeyring({
    modulePath: config.hsm.module,
    tokenLabel: config.hsm.token_label,
    pin: () => readPin(resolve(home, config.hsm.pin_file)),
    custody: config.hsm.custody,
    // Whoever neither seals nor opens has no business with a domain's keys.
    tenants: new Map(seals || opens ? tenants.map((tenant) => [tenant.name, tenant.keyDomain]) : []),
    store: postgresKeyStore(pool),
    now: () => new Date(),
    maxAwayMs: milliseconds(config.hsm.max_away),
    log: { info: events.at('info'), warn: events.at('warn') },
    observe: (operation, durationMs) => metrics.hsmCall(operation, durationMs),
    uses: ['sign-log', ...(seals ? (['seal'] as const) : []), ...(opens ? (['open'] as const) : [])],
  });
  stack.defer(() => keyring.close());
  return keyring;
}
