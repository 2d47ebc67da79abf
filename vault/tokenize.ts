/**
 * Tokenize: a card number in, a token out. The numbers are those of docs/MONEY-PATH.md; steps 1 and 2 are the server's
 * (vault/server.ts): by the time a call arrives here, its caller is known and the digits stand in a Pan and nowhere else.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { HsmError } from '../hsm/errors.ts';
import type { ClientBase } from 'pg';
import { entryOf } from './call.ts';
import type { Call } from './call.ts';
import { findByFingerprint, findTokens, insertCards, updateCards } from './card-store.ts';
import type { CardUpdate, MadeIn, NewCard, TokenRow } from './card-store.ts';
import { TransactionConflict } from './commit.ts';
import type { Committed, Settlement } from './commit.ts';
import { VaultError } from './errors.ts';
import type { ErrorCode } from './errors.ts';
import type { VaultEvent } from './outbox.ts';
import type { Pan } from './pan.ts';
import type { Decision, Policy } from './policy.ts';
import type { Tenant, Tenants } from './tenants.ts';
import { tokenMac } from './token-mac.ts';
import { findIdempotencyKeys, insertIdempotencyKeys, insertTokens } from './token-store.ts';
import type { FurtherToken, IdempotencyRow } from './token-store.ts';
import { makeToken } from './token.ts';
import type { RandomBytes } from './token.ts';
import { expiryNumber, rowIsGenuine, viewOf } from './token-view.ts';
import type { TokenView } from './token-view.ts';

/** A request that the schema has passed; the card number is apart, in the Pan. */
export interface TokenizeInput {
  readonly expiry?: string;
  readonly cardholder?: string;
  readonly format?: 'opaque';
  readonly reuse?: boolean;
  readonly metadata?: Readonly<Record<string, string | number | boolean>>;
}

/** Told how long the work with keys took, in ms, the HSM's part included. Must not throw. */
export interface StageObserver {
  keyWork(stage: 'seal' | 'open', ms: number): void;
}

export type TokenizeAnswer = TokenView & { readonly created: boolean };

export interface TokenizeDeps {
  readonly policy: Policy;
  readonly tenants: Tenants;
  readonly random: RandomBytes;
  readonly now: () => Date;
  readonly stages: StageObserver;
  /** Commits through a writer whose role may tokenize. */
  commit(operation: TokenizeOperation): Promise<Committed<TokenizeOutcome>>;
}

/** One card of a call, sealed and fingerprinted, waiting for its transaction. */
export interface TokenizeItem {
  readonly card: NewCard;
  readonly reuse: boolean;
  readonly idempotency: { readonly keyHash: Buffer; readonly requestMac: Buffer } | null;
  /** The card that `sealedName` was sealed for, if it is not the new one: see `known_card`. */
  readonly nameSealedFor: Buffer | null;
}

export interface TokenizeOperation {
  readonly kind: 'tokenize';
  readonly call: Call;
  readonly decision: Decision;
  readonly tenant: Tenant;
  readonly item: TokenizeItem;
}

export type TokenizeOutcome =
  /** `replayed`: an earlier call with this Idempotency-Key did it, and this one wrote nothing. */
  | { readonly kind: 'token'; readonly row: TokenRow; readonly created: boolean; readonly replayed?: true }
  | { readonly kind: 'refused'; readonly code: ErrorCode }
  /** The card is known and a cardholder's name was given, which must be sealed for that card. Nothing was written. */
  | { readonly kind: 'known_card'; readonly cardId: Buffer }
  /** Another call of the same transaction has the same Idempotency-Key. Nothing was written. */
  | { readonly kind: 'again' };

const path = '/v1/tokenize';
/** What a sealed name can hold, in bytes of UTF-8 (hsm/card-cipher.ts). */
const maxCardholderBytes = 255;
/** How long an Idempotency-Key is kept. */
export const idempotencyWindowMs = 24 * 60 * 60 * 1000;

/**
 * Answers once the card, its token and the entry of this call are durably committed. `pan` is borrowed.
 *
 * @throws VaultError `not_authorized`, `invalid_pan` (pan null), `invalid_request`, `idempotency_conflict`, `hsm_unavailable`, and what `commit` throws.
 */
