/** That the plan which a writer's session makes on its first day, and keeps, is the right one for large tables: no statement can be answered by another index, nor begin at another end. */
import { readFileSync } from 'node:fs';
import type { ClientBase } from 'pg';
import t from 'tap';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { createWriterConnector } from '../../platform-adapters/postgres/writer-connector.ts';
import { countStanding, findByFingerprint, findReusable, findSealed, findTokens, updateCards } from '../../vault/card-store.ts';
import type { TokenRow } from '../../vault/card-store.ts';
import { destroyCards, eachFurtherToken, findEnding, findOthers, findVouching, lockCards, updateTokens } from '../../vault/lifecycle-store.ts';
import { findIdempotencyKeys, insertIdempotencyKeys, updateTokenMetadata } from '../../vault/token-store.ts';
import { prepareSession } from '../../vault/writer-session.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import type { FreshDatabase } from '../support/database.ts';

const byToken = 'cards_pkey (tenant_id, token)';
const furtherByToken = 'tokens_pkey (tenant_id, token)';
const furtherByCard = 'tokens_of_card (card_token)';
const furtherByCardAndStatus = 'tokens_of_card (card_token, status)';
const key = 'idempotency_keys_pkey (tenant_id, key_hash)';

/** By statement: every table that it reads, by which index, and by which of its columns. */
const indexes: Readonly<Record<string, readonly string[]>> = {
  'find-by-fingerprint': ['cards_of_fingerprint (fingerprint)'],
  'find-tokens': [byToken, byToken, furtherByToken],
  'find-sealed': [byToken, byToken, furtherByToken],
  'find-reusable': [byToken, 'tokens_reusable (card_token, format)'],
  'count-standing': [byToken],
  'update-cards': [byToken],
  'update-names': [byToken],
  'update-metadata-of-cards': [byToken],
  'update-metadata-of-tokens': [furtherByToken],
  'find-idempotency-keys': [key],
  'expire-idempotency-keys': [key],
  // Stored by the index of its conflict, as cards and further tokens are.
  'insert-idempotency-keys': [],
  'lock-cards': [byToken],
  'find-others': [furtherByCard, furtherByCardAndStatus, furtherByCardAndStatus],
  'further-tokens': [byToken, furtherByCard],
  'find-vouching': [byToken, byToken, furtherByCardAndStatus],
  'find-ending': ['cards_ending (token_expires_at)', byToken, 'tokens_ending (token_expires_at)'],
  'update-tokens-in-cards': [byToken],
  'update-tokens-in-tokens': [furtherByToken],
  'destroy-cards': [byToken],
  // In PostgreSQL's own words (ri_triggers.c): each further token that is stored asks for its card.
  'foreign key': [byToken],
};

/** Statements that find nothing by themselves: what is stored goes by the index of its conflict, what is fetched by its cursor. */
const withoutLookup = ['insert-cards', 'insert-tokens', 'fetch-further-tokens'];

/** The statements as the stores send them. */
async function statements(): Promise<Map<string, string>> {
  const sent = new Map<string, string>([['foreign key', 'SELECT 1 FROM ONLY cards x WHERE tenant_id = $1::int AND token = $2::text FOR KEY SHARE OF x']]);
  const tx = {
    query: (query: string | { readonly name?: string; readonly text: string }) => {
      if (typeof query !== 'string' && !query.text.startsWith('FETCH')) sent.set(query.name ?? 'further-tokens', query.text.replace(/^DECLARE \w+ NO SCROLL CURSOR FOR/u, ''));
      return Promise.resolve({ rows: [], rowCount: 0 });
    },
  } as unknown as ClientBase;
  const bytes = Buffer.alloc(32);
  const card = { tenantId: 1, cardToken: 'tok_a', token: 'tok_a' };
  const row: TokenRow = { ...card, fingerprint: bytes, cardId: bytes, expiry: null, brand: 'visa', bin: null, last4: '1111', panLength: 16, format: 'opaque', status: 'active', rowVersion: 1, expiresAt: null, tokenMac: bytes, metadata: null, createdAt: new Date() };
  await findByFingerprint(tx, [1], [bytes]);
  await findTokens(tx, [1], ['tok_a']);
  await findSealed(tx, [1], ['tok_a']);
  await findReusable(tx, [row]);
  await t.rejects(countStanding(tx, [1], ['tok_a']), 'there is no row of its count here');
  await updateCards(tx, [{ ...card, expiry: 203_001, sealedName: bytes }]);
  await updateTokenMetadata(tx, [{ ...card, metadata: '{}' }]);
  await findIdempotencyKeys(tx, [1], [bytes], new Date());
  await insertIdempotencyKeys(tx, [{ tenantId: 1, keyHash: bytes, requestMac: bytes, tokens: ['tok_a'], created: [true], replaces: null }], new Date(), new Date());
  await lockCards(tx, [card]);
  await findOthers(tx, [card], ['tok_a'], null, 10);
  await eachFurtherToken(tx, [card], () => undefined);
  await findVouching(tx, [card]);
  await findEnding(tx, [1], new Date(), 10, { first: 0, further: 0 });
  await updateTokens(tx, [row, { ...row, token: 'tok_b' }]);
  await destroyCards(tx, [card]);
  return sent;
}

