/**
 * The life of a token after it was made: suspend, resume, delete; and the sweeper of tokens past their end. With a card's last token
 * that is not dead the card itself is destroyed: its sealed values, fingerprint and expiry. Steps as in docs/MONEY-PATH.md.
 */
import type { ClientBase } from 'pg';
import type { Entry } from '../audit/entry.ts';
import type { TokenWatch } from './abuse.ts';
import { entryOf } from './call.ts';
import type { Call } from './call.ts';
import type { MadeIn, TokenRow } from './card-store.ts';
import type { Committed, Settlement } from './commit.ts';
import { VaultError } from './errors.ts';
import type { ErrorCode } from './errors.ts';
import { destroyCards, eachFurtherToken, findEnding, findOthers, lockCards, updateTokens } from './lifecycle-store.ts';
import type { CardKey } from './lifecycle-store.ts';
import type { EventType, VaultEvent } from './outbox.ts';
import type { Decision, Policy } from './policy.ts';
import type { Tenant, Tenants } from './tenants.ts';
import { isDead, tokenMac } from './token-mac.ts';
import type { TokenStatus } from './token-mac.ts';
import { effectiveStatus, rowIsGenuine, viewOf } from './token-view.ts';
import type { TokenView } from './token-view.ts';
import { parseToken } from './token.ts';
import { findTokens } from './card-store.ts';

export type LifecycleAction = 'suspend' | 'resume' | 'delete';

export interface LifecycleDeps {
  readonly policy: Policy;
  readonly tenants: Tenants;
  readonly now: () => Date;
  /** Told what an authorized call asked for, once its entry is committed. */
  readonly watch: TokenWatch;
  /** Commits through a writer whose role may change token rows. */
  commit(operation: LifecycleOperation): Promise<Committed<LifecycleOutcome>>;
}

export interface LifecycleOperation {
  readonly kind: 'lifecycle';
  readonly action: LifecycleAction;
  readonly call: Call;
  readonly decision: Decision;
  readonly tenant: Tenant;
  readonly token: string;
  /** Whether the token is well formed; any other text is never looked up and never named in the log. */
  readonly wellFormed: boolean;
}

export type LifecycleOutcome =
  | { readonly kind: 'done'; readonly row: TokenRow; readonly cardDestroyed: boolean }
  | { readonly kind: 'refused'; readonly code: ErrorCode };

/** One round of the sweeper: tokens past their end become `expired` for good, and cards without a living token are destroyed. */
export interface SweepOperation {
  readonly kind: 'sweep';
  readonly tenants: Tenants;
  readonly limit: number;
}

export interface SweepOutcome {
  readonly kind: 'swept';
  /** Tokens that were marked; as many as the limit means that there may be more. */
  readonly tokens: number;
}

export type LifecycleAnswer = TokenView & { readonly card_destroyed?: boolean };

/**
 * Does what `action` says and answers with the token as it is afterwards. To suspend what is suspended, or resume what is active, changes
 * nothing and is no error. A deleted token stays known as `revoked`; its card is destroyed with the last of its tokens.
 *
 * @throws VaultError `not_authorized`, `token_unknown`, `token_revoked`, `token_expired`, `internal` for a row that was tampered with, and
 *   what `commit` throws.
 */
export async function changeToken(deps: LifecycleDeps, call: Call, action: LifecycleAction, token: string): Promise<LifecycleAnswer> {
  const { caller } = call;
  if (caller === null) throw new VaultError('not_authorized');
  const wellFormed = parseToken(token) !== null;
  // 3. Authorize.
  const decision = deps.policy.decide(caller, 'lifecycle', null);
  if (!decision.allowed) throw new VaultError('not_authorized', { facts: { decision, ...(wellFormed ? { tokens: { not_authorized: [token] } } : {}) } });
  const tenant = deps.tenants.get(caller.tenant);
  // 5. Commit. A crash before it changes nothing; after it the change stands, and a retry finds it.
  const { outcome } = await deps.commit({ kind: 'lifecycle', action, call, decision, tenant, token, wellFormed });
  deps.watch.named(caller, tenant.id, [token], outcome.kind === 'refused' && outcome.code === 'token_unknown' ? [token] : []);
  if (outcome.kind === 'refused') {
    const refusal = new VaultError(outcome.code);
    refusal.recorded = true;
    throw refusal;
  }
  // 6. Only now is it answered.
  return { ...viewOf(outcome.row, deps.now()), ...(action === 'delete' ? { card_destroyed: outcome.cardDestroyed } : {}) };
}

