/** Where it is asked for, only policies and limits are in force that two people approved. */
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { auditCommands } from '../support/audit-commands.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { TestOperator } from '../support/operator.ts';

const idOf = (name: string): string => `spiffe://cofre.dev/tenant/platform/service/${name}`;
const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database, config: { operators: { approve_policies: false }, quotas: [{ tenant: 'acme', per_minute: 50 }] } });
const configFile = join(appliance.home, 'cofre.config.yaml');
const forget = (): Promise<unknown> => withClient({ connectionString: database.adminUrl }, (client) => client.query('UPDATE operator_logins SET last_step = 0'));
const [a, b] = ['operator-a', 'operator-b'].map((name) => new TestOperator(() => appliance.client(name, { admin: true }), forget)) as [TestOperator, TestOperator];
const env = { COFRE_HOME: appliance.home, DATABASE_URL: database.adminUrl };
const runOperator = auditCommands(t, 'operator');
const runPolicy = auditCommands(t, 'policy');
const approve = async (kind: string, digest: string): Promise<void> => {
  const asked = (await a.post('/v1/changes', { kind, params: { digest }, reason: 'reviewed' })).json();
  t.equal((await b.post(`/v1/changes/${asked['id'] as string}/approve`, { digest: asked['digest'] })).status, 200);
};
const status = async (): Promise<Record<string, unknown>> => (await appliance.client('operator-a', { admin: true }).get('/v1/status')).json();

await t.test('without a ceremony it does not start, and says what is missing', async (t) => {
  await appliance.stop();
  writeFileSync(configFile, readFileSync(configFile, 'utf8').replace('"approve_policies": false', '"approve_policies": true'));
  t.match(readFileSync(configFile, 'utf8'), /"approve_policies": true/u);
  t.equal((await appliance.launch())?.code, 1);
  t.match(appliance.err, /the policies with the digest [0-9a-f]{64} were not approved by two people/u);
  const made = await runOperator(['init', idOf('operator-a'), idOf('operator-b'), '--json'], env);
  t.equal(made.code, 0, made.err);
  await appliance.start();
  const { invitations } = JSON.parse(made.out) as { invitations: { operator: string; code: string }[] };
  for (const [one, name] of [[a, 'operator-a'], [b, 'operator-b']] as const) {
    t.equal((await one.enrol(invitations.find(({ operator }) => operator === idOf(name))!.code)).status, 200);
    t.equal((await one.logIn()).status, 200);
  }
});

await t.test('a set that nobody approved is not taken on SIGHUP; approved it is', async (t) => {
  const before = (await status())['policy_digest'];
  const file = join(appliance.home, 'policies/acme.cedar');
  const text = readFileSync(file, 'utf8');
  appendFileSync(file, '\n// another set\n');
  const mark = appliance.err.length;
  appliance.signal('SIGHUP');
  await until(() => appliance.err.slice(mark).includes('were not approved by two people'), 'the refusal');
  t.equal((await status())['policy_digest'], before);
  const checked = await runPolicy(['check', join(appliance.home, 'policies'), '--json'], env);
  const { digest } = JSON.parse(checked.out) as { digest: string };
  await approve('policies.approve', digest);
  appliance.signal('SIGHUP');
  await until(async () => (await status())['policy_digest'] === digest, 'the approved set');
  writeFileSync(file, text);
  appliance.signal('SIGHUP');
  await until(async () => (await status())['policy_digest'] === before, 'the way back, which was approved before');
});

await t.test('limits that nobody approved are not started with', async (t) => {
  const text = readFileSync(configFile, 'utf8');
  const limits = (await status())['limits_digest'] as string;
  const other = text.replace('"per_minute": 50', '"per_minute": 60');
  t.not(other, text);
  await appliance.stop();
  writeFileSync(configFile, other);
  t.equal((await appliance.launch())?.code, 1);
  const digest = /the limits with the digest ([0-9a-f]{64}) were not approved/u.exec(appliance.err)?.[1];
  t.match(digest, /^[0-9a-f]{64}$/u);
  t.not(digest, limits);
  writeFileSync(configFile, text);
  await appliance.start();
  for (const one of [a, b]) await one.logIn();
  await approve('limits.approve', digest!);
  await appliance.stop();
  writeFileSync(configFile, other);
  await appliance.start();
  t.equal((await status())['limits_digest'], digest);
});
