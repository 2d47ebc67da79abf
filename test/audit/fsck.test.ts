/** The verification of whole logs: what is in order is clean in every size and shape, and what is not is named. */
import { createHash, generateKeyPairSync } from 'node:crypto';
import * as fc from 'fast-check';
import t from 'tap';
import { signCheckpoint } from '../../audit/checkpoint.ts';
import { decodeBundle, encodeBundle, encodeEntry } from '../../audit/entry.ts';
import { exportLog } from '../../audit/export.ts';
import type { Finding } from '../../audit/findings.ts';
import { verifyLog } from '../../audit/fsck.ts';
import type { LogReport, VerifyOptions } from '../../audit/fsck.ts';
import { logSource, logTarget } from '../../audit/log-source.ts';
import { encodeVkey, parseVkey } from '../../audit/note.ts';
import { MadeLog, makeLog, makeSigner, MemoryFiles } from '../support/made-log.ts';

const verify = (log: MadeLog, files: MemoryFiles = log.files, options: Partial<VerifyOptions> = {}): Promise<LogReport> => verifyLog(logSource(files), { vkey: log.verifier, ...options });

/** The findings without their sentences, which are held to being there. */
function brief(report: LogReport): Omit<Finding, 'message'>[] {
  return report.findings.map(({ message, ...rest }) => {
    if (message === '') throw new Error('a finding without a sentence');
    return rest;
  });
}

const codes = (report: LogReport): string[] => report.findings.map(({ code }) => code);

/** The log with one of its files changed; null removes it. */
function withFile(log: MadeLog, path: string, change: (bytes: Buffer) => Buffer | null): MemoryFiles {
  const files = log.files.copy();
  const bytes = files.files.get(path);
  if (bytes === undefined) throw new Error(`no ${path}`);
  const changed = change(bytes);
  if (changed === null) files.files.delete(path);
  else files.files.set(path, changed);
  return files;
}

function flip(at: number): (bytes: Buffer) => Buffer {
  return (bytes) => {
    const changed = Buffer.from(bytes);
    changed[at]! ^= 1;
    return changed;
  };
}

/** Like `flip`, for the entry of a bundle: one byte of its text. */
function withEntry(place: number, change: (entry: Buffer) => Buffer): (bundle: Buffer) => Buffer {
  return (bundle) => encodeBundle(decodeBundle(bundle).map((entry, at) => (at === place ? change(Buffer.from(entry)) : entry)));
}

t.test('a log is clean at every width of its last tile, and so is its export', async (t) => {
  const faults: string[] = [];
  for (let width = 1; width <= 256; width++) {
    const log = await makeLog(256 + width, { batchSize: 60, at: [5 + width, 256] });
    const copy = new MemoryFiles();
    for (const note of log.checkpoints) {
      await exportLog({ ...log.target, checkpoint: async () => note }, logTarget(copy), { verifiers: [log.verifier] });
      const report = await verify(log, copy, { olderCheckpoints: log.checkpoints.slice(0, log.checkpoints.indexOf(note) + 1).map((one) => ({ name: 'kept', note: one })) });
      if (!report.holds || report.continued.length !== log.checkpoints.indexOf(note) + 1) faults.push(`width ${width}, ${report.checkpoint?.size} entries: ${JSON.stringify(report.findings)}`);
    }
  }
  t.same(faults, []);
});

t.test('a log with two full levels, tombstones, stops and successors is clean, with all its older checkpoints', async (t) => {
  const log = await makeLog(66_100, { batchSize: 700, writers: 5, at: [5, 255, 256, 257, 40_000, 65_535, 65_536, 65_537, 65_792] });
  const progress: number[] = [];
  const report = await verify(log, log.files, { olderCheckpoints: log.checkpoints.map((note, index) => ({ name: `kept ${index}`, note })), onProgress: ({ done, total }) => void (total === 66_100 && progress.push(done)) });
  t.same(brief(report), []);
  t.match(report, { holds: true, found: 0, continued: log.checkpoints.map((_, index) => `kept ${index}`), checkpoint: { size: 66_100, origin: log.origin } });
  t.equal(report.totals.writers, log.writers.length);
  t.equal(report.totals.batches + report.totals.entries + 1, 66_100, 'each leaf is the charter, a batch leaf or an entry');
  t.ok(report.totals.tombstones > 0);
  t.equal(progress.at(-1), 66_100);
});

