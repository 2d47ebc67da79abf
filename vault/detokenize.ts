/**
 * Detokenize: tokens in, card numbers out, for an approved service and a stated purpose. Steps as in docs/MONEY-PATH.md.
 *
 * Nothing sealed is opened before the entry that says so is durably committed: opening takes the receipt, and only the committed
 * entry gives one.
 */
import type { TokenWatch } from './abuse.ts';
import { HsmError } from '../hsm/errors.ts';
import type { Receipt } from '../audit/append.ts';
import type { Entry } from '../audit/entry.ts';
import type { ClientBase } from 'pg';
import { entryOf } from './call.ts';
import type { Call } from './call.ts';
import { findSealed } from './card-store.ts';
import type { MadeIn, SealedRow } from './card-store.ts';
import type { Committed, Settlement } from './commit.ts';
import { VaultError, codeOfHsm, problemOfItem } from './errors.ts';
import type { ErrorCode } from './errors.ts';
import type { Policy, Purpose } from './policy.ts';
import type { Decision } from './policy.ts';
import { debitQuotas } from './quota.ts';
import type { Debited, QuotaLimit } from './quota.ts';
import { spendReferences } from './references.ts';
import type { ReferenceRule, ReferenceUse } from './references.ts';
import type { Tenant, Tenants } from './tenants.ts';
import type { StageObserver } from './tokenize.ts';
import { effectiveStatus, expiryText, rowIsGenuine } from './token-view.ts';
import { parseToken } from './token.ts';
import { secretBytes } from '../hsm/secret-bytes.ts';

export interface DetokenizeInput {
  readonly tokens: readonly string[];
  readonly purpose: Purpose;
  readonly reference?: string;
}

export interface DetokenizeDeps {
  readonly policy: Policy;
  readonly tenants: Tenants;
  readonly now: () => Date;
  readonly stages: StageObserver;
  /** The limits that bind a caller for a purpose. */
  quotasOf(spiffeId: string, tenant: string, purpose: Purpose): readonly QuotaLimit[];
  /** What a tenant demands of the reference of a call for that purpose; null for nothing. */
  referenceRuleOf(tenant: string, purpose: Purpose): ReferenceRule | null;
  /** Told what an authorized call asked for, once its entry is committed. */
  readonly watch: TokenWatch;
  /** Commits through a writer whose role may detokenize. */
  commit(operation: DetokenizeOperation): Promise<Committed<DetokenizeOutcome>>;
  /** Writes an entry of its own, for an open that failed after it was authorized. */
  record(operation: DetokenizeOperation, failed: readonly FailedItem[]): Promise<void>;
}

export interface DetokenizeOperation {
  readonly kind: 'detokenize';
  readonly action: 'detokenize' | 'detokenize_batch';
  readonly call: Call;
  readonly decision: Decision;
  readonly tenant: Tenant;
  readonly input: DetokenizeInput;
  readonly quotas: readonly QuotaLimit[];
  /** Whether its reference serves once for a token. */
  readonly spendsReference: boolean;
}

/** What one token comes to: its sealed card, or why it is not opened. */
export type DetokenizeItem = { readonly kind: 'sealed'; readonly row: SealedRow } | { readonly kind: 'refused'; readonly code: ErrorCode };

export type DetokenizeOutcome =
  /** In the order of the tokens. */
  | { readonly kind: 'authorized'; readonly items: readonly DetokenizeItem[] }
  | { readonly kind: 'refused'; readonly code: ErrorCode; readonly retryAfterSeconds?: number };

/** A token whose card could not be opened, although its entry says that it was authorized. */
export interface FailedItem {
  readonly token: string;
  readonly code: ErrorCode;
}

/** What one token gave: the digits and the name are the answer's to wipe. */
interface OpenedCard {
  readonly digits: Buffer;
  readonly name: Buffer | null;
  readonly expiry: string | null;
}

