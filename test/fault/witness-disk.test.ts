/** The disk that the checkpoints are witnessed on is full: calls go on for as long as they may without a signature, are refused then, and go on again once there is room. */
import { mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { WitnessFile } from '../../audit/witness-file.ts';
import { unstartedAppliance, until } from '../support/appliance.ts';
import { logVerifier, readLog } from '../support/log-reader.ts';
import { isProblem } from '../support/problem.ts';
import { onSmallDisk } from '../support/small-disk.ts';

const disk = onSmallDisk(import.meta.filename, '1m');
const folder = join(disk.folder, 'witness');
mkdirSync(folder, { mode: 0o700 });
const appliance = unstartedAppliance(t, { config: { log: { max_unsigned: '3s', checkpoint_interval: '100ms' } } });
symlinkSync(folder, join(appliance.home, 'witness'));
await appliance.start();
const checkout = appliance.client('checkout');
const call = async (): Promise<number> => (await checkout.post('/v1/validate', { token: 'tok_none' })).status;
const readiness = async (): Promise<Record<string, { ok: boolean; detail: string }>> => (await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as Record<string, { ok: boolean; detail: string }>;
const witnessed = async (): Promise<number> => openCheckpoint((await new WitnessFile(folder).last()) ?? '', [logVerifier(appliance.home)])?.size ?? 0;

await t.test('without room for a checkpoint calls go on for a while, and are refused then', { timeout: 120_000 }, async (t) => {
  t.equal(await call(), 200);
  await until(async () => (await witnessed()) > 1, 'a checkpoint');
  disk.fill(0);
  // What is left of the file's last page takes some more.
  const statuses: number[] = [];
  await until(async () => (statuses.push(await call()), statuses.at(-1) !== 200), 'the refusal');
  t.ok(disk.room < 4096, 'the disk is full');
  t.same(new Set(statuses.slice(0, -1)), new Set([200]), 'until then every call was served');
  await until(async () => appliance.messages().some(({ msg }) => msg === 'no checkpoint could be signed'), 'the message');
  isProblem(t, await checkout.post('/v1/validate', { token: 'tok_none' }), 'audit_unavailable');
  t.match(await readiness(), { ok: false, checkpoints: { ok: false, detail: /^no signed checkpoint over what was committed for \d+ s$/u }, sequencer: { ok: true, detail: 'sequencing, but no checkpoint can be signed' }, database: { ok: true } });
  const size = await witnessed();
  await sleep(1000);
  t.equal(await witnessed(), size, 'nothing that was torn is taken for a checkpoint');
});

await t.test('once there is room they go on by themselves, and all of it comes under a witnessed checkpoint', { timeout: 120_000 }, async (t) => {
  const size = await witnessed();
  disk.clear();
  await until(async () => (await call()) === 200, 'the calls');
  await until(async () => (await witnessed()) > size, 'a checkpoint');
  await until(async () => (await readiness())['sequencer']!.detail === 'sequencing' && (await readiness())['ok'] as unknown === true, 'readiness');
  t.same(await appliance.stop(), { code: 0, signal: null });
  await appliance.start();
  const entries = await readLog(appliance);
  t.match(entries.filter(({ value }) => value['action'] === 'log.alert').map(({ value }) => (value['detail'] as Record<string, unknown>)['kind']), ['unsigned'], 'and the log tells of it');
  appliance.closeClients();
});
