/** The appliance with an archive: it is copied to while calls go on, read back, and what is old leaves the database at the next start. */
import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import t from 'tap';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { directoryFiles } from '../../audit/directory-log.ts';
import { verifyLog } from '../../audit/fsck.ts';
import { logSource } from '../../audit/log-source.ts';
import { startAppliance } from '../support/appliance.ts';
import { freshDatabase } from '../support/database.ts';
import { logVerifier } from '../support/log-reader.ts';

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database, config: { log: { archive: 'archive', archive_interval: '500ms' } } });
const folder = join(appliance.home, 'archive', '1');
const owner = new Client({ connectionString: database.adminUrl });
await owner.connect();
t.teardown(() => owner.end());

async function until<Answer>(work: () => Promise<Answer | null | false>, what: string): Promise<Answer> {
  for (const began = Date.now(); Date.now() - began < 40_000; await sleep(200)) {
    const answer = await work();
    if (answer !== null && answer !== false) return answer;
  }
  throw new Error(`waited too long for ${what}`);
}
const metric = async (name: string): Promise<number> => Number(new RegExp(`^${name} (\\S+)$`, 'mu').exec(await (await fetch(`${appliance.telemetryUrl}/metrics`)).text())?.[1]);
const archived = async (): Promise<number> => openCheckpoint((await logSource(directoryFiles(folder)).checkpoint()) ?? '', [logVerifier(appliance.home)])?.size ?? 0;
const messages = (word: string): string[] => appliance.err.split('\n').filter((line) => line.includes(word));

/** @returns how long the log is once it holds the calls. */
async function call(times: number): Promise<number> {
  const before = await metric('cofre_log_size');
  const client = appliance.client('checkout');
  for (let done = 0; done < times; done += 50) await Promise.all(Array.from({ length: 50 }, () => client.post('/v1/validate', { token: 'tok_none' })));
  return await until(async () => {
    const size = await metric('cofre_log_size');
    return size >= before + times && size;
  }, 'the calls in the log');
}

await t.test('what is committed comes into the archive, which an outsider finds whole', async (t) => {
  const size = await call(700);
  t.ok(size > 700);
  await until(async () => (await archived()) >= size, 'the copy');
  t.match(await verifyLog(logSource(directoryFiles(folder)), { vkey: logVerifier(appliance.home) }), { holds: true, found: 0 });
  await until(async () => (await metric('cofre_log_archived_size')) >= size, 'the metric');
  t.equal(await metric('cofre_log_archive_failed'), 0);
});

await t.test('an archive that cannot be written stops nothing, is told of once, and is gone on with', async (t) => {
  const aside = `${folder}-aside`;
  renameSync(folder, aside);
  writeFileSync(folder, 'no folder');
  await call(50);
  await until(async () => (await metric('cofre_log_archive_failed')) === 1, 'the alarm');
  const size = await call(50);
  await until(async () => (await metric('cofre_log_archive_failures_total')) >= 3, 'further attempts');
  t.equal(messages('retention does not go on').length, 1);
  rmSync(folder);
  renameSync(aside, folder);
  await until(async () => (await archived()) >= size, 'the copy');
  await until(async () => (await metric('cofre_log_archive_failed')) === 0, 'the end of the alarm');
  await until(async () => messages('retention goes on').length > 0, 'the word that it goes on');
  t.equal(messages('retention goes on').length, 1);
});

await t.test('what is old leaves the database when it starts, and stays to be had from the archive', async (t) => {
  t.same(await appliance.stop(), { code: 0, signal: null });
  // As if the first batches had been formed half a year ago. Whoever can do this can do anything; that he did is in the archive.
  const old = new Date(Date.now() - 200 * 86_400_000);
  await owner.query('ALTER TABLE batches DISABLE TRIGGER USER');
  await owner.query('UPDATE batches b SET formed_at = $1 FROM log_batches p WHERE (p.writer, p.number) = (b.writer, b.number) AND p.first_index < 600', [old]);
  await owner.query('UPDATE log_batches SET formed_at = $1 WHERE first_index < 600', [old]);
  await owner.query('ALTER TABLE batches ENABLE TRIGGER USER');
  await appliance.start();
  t.equal((await owner.query('SELECT 1 FROM log_tiles WHERE level = 0 AND tile = 0')).rowCount, 1);
  await until(async () => (await metric('cofre_log_pruned_entries_total')) >= 512, 'the old ones to go');
  t.equal((await owner.query('SELECT 1 FROM log_tiles WHERE level = 0 AND tile = 0')).rowCount, 0);
  const auditor = appliance.client('auditor', { admin: true });
  for (const path of ['tile/0/000', 'tile/entries/000']) t.equal((await auditor.get(`/audit/${path}`)).status, 404, path);
  t.equal((await auditor.get('/audit/tile/0/002')).status, 200);
  t.equal((await auditor.get('/audit/tile/1/000.p/3')).status, 200);

  type Found = { items: { entry: { detail: Record<string, unknown> } }[]; searchable_from: { index: number; time: string } };
  const search = async (): Promise<Found> => (await auditor.get('/audit/search?action=log.pruned')).json() as unknown as Found;
  // The entry was committed before anything went; it is found once it is in the tree.
  await until(async () => (await search()).items.length > 0, 'the entry');
  const found = await search();
  t.match(found, { items: [{ entry: { detail: { entries: '0-511', months: old.toISOString().slice(0, 7), target: folder } } }] });
  t.ok(found.searchable_from.index > 256 && found.searchable_from.index <= 512 && found.searchable_from.time !== '');
  const size = await call(100);
  await until(async () => (await archived()) >= size, 'the copy');
  t.match(await verifyLog(logSource(directoryFiles(folder)), { vkey: logVerifier(appliance.home) }), { holds: true, found: 0 });
  t.equal((await fetch(`${appliance.telemetryUrl}/readyz`)).status, 200);
  // A second start finds its writers' chains and nothing left to take out.
  t.same(await appliance.stop(), { code: 0, signal: null });
  await appliance.start();
  await call(50);
  t.equal((await fetch(`${appliance.telemetryUrl}/readyz`)).status, 200);
  t.equal(await metric('cofre_log_archive_failed'), 0);
});
