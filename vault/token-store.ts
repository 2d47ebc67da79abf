/** SQL of further tokens and of idempotency keys, one function a statement. Why it is worded as it is: vault/card-store.ts. */
import type { ClientBase } from 'pg';
import { boolArray, byteaArray, int2Array, int4Array, textArray, timestampArray } from './binary-arrays.ts';
import { formatCode } from './card-store.ts';
import type { MadeIn, TokenFormat } from './card-store.ts';

/** A token of a card that has one already. */
export interface FurtherToken {
  readonly tenantId: number;
  readonly token: string;
  readonly cardToken: string;
  readonly format: TokenFormat;
  readonly expiresAt: Date | null;
  /** Whether it is the card's token of its format, which later calls are answered with. */
  readonly reusable: boolean;
  readonly tokenMac: Buffer;
  readonly metadata: string | null;
}

/**
 * Stores further tokens. Holds their cards against destruction until the transaction ends (the foreign key does), but does not see
 * one that was destroyed before: see `countStanding`.
 *
 * @returns how many were stored: fewer than given means that another writer has just given one of the cards a reusable token of the
 *   same format, and the transaction must be rolled back and tried again, now seeing it.
 */
export async function insertTokens(tx: ClientBase, tokens: readonly FurtherToken[], made: MadeIn): Promise<number> {
  const result = await tx.query({
    name: 'insert-tokens',
    text: `INSERT INTO tokens (tenant_id, token, card_token, format, status, row_version, token_expires_at, reusable, token_mac, metadata, created_at, made_writer, made_batch)
           SELECT t.tenant_id, t.token, t.card_token, t.format, 0, 1, t.token_expires_at, t.reusable, t.token_mac, t.metadata::jsonb, $6::timestamptz, $7::bigint, $8::bigint
           FROM unnest($1::int[], $2::text[], $3::text[], $4::bytea[], $5::text[], $9::smallint[], $10::timestamptz[], $11::boolean[])
             AS t(tenant_id, token, card_token, token_mac, metadata, format, token_expires_at, reusable)
           ON CONFLICT (card_token, format, tenant_id) WHERE reusable DO NOTHING`,
    values: [
      int4Array(tokens.map((token) => token.tenantId)),
      textArray(tokens.map((token) => token.token)),
      textArray(tokens.map((token) => token.cardToken)),
      byteaArray(tokens.map((token) => token.tokenMac)),
      textArray(tokens.map((token) => token.metadata)),
      made.at,
      made.writer,
      made.batch,
      int2Array(tokens.map((token) => formatCode[token.format])),
      timestampArray(tokens.map((token) => token.expiresAt)),
      boolArray(tokens.map((token) => token.reusable)),
    ],
  });
  return result.rowCount ?? 0;
}

/** Gives tokens new metadata. */
export async function updateTokenMetadata(tx: ClientBase, tokens: readonly { readonly tenantId: number; readonly token: string; readonly metadata: string }[]): Promise<void> {
  const sorted = tokens.toSorted((a, b) => a.tenantId - b.tenantId || (a.token < b.token ? -1 : 1));
  const values = [int4Array(sorted.map((token) => token.tenantId)), textArray(sorted.map((token) => token.token)), textArray(sorted.map((token) => token.metadata))];
  for (const table of ['cards', 'tokens']) {
    await tx.query({
      name: `update-metadata-of-${table}`,
      text: `UPDATE ${table} SET metadata = u.metadata::jsonb FROM unnest($1::int[], $2::text[], $3::text[]) AS u(tenant_id, token, metadata)
             WHERE ${table}.tenant_id = ANY (ARRAY[u.tenant_id]) AND ${table}.token = u.token`,
      values,
    });
  }
}

/** One call's use of an Idempotency-Key. */
export interface IdempotencyRow {
  readonly tenantId: number;
  /** SHA-256 over caller, path and key; 32 bytes. */
  readonly keyHash: Buffer;
  /** HMAC-SHA-256 of the canonical request, each PAN replaced by its fingerprint; 32 bytes. */
  readonly requestMac: Buffer;
  /** The tokens of the call, in the order of its cards, and of each whether the call made it; '' for a card that was refused for guessing. */
  readonly tokens: readonly string[];
  readonly created: readonly boolean[];
}

