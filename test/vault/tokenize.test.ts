/** Tokenize over a real PostgreSQL with keys in memory: what many calls in one transaction, and several writers at once, make of the same cards. */
import { createHmac, createSecretKey, randomUUID } from 'node:crypto';
import t, { type Test } from 'tap';
import type { TenantKeys } from '../../hsm/keyring.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { createWriterConnector } from '../../platform-adapters/postgres/writer-connector.ts';
import type { Call } from '../../vault/call.ts';
import { GroupCommit } from '../../vault/commit.ts';
import { VaultError } from '../../vault/errors.ts';
import { Lane } from '../../vault/lane.ts';
import { Pan } from '../../vault/pan.ts';
import { Tenants } from '../../vault/tenants.ts';
import { pooledRandom } from '../../vault/token.ts';
import { tokenize, type TokenizeAnswer, type TokenizeDeps, type TokenizeInput } from '../../vault/tokenize.ts';
import { executeTokenizing, failureEntry, type TokenizingOperation, type TokenizingOutcome } from '../../vault/transaction.ts';
import { cardDigits, cardNumber } from '../support/cards.ts';
import { freshDatabase, withClient, type FreshDatabase } from '../support/database.ts';
import { limits, origin, testSigner } from '../support/group-commit.ts';

/** A tenant's keys without an HSM. What is sealed here is only looked at, never opened. */
const keys: TenantKeys = {
  domain: 'acme',
  fingerprintVersion: 1,
  rowMacKey: createSecretKey(Buffer.alloc(32, 1)),
  fingerprint: { compute: (tenant, digits) => createHmac('sha256', 'key').update(`${tenant}\0`).update(digits).digest() },
  cipher: {
    seal: (kind, plaintext, { cardId }) => Buffer.concat([Buffer.from(`${kind} of `), cardId, plaintext]),
    open: () => {
      throw new Error('tokenize opens nothing');
    },
  },
};
const call: Omit<Call, 'requestId' | 'at'> = { caller: { spiffeId: 'spiffe://cofre.dev/tenant/acme/service/checkout', tenant: 'acme', service: 'checkout', serial: '1f', notAfter: new Date('2030-01-01') }, from: '127.0.0.1' };

interface Vault {
  /** Tokenizes the n-th card. */
  readonly tokenize: (card: number, input?: TokenizeInput, key?: string) => Promise<TokenizeAnswer>;
  readonly errors: { readonly kind: string; readonly code: unknown }[];
}

async function vault(t: Test, database: FreshDatabase): Promise<Vault> {
  const errors: { kind: string; code: unknown }[] = [];
  const writer = await GroupCommit.open<TokenizingOperation, TokenizingOutcome>({
    role: 'tokenize',
    origin,
    connector: createWriterConnector(database.connect('tokenize'), { connectTimeoutMs: 5000, queryTimeoutMs: 15_000 }),
    signer: testSigner,
    execute: executeTokenizing,
    failureEntry,
    limits: { ...limits, maxCalls: 500 },
    outbox: true,
    observer: { queued: () => undefined, waited: () => undefined, committed: () => undefined, disturbed: (kind, error) => void errors.push({ kind, code: (error as { code?: unknown } | null)?.code }) },
    now: () => new Date(),
    startDetail: {},
    onHead: () => undefined,
  });
  t.teardown(() => writer.close(2000));
  const deps = {
    policy: { decide: () => ({ allowed: true, policyIds: [] }) },
    tenants: new Tenants([{ id: 1, name: 'acme', keys }]),
    random: pooledRandom(),
    now: () => new Date(),
    stages: { keyWork: () => undefined },
    batchLane: new Lane(10),
    guessing: { ask: () => 'granted', secondsToNextDay: () => 1 },
    commit: (operation: TokenizingOperation) => writer.commit(operation),
  } as unknown as TokenizeDeps;
  return {
    errors,
    tokenize: async (card, input = {}, key) => {
      const digits = Buffer.alloc(cardDigits);
      cardNumber(card, digits);
      using pan = Pan.parse(digits);
      return await tokenize(deps, { ...call, requestId: randomUUID(), at: new Date() }, pan, input, key ?? null);
    },
  };
}

