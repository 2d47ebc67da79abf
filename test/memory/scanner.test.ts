import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { cardDigits, cardLines, cardNumber } from '../support/cards.ts';
import { carryBytes, NeedleFinder, type Match } from './needles.ts';
import { parseMaps, scan, ScanError, scanProcess, type ScanReport } from './scanner.ts';
import { victimSeed, type Order } from './scanner-victim.ts';

const sought = 20_000;
const needles = { firstCard: 0, cards: sought, seed: victimSeed };

async function startVictim(t: Test): Promise<ChildProcess> {
  const victim = fork(fileURLToPath(new URL('scanner-victim.ts', import.meta.url)), [], { execArgv: ['--expose-gc'] });
  t.teardown(() => victim.kill('SIGKILL'));
  await order(victim, { act: 'wipe' });
  return victim;
}

async function order(victim: ChildProcess, message: Order): Promise<void> {
  victim.send(message);
  await once(victim, 'message');
}

function occurrences(report: ScanReport): { distinct: number; ascii: number; wide: number } {
  return { distinct: report.found.distinct, ascii: report.found.ascii.distinct, wide: report.found.utf16le.distinct };
}

await t.test('numbers in a Buffer are found, each once, with their surroundings but without their digits', async (t) => {
  const victim = await startVictim(t);
  await order(victim, { act: 'plant', how: 'buffer', first: 100, count: 50 });
  const report = await scan(victim.pid!, needles);
  t.same(occurrences(report), { distinct: 50, ascii: 50, wide: 0 });
  t.equal(report.needles, sought);
  t.same(new Set(report.hits.map((hit) => hit.needle)), new Set(Array.from({ length: 50 }, (_, i) => 100 + i)));
  t.ok(report.hits.some((hit) => hit.before === 'pppppppp' && hit.after === 'pppppppp'));
  t.notMatch(JSON.stringify(report), /411111/);
});

await t.test('a one-byte string is found as ASCII and a two-byte string as UTF-16', async (t) => {
  const victim = await startVictim(t);
  await order(victim, { act: 'plant', how: 'string', first: 0, count: 40 });
  await order(victim, { act: 'plant', how: 'wide string', first: 500, count: 30 });
  t.same(occurrences(await scan(victim.pid!, needles)), { distinct: 70, ascii: 40, wide: 30 });
});

await t.test('a number in memory that was freed and not overwritten is found', async (t) => {
  const victim = await startVictim(t);
  await order(victim, { act: 'plant', how: 'freed', first: 0, count: 200 });
  const report = await scan(victim.pid!, needles);
  t.ok(report.found.distinct > 0, 'at least one of the freed blocks still holds its number');
});

await t.test('a process that wipes its buffers holds none', async (t) => {
  const victim = await startVictim(t);
  await order(victim, { act: 'plant', how: 'buffer', first: 0, count: 2000 });
  await order(victim, { act: 'plant', how: 'packed', first: 2000, count: 2000 });
  t.equal((await scan(victim.pid!, needles)).found.distinct, 4000);
  await order(victim, { act: 'wipe' });
  const report = await scan(victim.pid!, needles);
  t.same(report.found, { distinct: 0, occurrences: 0, ascii: { distinct: 0, occurrences: 0 }, utf16le: { distinct: 0, occurrences: 0 } });
  t.ok(report.bytesScanned > 10 * 2 ** 20, 'its memory was read');
});

await t.test('a wipe does not reach the copies that the garbage collector makes of Buffers of 64 bytes or less', async (t) => {
  const victim = await startVictim(t);
  await order(victim, { act: 'plant', how: 'small buffer', first: 0, count: 2000 });
  await order(victim, { act: 'wipe' });
  t.ok((await scan(victim.pid!, needles)).found.distinct > 0, 'code that holds card numbers must not use them');
});

await t.test('numbers across the borders of what is read at once are found, and none is counted twice', async (t) => {
  const victim = await startVictim(t);
  await order(victim, { act: 'plant', how: 'packed', first: 0, count: sought });
  const whole = await scan(victim.pid!, needles);
  const inPages = await scan(victim.pid!, needles, { chunkBytes: 4096 });
  t.equal(whole.found.distinct, sought);
  t.same(inPages.found, whole.found);
});

await t.test('the last digits of a number whose head is gone are found when asked for', async (t) => {
  const victim = await startVictim(t);
  await order(victim, { act: 'plant', how: 'clipped', first: 0, count: 25 });
  const report = await scan(victim.pid!, needles, { tailDigits: 10 });
  t.equal(report.found.distinct, 0);
  t.equal(report.tails?.distinct, 25);
  t.ok(report.tails!.expectedByChance < 5, String(report.tails!.expectedByChance));
});

