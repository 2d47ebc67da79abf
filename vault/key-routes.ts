/** Which keys there are, on the admin listener: for operators and auditors, by their certificates. Never a key. */
import type { FastifyInstance } from 'fastify';
import { HsmError } from '../hsm/errors.ts';
import { cryptoperiodMs } from '../hsm/key-lifecycle.ts';
import type { KeyLifecycle } from '../hsm/key-lifecycle.ts';
import { entryOf } from './call.ts';
import { VaultError, codeOfHsm } from './errors.ts';
import type { Policy } from './policy.ts';
import type { RouteFacts } from './server.ts';
import type { EntryOperation } from './transaction.ts';

export interface KeyRouteDeps {
  readonly policy: Policy;
  readonly keys: KeyLifecycle;
  readonly now: () => Date;
  /** Writes an entry. @throws VaultError if it cannot. */
  readonly record: (operation: EntryOperation) => Promise<void>;
}

const facts: RouteFacts = { action: 'keys.list', cards: 'none', maxBodyBytes: 16 * 1024, audited: true };

/** `GET /v1/keys`. */
export function addKeyRoutes(app: FastifyInstance, { policy, keys, now, record }: KeyRouteDeps): void {
  app.get('/v1/keys', { config: facts, schema: { operationId: 'listKeys', summary: 'Data and fingerprint keys, their states and periods' } }, async ({ call }) => {
    if (call.caller === null) throw new VaultError('not_authorized');
    const administer = policy.decide(call.caller, 'administer', null);
    const decision = administer.allowed ? administer : policy.decide(call.caller, 'audit_read', null);
    if (!decision.allowed) throw new VaultError('not_authorized', { facts: { decision } });
    const list = await keys.list().catch((error: unknown) => {
      throw error instanceof HsmError ? new VaultError(codeOfHsm(error), { cause: error }) : error;
    });
    await record({ kind: 'entry', entry: entryOf(call, { action: facts.action, decision }) });
    const time = now().getTime();
    return {
      keys: list.map(({ keyId, kind, domain, version, state, createdAt, leasedSeals }) => {
        const endsAt = createdAt.getTime() + cryptoperiodMs[kind];
        // Only of a key that is to write: what it wrote it reads for as long as there is any of it.
        return { key_id: keyId, kind, domain, version, state, created_at: createdAt.toISOString(), period_ends_at: new Date(endsAt).toISOString(), days_left: state === 'active' ? Math.floor((endsAt - time) / 86_400_000) : null, leased_seals: kind === 'data' ? leasedSeals : null };
      }),
    };
  });
}
