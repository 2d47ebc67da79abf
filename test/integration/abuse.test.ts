/** Callers that do what their service would not: alerts, and suspensions that every process keeps to and no restart or edit lifts. */
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { readLog } from '../support/log-reader.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const getnet = 'spiffe://cofre.dev/tenant/acme/service/getnet';
const checkout = 'spiffe://cofre.dev/tenant/acme/service/checkout';
const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, {
  database,
  config: { workers: 2, events: { outbox: true }, guessing: { distinct_per_day: 3 }, abuse: { unknown_tokens_per_minute: 20, sequential_tokens: 4, suspend: ['honey_token', 'sequential_tokens'] } },
});
const admin = (name = 'operator-a') => appliance.client(name, { admin: true });
const pan = cardText(1);
const { token } = (await appliance.client('checkout').post('/v1/tokenize', { pan })).json() as { token: string };
const asAdministrator = <T>(work: (query: (text: string) => Promise<{ rows: Record<string, unknown>[] }>) => Promise<T>): Promise<T> => withClient({ connectionString: database.adminUrl }, (client) => work((text) => client.query(text)));
/** The entries of an action that were not refused, in the order of their time: each writer has its own. */
const logged = async (action: string) => (await readLog(appliance)).map(({ value }) => value).filter((value) => value['action'] === action && value['code'] !== 'not_authorized' && value['code'] !== 'invalid_request').sort((a, b) => (String(a['at']) < String(b['at']) ? -1 : 1));
/** A connection of its own each time, so that every process of the vault is asked. */
const everywhere = async (name: string, status: number): Promise<boolean> => {
  for (let n = 0; n < 6; n += 1) {
    const reply = await appliance.client(name, { connections: 1 }).post('/v1/validate', { token });
    if (reply.status !== status) return false;
  }
  return true;
};
/** As two operators would have it (the rows are made by the vault alone, so the test cannot). */
let suspended: string[] = [];

await t.test('a honey token raises an alert at its first naming, and its caller may do nothing from then on', async (t) => {
  isProblem(t, await appliance.client('checkout').post('/v1/honey-tokens', { tenant: 'acme' }), 'not_found', 'no path of the API');
  isProblem(t, await admin('auditor').post('/v1/honey-tokens', { tenant: 'acme' }), 'not_authorized');
  isProblem(t, await admin().post('/v1/honey-tokens', { tenant: 'nobody' }), 'invalid_request');
  isProblem(t, await admin().post('/v1/honey-tokens', { tenant: 'acme', count: 3 }), 'invalid_request');
  const made = await admin().post('/v1/honey-tokens', { tenant: 'acme' });
  t.equal(made.status, 201);
  const honey = made.json()['token'] as string;
  const numeric = (await admin().post('/v1/honey-tokens', { tenant: 'globex', format: 'numeric' })).json()['token'] as string;
  t.match(numeric, /^\d{16}$/u);
  await until(async () => ((await admin().get('/v1/suspensions')).json()['honey_tokens'] as number) === 2, 'both processes to know them');

  const ofAnother = await appliance.client('checkout').post('/v1/validate', { token: numeric });
  t.equal(ofAnother.json()['status'], 'unknown', 'another tenant\'s is nothing to this one');
  t.equal((await appliance.client('checkout').post('/v1/validate', { token })).status, 200);

  const client = appliance.client('getnet');
  await until(async () => {
    const reply = await client.post('/v1/detokenize', { token: honey, purpose: 'capture' });
    return reply.status === 403;
  }, 'the process that knows it, and then the refusal');
  await until(() => everywhere('getnet', 403), 'the other process');
  isProblem(t, await client.post('/v1/detokenize', { token, purpose: 'capture' }), 'not_authorized', 'a good token does not open either');
  t.equal((await appliance.client('checkout').post('/v1/validate', { token })).status, 200, 'others go on');
  suspended = [getnet];

  const alerts = await logged('abuse.alert');
  t.ok(alerts.length >= 1 && alerts.length <= 2, 'one a process at the most');
  t.match(alerts[0], { caller: getnet, tenant: 'acme', outcome: 'failed', detail: { kind: 'honey_token', count: 1, suspended: 'yes' } });
  t.match(await logged('caller.suspend'), [{ caller: getnet, outcome: 'allowed', detail: { by: 'abuse.honey_token' } }]);
  t.match((await readLog(appliance)).map(({ value }) => value).filter((value) => value['action'] === 'detokenize' && value['code'] === 'not_authorized').at(-1), { caller: getnet, outcome: 'refused', detail: { why: 'suspended' } });
  t.match(await logged('honey_token.make'), [{ detail: { of: 'acme' } }, { detail: { of: 'globex' } }]);
  t.notMatch(JSON.stringify(await logged('honey_token.make')), new RegExp(honey, 'u'), 'the log does not say which one to leave alone');
  t.match(await asAdministrator(async (query) => (await query('SELECT e AS event FROM outbox, json_array_elements(events) e WHERE e->>\'type\' LIKE \'caller.%\'')).rows), [{ event: { type: 'caller.suspended', subject: getnet, tenant: 'acme', data: { by: 'abuse.honey_token' } } }]);
  t.match(await (await fetch(`${appliance.telemetryUrl}/metrics`)).text(), /cofre_abuse_alerts_total\{kind="honey_token"\} [12]\n/u);
});

await t.test('a restart and a kill keep to it', async (t) => {
  await appliance.restart();
  t.ok(await everywhere('getnet', 403));
  await appliance.kill9();
  await appliance.start();
  t.ok(await everywhere('getnet', 403));
  t.match((await admin('auditor').get('/v1/suspensions')).json(), { suspensions: [{ caller: getnet, by: 'abuse.honey_token' }] });
  isProblem(t, await admin('intruder').get('/v1/suspensions'), 'not_authorized');
});

