/** Running it: health, metrics, reloads, stops in mid-load, restarts. */
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { plainLines, startAppliance, until } from '../support/appliance.ts';
import { readLog, tokensOf } from '../support/log-reader.ts';
import { put } from '../support/pki.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

// Its own PostgreSQL, so that it outlives a kill as it does for a user.
const appliance = await startAppliance(t);
let nextCard = 0;

await t.test('it says that it is ready in one line, after how to make the first call', async (t) => {
  const lines = appliance.out.trimEnd().split('\n');
  t.equal(lines.at(-1), `cofre ready https://127.0.0.1:${appliance.apiPort}`);
  t.equal(lines.filter((line) => line.startsWith('cofre ready')).length, 1);
  t.ok(lines.some((line) => line.includes(`--cert ${appliance.home}/pki/checkout.pem`)));
  t.same(plainLines(appliance.err), []);
});

await t.test('health, readiness and metrics are plain HTTP, tell states and numbers, and nobody\'s card or token', async (t) => {
  const checkout = appliance.client('checkout');
  const made = await checkout.post('/v1/tokenize', { pan: cardText(nextCard++), expiry: '2029-12' });
  const token = made.json()['token'] as string;
  isProblem(t, await checkout.post('/v1/tokenize', { pan: '4111111111111112' }), 'invalid_pan');
  t.equal((await appliance.client('getnet').post('/v1/detokenize', { token, purpose: 'capture' })).status, 200);

  const health = await fetch(`${appliance.telemetryUrl}/healthz`);
  t.same([health.status, await health.json()], [200, { ok: true }]);
  const ready = await fetch(`${appliance.telemetryUrl}/readyz`);
  const parts = (await ready.json()) as Record<string, unknown>;
  t.equal(ready.status, 200);
  t.equal(parts['ok'], true);
  for (const part of ['hsm', 'database', 'log', 'revocation']) t.equal((parts[part] as { ok: boolean }).ok, true, part);

  const reply = await fetch(`${appliance.telemetryUrl}/metrics`);
  const metrics = await reply.text();
  t.equal(reply.status, 200);
  t.match(reply.headers.get('content-type'), /^text\/plain; version=0\.0\.4/u);
  for (const name of ['cofre_request_seconds', 'cofre_commit_queue', 'cofre_commit_seconds', 'cofre_commit_calls', 'cofre_commit_disturbed_total', 'cofre_tls_events_total', 'cofre_hsm_up', 'cofre_hsm_away_seconds', 'cofre_database_away_seconds', 'cofre_connections', 'process_resident_memory_bytes', 'nodejs_eventloop_lag_seconds']) {
    t.match(metrics, new RegExp(`^# TYPE ${name} `, 'mu'), name);
  }
  t.match(metrics, /^cofre_request_seconds_count\{operation="tokenize",outcome="ok"\} 1$/mu);
  t.match(metrics, /^cofre_request_seconds_count\{operation="tokenize",outcome="invalid_pan"\} 1$/mu);
  t.match(metrics, /^cofre_request_seconds_count\{operation="detokenize",outcome="ok"\} 1$/mu, 'also of what is written past the framework');
  t.match(metrics, /^cofre_hsm_up 1$/mu);
  // Every stage of a call has its time.
  for (const stage of ['seal', 'open']) t.match(metrics, new RegExp(`^cofre_key_work_seconds_count\\{stage="${stage}"\\} 1$`, 'mu'), stage);
  for (const role of ['tokenize', 'detokenize']) {
    const [, waits] = new RegExp(`^cofre_commit_wait_seconds_count\\{role="${role}"\\} (\\d+)$`, 'mu').exec(metrics) ?? [];
    const [, commits] = new RegExp(`^cofre_commit_seconds_count\\{role="${role}"\\} (\\d+)$`, 'mu').exec(metrics) ?? [];
    t.ok(Number(commits) > 0 && waits === commits, `${role}: ${waits} waits, ${commits} commits`);
  }
  for (const operation of ['log_in', 'probe', 'find', 'hmac', 'make', 'decrypt', 'sign']) t.match(metrics, new RegExp(`^cofre_hsm_call_seconds_count\\{operation="${operation}"\\} [1-9]`, 'mu'), operation);
  t.notOk(metrics.includes(token) || metrics.includes(cardText(0)) || metrics.includes('spiffe'));

  for (const [method, path, status] of [['POST', '/healthz', 405], ['GET', '/', 404], ['GET', '/v1/tokens/x', 404], ['HEAD', '/healthz', 200]] as const) {
    const answer = await fetch(appliance.telemetryUrl + path, { method });
    await answer.arrayBuffer();
    t.equal(answer.status, status, `${method} ${path}`);
  }
});

