/** Batches under lost COMMITs and killed processes: an acknowledged one stands whole, any other wholly or not at all, and a retry with its key gives the same tokens. */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import t, { type Test } from 'tap';
import type { CommitLimits } from '../../vault/commit.ts';
import type { TokenizeAnswer } from '../../vault/tokenize.ts';
import { startAppliance, until } from '../support/appliance.ts';
import { freshDatabase, type FreshDatabase } from '../support/database.ts';
import { seeded } from '../support/made-cards.ts';
import { codeOf, digitsOf, openVault, sealedAs, storedLog, storedTokens, tokensIn, type BatchItem, type MemoryVault } from '../support/memory-vault.ts';
import { PostgresProxy, type Verdict } from '../support/postgres-proxy.ts';
import { readLog, tokensOf } from '../support/log-reader.ts';
import { cardText } from '../support/test-cards.ts';

/** A batch of new cards: each item gives a token of its own, so that half a batch could be told from a whole one. */
interface Batch {
  readonly key: string;
  readonly items: readonly BatchItem[];
  /** What it was answered, each time that it was. */
  readonly answers: TokenizeAnswer[][];
  readonly requests: string[];
}

let nextCard = 0;
function newBatch(cards: number): Batch {
  const first = nextCard;
  nextCard += cards;
  const items = Array.from({ length: cards }, (_, n) => n + first).flatMap((card): BatchItem[] => [
    { card, input: { expiry: '2030-01', cardholder: `NAME ${card}` } },
    { card, input: { format: 'numeric' } },
    { card, input: { reuse: false, metadata: { n: card } } },
    { card, input: { format: 'numeric', ttl_seconds: 100_000 } },
  ]);
  return { key: randomUUID(), items, answers: [], requests: [] };
}

/** Sends a batch. Resolves to the code of its refusal, or null. */
async function send(vault: MemoryVault, batch: Batch): Promise<string | null> {
  const request = randomUUID();
  batch.requests.push(request);
  return await codeOf((async () => void batch.answers.push((await vault.batch(batch.items, batch.key, request)) as TokenizeAnswer[]))());
}

/** Every batch stands whole or not at all; one that was acknowledged stands, by the tokens that it was answered with, and in one entry that made them. */
async function verify(t: Test, database: FreshDatabase, batches: readonly Batch[], message: string): Promise<void> {
  const stored = await storedTokens(database);
  const byPan = Map.groupBy(stored.values(), (row) => row.sealedPan.toString('hex', 'pan of '.length + 16));
  const log = await storedLog(database);
  const faults = [...log.faults];
  for (const { items, answers, requests } of batches) {
    const rows = [...new Set(items.map(({ card }) => card))].flatMap((card) => byPan.get(digitsOf(card).toString('hex')) ?? []);
    if (rows.length !== 0 && rows.length !== items.length) faults.push(`of ${items.length} tokens of a batch ${rows.length} stand`);
    if (rows.some((row) => !row.genuine || !row.sealedPan.equals(sealedAs('pan', row.cardId, row.sealedPan.subarray('pan of '.length + 16))))) faults.push('a token is not as it was made');
    for (const answer of answers) {
      if (answer.length !== items.length || new Set(answer.map(({ token }) => token)).size !== items.length) faults.push('an answer is not whole');
      for (const [index, { token, created, expiry }] of answer.entries()) {
        const row = stored.get(token);
        if (!created || expiry !== '2030-01' || row === undefined || !row.sealedPan.equals(sealedAs('pan', row.cardId, digitsOf(items[index]!.card)))) faults.push('an answer names a token that is not its item\'s');
      }
      if (JSON.stringify(answer) !== JSON.stringify(answers[0])) faults.push('a retry got another answer');
    }
    const entries = requests.flatMap((request) => log.places.get(request) ?? []);
    const created = entries.flatMap(({ entry }) => tokensIn(entry)['created'] ?? []);
    if (created.length !== rows.length || created.some((token) => !rows.some((row) => row.token === token))) faults.push(`the log tells of ${created.length} new tokens where ${rows.length} stand`);
    if (entries.filter(({ entry }) => (tokensIn(entry)['created'] ?? []).length > 0).length > 1) faults.push('a batch was made twice');
  }
  t.same([...new Set(faults)], [], message);
}

