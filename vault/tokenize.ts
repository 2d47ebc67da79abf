/**
 * Tokenize: card numbers in, tokens out. The numbers are those of docs/MONEY-PATH.md; steps 1 and 2 are the server's
 * (vault/server.ts): by the time a call arrives here, its caller is known and the digits stand in Pans and nowhere else.
 */
import { createHash, createHmac } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { HsmError } from '../hsm/errors.ts';
import type { Call } from './call.ts';
import type { TokenFormat } from './card-store.ts';
import type { Committed } from './commit.ts';
import { VaultError, codeOfHsm } from './errors.ts';
import type { ErrorCode } from './errors.ts';
import type { Guessing } from './guessing.ts';
import type { Lane } from './lane.ts';
import { MIN_NUMERIC_DIGITS, makeNumericToken } from './numeric-token.ts';
import type { Pan } from './pan.ts';
import type { Decision, Policy } from './policy.ts';
import type { Tenant, Tenants } from './tenants.ts';
import { tokenMac } from './token-mac.ts';
import { guessesIn } from './tokenize-operation.ts';
import type { IdempotentRequest, ItemOutcome, Remedy, TokenizeItem, TokenizeOperation, TokenizeOutcome } from './tokenize-operation.ts';
import { makeToken } from './token.ts';
import type { RandomBytes } from './token.ts';
import { expiryNumber, viewOf } from './token-view.ts';
import type { TokenView } from './token-view.ts';

/** A request that the schema has passed; the card number is apart, in the Pan. */
export interface TokenizeInput {
  readonly expiry?: string;
  readonly cardholder?: string;
  readonly format?: TokenFormat;
  readonly reuse?: boolean;
  readonly ttl_seconds?: number;
  readonly metadata?: Readonly<Record<string, string | number | boolean>>;
}

/** Told how long the work with keys took, in ms, the HSM's part included. Must not throw. */
export interface StageObserver {
  keyWork(stage: 'seal' | 'open' | 'seal_batch' | 'open_batch', ms: number): void;
}

export type TokenizeAnswer = TokenView & { readonly created: boolean };

export interface TokenizeDeps {
  readonly policy: Policy;
  readonly tenants: Tenants;
  readonly random: RandomBytes;
  readonly now: () => Date;
  readonly stages: StageObserver;
  readonly guessing: Pick<Guessing, 'ask' | 'secondsToNextDay'>;
  /** Digits of a card number's head that are kept in the clear: six, or up to eight for 16 digits and more (PCI SSC FAQ 1091). */
  readonly binDigits: number;
  /** Where the cards of batches are sealed: one batch at a time, so that single calls have every other turn; tenants take turns. */
  readonly batchLane: Lane;
  /** Commits through a writer whose role may tokenize. */
  commit(operation: TokenizeOperation): Promise<Committed<TokenizeOutcome>>;
  /** Told of each numeric token that is drawn, and of one that was taken already. Must not throw. */
  readonly numericSpace: { drawn(): void; taken(): void };
}

/** One card of a call that may go on: its digits, borrowed, and what was said of it. */
interface Given {
  readonly pan: Pan;
  readonly input: TokenizeInput;
}

/** A card that the caller's cap on guessing refuses, by its fingerprint. */
interface Guess {
  readonly guess: Buffer;
  /** Whether nothing may tell it from another card of its group any more. */
  readonly closed: boolean;
}

/** What a sealed name can hold, in bytes of UTF-8 (hsm/card-cipher.ts). */
const maxCardholderBytes = 255;
/** Cards that are sealed before other requests have their turn: about a millisecond's work. */
const cardsATurn = 64;
/** Rounds of a call through the transaction. Each but the first follows one that wrote nothing; the last has an entry in any case. */
const maxRounds = 8;

/**
 * Answers once the card, its token and the entry of this call are durably committed. `pan` is borrowed.
 *
 * @throws VaultError `not_authorized`, `invalid_pan` (pan null), `invalid_request`, `quota_exceeded`, `idempotency_conflict`, `hsm_unavailable`, and what `commit` throws.
 */
