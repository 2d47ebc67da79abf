/**
 * SQL of the cards table, one function a statement. Every function takes the transaction first.
 *
 * A writer's statements are planned once, mostly while the tables are empty, and the plan must be right when they are not
 * (docs/decisions/0051). The planner's own judgement is no help there: every index that begins with the tenant looks the same to it,
 * and so does every order of a join. So nothing is left to it but the one good plan:
 *
 * - The sessions have every other kind of scan and join off (vault/writer-session.ts).
 * - By token, the primary key is the only index that can serve. By fingerprint, or by the card of a token, `tenant_id + 0` keeps the
 *   primary key out. What else is said of a fingerprint must not imply that there is one, or its index could serve as well.
 * - `= ANY (ARRAY[x])` is `= x` to the index, but gives the planner no order to merge by, for which it would go through all of an index
 *   and then through what is asked for, for each row. Where that is not enough, LATERAL with OFFSET 0 says which side comes first.
 */
import type { ClientBase } from 'pg';
import { byteaArray, int2Array, int4Array, textArray, timestampArray } from './binary-arrays.ts';
import { statusOf } from './token-mac.ts';
import type { TokenStatus } from './token-mac.ts';

export type TokenFormat = 'opaque' | 'numeric';

export const formatCode: Readonly<Record<TokenFormat, number>> = { opaque: 0, numeric: 1 };

/** A card about to be stored, with its first token. Buffers are borrowed until the statement is sent. */
export interface NewCard {
  readonly tenantId: number;
  readonly token: string;
  readonly fingerprint: Buffer;
  readonly fingerprintVersion: number;
  readonly cardId: Buffer;
  readonly sealedPan: Buffer;
  readonly sealedName: Buffer | null;
  /** YYYYMM. */
  readonly expiry: number | null;
  readonly brand: string;
  readonly bin: string | null;
  readonly last4: string;
  readonly panLength: number;
  readonly format: TokenFormat;
  readonly expiresAt: Date | null;
  readonly tokenMac: Buffer;
  /** JSON text. */
  readonly metadata: string | null;
}

/** A token with what may be shown of its card. */
export interface TokenRow {
  readonly tenantId: number;
  readonly token: string;
  /** The card's first token, its internal key. */
  readonly cardToken: string;
  /** 32 bytes; none of a card that was destroyed. */
  readonly fingerprint: Buffer;
  readonly cardId: Buffer;
  readonly expiry: number | null;
  readonly brand: string;
  readonly bin: string | null;
  readonly last4: string;
  readonly panLength: number;
  readonly format: TokenFormat;
  readonly status: TokenStatus | null;
  readonly rowVersion: number;
  readonly expiresAt: Date | null;
  readonly tokenMac: Buffer;
  /** JSON text. */
  readonly metadata: string | null;
  readonly createdAt: Date;
}

/** A token with its sealed card: only the detokenizing role can read these. */
export interface SealedRow extends TokenRow {
  readonly sealedPan: Buffer;
  readonly sealedName: Buffer | null;
}

/** Which batch's entry tells of what is stored. */
export interface MadeIn {
  readonly at: Date;
  readonly writer: bigint;
  readonly batch: bigint;
}

/**
 * Stores cards whose fingerprint is new to their tenant; the others are left as they are.
 *
 * @returns how many were stored. Less than given: `findByFingerprint` tells which.
 */
export async function insertCards(tx: ClientBase, cards: readonly NewCard[], made: MadeIn): Promise<number> {
  const result = await tx.query({
    name: 'insert-cards',
    text: `INSERT INTO cards (tenant_id, token, fingerprint, fingerprint_version, card_id, sealed_pan, sealed_name, expiry, brand, bin, last4,
                              pan_length, format, status, row_version, token_expires_at, token_mac, metadata, created_at, made_writer, made_batch)
           SELECT c.tenant_id, c.token, c.fingerprint, c.fingerprint_version, c.card_id, c.sealed_pan, c.sealed_name, c.expiry, c.brand, c.bin,
                  c.last4, c.pan_length, c.format, 0, 1, c.token_expires_at, c.token_mac, c.metadata::jsonb, $14::timestamptz, $15::bigint, $16::bigint
           FROM unnest($1::int[], $2::text[], $3::bytea[], $4::smallint[], $5::bytea[], $6::bytea[], $7::bytea[], $8::int[], $9::text[],
                       $10::text[], $11::text[], $12::smallint[], $13::bytea[], $17::text[], $18::smallint[], $19::timestamptz[])
             AS c(tenant_id, token, fingerprint, fingerprint_version, card_id, sealed_pan, sealed_name, expiry, brand, bin, last4, pan_length, token_mac, metadata, format, token_expires_at)
           ON CONFLICT (fingerprint, tenant_id) WHERE fingerprint IS NOT NULL DO NOTHING`,
    values: [
      int4Array(cards.map((card) => card.tenantId)),
      textArray(cards.map((card) => card.token)),
      byteaArray(cards.map((card) => card.fingerprint)),
      int2Array(cards.map((card) => card.fingerprintVersion)),
      byteaArray(cards.map((card) => card.cardId)),
      byteaArray(cards.map((card) => card.sealedPan)),
      byteaArray(cards.map((card) => card.sealedName)),
      int4Array(cards.map((card) => card.expiry)),
      textArray(cards.map((card) => card.brand)),
      textArray(cards.map((card) => card.bin)),
      textArray(cards.map((card) => card.last4)),
      int2Array(cards.map((card) => card.panLength)),
      byteaArray(cards.map((card) => card.tokenMac)),
      made.at,
      made.writer,
      made.batch,
      textArray(cards.map((card) => card.metadata)),
      int2Array(cards.map((card) => formatCode[card.format])),
      timestampArray(cards.map((card) => card.expiresAt)),
    ],
  });
  return result.rowCount ?? 0;
}

