/** SQL of the life of tokens and the end of cards, one function a statement. Why it is worded as it is: vault/card-store.ts. */
import type { ClientBase } from 'pg';
import { byteaArray, int2Array, int4Array, textArray } from './binary-arrays.ts';
import { readTokens, tokenColumns } from './card-store.ts';
import type { TokenRow } from './card-store.ts';
import { statusCode } from './token-mac.ts';

/** A card by its internal key: its first token. */
export interface CardKey {
  readonly tenantId: number;
  readonly cardToken: string;
}

/** Locks cards until the transaction ends, in the order of their keys: against every change, and against further tokens. */
export async function lockCards(tx: ClientBase, cards: readonly CardKey[]): Promise<void> {
  await tx.query({
    name: 'lock-cards',
    text: `SELECT c.tenant_id
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           JOIN cards c ON c.tenant_id = ANY (ARRAY[q.tenant_id]) AND c.token = q.token
           ORDER BY q.tenant_id, q.token COLLATE "C" FOR UPDATE OF c`,
    values: keysOf(cards),
  });
}

/** What stands beside some tokens of a card, without their rows: a card may have any number of them. */
export interface Others {
  readonly tenantId: number;
  readonly cardToken: string;
  /** Whether it has further tokens that are not among those. */
  readonly some: boolean;
  /** Whether one of them is alive, as far as its columns say: not marked as dead, and not past its end at that moment; or so many are not marked that none was looked at. */
  readonly alive: boolean;
}

/**
 * What these cards have beside their first tokens and `without`; `at` null takes a token that is not marked as dead for alive whatever its end. Of a card with more than `maxUnmarked` that are not marked no
 * other is read: its index tells. OFFSET 0 keeps EXISTS from being answered out of a table of all tokens.
 */
export async function findOthers(tx: ClientBase, cards: readonly CardKey[], without: readonly string[], at: Date | null, maxUnmarked: number): Promise<Others[]> {
  const { rows } = await tx.query<{ tenant_id: number; token: string; some: boolean; alive: boolean }>({
    name: 'find-others',
    text: `SELECT q.tenant_id, q.token,
                  EXISTS (SELECT FROM tokens t WHERE t.card_token = q.token AND t.tenant_id + 0 = q.tenant_id AND t.token <> ALL ($3::text[]) OFFSET 0) AS some,
                  CASE WHEN (SELECT count(*) FROM (SELECT FROM tokens t WHERE t.card_token = q.token AND t.tenant_id + 0 = q.tenant_id AND t.status < 2 LIMIT $5::int + 1 + cardinality($3::text[])) AS u) > $5::int + cardinality($3::text[]) THEN true
                       ELSE EXISTS (SELECT FROM tokens t WHERE t.card_token = q.token AND t.tenant_id + 0 = q.tenant_id AND t.token <> ALL ($3::text[])
                             AND t.status < 2 AND (t.token_expires_at IS NULL OR $4::timestamptz IS NULL OR t.token_expires_at > $4::timestamptz) OFFSET 0) END AS alive
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)`,
    values: [...keysOf(cards), textArray(without), at, maxUnmarked],
  });
  return rows.map((row) => ({ tenantId: row.tenant_id, cardToken: row.token, some: row.some, alive: row.alive }));
}

/** Tokens that are in memory at once while all those of a card are looked at. */
const tokensAtOnce = 1000;

/** Calls `look` with every further token of these cards, a thousand at a time. */
export async function eachFurtherToken(tx: ClientBase, cards: readonly CardKey[], look: (row: TokenRow) => void): Promise<void> {
  await tx.query({
    text: `DECLARE further_tokens NO SCROLL CURSOR FOR
           SELECT ${tokenColumns.further}
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           JOIN tokens t ON t.card_token = ANY (ARRAY[q.token]) AND t.tenant_id + 0 = q.tenant_id
           JOIN cards c ON c.tenant_id = ANY (ARRAY[t.tenant_id]) AND c.token = ANY (ARRAY[t.card_token])`,
    values: keysOf(cards),
  });
  for (let read = tokensAtOnce; read === tokensAtOnce; ) {
    const rows = await readTokens(tx, { name: 'fetch-further-tokens', text: `FETCH ${tokensAtOnce} FROM further_tokens`, values: [] });
    for (const row of rows) look(row);
    read = rows.length;
  }
  await tx.query('CLOSE further_tokens');
}

