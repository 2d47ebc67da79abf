/**
 * Events for the rest of the platform, stored in the transaction that makes them true: whoever relays them later tells of nothing
 * that was rolled back and misses nothing that was committed.
 *
 * An event says what a token's own metadata says, and who caused it. Never a PAN, a cardholder's name or a fingerprint.
 */
import type { ClientBase } from 'pg';
import type { Call } from './call.ts';
import type { MadeIn, TokenRow } from './card-store.ts';
import { viewOf } from './token-view.ts';

/** `card.updated`: a known card got a newer expiry or cardholder. */
export type EventType = 'token.created' | 'card.updated' | 'token.suspended' | 'token.resumed' | 'token.deleted';

export interface VaultEvent {
  readonly type: EventType;
  readonly call: Call;
  readonly row: TokenRow;
}

/**
 * The events of a transaction as a JSON array in the order of the calls: `{type, subject (the token, or the card's id for `card.updated`), tenant, data}`, to which a
 * relay adds CloudEvents 1.0's `id` (writer, number and place in the array, unique for ever), `time` and `source`.
 *
 * Made before anything is sent: one that failed behind COMMIT's back would leave a batch committed without its events.
 */
export function renderEvents(events: readonly VaultEvent[], at: Date): string {
  return JSON.stringify(events.map((event) => render(event, at)));
}

/** One row for all events of a transaction, as `renderEvents` made them. */
export async function insertEvents(tx: ClientBase, made: MadeIn, events: string): Promise<void> {
  await tx.query({
    name: 'insert-outbox',
    text: 'INSERT INTO outbox (writer, number, made_at, events) VALUES ($1::bigint, $2::bigint, $3::timestamptz, $4::json)',
    values: [made.writer, made.batch, made.at, events],
  });
}

function render({ type, call, row }: VaultEvent, at: Date): object {
  const view = viewOf(row, at);
  return { type, subject: type === 'card.updated' ? view.card_id : view.token, tenant: call.caller?.tenant, data: { ...view, caller: call.caller?.spiffeId, request_id: call.requestId } };
}