t.test('with an ECDSA key it is the same', async (t) => {
  const log = await makeLog(700, { algorithm: 'ecdsa-p256' });
  t.match(await verify(log), { holds: true });
  t.same(brief(await verify(log, withFile(log, 'tile/entries/001', withEntry(3, flip(20))))).filter(({ code }) => code === 'entry_changed'), [{ code: 'entry_changed', file: 'tile/entries/001', entry: 259, to: 259 }]);
});

t.test('any log that a sequencer could make is clean', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 5, max: 900 }), fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 300 }), fc.array(fc.integer({ min: 5, max: 899 }), { maxLength: 4 }), async (size, writers, batchSize, at) => {
      const log = await makeLog(size, { writers, batchSize, at: [...new Set(at)].sort((a, b) => a - b) });
      const report = await verify(log, log.files, { olderCheckpoints: log.checkpoints.map((note) => ({ name: 'x', note })) });
      return report.holds && report.continued.length === log.checkpoints.length;
    }),
    { numRuns: 60 },
  );
  t.pass();
});

t.test('a flipped byte of an entry names the entry, whichever byte it is', async (t) => {
  const small = await makeLog(1100, { batchSize: 100 });
  const large = await makeLog(66_100, { batchSize: 700 });
  const faults: string[] = [];
  const samples: [MadeLog, string, number][] = [[small, 'tile/entries/000', 997], [small, 'tile/entries/002', 499], [small, 'tile/entries/004.p/76', 499], [large, 'tile/entries/200', 40_009], [large, 'tile/entries/256', 90_001], [large, 'tile/entries/258.p/52', 19_001]];
  for (const [log, path, stride] of samples) {
    const bundle = log.files.files.get(path)!;
    const first = Number(path.slice(13, 16)) * 256;
    // Sampled: a prime apart, so that every kind of byte is met.
    for (let at = 0; at < bundle.length; at += stride) {
      let end = 0;
      const place = decodeBundle(bundle).findIndex((entry) => (end += 2 + entry.length) > at);
      const length = end - 2 - decodeBundle(bundle)[place]!.length;
      const report = await verify(log, withFile(log, path, flip(at)));
      // The length before an entry tears the whole bundle.
      const expected = at < length + 2 ? report.findings.some(({ code, file }) => (code === 'bundle_malformed' || code === 'entry_changed') && file === path) : report.findings.some(({ code, entry, to }) => code === 'entry_changed' && entry === first + place && to === entry);
      if (!expected || report.findings.some(({ code }) => ['tile_changed', 'root_mismatch', 'undecided', 'range_changed', 'batch_unchained', 'batch_missing'].includes(code))) faults.push(`${path} byte ${at}, entry ${first + place}: ${JSON.stringify(report.findings)}`);
    }
  }
  t.same(faults, []);
});

t.test('a flipped byte of a tile names the tile, at each level and at the edge', async (t) => {
  const log = await makeLog(66_100, { batchSize: 900 });
  for (const path of ['tile/0/000', 'tile/0/100', 'tile/0/257', 'tile/0/258.p/52', 'tile/1/000', 'tile/1/001.p/2', 'tile/2/000.p/1']) {
    const length = log.files.files.get(path)!.length;
    for (const at of [0, length - 1]) t.match(brief(await verify(log, withFile(log, path, flip(at)))), [{ code: 'tile_changed', file: path, to: Number }], `${path} byte ${at}`);
    t.match(brief(await verify(log, withFile(log, path, () => null))), [{ code: 'tile_missing', file: path }], `${path} removed`);
    t.match(brief(await verify(log, withFile(log, path, (bytes) => bytes.subarray(0, -32)))), [{ code: 'tile_malformed', file: path }], `${path} truncated`);
    t.match(brief(await verify(log, withFile(log, path, (bytes) => Buffer.concat([bytes, bytes.subarray(0, 32)])))), [{ code: 'tile_malformed', file: path }], `${path} with more`);
  }
});