/**
 * The answer's JSON body, `{"pan":…,"expiry":…,"cardholder":…}`, as one Buffer that the caller owns and must wipe.
 * The digits go from the cipher into that Buffer and are never a string.
 *
 * @throws VaultError `not_authorized`, `token_unknown`, `token_revoked`, `token_expired`, `token_suspended`, `quota_exceeded`, `reference_required`, `reference_used`,
 *   `hsm_unavailable`, `store_unavailable`, `sealed`, `internal`, and what `commit` throws.
 */
export async function detokenize(deps: DetokenizeDeps, call: Call, input: { readonly token: string; readonly purpose: Purpose; readonly reference?: string }): Promise<Buffer> {
  const { token, ...why } = input;
  const [only] = await openAll(deps, call, 'detokenize', { ...why, tokens: [token] });
  if (typeof only !== 'object') throw recorded(new VaultError(only ?? 'internal'));
  return answerBody([only], '', '');
}

/**
 * As `detokenize`, for up to 100 tokens in one call, one entry and one debit of as many tokens: `{"items":[…]}` in their order, each as the
 * single answer or `{"error":…}`.
 */
export async function detokenizeBatch(deps: DetokenizeDeps, call: Call, input: DetokenizeInput): Promise<Buffer> {
  return answerBody(await openAll(deps, call, 'detokenize_batch', input), '{"items":[', ']}');
}

async function openAll(deps: DetokenizeDeps, call: Call, action: DetokenizeOperation['action'], input: DetokenizeInput): Promise<(OpenedCard | ErrorCode)[]> {
  const { caller } = call;
  if (caller === null) throw new VaultError('not_authorized');

  // 3. Authorize: this caller, this tenant, this purpose.
  const decision = deps.policy.decide(caller, action, input.purpose);
  if (!decision.allowed) throw refusedAtOnce('not_authorized', decision, input);
  const tenant = deps.tenants.get(caller.tenant);
  const rule = deps.referenceRuleOf(tenant.name, input.purpose);
  if (rule !== null && input.reference === undefined) throw refusedAtOnce('reference_required', decision, input);
  const operation: DetokenizeOperation = { kind: 'detokenize', action, call, decision, tenant, input, quotas: deps.quotasOf(caller.spiffeId, tenant.name, input.purpose), spendsReference: rule === 'single_use' };

  // 5. The entry is committed in the same transaction that reads the sealed cards and debits the quota.
  // A crash after it leaves an entry that says "authorized" for cards that nobody got: the safe side.
  const { outcome, receipt } = await deps.commit(operation);
  if (outcome.kind === 'refused') throw recorded(new VaultError(outcome.code, outcome.retryAfterSeconds === undefined ? undefined : { retryAfterSeconds: outcome.retryAfterSeconds }));
  if (receipt === null) throw new Error('a detokenize was committed without an entry');
  deps.watch.opened(caller, tenant.id, input.tokens, outcome.items.flatMap((item, index) => (item.kind === 'refused' && item.code === 'token_unknown' ? [input.tokens[index]!] : [])));

  // 6. Only now act: open. A failure from here on is a second entry.
  const openingSince = performance.now();
  const failed: FailedItem[] = [];
  const causes: unknown[] = [];
  // A card that several tokens of the call name is opened once: its receipt serves once for each value.
  const opened = new Map<string, OpenedCard | ErrorCode>();
  const items: (OpenedCard | ErrorCode)[] = [];
  for (const [index, item] of outcome.items.entries()) {
    if (item.kind === 'refused') {
      items.push(item.code);
      continue;
    }
    const { row } = item;
    const cardId = row.cardId.toString('latin1');
    let card = opened.get(cardId);
    if (card === undefined) {
      try {
        card = await openCard(receipt, tenant, row);
      } catch (error) {
        card = error instanceof HsmError ? codeOfHsm(error) : 'internal';
        causes.push(error);
      }
      opened.set(cardId, card);
    }
    if (typeof card !== 'object') failed.push({ token: input.tokens[index]!, code: card });
    items.push(card);
  }
  deps.stages.keyWork(action === 'detokenize' ? 'open' : 'open_batch', performance.now() - openingSince);
  if (failed.length > 0) {
    try {
      await deps.record(operation, failed);
    } catch (error) {
      wipe(items);
      throw error;
    }
    if (action === 'detokenize') throw recorded(new VaultError(failed[0]!.code, { cause: causes[0] }));
  }
  return items;
}

