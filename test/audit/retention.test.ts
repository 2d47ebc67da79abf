/** A log of more than five months: copied to an archive, and taken out of the database where it is old, with what may go wrong at each step. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Pool } from 'pg';
import t, { type Test } from 'tap';
import { withArchivedTiles } from '../../audit/archived-tiles.ts';
import { encodeBatchLeaf } from '../../audit/batch-leaf.ts';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { directoryFiles } from '../../audit/directory-log.ts';
import { decodeBundle } from '../../audit/entry.ts';
import type { Entry } from '../../audit/entry.ts';
import { logTarget } from '../../audit/log-source.ts';
import type { LogTarget } from '../../audit/log-source.ts';
import { LogWatch } from '../../audit/log-watch.ts';
import { consistencyProof, frontierOf, inclusionProof, leafHash, verifyConsistency, verifyInclusion } from '../../audit/merkle.ts';
import { restartLog } from '../../audit/restart.ts';
import { ArchiveFault, archiveLogs, pruneLogs, sampleArchive } from '../../audit/retention.ts';
import type { RestartStore } from '../../audit/restart.ts';
import type { Archive, PruneOptions, RetentionStore } from '../../audit/retention.ts';
import { postgresRetentionStore } from '../../audit/retention-store.ts';
import type { LogsAnswer, LogsQuery } from '../../audit/search-logs.ts';
import { verifyLog } from '../../audit/fsck.ts';
import { bundlePath, tilePath, tileReader, tileWidth, tileWidthAt } from '../../audit/tiles.ts';
import { postgresLogView } from '../../audit/tree-store.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { assertLastBatch } from '../../vault/bin/continuity.ts';
import { serveLog } from '../../vault/bin/serving-log.ts';
import { withClient } from '../support/database.ts';
import { origin, testSigner } from '../support/group-commit.ts';
import { KeptLog, keptVerifier, MemoryWitness, monthsAgo, recompute } from '../support/kept-log.ts';

const folder = mkdtempSync(join(tmpdir(), 'cofre-archive-'));
t.teardown(() => rmSync(folder, { recursive: true }));

const kept = await KeptLog.of(t, 5, 700);
const small = { batches: 30, tiles: 3, pages: 50, checkpoints: 40 };
const owner = new Pool(adminConnection(kept.database.adminUrl));
t.teardown(() => owner.end());
const rowsOf = async (text: string): Promise<number> => Number((await owner.query<{ n: string }>(`SELECT count(*) AS n FROM ${text}`)).rows[0]!.n);

function archiveIn(place: string): Archive {
  const target = logTarget(directoryFiles(place));
  return { of: () => target, place: () => place };
}
const place = join(folder, '1');
const archive = archiveIn(place);
const store = postgresRetentionStore(kept.pool, small);
const options = (more: Partial<PruneOptions> = {}): PruneOptions => ({ store, archive, key: testSigner, now: () => kept.time, searchableMonths: 3, record: (entry) => kept.record(entry), pause: async () => undefined, ...more });
/** The first index that pruning leaves by the rule, told from the rows before it ran. */
async function boundary(before: Date): Promise<number> {
  const { rows } = await owner.query<{ first: string }>('SELECT min(first_index) AS first FROM log_batches WHERE formed_at >= $1', [before]);
  return Math.floor(Number(rows[0]!.first) / tileWidth) * tileWidth;
}

/** The whole log, for tests that come back to it. */
await owner.query('CREATE SCHEMA snapshot');
const pruned = ['batches', 'log_batches', 'log_tiles', 'log_tokens', 'log_facets'];
for (const table of pruned) await owner.query(`CREATE TABLE snapshot.${table} AS TABLE ${table}`);
async function restore(): Promise<void> {
  for (const table of pruned) await owner.query(`INSERT INTO ${table} SELECT * FROM snapshot.${table} ON CONFLICT DO NOTHING`);
  await owner.query('DELETE FROM log_pruned');
}
const expected = [await boundary(monthsAgo(4)), await boundary(monthsAgo(3))] as const;

