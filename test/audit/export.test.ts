import { chmodSync, mkdirSync, readdirSync, readFileSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { directoryFiles } from '../../audit/directory-log.ts';
import { exportLog } from '../../audit/export.ts';
import { verifyLog } from '../../audit/fsck.ts';
import { logSource, logTarget, readVkey } from '../../audit/log-source.ts';
import type { LogSource, LogTarget } from '../../audit/log-source.ts';
import { bundlePath, changedBundles, changedTiles, tilePath } from '../../audit/tiles.ts';
import { MadeLog, makeLog, MemoryFiles } from '../support/made-log.ts';

/** Whether a copy is a whole tree of the size of its checkpoint, equal to the log. */
function complete(files: MemoryFiles, log: MadeLog): number {
  const checkpoint = openCheckpoint(files.files.get('checkpoint')?.toString('utf8') ?? '', [log.verifier]);
  if (checkpoint === null) return -1;
  for (const ref of changedTiles(0, checkpoint.size)) if (!files.files.has(tilePath(ref))) return -1;
  for (const ref of changedBundles(0, checkpoint.size)) if (!files.files.has(bundlePath(ref))) return -1;
  for (const [path, bytes] of files.files) if (path !== 'checkpoint' && log.files.files.get(path)?.equals(bytes) !== true) return -1;
  return checkpoint.size;
}

t.test('a copy grows with the log, and reads and writes only what is new', async (t) => {
  const log = await makeLog(66_000, { batchSize: 50, at: [255, 256, 300, 65_536, 65_900] });
  const copy = new MemoryFiles();
  let before = 0;
  for (const note of log.checkpoints) {
    const size = openCheckpoint(note, [log.verifier])!.size;
    const read: string[] = [];
    const put: string[] = [];
    const source: LogSource = {
      checkpoint: async () => note,
      tile: (ref) => (read.push(tilePath(ref)), log.target.tile(ref)),
      bundle: (ref) => (read.push(bundlePath(ref)), log.target.bundle(ref)),
    };
    const target = logTarget(copy);
    const progress: number[] = [];
    const exported = await exportLog(source, { ...target, put: (path, bytes) => (put.push(path), target.put(path, bytes)) }, { verifiers: [log.verifier], onProgress: ({ done, total }) => void (total === size && progress.push(done)) });
    t.match(exported, { from: before, note, checkpoint: { size } });
    t.equal(complete(copy, log), size);
    t.equal(progress.at(-1), size);
    t.same(progress, progress.toSorted((a, b) => a - b), 'progress only grows');
    t.same(put.slice(0, -1).toSorted(), [...[...changedTiles(before, size)].map(tilePath), ...[...changedBundles(before, size)].map(bundlePath)].toSorted());
    t.equal(put.at(-1), 'checkpoint');
    t.equal(read.filter((path) => path.startsWith('tile/entries/')).length, [...changedBundles(before, size)].length, 'each new bundle is read once');
    before = size;
  }
  t.match(await exportLog(log.target, { ...logTarget(copy), put: async () => void t.fail('nothing is left to write') }, { verifiers: [log.verifier] }), { from: 66_000 });
});

t.test('a partial tile that the source has dropped for a wider one is cut out of that', async (t) => {
  const log = await makeLog(600, { at: [300] });
  for (const path of log.files.files.keys()) if (path.includes('.p/44')) log.files.files.delete(path);
  const copy = new MemoryFiles();
  await exportLog({ ...log.target, checkpoint: async () => log.checkpoints[0]! }, logTarget(copy), { verifiers: [log.verifier] });
  t.equal(openCheckpoint(copy.files.get('checkpoint')!.toString(), [log.verifier])?.size, 300);
  t.ok(copy.files.has('tile/0/001.p/44') && copy.files.has('tile/entries/001.p/44'));
});

t.test('an export that ends at any write, done or not, leaves the older copy valid, and the next run completes it', async (t) => {
  const log = await makeLog(1500, { at: [700] });
  const old = new MemoryFiles();
  await exportLog({ ...log.target, checkpoint: async () => log.checkpoints[0]! }, logTarget(old), { verifiers: [log.verifier] });
  let writes = 0;
  const counted = logTarget(old.copy());
  await exportLog(log.target, { ...counted, put: (path, bytes) => ((writes += 1), counted.put(path, bytes)) }, { verifiers: [log.verifier] });
  t.ok(writes > 8);
  for (const parallel of [1, 16]) {
    for (const from of [new MemoryFiles(), old]) {
      for (let failing = 0; failing < writes; failing++) {
        for (const persisted of [false, true]) {
          const copy = from.copy();
          const target = logTarget(copy);
          let count = 0;
          const flaky: LogTarget = {
            ...target,
            async put(path, bytes) {
              const fails = count++ === failing;
              if (!fails || persisted) await target.put(path, bytes);
              if (fails) throw new Error('the disk is gone');
            },
          };
          await t.rejects(exportLog(log.target, flaky, { verifiers: [log.verifier], parallel }), { message: 'the disk is gone' });
          const size = from === old ? 700 : -1;
          const name = `${parallel} at once, write ${failing} ${persisted ? 'persisted' : 'lost'}, from ${size}`;
          t.ok([size, ...(persisted ? [1500] : [])].includes(complete(copy, log)), `${name}: what was there holds`);
          await exportLog(log.target, logTarget(copy), { verifiers: [log.verifier], parallel });
          t.equal(complete(copy, log), 1500, name);
        }
      }
    }
  }
});

t.test('of two exports at once the slower one does not take the copy back', async (t) => {
  const log = await makeLog(700, { at: [300] });
  const files = new MemoryFiles();
  const target = logTarget(files);
  const at = (note: string): LogSource => ({ ...logSource(log.files), checkpoint: async () => note });
  const [older, newer] = log.checkpoints as [string, string];
  const { promise: hold, resolve: goOn } = Promise.withResolvers<void>();
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
  const slow = exportLog(at(older), { ...target, put: async (path, bytes) => (begin(), await hold, await target.put(path, bytes)) }, { verifiers: [log.verifier] });
  await begun;
  t.match(await exportLog(at(newer), target, { verifiers: [log.verifier] }), { checkpoint: { size: 700 } });
  goOn();
  t.match(await slow, { checkpoint: { size: 700 }, from: 0 });
  t.equal(await target.checkpoint(), newer);
  t.match(await verifyLog(logSource(files), { vkey: log.verifier, olderCheckpoints: [{ name: 'newer', note: newer }] }), { holds: true, continued: ['newer'] });
});

t.test('what lies in its place already is not fetched again', async (t) => {
  const log = await makeLog(256 * 40);
  const copy = new MemoryFiles();
  await t.rejects(exportLog({ ...log.target, bundle: async (ref) => (ref.index < 30 ? await log.target.bundle(ref) : null) }, logTarget(copy), { verifiers: [log.verifier] }), {
    message: /^the log does not give its entries \d+ to \d+ \(tile\/entries\/03\d\): they may have been moved out of it$/u,
  });
  let fetched = 0;
  await exportLog({ ...log.target, bundle: (ref) => ((fetched += 1), log.target.bundle(ref)) }, logTarget(copy), { verifiers: [log.verifier] });
  t.equal(complete(copy, log), 256 * 40);
  t.ok(fetched <= 12, `${fetched} bundles`);
});

t.test('a source that is not the signed tree is refused, and nothing of it is written', async (t) => {
  const log = await makeLog(70_000, { batchSize: 200, at: [66_000] });
  const old = new MemoryFiles();
  await exportLog({ ...log.target, checkpoint: async () => log.checkpoints[0]! }, logTarget(old), { verifiers: [log.verifier] });
  const damages: [path: string, message: RegExp][] = [
    ['tile/entries/273', /^entries 69888 to 69999 of the log \(tile\/entries\/273\.p\/112\) are not|^entries/u],
    ['tile/0/260', /^tile\/0\/260 of the log is not the tile that its checkpoint signs$/u],
    ['tile/1/001.p/17', /^(?:the log does not begin with the 66000 entries of the copy|the tiles of the log do not give the root)/u],
    ['tile/1/000', /^(?:the log does not begin with the 66000 entries of the copy|tile\/1\/000 of the log)/u],
    ['tile/entries/265', /^entries 67840 to 68095 of the log \(tile\/entries\/265\) are not those that its checkpoint signs$/u],
  ];
  for (const [path, message] of damages) {
    const there = [...log.files.files.keys()].find((one) => one === path || one.startsWith(`${path}.p/`))!;
    for (const from of [new MemoryFiles(), old]) {
      if (path === 'tile/1/000' && from === old) continue;
      const files = log.files.copy();
      files.files.get(there)![5]! ^= 1;
      const copy = from.copy();
      await t.rejects(exportLog(logSource(files), logTarget(copy), { verifiers: [log.verifier] }), { message }, path);
      t.equal(copy.files.get('checkpoint')?.toString(), from.files.get('checkpoint')?.toString(), 'the checkpoint stands as it did');
      for (const [name, bytes] of copy.files) if (name !== 'checkpoint' && !name.includes(path) && log.files.files.get(name)?.equals(bytes) !== true) t.fail(`${name} is not of the log`);
      await exportLog(log.target, logTarget(copy), { verifiers: [log.verifier] });
      t.equal(complete(copy, log), 70_000, 'a good source completes it');
    }
  }
});

t.test('the checkpoint must be this log\'s, of the same log as the copy, and not behind it', async (t) => {
  const log = await makeLog(300, { at: [100] });
  const verifiers = [log.verifier];
  const put = async (): Promise<void> => void t.fail('nothing is written');
  const full = new MemoryFiles();
  await exportLog(log.target, logTarget(full), { verifiers });
  const copy: LogTarget = { ...logTarget(full), put };
  await t.rejects(exportLog({ ...log.target, checkpoint: async () => null }, copy, { verifiers }), { message: 'the log has no checkpoint yet' });
  await t.rejects(exportLog({ ...log.target, checkpoint: async () => log.checkpoints[0]! }, copy, { verifiers }), { message: 'the copy has 300 entries, but the log only 100: the log was cut off or restored from a backup' });
  await t.rejects(exportLog({ ...log.target, checkpoint: async () => log.checkpoints[1]!.replace('300', '301') }, copy, { verifiers }), { message: 'the checkpoint of the log is not signed by its key' });
  await t.rejects(exportLog(log.target, { ...copy, checkpoint: async () => 'nonsense' }, { verifiers }), { message: /^the checkpoint of the copy is not signed by this log's key/u });
  const other = await makeLog(400);
  await t.rejects(exportLog(other.target, copy, { verifiers: [other.verifier] }), { message: /^the checkpoint of the copy is not signed by this log's key/u });
  const second = await MadeLog.start({ base: 'cofre.test/second', signer: log.signer });
  await second.publish();
  await t.rejects(exportLog(second.target, copy, { verifiers: [log.verifier, second.verifier] }), { message: /^the copy is of the log cofre\.test\/log, not of cofre\.test\/second/u });
  const rewritten = await MadeLog.start({ signer: log.signer });
  const writer = await rewritten.writer();
  rewritten.batch(writer, 400);
  await rewritten.publish();
  await t.rejects(exportLog(rewritten.target, copy, { verifiers }), { message: /^the log does not begin with the 300 entries of the copy/u });
});

t.test('a folder holds the log as plain files, and keeps what is written once', async (t) => {
  const log = await makeLog(700, { at: [300] });
  const folder = join(t.testdir({}), 'a/b/log');
  const files = directoryFiles(folder);
  t.equal(await files.read('checkpoint', 100), null);
  const target = logTarget(files);
  for (const note of log.checkpoints) await exportLog({ ...log.target, checkpoint: async () => note }, target, { verifiers: [log.verifier] });
  for (const [path, bytes] of log.files.files) t.ok(readFileSync(join(folder, path)).equals(bytes), path);
  t.same(readdirSync(join(folder, '.incoming')), []);
  await target.put('tile/0/000', log.files.files.get('tile/0/000')!);
  await t.rejects(target.put('tile/0/000', Buffer.alloc(8192)), { message: 'tile/0/000: the copy holds something else there, which is never overwritten' });
  t.ok(readFileSync(join(folder, 'tile/0/000')).equals(log.files.files.get('tile/0/000')!));
  for (const path of ['../x', 'tile/0/../0/001', 'tile/0/1', '/etc/passwd', 'checkpoint/x', '.incoming/x']) await t.rejects(target.put(path, Buffer.from('x')), { message: 'not a file of a log' }, path);
  await target.put('vkey', Buffer.from(`${log.vkey}\n`));
  t.equal(await readVkey(files), log.vkey);
  t.equal(await readVkey(new MemoryFiles()), null);
  t.equal(openCheckpoint((await target.checkpoint())!, [log.verifier])?.size, 700);
});

t.test('what a crash left in a folder is not taken for a file, and goes in time; what cannot be used is one line', async (t) => {
  const folder = t.testdir({ '.incoming': { '12-3': 'x', '12-4': 'x', note: 'x', '12-5': { file: 'x' } }, checkpoint: {}, tile: { 0: 'a file' }, elsewhere: { '12-3': 'x' } });
  for (const name of ['.incoming/12-3', '.incoming/note', '.incoming/12-5', 'elsewhere/12-3']) utimesSync(join(folder, name), 1, 1);
  const files = directoryFiles(folder);
  await t.rejects(files.read('checkpoint', 100), { message: `${folder}/checkpoint: is not a file` });
  t.equal(await files.read('tile/0/000', 100), null);
  await t.rejects(files.create('tile/0/000', Buffer.from('x')), { message: `${folder}/tile/0/000: cannot be written (ENOTDIR)` });
  t.same(readdirSync(join(folder, '.incoming')).filter((name) => /^(?:12-.|note)$/u.test(name)).sort(), ['12-4', '12-5', 'note'], 'what a run left an hour ago is gone, and nothing else');
  mkdirSync(join(folder, 'linked'));
  symlinkSync(join(folder, 'elsewhere'), join(folder, 'linked/.incoming'));
  await t.rejects(directoryFiles(join(folder, 'linked')).create('checkpoint', Buffer.from('x')), { message: /linked\/checkpoint: cannot be written \(ENOTDIR\)$/u });
  t.same(readdirSync(join(folder, 'elsewhere')), ['12-3'], 'nor anything where a link leads');
  mkdirSync(join(folder, 'outside'));
  writeFileSync(join(folder, 'outside/000'), 'theirs');
  for (const [name, link, path] of [['the folder of tiles', 'tile', 'tile/0/000'], ['a folder of bundles', 'tile/entries/x001', 'tile/entries/x001/001'], ['where a file of that name is', 'tile/0', 'tile/0/000']] as const) {
    const copy = join(folder, `copy of ${name}`);
    mkdirSync(dirname(join(copy, link)), { recursive: true });
    symlinkSync(join(folder, 'outside'), join(copy, link));
    const linked = directoryFiles(copy);
    await t.rejects(linked.create(path, Buffer.from('x')), { message: `${copy}/${path}: cannot be written (ENOTDIR)` }, name);
    await t.rejects(linked.replace(path, Buffer.from('x')), { message: `${copy}/${path}: cannot be written (ENOTDIR)` }, name);
  }
  t.same(readdirSync(join(folder, 'outside')), ['000'], 'nothing is written where a link leads');
  t.equal(readFileSync(join(folder, 'outside/000'), 'utf8'), 'theirs');
  mkdirSync(join(folder, 'real'));
  symlinkSync(join(folder, 'real'), join(folder, 'named'));
  t.equal(await directoryFiles(join(folder, 'named')).create('tile/0/000', Buffer.from('x')), true, 'the copy itself may be named by a link');
  t.same(readFileSync(join(folder, 'real/tile/0/000'), 'utf8'), 'x');
  writeFileSync(join(folder, 'large'), 'more than ten');
  await t.rejects(files.read('large', 10), { message: `${folder}/large: is larger than it can be` });
  symlinkSync('/etc/hostname', join(folder, 'link'));
  await t.rejects(files.read('link', 1000), { message: `${folder}/link: cannot be read (ELOOP)` });
  if (process.getuid?.() !== 0) {
    mkdirSync(join(folder, 'closed'), { mode: 0o500 });
    chmodSync(join(folder, 'closed'), 0o500);
    await t.rejects(directoryFiles(join(folder, 'closed')).create('checkpoint', Buffer.from('x')), { message: /cannot be written \(EACCES\)$/u });
  }
});
