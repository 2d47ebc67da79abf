/**
 * The transaction's part of tokenize, for all calls of a group at once: every statement is one trip for all of their cards.
 * Never looks at sealed columns, which its role cannot read.
 */
import type { ClientBase } from 'pg';
import { countStanding, findByFingerprint, findReusable, findTokens, insertCards, updateCards } from './card-store.ts';
import type { CardUpdate, MadeIn, NewCard, TokenFormat, TokenRow } from './card-store.ts';
import { TransactionConflict } from './commit.ts';
import type { Settlement } from './commit.ts';
import { findVouching, lockCards } from './lifecycle-store.ts';
import type { Tenant } from './tenants.ts';
import { isDead, tokenMac } from './token-mac.ts';
import { insertIdempotencyKeys, insertTokens, updateTokenMetadata } from './token-store.ts';
import type { FurtherToken, UsedKey } from './token-store.ts';
import { rowIsGenuine } from './token-view.ts';
import { eventsOf, openSlots, tokenizeEntry } from './tokenize-operation.ts';
import type { Remedy, Slot, TokenizeItem, TokenizeOperation, TokenizeOutcome, Work } from './tokenize-operation.ts';
import { idempotencyWindowMs, keyOf, replay } from './tokenize-replay.ts';

/** "cofr" in ASCII; with a tenant's number the name of an advisory lock. */
const numericLock = 0x636f6672;

/**
 * Has one writer at a time make a tenant's numeric tokens, so that what is free stays free until the commit: no index could tell, as first
 * tokens and further ones are in two tables. To come before every other lock of the transaction, those of changes of tokens too: whoever waits
 * here must hold no card that the one before him may still want.
 */
export async function lockNumericTokens(tx: ClientBase, operations: readonly TokenizeOperation[]): Promise<void> {
  const tenants = new Set(operations.flatMap(({ tenant, items }) => (items.some(({ card }) => card.format === 'numeric') ? [tenant.id] : [])));
  for (const tenantId of [...tenants].sort((a, b) => a - b)) {
    await tx.query({ name: 'lock-numeric-tokens', text: 'SELECT pg_advisory_xact_lock($1::int, $2::int)', values: [numericLock, tenantId] });
  }
}

/**
 * Stores the cards of these calls. Their numeric tokens are locked: see `lockNumericTokens`.
 *
 * @throws TransactionConflict if another writer has just used one of the Idempotency-Keys, given a card a token of the same format, or
 *   destroyed one of the cards.
 */
export async function storeTokenize(tx: ClientBase, operations: readonly TokenizeOperation[], made: MadeIn): Promise<Settlement<TokenizeOutcome>[]> {
  const works = operations.map((operation): Work => {
    const work: Work = { operation, slots: [], earlier: new Map(), key: null, outcome: null };
    for (const item of operation.items) work.slots.push({ call: work, item, key: cardKey(item.card), outcome: null, updated: false });
    return work;
  });
  const since = new Date(made.at.getTime() - idempotencyWindowMs);

  // a. Keys that were used before are answered from what they made.
  await replay(tx, works, since);

  // b. Calls that cannot be stored as they are: known before anything of them is written.
  await findRemedies(tx, works);

  for (const work of works) if (work.outcome?.kind === 'again' && work.operation.isLastRound) work.outcome = { kind: 'refused', code: 'overloaded' };

  // c. Cards new to their tenant. Sorted, so that two writers lock the same fingerprints in the same order.
  // A twin within this transaction follows the first.
  const open = openSlots(works);
  const leaders = new Map<string, Slot>();
  for (const slot of open) {
    if (!leaders.has(slot.key)) leaders.set(slot.key, slot);
  }
  const rows = new Map<string, TokenRow>();
  if (leaders.size > 0) {
    const fresh = [...leaders.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, slot]) => slot);
    const cards = fresh.map(({ item }) => item.card);
    const inserted = await insertCards(tx, cards, made);
    // d. In the common case all are new, and nothing needs to be read back.
    if (inserted < fresh.length) {
      const standing = await findByFingerprint(tx, cards.map((card) => card.tenantId), cards.map((card) => card.fingerprint));
      for (const row of standing) rows.set(`${row.tenantId}:${row.fingerprint.toString('latin1')}`, row);
    } else {
      for (const { key, item } of fresh) rows.set(key, rowOfNew(item.card, made.at));
    }
  }

  // e. What each item comes to.
  const known = await knownTokens(tx, open, rows);
  const unproven = await findUnproven(tx, open, rows);
  const writes: Writes = { furtherTokens: [], updates: new Map(), metadata: [] };
  for (const slot of open) decide(slot, rows.get(slot.key), { leaders, known, unproven }, made.at, writes);

  // f. The rest of the rows.
  await write(tx, writes, made);
  const used: UsedKey[] = [];
  for (const work of works) {
    if (work.outcome !== null) continue;
    const items = work.slots.map((slot) => slot.outcome!);
    work.outcome = { kind: 'stored', items, earlier: work.earlier };
    // A key that cannot tell of every item is not kept: the call may be made again once its card's row is in order.
    if (work.operation.idempotency !== null && items.length > 0 && items.every(({ kind }) => kind === 'token')) used.push(keyOf(work.operation, work.operation.idempotency, items, work.key));
  }
  if (used.length > 0 && (await insertIdempotencyKeys(tx, used, made.at, since)) < used.length) throw new TransactionConflict('an Idempotency-Key was used meanwhile');

  return works.map((work) => ({ outcome: work.outcome!, entry: tokenizeEntry(work.operation, work.outcome!), events: work.slots.flatMap((slot) => eventsOf(work, slot)) }));
}