await t.test('needles may come from a file, and the process goes on after the scan', async (t) => {
  const victim = await startVictim(t);
  await order(victim, { act: 'plant', how: 'buffer', first: 0, count: 3 });
  const file = join(t.testdir(), 'needles');
  writeFileSync(file, cardLines(0, 10, victimSeed), { mode: 0o600 });
  const report = await scan(victim.pid!, { file }, { pause: true });
  t.equal(report.found.distinct, 3);
  t.ok(report.paused);
  await order(victim, { act: 'wipe' });
});

await t.test('what cannot be scanned is refused with a reason', async (t) => {
  await t.rejects(scan(2 ** 22 + 1, needles), new ScanError('scanner: there is no such process'));
  t.throws(() => scanProcess({ pid: process.pid, needles: cardLines(0, 1) }), new ScanError('a process cannot scan itself: its needles are in its memory'));
  t.throws(() => scanProcess({ pid: -1, needles: cardLines(0, 1) }), new ScanError('the process id must be a positive number'));
  const file = join(t.testdir(), 'needles');
  writeFileSync(file, 'not digits\n');
  await t.rejects(scan(process.pid, { file }), new ScanError('scanner: a needle must consist of digits'));
});

await t.test('the list of mappings keeps shared memory and drops devices, holes and the pages of the kernel', async (t) => {
  const maps = [
    '00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/program',
    '01a00000-01b00000 rw-p 00000000 00:00 0 [heap]',
    '7f0000000000-7f0000100000 rw-s 00000000 00:01 1027 /dev/zero (deleted)',
    '7f0000100000-7f0000200000 rw-s 00000000 00:01 1028 /dev/shm/PostgreSQL.1',
    '7f0000200000-7f0000300000 rw-s 00000000 00:06 1029 /dev/dri/card0',
    '7f0000300000-7f0000400000 ---p 00000000 00:00 0 ',
    '7f0000400000-7f0000500000 rw-p 00000000 00:00 0 ',
    '7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]',
    '7ffc00030000-7ffc00034000 r--p 00000000 00:00 0 [vvar]',
    'ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]',
  ].join('\n');
  t.same(parseMaps(maps).map((mapping) => mapping.kind), ['file', 'heap', 'shared', 'shared', 'anonymous', 'stack']);
});

await t.test('a number is found wherever a border cuts it, in both encodings, and once', async (t) => {
  const digits = Buffer.alloc(cardDigits);
  cardNumber(7, digits);
  const wide = Buffer.alloc(2 * cardDigits);
  for (const [i, digit] of digits.entries()) wide[2 * i] = digit;
  for (const pattern of [digits, wide]) {
    for (let place = 0; place < 40; place++) {
      // Bytes on both sides that look like parts of a number, so that runs are longer than it.
      const data = Buffer.alloc(200, place % 2 === 0 ? 0x39 : 0);
      pattern.copy(data, 60 + place);
      const whole: Match[] = [];
      new NeedleFinder(cardLines(0, 10)).scan(data, data.length, 0, (match) => whole.push(match));
      if (whole.length !== 1) t.fail(`${whole.length} found at place ${place}`);
      for (let border = 40; border < 160; border++) {
        const finder = new NeedleFinder(cardLines(0, 10));
        const offsets: number[] = [];
        finder.scan(data, border, 0, (match) => offsets.push(match.offset));
        const kept = Math.min(carryBytes, border);
        finder.scan(data.subarray(border - kept), data.length - border + kept, kept, (match) => offsets.push(border - kept + match.offset));
        if (offsets.length !== 1 || offsets[0] !== 60 + place) t.fail(`lost or doubled at place ${place}, border ${border}`);
      }
    }
  }
  t.pass('at every place and border');
});

await t.test('every needle length is found at every alignment', async (t) => {
  for (let size = 12; size <= 19; size++) {
    const digits = Buffer.alloc(size);
    for (let i = 0; i < size; i++) digits[i] = 0x30 + ((i * 7 + 3) % 10);
    const wide = Buffer.alloc(2 * size);
    for (const [i, digit] of digits.entries()) wide[2 * i] = digit;
    const finder = new NeedleFinder(digits);
    for (const pattern of [digits, wide]) {
      for (let at = 0; at < 64; at++) {
        const data = Buffer.alloc(160, 0xff);
        pattern.copy(data, at);
        const found: Match[] = [];
        finder.scan(data, data.length, 0, (match) => found.push(match));
        if (found.length !== 1 || found[0]!.offset !== at) t.fail(`size ${size} at ${at}`);
      }
    }
  }
  t.pass('at every alignment');
});
