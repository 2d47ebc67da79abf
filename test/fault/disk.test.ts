/** PostgreSQL on a disk that is full: calls are refused and not half done, the vault goes on by itself once there is room, and nothing acknowledged is lost. */
import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, rmdirSync, statfsSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client } from 'pg';
import t from 'tap';
import { superviseEmbedded } from '../../platform-adapters/postgres/supervisor.ts';
import { startAppliance, until } from '../support/appliance.ts';
import type { FreshDatabase } from '../support/database.ts';
import { Ledger } from '../support/ledger.ts';

const variable = 'COFRE_TEST_SMALL_DISK';
const megabyte = 1024 * 1024;

/**
 * Runs this file again where a small file system of its own is mounted: in a mount namespace, so that it goes with the process. Who is not root takes
 * a user namespace, in which root may mount, and another one to be itself again: PostgreSQL refuses uid 0.
 */
function onSmallDisk(): string {
  const given = process.env[variable];
  if (given !== undefined) return given;
  const folder = mkdtempSync(join(tmpdir(), 'cofre-disk-'));
  const self = process.getuid!() === 0 ? '' : `unshare --user --map-user=${process.getuid!()} --map-group=${process.getgid!()} -- `;
  const outer = process.getuid!() === 0 ? ['--mount'] : ['--user', '--map-root-user', '--mount'];
  const mount = `mount -t tmpfs -o size=192m,mode=755 none '${folder}'`;
  const may = spawnSync('unshare', [...outer, '--', '/bin/sh', '-c', `${mount} && ${self}true`], { encoding: 'utf8' });
  if (may.status !== 0) throw new Error(`no small file system can be mounted here (${may.stderr.trim() || (may.error?.message ?? 'unshare failed')}): a full disk cannot be tried`);
  const again = spawnSync('setpriv', ['--pdeathsig', 'KILL', '--', 'unshare', ...outer, '--', '/bin/sh', '-c', `${mount} && exec ${self}'${process.execPath}' '${import.meta.filename}'`], { stdio: 'inherit', env: { ...process.env, [variable]: folder } });
  rmdirSync(folder);
  process.exit(again.status ?? 1);
}

const disk = onSmallDisk();
const postgres = await superviseEmbedded({ folder: join(disk, 'postgres'), diesWithParent: true }, () => undefined);
t.teardown(() => postgres.stop());
const database = { adminUrl: postgres.adminUrl } as FreshDatabase;
const ballast = join(disk, 'ballast');

const room = (): number => {
  const { bavail, bsize } = statfsSync(disk);
  return bavail * bsize;
};

/** Takes all room but so many bytes. PostgreSQL takes some of it meanwhile. */
function fill(left: number): void {
  const file = openSync(ballast, 'a');
  try {
    while (room() > left) writeSync(file, Buffer.alloc(Math.min(megabyte, room() - left), 1));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  } finally {
    closeSync(file);
  }
}

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
    fill(isWal ? 0 : 256 * 1024);
    if (isWal) {
      // The rest of the current segment would last for long.
      const owner = new Client({ connectionString: postgres.adminUrl.replace(/\/\/cofre:[^@]*@/u, () => superuser()) });
      owner.on('error', () => undefined);
      await owner.connect();
      await owner.query('SELECT pg_switch_wal()').catch(() => undefined);
      await owner.end().catch(() => undefined);
    }
    await until(() => ledger.counts.refused + ledger.counts.unknown > refusedBefore + 20, 'refusals');
    t.ok(room() < megabyte, 'the disk is full');
    rmSync(ballast);
    before = ledger.counts.acknowledged;
    await until(() => ledger.counts.acknowledged > before + 100, 'the load to go on');
    await ledger.pause();
    await until(ready, 'readiness');
    t.same(await ledger.reckon(true), []);
  });
}

/** The superuser's part of a URL. */
function superuser(): string {
  const passwords = JSON.parse(readFileSync(join(disk, 'postgres/cluster/passwords.json'), 'utf8')) as { postgres: string };
  return `//postgres:${passwords.postgres}@`;
}
