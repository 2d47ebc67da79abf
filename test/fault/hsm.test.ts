/** The HSM lost in mid-load. Its tokens are a folder here; without it SoftHSM answers as a device that was pulled out. */
import { renameSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { reckon, startCardLoad } from '../support/card-load.ts';

for (const custody of ['envelope', 'direct'] as const) {
  await t.test(`${custody} custody: the HSM goes away in mid-load and comes back`, { timeout: 90_000 }, async (t) => {
    const appliance = await startAppliance(t, { config: { hsm: { custody, max_away: '1s' } } });
    const tokens = join(appliance.home, 'hsm/tokens');
    const hsmIsUp = async (): Promise<boolean> => /^cofre_hsm_up 1$/mu.test(await (await fetch(`${appliance.telemetryUrl}/metrics`)).text());
    const load = startCardLoad(appliance, 6);
    await until(() => load.acknowledged.size > 30, 'the load');

    renameSync(tokens, `${tokens}.away`);
    await until(async () => !(await hsmIsUp()), 'the HSM to be missed');
    await until(() => (load.statuses.get('hsm_unavailable') ?? 0) > 0, 'operations to be refused once it was away for too long');
    const body = (await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as { ok: boolean; hsm: { ok: boolean }; database: { ok: boolean } };
    t.strictSame([body.ok, body.hsm.ok, body.database.ok], [false, false, true], 'readiness tells the HSM from the database');

    renameSync(`${tokens}.away`, tokens);
    await until(hsmIsUp, 'the HSM to be back');
    const before = load.acknowledged.size;
    await until(() => load.acknowledged.size > before + 30, 'the load to go on');
    await load.stop();
    t.strictSame([...load.statuses.keys()].filter((code) => !['200', '201', 'hsm_unavailable'].includes(code)), [], 'no other answer was given');
    await reckon(t, appliance, load);
  });
}