/** A call that comes to no transaction of its own: the entry of its refusal names the tokens that are well formed, as every other does. */
function refusedAtOnce(code: 'not_authorized' | 'reference_required', decision: Decision, { tokens, purpose, reference }: DetokenizeInput): VaultError {
  const named = tokens.filter((token) => parseToken(token) !== null);
  return new VaultError(code, { facts: { decision, purpose, reference, ...(named.length === 0 ? {} : { tokens: { [code]: named } }) } });
}

async function openCard(receipt: Receipt, tenant: Tenant, row: SealedRow): Promise<OpenedCard> {
  const { cipher } = tenant.keys;
  const binding = { tenant: tenant.name, cardId: row.cardId };
  const digits = await cipher.open(receipt, 'pan', row.sealedPan, binding);
  try {
    const name = row.sealedName === null ? null : await cipher.open(receipt, 'name', row.sealedName, binding);
    return { digits, name, expiry: expiryText(row.expiry) };
  } catch (error) {
    digits.fill(0);
    throw error;
  }
}

function wipe(items: readonly (OpenedCard | ErrorCode)[]): void {
  for (const item of items) {
    if (typeof item !== 'object') continue;
    item.digits.fill(0);
    item.name?.fill(0);
  }
}

/** Builds the body in memory of its own (never Node's shared pool), so that wiping it leaves nothing behind. Wipes the cards. */
function answerBody(items: readonly (OpenedCard | ErrorCode)[], before: string, after: string): Buffer {
  const texts = items.map((item) => (typeof item === 'object' ? `","expiry":${JSON.stringify(item.expiry)},"cardholder":${JSON.stringify(item.name?.toString('utf8') ?? null)}}` : JSON.stringify({ error: problemOfItem(item) })));
  let size = before.length + after.length + Math.max(0, items.length - 1);
  for (const [index, item] of items.entries()) size += Buffer.byteLength(texts[index]!, 'utf8') + (typeof item === 'object' ? panHead.length + item.digits.length : 0);
  const body = secretBytes(size);
  let at = body.write(before, 0, 'latin1');
  for (const [index, item] of items.entries()) {
    if (index > 0) at += body.write(',', at, 'latin1');
    if (typeof item === 'object') {
      at += body.write(panHead, at, 'latin1');
      body.set(item.digits, at);
      at += item.digits.length;
    }
    at += body.write(texts[index]!, at, 'utf8');
  }
  body.write(after, at, 'latin1');
  wipe(items);
  return body;
}

const panHead = '{"pan":"';