export async function tokenize(deps: TokenizeDeps, call: Call, pan: Pan | null, input: TokenizeInput, idempotencyKey: string | null): Promise<TokenizeAnswer> {
  // 3. Authorize, before anything about the card number is answered.
  const { decision, tenant } = authorize(deps, call, 'tokenize');
  const fault = faultOf(pan, input, idempotencyKey);
  if (pan === null || fault !== null) throw new VaultError(fault ?? 'invalid_pan', { facts: { decision } });

  // 4. Fingerprint and seal, before any database work: the HSM never holds up a connection or a lock. In between a caller that guesses is told from one that does not.
  // A crash here leaves nothing behind.
  const since = performance.now();
  const [item] = await sealCards(deps, call, tenant, [{ pan, input }]);
  deps.stages.keyWork('seal', performance.now() - since);
  if (item === undefined || 'guess' in item) throw tooManyGuesses(deps, decision, 1);
  const items = [item];

  // 5. Commit, together with whoever waits at the same moment.
  const idempotency = idempotencyKey === null ? null : idempotencyOf('/v1/tokenize', tenant, call, items, [input], idempotencyKey);
  const { items: [outcome] } = await store(deps, { kind: 'tokenize', action: 'tokenize', call, decision, tenant, items, refusedItems: {}, guesses: 0, idempotency, isLastRound: false }, [input]);
  if (outcome?.kind !== 'token') throw recorded(new VaultError('internal'));
  // 6. Only now is it answered.
  return answerOf(outcome, deps.now());
}

/**
 * As `tokenize`, for up to 1,000 cards in one call, one transaction and one entry. Answers item by item, in order: an item that is refused
 * is refused alone. `pans` are borrowed; null where there was no card number, and a code where the item was refused already.
 *
 * @throws VaultError as `tokenize`, for what concerns the whole call.
 */
export async function tokenizeBatch(deps: TokenizeDeps, call: Call, given: readonly ({ readonly pan: Pan | null; readonly input: TokenizeInput } | ErrorCode)[], idempotencyKey: string | null): Promise<(TokenizeAnswer | ErrorCode)[]> {
  const { decision, tenant } = authorize(deps, call, 'tokenize_batch');
  const answers: (TokenizeAnswer | ErrorCode)[] = [];
  const good: Given[] = [];
  const places: number[] = [];
  const refusedItems: Record<string, number> = {};
  for (const [index, item] of given.entries()) {
    const fault = typeof item === 'string' ? item : faultOf(item.pan, item.input, idempotencyKey);
    if (fault !== null || typeof item === 'string' || item.pan === null) {
      const code = fault ?? 'invalid_pan';
      answers[index] = code;
      refusedItems[code] = (refusedItems[code] ?? 0) + 1;
    } else {
      good.push({ pan: item.pan, input: item.input });
      places.push(index);
    }
  }
  const since = performance.now();
  const sealed = await deps.batchLane.run(tenant.name, () => sealCards(deps, call, tenant, good));
  deps.stages.keyWork('seal_batch', performance.now() - since);
  const items: TokenizeItem[] = [];
  const inputs: TokenizeInput[] = [];
  const stored: number[] = [];
  for (const [at, item] of sealed.entries()) {
    if ('guess' in item) {
      answers[places[at]!] = 'quota_exceeded';
      continue;
    }
    items.push(item);
    inputs.push(good[at]!.input);
    stored.push(places[at]!);
  }
  const guesses = sealed.length - items.length;
  // Whether the key is of this request would tell whether the cards are those that it was used for.
  if (idempotencyKey !== null && sealed.some((item) => 'guess' in item && item.closed)) throw tooManyGuesses(deps, decision, guesses);
  const idempotency = idempotencyKey === null ? null : idempotencyOf('/v1/tokenize/batch', tenant, call, sealed, good.map(({ input }) => input), idempotencyKey);
  const { items: outcomes, earlier } = await store(deps, { kind: 'tokenize', action: 'tokenize_batch', call, decision, tenant, items, refusedItems, guesses, idempotency, isLastRound: false }, inputs);
  const now = deps.now();
  for (const [at, outcome] of outcomes.entries()) answers[stored[at]!] = outcome.kind === 'token' ? answerOf(outcome, now) : outcome.code;
  for (const [at, outcome] of earlier) answers[places[at]!] = outcome.kind === 'token' ? answerOf(outcome, now) : outcome.code;
  return answers;
}

function authorize(deps: TokenizeDeps, call: Call, action: 'tokenize' | 'tokenize_batch'): { decision: Decision; tenant: Tenant } {
  const { caller } = call;
  if (caller === null) throw new VaultError('not_authorized');
  const decision = deps.policy.decide(caller, action, null);
  if (!decision.allowed) throw new VaultError('not_authorized', { facts: { decision } });
  return { decision, tenant: deps.tenants.get(caller.tenant) };
}

function tooManyGuesses(deps: TokenizeDeps, decision: Decision, guesses: number): VaultError {
  return new VaultError('quota_exceeded', { retryAfterSeconds: deps.guessing.secondsToNextDay(), facts: { decision, ...guessesIn(guesses) } });
}

