/** Searching the log as the administrating role: that nothing which matches is left out, however its answers are cut. */
import { Client } from 'pg';
import t, { type Test } from 'tap';
import type { Entry } from '../../audit/entry.ts';
import { searchLog, type LogQuery } from '../../audit/log-reader.ts';
import { KeptLog } from '../support/kept-log.ts';

const token = 'tok_searched';

async function reader(t: Test, log: KeptLog): Promise<Client> {
  const client = new Client(log.database.connect('admin'));
  await client.connect();
  t.teardown(() => client.end());
  return client;
}

/** All answers of a search, one behind the other. */
async function searchAll(client: Client, log: KeptLog, query: LogQuery): Promise<number[]> {
  const { logId, size } = log.sequencer.head!;
  const found: number[] = [];
  let before: number | null = query.before ?? size;
  for (let answers = 0; before !== null; answers += 1) {
    if (answers > 1000) throw new Error('a search does not end');
    const { items, next } = await searchLog(client, logId, size, { ...query, before });
    if (items.length > query.limit || items.some(({ index }) => index >= before!)) throw new Error('an answer holds more than was asked for');
    found.push(...items.map(({ index }) => index));
    before = next;
  }
  return found;
}

t.test('a token\'s entries are found behind more of its entries than one answer holds, of which none matches', async (t) => {
  const log = await KeptLog.open(t, new Date());
  const tell = (action: string, minutes: number): Promise<void> => {
    const entry: Entry = { action, at: new Date(log.time.getTime() + minutes * 60_000), outcome: action === 'detokenize' ? 'refused' : 'allowed', tokens: { active: [token] } };
    return log.record(entry);
  };
  await tell('suspend', 0);
  for (let count = 0; count < 7; count += 1) await tell('detokenize', 1 + count);
  await tell('resume', 8);
  await log.commit(20);
  await log.sequence();
  const client = await reader(t, log);

  const all = await searchAll(client, log, { token, limit: 1000 });
  t.equal(all.length, 9);
  t.same(all, all.toSorted((a, b) => b - a), 'newest first');
  for (const limit of [1, 2, 3, 6, 7, 8, 9, 1000]) {
    t.same(await searchAll(client, log, { token, limit }), all, `all of them, by ${limit}`);
    t.same(await searchAll(client, log, { token, action: 'suspend', limit }), [all.at(-1)], `the oldest, by ${limit}`);
    t.same(await searchAll(client, log, { token, outcome: 'allowed', limit }), [all[0], all.at(-1)], `the first and the last, by ${limit}`);
    t.same(await searchAll(client, log, { token, action: 'delete', limit }), [], `none, by ${limit}`);
  }
});

t.test('a log\'s charter is found by what it says', async (t) => {
  const log = await KeptLog.open(t, new Date());
  await log.commit(20);
  await log.sequence();
  t.same(await searchAll(await reader(t, log), log, { action: 'log.start', limit: 10 }), [0]);
});