/** The first tokens of these cards, and of each a few further ones that are not marked as dead. */
export async function findVouching(tx: ClientBase, cards: readonly CardKey[]): Promise<TokenRow[]> {
  return await readTokens(tx, {
    name: 'find-vouching',
    text: `SELECT ${tokenColumns.first}
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           JOIN cards c ON c.tenant_id = ANY (ARRAY[q.tenant_id]) AND c.token = q.token
           UNION ALL
           SELECT ${tokenColumns.further}
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           JOIN LATERAL (SELECT * FROM tokens t WHERE t.card_token = q.token AND t.tenant_id + 0 = q.tenant_id AND t.status < 2 LIMIT 8) t ON true
           JOIN cards c ON c.tenant_id = ANY (ARRAY[t.tenant_id]) AND c.token = ANY (ARRAY[t.card_token])`,
    values: keysOf(cards),
  });
}

/** Of these tenants up to `limit` tokens of each table whose end is before `now` and that are not marked as dead, earliest first, without the first so many. */
export async function findEnding(tx: ClientBase, tenantIds: readonly number[], now: Date, limit: number, without: { readonly first: number; readonly further: number }): Promise<TokenRow[]> {
  return await readTokens(tx, {
    name: 'find-ending',
    text: `(SELECT ${tokenColumns.first} FROM cards c
            WHERE c.token_expires_at IS NOT NULL AND c.status < 2 AND c.token_expires_at <= $1::timestamptz AND c.tenant_id + 0 = ANY ($5::int[]) ORDER BY c.token_expires_at LIMIT $2::int OFFSET $3::int)
           UNION ALL
           (SELECT ${tokenColumns.further} FROM tokens t JOIN cards c ON c.tenant_id = ANY (ARRAY[t.tenant_id]) AND c.token = ANY (ARRAY[t.card_token])
            WHERE t.token_expires_at IS NOT NULL AND t.status < 2 AND t.token_expires_at <= $1::timestamptz AND t.tenant_id + 0 = ANY ($5::int[]) ORDER BY t.token_expires_at LIMIT $2::int OFFSET $4::int)`,
    values: [now, limit, without.first, without.further, int4Array(tenantIds)],
  });
}

/** Writes status, version and MAC of tokens of either table. A dead one loses its metadata, and is not answered with again. */
export async function updateTokens(tx: ClientBase, rows: readonly TokenRow[]): Promise<void> {
  const sorted = rows.toSorted((a, b) => a.tenantId - b.tenantId || (a.token < b.token ? -1 : 1));
  for (const [table, own] of [['cards', sorted.filter((row) => row.token === row.cardToken)], ['tokens', sorted.filter((row) => row.token !== row.cardToken)]] as const) {
    if (own.length === 0) continue;
    await tx.query({
      name: `update-tokens-in-${table}`,
      text: `UPDATE ${table} SET status = u.status, row_version = u.row_version, token_mac = u.token_mac,
                    metadata = CASE WHEN u.status < 2 THEN ${table}.metadata END${table === 'tokens' ? ', reusable = tokens.reusable AND u.status < 2' : ''}
             FROM unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::bytea[]) AS u(tenant_id, token, status, row_version, token_mac)
             WHERE ${table}.tenant_id = ANY (ARRAY[u.tenant_id]) AND ${table}.token = u.token`,
      values: [
        int4Array(own.map((row) => row.tenantId)),
        textArray(own.map((row) => row.token)),
        int2Array(own.map((row) => statusCode[row.status ?? 'revoked'])),
        int4Array(own.map((row) => row.rowVersion)),
        byteaArray(own.map((row) => row.tokenMac)),
      ],
    });
  }
}

/** Destroys cards: what was sealed, what finds them again, and their expiry. Their rows stay, for their dead tokens. All tokens of them are dead. */
export async function destroyCards(tx: ClientBase, cards: readonly CardKey[]): Promise<void> {
  await tx.query({
    name: 'destroy-cards',
    text: `UPDATE cards SET fingerprint = NULL, sealed_pan = ''::bytea, sealed_name = NULL, expiry = NULL
           FROM unnest($1::int[], $2::text[]) AS q(tenant_id, token)
           WHERE cards.tenant_id = ANY (ARRAY[q.tenant_id]) AND cards.token = q.token`,
    values: keysOf(cards),
  });
}

function keysOf(cards: readonly CardKey[]): Buffer[] {
  return [int4Array(cards.map((card) => card.tenantId)), textArray(cards.map((card) => card.cardToken))];
}
