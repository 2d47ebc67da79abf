/** The admin listener's paths. Every call is an entry, like every other. */
import type { FastifyInstance } from 'fastify';
import { entryOf } from './call.ts';
import { VaultError } from './errors.ts';
import type { Policy } from './policy.ts';
import type { RouteFacts } from './server.ts';
import type { EntryOperation } from './transaction.ts';

export interface AdminDeps {
  readonly policy: Policy;
  /** States and settings, of the vault alone. */
  status(): object;
  /** Writes an entry. @throws VaultError if it cannot. */
  record(operation: EntryOperation): Promise<void>;
}

const facts: RouteFacts = { action: 'status', cards: 'none', maxBodyBytes: 16 * 1024, audited: true };

/** `GET /v1/status`: for operators and auditors. */
export function addAdminRoutes(app: FastifyInstance, deps: AdminDeps): void {
  app.get('/v1/status', { config: facts }, async (request) => {
    const { call } = request;
    if (call.caller === null) throw new VaultError('not_authorized');
    const administer = deps.policy.decide(call.caller, 'administer', null);
    const decision = administer.allowed ? administer : deps.policy.decide(call.caller, 'audit_read', null);
    if (!decision.allowed) throw new VaultError('not_authorized', { facts: { decision } });
    await deps.record({ kind: 'entry', entry: entryOf(call, { action: facts.action, decision }) });
    return deps.status();
  });
}
