/** PostgreSQL on a disk that is full: calls are refused and not half done, the vault goes on by itself once there is room, and nothing acknowledged is lost. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'pg';
import t from 'tap';
import { superviseEmbedded } from '../../platform-adapters/postgres/supervisor.ts';
import { startAppliance, until } from '../support/appliance.ts';
import type { FreshDatabase } from '../support/database.ts';
import { Ledger } from '../support/ledger.ts';
import { onSmallDisk } from '../support/small-disk.ts';

const megabyte = 1024 * 1024;
const disk = onSmallDisk(import.meta.filename, '192m');
const postgres = await superviseEmbedded({ folder: join(disk.folder, 'postgres'), diesWithParent: true }, () => undefined);
t.teardown(() => postgres.stop());
const database = { adminUrl: postgres.adminUrl } as FreshDatabase;

const appliance = await startAppliance(t, { database, config: { events: { outbox: true } } });
const ready = async (): Promise<boolean> => ((await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as { ok: boolean }).ok;
const ledger = new Ledger(appliance, { port: appliance.apiPort, seed: 1, lanes: 6, pauseMs: 5, outbox: true });
t.teardown(() => ledger.close());

for (const [what, isWal] of [['tables that cannot grow', false], ['a log of PostgreSQL that cannot grow, which ends the server until there is room', true]] as const) {
  await t.test(what, { timeout: 120_000 }, async (t) => {
    ledger.resume();
    let before = ledger.counts.acknowledged;
    await until(() => ledger.counts.acknowledged > before + 100, 'the load');
    const refusedBefore = ledger.counts.refused + ledger.counts.unknown;
    disk.fill(isWal ? 0 : 256 * 1024);
    if (isWal) {
      // The rest of the current segment would last for long.
      const owner = new Client({ connectionString: postgres.adminUrl.replace(/\/\/cofre:[^@]*@/u, () => superuser()) });
      owner.on('error', () => undefined);
      await owner.connect();
      await owner.query('SELECT pg_switch_wal()').catch(() => undefined);
      await owner.end().catch(() => undefined);
    }
    await until(() => ledger.counts.refused + ledger.counts.unknown > refusedBefore + 20, 'refusals');
    t.ok(disk.room < megabyte, 'the disk is full');
    disk.clear();
    before = ledger.counts.acknowledged;
    await until(() => ledger.counts.acknowledged > before + 100, 'the load to go on');
    await ledger.pause();
    await until(ready, 'readiness');
    t.same(await ledger.reckon(true), []);
  });
}

/** The superuser's part of a URL. */
function superuser(): string {
  const passwords = JSON.parse(readFileSync(join(disk.folder, 'postgres/cluster/passwords.json'), 'utf8')) as { postgres: string };
  return `//postgres:${passwords.postgres}@`;
}