/** The rows of this transaction as they are after the operations so far. */
class Rows {
  readonly #rows = new Map<string, TokenRow>();
  readonly #changed = new Map<string, TokenRow>();

  constructor(rows: readonly TokenRow[]) {
    for (const row of rows) this.#rows.set(key(row), row);
  }

  get(tenantId: number, token: string): TokenRow | undefined {
    return this.#rows.get(`${tenantId}:${token}`);
  }

  /** The row with another status, a version later, under a MAC of its own. */
  change(tenant: Tenant, row: TokenRow, status: TokenStatus): TokenRow {
    const rowVersion = row.rowVersion + 1;
    const mac = tokenMac(tenant.keys.rowMacKey, { tenant: tenant.name, fingerprint: row.fingerprint, cardId: row.cardId, token: row.token, status, expiresAt: row.expiresAt, rowVersion });
    const changed: TokenRow = { ...row, status, rowVersion, tokenMac: mac, ...(isDead(status) ? { metadata: null } : {}) };
    this.#rows.set(key(row), changed);
    this.#changed.set(key(row), changed);
    return changed;
  }

  get changed(): readonly TokenRow[] {
    return [...this.#changed.values()];
  }

  ofCard(card: CardKey): readonly TokenRow[] {
    return [...this.#rows.values()].filter((row) => row.tenantId === card.tenantId && row.cardToken === card.cardToken);
  }
}

function key(row: TokenRow): string {
  return `${row.tenantId}:${row.token}`;
}

/** The transaction's part, for all operations of a group at once. */
export async function storeLifecycle(tx: ClientBase, operations: readonly LifecycleOperation[], made: MadeIn): Promise<Settlement<LifecycleOutcome>[]> {
  // a. Which cards are meant; then these cards are locked, in the order of their keys, and read again, as they are now.
  const asked = operations.filter((operation) => operation.wellFormed);
  const seen = asked.length === 0 ? [] : await findTokens(tx, asked.map(({ tenant }) => tenant.id), asked.map(({ token }) => token));
  const rows = await lockedRows(tx, seen);
  // Only a deletion ends a card.
  const tenants = new Map(operations.map(({ tenant }) => [tenant.id, tenant]));
  const deleted = asked.flatMap(({ action, tenant, token }) => (action === 'delete' ? (rows.get(tenant.id, token) ?? []) : []));
  const others = await deadOthers(tx, rows, deleted, made.at, tenants);

  // b. One operation after the other: several may mean one token, or one card. `over`: after it no token of the card is alive.
  const settled = operations.map((operation) => {
    const applied = apply(operation, rows.get(operation.tenant.id, operation.token), rows, made.at);
    return { operation, ...applied, over: applied.outcome.kind === 'done' && isOver(applied.outcome.row, rows, others, operation.tenant, made.at) };
  });

  // c. Cards without a living token are destroyed.
  const destroyed = await finish(tx, rows, others, settled.flatMap(({ outcome }) => (outcome.kind === 'done' ? [outcome.row] : [])), made.at, tenants);
  // Of several that ended one card's tokens the first after which none was alive has destroyed it; those before it found it standing.
  const told = new Set<string>();
  return settled.map(({ operation, outcome, changed, over }) => {
    let final = outcome;
    if (outcome.kind === 'done' && over && destroyed.has(cardId(outcome.row))) {
      final = { kind: 'done', row: { ...outcome.row, expiry: null }, cardDestroyed: !told.has(cardId(outcome.row)) };
      told.add(cardId(outcome.row));
    }
    return { outcome: final, entry: lifecycleEntry(operation, final), events: final.kind === 'done' && changed ? [{ type: eventTypes[operation.action], call: operation.call, row: final.row } satisfies VaultEvent] : [] };
  });
}

const eventTypes = { suspend: 'token.suspended', resume: 'token.resumed', delete: 'token.deleted' } as const satisfies Record<LifecycleAction, EventType>;

function apply({ action, tenant, wellFormed }: LifecycleOperation, row: TokenRow | undefined, rows: Rows, at: Date): { readonly outcome: LifecycleOutcome; readonly changed: boolean } {
  const refused = (code: ErrorCode): { outcome: LifecycleOutcome; changed: boolean } => ({ outcome: { kind: 'refused', code }, changed: false });
  if (!wellFormed || row === undefined) return refused('token_unknown');
  if (!rowIsGenuine(tenant, row)) return refused('internal');
  const status = effectiveStatus(row, at);
  if (status === 'revoked') return refused('token_revoked');
  // What has expired may be deleted, so that nobody needs to wait for the sweeper, and nothing else.
  if (status === 'expired' && action !== 'delete') return refused('token_expired');
  const next: TokenStatus = action === 'suspend' ? 'suspended' : action === 'resume' ? 'active' : 'revoked';
  if (row.status === next) return { outcome: { kind: 'done', row, cardDestroyed: false }, changed: false };
  return { outcome: { kind: 'done', row: rows.change(tenant, row, next), cardDestroyed: false }, changed: true };
}

/** Locks the cards of these tokens against every other change, and reads the tokens again, with the first ones of their cards. */
async function lockedRows(tx: ClientBase, seen: readonly TokenRow[]): Promise<Rows> {
  const cards = new Map(seen.map((row): [string, CardKey] => [cardId(row), { tenantId: row.tenantId, cardToken: row.cardToken }]));
  if (cards.size === 0) return new Rows([]);
  await lockCards(tx, [...cards.values()]);
  const named = new Map([...seen.map(({ tenantId, token }) => ({ tenantId, token })), ...[...cards.values()].map(({ tenantId, cardToken }) => ({ tenantId, token: cardToken }))].map((one) => [`${one.tenantId}:${one.token}`, one]));
  return new Rows(await findTokens(tx, [...named.values()].map(({ tenantId }) => tenantId), [...named.values()].map(({ token }) => token)));
}

/** Of a card whose further tokens beside those in `Rows` are all dead: those of them that are past their end and not marked yet. */
type DeadOthers = ReadonlyMap<string, readonly TokenRow[]>;

/** Tokens of a card that are marked with its end. If more are past theirs, the sweeper marks them, and destroys the card with the last one. */
const maxMarkedAtEnd = 1000;
/** And of all cards that end in one transaction, which may be hundreds: their rows are in memory together. */
const maxMarkedAtOnce = 10_000;

/**
 * Those of the cards of `ending` that have nothing alive beside the tokens in `rows`. A card may have any number of further tokens: they are read only
 * where none is alive by its columns, and never all at once.
 */
async function deadOthers(tx: ClientBase, rows: Rows, ending: readonly TokenRow[], at: Date | null, tenants: ReadonlyMap<number, Tenant>): Promise<DeadOthers> {
  const dead = new Map<string, TokenRow[]>();
  // One that was destroyed before has no fingerprint.
  const cards = new Map(ending.flatMap((row): [string, TokenRow][] => (row.fingerprint.length === 0 ? [] : [[cardId(row), row]])));
  if (cards.size === 0) return dead;
  const asked: CardKey[] = [];
  for (const card of await findOthers(tx, [...cards.values()], [...cards.values()].flatMap((row) => rows.ofCard(row)).map(({ token }) => token), at, maxMarkedAtEnd)) {
    if (card.alive) continue;
    dead.set(cardId(card), []);
    if (card.some) asked.push(card);
  }
  if (asked.length === 0) return dead;
  let kept = 0;
  await eachFurtherToken(tx, asked, (row) => {
    const unmarked = dead.get(cardId(row));
    if (unmarked === undefined || rows.get(row.tenantId, row.token) !== undefined) return;
    const counts = isDeadFor(row, tenants.get(row.tenantId)!, at);
    if (counts && isDead(row.status!)) return;
    if (counts && unmarked.length < maxMarkedAtEnd && kept < maxMarkedAtOnce) {
      unmarked.push(row);
      kept += 1;
      return;
    }
    dead.delete(cardId(row));
    kept -= unmarked.length;
  });
  return dead;
}

/**
 * Whether a token is dead; with `at` null, whether it is marked as dead. A row that was tampered with says nothing: not that its token is dead
 * either.
 */
function isDeadFor(row: TokenRow, tenant: Tenant, at: Date | null): boolean {
  return row.status !== null && isDead(at === null ? row.status : effectiveStatus(row, at)) && rowIsGenuine(tenant, row);
}

/** Whether none of a card's tokens is alive. */
function isOver(card: CardKey, rows: Rows, others: DeadOthers, tenant: Tenant, at: Date | null): boolean {
  return others.has(cardId(card)) && rows.ofCard(card).every((row) => isDeadFor(row, tenant, at));
}

/** Writes what changed, and destroys those of the cards of `touched` that are over (`isOver`). Returns which. */
async function finish(tx: ClientBase, rows: Rows, others: DeadOthers, touched: readonly TokenRow[], at: Date | null, tenants: ReadonlyMap<number, Tenant>): Promise<ReadonlySet<string>> {
  const cards = new Map(touched.map((row) => [cardId(row), row]));
  const ended: CardKey[] = [];
  const destroyed = new Set<string>();
  for (const [id, card] of cards) {
    const tenant = tenants.get(card.tenantId)!;
    if (!isOver(card, rows, others, tenant, at)) continue;
    // A token past its end that the sweeper has not marked yet: its MAC must not depend on a fingerprint that is about to go.
    for (const row of [...rows.ofCard(card), ...others.get(id)!]) if (row.status !== null && !isDead(row.status)) rows.change(tenant, row, 'expired');
    ended.push({ tenantId: card.tenantId, cardToken: card.cardToken });
    destroyed.add(id);
  }
  if (rows.changed.length > 0) await updateTokens(tx, rows.changed);
  if (ended.length > 0) await destroyCards(tx, ended);
  return destroyed;
}

function cardId(row: CardKey): string {
  return `${row.tenantId}:${row.cardToken}`;
}

function lifecycleEntry({ action, call, decision, token, wellFormed }: LifecycleOperation, outcome: LifecycleOutcome): Entry {
  const code = outcome.kind === 'refused' ? outcome.code : undefined;
  const became = outcome.kind === 'refused' ? outcome.code : outcome.cardDestroyed ? 'card_destroyed' : (outcome.row.status ?? 'internal');
  return entryOf(call, { action, decision, ...(wellFormed ? { tokens: { [became]: [token] } } : { items: { malformed: 1 } }), ...(code === undefined ? {} : { code }) });
}

/** The entry of an operation that broke its transaction. */
export function lifecycleFailure({ action, call, decision, token, wellFormed }: LifecycleOperation, code: ErrorCode): Entry {
  return entryOf(call, { action, decision, ...(wellFormed ? { tokens: { [code]: [token] } } : {}), code });
}

/**
 * The transaction's part of the sweeper. Tokens whose row was tampered with are left as they are: they open nothing, and whoever uses them
 * is told. A card goes with the last of its tokens that is marked, so that each of them is named in an entry.
 */
export async function storeSweep(tx: ClientBase, { tenants, limit }: SweepOperation, made: MadeIn): Promise<Settlement<SweepOutcome>> {
  // A tenant that is no longer configured has no keys here: its tokens stay as they are, and are not looked through again each time.
  const byId = tenants.byId;
  // What cannot be marked is passed over: it would keep the sweeper from all that ended later.
  const passed = { first: 0, further: 0 };
  for (;;) {
    const seen = await findEnding(tx, [...byId.keys()], made.at, limit, passed);
    if (seen.length === 0) return { outcome: { kind: 'swept', tokens: 0 }, entry: null };
    const rows = await lockedRows(tx, seen);
    const ended: TokenRow[] = [];
    for (const { tenantId, token, cardToken } of seen) {
      const row = rows.get(tenantId, token);
      const tenant = byId.get(tenantId)!;
      passed[token === cardToken ? 'first' : 'further'] += 1;
      if (row === undefined || row.status === null || isDead(row.status) || effectiveStatus(row, made.at) !== 'expired' || !rowIsGenuine(tenant, row)) continue;
      ended.push(row);
    }
    if (ended.length === 0) continue;
    const others = await deadOthers(tx, rows, ended, null, byId);
    const marked = ended.map((row) => rows.change(byId.get(row.tenantId)!, row, 'expired'));
    const destroyed = await finish(tx, rows, others, marked, null, byId);
    const tokens: Record<string, string[]> = {};
    for (const row of marked) (tokens[destroyed.has(cardId(row)) ? 'card_destroyed' : 'expired'] ??= []).push(row.token);
    return { outcome: { kind: 'swept', tokens: marked.length }, entry: { action: 'sweep', at: made.at, outcome: 'allowed', tokens } };
  }
}

/** The entry of a round of the sweeper that broke its transaction. */
export function sweepFailure(code: ErrorCode, at: Date): Entry {
  return { action: 'sweep', at, outcome: 'failed', code };
}