export async function tokenize(deps: TokenizeDeps, call: Call, pan: Pan | null, input: TokenizeInput, idempotencyKey: string | null): Promise<TokenizeAnswer> {
  const { caller } = call;
  if (caller === null) throw new VaultError('not_authorized');

  // 3. Authorize, before anything about the card number is answered.
  const decision = deps.policy.decide(caller, 'tokenize', null);
  if (!decision.allowed) throw new VaultError('not_authorized', { facts: { decision } });
  const tenant = deps.tenants.get(caller.tenant);
  if (pan === null) throw new VaultError('invalid_pan', { facts: { decision } });
  const reuse = input.reuse ?? true;
  if (!reuse && idempotencyKey === null) throw new VaultError('invalid_request', { facts: { decision } });
  // The schema counts characters; what is sealed counts bytes.
  if (input.cardholder !== undefined && Buffer.byteLength(input.cardholder, 'utf8') > maxCardholderBytes) throw new VaultError('invalid_request', { facts: { decision } });

  // 4. Seal and fingerprint, before any database work: the HSM never holds up a connection or a lock.
  // A crash here leaves nothing behind.
  const sealingSince = performance.now();
  let item = await sealItem(deps, tenant, pan, input, reuse);
  deps.stages.keyWork('seal', performance.now() - sealingSince);
  if (idempotencyKey !== null) item = { ...item, idempotency: idempotencyOf(tenant, call, input, reuse, item.card.fingerprint, idempotencyKey) };

  // 5. Commit, together with whoever waits at the same moment. The first round tells whether the card is known; only a
  // cardholder's name for a known card, or a twin of the same Idempotency-Key, takes another.
  for (let rounds = 0; rounds < 5; rounds += 1) {
    const { outcome } = await deps.commit({ kind: 'tokenize', call, decision, tenant, item });
    switch (outcome.kind) {
      case 'token':
        // 6. Only now is it answered.
        return { ...viewOf(outcome.row, deps.now()), created: outcome.created };
      case 'refused':
        throw recorded(new VaultError(outcome.code));
      case 'known_card': {
        const sealedName = await guarded(async () => await tenant.keys.cipher.seal('name', Buffer.from(input.cardholder ?? '', 'utf8'), { tenant: tenant.name, cardId: outcome.cardId }));
        item = { ...item, card: { ...item.card, sealedName }, nameSealedFor: outcome.cardId };
        break;
      }
      case 'again':
        break;
    }
  }
  throw new VaultError('overloaded');
}

async function sealItem(deps: TokenizeDeps, tenant: Tenant, pan: Pan, input: TokenizeInput, reuse: boolean): Promise<TokenizeItem> {
  const { keys } = tenant;
  // Copied out of the pool: a system call for each card would cost a thirtieth of a tokenize.
  const cardId = Buffer.from(deps.random(16));
  const binding = { tenant: tenant.name, cardId };
  return await guarded(async () => {
    const fingerprint = await keys.fingerprint.compute(tenant.name, pan.reveal());
    const sealedPan = await keys.cipher.seal('pan', pan.reveal(), binding);
    const sealedName = input.cardholder === undefined ? null : await keys.cipher.seal('name', Buffer.from(input.cardholder, 'utf8'), binding);
    const token = makeToken(deps.now(), deps.random);
    return {
      card: {
        tenantId: tenant.id,
        token,
        fingerprint,
        fingerprintVersion: keys.fingerprintVersion,
        cardId,
        sealedPan,
        sealedName,
        expiry: input.expiry === undefined ? null : expiryNumber(input.expiry),
        brand: pan.brand,
        bin: pan.bin,
        last4: pan.last4,
        panLength: pan.length,
        tokenMac: tokenMac(keys.rowMacKey, { tenant: tenant.name, fingerprint, cardId, token, status: 'active', expiresAt: null, rowVersion: 1 }),
        metadata: input.metadata === undefined ? null : JSON.stringify(input.metadata),
      },
      reuse,
      idempotency: null,
      nameSealedFor: null,
    };
  });
}

/** HSM trouble becomes a code that the caller can act on. */
async function guarded<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof HsmError) throw new VaultError(error.kind === 'sealed' ? 'sealed' : error.retryable ? 'hsm_unavailable' : 'internal', { cause: error });
    throw error;
  }
}

function idempotencyOf(tenant: Tenant, call: Call, input: TokenizeInput, reuse: boolean, fingerprint: Buffer, key: string): { keyHash: Buffer; requestMac: Buffer } {
  const keyHash = createHash('sha256').update(`${call.caller?.spiffeId ?? ''}\0${path}\0${key}`, 'utf8').digest();
  const metadata = input.metadata === undefined ? null : Object.entries(input.metadata).sort(([a], [b]) => (a < b ? -1 : 1));
  const canonical = JSON.stringify([input.expiry ?? null, input.cardholder ?? null, input.format ?? 'opaque', reuse, metadata]);
  const requestMac = createHmac('sha256', tenant.keys.rowMacKey).update('cofre/idempotent-request/v1\0', 'latin1').update(fingerprint).update(canonical, 'utf8').digest();
  return { keyHash, requestMac };
}