t.test('a bundle that is missing, torn or of another width costs what it holds, and no finding beside', async (t) => {
  const log = await makeLog(3000, { batchSize: 90 });
  for (const [path, change, code] of [
    ['tile/entries/004', () => null, 'bundle_missing'],
    ['tile/entries/004', (bytes: Buffer) => bytes.subarray(0, -1), 'bundle_malformed'],
    ['tile/entries/004', (bytes: Buffer) => encodeBundle(decodeBundle(bytes).slice(1)), 'bundle_malformed'],
    ['tile/entries/004', (bytes: Buffer) => Buffer.concat([bytes, bytes]), 'bundle_malformed'],
    ['tile/entries/004', () => Buffer.alloc(0), 'bundle_malformed'],
    ['tile/entries/011.p/184', () => null, 'bundle_missing'],
    ['tile/entries/000', () => null, 'bundle_missing'],
  ] as const) {
    const report = await verify(log, withFile(log, path, change));
    const index = Number(path.slice(13, 16));
    t.match(brief(report).filter(({ code }) => code !== 'writer_unknown'), [{ code, file: path, entry: index * 256, to: Math.min(3000, (index + 1) * 256) - 1 }], `${path} ${code}`);
    t.equal(codes(report).includes('writer_unknown'), index === 0, 'whose certificates are lost is said');
  }
  const files = withFile(log, 'tile/entries/004', () => null);
  files.files.set('tile/entries/008', withEntry(7, flip(30))(files.files.get('tile/entries/008')!));
  files.files.set('tile/0/009', flip(5)(files.files.get('tile/0/009')!));
  files.files.delete('tile/0/002');
  t.match(brief(await verify(log, files)).filter(({ code }) => !['batch_signature', 'entry_malformed'].includes(code)), [
    { code: 'tile_missing', file: 'tile/0/002' }, { code: 'bundle_missing', entry: 1024 }, { code: 'entry_changed', entry: 2055, to: 2055 }, { code: 'tile_changed', file: 'tile/0/009' },
  ], 'one fault hides no other');
  const unreadable = await verifyLog({ ...logSource(log.files), bundle: async (ref) => { if (ref.index === 3) throw new Error('the disk is broken'); return await logSource(log.files).bundle(ref); } }, { vkey: log.verifier });
  t.match(unreadable.findings, [{ code: 'file_unreadable', file: 'tile/entries/003', message: 'the disk is broken' }]);
});

t.test('faults of several levels are told apart', async (t) => {
  const log = await makeLog(140_000, { batchSize: 300 });
  // The hash above an entry's tile is wrong too: the level above that one decides.
  const files = log.files.copy();
  files.files.set('tile/entries/005', withEntry(9, flip(40))(files.files.get('tile/entries/005')!));
  files.files.set('tile/1/000', flip(5 * 32 + 3)(files.files.get('tile/1/000')!));
  t.match(brief(await verify(log, files)).filter(({ code }) => !['batch_signature', 'entry_malformed'].includes(code)), [{ code: 'tile_changed', file: 'tile/1/000' }, { code: 'entry_changed', entry: 1289, to: 1289 }]);
  // At the edge, the signed root does.
  const edge = log.files.copy();
  edge.files.set('tile/entries/520', withEntry(9, flip(40))(edge.files.get('tile/entries/520')!));
  edge.files.set('tile/1/002.p/34', flip(8 * 32 + 3)(edge.files.get('tile/1/002.p/34')!));
  edge.files.set('tile/0/546.p/224', flip(3)(edge.files.get('tile/0/546.p/224')!));
  t.match(brief(await verify(log, edge)).filter(({ code }) => !['batch_signature', 'entry_malformed'].includes(code)), [
    { code: 'tile_changed', file: 'tile/1/002.p/34' }, { code: 'entry_changed', entry: 520 * 256 + 9 }, { code: 'tile_changed', file: 'tile/0/546.p/224' },
  ]);
  // Entry and tile changed together: which entry, nobody can tell any more, but the batch that holds it can.
  const together = log.files.copy();
  together.files.set('tile/entries/005', withEntry(9, flip(40))(together.files.get('tile/entries/005')!));
  const hash = createHash('sha256').update(Buffer.from([0])).update(decodeBundle(together.files.get('tile/entries/005')!)[9]!).digest();
  together.files.set('tile/0/005', Buffer.concat([log.files.files.get('tile/0/005')!.subarray(0, 288), hash, log.files.files.get('tile/0/005')!.subarray(320)]));
  const report = await verify(log, together);
  t.match(brief(report).filter(({ code }) => code !== 'entry_malformed'), [{ code: 'batch_signature', entry: Number, to: Number }, { code: 'range_changed', entry: 1280, to: 1535, file: 'tile/0/005' }]);
  const batch = report.findings.find(({ code }) => code === 'batch_signature')!;
  t.ok(batch.entry! <= 1289 && batch.to! >= 1289);
});