/** Where the first batch begins that was not taken out: those of chains that never went on stay. */
async function lowestBatch(): Promise<number> {
  const { rows } = await owner.query<{ first: string }>('SELECT min(first_index) AS first FROM log_batches p WHERE first_index >= coalesce((SELECT entries_from FROM log_pruned), 0)');
  return Number(rows[0]!.first);
}

/** All that must hold at any time, whatever was interrupted: the archive is whole, and so is what the database has from its lowest batch on. */
async function assertWhole(t: Test, message: string): Promise<void> {
  const { checkpoint } = await recompute(archive.of(1));
  const note = (await kept.source().checkpoint())!;
  const signed = openCheckpoint(note, [keptVerifier])!;
  const lowest = await lowestBatch();
  const faults: string[] = [];
  if (lowest > 1 && lowest > checkpoint.size) faults.push('entries are neither in the database nor in the archive');
  const source = kept.source();
  const from = (await store.begin(1)).index;
  if (from > lowest && from - lowest > 600) faults.push('tiles are gone whose entries are not');
  for (let index = Math.ceil((lowest === 1 ? 0 : Math.max(lowest, from)) / tileWidth); index * tileWidth < signed.size; index += 1) {
    const ref = { level: 0, index, width: tileWidthAt(0, index, signed.size) };
    const [tile, bundle] = await Promise.all([source.tile(ref), source.bundle(ref)]);
    if (tile === null || bundle === null || !Buffer.concat(decodeBundle(bundle).map(leafHash)).equals(tile)) faults.push(`${bundlePath(ref)} does not fit its tile`);
  }
  const reader = tileReader(signed.size, async (ref) => (await source.tile(ref)) ?? Buffer.alloc(0));
  if (!(await frontierOf(signed.size, reader)).root().equals(signed.root)) faults.push('the tiles do not give the root');
  await kept.newSequencer().open().catch((error: unknown) => faults.push(String(error)));
  t.same(faults, [], message);
}

async function prunedEntries(): Promise<Record<string, unknown>[]> {
  const { rows } = await owner.query<{ bundle: Buffer }>('SELECT bundle FROM batches ORDER BY formed_at, number');
  return rows.flatMap(({ bundle }) => decodeBundle(bundle).map((entry) => JSON.parse(Buffer.from(entry).toString('utf8')) as Record<string, unknown>)).filter((entry) => entry['action'] === 'log.pruned');
}

await t.test('the archive is a whole copy, and nothing is taken out before it is one', async (t) => {
  await t.rejects(pruneLogs(options()), { name: 'Error', message: /has no checkpoint that is signed/u }, 'an archive that is empty');
  t.equal((await prunedEntries()).length, 0);
  const signed = kept.sequencer.signed!.size;
  t.equal(await archiveLogs(options()), signed);
  t.equal((await recompute(archive.of(1))).checkpoint.size, signed);
  t.match(readFileSync(join(place, 'vkey'), 'utf8'), /^cofre\.test\/log\+/u);
  t.equal(await archiveLogs({ ...options(), archive: { ...archive, of: () => ({ ...archive.of(1), put: async () => void t.fail('nothing is new') }) } }), signed);
  const report = await verifyLog(archive.of(1), { vkey: keptVerifier, olderCheckpoints: kept.witness.notes.map((note, index) => ({ name: String(index), note })) });
  t.match(report, { holds: true, found: 0 });
  t.equal(report.continued.length, kept.witness.notes.length);
});

