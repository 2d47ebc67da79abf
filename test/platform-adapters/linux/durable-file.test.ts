import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { flushTree, replaceFile, writeBeside } from '../../../platform-adapters/linux/durable-file.ts';
import { watchFlushes } from '../../support/flushes.ts';

/** What `work` flushes. */
function flushed(work: () => void): string[] {
  const watch = watchFlushes();
  try {
    work();
  } finally {
    watch.stop();
  }
  return [...watch.paths];
}

function folderOf(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'cofre-durable-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

t.test('a file is replaced with its mode, and it and its name are flushed', async (t) => {
  const folder = folderOf(t);
  const path = join(folder, 'file');
  writeFileSync(path, 'old', { mode: 0o600 });
  const umask = process.umask(0o077);
  t.teardown(() => process.umask(umask));
  const paths = flushed(() => replaceFile(path, 'new é\n', 0o644));
  t.equal(readFileSync(path, 'utf8'), 'new é\n');
  t.equal(statSync(path).mode & 0o777, 0o644);
  t.same(readdirSync(folder), ['file']);
  t.match(paths, [new RegExp(`^${path}\\.${process.pid}-[0-9a-f-]{36}\\.tmp$`), folder]);
});

t.test('a disk that takes a part of a file leaves the old one, and nothing beside it', async (t) => {
  const folder = folderOf(t);
  const path = join(folder, 'file');
  writeFileSync(path, 'old');
  const module = new URL('../../../platform-adapters/linux/durable-file.ts', import.meta.url).href;
  const source = `import { replaceFile } from ${JSON.stringify(module)};
    try { replaceFile(${JSON.stringify(path)}, 'x'.repeat(100_000), 0o600); } catch (error) { console.log(error.code); }`;
  // The limit of a file's size does what a full disk does: the first write is cut short, the next one fails.
  const { stdout, status } = spawnSync('/bin/sh', ['-c', 'ulimit -f 8; exec "$@"', 'sh', process.execPath, '--input-type=module-typescript', '-e', source], { encoding: 'utf8' });
  t.same([status, stdout], [0, 'EFBIG\n']);
  t.equal(readFileSync(path, 'utf8'), 'old');
  t.same(readdirSync(folder), ['file']);
});

t.test('a name that is new is no one else’s', async (t) => {
  const folder = folderOf(t);
  const names = [writeBeside(join(folder, 'a'), '1', 0o600), writeBeside(join(folder, 'a'), '2', 0o600)];
  t.same(names.map((name) => readFileSync(name, 'utf8')), ['1', '2']);
});

t.test('a tree is flushed to its last file and folder, and links are not followed', async (t) => {
  const folder = folderOf(t);
  mkdirSync(join(folder, 'a/b'), { recursive: true });
  for (const name of ['one', 'a/two', 'a/b/three']) writeFileSync(join(folder, name), '');
  symlinkSync('/etc', join(folder, 'link'));
  const paths = flushed(() => flushTree(folder));
  t.same(paths.sort(), ['', '/a', '/a/b', '/a/b/three', '/a/two', '/one'].map((name) => folder + name));
});