t.test('any faults at once are each named, and nothing beside them', async (t) => {
  const log = await makeLog(2900, { batchSize: 60 });
  const paths = [...log.files.files.keys()].filter((path) => path !== 'checkpoint');
  await fc.assert(
    fc.asyncProperty(fc.uniqueArray(fc.tuple(fc.constantFrom(...paths), fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), fc.boolean()), { selector: ([path]) => path, minLength: 1, maxLength: 4 }), async (faults) => {
      const files = log.files.copy();
      for (const [path, share, removed] of faults) {
        const bytes = files.files.get(path)!;
        if (removed) files.files.delete(path);
        else files.files.set(path, flip(Math.floor(bytes.length * share))(bytes));
      }
      const report = await verify(log, files);
      const touched = new Set(faults.map(([path]) => path));
      // Where the entries and the tile over them are both wrong, or nothing is left of the edge, it may be that nobody can tell.
      const indexes = faults.map(([path]) => path.replace(/^tile\/(?:0|entries)\//u, ''));
      const edge = faults.filter(([path]) => path.includes('.p/')).length > 1;
      const both = edge || indexes.length > new Set(indexes).size;
      for (const [path] of faults) if (!report.findings.some(({ file }) => file === path) && !both) throw new Error(`${path} is not named: ${JSON.stringify(report.findings)}`);
      for (const { code, file } of report.findings) {
        if (['undecided', 'root_mismatch', 'range_changed'].includes(code) && both) continue;
        if (file !== undefined && !touched.has(file)) throw new Error(`${file} is named: ${JSON.stringify(report.findings)}`);
      }
      return !report.holds;
    }),
    { numRuns: 150 },
  );
  t.pass();
});

t.test('entries that are dropped, swapped or doubled within a bundle are named, and their batch', async (t) => {
  const log = await makeLog(3000, { batchSize: 90 });
  const path = 'tile/entries/005';
  const cases: [string, (entries: Uint8Array[]) => Uint8Array[], { entry: number; to: number }][] = [
    ['swapped', (entries) => [...entries.slice(0, 10), entries[11]!, entries[10]!, ...entries.slice(12)], { entry: 1290, to: 1291 }],
    ['doubled', (entries) => [...entries.slice(0, 10), entries[9]!, ...entries.slice(11)], { entry: 1290, to: 1290 }],
    ['dropped, and one put at the end', (entries) => [...entries.slice(0, 10), ...entries.slice(11), entries[0]!], { entry: 1290, to: 1535 }],
    ['dropped, and one put before', (entries) => [entries[3]!, ...entries.slice(0, 10), ...entries.slice(11)], { entry: 1280, to: 1290 }],
  ];
  for (const [name, change, range] of cases) {
    const report = await verify(log, withFile(log, path, (bytes) => encodeBundle(change(decodeBundle(bytes)))));
    t.match(brief(report).filter(({ code }) => code === 'entry_changed'), [{ code: 'entry_changed', file: path, ...range }], name);
    t.notOk(codes(report).some((code) => ['tile_changed', 'root_mismatch', 'undecided'].includes(code)), name);
  }
  // Whole bundles.
  const swapped = log.files.copy();
  swapped.files.set('tile/entries/005', log.files.files.get('tile/entries/006')!);
  swapped.files.set('tile/entries/006', log.files.files.get('tile/entries/005')!);
  t.match(brief(await verify(log, swapped)).filter(({ code }) => code === 'entry_changed'), [{ entry: 1280, to: 1535 }, { entry: 1536, to: 1791 }]);
});

t.test('the checkpoint must be this log\'s: any byte of it counts', async (t) => {
  const log = await makeLog(300);
  const note = log.files.files.get('checkpoint')!;
  const passed: number[] = [];
  for (let at = 0; at < note.length; at++) if ((await verify(log, withFile(log, 'checkpoint', flip(at)))).holds) passed.push(at);
  t.same(passed, []);
  t.same(codes(await verify(log, withFile(log, 'checkpoint', () => null))), ['checkpoint_missing']);
  t.same(codes(await verify(log, withFile(log, 'checkpoint', () => Buffer.from('nonsense')))), ['checkpoint_invalid']);
  t.same(codes(await verifyLog(logSource(log.files), { vkey: parseVkey(encodeVkey(log.base, 'ed25519', makeSigner().publicKeySpki)) })), ['checkpoint_invalid']);
  t.same(codes(await verifyLog(logSource(log.files), { vkey: parseVkey(encodeVkey('another.log', 'ed25519', log.signer.publicKeySpki)) })), ['checkpoint_invalid'], 'of another name');
  t.same(codes(await verifyLog({ ...logSource(log.files), checkpoint: async () => { throw new Error('away'); } }, { vkey: log.verifier })), ['file_unreadable']);
  // A root that was never that of these entries, signed nevertheless.
  const files = log.files.copy();
  files.files.set('checkpoint', Buffer.from(await signCheckpoint({ origin: log.origin, size: 300, root: Buffer.alloc(32, 7) }, log.signer)));
  t.same(brief(await verify(log, files)), [{ code: 'root_mismatch', file: 'checkpoint' }]);
});

t.test('an older checkpoint catches a cut tail and a rewritten history', async (t) => {
  const log = await makeLog(1500, { at: [300, 700, 768] });
  const [first, second, third, last] = log.checkpoints as [string, string, string, string];
  // The tail cut off, with the checkpoint of that time put back: nothing else can tell.
  const cut = log.files.copy();
  cut.files.set('checkpoint', Buffer.from(second));
  t.match(await verify(log, cut), { holds: true, checkpoint: { size: 700 } });
  t.match(brief(await verify(log, cut, { olderCheckpoints: [{ name: 'kept', note: first }, { name: 'newest', note: last }] })), [{ code: 'older_checkpoint_ahead', file: 'newest', entry: 700, to: 1499 }]);
  // Everything written anew, chains and all, and signed by the same key.
  const rewritten = await MadeLog.start({ signer: log.signer });
  const writer = await rewritten.writer();
  for (let count = 0; count < 30; count++) rewritten.batch(writer, 60);
  await rewritten.publish();
  t.match(await verify(rewritten), { holds: true });
  const report = await verify(rewritten, rewritten.files, { olderCheckpoints: [first, third, rewritten.checkpoints[0]!].map((note, index) => ({ name: `kept ${index}`, note })) });
  t.match(brief(report), [{ code: 'older_checkpoint_differs', file: 'kept 0', entry: 0, to: 299 }, { code: 'older_checkpoint_differs', file: 'kept 1', entry: 0, to: 767 }]);
  t.same(report.continued, ['kept 2']);
  t.match(brief(await verify(log, log.files, { olderCheckpoints: [{ name: 'torn', note: first.slice(0, -9) }] })), [{ code: 'older_checkpoint_invalid', file: 'torn' }]);
  // Two statements about the same size.
  const split = await signCheckpoint({ origin: log.origin, size: 1500, root: Buffer.alloc(32, 1) }, log.signer);
  t.same(codes(await verify(log, log.files, { olderCheckpoints: [{ name: 'split', note: split }] })), ['older_checkpoint_differs']);
  // One fault must not make an older checkpoint look rewritten; entries that cannot be read must not make it look kept.
  t.match((await verify(log, withFile(log, 'tile/entries/000', withEntry(9, flip(30))), { olderCheckpoints: [{ name: 'x', note: first }] })).continued, ['x']);
  const gone = withFile(log, 'tile/entries/000', () => null);
  gone.files.delete('tile/0/000');
  t.match((await verify(log, gone, { olderCheckpoints: [{ name: 'x', note: second }] })).continued, ['x'], 'the tile above tells as well');
  gone.files.delete('tile/1/000.p/5');
  t.ok(codes(await verify(log, gone, { olderCheckpoints: [{ name: 'x', note: second }] })).includes('older_checkpoint_differs'));
});

/** A log of one writer that was told wrong, signed by the vault's key all the same: what the chains alone must catch. */
async function told(tell: (log: MadeLog) => Promise<unknown>): Promise<Omit<Finding, 'message'>[]> {
  const log = await MadeLog.start();
  await tell(log);
  await log.publish();
  const report = await verify(log);
  t.equal(report.found, report.findings.length);
  return brief(report);
}

t.test('a batch that its writer did not sign, or not so, is named', async (t) => {
  const forger = generateKeyPairSync('ed25519').privateKey;
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, 3); log.batch(w, 3, { signedBy: forger }); log.batch(w, 2); }), [{ code: 'batch_signature', batch: 2, entry: 7, to: 10, writer: /^[0-9a-f]{16}$/u }], 'and the next one is not blamed');
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, 300, { signature: Buffer.alloc(64, 9) }); }), [{ code: 'batch_signature', batch: 1, entry: 3, to: 303 }]);
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, 3, { previous: Buffer.alloc(32, 1) }); log.batch(w, 2); }), [{ code: 'batch_unchained', batch: 1, entry: 3 }]);
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, 2); log.batch(w, 2, { formedAt: new Date('2025-01-01T00:00:00Z') }); log.batch(w, 1); }), [{ code: 'batch_older', batch: 2, entry: 6 }]);
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, 2, { number: 3n }); log.batch(w, 1); }), [{ code: 'batch_missing', batch: 3, entry: 3 }], 'a gap');
  t.match(await told(async (log) => { const w = await log.writer(); const p = { next: w.next, previous: w.previous }; log.batch(w, 2); const after = { next: w.next, previous: w.previous }; Object.assign(w, p); log.batch(w, 2); Object.assign(w, after); log.batch(w, 1); }), [{ code: 'batch_repeated', batch: 1, entry: 6 }], 'a number twice');
  t.match(await told(async (log) => { const w = await log.writer(); log.stop(w); log.batch(w, 2); }), [{ code: 'batch_after_stop', batch: 2, entry: 5 }]);
  t.match(await told(async (log) => { const w = await log.writer(); const other = await log.writer(); log.batch(w, [encodeEntry({ action: 'writer.stop', at: log.now(), outcome: 'allowed', detail: { writer: other.name } })]); log.batch(w, 1); }), [], 'somebody else\'s stop ends nothing');
});

