/** The cap on guessing card numbers, by whoever may tokenize. */
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { tracesOf } from '../support/card-traces.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { readLog } from '../support/log-reader.ts';
import { TEST_RANGES, madeCandidate } from '../support/made-cards.ts';
import { isProblem } from '../support/problem.ts';

const cap = 5;
const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database, config: { guessing: { distinct_per_day: cap, merge_interval: '200ms' } } });
const globex = appliance.client('checkout-globex');
const callerOfGlobex = 'spiffe://cofre.dev/tenant/globex/service/checkout';

/** Counts end at midnight: no test begins right before it. */
while (new Date().getUTCHours() === 23 && new Date().getUTCMinutes() === 59) await sleep(500);

const candidate = (serial: number, last4 = '4242', range: (typeof TEST_RANGES)[number] = TEST_RANGES[0]): string => madeCandidate(range, last4, serial);
const metric = async (name: string): Promise<number> => {
  const text = await (await fetch(`${appliance.telemetryUrl}/metrics`)).text();
  return Number(new RegExp(`^${name} (\\S+)$`, 'mu').exec(text)?.[1]);
};

await t.test('a caller is stopped after so many card numbers that share both ends, and told to come back tomorrow', async (t) => {
  for (let serial = 0; serial < cap; serial += 1) t.equal((await globex.post('/v1/tokenize', { pan: candidate(serial) })).status, 201);
  for (let serial = cap; serial < cap + 3; serial += 1) {
    const reply = await globex.post('/v1/tokenize', { pan: candidate(serial) });
    isProblem(t, reply, 'quota_exceeded');
    const midnight = (86_400_000 - (Date.now() % 86_400_000)) / 1000;
    t.ok(Math.abs(Number(reply.headers['retry-after']) - midnight) < 30, `${reply.headers['retry-after']} seconds`);
  }
  t.equal((await globex.post('/v1/tokenize', { pan: candidate(0) })).status, 200, 'what was granted may come again');
  t.equal((await globex.post('/v1/tokenize', { pan: candidate(20, '4243') })).status, 201, 'other last four digits go on');
  t.equal((await globex.post('/v1/tokenize', { pan: candidate(20, '4242', TEST_RANGES[2]) })).status, 201, 'another bin goes on');
  t.equal((await appliance.client('checkout').post('/v1/tokenize', { pan: candidate(20) })).status, 201, 'another caller goes on');
});

await t.test('a guess that would hit a known card is refused like one that would not', async (t) => {
  // Known since yesterday, say: the counts of the day are gone, the cards are not.
  await appliance.stop();
  await withClient({ connectionString: database.adminUrl }, async (client) => void (await client.query('DELETE FROM guessed_groups')));
  await appliance.start();
  const client = appliance.client('checkout-globex');
  for (let serial = 100; serial < 100 + cap; serial += 1) t.equal((await client.post('/v1/tokenize', { pan: candidate(serial) })).status, 201);
  const known = await client.post('/v1/tokenize', { pan: candidate(1) });
  const unknown = await client.post('/v1/tokenize', { pan: candidate(200) });
  isProblem(t, known, 'quota_exceeded');
  t.same({ ...known.json(), request_id: '' }, { ...unknown.json(), request_id: '' });
});

await t.test('of a batch the items beyond the cap are refused alone', async (t) => {
  const client = appliance.client('checkout-globex');
  const items = [...Array.from({ length: cap + 3 }, (_, serial) => ({ pan: candidate(serial, '1881') })), { pan: candidate(0, '1882') }, { pan: '1' }];
  const reply = await client.post('/v1/tokenize/batch', { items });
  t.equal(reply.status, 200);
  const answers = reply.json()['items'] as { token?: string; created?: boolean; last4?: string; error?: { code: string; status: number; retryable: boolean } }[];
  t.same(answers.map((answer) => answer.error?.code ?? answer.last4), [...Array.from({ length: cap }, () => '1881'), 'quota_exceeded', 'quota_exceeded', 'quota_exceeded', '1882', 'invalid_pan']);
  t.match(answers[cap], { error: { code: 'quota_exceeded', status: 429, retryable: true } });
  t.equal(new Set(answers.flatMap(({ token }) => token ?? [])).size, cap + 1);
  const again = await client.post('/v1/tokenize/batch', { items: items.toReversed() });
  t.same((again.json()['items'] as typeof answers).map(({ created, error }) => error?.code ?? created), ['invalid_pan', false, 'quota_exceeded', 'quota_exceeded', 'quota_exceeded', ...Array.from({ length: cap }, () => false)]);
  const refused = await client.post('/v1/tokenize/batch', { items: items.slice(cap, cap + 3) });
  t.same((refused.json()['items'] as typeof answers).map(({ error }) => error?.code), ['quota_exceeded', 'quota_exceeded', 'quota_exceeded'], 'a batch of nothing else');

  const key = { 'idempotency-key': 'batch-with-refused-items' };
  const first = await client.post('/v1/tokenize/batch', { items: items.map((item) => ({ ...item, reuse: false })) }, key);
  t.equal(first.status, 200);
  const second = await client.post('/v1/tokenize/batch', { items: items.map((item) => ({ ...item, reuse: false })) }, key);
  t.same(second.json(), first.json(), 'under an Idempotency-Key the answer is the same again');
});

