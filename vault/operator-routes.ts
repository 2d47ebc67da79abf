/** Operators, their sessions, and the changes that two of them decide on: paths of the admin listener. */
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { entryOf } from './call.ts';
import type { EntryFacts } from './call.ts';
import type { Caller } from './caller.ts';
import type { Change, Changes } from './changes.ts';
import { VaultError } from './errors.ts';
import type { CallerEvent } from './outbox.ts';
import type { OperatorSessions } from './operator-sessions.ts';
import { passwordBytes } from './operators.ts';
import type { Operators } from './operators.ts';
import type { Action, Decision, Policy } from './policy.ts';
import type { RouteFacts } from './server.ts';
import type { EntryOperation } from './transaction.ts';

export interface OperatorRouteDeps {
  readonly policy: Policy;
  readonly operators: Operators;
  readonly sessions: OperatorSessions;
  readonly changes: Changes;
  /** Writes an entry. @throws VaultError if it cannot. */
  readonly record: (operation: EntryOperation) => Promise<void>;
}

const closed = { additionalProperties: false } as const;
const facts = (action: string): RouteFacts => ({ action, cards: 'none', maxBodyBytes: 16 * 1024, audited: true });
const Password = Type.String({ minLength: passwordBytes.least, maxLength: passwordBytes.most, description: 'At least 12 bytes of UTF-8.' });
export const EnrolBody = Type.Object({ code: Type.String({ pattern: '^[A-Z2-7]{26}$', description: 'Of the invitation.' }), password: Password }, closed);
export const LoginBody = Type.Object({ password: Type.String({ maxLength: passwordBytes.most }), totp: Type.String({ pattern: '^[0-9]{6}$', description: 'The code that the authenticator shows now (RFC 6238).' }) }, closed);
export const ChangeBody = Type.Object(
  {
    kind: Type.String({ pattern: '^[a-z_]+\\.[a-z_]+$', maxLength: 64 }),
    params: Type.Record(Type.String({ maxLength: 64 }), Type.Union([Type.String({ maxLength: 512 }), Type.Integer(), Type.Boolean()]), { maxProperties: 16 }),
    reason: Type.String({ minLength: 1, maxLength: 200, pattern: '^[\\x20-\\x7e]+$', description: 'Why; the second person reads it.' }),
  },
  closed,
);
export const ApproveBody = Type.Object({ digest: Type.String({ pattern: '^[0-9a-f]{64}$', description: 'Of the change as it was read: nothing else is approved.' }) }, closed);
const IdParams = Type.Object({ id: Type.String({ pattern: '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' }) }, closed);