await t.test('a role that asks by itself is refused what is younger than three months, under no checkpoint, or not whole', async (t) => {
  await withClient(kept.database.connect('sequencer'), async (client) => {
    const { rows } = await client.query<{ size: string }>('SELECT max(size) AS size FROM log_checkpoints');
    const top = Math.floor(Number(rows[0]!.size) / 256) * 256;
    for (const [statement, message] of [
      [`SELECT prune_log_batches(1, ${top}, 100000)`, /last three months/u],
      [`SELECT prune_log_batches(1, ${top + 256}, 1)`, /under a checkpoint/u],
      [`SELECT prune_log_batches(1, ${expected[0] + 1}, 1)`, /whole tiles/u],
      [`SELECT prune_log_batches(2, 256, 1)`, /under a checkpoint/u],
      [`SELECT prune_log_batches(1, NULL, 1)`, /whole tiles/u],
      [`SELECT prune_log_batches(1, 256, NULL)`, /whole tiles/u],
      [`SELECT prune_log_tiles(1, ${expected[0]}, 1)`, /taken out/u],
      [`SELECT prune_log_tiles(1, ${top + 256}, 1)`, /taken out/u],
    ] as const) await t.rejects(client.query(statement), { code: 'P0001', message }, statement);
    for (const statement of ['DELETE FROM batches', 'DELETE FROM log_batches', 'DELETE FROM log_tiles', 'DELETE FROM log_tokens', 'DELETE FROM log_facets', 'SELECT events FROM outbox', 'DELETE FROM logs', 'DELETE FROM log_chains', 'UPDATE log_pruned SET entries_from = 0', 'INSERT INTO log_pruned VALUES (1, 5000, 0)']) await t.rejects(client.query(statement), { code: '42501' }, statement);
    await client.query('SELECT prune_log_search(1, 0, 1000000)');
  });
  // The sequencing role says when a batch was formed in rows of its own: the batch's own time counts as well.
  await owner.query("UPDATE log_batches SET formed_at = '2020-01-01'");
  await t.rejects(kept.pool.query('SELECT prune_log_batches(1, $1, 100000)', [expected[1] + 1024]), { message: /last three months/u }, 'rows of its own that lie');
  await owner.query('UPDATE log_batches p SET formed_at = b.formed_at FROM batches b WHERE (b.writer, b.number) = (p.writer, p.number)');
  for (const role of ['tokenize', 'detokenize', 'relay', 'admin'] as const) {
    await withClient(kept.database.connect(role), async (client) => {
      for (const call of [`prune_log_batches(1, ${expected[0]}, 1)`, 'prune_log_search(1, 0, 1)', `prune_log_tiles(1, 0, 1)`]) await t.rejects(client.query(`SELECT ${call}`), { code: '42501' }, `${role}: ${call}`);
    });
  }
  await t.rejects(owner.query('DELETE FROM batches'), { message: 'the log is append only' }, 'the owner');
  await t.rejects(owner.query(`SELECT prune_log_batches(1, ${expected[0]}, 1)`), { message: 'the log is append only' }, 'not even the owner by the function');
  for (const table of pruned) t.equal(await rowsOf(table), await rowsOf(`snapshot.${table}`), table);
});

await t.test('a damaged archive: nothing is taken out, and what is wrong is named', async (t) => {
  const last = expected[0] / 256 - 1;
  const cases: [string, (path: string) => void, string, RegExp][] = [
    ['a byte of a bundle', (path) => flip(join(path, bundlePath({ index: last, width: 256 }))), '', new RegExp(`something else in ${bundlePath({ index: last, width: 256 })}`, 'u')],
    ['a bundle is gone', (path) => rmSync(join(path, bundlePath({ index: 0, width: 256 }))), '', /lacks tile\/entries\/000/u],
    ['a byte of a tile', (path) => flip(join(path, tilePath({ level: 0, index: 1, width: 256 }))), '', /tile\/0\/001/u],
    ['a tile is cut short', (path) => writeFileSync(join(path, tilePath({ level: 0, index: 1, width: 256 })), Buffer.alloc(32)), '', /tile\/0\/001/u],
    ['a tile is gone', (path) => rmSync(join(path, tilePath({ level: 0, index: 1, width: 256 }))), '', /tile\/0\/001/u],
    ['the checkpoint is of another key', (path) => writeFileSync(join(path, 'checkpoint'), readFileSync(join(path, 'checkpoint'), 'utf8').replace(/— (\S+) \S{12}/u, '— $1 AAAAAAAAAAAA')), '', /no checkpoint that is signed/u],
    ['the checkpoint is gone', (path) => rmSync(join(path, 'checkpoint')), '', /no checkpoint that is signed/u],
  ];
  for (const [index, [name, damage, , message]] of cases.entries()) {
    const copy = join(folder, `damaged-${index}`);
    cpSync(place, copy, { recursive: true });
    damage(copy);
    const failed = await pruneLogs(options({ archive: archiveIn(copy), record: async () => void t.fail('no intent is told of') })).catch((error: unknown) => error);
    t.type(failed, ArchiveFault, name);
    t.match((failed as Error).message, message, name);
    t.ok((failed as Error).message.includes(copy), 'it names the place');
  }
  for (const table of pruned) t.equal(await rowsOf(table), await rowsOf(`snapshot.${table}`), table);
  // What cannot be read now is not called damaged.
  const away = { ...archive.of(1), bundle: async () => Promise.reject(new Error('the disk is away')) };
  const failed = await pruneLogs(options({ archive: { ...archive, of: () => away } })).catch((error: unknown) => error);
  t.notOk(failed instanceof ArchiveFault);
  t.equal((await prunedEntries()).length, 0);
});

