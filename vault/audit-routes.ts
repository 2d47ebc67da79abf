/** The log for those who may read it, on the admin listener: as C2SP tlog-tiles (https://c2sp.org/tlog-tiles) under `/audit`, and by search. */
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import type { Static } from 'typebox';
import type { LogsAnswer, LogsQuery } from '../audit/search-logs.ts';
import { entryOf } from './call.ts';
import { VaultError } from './errors.ts';
import type { LogReads } from './log-reads.ts';
import type { Decision, Policy, PolicyFiles } from './policy.ts';
import { readSearchTime, searchTimePattern } from './search-time.ts';
import type { RouteFacts } from './server.ts';
import type { EntryOperation } from './transaction.ts';

/** The log as it is served. Absence is null; the methods throw what the database throws. */
export interface ServedLog {
  /** The newest checkpoint, a signed note. */
  checkpoint(): Promise<string | null>;
  /** The public key that checks it. */
  vkey(): Promise<string | null>;
  /** What stands at a path of tlog-tiles (`tile/…`); of an entry bundle also which entries it holds, `to` not among them. */
  resource(path: string): Promise<{ readonly bytes: Buffer; readonly entries: { readonly from: number; readonly to: number } | null } | null>;
  /** A set of policies that was in force, by the digest that the log names it by. @throws Error where what stands there has another. */
  policySet(digest: string): Promise<PolicyFiles | null>;
  /** Null if `beforeIn` is none of the logs in the database. */
  search(query: LogsQuery): Promise<LogsAnswer | null>;
}

export interface AuditDeps {
  readonly policy: Policy;
  readonly log: ServedLog;
  readonly reads: LogReads;
  /** Rejects while nothing may be added to the log: then it is not read either, as that could not be told. */
  refusal(): Promise<never> | null;
  /** Writes an entry. @throws VaultError if it cannot. */
  readonly record: (operation: EntryOperation) => Promise<void>;
}

const facts = (action: string): RouteFacts => ({ action, cards: 'none', maxBodyBytes: 16 * 1024, audited: true });

const Time = Type.String({ pattern: searchTimePattern, description: 'Of UTC: a day, or a time that ends in Z.' });
const Word = Type.String({ pattern: '^[a-z_.]{1,64}$' });
/** What a search may ask for; a query string is text, so numbers are checked by their form. */
export const SearchQuery = Type.Object(
  {
    token: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9_]{1,100}$' })),
    caller: Type.Optional(Type.String({ pattern: '^spiffe://[a-z0-9./_-]{1,500}$' })),
    tenant: Type.Optional(Type.String({ pattern: '^[a-z0-9-]{1,63}$' })),
    action: Type.Optional(Word),
    outcome: Type.Optional(Type.Enum(['allowed', 'refused', 'failed'], { type: 'string' })),
    code: Type.Optional(Word),
    purpose: Type.Optional(Word),
    from: Type.Optional(Time),
    to: Type.Optional(Time),
    before: Type.Optional(Type.String({ pattern: '^(0|[1-9][0-9]{0,14})(@[1-9][0-9]{0,5})?$', description: 'Entries before this index, of the log in use or of the earlier one whose number stands behind the `@`: `next` of the last answer.' })),
    limit: Type.Optional(Type.String({ pattern: '^([1-9][0-9]{0,2}|1000)$', description: 'At most 1000; 100 unless said.' })),
  },
  { additionalProperties: false },
);

/** `GET /audit/checkpoint`, `/audit/tile/…`, `/audit/vkey`, `/audit/search` and `/audit/policies/…`: for callers with the grant `audit_read`. */
export function addAuditRoutes(app: FastifyInstance, deps: AuditDeps): void {
  const { policy, log, reads } = deps;

  const admit = async (request: FastifyRequest): Promise<Decision> => {
    const { caller } = request.call;
    if (caller === null) throw new VaultError('not_authorized');
    const decision = policy.decide(caller, 'audit_read', null);
    if (!decision.allowed) throw new VaultError('not_authorized', { facts: { decision } });
    await deps.refusal();
    return decision;
  };
  const there = <T>(found: T | null): T => {
    if (found === null) throw new VaultError('not_found');
    return found;
  };

  app.get('/audit/checkpoint', { config: facts('log_checkpoint') }, async (request, reply) => {
    const { policyIds } = await admit(request);
    const note = there(await log.checkpoint());
    reads.note(request.call, policyIds, 'checkpoint');
    return await reply.type('text/plain; charset=utf-8').send(note);
  });

  app.get('/audit/vkey', { config: facts('log_vkey') }, async (request, reply) => {
    await admit(request);
    return await reply.type('text/plain; charset=utf-8').send(`${there(await log.vkey())}\n`);
  });

  app.get<{ Params: { '*': string } }>('/audit/tile/*', { config: facts('log_tile') }, async (request, reply) => {
    const { policyIds } = await admit(request);
    const { bytes, entries } = there(await log.resource(`tile/${request.params['*']}`));
    // Entries that name a thousand tokens each make megabytes of it, which whoever does not read would leave here.
    request.holdAnswer(bytes.length);
    reads.note(request.call, policyIds, entries ?? 'tile');
    return await reply.header('cache-control', 'private, max-age=31536000, immutable').type('application/octet-stream').send(bytes);
  });

  app.get<{ Params: { digest: string } }>('/audit/policies/:digest', { config: facts('policy_read') }, async (request, reply) => {
    const decision = await admit(request);
    const { digest } = request.params;
    const files = there(/^[0-9a-f]{64}$/u.test(digest) ? await log.policySet(digest) : null);
    await deps.record({ kind: 'entry', entry: entryOf(request.call, { action: 'policy_read', decision, detail: { policies: digest } }) });
    const set = Buffer.from(JSON.stringify([...files]));
    request.holdAnswer(set.length);
    return await reply.type('application/json; charset=utf-8').send(set);
  });

  app.get<{ Querystring: Static<typeof SearchQuery> }>('/audit/search', { config: facts('log_search'), schema: { querystring: SearchQuery } }, async (request, reply) => {
    const decision = await admit(request);
    const { from, to, before, limit = '100', ...values } = request.query;
    const [index, logNumber] = before?.split('@') ?? [];
    const query: LogsQuery = {
      ...values,
      limit: Number(limit),
      ...(index === undefined ? {} : { before: Number(index) }),
      ...(logNumber === undefined ? {} : { beforeIn: Number(logNumber) }),
      ...(from === undefined ? {} : { from: timeOf(from) }),
      ...(to === undefined ? {} : { to: timeOf(to) }),
    };
    // Whoever looks for something tells what, before it is found. A token is named where every entry names one.
    const { token, ...criteria } = request.query;
    await deps.record({ kind: 'entry', entry: entryOf(request.call, { action: 'log_search', decision, detail: criteria, ...(token === undefined ? {} : { tokens: { searched: [token] } }) }) });
    const answer = await log.search(query);
    if (answer === null) throw new VaultError('invalid_request');
    const found = Buffer.from(JSON.stringify(answer));
    request.holdAnswer(found.length);
    return await reply.type('application/json; charset=utf-8').send(found);
  });
}

function timeOf(text: string): Date {
  const time = readSearchTime(text);
  if (time === null) throw new VaultError('invalid_request');
  return time;
}
