import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { signCheckpoint } from '../../audit/checkpoint.ts';
import { WitnessFile } from '../../audit/witness-file.ts';
import { newSigner } from '../support/log-tables.ts';

const signer = newSigner();
const note = (size: number, origin = 'cofre.test/log'): Promise<string> => signCheckpoint({ origin, size, root: Buffer.alloc(32, size) }, signer);
const november = new Date('2026-11-30T23:59:59.000Z');
const december = new Date('2026-12-01T00:00:01.000Z');

function folder(t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'cofre-witness-'));
  t.teardown(() => rmSync(path, { recursive: true }));
  return join(path, 'witness');
}

t.test('what was published last is what the next instance finds', async (t) => {
  const path = folder(t);
  const witness = new WitnessFile(path);
  t.equal(await witness.last(), null);
  for (let size = 1; size < 5; size += 1) {
    await witness.publish(await note(size), november);
    t.equal(await witness.last(), await note(size));
    t.equal(await new WitnessFile(path).last(), await note(size));
  }
  const file = join(path, 'checkpoints-2026-11.jsonl');
  t.equal(statSync(file).mode & 0o777, 0o600);
  const lines = readFileSync(file, 'utf8').split('\n').slice(0, -1).map((line) => JSON.parse(line) as { at: string; note: string });
  t.same(lines.map(({ at }) => at), Array.from({ length: 4 }, () => november.toISOString()));
  t.equal(lines[0]!.note, await note(1));
});

t.test('the same one again leaves one line', async (t) => {
  const path = folder(t);
  await new WitnessFile(path).publish(await note(7), november);
  const again = new WitnessFile(path);
  await again.publish(await note(7), november);
  await again.publish(await note(7), december);
  t.same(readdirSync(path), ['checkpoints-2026-11.jsonl']);
  t.equal(readFileSync(join(path, 'checkpoints-2026-11.jsonl'), 'utf8').split('\n').length, 2);
});

t.test('a month has a file, and the newest one counts', async (t) => {
  const path = folder(t);
  const witness = new WitnessFile(path);
  await witness.publish(await note(1), november);
  await witness.publish(await note(2), december);
  t.same(readdirSync(path).sort(), ['checkpoints-2026-11.jsonl', 'checkpoints-2026-12.jsonl']);
  t.equal(await new WitnessFile(path).last(), await note(2));
  writeFileSync(join(path, 'checkpoints-2027-01.jsonl'), '');
  writeFileSync(join(path, 'notes.txt'), 'x');
  t.equal(await new WitnessFile(path).last(), await note(2), 'past an empty one');
});

t.test('a clock that was years ahead for a moment, or goes back over the end of a month, hides nothing that was published since', async (t) => {
  const path = folder(t);
  const witness = new WitnessFile(path);
  await witness.publish(await note(1), december);
  await witness.publish(await note(2), november);
  t.equal(await new WitnessFile(path).last(), await note(2), 'a month back');
  await witness.publish(await note(3), new Date('2099-01-01T00:00:00.000Z'));
  await new WitnessFile(path).publish(await note(4), december);
  t.equal(await new WitnessFile(path).last(), await note(4), 'years back');
});

t.test('a line that a crash cut off at any byte is passed over, and left behind by the next', async (t) => {
  const path = folder(t);
  const witness = new WitnessFile(path);
  const file = join(path, 'checkpoints-2026-11.jsonl');
  await witness.publish(await note(1), november);
  const whole = statSync(file).size;
  await witness.publish(await note(2), november);
  const { size } = statSync(file);
  const bytes = readFileSync(file);
  for (let cut = whole; cut < size; cut += 7) {
    writeFileSync(file, bytes);
    truncateSync(file, cut);
    const next = new WitnessFile(path);
    t.equal(await next.last(), await note(1), `cut at ${cut}`);
    await next.publish(await note(3), november);
    t.equal(await new WitnessFile(path).last(), await note(3));
  }
});

t.test('a new file whose first line was cut off counts as none', async (t) => {
  const path = folder(t);
  await new WitnessFile(path).publish(await note(1), november);
  appendFileSync(join(path, 'checkpoints-2026-12.jsonl'), '{"at":"2026-12-');
  const next = new WitnessFile(path);
  t.equal(await next.last(), await note(1));
  await next.publish(await note(2), december);
  t.equal(await new WitnessFile(path).last(), await note(2));
});

t.test('a file of which nothing can be read is damage, and does not count as empty', async (t) => {
  const path = folder(t);
  const witness = new WitnessFile(path);
  await witness.publish(await note(1), november);
  writeFileSync(join(path, 'checkpoints-2026-12.jsonl'), 'not a line\n{}\n{"note":5}\n');
  await t.rejects(new WitnessFile(path).last(), { message: /checkpoints-2026-12\.jsonl: holds no checkpoint that can be read: restore it$/u });
});

t.test('only the end of a long file is read', async (t) => {
  const path = folder(t);
  await new WitnessFile(path).publish(await note(1), november);
  const file = join(path, 'checkpoints-2026-11.jsonl');
  const line = readFileSync(file, 'utf8');
  writeFileSync(file, line.repeat(5000));
  const witness = new WitnessFile(path);
  await witness.publish(await note(9), november);
  t.equal(await new WitnessFile(path).last(), await note(9));
});

t.test('instances side by side: each line is whole, and the largest checkpoint is the last, whoever came late', async (t) => {
  const path = folder(t);
  const [one, two] = [new WitnessFile(path), new WitnessFile(path)];
  const notes = await Promise.all(Array.from({ length: 40 }, (_, index) => note(index + 1)));
  for (let size = 0; size < 40; size += 2) await Promise.all([one.publish(notes[size]!, november), two.publish(notes[size + 1]!, november)]);
  await one.publish(notes[3]!, november);
  t.equal(await two.last(), notes[39]);
  t.equal(await one.last(), notes[39]);
  const lines = readFileSync(join(path, 'checkpoints-2026-11.jsonl'), 'utf8').split('\n').slice(0, -1);
  t.doesNotThrow(() => lines.map((line) => JSON.parse(line) as unknown));
  t.equal(lines.length, 41);
});

t.test('a new log begins small', async (t) => {
  const path = folder(t);
  const witness = new WitnessFile(path);
  await witness.publish(await note(1000), november);
  await witness.publish(await note(1, 'cofre.test/log/2'), november);
  t.equal(await new WitnessFile(path).last(), await note(1, 'cofre.test/log/2'));
});

t.test('a folder that cannot be written to is an error, each time', async (t) => {
  const path = folder(t);
  const witness = new WitnessFile(path);
  rmSync(path, { recursive: true });
  await t.rejects(witness.publish(await note(1), november), { code: 'ENOENT' });
  await t.rejects(witness.last(), { code: 'ENOENT' });
});
