/** PostgreSQL lost in mid-load, in every way that it can be: nothing acknowledged is lost, and nothing is done twice. */
import { appendFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { reckon, startCardLoad } from '../support/card-load.ts';
import { readLog } from '../support/log-reader.ts';

const appliance = await startAppliance(t);

async function asSuperuser<T>(work: (client: Client) => Promise<T>): Promise<T> {
  const client = new Client({ connectionString: appliance.databaseUrl });
  client.on('error', () => undefined);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

await t.test('sessions that the database ends, again and again, in mid-load', { timeout: 90_000 }, async (t) => {
  const load = startCardLoad(appliance);
  await until(() => load.acknowledged.size > 50, 'the load');
  for (let round = 0; round < 8; round += 1) {
    const before = load.acknowledged.size;
    // A writer may just be without one.
    await until(async () => {
      const { rowCount } = await asSuperuser((client) => client.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name IN ('cofre tokenize', 'cofre detokenize')"));
      return (rowCount ?? 0) > 0;
    }, 'a session to end');
    await until(() => load.acknowledged.size > before + 20, 'the load to go on');
  }
  await load.stop();
  await reckon(t, appliance, load);
});

await t.test('a backend killed outright, so that the whole server recovers, in mid-load', { timeout: 90_000 }, async (t) => {
  const load = startCardLoad(appliance);
  await until(() => load.acknowledged.size > 50, 'the load');
  const before = load.acknowledged.size;
  const pid = await asSuperuser(async (client) => (await client.query<{ pid: number }>("SELECT pid FROM pg_stat_activity WHERE application_name = 'cofre tokenize' LIMIT 1")).rows[0]!.pid);
  process.kill(pid, 'SIGKILL');
  await until(() => load.acknowledged.size > before + 50, 'the load to go on');
  await load.stop();
  await reckon(t, appliance, load);
});

await t.test('the server killed outright in mid-load is started again, and the load goes on', { timeout: 90_000 }, async (t) => {
  const load = startCardLoad(appliance);
  await until(() => load.acknowledged.size > 50, 'the load');
  const before = load.acknowledged.size;
  appliance.killPostgres();
  await appliance.untilMessage((message) => message['msg'] === 'postgres_restarted');
  await until(() => load.acknowledged.size > before + 50, 'the load to go on');
  await load.stop();
  await reckon(t, appliance, load);
});

await t.test('a database that is away is said to be, and comes back', { timeout: 90_000 }, async (t) => {
  const ready = async (): Promise<{ ok: boolean; database: { ok: boolean }; hsm: { ok: boolean } }> => (await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as never;
  const frozen = appliance.postgresPids();
  for (const pid of frozen) process.kill(pid, 'SIGSTOP');
  const late = appliance.client('checkout').post('/v1/validate', { token: 'x' });
  await until(async () => !(await ready()).database.ok, 'the database to be missed');
  t.equal((await ready()).hsm.ok, true, 'the HSM is told apart');
  const reply = await late;
  t.equal(reply.status, 503);
  t.match(String(reply.json()['code']), /^(store_unavailable|outcome_unknown)$/u);
  t.ok(Number(reply.headers['retry-after']) > 0);
  for (const pid of frozen) {
    try {
      process.kill(pid, 'SIGCONT');
    } catch (error) {
      // One that the server's supervisor lost patience with is gone, and another comes.
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  }
  await until(async () => (await ready()).ok, 'the database to be back');
  t.equal((await appliance.client('checkout').post('/v1/validate', { token: 'x' })).status, 200);
});

await t.test('a log that the database refuses is said to be, and is written again by itself once it can be', { timeout: 60_000 }, async (t) => {
  const ready = async (): Promise<{ ok: boolean; database: { ok: boolean }; log: { ok: boolean } }> => (await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as never;
  const checkout = appliance.client('checkout');
  await asSuperuser((client) => client.query("ALTER TABLE batches ADD CONSTRAINT full_disk CHECK (writer IS NULL) NOT VALID"));
  const reply = await checkout.post('/v1/validate', { token: 'x' });
  t.match([reply.status, reply.json()['code']], [503, 'audit_unavailable']);
  t.match(await ready(), { ok: false, database: { ok: true }, log: { ok: false } });
  await asSuperuser((client) => client.query('ALTER TABLE batches DROP CONSTRAINT full_disk'));
  await until(async () => (await ready()).ok, 'the log to be written again');
  t.equal((await checkout.post('/v1/validate', { token: 'x' })).status, 200);
});

await t.test('a set of policies that comes into force while nothing can be written is named in the log once it can be', { timeout: 60_000 }, async (t) => {
  const status = async (): Promise<{ status: number; digest: unknown }> => {
    const reply = await appliance.client('auditor', { admin: true }).get('/v1/status');
    return { status: reply.status, digest: reply.json()['policy_digest'] };
  };
  const { digest: before } = await status();
  await asSuperuser((client) => client.query('ALTER TABLE batches ADD CONSTRAINT full_disk CHECK (writer IS NULL) NOT VALID'));
  t.equal((await appliance.client('checkout').post('/v1/validate', { token: 'x' })).status, 503);
  appendFileSync(join(appliance.home, 'policies/acme.cedar'), '\n// Another set, by its digest.\n');
  appliance.signal('SIGHUP');
  await sleep(2000);
  await asSuperuser((client) => client.query('ALTER TABLE batches DROP CONSTRAINT full_disk'));
  await until(async () => (await status()).status === 200, 'the log to be written again');
  const { digest: after } = await status();
  t.not(after, before, 'it is in force');
  await sleep(2000);
  const named = (await readLog(appliance)).filter(({ value }) => value['action'] === 'policy.reload').map(({ value }) => (value['detail'] as { policies: string }).policies);
  t.same(named, [after]);
});