await t.test('events that nobody took keep their batch, and all above it', async (t) => {
  const { rows } = await owner.query<{ writer: string; number: string; first_index: string }>('SELECT writer, number, first_index FROM log_batches WHERE first_index > 300 ORDER BY first_index LIMIT 1');
  const [batch] = rows;
  await owner.query("INSERT INTO outbox VALUES ($1, $2, now(), '[]')", [batch!.writer, batch!.number]);
  t.same(await store.prunable(1, monthsAgo(3)), { index: Math.floor(Number(batch!.first_index) / 256) * 256, held: true });
  await t.rejects(kept.pool.query('SELECT prune_log_batches(1, $1, 100000)', [expected[0]]), { code: '23503' }, 'the database itself does not let go of it');
  const { pruned, held } = await pruneLogs(options());
  t.equal(held, true);
  t.match(pruned, [{ from: 0, to: 256 }]);
  await owner.query('DELETE FROM outbox');
  t.match(await store.prunable(1, monthsAgo(3)), { index: expected[1], held: false });
  await restore();
  await kept.sequence();
  await assertWhole(t, 'restored');
});

await t.test('a death at any step of pruning: all is whole, and the next run ends what was begun', async (t) => {
  let calls = 0;
  let failing = -1;
  let persisted = false;
  const step = async <Answer>(work: () => Promise<Answer>): Promise<Answer> => {
    const fails = calls++ === failing;
    if (!fails) return await work();
    if (persisted) await work();
    throw new Error('killed');
  };
  const flaky: RetentionStore = {
    ...store,
    logs: () => step(() => store.logs()),
    begin: (logId) => step(() => store.begin(logId)),
    prunable: (logId, before) => step(() => store.prunable(logId, before)),
    pruneBatches: (logId, to) => step(() => store.pruneBatches(logId, to)),
    pruneSearch: (logId, part) => step(() => store.pruneSearch(logId, part)),
    pruneTiles: (logId, to) => step(() => store.pruneTiles(logId, to)),
  };
  const record = (entry: Entry): Promise<void> => step(() => kept.record(entry));
  const target: LogTarget = { ...archive.of(1), checkpoint: () => step(() => archive.of(1).checkpoint()) };
  const run = (): ReturnType<typeof pruneLogs> => pruneLogs(options({ store: flaky, record, archive: { ...archive, of: () => target } }));
  await run();
  const steps = calls;
  t.ok(steps > 15, `${steps} steps`);
  for (failing = 0; failing < steps; failing += 1) {
    for (persisted of [false, true]) {
      await restore();
      calls = 0;
      await t.rejects(run(), { message: 'killed' });
      await assertWhole(t, `killed at step ${failing}${persisted ? ', done' : ''}`);
      const at = failing;
      failing = -1;
      await run();
      failing = at;
      t.equal((await store.begin(1)).index, expected[1]);
      t.equal(await rowsOf(`log_batches WHERE first_index + entry_count < ${expected[1]}`), 1, 'the silent writer\'s');
      t.equal(await rowsOf(`log_tiles t WHERE level = 0 AND tile < ${expected[1] / 256} AND NOT EXISTS (SELECT 1 FROM log_batches p WHERE p.first_index / 256 = t.tile)`), 0);
      const lowest = await lowestBatch();
      t.equal(await rowsOf(`log_tokens WHERE entry < ${lowest}`), 0);
      t.equal(await rowsOf(`log_facets WHERE block < ${Math.floor(lowest / 256)}`), 0);
      t.equal(await rowsOf('batches b WHERE NOT EXISTS (SELECT 1 FROM log_batches p WHERE (p.writer, p.number) = (b.writer, b.number)) AND formed_at < $$' + monthsAgo(3).toISOString() + '$$'), 0, 'no batch without its place');
      await kept.sequence();
    }
  }
  await assertWhole(t, 'in the end');
  await restore();
});