/** Why an item cannot be taken; null if it can. */
function faultOf(pan: Pan | null, input: TokenizeInput, idempotencyKey: string | null): 'invalid_pan' | 'invalid_request' | null {
  if (pan === null) return 'invalid_pan';
  if (input.reuse === false && idempotencyKey === null) return 'invalid_request';
  // The schema counts characters; what is sealed counts bytes.
  if (input.cardholder !== undefined && Buffer.byteLength(input.cardholder, 'utf8') > maxCardholderBytes) return 'invalid_request';
  if (input.format === 'numeric' && pan.length < MIN_NUMERIC_DIGITS) return 'invalid_request';
  return null;
}

/** The cards, ready to be stored but for those that the caller's cap on guessing refuses. */
async function sealCards(deps: TokenizeDeps, call: Call, tenant: Tenant, cards: readonly Given[]): Promise<(TokenizeItem | Guess)[]> {
  const items: (TokenizeItem | Guess)[] = [];
  const caller = call.caller!;
  // Asked for each call, as the policies may change.
  const exempt = deps.policy.decide(caller, 'import', null).allowed;
  const ask = (pan: Pan, fingerprint: Buffer): ReturnType<Guessing['ask']> => deps.guessing.ask(tenant, caller.spiffeId, pan.group, fingerprint, exempt);
  for (let from = 0; from < cards.length; from += cardsATurn) {
    if (from > 0) await nextTurn();
    await guarded(async () => {
      const sealed = cards.slice(from, from + cardsATurn).map((card) => quiet(sealCard(deps, tenant, card, ask)));
      // In direct custody each card is a trip to the HSM or two, made side by side. With keys in memory there is nothing to wait for, and to wait
      // all the same would cost a batch a tenth.
      for (const item of sealed) items.push(item instanceof Promise ? await item : item);
    });
  }
  return items;
}

function sealCard(deps: TokenizeDeps, tenant: Tenant, card: Given, ask: (pan: Pan, fingerprint: Buffer) => ReturnType<Guessing['ask']>): TokenizeItem | Guess | Promise<TokenizeItem | Guess> {
  const { keys } = tenant;
  const { pan, input } = card;
  // Copied out of the pool: a system call for each card would cost a thirtieth of a tokenize.
  const cardId = Buffer.from(deps.random(16));
  const binding = { tenant: tenant.name, cardId };
  const seal = (fingerprint: Buffer): TokenizeItem | Guess | Promise<TokenizeItem> => {
    // Known cards count as well: a guess that hits is one.
    const standing = ask(pan, fingerprint);
    if (standing !== 'granted') return { guess: fingerprint, closed: standing === 'closed' };
    const sealedPan = keys.cipher.seal('pan', pan.reveal(), binding);
    const sealedName = input.cardholder === undefined ? null : keys.cipher.seal('name', Buffer.from(input.cardholder, 'utf8'), binding);
    if (!(sealedPan instanceof Promise) && !(sealedName instanceof Promise)) return itemOf(deps, tenant, card, { cardId, fingerprint, sealedPan, sealedName });
    return Promise.all([sealedPan, sealedName]).then(([panBytes, nameBytes]) => itemOf(deps, tenant, card, { cardId, fingerprint, sealedPan: panBytes, sealedName: nameBytes }));
  };
  const fingerprint = keys.fingerprint.compute(tenant.name, pan.reveal());
  return fingerprint instanceof Promise ? fingerprint.then(seal) : seal(fingerprint);
}

interface SealedCard {
  readonly cardId: Buffer;
  readonly fingerprint: Buffer;
  readonly sealedPan: Buffer;
  readonly sealedName: Buffer | null;
}

function itemOf(deps: TokenizeDeps, tenant: Tenant, { pan, input }: Given, { cardId, fingerprint, sealedPan, sealedName }: SealedCard): TokenizeItem {
  const { keys } = tenant;
  const now = deps.now();
  const format = input.format ?? 'opaque';
  const token = format === 'opaque' ? makeToken(now, deps.random) : drawNumericToken(deps, pan.length, pan.last4);
  const expiresAt = input.ttl_seconds === undefined ? null : new Date(now.getTime() + input.ttl_seconds * 1000);
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
      bin: pan.head(deps.binDigits),
      last4: pan.last4,
      panLength: pan.length,
      format,
      expiresAt,
      tokenMac: tokenMac(keys.rowMacKey, { tenant: tenant.name, fingerprint, cardId, token, status: 'active', expiresAt, rowVersion: 1 }),
      metadata: input.metadata === undefined ? null : JSON.stringify(input.metadata),
    },
    reuse: input.reuse ?? true,
    nameSealedFor: cardId,
  };
}