/**
 * Sends back, whole, the calls with an item that cannot be stored as it is: a name that was sealed for another card than the one that the
 * number belongs to, or a numeric token that is taken. Most groups have neither names nor numeric tokens and ask nothing here.
 */
async function findRemedies(tx: ClientBase, works: readonly Work[]): Promise<void> {
  const open = openSlots(works);
  const named = open.filter(({ item }) => item.card.sealedName !== null).map(({ item }) => item.card);
  const numeric = open.filter(({ item }) => item.card.format === 'numeric').map(({ item }) => item.card);
  if (named.length === 0 && numeric.length === 0) return;
  const cardIds = new Map<string, Buffer>();
  if (named.length > 0) {
    const standing = await findByFingerprint(tx, named.map((card) => card.tenantId), named.map((card) => card.fingerprint));
    for (const row of standing) cardIds.set(`${row.tenantId}:${row.fingerprint.toString('latin1')}`, row.cardId);
  }
  const taken = new Set<string>();
  if (numeric.length > 0) {
    for (const row of await findTokens(tx, numeric.map((card) => card.tenantId), numeric.map((card) => card.token))) taken.add(`${row.tenantId}:${row.token}`);
  }
  for (const work of works) {
    if (work.outcome !== null) continue;
    // What this call would add; kept only if it goes on.
    const ids = new Map<string, Buffer>();
    const tokens = new Set<string>();
    const remedies = work.slots.map(({ key, outcome, item: { card, nameSealedFor } }): Remedy | null => {
      if (outcome !== null) return null;
      const cardId = cardIds.get(key) ?? ids.get(key) ?? card.cardId;
      ids.set(key, cardId);
      const token = `${card.tenantId}:${card.token}`;
      if (card.format === 'numeric' && (taken.has(token) || tokens.has(token))) return { kind: 'new_token' };
      tokens.add(token);
      return card.sealedName !== null && !nameSealedFor.equals(cardId) ? { kind: 'seal_name', cardId } : null;
    });
    if (remedies.some((remedy) => remedy !== null)) {
      work.outcome = { kind: 'again', remedies };
      continue;
    }
    for (const [key, cardId] of ids) cardIds.set(key, cardId);
    for (const token of tokens) taken.add(token);
  }
}