/** The transaction's part of detokenize, for all operations of a group at once. */
export async function storeDetokenize(tx: ClientBase, operations: readonly DetokenizeOperation[], made: MadeIn): Promise<Settlement<DetokenizeOutcome>[]> {
  const outcomes: (DetokenizeOutcome | null)[] = operations.map(() => null);

  // a. Quotas: a call that is not covered, each of its tokens counted, is refused here, alone, and its tokens are not looked at.
  const metered = operations.flatMap((operation, index) => (operation.quotas.length === 0 ? [] : [{ operation, index }]));
  let debited: Debited | null = null;
  if (metered.length > 0) {
    debited = await debitQuotas(tx, metered.map(({ operation: { tenant, quotas, input } }) => ({ tenantId: tenant.id, limits: quotas, tokens: input.tokens })), made.at);
    for (const [at, { index }] of metered.entries()) {
      const seconds = debited.refusals[at] ?? null;
      if (seconds !== null) outcomes[index] = { kind: 'refused', code: 'quota_exceeded', retryAfterSeconds: seconds };
    }
  }

  // b. One look-up for all tokens, by (tenant, token): another tenant's token is unknown by the same statement and branch. What is not
  // well formed is never looked up.
  const asked = operations.flatMap(({ tenant, input }, index) => (outcomes[index] === null ? input.tokens.flatMap((token) => (parseToken(token) === null ? [] : [{ tenantId: tenant.id, token }])) : []));
  const found = new Map<string, SealedRow>();
  const [rows] = await Promise.all([asked.length === 0 ? [] : findSealed(tx, asked.map(({ tenantId }) => tenantId), asked.map(({ token }) => token)), debited?.settle()]);
  for (const row of rows) found.set(`${row.tenantId} ${row.token}`, row);
  const items = operations.map(({ tenant, input }, index): DetokenizeItem[] => (outcomes[index] === null ? input.tokens.map((token) => itemOf(tenant, found.get(`${tenant.id} ${token}`), made.at)) : []));

  // c. References that serve once: spent by what would open, and by nothing else. A token that a call names twice is one use.
  const uses: (ReferenceUse & { readonly index: number })[] = [];
  for (const [index, { tenant, input, spendsReference }] of operations.entries()) {
    if (!spendsReference) continue;
    const opening = new Set(input.tokens.filter((_, at) => items[index]![at]?.kind === 'sealed'));
    for (const token of opening) uses.push({ index, tenantId: tenant.id, purpose: input.purpose, token, reference: input.reference! });
  }
  if (uses.length > 0) {
    const spent = await spendReferences(tx, uses, made.at);
    for (const [at, { index, token }] of uses.entries()) {
      if (spent[at] === true) continue;
      items[index] = items[index]!.map((item, place) => (operations[index]!.input.tokens[place] === token ? { kind: 'refused', code: 'reference_used' } : item));
    }
  }
  return operations.map((operation, index) => {
    const outcome: DetokenizeOutcome = outcomes[index] ?? { kind: 'authorized', items: items[index]! };
    return { outcome, entry: detokenizeEntry(operation, outcome) };
  });
}

function itemOf(tenant: Tenant, row: SealedRow | undefined, now: Date): DetokenizeItem {
  if (row === undefined) return { kind: 'refused', code: 'token_unknown' };
  if (!rowIsGenuine(tenant, row)) return { kind: 'refused', code: 'internal' };
  const status = effectiveStatus(row, now);
  if (status !== 'active') return { kind: 'refused', code: `token_${status}` };
  return { kind: 'sealed', row };
}

function detokenizeEntry(operation: DetokenizeOperation, outcome: DetokenizeOutcome): Entry {
  const { input } = operation;
  if (outcome.kind === 'refused') return entry(operation, input.tokens.map((token) => ({ token, outcome: outcome.code })), outcome.code);
  const items = outcome.items.map((item, index) => ({ token: input.tokens[index]!, outcome: item.kind === 'refused' ? item.code : 'authorized' }));
  const [only] = outcome.items;
  // A single call that fails says so as a whole; a batch call does what it can.
  return entry(operation, items, operation.action === 'detokenize' && only?.kind === 'refused' ? only.code : undefined);
}

/** The entry of a call that failed as a whole, after it came to its transaction. */
export function detokenizeFailure(operation: DetokenizeOperation, code: ErrorCode): Entry {
  return entry(operation, operation.input.tokens.map((token) => ({ token, outcome: code })), code);
}

/** The second entry of a call, of which these tokens were authorized and could not be opened. */
export function openFailure(operation: DetokenizeOperation, failed: readonly FailedItem[]): Entry {
  return entry(operation, failed.map(({ token, code }) => ({ token, outcome: code })), failed[0]!.code);
}

/** Only well-formed tokens are named: any other text could be a card number. */
function entry({ action, call, decision, input }: DetokenizeOperation, items: readonly { readonly token: string; readonly outcome: string }[], code: ErrorCode | undefined): Entry {
  const tokens: Record<string, string[]> = {};
  let malformed = 0;
  for (const { token, outcome } of items) {
    if (parseToken(token) === null) malformed += 1;
    else (tokens[outcome] ??= []).push(token);
  }
  return entryOf(call, {
    action,
    decision,
    purpose: input.purpose,
    reference: input.reference,
    ...(Object.keys(tokens).length === 0 ? {} : { tokens }),
    ...(malformed === 0 ? {} : { items: { malformed } }),
    ...(code === undefined ? {} : { code }),
  });
}

function recorded(error: VaultError): VaultError {
  error.recorded = true;
  return error;
}
