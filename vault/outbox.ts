/**
 * Events for the rest of the platform, stored in the transaction that makes them true: whoever relays them later tells of nothing
 * that was rolled back and misses nothing that was committed.
 *
 * An event says what a token's own metadata says, and who caused it; or what a caller did or may not do any more. Never a PAN, a cardholder's name or a fingerprint.
 */
import type { ClientBase } from 'pg';
import type { Call } from './call.ts';
import type { MadeIn, TokenRow } from './card-store.ts';
import { viewOf } from './token-view.ts';

/** `card.updated`: a known card got a newer expiry or cardholder. */
export type EventType = 'token.created' | 'card.updated' | 'token.suspended' | 'token.resumed' | 'token.deleted';

export interface TokenEvent {
  readonly type: EventType;
  readonly call: Call;
  readonly row: TokenRow;
}

/** What concerns a caller: its subject is the caller, `data` our own words and numbers. */
export interface CallerEvent {
  readonly type: 'abuse.alert' | 'caller.suspended' | 'caller.resumed';
  readonly caller: string;
  readonly tenant: string;
  readonly data: Readonly<Record<string, string | number | boolean>>;
}

export type VaultEvent = TokenEvent | CallerEvent;

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

function render(event: VaultEvent, at: Date): object {
  if ('caller' in event) return { type: event.type, subject: event.caller, tenant: event.tenant, data: event.data };
  const { type, call, row } = event;
  const view = viewOf(row, at);
  return { type, subject: type === 'card.updated' ? view.card_id : view.token, tenant: call.caller?.tenant, data: { ...view, caller: call.caller?.spiffeId, request_id: call.requestId } };
}