/** The tokens that calls for known cards may be answered with, by card and format, where that is not the card's first token. */
async function knownTokens(tx: ClientBase, open: readonly Slot[], rows: ReadonlyMap<string, TokenRow>): Promise<Map<string, TokenRow>> {
  const wanted = new Map<string, { tenantId: number; cardToken: string; format: TokenFormat; key: string }>();
  for (const { key, item } of open) {
    const { card } = item;
    const row = rows.get(key);
    if (row === undefined || row.token === card.token || !isReusable(item) || servesAgain(row, card.format)) continue;
    wanted.set(formatKey(key, card.format), { tenantId: row.tenantId, cardToken: row.cardToken, format: card.format, key });
  }
  if (wanted.size === 0) return new Map();
  const found = new Map((await findReusable(tx, [...wanted.values()])).map((row) => [`${row.tenantId} ${row.cardToken} ${row.format}`, row]));
  const known = new Map<string, TokenRow>();
  for (const [id, { tenantId, cardToken, format }] of wanted) {
    const row = found.get(`${tenantId} ${cardToken} ${format}`);
    if (row !== undefined) known.set(id, row);
  }
  return known;
}

/**
 * Cards of which nothing says that this number's fingerprint is theirs: the MAC of a dead first token does not, so that one of another token
 * that is not marked as dead must. Every card that was not destroyed has one.
 *
 * @throws TransactionConflict if one was destroyed since its row was read.
 */
async function findUnproven(tx: ClientBase, open: readonly Slot[], rows: ReadonlyMap<string, TokenRow>): Promise<Set<string>> {
  const asked = new Map<string, { readonly row: TokenRow; readonly tenant: Tenant }>();
  for (const { call, key } of open) {
    const row = rows.get(key);
    if (row !== undefined && row.status !== null && isDead(row.status)) asked.set(key, { row, tenant: call.operation.tenant });
  }
  const unproven = new Set(asked.keys());
  if (asked.size === 0) return unproven;
  const tokens = Map.groupBy(await findVouching(tx, [...asked.values()].map(({ row }) => row)), (token) => `${token.tenantId}:${token.cardToken}`);
  for (const [key, { row, tenant }] of asked) {
    const ofCard = tokens.get(`${row.tenantId}:${row.cardToken}`) ?? [];
    if (ofCard.some((token) => token.fingerprint.length === 0)) throw new TransactionConflict('a card was destroyed meanwhile');
    if (ofCard.some((token) => token.status !== null && !isDead(token.status) && token.fingerprint.equals(row.fingerprint) && rowIsGenuine(tenant, token))) unproven.delete(key);
  }
  return unproven;
}

/** Whether a call asks for the card's token of a format, and not for one of its own. */
function isReusable({ reuse, card }: TokenizeItem): boolean {
  return reuse && card.expiresAt === null;
}

/** Whether the card's first token is the one to answer with. One with an end never is. */
function servesAgain(row: TokenRow, format: TokenFormat): boolean {
  return row.format === format && row.expiresAt === null && row.status !== null && !isDead(row.status);
}

interface Writes {
  readonly furtherTokens: FurtherToken[];
  readonly updates: Map<string, CardUpdate>;
  readonly metadata: { readonly tenantId: number; readonly token: string; readonly cardToken: string; readonly metadata: string }[];
}

interface Found {
  readonly leaders: ReadonlyMap<string, Slot>;
  readonly known: Map<string, TokenRow>;
  readonly unproven: ReadonlySet<string>;
}