interface PlanNode {
  readonly 'Node Type': string;
  readonly 'Relation Name'?: string;
  readonly 'Index Name'?: string;
  readonly 'Index Cond'?: string;
  readonly Plans?: readonly PlanNode[];
}

/** How a plan reads its tables, in the form of `indexes`. A function, such as unnest, is no table; neither is what an UPDATE or DELETE names. */
function readings(node: PlanNode): string[] {
  const below = (node.Plans ?? []).flatMap(readings);
  if (node['Relation Name'] === undefined || node['Node Type'] === 'ModifyTable') return below;
  const columns = Array.from((node['Index Cond'] ?? '').matchAll(/\((\w+) (?:=|<=|<) /gu), ([, column]) => column);
  return [...below, node['Node Type'].startsWith('Index') ? `${node['Index Name']} (${columns.join(', ')})` : `${node['Node Type']} of ${node['Relation Name']}`];
}

/** What each statement reads by, in a session as a writer has it. */
async function plans(database: FreshDatabase): Promise<Record<string, string[]>> {
  const found: Record<string, string[]> = {};
  for (const role of ['tokenize', 'detokenize'] as const) {
    const session = await createWriterConnector(database.connect(role), { connectTimeoutMs: 5000, queryTimeoutMs: 10_000 }).connect();
    await prepareSession(session.client, 10_000);
    for (const [name, text] of await statements()) {
      if ((name === 'find-sealed') !== (role === 'detokenize')) continue;
      const { rows } = await session.client.query<{ 'QUERY PLAN': [{ Plan: PlanNode }] }>(`EXPLAIN (GENERIC_PLAN, FORMAT JSON) ${text}`);
      found[name] = readings(rows[0]!['QUERY PLAN'][0].Plan).sort();
    }
    await session.end();
  }
  return found;
}

t.test('each statement of a writer is planned by its own index, whatever the planner knows of the tables', async (t) => {
  const database = await freshDatabase(t);
  t.same(await plans(database), indexes, 'never analyzed, as a new vault\'s are');
  await withClient(adminConnection(database.adminUrl), (client) => client.query('VACUUM (ANALYZE) cards, tokens, idempotency_keys'));
  t.same(await plans(database), indexes, 'analyzed while empty');
});

t.test('no statement of the stores is left out', (t) => {
  const named = ['card-store', 'token-store', 'lifecycle-store']
    .flatMap((file) => Array.from(readFileSync(new URL(`../../vault/${file}.ts`, import.meta.url), 'utf8').matchAll(/\bname: ['`]([^'`]+)['`]/gu), ([, name]) => name!))
    .flatMap((name) => (name.includes('$') ? ['cards', 'tokens'].map((table) => name.replace(/\$\{\w+\}/u, table)) : [name]));
  const listed = [...Object.keys(indexes).filter((name) => name.includes('-') && name !== 'further-tokens'), ...withoutLookup];
  t.same(named.sort(), listed.sort());
  t.end();
});