t.test('a writer needs a certificate of the vault, and says that it starts', async (t) => {
  t.match(await told(async (log) => { const w = await log.writer({ signer: makeSigner() }); log.batch(w, 2); }), [{ code: 'certificate_invalid', entry: 1 }]);
  t.match(await told(async (log) => { const w = await log.writer(); const other = await log.writer({ overrides: { certificate: w.certificate } }); log.batch(other, 1); }), [{ code: 'certificate_invalid', entry: 3 }], 'and not another\'s');
  t.match(await told(async (log) => { await log.writer({ entries: [log.entry('first')] }); }), [{ code: 'start_missing', entry: 2, batch: 0 }]);
  t.match(await told(async (log) => { const w = await log.writer(); await log.writer({ entries: [encodeEntry({ action: 'writer.start', at: log.now(), outcome: 'allowed', detail: { writer: w.name } })] }); }), [{ code: 'start_missing', entry: 4 }]);
  t.match(await told(async (log) => { const w = await log.writer(); const stranger = { ...w, writer: 77n, next: 4n }; log.batch(stranger, 1); log.batch(stranger, 1); }), [{ code: 'batch_missing', writer: '000000000000004d', batch: 4 }], 'a writer from nowhere');
  t.match(await told(async (log) => { const w = await log.writer({ entries: [], overrides: { kind: 'tombstone' } }); log.batch(w, 2); }), [{ code: 'start_missing', entry: 1, batch: 0 }], 'nor with a tombstone');
});

