/**
 * Fills the table of a server under measurement with cards that nobody asks for: rows of the real sizes under keys of the real shape, so that tables
 * and indexes are as large, and as hard to keep in memory, as those of a vault that has served for months. PostgreSQL makes them by itself, from hashes
 * of their numbers; nothing in them was ever a card number.
 */
import { Client } from 'pg';
import { makeToken, pooledRandom } from '../../vault/token.ts';

export type CardTable = 'cards' | 'bare_cards';

const chunk = 250_000;
/** Cards whose tokens bear the same second, as in an import. */
const cardsInASecond = 10_000;
const secondsInAChunk = chunk / cardsInASecond;

/**
 * A B-tree that grew by keys in random order is about ln 2 full. Built anew it would be 90 % full, and split page after page under the first cards that come:
 * what would then be measured is a moment that no vault is in for long. Tokens come in order; their index is as full as a new one.
 */
const grownFill = 70;

/** Two hashes of a card's number give all that is random in its row. OFFSET 0: they are computed once a row, and not once for each column. */
const hashes = `generate_series($1::bigint, $2::bigint) AS n, LATERAL (SELECT sha256(int8send(n)) AS a, sha256(int8send(-n - 1)) AS b OFFSET 0) AS h`;
const token = `($3::text[])[1 + (n - $1) / ${cardsInASecond}] || encode(substring(h.b FROM 1 FOR 13), 'hex')`;

const inserts: Readonly<Record<CardTable, string>> = {
  cards: `
    INSERT INTO cards (tenant_id, token, fingerprint, fingerprint_version, card_id, sealed_pan, expiry, brand, bin, last4, pan_length, format, status, row_version, token_mac,
                       created_at, made_writer, made_batch)
    SELECT (SELECT tenant_id FROM tenants WHERE name = 'acme'), ${token}, h.a, 1, substring(h.a FROM 17), '\\x0100000001'::bytea || h.a || substring(h.b FROM 1 FOR 20), 203112, 'visa', '411111',
           lpad((n % 10000)::text, 4, '0'), 16, 0, 0, 1, substring(h.b FROM 17), now(), 0, 0
    FROM ${hashes}`,
  bare_cards: `
    INSERT INTO bare_cards (tenant_id, token, fingerprint, card_id, stored_pan, expiry, brand, bin, last4, created_at)
    SELECT 1, ${token}, h.a, gen_random_uuid(), '\\x0100000001'::bytea || h.a || substring(h.b FROM 1 FOR 20), 203112, 'visa', '411111', lpad((n % 10000)::text, 4, '0'), now()
    FROM ${hashes}`,
};

/**
 * Adds `count` cards of the tenant acme, and leaves the table vacuumed, analyzed and written to disk. `databaseUrl` is the owner's; nothing else may use the
 * table meanwhile, which has none of its keys until the end. About five minutes for 20 million cards on two cores.
 */
export async function fillExistingCards(databaseUrl: string, table: CardTable, count: number, progress: (line: string) => void): Promise<void> {
  const client = new Client({ connectionString: databaseUrl });
  await client.connect();
  try {
    await client.query(`SET synchronous_commit = off; SET maintenance_work_mem = '1GB'; SET jit = off`);
    const keys = await dropKeys(client, table);
    const told = teller(progress);
    for (let first = 0; first < count; first += chunk) {
      const last = Math.min(first + chunk, count) - 1;
      await client.query(inserts[table], [first, last, secondPrefixes(first, count)]);
      told(`${last + 1} of ${count} cards`);
    }
    for (const key of keys) {
      progress(`${key.name} …`);
      await client.query(key.add);
      if (key.after !== null) await client.query(key.after);
    }
    progress('vacuum, analyze, checkpoint …');
    await client.query(`VACUUM (ANALYZE) ${table}`);
    await client.query('CHECKPOINT');
    const { rows } = await client.query<{ heap: string; indexes: string }>(`SELECT pg_size_pretty(pg_table_size($1::regclass)) AS heap, pg_size_pretty(pg_indexes_size($1::regclass)) AS indexes`, [table]);
    progress(`${count} cards: ${rows[0]!.heap}, and indexes of ${rows[0]!.indexes}`);
  } finally {
    await client.end();
  }
}

/** What tokens of this chunk begin with: `tok_` and a second of the past, the later the higher the card's number. */
function secondPrefixes(first: number, count: number): string[] {
  const random = pooledRandom();
  const begin = Math.floor(Date.now() / 1000) - Math.ceil(count / cardsInASecond) - 60;
  return Array.from({ length: secondsInAChunk }, (_, i) => makeToken(new Date((begin + first / cardsInASecond + i) * 1000), random).slice(0, 10));
}

interface Key {
  readonly name: string;
  readonly add: string;
  readonly after: string | null;
}

/** Drops the keys of the table and all that refers to them: building an index once is several times faster than growing it. Returns how to bring them back, in this order. */
async function dropKeys(client: Client, table: CardTable): Promise<Key[]> {
  const { rows } = await client.query<{ name: string; owner: string; kind: 'p' | 'u' | 'f'; definition: string; random: boolean }>(
    `SELECT quote_ident(c.conname) AS name, c.conrelid::regclass::text AS owner, c.contype::text AS kind, pg_get_constraintdef(c.oid) AS definition,
            c.contype IN ('p', 'u') AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey) AND a.attname = 'fingerprint') AS random
     FROM pg_constraint c
     WHERE (c.conrelid = $1::regclass AND c.contype IN ('p', 'u')) OR (c.confrelid = $1::regclass AND c.contype = 'f')
     ORDER BY c.contype = 'f', c.conname`,
    [table],
  );
  for (const { owner, name } of rows.toReversed()) await client.query(`ALTER TABLE ${owner} DROP CONSTRAINT ${name}`);
  return rows.map(({ owner, name, definition, random }) => ({
    name,
    add: `ALTER TABLE ${owner} ADD CONSTRAINT ${name} ${definition}${random ? ` WITH (fillfactor = ${grownFill})` : ''}`,
    // Pages that split later are to be filled as ever.
    after: random ? `ALTER INDEX ${name} RESET (fillfactor)` : null,
  }));
}

/** Passes on a line every five seconds. */
function teller(progress: (line: string) => void): (line: string) => void {
  let toldMs = performance.now();
  return (line) => {
    if (performance.now() - toldMs < 5000) return;
    toldMs = performance.now();
    progress(line);
  };
}