await t.test('a death at any write of the archive: it is whole as it was, and the next run goes on', async (t) => {
  const copy = join(folder, 'interrupted');
  cpSync(place, copy, { recursive: true });
  await kept.commit(600);
  await kept.sequence();
  const target = archiveIn(copy).of(1);
  let writes = 0;
  for (let failing = 0, ended = false; !ended; failing += 1) {
    writes = 0;
    const put: LogTarget['put'] = async (path, bytes) => {
      if (writes++ < failing) return await target.put(path, bytes);
      if (failing % 2 === 0) await target.put(path, bytes);
      throw new Error('killed');
    };
    await archiveLogs(options({ archive: { ...archive, of: () => ({ ...target, put }) } })).then(() => (ended = true), (error: unknown) => t.match(error, { message: 'killed' }));
    await recompute(target);
  }
  t.equal((await recompute(target)).checkpoint.size, kept.sequencer.signed!.size);
  t.equal(await archiveLogs(options()), kept.sequencer.signed!.size);
});

await t.test('what no checkpoint covers stays, however old', async (t) => {
  const old = await KeptLog.open(t, monthsAgo(6));
  await old.commit(400);
  await old.sequence();
  await old.commit(900);
  await old.sequence(false);
  const signed = old.sequencer.signed!.size;
  t.ok(old.sequencer.head!.size > signed + 800);
  const itsStore = postgresRetentionStore(old.pool, small);
  const itsArchive = archiveIn(join(folder, 'unsigned'));
  const its = { ...options(), store: itsStore, archive: itsArchive, record: (entry: Entry) => old.record(entry), now: () => new Date() };
  await archiveLogs(its);
  t.match((await pruneLogs(its)).pruned, [{ from: 0, to: 256 }]);
  t.ok(signed < 512);
  t.match(await itsStore.prunable(1, monthsAgo(3)), { index: 256 });
  await old.sequencer.step();
  await old.sequencer.sign();
  await t.rejects(pruneLogs(its), { message: /holds \d+ entries under a signed checkpoint, and not those from 256 on/u }, 'signed, but not archived');
  await archiveLogs(its);
  t.match((await pruneLogs(its)).pruned, [{ from: 256, to: 1280 }]);
});

await t.test('a month at a time, with an entry for each: what went where', async (t) => {
  await restore();
  const before = (await prunedEntries()).length;
  t.same(await pruneLogs(options({ searchableMonths: 6 })), { pruned: [], held: false });
  t.match(await pruneLogs(options({ searchableMonths: 4 })), { pruned: [{ from: 0, to: expected[0] }] });
  t.match(await pruneLogs(options()), { pruned: [{ from: expected[0], to: expected[1] }] });
  t.same(await pruneLogs(options()), { pruned: [], held: false }, 'and then there is nothing left to do');
  const told = (await prunedEntries()).slice(before);
  const { checkpoint } = await recompute(archive.of(1));
  const month = (ago: number): string => monthsAgo(ago).toISOString().slice(0, 7);
  t.match(told, [
    { outcome: 'allowed', detail: { entries: `0-${expected[0] - 1}`, log: 'cofre.test/log', months: month(5), target: place, checkpoint_size: checkpoint.size, root: checkpoint.root.toString('hex') } },
    { detail: { entries: `${expected[0]}-${expected[1] - 1}`, months: `${month(5)} to ${month(4)}` } },
  ]);
  await kept.sequence();
  await archiveLogs(options());
  await assertWhole(t, 'pruned');
});