/** One operation's way through `storeTokenize`. */
interface Slot {
  readonly operation: TokenizeOperation;
  readonly item: TokenizeItem;
  outcome: TokenizeOutcome | null;
  /** Whether the call gave a known card a newer expiry or cardholder. */
  updated: boolean;
}

/**
 * The transaction's part of tokenize, for all operations of a group at once: every statement is one trip for all of them.
 * Never looks at sealed columns, which its role cannot read.
 *
 * @throws TransactionConflict if another writer has just used one of the Idempotency-Keys.
 */
export async function storeTokenize(tx: ClientBase, operations: readonly TokenizeOperation[], made: MadeIn): Promise<Settlement<TokenizeOutcome>[]> {
  const slots: Slot[] = operations.map((operation) => ({ operation, item: operation.item, outcome: null, updated: false }));
  const since = new Date(made.at.getTime() - idempotencyWindowMs);

  // a. Keys that were used before are answered from what they made.
  await replay(tx, slots, since);

  // b. Cards new to their tenant. Sorted, so that two writers lock the same fingerprints in the same order.
  // A twin within this transaction follows the first.
  const open = slots.filter((slot) => slot.outcome === null);
  const leaders = new Map<string, Slot>();
  for (const slot of open) {
    const id = cardKey(slot.item.card);
    if (!leaders.has(id)) leaders.set(id, slot);
  }
  const rows = new Map<string, TokenRow>();
  if (leaders.size > 0) {
    const fresh = [...leaders.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, slot]) => slot.item.card);
    const inserted = await insertCards(tx, fresh, made);
    // c. In the common case all are new, and nothing needs to be read back.
    if (inserted < fresh.length) {
      const standing = await findByFingerprint(tx, fresh.map((card) => card.tenantId), fresh.map((card) => card.fingerprint));
      for (const row of standing) rows.set(`${row.tenantId}:${row.fingerprint.toString('latin1')}`, row);
    } else {
      for (const card of fresh) rows.set(cardKey(card), rowOfNew(card, made.at));
    }
  }

  // d. What each operation comes to.
  const furtherTokens: FurtherToken[] = [];
  const updates = new Map<string, CardUpdate>();
  for (const slot of open) decide(slot, rows.get(cardKey(slot.item.card)), leaders, made.at, furtherTokens, updates);

  // e. The rest of the rows.
  if (furtherTokens.length > 0) await insertTokens(tx, furtherTokens, made);
  if (updates.size > 0) await updateCards(tx, [...updates.values()]);
  const used: IdempotencyRow[] = [];
  for (const { operation, item, outcome } of open) {
    if (item.idempotency !== null && outcome?.kind === 'token') used.push({ tenantId: operation.tenant.id, ...item.idempotency, token: outcome.row.token, created: outcome.created });
  }
  if (used.length > 0 && (await insertIdempotencyKeys(tx, used, made.at, since)) < used.length) throw new TransactionConflict('an Idempotency-Key was used meanwhile');

  return slots.map((slot) => ({ outcome: slot.outcome!, entry: tokenizeEntry(slot.operation, slot.outcome!), events: eventsOf(slot) }));
}

async function replay(tx: ClientBase, slots: readonly Slot[], since: Date): Promise<void> {
  const keyed = slots.filter((slot) => slot.item.idempotency !== null);
  if (keyed.length === 0) return;
  // Of twins that use one key for the first time, one goes on: one whose name is sealed already, or else each round another of them
  // would find only that its card is known.
  const first = new Map<string, Slot>();
  for (const slot of keyed) {
    const id = idempotencyId(slot.operation.tenant.id, slot.item.idempotency!.keyHash);
    const earlier = first.get(id);
    if (earlier === undefined || (earlier.item.nameSealedFor === null && slot.item.nameSealedFor !== null)) first.set(id, slot);
  }
  const asked = [...first.values()];
  const found = await findIdempotencyKeys(tx, asked.map((slot) => slot.operation.tenant.id), asked.map((slot) => slot.item.idempotency!.keyHash), since);
  const keys = new Map(found.map((key) => [idempotencyId(key.tenantId, key.keyHash), key]));
  const rows = found.length === 0 ? [] : await findTokens(tx, found.map((key) => key.tenantId), found.map((key) => key.token));
  for (const slot of keyed) {
    const { tenant } = slot.operation;
    const { keyHash, requestMac } = slot.item.idempotency!;
    const id = idempotencyId(tenant.id, keyHash);
    const key = keys.get(id);
    if (key === undefined) {
      if (first.get(id) !== slot) slot.outcome = { kind: 'again' };
      continue;
    }
    const row = rows.find((candidate) => candidate.tenantId === tenant.id && candidate.token === key.token);
    if (key.requestMac.length !== requestMac.length || !timingSafeEqual(key.requestMac, requestMac)) slot.outcome = { kind: 'refused', code: 'idempotency_conflict' };
    else if (row === undefined || !row.fingerprint.equals(slot.item.card.fingerprint) || !rowIsGenuine(tenant, row)) slot.outcome = { kind: 'refused', code: 'internal' };
    else slot.outcome = { kind: 'token', row, created: key.created, replayed: true };
  }
}

