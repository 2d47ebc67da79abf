/** Quotas of detokenize: exact, durable, by caller and purpose. */
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { startAppliance } from '../support/appliance.ts';
import type { ApiClient } from '../support/api-client.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { faultOfProblem, isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const perMinute = 25;
const caller = 'spiffe://cofre.dev/tenant/acme/service/getnet';
const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, {
  database,
  config: { quotas: [{ caller, purpose: 'authorization', per_minute: perMinute }, { caller, purpose: 'refund', per_minute: 0 }, { caller: 'spiffe://cofre.dev/tenant/acme/service/other', purpose: 'capture', per_minute: 1 }] },
});
const { token } = (await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(1) })).json();

/** Waits, if need be, until most of a minute lies ahead, so that a test's calls fall into one. */
const earlyInAMinute = async (): Promise<void> => {
  while (new Date().getUTCSeconds() > 35) await sleep(250);
};
const detokenize = (client: ApiClient, purpose: string, text = token) => client.post('/v1/detokenize', { token: text, purpose });
/** Ends the vault's minute: nothing of the next one is used. */
const nextMinute = (): Promise<void> => withClient({ connectionString: database.adminUrl }, async (client) => void (await client.query("DELETE FROM quota_counts")));

await t.test('under concurrency exactly the quota is granted in a minute, and the rest is told when to come again', async (t) => {
  const getnet = appliance.client('getnet', { connections: 32 });
  await Promise.all(Array.from({ length: 32 }, () => getnet.get('/openapi.json')));
  await earlyInAMinute();
  const replies = await Promise.all(Array.from({ length: 100 }, () => detokenize(getnet, 'authorization')));
  t.equal(replies.filter((reply) => reply.status === 200).length, perMinute);
  const refused = replies.filter((reply) => reply.status !== 200);
  t.equal(refused.length, 100 - perMinute);
  t.same(refused.map((reply) => faultOfProblem(reply, 'quota_exceeded')).filter((fault) => fault !== null), []);
  for (const reply of refused) t.ok(Number(reply.headers['retry-after']) <= 60);

  t.equal((await detokenize(getnet, 'capture')).status, 200, 'another purpose has no limit here');
  isProblem(t, await detokenize(getnet, 'refund'), 'quota_exceeded', 'a quota of nothing');
  isProblem(t, await detokenize(getnet, 'chargeback'), 'not_authorized', 'what is not granted is refused as such');

  await nextMinute();
  t.equal((await detokenize(getnet, 'authorization')).status, 200, 'the next minute has a quota of its own');
});

await t.test('calls for tokens that do not open count as well, so that a quota bounds guessing', async (t) => {
  const getnet = appliance.client('getnet');
  await earlyInAMinute();
  await nextMinute();
  for (let n = 0; n < perMinute; n += 1) isProblem(t, await detokenize(getnet, 'authorization', n % 2 === 0 ? 'tok_nothing' : ''), 'token_unknown');
  isProblem(t, await detokenize(getnet, 'authorization'), 'quota_exceeded');
  isProblem(t, await detokenize(getnet, 'authorization', 'tok_nothing'), 'quota_exceeded', 'and then say nothing of the token');
});

await t.test('requests that are refused before they are asked do not count', async (t) => {
  const getnet = appliance.client('getnet');
  const intruder = appliance.client('intruder');
  await earlyInAMinute();
  await nextMinute();
  for (let n = 0; n < perMinute; n += 1) {
    isProblem(t, await getnet.post('/v1/detokenize', { token, purpose: 'authorization', more: 1 }), 'invalid_request');
    isProblem(t, await detokenize(intruder, 'authorization'), 'not_authorized');
  }
  t.equal((await detokenize(getnet, 'authorization')).status, 200);
});

await t.test('a restart does not give a quota anew', async (t) => {
  await earlyInAMinute();
  await nextMinute();
  const getnet = appliance.client('getnet');
  for (let n = 0; n < perMinute; n += 1) t.equal((await detokenize(getnet, 'authorization')).status, 200);
  await appliance.restart();
  isProblem(t, await detokenize(appliance.client('getnet'), 'authorization'), 'quota_exceeded');
});

await t.test('several processes grant exactly what is allowed: calls of a whole tenant, distinct tokens of a caller, and a reference once', { timeout: 120_000 }, async (t) => {
  const most = 60;
  const different = 12;
  const twin = await startAppliance(t, {
    config: {
      workers: 2,
      quotas: [{ tenant: 'acme', purpose: 'authorization', per_day: most }, { caller, purpose: 'refund', distinct_tokens_per_day: different }],
      references: { demands: [{ purpose: 'capture', rule: 'single_use' }] },
    },
  });
  const checkout = twin.client('checkout');
  const tokens = await Promise.all(Array.from({ length: 24 }, async (_, card) => (await checkout.post('/v1/tokenize', { pan: cardText(card) })).json()['token'] as string));
  // Not around midnight of UTC, where two days would be granted.
  while (new Date().getUTCHours() === 23 && new Date().getUTCMinutes() >= 59) await sleep(1000);
  const clients = [twin.client('getnet', { connections: 16 }), twin.client('getnet', { connections: 16 })];
  const ask = (n: number, body: object) => clients[n % 2]!.post('/v1/detokenize', body);

  const authorized = await Promise.all(Array.from({ length: 3 * most }, (_, n) => ask(n, { token: tokens[n % tokens.length], purpose: 'authorization' })));
  t.equal(authorized.filter(({ status }) => status === 200).length, most);
  for (const reply of authorized.filter(({ status }) => status !== 200)) {
    t.equal(faultOfProblem(reply, 'quota_exceeded'), null);
    const wait = Number(reply.headers['retry-after']);
    t.ok(wait >= 1 && wait <= 86_400);
  }

  const refunds = await Promise.all(Array.from({ length: 8 * tokens.length }, async (_, n) => ({ token: tokens[(n * 7) % tokens.length]!, reply: await ask(n, { token: tokens[(n * 7) % tokens.length], purpose: 'refund' }) })));
  const opened = new Set(refunds.filter(({ reply }) => reply.status === 200).map(({ token }) => token));
  t.equal(opened.size, different);
  const [one] = opened;
  t.equal((await ask(0, { token: one, purpose: 'refund' })).status, 200, 'a token that was opened that day costs nothing more');
  isProblem(t, await ask(0, { token: tokens.find((token) => !opened.has(token)), purpose: 'refund' }), 'quota_exceeded');

  isProblem(t, await ask(0, { token: one, purpose: 'capture' }), 'reference_required');
  const captures = await Promise.all(Array.from({ length: 40 }, (_, n) => ask(n, { token: one, purpose: 'capture', reference: 'order-1' })));
  t.equal(captures.filter(({ status }) => status === 200).length, 1);
  for (const reply of captures.filter(({ status }) => status !== 200)) t.equal(faultOfProblem(reply, 'reference_used'), null);
});