await t.test('from the pruned database: every later entry is proven, the log goes on, and old ones are not served', async (t) => {
  const from = expected[1];
  await kept.commit(300);
  await kept.sequence();
  const signed = kept.sequencer.signed!;
  const source = kept.source();
  const reader = tileReader(signed.size, async (ref) => (await source.tile(ref)) ?? Buffer.alloc(0));
  let proven = 0;
  for (let index = from; index < signed.size; index += index < from + 300 ? 1 : 7) {
    const ref = { level: 0, index: Math.floor(index / 256), width: tileWidthAt(0, Math.floor(index / 256), signed.size) };
    const leaf = leafHash(decodeBundle((await source.bundle(ref))!)[index % 256]!);
    if (verifyInclusion(leaf, index, signed.size, signed.root, await inclusionProof(index, signed.size, reader))) proven += 1;
    else t.fail(`entry ${index}`);
  }
  t.ok(proven > 400);
  for (const note of kept.witness.notes) {
    const old = openCheckpoint(note, [keptVerifier])!;
    if (old.size >= from && old.size < signed.size) t.ok(verifyConsistency(old.size, signed.size, old.root, signed.root, await consistencyProof(old.size, signed.size, reader)), `${old.size}`);
  }

  // A writer that has been silent for months, and has no successor: by its last batch it is known where its chain goes on.
  const { rows: silent } = await owner.query<{ writer: string; next: string; first: string }>('SELECT c.writer, c.next, p.first_index AS first FROM log_chains c JOIN log_batches p ON (p.writer, p.number) = (c.writer, c.next - 1) WHERE p.first_index < $1', [from - 600]);
  t.equal(silent.length, 1);
  const last = (await kept.store.batch(BigInt(silent[0]!.writer), BigInt(silent[0]!.next) - 1n))!;
  const { rows: certified } = await owner.query<{ certificate: string }>('SELECT certificate FROM writers WHERE writer = $1', [silent[0]!.writer]);
  const place = Number(silent[0]!.first);
  t.ok(verifyInclusion(leafHash(encodeBatchLeaf(last, last.number === 0n ? certified[0]!.certificate : null)), place, signed.size, signed.root, await inclusionProof(place, signed.size, reader)));

  // A new process: its watch finds its batch, and whoever was stopped for months is not called cut off.
  const watch = new LogWatch(postgresLogView(kept.pool), testSigner, [kept.tokenizing]);
  await watch.check();
  t.same([watch.fault, watch.lagMs()], [null, 0]);

  await using stack = new AsyncDisposableStack();
  const served = serveLog(stack, kept.database.connect('admin'), testSigner);
  for (let index = 0; index < from / 256; index += 1) {
    if ((await rowsOf(`log_batches WHERE first_index / 256 = ${index}`)) === 0) t.equal(await served.resource(tilePath({ level: 0, index, width: 256 })), null);
    if ((index + 1) * 256 <= from - 600) t.equal(await served.resource(bundlePath({ index, width: 256 })), null);
  }
  t.ok((await served.resource(bundlePath({ index: from / 256, width: 256 })))!.bytes.length > 0);
  t.ok((await served.resource(tilePath({ level: 1, index: 0, width: Math.floor(signed.size / 256) })))!.bytes.length > 0);

  // Search says from where on it sees anything, and does not stumble over what is gone.
  const lowest = await lowestBatch();
  const { rows } = await owner.query<{ at: Date }>('SELECT formed_at AS at FROM log_batches WHERE first_index = $1', [lowest]);
  const searchable_from = { index: lowest, time: rows[0]!.at.toISOString() };
  const search = async (query: LogsQuery): Promise<LogsAnswer> => (await served.search(query))!;
  t.match(await search({ token: 'tok_3', limit: 10 }), { items: [], next: null, searchable_from });
  t.match(await search({ token: 'tok_2500', limit: 10 }), { items: [{ entry: { request: 'r-2500' } }], searchable_from });
  let found = 0;
  for (let before: number | string | null = Number.MAX_SAFE_INTEGER; before !== null; ) {
    const page: LogsAnswer = await search({ caller: 'spiffe://cofre.test/tenant/acme/service/checkout', before: Math.min(Number(before), 1e9), limit: 900 });
    found += page.items.length;
    before = page.next;
  }
  t.ok(found > 1500, `${found}`);
  t.match(await search({ action: 'validate', from: new Date('2020-01-01'), to: monthsAgo(4), limit: 10 }), { items: [], searchable_from });
  t.match((await search({ limit: 1000, to: monthsAgo(2) })).items.length > 0, true);
});

