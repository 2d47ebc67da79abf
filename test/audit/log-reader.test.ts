/** Searching the log as the administrating role: that nothing which matches is left out, however its answers are cut. */
import { Client, Pool } from 'pg';
import t, { type Test } from 'tap';
import type { Entry } from '../../audit/entry.ts';
import { readLeaves, searchLog, type LogQuery } from '../../audit/log-reader.ts';
import { SearchKeyReader } from '../../audit/search-keys.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
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

t.test('calls of one batch that name a token are read once, and an answer reads no more than it may', async (t) => {
  const log = await KeptLog.open(t, new Date());
  const tell = (count: number): Promise<unknown> => Promise.all(Array.from({ length: count }, (_, index) => log.record({ action: 'validate', at: log.time, outcome: 'allowed', request: `r-${index}`, tokens: { active: [index % 3 === 2 ? 'tok_other' : token] } })));
  for (let round = 0; round < 4; round += 1) await tell(100);
  await log.sequence();
  const client = await reader(t, log);
  let reads = 0;
  const counting = { query: (...args: unknown[]) => {
    if ((args[0] as { name?: string }).name === 'log-leaves') reads += 1;
    return (client.query as (...values: unknown[]) => unknown).apply(client, args);
  } } as unknown as Client;
  const { logId, size, batches } = { ...log.sequencer.head!, batches: Number((await client.query<{ count: string }>('SELECT count(*) FROM log_batches')).rows[0]!.count) };
  const all = await searchAll(counting, log, { token, limit: 1000 });
  t.equal(all.length, 4 * 67);
  t.ok(reads <= batches, `${reads} reads of ${batches} batches`);
  for (const limit of [1, 7, 66, 100]) t.same(await searchAll(client, log, { token, limit }), all, `all of them, by ${limit}`);

  // What an answer may read ends it, and the next one goes on behind it.
  const found: number[] = [];
  let answers = 0;
  for (let before: number | null = size; before !== null; answers += 1) {
    reads = 0;
    const { items, next } = await searchLog(counting, logId, size, { token, limit: 1000, before }, 1);
    t.ok(reads <= 1, `${reads} reads`);
    found.push(...items.map(({ index }) => index));
    before = next;
  }
  t.same(found, all);
  t.ok(answers > 3);
});

t.test('a log\'s charter is found by what it says', async (t) => {
  const log = await KeptLog.open(t, new Date());
  await log.commit(20);
  await log.sequence();
  t.same(await searchAll(await reader(t, log), log, { action: 'log.start', limit: 10 }), [0]);
});

const callerOf = (name: string): string => `spiffe://cofre.test/tenant/acme/service/${name}`;

/** Commits a block's worth of calls: each second one of `rare`, all allowed, the others of `often`, all refused, and in front of them what `rare` is refused. */
async function commitBlock(log: KeptLog, refusedAmong: number): Promise<void> {
  const entries = Array.from({ length: 256 }, (_, index): Entry => {
    const refused = index < refusedAmong || index % 2 === 1;
    return { action: 'validate', at: log.time, caller: callerOf(index < refusedAmong || index % 2 === 0 ? 'rare' : 'often'), outcome: refused ? 'refused' : 'allowed', tenant: 'acme', ...(refused ? { code: 'quota_exceeded' } : {}) };
  });
  await Promise.all(entries.map((entry) => log.record(entry)));
}

/** Indexes of all the entries that a plain walk through the log finds. */
async function walked(client: Client, log: KeptLog, matches: (entry: Readonly<Record<string, unknown>>) => boolean): Promise<number[]> {
  const { logId, size } = log.sequencer.head!;
  return (await readLeaves(client, logId, 0, size)).flatMap((leaf, index) => (matches(JSON.parse(leaf.toString('utf8')) as Record<string, unknown>) ? [index] : [])).toReversed();
}