t.test('a successor that names a batch which is not there proves that a tail was cut off', async (t) => {
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, 2); const { batch } = log.form(w, [log.entry('cut')]); const last = { ...w, next: batch.number + 1n, previous: Buffer.alloc(32, 5) }; await log.writer({ predecessor: last }); }), [{ code: 'predecessor_missing', batch: 2, entry: 7 }]);
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, 2); await log.writer({ predecessor: { ...w, previous: Buffer.alloc(32, 5) } }); }), [{ code: 'predecessor_differs', batch: 1, entry: 7 }]);
  t.match(await told(async (log) => { const w = await log.writer(); const lagging = { ...w }; for (let count = 0; count < 200; count++) log.batch(w, 1); await log.writer({ predecessor: lagging }); }), [], 'what it knew may lag behind');
  t.match(await told(async (log) => { const w = await log.writer(); for (let count = 0; count < 200; count++) log.batch(w, 1); await log.writer({ claim: { predecessor: w.name, predecessor_last: '100', predecessor_hash: '00'.repeat(32) } }); }), [{ code: 'predecessor_differs', batch: 100 }]);
  t.match(await told(async (log) => { await log.writer({ claim: { predecessor: '0000000000000005', predecessor_last: '8', predecessor_hash: '00'.repeat(32) } }); }), [{ code: 'predecessor_missing', writer: '0000000000000005', batch: 8 }], 'of a writer that is gone altogether');
});