function idempotencyId(tenantId: number, keyHash: Buffer): string {
  return `${tenantId}:${keyHash.toString('latin1')}`;
}

function decide(slot: Slot, row: TokenRow | undefined, leaders: ReadonlyMap<string, Slot>, at: Date, furtherTokens: FurtherToken[], updates: Map<string, CardUpdate>): void {
  const { operation, item } = slot;
  const { tenant } = operation;
  const { card } = item;
  if (row === undefined) throw new TransactionConflict('a card vanished between two statements');
  const isNew = row.token === card.token && leaders.get(cardKey(card)) === slot;
  if (isNew) {
    slot.outcome = { kind: 'token', row: rowOfNew(card, at), created: true };
    return;
  }
  if (!rowIsGenuine(tenant, row)) {
    slot.outcome = { kind: 'refused', code: 'internal' };
    return;
  }
  if (card.sealedName !== null && !(item.nameSealedFor?.equals(row.cardId) ?? false)) {
    slot.outcome = { kind: 'known_card', cardId: row.cardId };
    return;
  }
  // A newer expiry or cardholder updates the card; the last of several in one transaction stands.
  const expiry = card.expiry !== null && card.expiry !== row.expiry ? card.expiry : null;
  const key = cardKey(card);
  const earlier = updates.get(key);
  slot.updated = expiry !== null || card.sealedName !== null;
  if (slot.updated || earlier !== undefined) {
    updates.set(key, { tenantId: row.tenantId, cardToken: row.cardToken, expiry: card.expiry ?? earlier?.expiry ?? null, sealedName: card.sealedName ?? earlier?.sealedName ?? null });
  }
  const current: TokenRow = { ...row, expiry: updates.get(key)?.expiry ?? row.expiry };
  if (item.reuse) {
    slot.outcome = { kind: 'token', row: current, created: false };
    return;
  }
  const mac = tokenMac(tenant.keys.rowMacKey, { tenant: tenant.name, fingerprint: row.fingerprint, cardId: row.cardId, token: card.token, status: 'active', expiresAt: null, rowVersion: 1 });
  furtherTokens.push({ tenantId: row.tenantId, token: card.token, cardToken: row.cardToken, tokenMac: mac, metadata: card.metadata });
  slot.outcome = { kind: 'token', row: { ...current, token: card.token, status: 'active', rowVersion: 1, expiresAt: null, tokenMac: mac, metadata: card.metadata, createdAt: at }, created: true };
}

function rowOfNew(card: NewCard, at: Date): TokenRow {
  return { ...card, cardToken: card.token, status: 'active', rowVersion: 1, expiresAt: null, createdAt: at };
}

function cardKey(card: NewCard): string {
  return `${card.tenantId}:${card.fingerprint.toString('latin1')}`;
}

function tokenizeEntry(operation: TokenizeOperation, outcome: TokenizeOutcome): Settlement<TokenizeOutcome>['entry'] {
  const { call, decision } = operation;
  switch (outcome.kind) {
    case 'token':
      return entryOf(call, { action: 'tokenize', decision, tokens: [{ outcome: outcome.replayed === true ? 'replayed' : outcome.created ? 'created' : 'known', token: outcome.row.token }] });
    case 'refused':
      return entryOf(call, { action: 'tokenize', decision, code: outcome.code });
    case 'known_card':
    case 'again':
      return null;
  }
}

function eventsOf({ operation, outcome, updated }: Slot): VaultEvent[] {
  if (outcome?.kind !== 'token' || outcome.replayed === true) return [];
  const { call } = operation;
  const { row, created } = outcome;
  return [...(updated ? [{ type: 'card.updated', call, row } as const] : []), ...(created ? [{ type: 'token.created', call, row } as const] : [])];
}

function recorded(error: VaultError): VaultError {
  error.recorded = true;
  return error;
}