t.test('of two words that seldom meet in one entry only the blocks where they do are read', async (t) => {
  const log = await KeptLog.open(t, new Date());
  for (let block = 0; block < 12; block += 1) await commitBlock(log, block === 4 ? 3 : 0);
  await log.sequence();
  const client = await reader(t, log);
  const rare = callerOf('rare');
  const expected = await walked(client, log, ({ caller, outcome }) => caller === rare && outcome === 'refused');
  t.equal(expected.length, 3);

  let reads = 0;
  const counting = { query: (...args: unknown[]) => {
    if ((args[0] as { name?: string }).name === 'log-leaves') reads += 1;
    return (client.query as (...values: unknown[]) => unknown).apply(client, args);
  } } as unknown as Client;
  for (const query of [{ outcome: 'refused' }, { code: 'quota_exceeded' }, { outcome: 'refused', code: 'quota_exceeded', action: 'validate', tenant: 'acme' }]) {
    reads = 0;
    t.same(await searchAll(counting, log, { caller: rare, ...query, limit: 10 }), expected, Object.keys(query).join());
    t.ok(reads <= 2, `${reads} blocks are read`);
  }
});

t.test('what was indexed before there were pairs, or between, is found as well', async (t) => {
  const log = await KeptLog.open(t, new Date());
  const owner = new Pool(adminConnection(log.database.adminUrl));
  t.teardown(() => owner.end());
  const rangeOf = async (): Promise<{ paired_from: string; paired_to: string; size: string }> => (await owner.query<{ paired_from: string; paired_to: string; size: string }>('SELECT paired_from, paired_to, size FROM logs')).rows[0]!;
  /** As a Cofre before migration 0013 leaves it: rows for each value alone, and the range as it was. */
  const sequenceAsBefore = async (): Promise<void> => {
    const range = await rangeOf();
    await owner.query('CREATE TABLE before AS TABLE log_facets');
    await log.sequence();
    const alone = ['often', 'rare'].flatMap((name) => ['allowed', 'refused'].flatMap((outcome) => Object.entries({ action: 'validate', caller: callerOf(name), code: 'quota_exceeded', outcome, tenant: 'acme' }).flatMap(([member, value]) => new SearchKeyReader().read({ [member]: value }).facets)));
    const { rowCount } = await owner.query('DELETE FROM log_facets f WHERE f.facet <> ALL ($1::bigint[]) AND NOT EXISTS (SELECT 1 FROM before b WHERE (b.facet, b.log_id, b.block) = (f.facet, f.log_id, f.block))', [alone]);
    t.ok(rowCount! > 0, 'pairs were written, and are taken away');
    await owner.query('DROP TABLE before');
    await owner.query('UPDATE logs SET paired_from = $1, paired_to = $2', [range.paired_from, range.paired_to]);
  };
  await log.sequence();
  const client = await reader(t, log);
  const rare = callerOf('rare');
  const check = async (name: string): Promise<void> => {
    const expected = await walked(client, log, ({ caller, outcome }) => caller === rare && outcome === 'refused');
    t.ok(expected.length > 0);
    for (const limit of [1, 3, 1000]) t.same(await searchAll(client, log, { caller: rare, outcome: 'refused', limit }), expected, `${name}, by ${limit}`);
    t.same(await searchAll(client, log, { caller: callerOf('often'), outcome: 'allowed', limit: 10 }), [], `${name}: none`);
  };
  await commitBlock(log, 2);
  await log.sequence();
  await check('with pairs');
  t.match(await rangeOf(), { paired_from: '0' });
  await commitBlock(log, 2);
  await sequenceAsBefore();
  await check('an older one went on');
  await commitBlock(log, 2);
  log.sequencer.forget();
  await log.sequence();
  await check('and a newer one again');
  const { paired_from: from, paired_to: to, size } = await rangeOf();
  t.ok(Number(from) > 256 && to === size, 'from where the newer one went on');
});
