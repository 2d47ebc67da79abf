/** Whoever reads a vault's output ends before it does. */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';

const appliance = await startAppliance(t, { config: { workers: 2 } });

await t.test('a vault whose log nobody reads any more serves on, and ends in order', { timeout: 120_000 }, async (t) => {
  const isReady = async (): Promise<boolean> => ((await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as { ok: boolean }).ok;
  const workers = (): number[] => readFileSync(`/proc/${appliance.pid}/task/${appliance.pid}/children`, 'utf8').trim().split(' ').map(Number).filter((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('\0worker\0'));
  const client = appliance.client('checkout');
  appliance.closeOutput();

  // The first process has something to say of that, its successor of its start, and all of them of a database that is away.
  const before = workers();
  process.kill(before[0]!, 'SIGKILL');
  appliance.killPostgres();
  await until(async () => workers().some((pid) => !before.includes(pid)) && (await isReady()), 'readiness');
  t.equal((await client.post('/v1/validate', { token: 'x' })).status, 200);
  t.same(workers().filter((pid) => !before.includes(pid)).length, 1, 'and no other ended');
  t.same(await appliance.stop(), { code: 0, signal: null });
});
