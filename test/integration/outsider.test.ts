/** The appliance and its auditor: what a vault serves is exported, verified and proven by the commands alone, while calls go on. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { runCofre, startAppliance, until } from '../support/appliance.ts';

const appliance = await startAppliance(t);
const port = String(appliance.adminPort);
const audit = async (...args: string[]): ReturnType<typeof runCofre> => await runCofre(t, ['audit', ...args], { COFRE_HOME: appliance.home, COFRE_ADMIN_PORT: port });
const folder = t.testdir({});
const copy = join(folder, 'copy');
const key = join(folder, 'key');
const kept = join(folder, 'kept');

/** Entries under the newest checkpoint. */
const signed = async (): Promise<number> => Number(/^cofre_log_signed_size (\d+)$/mu.exec(await (await fetch(`${appliance.telemetryUrl}/metrics`)).text())?.[1] ?? 0);

async function call(times: number): Promise<void> {
  const client = appliance.client('checkout');
  for (let done = 0; done < times; done += 50) await Promise.all(Array.from({ length: 50 }, () => client.post('/v1/validate', { token: 'tok_none' })));
}

await t.test('an export grows with the log, and verifies each time', async (t) => {
  await call(600);
  await until(async () => (await signed()) > 600, 'a checkpoint');
  const vkey = await audit('vkey');
  t.match(vkey, { code: 0, err: '', out: /^[^\s+]+\+[0-9a-f]{8}\+\S+\n$/u });
  writeFileSync(key, vkey.out);
  t.match(await audit('export', copy), { code: 0, err: '', out: new RegExp(`^${copy}: [\\d,]+ entries of \\S+, [\\d,]+ of them new\n$`, 'u') });
  const first = await audit('verify', copy, '--vkey', key, '--json');
  t.match(JSON.parse(first.out), { holds: true, findings: [] });
  writeFileSync(kept, readFileSync(join(copy, 'checkpoint')));
  await Promise.all([call(300), audit('export', copy).then((run) => t.match(run, { code: 0, err: '' }, 'while calls go on'))]);
  const { size: before } = JSON.parse(first.out) as { size: number };
  await until(async () => (await signed()) >= before + 300, 'the next checkpoint');
  t.match(await audit('export', copy), { code: 0, err: '' });
  const second = await audit('verify', copy, '--vkey', key, '--checkpoint', kept, '--json');
  t.match(JSON.parse(second.out), { holds: true, findings: [], continued: [kept] });
  const { size: after } = JSON.parse(second.out) as { size: number };
  t.ok(before > 600 && after >= before + 300, `${before}, then ${after} entries`);
});

await t.test('an entry is proven by the vault, and nobody without the grant gets one', async (t) => {
  const proof = join(folder, 'proof.tlog-proof');
  t.match(await audit('prove', '400', '--out', proof), { code: 0, err: '' });
  t.match(await audit('check-proof', proof, '--vkey', key), { code: 0, out: /^\{"action":/u });
  const pki = join(appliance.home, 'pki');
  const refused = await audit('prove', '400', '--cert', join(pki, 'intruder.pem'), '--key', join(pki, 'intruder.key'));
  t.match(refused, { code: 1, out: '', err: /^cofre: https:\/\/127\.0\.0\.1:\d+\/audit\/\S+: the vault does not let this certificate read the log \(403\)\n$/u });
});