await t.test('an instance whose witness is months old reads what is gone from the archive', async (t) => {
  const stale = new MemoryWitness();
  const old = kept.witness.notes.find((note) => openCheckpoint(note, [keptVerifier])!.size > 500)!;
  t.ok(openCheckpoint(old, [keptVerifier])!.size < expected[1] && openCheckpoint(old, [keptVerifier])!.size % 256 !== 0);
  stale.notes.push(old);
  await t.rejects(kept.newSequencer({ witness: stale }).open(), { message: /tile 0\/\d+ of the log is missing/u });
  const whole = withArchivedTiles(kept.store, archive);
  await t.resolves(kept.newSequencer({ witness: stale, store: whole }).open());
  // Nor is a log begun in the place of one that goes on: its last entries would be in none.
  await kept.commit(3);
  await kept.sequence(false);
  const restart = async (store: RestartStore): Promise<unknown> => await restartLog({ store, witnesses: [stale], signer: testSigner, name: origin, now: kept.time });
  await t.rejects(restart(whole), { message: /goes on from what was witnessed: start the vault/u });
  await t.rejects(restart(kept.store), { message: /^tile 0\/\d+ of the log is missing or cut short\. So nobody can tell whether the log in the database goes on from what was witnessed: have its archive at hand, as log\.archive names it$/u });
  await kept.sequence();
});

await t.test('a note of a last batch that has gone with the old ones is no sign of a log that was cut off', async (t) => {
  const { rows } = await owner.query<{ writer: string; number: string; previous: Buffer }>('SELECT writer, number, previous FROM snapshot.batches WHERE number > 0 ORDER BY formed_at LIMIT 1 OFFSET 5');
  const [batch] = rows;
  const writer = BigInt(batch!.writer).toString(16).padStart(16, '0');
  const note = { writer, number: String(Number(batch!.number) - 1), hash: batch!.previous.toString('hex'), closed: false };
  // Its writer goes on: it is not the one that was stopped.
  const client = await owner.connect();
  t.teardown(() => client.release());
  await t.rejects(assertLastBatch(client, note, 'x.json'), { message: /cut|older/u });
  await client.query('BEGIN');
  await client.query('UPDATE log_chains SET next = $2, previous = $3, formed_at = $4 WHERE writer = $1', [batch!.writer, batch!.number, batch!.previous, monthsAgo(5)]);
  await t.resolves(assertLastBatch(client, note, 'x.json'));
  await t.rejects(assertLastBatch(client, { ...note, hash: '0'.repeat(64) }, 'x.json'), 'another batch');
  await t.rejects(assertLastBatch(client, { ...note, number: batch!.number }, 'x.json'), 'one that the tree does not have');
  await client.query('ROLLBACK');
});