function drawNumericToken(deps: TokenizeDeps, length: number, last4: string): string {
  deps.numericSpace.drawn();
  return makeNumericToken(length, last4, deps.random);
}

/** Keeps a rejection that is awaited later from counting as unhandled in the meantime. */
function quiet<T>(item: T | Promise<T>): T | Promise<T> {
  if (item instanceof Promise) item.catch(() => undefined);
  return item;
}

/** HSM trouble becomes a code that the caller can act on. */
async function guarded<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof HsmError) throw new VaultError(codeOfHsm(error), { cause: error });
    throw error;
  }
}

/**
 * Commits the call, as often as its items need something first that only the transaction could tell: a cardholder's name for a card that is known,
 * another numeric token. Such a round writes nothing. Outcomes in the order of the items.
 */
async function store(deps: TokenizeDeps, first: TokenizeOperation, inputs: readonly TokenizeInput[]): Promise<Extract<TokenizeOutcome, { kind: 'stored' }>> {
  let operation = first;
  for (let round = 1; round <= maxRounds; round += 1) {
    const { outcome } = await deps.commit({ ...operation, isLastRound: round === maxRounds });
    if (outcome.kind === 'stored') return outcome;
    if (outcome.kind === 'refused') throw recorded(new VaultError(outcome.code));
    const { tenant } = operation;
    const items: TokenizeItem[] = [];
    for (const [index, item] of operation.items.entries()) {
      const remedy = outcome.remedies[index] ?? null;
      items.push(remedy === null ? item : await remedied(deps, tenant, item, inputs[index]!, remedy));
    }
    operation = { ...operation, items };
  }
  throw new Error('a last round was sent back');
}

async function remedied(deps: TokenizeDeps, tenant: Tenant, item: TokenizeItem, input: TokenizeInput, remedy: Remedy): Promise<TokenizeItem> {
  const { card } = item;
  if (remedy.kind === 'seal_name') {
    const sealedName = await guarded(async () => await tenant.keys.cipher.seal('name', Buffer.from(input.cardholder ?? '', 'utf8'), { tenant: tenant.name, cardId: remedy.cardId }));
    return { ...item, card: { ...card, sealedName }, nameSealedFor: remedy.cardId };
  }
  deps.numericSpace.taken();
  const token = drawNumericToken(deps, card.panLength, card.last4);
  const mac = tokenMac(tenant.keys.rowMacKey, { tenant: tenant.name, fingerprint: card.fingerprint, cardId: card.cardId, token, status: 'active', expiresAt: card.expiresAt, rowVersion: 1 });
  return { ...item, card: { ...card, token, tokenMac: mac } };
}

/** `cards` and `inputs` are all of the request but what is refused whenever it comes, in their order. */
function idempotencyOf(path: string, tenant: Tenant, call: Call, cards: readonly (TokenizeItem | Guess)[], inputs: readonly TokenizeInput[], key: string): IdempotentRequest {
  const fingerprints = cards.map((card) => ('guess' in card ? card.guess : card.card.fingerprint));
  const places = cards.flatMap((card, place) => ('guess' in card ? [] : [place]));
  const keyHash = createHash('sha256').update(`${call.caller?.spiffeId ?? ''}\0${path}\0${key}`, 'utf8').digest();
  const mac = createHmac('sha256', tenant.keys.rowMacKey).update('cofre/idempotent-request/v1\0', 'latin1');
  for (const [index, input] of inputs.entries()) {
    const metadata = input.metadata === undefined ? null : Object.entries(input.metadata).sort(([a], [b]) => (a < b ? -1 : 1));
    const canonical = JSON.stringify([input.expiry ?? null, input.cardholder ?? null, input.format ?? 'opaque', input.reuse ?? true, input.ttl_seconds ?? null, metadata]);
    // JSON has no raw line feed, so items cannot be shifted against each other.
    mac.update(fingerprints[index]!).update(`${canonical}\n`, 'utf8');
  }
  return { keyHash, requestMac: mac.digest(), fingerprints, places };
}

function answerOf({ row, created }: Extract<ItemOutcome, { kind: 'token' }>, now: Date): TokenizeAnswer {
  return { ...viewOf(row, now), created };
}

function recorded(error: VaultError): VaultError {
  error.recorded = true;
  return error;
}