const rows = async (database: FreshDatabase, sql: string): Promise<Record<string, unknown>[]> => (await withClient(adminConnection(database.adminUrl), (client) => client.query<Record<string, unknown>>(sql))).rows;
const count = async (database: FreshDatabase, table: string): Promise<unknown> => (await rows(database, `SELECT count(*)::int AS n FROM ${table}`))[0]!['n'];

t.test('twins of a new card in one transaction are one card with one token, made once', async (t) => {
  const database = await freshDatabase(t);
  const { tokenize } = await vault(t, database);
  const answers = await Promise.all(Array.from({ length: 10 }, () => tokenize(1)));
  t.equal(new Set(answers.map((answer) => answer.token)).size, 1);
  t.same(answers.map((answer) => answer.created), [true, ...Array.from({ length: 9 }, () => false)]);
  t.equal(await count(database, 'cards'), 1);
});

t.test('twins that want a token each get one each of one card', async (t) => {
  const database = await freshDatabase(t);
  const { tokenize } = await vault(t, database);
  const answers = await Promise.all([tokenize(1), ...Array.from({ length: 5 }, (_, i) => tokenize(1, { reuse: false }, `key ${i}`)), tokenize(1)]);
  t.equal(new Set(answers.map((answer) => answer.token)).size, 6);
  t.equal(new Set(answers.map((answer) => answer.card_id)).size, 1);
  t.same(answers.map((answer) => answer.created), [true, true, true, true, true, true, false]);
  t.equal(answers.at(-1)!.token, answers[0].token);
  t.same([await count(database, 'cards'), await count(database, 'tokens')], [1, 5]);
});

t.test('of several expiries for one card in one transaction the last stands, and each answer says its own', async (t) => {
  const database = await freshDatabase(t);
  const { tokenize } = await vault(t, database);
  for (const round of ['a new card', 'a known card']) {
    const answers = await Promise.all([tokenize(1, { expiry: '2028-01' }), tokenize(1, { expiry: '2029-02' }), tokenize(1), tokenize(1, { expiry: '2028-01' }), tokenize(1, { expiry: '2030-03' })]);
    t.same(answers.map((answer) => answer.expiry), ['2028-01', '2029-02', '2029-02', '2028-01', '2030-03'], round);
    t.same(await rows(database, 'SELECT expiry FROM cards'), [{ expiry: 203_003 }]);
  }
});

t.test('a name for a known card is sealed for that card, and an absent one leaves it', async (t) => {
  const database = await freshDatabase(t);
  const { tokenize } = await vault(t, database);
  const [first] = await Promise.all([tokenize(1), tokenize(1, { cardholder: 'Second' }), tokenize(1, { expiry: '2030-03' })]);
  await tokenize(1, { expiry: '2031-04' });
  const [card] = await rows(database, 'SELECT card_id, sealed_name, expiry FROM cards');
  t.equal(`card_${(card!['card_id'] as Buffer).toString('hex')}`, first.card_id);
  t.same(card!['sealed_name'], Buffer.concat([Buffer.from('name of '), card!['card_id'] as Buffer, Buffer.from('Second')]));
  t.equal(card!['expiry'], 203_104);
});