const cardColumns = 'c.tenant_id, c.token, c.token AS card_token, c.fingerprint, c.card_id, c.expiry, c.brand, c.bin, c.last4, c.pan_length, c.format, c.status, c.row_version, c.token_expires_at, c.token_mac, c.metadata::text AS metadata, c.created_at';
const furtherTokenColumns = 't.tenant_id, t.token, t.card_token, c.fingerprint, c.card_id, c.expiry, c.brand, c.bin, c.last4, c.pan_length, t.format, t.status, t.row_version, t.token_expires_at, t.token_mac, t.metadata::text, t.created_at';

/** How statements elsewhere name the columns of a `TokenRow`: of a card `c` and its first token, or of a further token `t` of a card `c`. */
export const tokenColumns = { first: cardColumns, further: furtherTokenColumns } as const;

/** Runs a statement that selects `tokenColumns`. */
export async function readTokens(tx: ClientBase, query: { readonly name: string; readonly text: string; readonly values: unknown[] }): Promise<TokenRow[]> {
  const { rows } = await tx.query<RawRow>(query);
  return rows.map(readRow);
}

/** The cards of these fingerprints, each with its first token. Sees what concurrent writers have committed before this statement. */
export async function findByFingerprint(tx: ClientBase, tenantIds: readonly number[], fingerprints: readonly Buffer[]): Promise<TokenRow[]> {
  const { rows } = await tx.query<RawRow>({
    name: 'find-by-fingerprint',
    text: `SELECT f.*
           FROM unnest($1::int[], $2::bytea[]) AS q(tenant_id, fingerprint),
                LATERAL (SELECT ${cardColumns} FROM cards c WHERE c.fingerprint = q.fingerprint AND c.tenant_id + 0 = q.tenant_id OFFSET 0) f`,
    values: [int4Array(tenantIds), byteaArray(fingerprints)],
  });
  return rows.map(readRow);
}

/** The given tokens of the given tenants, first tokens of cards and further ones alike. Unknown tokens have no row. */
export async function findTokens(tx: ClientBase, tenantIds: readonly number[], tokens: readonly string[]): Promise<TokenRow[]> {
  const { rows } = await tx.query<RawRow>({
    name: 'find-tokens',
    text: `SELECT ${cardColumns}
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           JOIN cards c ON c.tenant_id = ANY (ARRAY[q.tenant_id]) AND c.token = q.token
           UNION ALL
           SELECT ${furtherTokenColumns}
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           JOIN tokens t ON t.tenant_id = ANY (ARRAY[q.tenant_id]) AND t.token = q.token
           JOIN cards c ON c.tenant_id = ANY (ARRAY[t.tenant_id]) AND c.token = ANY (ARRAY[t.card_token])`,
    values: [int4Array(tenantIds), textArray(tokens)],
  });
  return rows.map(readRow);
}

/** The reusable further tokens of these cards (by their first tokens) and formats. A card without one of that format has no row. */
export async function findReusable(tx: ClientBase, cards: readonly { readonly tenantId: number; readonly cardToken: string; readonly format: TokenFormat }[]): Promise<TokenRow[]> {
  const { rows } = await tx.query<RawRow>({
    name: 'find-reusable',
    text: `SELECT ${furtherTokenColumns}
           FROM unnest($1::int[], $2::text[], $3::smallint[]) AS q(tenant_id, card_token, format),
                LATERAL (SELECT * FROM tokens t WHERE t.card_token = q.card_token AND t.format = q.format AND t.reusable AND t.tenant_id + 0 = q.tenant_id OFFSET 0) t
           JOIN cards c ON c.tenant_id = ANY (ARRAY[t.tenant_id]) AND c.token = ANY (ARRAY[t.card_token])`,
    values: [int4Array(cards.map((card) => card.tenantId)), textArray(cards.map((card) => card.cardToken)), int2Array(cards.map((card) => formatCode[card.format]))],
  });
  return rows.map(readRow);
}