/** An entry of so many objects and lists within one another. */
const nested = (depth: number): string => `{"action":"x","d":${'['.repeat(depth - 1)}${']'.repeat(depth - 1)},"v":1}`;

t.test('leaves stand where they belong', async (t) => {
  t.match(await told(async (log) => { const w = await log.writer(); log.leaf(log.entry('alone')); log.leaf(log.entry('alone too')); log.batch(w, 2); }), [{ code: 'batch_leaf_missing', entry: 3 }]);
  t.match(await told(async (log) => { const w = await log.writer(); log.leaf(Buffer.from('{"action":"log.batch","v":1}')); log.batch(w, 2); }), [{ code: 'batch_leaf_malformed', entry: 3 }]);
  t.match(await told(async (log) => { const w = await log.writer(); log.leaf(log.form(w, [log.entry('a'), log.entry('b')]).leaf); log.leaf(log.entry('a')); const other = await log.writer(); log.batch(other, 1); }), [{ code: 'batch_incomplete', batch: 1, entry: 3, to: 4 }]);
  t.match(await told(async (log) => { const w = await log.writer(); log.leaf(log.form(w, [log.entry('a'), log.entry('b')]).leaf); log.leaf(log.entry('a')); }), [{ code: 'batch_incomplete', batch: 1, entry: 3, to: 4 }], 'at the end too');
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, [encodeEntry({ action: 'log.start', at: log.now(), outcome: 'allowed' }), encodeEntry({ action: 'log.batch', at: log.now(), outcome: 'allowed' })]); log.batch(w, 1); }), [{ code: 'entry_misplaced', entry: 4 }, { code: 'entry_misplaced', entry: 5 }]);
  for (const text of ['', '{}', '[]', 'null', '{"action":"x","v":2}', '{"v":1,"action":"x"}', '{"action":"x", "v":1}', '{"action":"x","v":1}\n', '{"action":"x","action":"x","v":1}', '{"action":"\\u0078","v":1}', '{"action":"x","n":1.0,"v":1}', '{"action":"\\ud800","v":1}', '\uFEFF{"v":1}', nested(17), nested(17).replace('{', '{"9":1,"10":1,')])
    t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, [Buffer.from(text)]); log.batch(w, 1); }), [{ code: 'entry_malformed', entry: 4 }], text);
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, [Buffer.from('{"a":"\xff","v":1}', 'latin1')]); }), [{ code: 'entry_malformed', entry: 4 }], 'not UTF-8');
  t.match(await told(async (log) => { const w = await log.writer(); log.batch(w, ['{"10":1,"9":2,"v":1}', '{"a":{"é":[1,{"ü":"\uFFFD"}]},"v":1}', '{"__proto__":1,"v":1}', nested(16)].map((text) => Buffer.from(text))); }), [], 'odd, but canonical');
});