await t.test('a writer that goes on after months leaves its last old batch behind as well', async (t) => {
  await restore();
  await pruneLogs(options({ searchableMonths: 4 }));
  const kept1 = 'log_batches WHERE first_index < (SELECT entries_from FROM log_pruned)';
  t.equal(await rowsOf(kept1), 1);
  t.equal(await rowsOf('log_tiles t WHERE level = 0 AND tile = 0'), 1, 'and its tile');
  // One that has to find out where that chain stands.
  kept.sequencer = kept.newSequencer();
  await kept.silent!.commit({ kind: 'entry', entry: { action: 'validate', at: kept.time, outcome: 'allowed' } });
  await kept.sequence();
  await pruneLogs(options());
  t.equal(await rowsOf(kept1), 0);
  t.equal(await rowsOf(`batches b WHERE NOT EXISTS (SELECT 1 FROM log_batches p WHERE (p.writer, p.number) = (b.writer, b.number)) AND formed_at < $$${monthsAgo(3).toISOString()}$$`), 0);
  t.equal(await rowsOf('log_tiles t WHERE level = 0 AND tile = 0'), 0);
  await kept.sequence();
  await assertWhole(t, 'gone on');
});

await t.test('once a day the archive is looked at: what it must hold, by samples', async (t) => {
  const months = { ...options(), keepMonths: 12 };
  await t.resolves(sampleArchive(months));
  const copy = join(folder, 'thinned');
  cpSync(place, copy, { recursive: true });
  rmSync(join(copy, bundlePath({ index: 0, width: 256 })));
  await t.rejects(sampleArchive({ ...months, archive: archiveIn(copy), pick: () => 3 }), { message: /lacks tile\/entries\/000/u }, 'the oldest that it must hold is always looked at');
  flip(join(copy, bundlePath({ index: 5, width: 256 })));
  writeFileSync(join(copy, bundlePath({ index: 0, width: 256 })), readFileSync(join(place, bundlePath({ index: 0, width: 256 }))));
  await t.rejects(sampleArchive({ ...months, archive: archiveIn(copy), pick: () => 5 }), { message: /something else in tile\/entries\/005/u });
  // Beyond the time that it must keep, an archive may let go.
  rmSync(join(copy, bundlePath({ index: 0, width: 256 })));
  await t.resolves(sampleArchive({ ...months, keepMonths: 4, archive: archiveIn(copy), pick: (below) => below - 1 }));
});

await t.test('checkpoints are thinned to one an hour, those of the last day and the largest stay', async (t) => {
  const now = Date.now();
  const hour = 3_600_000;
  const base = Math.floor((now - 30 * 24 * hour) / hour) * hour;
  const first = 1_000_000;
  for (let minute = 0; minute < 180; minute += 1) await owner.query("INSERT INTO log_checkpoints VALUES (1, $1, 'x', $2)", [first + minute, new Date(base + minute * 60_000)]);
  for (let minute = 0; minute < 90; minute += 1) await owner.query("INSERT INTO log_checkpoints VALUES (1, $1, 'x', $2)", [first + 1000 + minute, new Date(now - minute * 60_000)]);
  const thinned = postgresRetentionStore(kept.pool, small);
  let deleted = 0;
  for (let count = 1; count > 0; deleted += count) count = await thinned.thinCheckpoints(new Date(now - 24 * hour));
  t.ok(deleted >= 177);
  const { rows } = await owner.query<{ size: string }>('SELECT size FROM log_checkpoints WHERE size >= $1 AND size < $1 + 1000 ORDER BY size', [first]);
  t.same(rows.map(({ size }) => Number(size) - first), [59, 119, 179]);
  t.equal(await rowsOf(`log_checkpoints WHERE size >= ${first + 1000}`), 90);
  await owner.query("DELETE FROM log_checkpoints WHERE note = 'x'");
  await assertWhole(t, 'thinned');
});

function flip(path: string): void {
  const bytes = readFileSync(path);
  bytes[bytes.length >> 1]! ^= 1;
  writeFileSync(path, bytes);
}
