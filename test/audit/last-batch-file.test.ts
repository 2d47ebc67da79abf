import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import type { ChainHead } from '../../audit/append.ts';
import { LastBatchFile } from '../../audit/last-batch-file.ts';

const head = (number: bigint): ChainHead => ({ writer: 0xabn, number, hash: Buffer.alloc(32, Number(number % 256n)) });
/** Longer than any test: only `flush` writes. */
const never = 1_000_000;

t.test('the first writer has no predecessor', async (t) => {
  t.equal(await new LastBatchFile(join(t.testdir({}), 'tokenize.json')).read(), null);
});

t.test('what was noted last is what the successor reads', async (t) => {
  const path = join(t.testdir({}), 'tokenize.json');
  const file = new LastBatchFile(path, never);
  for (let number = 0n; number < 50n; number += 1n) file.note(head(number));
  t.notOk(existsSync(path), 'noting writes nothing by itself, so the hot path does not wait for a disk');
  await file.flush();
  t.same(await new LastBatchFile(path).read(), { writer: '00000000000000ab', number: '49', hash: '31'.repeat(32), closed: false, notedAt: statSync(path).mtime });
  file.note(head(50n), true);
  await file.flush();
  t.match(await new LastBatchFile(path).read(), { number: '50', closed: true });
  t.equal(statSync(path).mode & 0o777, 0o600);
  t.same(readdirSync(join(path, '..')), ['tokenize.json'], 'and no temporary file stays');
});

t.test('what is noted is written by itself after the interval, and the largest number there is fits', async (t) => {
  const path = join(t.testdir({}), 'tokenize.json');
  const file = new LastBatchFile(path, 5);
  file.note(head(2n ** 63n - 1n));
  while (!existsSync(path)) await sleep(5);
  t.match(await file.read(), { number: '9223372036854775807' });
});

t.test('notes during a write are not lost', async (t) => {
  const path = join(t.testdir({}), 'tokenize.json');
  const file = new LastBatchFile(path, 1);
  for (let number = 0n; number < 200n; number += 1n) {
    file.note(head(number));
    if (number % 10n === 0n) await sleep(1);
  }
  await file.flush();
  t.match(await file.read(), { number: '199' });
});

t.test('a damaged file is told, whatever is wrong with it, and its text is not', async (t) => {
  const path = join(t.testdir({}), 'tokenize.json');
  const file = new LastBatchFile(path, never);
  file.note(head(7n));
  await file.flush();
  const good = readFileSync(path, 'utf8');
  for (const bad of ['', '{', 'null\n', good.slice(0, -1), good.slice(0, 40), good.replace('ab', 'AB'), good.replace('"7"', '7'), good.replace('"7"', '"-7"'), good.replace('0707', '07'), good.replace('false', '"false"'), good + good, good.replace('{', '{"more":1,')]) {
    writeFileSync(path, bad);
    await t.rejects(new LastBatchFile(path).read(), { message: `${path}: does not hold the last batch, from which a cut-off log is seen: restore it` }, JSON.stringify(bad.slice(0, 30)));
  }
  rmSync(path);
  mkdirSync(path);
  await t.rejects(new LastBatchFile(path).read(), { message: `${path}: the last batch cannot be read (EISDIR)` });
});

t.test('a write that fails is told at the flush, leaves the old file, and the next one that works clears it', async (t) => {
  const folder = join(t.testdir({}), 'writers');
  mkdirSync(folder);
  const path = join(folder, 'tokenize.json');
  const file = new LastBatchFile(path, never);
  file.note(head(1n));
  await file.flush();
  // A directory in the way of the temporary file: root would write through any mode.
  mkdirSync(`${path}.new`);
  file.note(head(2n));
  await t.rejects(file.flush(), { message: 'the file of the last batch cannot be written' });
  t.match(await file.read(), { number: '1' });
  rmSync(`${path}.new`, { recursive: true });
  file.note(head(3n));
  await file.flush();
  t.match(await file.read(), { number: '3' });
});