function decide(slot: Slot, row: TokenRow | undefined, { leaders, known, unproven }: Found, at: Date, writes: Writes): void {
  const { item, key } = slot;
  const { tenant } = slot.call.operation;
  const { card } = item;
  if (row === undefined) throw new TransactionConflict('a card vanished between two statements');
  if (row.token === card.token && leaders.get(key) === slot) {
    slot.outcome = { kind: 'token', row: row.createdAt === at ? row : rowOfNew(card, at), created: true };
    return;
  }
  const standing = isReusable(item) ? (servesAgain(row, card.format) ? row : known.get(formatKey(key, card.format))) : undefined;
  // That a further token is the one to be answered with is not in its MAC; that it is dead or has an end is.
  if (!rowIsGenuine(tenant, row) || unproven.has(key) || (standing !== undefined && standing !== row && !(rowIsGenuine(tenant, standing) && servesAgain(standing, card.format)))) {
    slot.outcome = { kind: 'refused', code: 'internal' };
    return;
  }
  // The card was known, but not when its name's seal was checked: another writer has just made it.
  if (card.sealedName !== null && !item.nameSealedFor.equals(row.cardId)) throw new TransactionConflict('a card came to be between two statements');
  // A newer expiry or cardholder updates the card; the last of several in one transaction stands.
  const earlier = writes.updates.get(key);
  slot.updated = (card.expiry !== null && card.expiry !== (earlier?.expiry ?? row.expiry)) || card.sealedName !== null;
  if (slot.updated || earlier !== undefined) {
    writes.updates.set(key, { tenantId: row.tenantId, cardToken: row.cardToken, expiry: card.expiry ?? earlier?.expiry ?? null, sealedName: card.sealedName ?? earlier?.sealedName ?? null });
  }
  const current = writes.updates.get(key)?.expiry ?? row.expiry;
  if (standing !== undefined) {
    if (card.metadata !== null) writes.metadata.push({ tenantId: row.tenantId, token: standing.token, cardToken: standing.cardToken, metadata: card.metadata });
    slot.outcome = { kind: 'token', row: { ...standing, expiry: current, metadata: card.metadata ?? standing.metadata }, created: false };
    return;
  }
  const mac = tokenMac(tenant.keys.rowMacKey, { tenant: tenant.name, fingerprint: row.fingerprint, cardId: row.cardId, token: card.token, status: 'active', expiresAt: card.expiresAt, rowVersion: 1 });
  writes.furtherTokens.push({ tenantId: row.tenantId, token: card.token, cardToken: row.cardToken, format: card.format, expiresAt: card.expiresAt, reusable: isReusable(item), tokenMac: mac, metadata: card.metadata });
  const further: TokenRow = { ...row, token: card.token, expiry: current, format: card.format, status: 'active', rowVersion: 1, expiresAt: card.expiresAt, tokenMac: mac, metadata: card.metadata, createdAt: at };
  if (isReusable(item)) known.set(formatKey(key, card.format), further);
  slot.outcome = { kind: 'token', row: further, created: true };
}

async function write(tx: ClientBase, { furtherTokens, updates, metadata }: Writes, made: MadeIn): Promise<void> {
  // Each statement below locks its cards in the order of their keys. Where there are several, one for all cards goes before them, or else
  // two writers could wait for each other: what breaks such a circle is a second of waiting and a transaction in vain.
  if ([furtherTokens.length, updates.size, metadata.length].filter((count) => count > 0).length > 1) await lockCards(tx, [...furtherTokens, ...updates.values(), ...metadata]);
  if (furtherTokens.length > 0) {
    const sorted = furtherTokens.toSorted((a, b) => a.tenantId - b.tenantId || (a.cardToken < b.cardToken ? -1 : 1));
    if ((await insertTokens(tx, sorted, made)) < sorted.length) throw new TransactionConflict('a card got a token of the same format meanwhile');
    const cards = new Map(furtherTokens.map((token) => [`${token.tenantId}:${token.cardToken}`, token]));
    const standing = await countStanding(tx, [...cards.values()].map((token) => token.tenantId), [...cards.values()].map((token) => token.cardToken));
    if (standing < cards.size) throw new TransactionConflict('a card was destroyed meanwhile');
  }
  if (updates.size > 0 && (await updateCards(tx, [...updates.values()])) < updates.size) throw new TransactionConflict('a card was destroyed meanwhile');
  if (metadata.length > 0) {
    // The last of several stands.
    const last = new Map(metadata.map((update) => [`${update.tenantId}:${update.token}`, update]));
    const updated = [...last.values()];
    await updateTokenMetadata(tx, updated);
    const rows = await findTokens(tx, updated.map(({ tenantId }) => tenantId), updated.map(({ token }) => token));
    if (rows.some(({ status }) => status === null || isDead(status))) throw new TransactionConflict('a token was deleted meanwhile');
  }
}

function rowOfNew(card: NewCard, at: Date): TokenRow {
  return { ...card, cardToken: card.token, status: 'active', rowVersion: 1, createdAt: at };
}

function cardKey(card: NewCard): string {
  return `${card.tenantId}:${card.fingerprint.toString('latin1')}`;
}

function formatKey(key: string, format: TokenFormat): string {
  return `${format} ${key}`;
}