async function struck(t: Test, limits: Partial<CommitLimits> = {}): Promise<{ database: FreshDatabase; proxy: PostgresProxy; vault: MemoryVault }> {
  const database = await freshDatabase(t);
  const { proxy, through } = await PostgresProxy.open(t, database.connect('tokenize'));
  return { database, proxy, vault: await openVault(t, database, { through, limits }) };
}

/** Strikes the next COMMIT. */
function onCommit(proxy: PostgresProxy, verdict: Verdict, andThen: () => void = () => undefined): void {
  let struckOnce = false;
  proxy.judge = ({ query }) => {
    if (query !== 'COMMIT' || struckOnce) return 'pass';
    struckOnce = true;
    andThen();
    return verdict;
  };
}

t.test('a COMMIT that is lost on its way there or back costs a batch nothing', async (t) => {
  for (const verdict of ['cut', 'answer_lost'] as const) {
    const { database, proxy, vault } = await struck(t);
    for (const batches of [[newBatch(1)], [newBatch(50)], [newBatch(5), newBatch(5), newBatch(5)]]) {
      onCommit(proxy, verdict);
      t.same(await Promise.all(batches.map((batch) => send(vault, batch))), batches.map(() => null), verdict);
      await verify(t, database, batches, `${verdict}: each once`);
      proxy.judge = () => 'pass';
      t.same(await Promise.all(batches.map((batch) => send(vault, batch))), batches.map(() => null));
      await verify(t, database, batches, `${verdict}: and the same again`);
    }
    t.equal(proxy.strikes, 3);
  }
});

t.test('a connection that is cut before any message of a batch costs nobody anything', async (t) => {
  const { database, proxy, vault } = await struck(t);
  // Until every statement has been prepared once, a session sends more.
  let messages = 0;
  proxy.judge = () => ((messages += 1), 'pass');
  const batches = [newBatch(2)];
  t.equal(await send(vault, batches[0]!), null);
  t.ok(messages > 20, `${messages} messages`);
  for (let at = 0; at <= messages; at += 1) {
    let passed = 0;
    let done = false;
    proxy.judge = () => {
      if (done || passed++ < at) return 'pass';
      done = true;
      return 'cut';
    };
    const pair = [newBatch(2), newBatch(1)];
    batches.push(...pair);
    t.same(await Promise.all(pair.map((batch) => send(vault, batch))), [null, null], `before message ${at}`);
  }
  proxy.judge = () => 'pass';
  await verify(t, database, batches, 'each once');
  for (const batch of batches) t.equal(await send(vault, batch), null);
  await verify(t, database, batches, 'and the same again');
});

t.test('a batch whose outcome is unknown stands wholly or not at all, and its retry tells', async (t) => {
  for (const verdict of ['cut', 'answer_lost'] as const) {
    const { database, proxy, vault } = await struck(t, { maxSettleMs: 200, maxWaitMs: 5000 });
    const batches = [newBatch(10), newBatch(3)];
    onCommit(proxy, verdict, () => (proxy.away = true));
    t.same(await Promise.all(batches.map((batch) => send(vault, batch))), ['outcome_unknown', 'outcome_unknown'], verdict);
    await verify(t, database, batches, 'while the database is away');
    const before = (await storedTokens(database)).size;
    t.equal(before, verdict === 'cut' ? 0 : 52);
    proxy.away = false;
    t.same(await Promise.all(batches.map((batch) => send(vault, batch))), [null, null]);
    await verify(t, database, batches, 'afterwards');
    t.equal((await storedTokens(database)).size, 52);
  }
});

