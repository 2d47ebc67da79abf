/** `cofre policy …` with a real vault: what it checks, compares and reviews, now and by the log at a past moment, and the way back to an earlier set. */
import { appendFileSync, cpSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'pg';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { auditCommands } from '../support/audit-commands.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const appliance = await startAppliance(t);
const run = auditCommands(t, 'policy');
const policy = (...args: string[]): ReturnType<typeof run> => run(args, { COFRE_HOME: appliance.home, COFRE_ADMIN_PORT: String(appliance.adminPort) });
const folder = join(appliance.home, 'policies');
const auditor = appliance.client('auditor', { admin: true });
const digestNow = async (): Promise<string> => (await auditor.get('/v1/status')).json()['policy_digest'] as string;
const getnet = 'spiffe://cofre.dev/tenant/acme/service/getnet';
const chargeback = `@id("getnet-chargebacks") permit (principal == Cofre::Caller::"${getnet}", action == Cofre::Action::"detokenize", resource == Cofre::Tenant::"acme") when { context.purpose == Cofre::Purpose::"chargeback" };\n`;

interface Reviewed {
  readonly digest: string;
  readonly in_force_since?: string;
  readonly grants: readonly { readonly caller: string; readonly action: string; readonly purpose: string | null; readonly policies: readonly string[] }[];
}
const review = async (...args: string[]): Promise<Reviewed> => {
  const { code, out, err } = await policy('who-can', ...args, '--json');
  if (code !== 0) throw new Error(err);
  return JSON.parse(out) as Reviewed;
};
const purposesOf = ({ grants }: Reviewed): unknown[] => grants.map(({ caller, purpose }) => [caller, purpose]);

await t.test('a folder is checked as the vault would check it', async (t) => {
  t.match(await policy('check'), { code: 0, out: /^8 policies, digest [0-9a-f]{64}: in order\n$/u });
  t.match(JSON.parse((await policy('check', '--json')).out), { ok: true, digest: await digestNow() }, 'the vault has the same');
  const other = t.testdir();
  cpSync(folder, other, { recursive: true });
  writeFileSync(join(other, 'new.cedar'), '@id("x") permit (principal, action == Cofre::Action::"detokenize", resource);\npermit (principal, action == Cofre::Action::"validate", resource);\n');
  t.match(await policy('check', other), { code: 1, out: '', err: /^new\.cedar:2: the policy has no @id\n$/u });
  t.match(JSON.parse((await policy('check', other, '--json')).out), { ok: false, findings: [/no @id/u] });
  rmSync(join(other, 'platform.cedar'));
  writeFileSync(join(other, 'new.cedar'), '@id("x") permit (principal, action == Cofre::Action::"detokenize", resource);');
  t.match(await policy('check', other), { code: 1, err: /gives detokenize to callers that it does not name/u });
  t.match(await policy('check', join(other, 'nowhere')), { code: 1, err: /nowhere: cannot be read \(ENOENT\)/u });
  for (const args of [['check', 'a', 'b'], ['diff', 'a'], ['who-can', 'fly'], ['who-can', '--purpose', 'fun'], ['who-can', '--at', '2026-02-31'], ['who-can', '--at', '2026-01-01', '--policies', 'x'], ['restore', 'x'], ['nothing']]) t.match(await policy(...args), { code: 2 }, args.join(' '));
});

await t.test('who may do what, today and at a past moment, and back to what was in force', { timeout: 120_000 }, async (t) => {
  const before = await digestNow();
  t.same(purposesOf(await review('detokenize')), ['authorization', 'capture', 'refund'].map((purpose) => [getnet, purpose]));
  t.match(await policy('who-can', '--caller', getnet, '--purpose', 'refund', '--tenant', 'acme'), { code: 0, out: /getnet +acme +detokenize for refund +acme-getnet-detokenizes\n/u });
  t.match(await policy('who-can', 'detokenize', '--purpose', 'chargeback'), { code: 0, out: 'nobody\n' });

  // Another set comes into force.
  const token = (await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(1) })).json()['token'] as string;
  const open = () => appliance.client('getnet').post('/v1/detokenize', { token, purpose: 'chargeback' });
  isProblem(t, await open(), 'not_authorized');
  const kept = t.testdir();
  cpSync(folder, kept, { recursive: true });
  appendFileSync(join(folder, 'acme.cedar'), chargeback);
  const difference = await policy('diff', kept, folder);
  t.match(difference, { code: 1, out: /^\+ spiffe:\/\/cofre\.dev\/tenant\/acme\/service\/getnet +acme +detokenize for chargeback +getnet-chargebacks$/mu });
  t.notMatch(difference.out, /^- /mu);
  await new Promise((resolve) => setTimeout(resolve, 10));
  process.kill(appliance.pid, 'SIGHUP');
  await until(async () => (await digestNow()) !== before, 'the new set');
  t.equal((await open()).status, 200);
  const after = await digestNow();

  // By the log: the start names the first set, the reload the second.
  const entryOf = async (action: string): Promise<{ at: string; detail: Record<string, unknown> } | undefined> => ((await auditor.get(`/audit/search?action=${action}&limit=1`)).json()['items'] as { entry: { at: string; detail: Record<string, unknown> } }[])[0]?.entry;
  await until(async () => (await entryOf('policy.reload'))?.detail['policies'] === after, 'the reload in the log');
  const reloaded = (await entryOf('policy.reload'))!.at;
  const then = await review('detokenize', '--at', reloaded);
  t.equal(then.digest, before);
  t.same(purposesOf(then), ['authorization', 'capture', 'refund'].map((purpose) => [getnet, purpose]));
  const now = await review('detokenize', '--purpose', 'chargeback', '--at', new Date(Date.now() + 60_000).toISOString());
  t.match(now, { digest: after, in_force_since: reloaded, grants: [{ caller: getnet, policies: ['getnet-chargebacks'] }] });
  t.match(await policy('who-can', '--at', '2020-01-01'), { code: 1, err: /no entry of before 2020-01-01 that names a set of policies/u });
  t.match(await policy('diff', before, after), { code: 1, out: /getnet-chargebacks/u }, 'of digests as well');
  t.match(await policy('diff', before, kept), { code: 0, out: 'both allow the same\n' });

  // The way back.
  const old = join(appliance.home, 'old-policies');
  t.match(await policy('restore', before, old), { code: 0 });
  t.match(await policy('restore', before, old), { code: 1, err: /is not empty/u });
  t.same(readdirSync(old).sort(), readdirSync(kept).sort());
  for (const name of readdirSync(old)) {
    t.equal(readFileSync(join(old, name), 'utf8'), readFileSync(join(kept, name), 'utf8'), name);
    cpSync(join(old, name), join(folder, name));
  }
  process.kill(appliance.pid, 'SIGHUP');
  await until(async () => (await digestNow()) === before, 'the old set again');
  isProblem(t, await open(), 'not_authorized');
});