t.test('two writers that meet over the same cards in other orders wait for one another and never in a circle', async (t) => {
  const database = await freshDatabase(t);
  const writers = [await vault(t, database), await vault(t, database)];
  const cards = Array.from({ length: 300 }, (_, n) => n);
  /** Each writer tokenizes all cards, one of them backwards, in transactions as large as they get. */
  const meet = async (work: (writer: Vault, w: number, card: number) => Promise<TokenizeAnswer>): Promise<TokenizeAnswer[]> =>
    await Promise.all(writers.flatMap((writer, w) => (w === 0 ? cards : cards.toReversed()).map((card) => work(writer, w, card))));

  for (let round = 0; round < 6; round += 1) {
    const first = round * cards.length;
    const made = await meet((writer, _, card) => writer.tokenize(first + card));
    t.equal(made.filter((answer) => answer.created).length, cards.length, 'new cards: each is made once');
    t.equal(new Set(made.map((answer) => answer.token)).size, cards.length);
    // The first round tells that the card is known; in the second, all of a writer's names are in one transaction beside its expiries.
    const updated = await meet((writer, w, card) => writer.tokenize(first + card, card % 2 === 0 ? { expiry: `2030-0${w + 1}` } : { cardholder: `${w}` }));
    t.equal(new Set(updated.map((answer) => answer.token)).size, cards.length, 'known cards: expiries and names');
    const keyed = await meet((writer, _, card) => writer.tokenize(first + card, {}, `round ${round} card ${card}`));
    t.equal(new Set(keyed.map((answer) => answer.token)).size, cards.length, 'known cards: the same keys');
  }
  t.equal(await count(database, 'cards'), 6 * cards.length);
  t.same(writers.flatMap(({ errors }) => errors).filter(({ code }) => code === '40P01'), [], 'no deadlock');
});

t.test('one Idempotency-Key on two writers at once makes one token', async (t) => {
  const database = await freshDatabase(t);
  const writers = [await vault(t, database), await vault(t, database)];
  for (let round = 0; round < 10; round += 1) {
    const answers = await Promise.all(Array.from({ length: 8 }, (_, i) => writers[i % 2]!.tokenize(5, { reuse: false }, `key ${round}`)));
    t.equal(new Set(answers.map((answer) => answer.token)).size, 1);
  }
  t.equal(Number(await count(database, 'cards')) + Number(await count(database, 'tokens')), 10);
  const conflict = await writers[0]!.tokenize(6, { reuse: false }, 'key 0').catch((error: unknown) => error);
  t.match(conflict, { code: 'idempotency_conflict' });
  t.ok(conflict instanceof VaultError && conflict.recorded, 'and the log says so');
});

t.test('an Idempotency-Key counts for 24 hours, swept or not', async (t) => {
  const database = await freshDatabase(t);
  const { tokenize } = await vault(t, database);
  const first = await tokenize(5, { reuse: false }, 'a key');
  const aged = async (by: string): Promise<void> => void (await rows(database, `UPDATE idempotency_keys SET created_at = created_at - interval '${by}'`));
  await aged('23 hours 59 minutes');
  t.equal((await tokenize(5, { reuse: false }, 'a key')).token, first.token);
  t.match(await tokenize(6, { reuse: false }, 'a key').catch((error: unknown) => error), { code: 'idempotency_conflict' });
  await aged('1 minute');
  const second = await tokenize(6, { reuse: false }, 'a key');
  t.ok(second.created, 'then it is free, for another card too');
  t.equal((await tokenize(6, { reuse: false }, 'a key')).token, second.token, 'and counts again');
  t.equal(await count(database, 'idempotency_keys'), 1);
});

t.test('an Idempotency-Key answers with no row that is not genuine, nor with one of another card', async (t) => {
  const database = await freshDatabase(t);
  const { tokenize } = await vault(t, database);
  const [other, first] = [await tokenize(6), await tokenize(5, {}, 'a key')];
  const code = async (): Promise<unknown> => await tokenize(5, {}, 'a key').then(() => null, (error: unknown) => (error as VaultError).code);
  t.equal(await code(), null);
  for (const [edited, restored] of [
    [`UPDATE cards SET row_version = row_version + 1 WHERE token = '${first.token}'`, `UPDATE cards SET row_version = row_version - 1 WHERE token = '${first.token}'`],
    [`UPDATE idempotency_keys SET tokens = '${other.token}'`, `UPDATE idempotency_keys SET tokens = '${first.token}'`],
    [`UPDATE idempotency_keys SET tokens = 'tok_absent'`, `UPDATE idempotency_keys SET tokens = '${first.token}'`],
  ] as const) {
    await rows(database, edited);
    t.equal(await code(), 'internal', edited);
    await rows(database, restored);
    t.equal(await code(), null);
  }
});