t.test('in a storm of strikes every batch that is tried until it is answered is made once', async (t) => {
  const { database, proxy, vault } = await struck(t);
  const dice = seeded(20_261_124);
  proxy.judge = ({ query, type }) => {
    const roll = dice(100);
    if (query === 'COMMIT') return roll < 15 ? 'cut' : roll < 30 ? 'answer_lost' : 'pass';
    return (type === 'S' || type === 'Q') && roll < 2 ? 'cut' : 'pass';
  };
  const batches: Batch[] = [];
  for (let wave = 0; wave < 12; wave += 1) {
    const some = Array.from({ length: 1 + dice(3) }, () => newBatch(1 + dice(8)));
    batches.push(...some);
    await Promise.all(
      some.map(async (batch) => {
        for (let tries = 0; tries < 50 && (await send(vault, batch)) !== null; tries += 1) await sleep(5);
      }),
    );
  }
  t.ok(proxy.strikes > 5, `${proxy.strikes} strikes`);
  proxy.judge = () => 'pass';
  t.ok(batches.every(({ answers }) => answers.length > 0));
  await verify(t, database, batches, 'each once');
});

t.test('the process killed in the midst of batches: the acknowledged ones open, the others are whole once they are sent again', { timeout: 120_000 }, async (t) => {
  const appliance = await startAppliance(t);
  /** Batches by key; with their tokens once they were answered. */
  const sent = new Map<string, { readonly items: readonly object[]; readonly pans: readonly string[]; tokens: readonly string[] | null }>();
  let card = 5_000_000;
  for (let round = 0; round < 2; round += 1) {
    const checkout = appliance.client('checkout', { connections: 4 });
    let stopped = false;
    const workers = Array.from({ length: 4 }, async () => {
      while (!stopped) {
        const key = randomUUID();
        const pans = Array.from({ length: 25 }, () => cardText(card++));
        const batch = { items: pans.flatMap((pan) => [{ pan, expiry: '2030-01' }, { pan, format: 'numeric' }, { pan, reuse: false }]), pans, tokens: null as readonly string[] | null };
        sent.set(key, batch);
        const reply = await checkout.post('/v1/tokenize/batch', { items: batch.items }, { 'idempotency-key': key }).catch(() => null);
        if (reply?.status === 200) batch.tokens = (reply.json()['items'] as { token: string }[]).map(({ token }) => token);
        else if (reply !== null) throw new Error(`a batch was answered ${reply.status}`);
      }
    });
    const acknowledged = (): number => [...sent.values()].filter(({ tokens }) => tokens !== null).length;
    const before = acknowledged();
    await until(() => acknowledged() > before + 4 + round * 3, 'the load');
    stopped = true;
    await appliance.kill9();
    await Promise.all(workers);
    await appliance.start();

    const owner = new Client({ connectionString: appliance.databaseUrl });
    await owner.connect();
    const standing = async (): Promise<Map<string, number>> => new Map((await owner.query<{ token: string; tokens: number }>('SELECT c.token, 1 + (SELECT count(*)::int FROM tokens t WHERE t.card_token = c.token) AS tokens FROM cards c')).rows.map((row) => [row.token, row.tokens]));
    const cut = await standing();
    t.same([...cut.values()].filter((tokens) => tokens !== 3), [], 'no card has a part of its tokens');
    t.equal(cut.size % 25, 0, 'and no batch a part of its cards');
    const again = appliance.client('checkout');
    for (const [key, batch] of sent) {
      const reply = await again.post('/v1/tokenize/batch', { items: batch.items }, { 'idempotency-key': key });
      const tokens = (reply.json()['items'] as { token: string; created: boolean }[]).map(({ token, created }) => (created ? token : 'known'));
      if (batch.tokens !== null) t.same(tokens, batch.tokens, 'the same tokens');
      batch.tokens = tokens;
    }
    t.equal((await standing()).size, 25 * sent.size);
    t.same([...(await standing()).values()].filter((tokens) => tokens !== 3), []);
    await owner.end();
  }
  const getnet = appliance.client('getnet');
  for (const { items, tokens } of [...sent.values()].slice(0, 12)) {
    const reply = await getnet.post('/v1/detokenize/batch', { tokens, purpose: 'capture' });
    t.same((reply.json()['items'] as { pan: string }[]).map(({ pan }) => pan), items.map((item) => (item as { pan: string }).pan));
  }
  const made = (await readLog(appliance)).flatMap(tokensOf).filter(({ outcome }) => outcome === 'created');
  t.equal(made.length, 75 * sent.size);
  t.same(new Set(made.map(({ token }) => token)), new Set([...sent.values()].flatMap(({ tokens }) => tokens!)), 'the log tells of each token once');
});