await t.test('sets are read by auditors only, each reading is an entry, and a set that was changed in the database is not believed', async (t) => {
  const digest = await digestNow();
  for (const who of ['checkout', 'operator-a']) isProblem(t, await appliance.client(who, { admin: true }).get(`/audit/policies/${digest}`), 'not_authorized', who);
  for (const wrong of ['x', digest.slice(1), digest.toUpperCase(), '0'.repeat(64)]) isProblem(t, await auditor.get(`/audit/policies/${wrong}`), 'not_found', wrong);
  t.equal((await auditor.get(`/audit/policies/${digest}`)).status, 200);
  await until(async () => (await auditor.get('/audit/search?action=policy_read&outcome=allowed')).body.includes(digest), 'the entry');

  const superuser = new Client({ connectionString: appliance.databaseUrl });
  await superuser.connect();
  t.teardown(() => superuser.end());
  await superuser.query("SET session_replication_role = replica; UPDATE policy_sets SET files = replace(files::text, 'operator-b', 'operator-c')::jsonb WHERE digest = decode($1, 'hex')".replace('$1', `'${digest}'`));
  isProblem(t, await auditor.get(`/audit/policies/${digest}`), 'internal');
  t.match(await policy('restore', digest, join(t.testdir(), 'x')), { code: 1 });
  await superuser.query(`DELETE FROM policy_sets WHERE digest = decode('${digest}', 'hex')`);
  t.match(await policy('restore', digest, join(t.testdir(), 'y')), { code: 1, err: /the vault has no set of policies with the digest/u });
});
