/** Calls that come again under their Idempotency-Key: answered from what the first one made, without storing anything anew. */
import { timingSafeEqual } from 'node:crypto';
import type { ClientBase } from 'pg';
import { findTokens } from './card-store.ts';
import { findIdempotencyKeys } from './token-store.ts';
import type { IdempotencyRow, UsedKey } from './token-store.ts';
import { rowIsGenuine } from './token-view.ts';
import type { IdempotentRequest, ItemOutcome, TokenizeOperation, Work } from './tokenize-operation.ts';

/** How long an Idempotency-Key is kept. */
export const idempotencyWindowMs = 24 * 60 * 60 * 1000;

/** What a key tells after its call: of each card what this call made of it or, where an earlier one has, what that did. */
export function keyOf({ tenant }: TokenizeOperation, { keyHash, requestMac, fingerprints, places }: IdempotentRequest, items: readonly ItemOutcome[], before: IdempotencyRow | null): UsedKey {
  const tokens = fingerprints.map((_, place) => before?.tokens[place] ?? '');
  const created = fingerprints.map((_, place) => before?.created[place] ?? false);
  for (const [index, item] of items.entries()) {
    if (item.kind !== 'token' || item.replayed === true) continue;
    tokens[places[index]!] = item.row.token;
    created[places[index]!] = item.created;
  }
  return { tenantId: tenant.id, keyHash, requestMac, tokens, created, replaces: before };
}

/** Answers the calls whose key tells of all their cards, and sends back twins that must wait for each other. `since`: keys from before are forgotten. */
export async function replay(tx: ClientBase, works: readonly Work[], since: Date): Promise<void> {
  const keyed = works.filter(({ operation }) => (operation.idempotency?.fingerprints.length ?? 0) > 0);
  if (keyed.length === 0) return;
  // Of twins that use one key for the first time, or go on with it, one does: one that was sent back before, or else each round another of them
  // would be sent back for the same reason.
  const first = new Map<string, Work>();
  for (const work of keyed) {
    const id = idempotencyId(work.operation);
    const earlier = first.get(id);
    if (earlier === undefined || (!wasRemedied(earlier.operation) && wasRemedied(work.operation))) first.set(id, work);
  }
  const asked = [...first.values()].map(({ operation }) => operation);
  const found = await findIdempotencyKeys(tx, asked.map(({ tenant }) => tenant.id), asked.map(({ idempotency }) => idempotency!.keyHash), since);
  const keys = new Map(found.map((key) => [`${key.tenantId}:${key.keyHash.toString('latin1')}`, key]));
  const named = found.flatMap((key) => key.tokens.filter((token) => token !== '').map((token) => ({ tenantId: key.tenantId, token })));
  const rows = new Map(named.length === 0 ? [] : (await findTokens(tx, named.map(({ tenantId }) => tenantId), named.map(({ token }) => token))).map((row) => [`${row.tenantId}:${row.token}`, row]));
  for (const work of keyed) {
    const { tenant, idempotency, items } = work.operation;
    const { requestMac, fingerprints, places } = idempotency!;
    const id = idempotencyId(work.operation);
    const key = keys.get(id);
    if (key === undefined) {
      if (first.get(id) !== work) work.outcome = { kind: 'again', remedies: items.map(() => null) };
      continue;
    }
    if (key.requestMac.length !== requestMac.length || !timingSafeEqual(key.requestMac, requestMac) || key.tokens.length !== fingerprints.length) {
      work.outcome = { kind: 'refused', code: 'idempotency_conflict' };
      continue;
    }
    const slotAt = new Map(work.slots.map((slot, index) => [places[index]!, slot]));
    for (const [place, token] of key.tokens.entries()) {
      // A card that was refused then: it is stored now, unless it is refused again.
      if (token === '') continue;
      const row = rows.get(`${tenant.id}:${token}`);
      // A card that was destroyed has no fingerprint to compare.
      const genuine = row !== undefined && rowIsGenuine(tenant, row) && (row.fingerprint.length === 0 || row.fingerprint.equals(fingerprints[place]!));
      const outcome: ItemOutcome = genuine ? { kind: 'token', row, created: key.created[place] === true, replayed: true } : { kind: 'refused', code: 'internal' };
      const slot = slotAt.get(place);
      if (slot === undefined) work.earlier.set(place, outcome);
      else slot.outcome = outcome;
    }
    if (work.slots.some(({ outcome }) => outcome === null)) {
      if (first.get(id) === work) work.key = key;
      else work.outcome = { kind: 'again', remedies: items.map(() => null) };
    } else work.outcome = { kind: 'stored', items: work.slots.map(({ outcome }) => outcome!), earlier: work.earlier };
  }
}

function idempotencyId({ tenant, idempotency }: TokenizeOperation): string {
  return `${tenant.id}:${idempotency!.keyHash.toString('latin1')}`;
}

/** Whether the call comes from an earlier round with what it needed then. */
function wasRemedied({ items }: TokenizeOperation): boolean {
  return items.some(({ card, nameSealedFor }) => nameSealedFor !== card.cardId);
}