await t.test('SIGHUP takes a new policy set whole, keeps the old one where the new one is broken, and logs which is in force', async (t) => {
  const folder = join(appliance.home, 'policies');
  const file = join(folder, 'acme.cedar');
  const before = readFileSync(file, 'utf8');
  const getnet = appliance.client('getnet');
  const checkout = appliance.client('checkout');
  const { token } = (await checkout.post('/v1/tokenize', { pan: cardText(nextCard++) })).json();
  const capture = () => getnet.post('/v1/detokenize', { token, purpose: 'capture' });
  const chargeback = () => getnet.post('/v1/detokenize', { token, purpose: 'chargeback' });
  const digest = async () => (await appliance.client('auditor', { admin: true }).get('/v1/status')).json()['policy_digest'];
  const first = await digest();

  for (const broken of ['permit (', before.replace('"acme-getnet-detokenizes"', '"acme-checkout-tokenizes"'), before.replace('Cofre::Purpose::"refund"', 'Cofre::Purpose::"fun"'), '@id("all") permit (principal, action, resource);\n', '', '// all gone\n']) {
    const mark = appliance.messages().length;
    put(file, broken);
    appliance.signal('SIGHUP');
    await until(() => appliance.messages().slice(mark).some((message) => message['msg'] === 'the policies were not reloaded'), 'the message');
    t.equal((await capture()).status, 200, 'the old set decides');
    t.equal(await digest(), first);
  }

  put(file, before.replace('Cofre::Purpose::"refund"', 'Cofre::Purpose::"chargeback"'));
  appliance.signal('SIGHUP');
  await until(async () => (await chargeback()).status === 200, 'the new set');
  isProblem(t, await getnet.post('/v1/detokenize', { token, purpose: 'refund' }), 'not_authorized', 'what it no longer grants is refused at once');
  const second = await digest();
  t.not(second, first);

  put(file, before);
  appliance.signal('SIGHUP');
  await until(async () => (await chargeback()).status === 403, 'the first set');
  t.equal(await digest(), first);
  const reloads = (await readLog(appliance)).filter(({ value }) => value['action'] === 'policy.reload').map(({ value }) => (value['detail'] as { policies: string }).policies);
  t.same(reloads, [second, first]);
});

await t.test('SIGTERM in mid-load ends it cleanly, and every token that was acknowledged opens after the next start', async (t) => {
  for (const kill of [false, true]) {
    const acknowledged = new Map<string, string>();
    let unanswered = 0;
    let stopped = false;
    const checkout = appliance.client('checkout', { connections: 16 });
    const load = Array.from({ length: 16 }, async () => {
      while (!stopped) {
        const pan = cardText(nextCard++);
        const reply = await checkout.post('/v1/tokenize', { pan }).catch(() => null);
        if (reply === null) {
          unanswered += 1;
          stopped = true;
        } else if (reply.status === 201) acknowledged.set(pan, reply.json()['token'] as string);
        else if (reply.status !== 503) throw new Error(`the answer is ${reply.status}`);
      }
    });
    await until(() => acknowledged.size > 100, 'the load');
    if (kill) {
      appliance.signal('SIGKILL');
      await Promise.all(load);
      await appliance.kill9();
    } else {
      appliance.signal('SIGTERM');
      // No client closes its connections first: the server must get rid of them.
      await Promise.all(load);
      t.same(await appliance.stop(), { code: 0, signal: null });
    }
    t.ok(unanswered > 0, 'it ended under load');
    await appliance.start();
    const getnet = appliance.client('getnet', { connections: 8 });
    const opened = await Promise.all([...acknowledged].map(async ([pan, token]) => (await getnet.post('/v1/detokenize', { token, purpose: 'capture' })).json()['pan'] === pan));
    t.equal(opened.filter((same) => !same).length, 0, `${kill ? 'SIGKILL' : 'SIGTERM'}: all are there`);
    const entries = await readLog(appliance);
    const named = new Set(entries.flatMap(tokensOf).filter(({ outcome }) => outcome === 'created').map(({ token }) => token));
    t.equal([...acknowledged.values()].filter((token) => !named.has(token)).length, 0, 'and in the log, whose chains hold');
  }
});

await t.test('state survives a restart: the same card is known, idempotency keys count, certificates and keys stay', async (t) => {
  const pan = cardText(nextCard++);
  const key = { 'idempotency-key': 'over-a-restart' };
  const authority = appliance.authority;
  const keys = readdirSync(join(appliance.home, 'hsm/tokens'), { recursive: true }).length;
  const first = await appliance.client('checkout').post('/v1/tokenize', { pan, reuse: false, cardholder: 'ANA' }, key);
  await appliance.restart();
  const checkout = appliance.client('checkout');
  t.same((await checkout.post('/v1/tokenize', { pan, reuse: false, cardholder: 'ANA' }, key)).json(), first.json());
  const known = await checkout.post('/v1/tokenize', { pan });
  t.equal(known.status, 200);
  t.equal(known.json()['card_id'], first.json()['card_id']);
  t.same((await appliance.client('getnet').post('/v1/detokenize', { token: first.json()['token'], purpose: 'capture' })).json(), { pan, expiry: null, cardholder: 'ANA' });
  t.equal(appliance.authority, authority);
  t.equal(readdirSync(join(appliance.home, 'hsm/tokens'), { recursive: true }).length, keys);
});

await t.test('SIGINT stops it as SIGTERM does, and nothing of it runs on', async (t) => {
  const pidFile = join(appliance.home, 'postgres/cluster/data/postmaster.pid');
  t.ok(readFileSync(pidFile, 'utf8').length > 0);
  t.same(await appliance.stop('SIGINT'), { code: 0, signal: null });
  t.throws(() => readFileSync(pidFile), { code: 'ENOENT' }, 'its PostgreSQL is stopped');
  await appliance.start();
});