/** How many of these cards (by their first tokens) have not been destroyed, as of now. */
export async function countStanding(tx: ClientBase, tenantIds: readonly number[], cardTokens: readonly string[]): Promise<number> {
  const { rows } = await tx.query<{ standing: number }>({
    name: 'count-standing',
    text: `SELECT count(*) FILTER (WHERE c.fingerprint IS NOT NULL)::int AS standing
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           JOIN cards c ON c.tenant_id = ANY (ARRAY[q.tenant_id]) AND c.token = q.token`,
    values: [int4Array(tenantIds), textArray(cardTokens)],
  });
  return rows[0]!.standing;
}

/** As `findTokens`, with the sealed values. Only the detokenizing role may run it. */
export async function findSealed(tx: ClientBase, tenantIds: readonly number[], tokens: readonly string[]): Promise<SealedRow[]> {
  const { rows } = await tx.query<RawRow & { sealed_pan: Buffer; sealed_name: Buffer | null }>({
    name: 'find-sealed',
    text: `SELECT ${cardColumns}, c.sealed_pan, c.sealed_name
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           JOIN cards c ON c.tenant_id = ANY (ARRAY[q.tenant_id]) AND c.token = q.token
           UNION ALL
           SELECT ${furtherTokenColumns}, c.sealed_pan, c.sealed_name
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           JOIN tokens t ON t.tenant_id = ANY (ARRAY[q.tenant_id]) AND t.token = q.token
           JOIN cards c ON c.tenant_id = ANY (ARRAY[t.tenant_id]) AND c.token = ANY (ARRAY[t.card_token])`,
    values: [int4Array(tenantIds), textArray(tokens)],
  });
  return rows.map((row) => ({ ...readRow(row), sealedPan: row.sealed_pan, sealedName: row.sealed_name }));
}

/** A newer expiry (YYYYMM, or null to leave it) and cardholder (null to leave it) of a card. */
export interface CardUpdate {
  readonly tenantId: number;
  readonly cardToken: string;
  readonly expiry: number | null;
  readonly sealedName: Buffer | null;
}

/**
 * Applies updates; at most one a card. A card that was destroyed meanwhile is left as it is.
 *
 * @returns how many were applied.
 *
 * The first statement touches every card, in the order of its key, so that two writers lock the same cards in the same order and
 * neither waits for the other in a circle; the second finds its cards locked.
 */
export async function updateCards(tx: ClientBase, updates: readonly CardUpdate[]): Promise<number> {
  const sorted = updates.toSorted((a, b) => a.tenantId - b.tenantId || (a.cardToken < b.cardToken ? -1 : 1));
  const { rowCount } = await tx.query({
    name: 'update-cards',
    text: `UPDATE cards SET expiry = COALESCE(u.expiry, cards.expiry)
           FROM unnest($1::int[], $2::text[], $3::int[]) AS u(tenant_id, token, expiry)
           WHERE cards.tenant_id = ANY (ARRAY[u.tenant_id]) AND cards.token = u.token AND COALESCE(cards.fingerprint, '') <> ''`,
    values: [int4Array(sorted.map((update) => update.tenantId)), textArray(sorted.map((update) => update.cardToken)), int4Array(sorted.map((update) => update.expiry))],
  });
  const named = sorted.filter((update) => update.sealedName !== null);
  if (named.length === 0) return rowCount ?? 0;
  await tx.query({
    name: 'update-names',
    // Apart, because the tokenizing role may write the sealed name but not read it: its absence cannot be expressed by COALESCE.
    text: `UPDATE cards SET sealed_name = u.sealed_name
           FROM unnest($1::int[], $2::text[], $3::bytea[]) AS u(tenant_id, token, sealed_name)
           WHERE cards.tenant_id = ANY (ARRAY[u.tenant_id]) AND cards.token = u.token`,
    values: [int4Array(named.map((update) => update.tenantId)), textArray(named.map((update) => update.cardToken)), byteaArray(named.map((update) => update.sealedName))],
  });
  return rowCount ?? 0;
}

interface RawRow {
  tenant_id: number;
  token: string;
  card_token: string;
  fingerprint: Buffer | null;
  card_id: Buffer;
  expiry: number | null;
  brand: string;
  bin: string | null;
  last4: string;
  pan_length: number;
  format: number;
  status: number;
  row_version: number;
  token_expires_at: Date | null;
  token_mac: Buffer;
  metadata: string | null;
  created_at: Date;
}

const destroyed = Buffer.alloc(0);

function readRow(row: RawRow): TokenRow {
  return {
    tenantId: row.tenant_id,
    token: row.token,
    cardToken: row.card_token,
    fingerprint: row.fingerprint ?? destroyed,
    cardId: row.card_id,
    expiry: row.expiry,
    brand: row.brand,
    bin: row.bin,
    last4: row.last4,
    panLength: row.pan_length,
    format: row.format === 1 ? 'numeric' : 'opaque',
    status: statusOf(row.status),
    rowVersion: row.row_version,
    expiresAt: row.token_expires_at,
    tokenMac: row.token_mac,
    metadata: row.metadata,
    createdAt: row.created_at,
  };
}