await t.test('a caller that may import is not refused, and is counted', async (t) => {
  const checkout = appliance.client('checkout');
  const before = await metric('cofre_guessing_exempt_total');
  for (let serial = 0; serial < cap + 4; serial += 1) t.equal((await checkout.post('/v1/tokenize', { pan: candidate(serial, '0005') })).status, 201);
  const reply = await checkout.post('/v1/tokenize/batch', { items: Array.from({ length: 30 }, (_, serial) => ({ pan: candidate(serial, '0005') })) });
  t.notOk((reply.json()['items'] as { error?: unknown }[]).some(({ error }) => error !== undefined));
  t.equal((await metric('cofre_guessing_exempt_total')) - before, 30 - cap);
  // Counted by bits: about thirty.
  t.ok(Math.abs((await metric('cofre_guessing_exempt_most')) - 30) <= 4);
});

await t.test('a refusal raises an alarm and has its entry, which names it', async (t) => {
  t.equal(await metric('cofre_guessing_refused_total'), 2 + 3 + 3 + 3 + 3 + 3);
  const alarms = appliance.messages().filter((message) => message['caller'] === callerOfGlobex);
  t.ok(alarms.length >= 2, 'one after each start');
  t.match(alarms[0], { level: 'warn', msg: /guessing/u, count: 1 });

  const entries = (await readLog(appliance)).map(({ value }) => value).filter((value) => value['detail'] !== undefined && (value['detail'] as { guesses?: number }).guesses !== undefined);
  const single = entries.filter((entry) => entry['action'] === 'tokenize');
  t.equal(single.length, 3 + 2);
  for (const entry of single) t.match(entry, { caller: callerOfGlobex, tenant: 'globex', outcome: 'refused', code: 'quota_exceeded', detail: { guesses: 1 }, policies: ['globex-checkout-tokenizes'] });
  const batches = entries.filter((entry) => entry['action'] === 'tokenize_batch');
  t.equal(batches.length, 5);
  for (const entry of batches) t.match(entry, { caller: callerOfGlobex, outcome: 'allowed', detail: { guesses: 3 } });
  t.match(batches[0], { items: { quota_exceeded: 3, invalid_pan: 1 } });
});

await t.test('a restart does not give a count anew, and neither does a kill', async (t) => {
  const used = candidate(0, '7777');
  for (let serial = 0; serial < cap; serial += 1) await appliance.client('checkout-globex').post('/v1/tokenize', { pan: candidate(serial, '7777') });
  await appliance.restart();
  isProblem(t, await appliance.client('checkout-globex').post('/v1/tokenize', { pan: candidate(50, '7777') }), 'quota_exceeded');
  t.equal((await appliance.client('checkout-globex').post('/v1/tokenize', { pan: used })).status, 200);
  for (let serial = 0; serial < cap; serial += 1) await appliance.client('checkout-globex').post('/v1/tokenize', { pan: candidate(serial, '8888') });
  const rows = async (): Promise<number> => await withClient({ connectionString: database.adminUrl }, async (client) => (await client.query<{ n: number }>("SELECT count(*)::int AS n FROM guessed_groups WHERE shared_at > now() - interval '10 seconds'")).rows[0]!.n);
  await until(async () => (await rows()) >= 2, 'the sharing of the counts');
  await sleep(1000);
  await appliance.kill9();
  await appliance.start();
  isProblem(t, await appliance.client('checkout-globex').post('/v1/tokenize', { pan: candidate(50, '8888') }), 'quota_exceeded');
});

await t.test('no refused card number is in any answer, message or table', async (t) => {
  t.same(await tracesOf(appliance, [candidate(cap), candidate(cap + 1), candidate(50, '7777'), candidate(50, '8888')]), []);
});

await t.test('several processes of one vault share a count, however a caller\'s connections are spread', async (t) => {
  const several = await startAppliance(t, { database: await freshDatabase(t, { migrated: false }), config: { workers: 2, guessing: { distinct_per_day: cap, merge_interval: '200ms' } } });
  let granted = 0;
  for (let serial = 0; serial < 20; serial += 1) {
    // A connection of its own each time: they are given to the processes in turn.
    const client = several.client('checkout-globex', { connections: 1 });
    if ((await client.post('/v1/tokenize', { pan: candidate(serial) })).status === 201) granted += 1;
    await sleep(700);
  }
  t.ok(granted >= cap && granted <= cap + 2, `${granted} of 20 were granted`);
});