/** `/v1/operators…` and `/v1/changes…`. A session is a bearer token beside the client certificate: `Authorization: Bearer …`. */
export function addOperatorRoutes(app: FastifyInstance, deps: OperatorRouteDeps): void {
  const typed = app.withTypeProvider<TypeBoxTypeProvider>();
  const { policy, operators, sessions, changes, record } = deps;
  const recordOf = async (request: FastifyRequest, entry: EntryFacts, events: readonly CallerEvent[] = []): Promise<void> => await record({ kind: 'entry', entry: entryOf(request.call, entry), events });
  const known = (request: FastifyRequest): Caller => {
    if (request.call.caller === null) throw new VaultError('not_authorized');
    return request.call.caller;
  };
  /** An operator with a session, whom the policies let do this. */
  const acting = async (request: FastifyRequest, ...actions: readonly Action[]): Promise<{ readonly caller: Caller; readonly decision: Decision }> => {
    const caller = known(request);
    const decisions = actions.map((action) => policy.decide(caller, action, null));
    const decision = decisions.find(({ allowed }) => allowed);
    if (decision === undefined) throw new VaultError('not_authorized', { facts: { decision: decisions[0]! } });
    const token = /^Bearer ([A-Za-z0-9_-]{1,200})$/u.exec(request.headers.authorization ?? '')?.[1];
    if (token === undefined || operators.stateOf(caller.spiffeId) !== 'active' || !(await sessions.use(token, caller))) throw new VaultError('not_authorized', { facts: { decision, detail: { why: 'session' } } });
    return { caller, decision };
  };
  const detailOf = (change: Change): Readonly<Record<string, string>> => ({ change: change.id, kind: change.kind, digest: change.digest, requested_by: change.requestedBy });

  typed.post('/v1/operators/enrol', { config: facts('operator.enrol'), schema: { operationId: 'enrolOperator', summary: 'Turn an invitation into a password and an authenticator', body: EnrolBody } }, async (request) => {
    const caller = known(request);
    const password = Buffer.from(request.body.password.normalize('NFC'), 'utf8');
    try {
      const { secret, uri } = await operators.enrol(caller, request.body.code, password);
      await recordOf(request, { action: 'operator.enrol' });
      return { totp_secret: secret, totp_uri: uri };
    } finally {
      password.fill(0);
    }
  });

  typed.post('/v1/operators/login', { config: facts('operator.login'), schema: { operationId: 'logIn', summary: 'Open a session, with certificate, password and one-time code', body: LoginBody } }, async (request) => {
    const caller = known(request);
    const password = Buffer.from(request.body.password.normalize('NFC'), 'utf8');
    try {
      await operators.logIn(caller, password, request.body.totp);
    } finally {
      password.fill(0);
    }
    const { token, expiresAt } = await sessions.open(caller);
    await recordOf(request, { action: 'operator.login' });
    return { session: token, expires_at: expiresAt.toISOString() };
  });

  typed.post('/v1/operators/logout', { config: facts('operator.logout'), schema: { operationId: 'logOut', summary: 'End the session' } }, async (request) => {
    refuseBody(request);
    const caller = known(request);
    const token = /^Bearer ([A-Za-z0-9_-]{1,200})$/u.exec(request.headers.authorization ?? '')?.[1];
    if (token !== undefined) await sessions.close(token, caller);
    await recordOf(request, { action: 'operator.logout' });
    return {};
  });

  typed.get('/v1/operators', { config: facts('operator.list'), schema: { operationId: 'listOperators', summary: 'The operators and their states' } }, async (request) => {
    const { decision } = await acting(request, 'administer', 'approve');
    await recordOf(request, { action: 'operator.list', decision });
    return { operators: operators.list.map(({ operator, state, since }) => ({ operator, state, since: since.toISOString() })) };
  });

  typed.post('/v1/changes', { config: facts('change.request'), schema: { operationId: 'requestChange', summary: 'Ask for a change that another person has to approve', body: ChangeBody } }, async (request, reply) => {
    const { caller, decision } = await acting(request, 'administer');
    const { kind, params, reason } = request.body;
    const change = await changes.request(kind, params, reason, caller.spiffeId);
    await recordOf(request, { action: 'change.request', decision, detail: detailOf(change) });
    return await reply.code(201).send(viewOf(change));
  });

  typed.get('/v1/changes', { config: facts('change.list'), schema: { operationId: 'listChanges', summary: 'Changes, the newest first, and the kinds there are' } }, async (request) => {
    const { decision } = await acting(request, 'administer', 'approve');
    const all = await changes.list();
    await recordOf(request, { action: 'change.list', decision });
    return { changes: all.slice(0, 100).map(viewOf), kinds: changes.kinds };
  });

  typed.get('/v1/changes/:id', { config: facts('change.show'), schema: { operationId: 'showChange', summary: 'A change as it stands', params: IdParams } }, async (request) => {
    const { decision } = await acting(request, 'administer', 'approve');
    const change = await changes.get(request.params.id);
    await recordOf(request, { action: 'change.show', decision, detail: { change: change.id } });
    return viewOf(change);
  });

  typed.post('/v1/changes/:id/approve', { config: facts('change.approve'), schema: { operationId: 'approveChange', summary: 'Approve a change of another person, and have it done', params: IdParams, body: ApproveBody } }, async (request) => {
    const { caller, decision } = await acting(request, 'approve');
    const change = await changes.approve(request.params.id, request.body.digest, caller.spiffeId);
    // Told before it is done: a crash here leaves an approval in the log, and a change that either of the two runs.
    await recordOf(request, { action: 'change.approve', decision, detail: detailOf(change) });
    return await runAndRecord(request, decision, change.id, caller.spiffeId);
  });

  typed.post('/v1/changes/:id/run', { config: facts('change.run'), schema: { operationId: 'runChange', summary: 'Do what was approved and did not come to its end', params: IdParams } }, async (request) => {
    refuseBody(request);
    const { caller, decision } = await acting(request, 'administer', 'approve');
    return await runAndRecord(request, decision, request.params.id, caller.spiffeId);
  });

  typed.post('/v1/changes/:id/refuse', { config: facts('change.refuse'), schema: { operationId: 'refuseChange', summary: 'Refuse a change, or take back one\'s own', params: IdParams } }, async (request) => {
    refuseBody(request);
    const { caller, decision } = await acting(request, 'approve', 'administer');
    const change = await changes.refuse(request.params.id, caller.spiffeId);
    await recordOf(request, { action: 'change.refuse', decision, detail: detailOf(change) });
    return viewOf(change);
  });

  async function runAndRecord(request: FastifyRequest, decision: Decision, id: string, by: string): Promise<object> {
    const { change, once } = await changes.run(id, by);
    const { caller } = change.params as { readonly caller?: string };
    const resumed = change.kind === 'suspension.resume' && change.result?.['resumed'] === 'yes' && caller !== undefined;
    await recordOf(
      request,
      { action: 'change.run', decision, detail: { ...detailOf(change), decided_by: change.decidedBy ?? '', ...change.result } },
      resumed ? [{ type: 'caller.resumed', caller, tenant: caller.split('/')[4] ?? '', data: { change: change.id } }] : [],
    );
    return { ...viewOf(change), ...once };
  }
}

/** Where nothing is to be said, `{}` is as good as no body; anything else is not understood. */
function refuseBody({ body }: FastifyRequest): void {
  if (body === undefined || (typeof body === 'object' && body !== null && !Array.isArray(body) && Object.keys(body).length === 0)) return;
  throw new VaultError('invalid_request');
}

function viewOf(change: Change): object {
  const { id, kind, params, reason, requestedBy, requestedAt, expiresAt, digest, state, decidedBy, result } = change;
  return { id, kind, params, reason, requested_by: requestedBy, requested_at: requestedAt, expires_at: expiresAt, digest, state, decided_by: decidedBy ?? null, result: result ?? null };
}