t.test('a log begins with a charter of its vault, and a later one names the one before it', async (t) => {
  const forged = await MadeLog.start({ charterSigner: makeSigner() });
  await forged.writer();
  await forged.publish();
  t.match(brief(await verify(forged)), [{ code: 'charter_invalid', entry: 0 }]);
  const first = await makeLog(700, { at: [400] });
  const wanderer = await first.writer();
  first.batch(wanderer, 3);
  const end = await first.publish();
  const predecessor = { origin: first.origin, size: first.size, root: first.root() };
  const second = await MadeLog.start({ logId: 2, signer: first.signer, predecessor, carried: [{ writer: wanderer.writer, next: wanderer.next, previous: wanderer.previous, certificate: wanderer.certificate }] });
  t.equal(second.origin, 'cofre.test/log/2');
  const lagging = { ...wanderer, next: 1n };
  second.batch(wanderer, 5);
  await second.writer({ predecessor: wanderer });
  await second.writer({ predecessor: first.writers[0]! });
  await second.writer({ predecessor: lagging });
  await second.publish();
  const report = await verify(second, second.files, { olderCheckpoints: [{ name: 'end', note: end }, { name: 'middle', note: first.checkpoints[0]! }] });
  t.match(report, { holds: true, continued: ['end'], earlier: ['middle'], totals: { earlier: 2 } });
  t.match(await verifyLog(logSource(second.files), { vkey: parseVkey(encodeVkey(second.origin, 'ed25519', second.signer.publicKeySpki)) }), { holds: true }, 'by the vkey of either name');
  t.match(await verifyLog(logSource(first.files), { vkey: parseVkey(encodeVkey(second.origin, 'ed25519', second.signer.publicKeySpki)) }), { holds: true });
  t.match(brief(await verify(second, second.files, { olderCheckpoints: [{ name: 'end', note: await signCheckpoint({ ...predecessor, root: Buffer.alloc(32, 3) }, first.signer) }] })), [{ code: 'older_checkpoint_differs', file: 'end' }]);
  // Of the first log somebody has a checkpoint behind the end that the charter names; and of the second one, who is shown the first.
  const ahead = await signCheckpoint({ ...predecessor, size: predecessor.size + 5, root: Buffer.alloc(32, 4) }, first.signer);
  t.match(brief(await verify(second, second.files, { olderCheckpoints: [{ name: 'ahead', note: ahead }] })), [{ code: 'older_checkpoint_ahead', file: 'ahead' }]);
  t.match(brief(await verify(first, first.files, { olderCheckpoints: [{ name: 'second', note: second.checkpoints[0]! }] })), [{ code: 'older_checkpoint_ahead', file: 'second' }]);
  const misled = await MadeLog.start({ logId: 2, signer: first.signer, predecessor, carried: [{ writer: wanderer.writer, next: wanderer.next, previous: Buffer.alloc(32, 1), certificate: first.writers[0]!.certificate }] });
  misled.batch(wanderer, 5);
  await misled.publish();
  t.match(brief(await verify(misled)), [{ code: 'certificate_invalid', entry: 0 }, { code: 'batch_unchained', entry: 1 }]);
});

t.test('findings are bounded, and counted beyond', async (t) => {
  const log = await MadeLog.start();
  const w = await log.writer();
  for (let count = 0; count < 300; count++) log.batch(w, 1, { signature: Buffer.alloc(64) });
  await log.publish();
  t.match(await verify(log), { holds: false, found: 300, findings: { length: 100 } });
  t.match(await verify(log, log.files, { maxFindings: 7 }), { found: 300, findings: { length: 7 } });
});

t.test('alerts that the log itself tells of are reported, and are no findings', async (t) => {
  const log = await MadeLog.start();
  const writer = await log.writer();
  await log.publish();
  t.match(await verify(log), { holds: true, alerts: { count: 0, first: [] } });
  const indexes: number[] = [];
  for (let n = 0; n < 25; n += 1) {
    const at = log.now();
    const alert = encodeEntry({ action: 'log.alert', at, outcome: 'failed', detail: { kind: 'batch_distrusted', reason: n === 1 ? 'a\u001b[2J line\nand more' : `reason ${n}`, writer: '00' } });
    // What only mentions one is none.
    const other = encodeEntry({ action: 'log_search', at, outcome: 'allowed', detail: { action: 'log.alert' } });
    indexes.push(log.batch(writer, [other, alert]) + 2);
  }
  log.batch(writer, 300);
  await log.publish();
  const report = await verify(log);
  t.match(report, { holds: true, found: 0, alerts: { count: 25 } });
  t.same(report.alerts.first.map(({ index }) => index), indexes.slice(0, 20));
  t.match(report.alerts.first.slice(0, 2), [{ kind: 'batch_distrusted', reason: 'reason 0', at: /^2026-/u }, { reason: 'a?[2J line?and more' }]);
});
