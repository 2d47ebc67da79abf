/** Searching a database that holds several logs of a vault: after a restore a new one was begun, and what the backup had of the old one is still found. */
import { randomBytes } from 'node:crypto';
import { Client } from 'pg';
import t, { type Test } from 'tap';
import { signCheckpoint } from '../../audit/checkpoint.ts';
import type { Entry } from '../../audit/entry.ts';
import { restartLog } from '../../audit/restart.ts';
import { searchLogs, type LogsAnswer, type LogsQuery } from '../../audit/search-logs.ts';
import { postgresTreeStore } from '../../audit/tree-store.ts';
import { origin, testSigner } from '../support/group-commit.ts';
import { KeptLog } from '../support/kept-log.ts';

async function reader(t: Test, log: KeptLog): Promise<Client> {
  const client = new Client(log.database.connect('admin'));
  await client.connect();
  t.teardown(() => client.end());
  return client;
}

/** Begins a new log as after a restore: of the one in use, `lost` more entries were witnessed than the database has. */
async function restart(log: KeptLog, lost: number, of = log.sequencer.head!): Promise<number> {
  const size = of.size + lost;
  await log.witness.publish(await signCheckpoint({ origin: of.origin, size, root: randomBytes(32) }, testSigner));
  await restartLog({ store: postgresTreeStore(log.pool), witnesses: [log.witness], signer: testSigner, name: origin, now: log.time });
  log.sequencer = log.newSequencer();
  await log.sequence();
  return size;
}

/** Commits entries of a writer of their own: those of before a restore have ended. Each names the token `tok_all`. */
async function write(log: KeptLog, names: readonly string[]): Promise<void> {
  const writer = await log.openWriter('tokenize');
  for (const name of names) {
    const entry: Entry = { action: 'validate', at: log.time, caller: `spiffe://cofre.test/tenant/acme/service/${name}`, outcome: 'allowed', tenant: 'acme', tokens: { active: ['tok_all', `tok_${name}`] } };
    await writer.commit({ kind: 'entry', entry });
  }
  // New writers are met once a second, unless it is asked for.
  while ((await log.sequencer.step(true)).leaves > 0);
  await log.sequencer.sign();
}

/** All answers of a search, by origin and the caller's last word. */
async function searchAll(client: Client, query: LogsQuery): Promise<string[]> {
  const found: string[] = [];
  for (let next: LogsAnswer['next'] = null, answers = 0; ; answers += 1) {
    if (answers > 50) throw new Error('a search does not end');
    const [before, beforeIn] = next === null ? [] : String(next).split('@');
    const answer: LogsAnswer | null = await searchLogs(client, { ...query, ...(before === undefined ? {} : { before: Number(before) }), ...(beforeIn === undefined ? {} : { beforeIn: Number(beforeIn) }) }, testSigner);
    if (answer === null || answer.items.length > query.limit) throw new Error('an answer that was not asked for');
    found.push(...answer.items.map(({ origin: of, entry }) => `${of} ${String(entry['caller']).split('/').at(-1)!}`));
    next = answer.next;
    if (next === null) return found;
  }
}

t.test('the logs before the one in use are searched behind it, by answers of any size', async (t) => {
  const log = await KeptLog.open(t, new Date());
  await write(log, ['a', 'b']);
  const first = log.sequencer.head!;
  const signedFirst = await restart(log, 7);
  await write(log, ['c']);
  const second = log.sequencer.head!;
  const signedSecond = await restart(log, 3);
  const client = await reader(t, log);
  t.same(await searchAll(client, { tenant: 'acme', limit: 1 }), [`${origin}/2 c`, `${origin} b`, `${origin} a`], 'where the newest has none');
  await write(log, ['d', 'e', 'f']);

  const all = [`${origin}/3 f`, `${origin}/3 e`, `${origin}/3 d`, `${origin}/2 c`, `${origin} b`, `${origin} a`];
  for (const limit of [1, 2, 3, 4, 1000]) {
    t.same(await searchAll(client, { tenant: 'acme', limit }), all, `by tenant, by ${limit}`);
    t.same(await searchAll(client, { token: 'tok_all', limit }), all, `by token, by ${limit}`);
    t.same(await searchAll(client, { token: 'tok_b', limit }), [`${origin} b`]);
    t.same(await searchAll(client, { action: 'delete', limit }), []);
  }
  const answer = (await searchLogs(client, { token: 'tok_b', limit: 1 }, testSigner))!;
  const start = log.time.toISOString();
  t.same(answer, {
    items: [{ origin, index: answer.items[0]!.index, entry: answer.items[0]!.entry }],
    next: null,
    searchable_from: { index: 0, time: start },
    earlier_logs: [
      { origin: `${origin}/2`, entries: second.size, signed: signedSecond, searchable_from: { index: 0, time: start } },
      { origin, entries: first.size, signed: signedFirst, searchable_from: { index: 0, time: start } },
    ],
  });
  t.equal(await searchLogs(client, { limit: 1, before: 5, beforeIn: 4 }, testSigner), null, 'a log that there is not');
});

t.test('a log that the backup did not have at all is told of', async (t) => {
  const log = await KeptLog.open(t, new Date());
  await write(log, ['a']);
  const first = log.sequencer.head!;
  // As the second log's witness: of that one, nothing is in the database.
  await restart(log, 0, { ...first, origin: `${origin}/2`, size: 900 });
  const { items, earlier_logs: earlier } = (await searchLogs(await reader(t, log), { token: 'tok_a', limit: 10 }, testSigner))!;
  t.same(items.map(({ origin: of }) => of), [origin]);
  t.match(earlier, [{ origin: `${origin}/2`, entries: 0, signed: 900 }, { origin, entries: first.size, signed: null }]);
});