/** To be recorded, in place of what the key told before: null for one that told nothing. */
export interface UsedKey extends IdempotencyRow {
  readonly replaces: IdempotencyRow | null;
}

/** Keys used since `since`; older ones count as never used, whether or not they were swept. */
export async function findIdempotencyKeys(tx: ClientBase, tenantIds: readonly number[], keyHashes: readonly Buffer[], since: Date): Promise<IdempotencyRow[]> {
  const { rows } = await tx.query<{ tenant_id: number; key_hash: Buffer; request_mac: Buffer; tokens: string; created_tokens: string }>({
    name: 'find-idempotency-keys',
    text: `SELECT k.tenant_id, k.key_hash, k.request_mac, k.tokens, k.created_tokens
           FROM unnest($1::int[], $2::bytea[]) AS q(tenant_id, key_hash)
           JOIN idempotency_keys k ON k.tenant_id = ANY (ARRAY[q.tenant_id]) AND k.key_hash = q.key_hash
           WHERE k.created_at > $3::timestamptz`,
    values: [int4Array(tenantIds), byteaArray(keyHashes), since],
  });
  return rows.map((row) => ({ tenantId: row.tenant_id, keyHash: row.key_hash, requestMac: row.request_mac, tokens: row.tokens.split(','), created: Array.from(row.created_tokens, (made) => made === '1') }));
}

/**
 * Records keys of this transaction's calls. Keys that ran out before `since` are taken over, and those that are replaced, if they still tell that. Sorted, so that two writers lock the
 * same keys in the same order.
 *
 * @returns how many were recorded: fewer than given means that another writer has just used one of them, and the transaction
 *   must be rolled back and tried again, now seeing it.
 */
export async function insertIdempotencyKeys(tx: ClientBase, used: readonly UsedKey[], at: Date, since: Date): Promise<number> {
  const keys = used.toSorted((a, b) => a.tenantId - b.tenantId || Buffer.compare(a.keyHash, b.keyHash));
  await tx.query({
    name: 'expire-idempotency-keys',
    text: `DELETE FROM idempotency_keys k USING unnest($1::int[], $2::bytea[], $4::text[]) AS q(tenant_id, key_hash, tokens)
           WHERE k.tenant_id = ANY (ARRAY[q.tenant_id]) AND k.key_hash = q.key_hash AND (k.created_at <= $3::timestamptz OR k.tokens = q.tokens)`,
    values: [int4Array(keys.map((key) => key.tenantId)), byteaArray(keys.map((key) => key.keyHash)), since, textArray(keys.map((key) => key.replaces?.tokens.join(',') ?? null))],
  });
  const result = await tx.query({
    name: 'insert-idempotency-keys',
    text: `INSERT INTO idempotency_keys (tenant_id, key_hash, request_mac, tokens, created_tokens, created_at)
           SELECT k.tenant_id, k.key_hash, k.request_mac, k.tokens, k.created_tokens, $6::timestamptz
           FROM unnest($1::int[], $2::bytea[], $3::bytea[], $4::text[], $5::text[]) AS k(tenant_id, key_hash, request_mac, tokens, created_tokens)
           ON CONFLICT (tenant_id, key_hash) DO NOTHING`,
    values: [
      int4Array(keys.map((key) => key.tenantId)),
      byteaArray(keys.map((key) => key.keyHash)),
      byteaArray(keys.map((key) => key.requestMac)),
      textArray(keys.map((key) => key.tokens.join(','))),
      textArray(keys.map((key) => key.created.map((made) => (made ? '1' : '0')).join(''))),
      at,
    ],
  });
  return result.rowCount ?? 0;
}

/** Keys that one statement removes. */
const keysASweep = 10_000;

/** Removes all keys that ran out before `before`, some at a time: callers that use one for each call leave thousands in a second. @returns how many went. */
export async function sweepIdempotencyKeys(client: ClientBase, before: Date, atOnce: number = keysASweep): Promise<number> {
  let removed = 0;
  for (let last = atOnce; last >= atOnce; removed += last) {
    // By their places: there is no index on the age of each, and a join would go through all of them once for each round.
    const result = await client.query({
      text: 'DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(SELECT ctid FROM idempotency_keys WHERE created_at <= $1::timestamptz LIMIT $2::int)) AND created_at <= $1::timestamptz',
      values: [before, atOnce],
    });
    last = result.rowCount ?? 0;
  }
  return removed;
}
