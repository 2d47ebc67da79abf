/** What a tokenize call brings to its transaction, what comes of it, and what the log and the platform are told. */
import { entryOf } from './call.ts';
import type { Call } from './call.ts';
import type { NewCard, TokenRow } from './card-store.ts';
import type { Settlement } from './commit.ts';
import type { ErrorCode } from './errors.ts';
import type { VaultEvent } from './outbox.ts';
import type { Decision } from './policy.ts';
import type { Tenant } from './tenants.ts';
import type { IdempotencyRow } from './token-store.ts';

/** One card of a call, sealed and fingerprinted, waiting for its transaction. */
export interface TokenizeItem {
  readonly card: NewCard;
  readonly reuse: boolean;
  /** The card that `sealedName` was sealed for. */
  readonly nameSealedFor: Buffer;
}

/** A call with an Idempotency-Key. */
export interface IdempotentRequest {
  readonly keyHash: Buffer;
  readonly requestMac: Buffer;
  /** Of all its cards in their order, those that were refused for guessing among them: whether one is depends on the day, and the request is the same. */
  readonly fingerprints: readonly Buffer[];
  /** Which of these cards each item is. */
  readonly places: readonly number[];
}

/** All cards of one call: they are stored together or not at all. */
export interface TokenizeOperation {
  readonly kind: 'tokenize';
  readonly action: 'tokenize' | 'tokenize_batch';
  readonly call: Call;
  readonly decision: Decision;
  readonly tenant: Tenant;
  readonly items: readonly TokenizeItem[];
  /** Items of the call that were refused before, by code, but for those refused for guessing: they stand in its entry. */
  readonly refusedItems: Readonly<Record<string, number>>;
  /** How many were refused for guessing. */
  readonly guesses: number;
  readonly idempotency: IdempotentRequest | null;
  /** Whether it is given up on where it would have to be tried again: as `overloaded`, which then is its entry. */
  readonly isLastRound: boolean;
}

export type ItemOutcome =
  /** `replayed`: an earlier call with this Idempotency-Key did it, and this one wrote nothing. */
  | { readonly kind: 'token'; readonly row: TokenRow; readonly created: boolean; readonly replayed?: true }
  /** The card's row was tampered with. */
  | { readonly kind: 'refused'; readonly code: 'internal' };

/** What an item needs before it can be stored. */
export type Remedy = { readonly kind: 'seal_name'; readonly cardId: Buffer } | { readonly kind: 'new_token' };

export type TokenizeOutcome =
  /** `earlier`: of cards that were refused for guessing, by their places, what an earlier call with this Idempotency-Key made of them. */
  | { readonly kind: 'stored'; readonly items: readonly ItemOutcome[]; readonly earlier: ReadonlyMap<number, ItemOutcome> }
  | { readonly kind: 'refused'; readonly code: ErrorCode }
  /** Nothing was written. To be tried again with what its items need; with nothing, where another call has the same Idempotency-Key just now. */
  | { readonly kind: 'again'; readonly remedies: readonly (Remedy | null)[] };

/** One item's way through the transaction. */
export interface Slot {
  readonly call: Work;
  readonly item: TokenizeItem;
  /** `cardKey`, made once: of a batch each costs as much as the rest of its bookkeeping. */
  readonly key: string;
  outcome: ItemOutcome | null;
  /** Whether it gave a known card a newer expiry or cardholder. */
  updated: boolean;
}

export interface Work {
  readonly operation: TokenizeOperation;
  readonly slots: Slot[];
  /** What its Idempotency-Key tells of cards that are no slots. */
  readonly earlier: Map<number, ItemOutcome>;
  /** What its Idempotency-Key tells, where it does not tell of every slot: the others are stored now. */
  key: IdempotencyRow | null;
  outcome: TokenizeOutcome | null;
}

/** What is to be stored in this transaction. */
export function openSlots(works: readonly Work[]): Slot[] {
  return works.flatMap((work) => (work.outcome === null ? work.slots.filter(({ outcome }) => outcome === null) : []));
}

/** The entry of a call by what became of it; null where it is to be tried again. */
export function tokenizeEntry({ action, call, decision, refusedItems, guesses }: TokenizeOperation, outcome: TokenizeOutcome): Settlement<TokenizeOutcome>['entry'] {
  switch (outcome.kind) {
    case 'stored': {
      const tokens: Record<string, string[]> = {};
      const items: Record<string, number> = { ...refusedItems };
      const refused = guesses - outcome.earlier.size;
      if (refused > 0) items['quota_exceeded'] = refused;
      for (const item of [...outcome.items, ...outcome.earlier.values()]) {
        if (item.kind === 'refused') items[item.code] = (items[item.code] ?? 0) + 1;
        else (tokens[item.replayed === true ? 'replayed' : item.created ? 'created' : 'known'] ??= []).push(item.row.token);
      }
      const [only] = outcome.items;
      // A single call that fails says so as a whole; a batch call does what it can.
      const code = action === 'tokenize' && only?.kind === 'refused' ? only.code : undefined;
      return entryOf(call, { action, decision, ...(Object.keys(tokens).length === 0 ? {} : { tokens }), ...(code === undefined && Object.keys(items).length > 0 ? { items } : {}), ...guessesIn(refused), ...(code === undefined ? {} : { code }) });
    }
    case 'refused':
      return entryOf(call, { action, decision, ...guessesIn(guesses), code: outcome.code });
    case 'again':
      return null;
  }
}

/** What the entry of a call says of its cards that were refused for guessing: how many, which tells this refusal from others of its code. */
export function guessesIn(guesses: number): { readonly detail?: { readonly guesses: number } } {
  return guesses === 0 ? {} : { detail: { guesses } };
}

/** What one item made or changed, for the outbox. */
export function eventsOf({ operation, outcome }: Work, slot: Slot): VaultEvent[] {
  if (outcome?.kind !== 'stored' || slot.outcome?.kind !== 'token' || slot.outcome.replayed === true) return [];
  const { call } = operation;
  const { row, created } = slot.outcome;
  return [...(created ? [{ type: 'token.created', call, row } as const] : []), ...(slot.updated ? [{ type: 'card.updated', call, row } as const] : [])];
}