t.test('a new token and an updated card are events, with what a token\'s own metadata says; a known card and a replay are none', async (t) => {
  const database = await freshDatabase(t);
  const { tokenize } = await vault(t, database);
  const first = await tokenize(1, { expiry: '2029-12', metadata: { order: 'kept apart' } });
  await tokenize(1, { expiry: '2029-12' });
  const second = await tokenize(1, { reuse: false }, 'a key');
  await tokenize(1, { reuse: false }, 'a key');
  await tokenize(1, { cardholder: 'Ana Souza', expiry: '2031-01' });
  const stored = await rows(database, 'SELECT o.writer, o.number, o.made_at, event FROM outbox o, json_array_elements(o.events) WITH ORDINALITY AS e(event, place) ORDER BY number, place');
  const events = stored.map((row) => row['event'] as { type: string; subject: string; tenant: string; data: Record<string, unknown> });
  t.same(events.map(({ type, subject, tenant }) => ({ type, subject, tenant })), [
    { type: 'token.created', subject: first.token, tenant: 'acme' },
    { type: 'token.created', subject: second.token, tenant: 'acme' },
    { type: 'card.updated', subject: first.card_id, tenant: 'acme' },
  ]);
  const { created: _, ...view } = first;
  const { request_id: request, ...data } = events[0]!.data;
  t.same(data, { ...view, caller: call.caller?.spiffeId });
  t.match(request, /^[0-9a-f-]{36}$/u);
  t.equal(events[2]!.data['expiry'], '2031-01');
  t.notMatch(JSON.stringify(events), /Ana|order|kept/u, 'neither the name nor what callers keep with a token');
  const digits = Buffer.alloc(cardDigits);
  cardNumber(1, digits);
  t.notOk(JSON.stringify(events).includes(digits.toString('latin1')), 'nor the card number');
  const batches = await rows(database, "SELECT 1 FROM outbox o JOIN batches b ON b.writer = o.writer AND b.number = o.number AND b.kind = 0 AND b.formed_at = o.made_at");
  t.equal(batches.length, 3, 'each beside the batch that tells of it');
});

t.test('the last event of a card says what its row says, whatever came in which order in one transaction', async (t) => {
  const database = await freshDatabase(t);
  const { tokenize } = await vault(t, database);
  await Promise.all(['2030-01', '2031-02', '2030-01'].map((expiry) => tokenize(1, { expiry })));
  await Promise.all([tokenize(1, { expiry: '2032-01' }), tokenize(1, { reuse: false, expiry: '2033-01' }, 'a key')]);
  const events = (await rows(database, 'SELECT event FROM outbox o, json_array_elements(o.events) WITH ORDINALITY AS e(event, place) ORDER BY number, place')).map((row) => row['event'] as { type: string; data: { expiry: string } });
  t.same(events.map(({ type, data }) => [type, data.expiry]), [
    ['token.created', '2030-01'], ['card.updated', '2031-02'], ['card.updated', '2030-01'],
    ['card.updated', '2032-01'], ['token.created', '2033-01'], ['card.updated', '2033-01'],
  ]);
  t.same(await rows(database, 'SELECT expiry FROM cards'), [{ expiry: 203_301 }]);
});

t.test('nobody leaves events where a writer has yet to come', async (t) => {
  const database = await freshDatabase(t);
  const { tokenize } = await vault(t, database);
  await tokenize(1);
  await withClient(database.connect('tokenize'), async (client) => {
    for (const number of ['-1', '7']) await t.rejects(client.query(`INSERT INTO outbox SELECT writer, ${number}, now(), '[]' FROM writers`), { code: '23503' }, number);
  });
});
