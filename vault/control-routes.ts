/** Suspensions and honey tokens, on the admin listener. To hold a caller back takes one operator; to let it go again takes two, so that is no path here. */
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { entryOf } from './call.ts';
import type { Call } from './call.ts';
import { honeyMark } from './controls.ts';
import type { Controls } from './controls.ts';
import { VaultError } from './errors.ts';
import { makeNumericToken } from './numeric-token.ts';
import type { Decision, Policy } from './policy.ts';
import type { RouteFacts } from './server.ts';
import { makeToken } from './token.ts';
import type { RandomBytes } from './token.ts';
import type { EntryOperation } from './transaction.ts';

export interface ControlRouteDeps {
  readonly policy: Policy;
  readonly controls: Controls;
  /** The short numbers of the tenants by their names. */
  readonly tenants: ReadonlyMap<string, number>;
  readonly trustDomain: string;
  readonly now: () => Date;
  readonly random: RandomBytes;
  /** Writes an entry. @throws VaultError if it cannot. */
  readonly record: (operation: EntryOperation) => Promise<void>;
}

const facts = (action: string): RouteFacts => ({ action, cards: 'none', maxBodyBytes: 16 * 1024, audited: true });
const closed = { additionalProperties: false } as const;

export const SuspendBody = Type.Object({ caller: Type.String({ pattern: '^spiffe://[a-z0-9.-]{1,255}/tenant/[a-z0-9-]{1,63}/service/[a-z0-9-]{1,63}$', description: 'The SPIFFE id of a service.' }) }, closed);
export const HoneyBody = Type.Object(
  {
    tenant: Type.String({ pattern: '^[a-z0-9-]{1,63}$', description: 'Among whose tokens it will lie.' }),
    format: Type.Optional(Type.Enum(['opaque', 'numeric'], { type: 'string', default: 'opaque' })),
  },
  closed,
);

/** `GET` and `POST /v1/suspensions`, `POST /v1/honey-tokens`. */
export function addControlRoutes(app: FastifyInstance, deps: ControlRouteDeps): void {
  const typed = app.withTypeProvider<TypeBoxTypeProvider>();
  const { policy, controls, now, record } = deps;

  app.get('/v1/suspensions', { config: facts('suspensions.list') }, async ({ call }) => {
    const decision = allowed(policy, call, ['administer', 'audit_read']);
    await record({ kind: 'entry', entry: entryOf(call, { action: 'suspensions.list', decision }) });
    return { suspensions: controls.suspended.map(({ subject, madeBy, madeAt }) => ({ caller: subject, by: madeBy, since: madeAt.toISOString() })), honey_tokens: controls.honeyCount };
  });

  typed.post('/v1/suspensions', { config: facts('caller.suspend'), schema: { body: SuspendBody } }, async ({ call, body: { caller } }, reply) => {
    const decision = allowed(policy, call, ['administer']);
    if (!caller.startsWith(`spiffe://${deps.trustDomain}/`)) throw new VaultError('invalid_request', { facts: { decision } });
    const [, , , , tenant] = caller.split('/');
    // The row first: a crash behind it leaves a caller that is held back and no entry of who asked, but the row says it, and the same call again tells the log.
    const added = await controls.add({ kind: 'suspension', subject: caller, state: 'on', madeBy: call.caller!.spiffeId, madeAt: now(), data: '' });
    await record({
      kind: 'entry',
      entry: entryOf(call, { action: 'caller.suspend', decision, detail: { subject: caller, new: added ? 'yes' : 'no' } }),
      events: added ? [{ type: 'caller.suspended', caller, tenant: tenant ?? '', data: { by: call.caller!.spiffeId } }] : [],
    });
    return await reply.code(added ? 201 : 200).send({ caller, suspended: true });
  });

  typed.post('/v1/honey-tokens', { config: facts('honey_token.make'), schema: { body: HoneyBody } }, async ({ call, body: { tenant, format } }, reply) => {
    const decision = allowed(policy, call, ['administer']);
    const tenantId = deps.tenants.get(tenant);
    if (tenantId === undefined) throw new VaultError('invalid_request', { facts: { decision } });
    const token = format === 'numeric' ? makeNumericToken(16, fourDigits(deps.random), deps.random) : makeToken(now(), deps.random);
    const mark = honeyMark(tenantId, token);
    // Never the token itself: whoever reads the log would know which one to leave alone.
    await controls.add({ kind: 'honey_token', subject: mark, state: 'on', madeBy: call.caller!.spiffeId, madeAt: now(), data: '' });
    await record({ kind: 'entry', entry: entryOf(call, { action: 'honey_token.make', decision, detail: { subject: mark, of: tenant } }) });
    return await reply.code(201).send({ token });
  });
}

function allowed(policy: Policy, { caller }: Call, actions: readonly ('administer' | 'audit_read')[]): Decision {
  if (caller === null) throw new VaultError('not_authorized');
  let last: Decision | null = null;
  for (const action of actions) {
    last = policy.decide(caller, action, null);
    if (last.allowed) return last;
  }
  throw new VaultError('not_authorized', last === null ? undefined : { facts: { decision: last } });
}

function fourDigits(random: RandomBytes): string {
  const [a = 0, b = 0, c = 0, d = 0] = random(4);
  return [a, b, c, d].map((byte) => byte % 10).join('');
}