await t.test('one operator may hold a caller back, and none may let it go here', async (t) => {
  isProblem(t, await admin('auditor').post('/v1/suspensions', { caller: checkout }), 'not_authorized');
  for (const caller of ['spiffe://elsewhere/tenant/acme/service/x', 'checkout', `${checkout}\n`, 7]) isProblem(t, await admin().post('/v1/suspensions', { caller }), 'invalid_request');
  t.equal((await admin().post('/v1/suspensions', { caller: checkout })).status, 201);
  t.equal((await admin('operator-b').post('/v1/suspensions', { caller: checkout })).status, 200, 'it is already');
  await until(() => everywhere('checkout', 403), 'every process');
  isProblem(t, await admin().call('DELETE', `/v1/suspensions/${encodeURIComponent(checkout)}`), 'not_found');
  t.match((await logged('caller.suspend')).slice(-2), [{ detail: { subject: checkout, new: 'yes' } }, { detail: { subject: checkout, new: 'no' } }]);
  t.match(await asAdministrator(async (query) => (await query("SELECT e AS event FROM outbox, json_array_elements(events) e WHERE e->>'type' = 'caller.suspended' ORDER BY e->>'at'")).rows.map(({ event }) => event).filter((event) => (event as { subject: string }).subject === checkout)), [{ subject: checkout, tenant: 'acme', data: { by: 'spiffe://cofre.dev/tenant/platform/service/operator-a' } }], 'whoever listens to events is told as well, once');
  suspended.push(checkout);
  t.same(((await admin().get('/v1/suspensions')).json()['suspensions'] as { caller: string }[]).map(({ caller }) => caller).sort(), suspended.toSorted());
});

await t.test('tokens that nobody has are an alert, and by this configuration no more', async (t) => {
  const globex = appliance.client('checkout-globex', { connections: 1 });
  for (let n = 0; n < 22; n += 1) await globex.post('/v1/validate', { token: n % 2 === 0 ? token : `x${n}` });
  const { length } = await logged('abuse.alert');
  await until(async () => (await logged('abuse.alert')).length >= length, 'the alert');
  t.match((await logged('abuse.alert')).at(-1), { caller: 'spiffe://cofre.dev/tenant/globex/service/checkout', tenant: 'globex', detail: { kind: 'unknown_tokens', count: 21, suspended: 'no' } });
  t.equal((await globex.post('/v1/validate', { token })).status, 200);
});

await t.test('who guesses card numbers is told on', async () => {
  const globex = appliance.client('checkout-globex', { connections: 1 });
  const { madeCandidate, TEST_RANGES } = await import('../support/made-cards.ts');
  for (let serial = 0; serial < 5; serial += 1) await globex.post('/v1/tokenize', { pan: madeCandidate(TEST_RANGES[0], '4242', serial) });
  await until(async () => (await logged('abuse.alert')).some(({ detail }) => (detail as { kind: string }).kind === 'card_guessing'), 'the alert');
});

await t.test('numeric tokens tried one after the other suspend, hit or not', async () => {
  const globex = appliance.client('checkout-globex', { connections: 1 });
  const { isNumericToken } = await import('../../vault/numeric-token.ts');
  const made = (await globex.post('/v1/tokenize', { pan: cardText(2), format: 'numeric' })).json()['token'] as string;
  let tried = 0;
  for (let step = 0; tried < 5 && step < 30; step += 1) {
    const next = `${String(BigInt(made.slice(0, -4)) + BigInt(step))}${made.slice(-4)}`;
    if (!isNumericToken(next)) continue;
    await globex.post('/v1/validate', { token: next });
    tried += 1;
  }
  await until(() => everywhere('checkout-globex', 403), 'the suspension');
});

await t.test('a database administrator who lifts a suspension is caught', async (t) => {
  const rows = async (): Promise<number> => Number((await asAdministrator(async (query) => await query('SELECT count(*) AS n FROM controls'))).rows[0]!['n']);
  const count = await rows();
  await asAdministrator((query) => query("CREATE TABLE kept AS SELECT * FROM controls; UPDATE controls SET state = 'off' WHERE kind = 'suspension'"));
  await appliance.kill9();
  t.equal((await appliance.launch())?.code, 1, 'edited rows');
  t.match(appliance.err, /was edited at row/u);
  await asAdministrator((query) => query('DELETE FROM controls; INSERT INTO controls SELECT * FROM kept ORDER BY number LIMIT 3'));
  t.equal((await appliance.launch())?.code, 1, 'the last ones taken out');
  t.match(appliance.err, /ends at row 3, and this vault has seen row/u);
  await asAdministrator((query) => query('DELETE FROM controls; INSERT INTO controls SELECT * FROM kept'));
  await appliance.start();
  t.ok(await everywhere('getnet', 403));

  // And while it runs.
  await asAdministrator((query) => query(`DELETE FROM controls WHERE number = ${count}`));
  await until(async () => !((await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as { ok: boolean }).ok, 'readiness to say so');
  t.ok(await everywhere('checkout-globex', 403), 'what was in force stays');
  await until(async () => (await logged('log.alert')).some(({ detail }) => (detail as { kind: string }).kind === 'controls'), 'the alert');
  await asAdministrator((query) => query(`INSERT INTO controls SELECT * FROM kept WHERE number = ${count}`));
  await until(async () => ((await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as { ok: boolean }).ok, 'readiness again');
});
