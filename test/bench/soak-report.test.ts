import t from 'tap';
import { quarters, rates, readSamples, slope, trends, verdict, type Sample } from './soak-report.ts';

const mebibyte = 2 ** 20;

/** A soak of one worker, a sample a minute: its memory and its counts are what the arguments say. */
function soak(minutes: number, rss: (minute: number) => number, calls: (minute: number) => number, failures: Record<string, number> = {}): Sample[] {
  return Array.from({ length: minutes + 1 }, (_, minute) => ({
    seconds: minute * 60,
    serving: [{ pid: 7, role: 'worker', rssBytes: rss(minute) * mebibyte }],
    heapUsedBytes: null, externalBytes: null, eventLoopLagP99Ms: null, databaseBytes: 0, walBytes: 0, checkpoints: minute, cpuSeconds: { server: minute, postgres: minute / 2, others: minute * 30 }, countedSeconds: minute * 60,
    counts: { tokenize: { calls: calls(minute), items: calls(minute), p99Ms: 1 }, batch: { calls: minute, items: minute * 1000, p99Ms: 1 }, validate: { calls: 0, items: 0, p99Ms: 1 } },
    failures: minute === minutes ? failures : {},
  }));
}

t.equal(slope([[0, 1], [1, 3], [2, 5]]), 2, 'the slope of points on a line is the line\'s');
t.ok(Math.abs(slope([[0, 0], [1, 2], [2, 1], [3, 3]]) - 0.8) < 1e-12, 'of others that with the least squares');
t.equal(slope([]), 0);
t.equal(slope([[1, 1], [1, 9]]), 0, 'points above one another have none');

await t.test('memory is judged by the second half, after the warm-up', async (t) => {
  const [worker] = trends(soak(60, (minute) => (minute < 30 ? 100 + minute : 130 + (minute - 30) * 0.1), (minute) => minute));
  t.ok(Math.abs(worker!.mebibytesPerHour - 6) < 1e-9);
  t.equal(worker!.highestBytes, 133 * mebibyte);
  t.equal(worker!.whole, true);
});

await t.test('throughput is what came between samples, tokens of batches included', async (t) => {
  const samples = soak(8, () => 100, (minute) => minute * 600);
  t.match(rates(samples)[0], { seconds: 30, callsPerSecond: 601 / 60, tokensPerSecond: 1600 / 60 });
  t.equal(rates(samples).length, 8);
  const late = samples.with(4, { ...samples[4]!, countedSeconds: samples[3]!.countedSeconds, counts: samples[3]!.counts });
  t.match(rates(late).map(({ callsPerSecond }) => callsPerSecond), Array.from({ length: 7 }, () => 601 / 60), 'a client that told nothing new is no slow server');
});

await t.test('a load that slows down shows in the last quarter', async (t) => {
  const samples = soak(8, () => 100, (minute) => (minute <= 4 ? minute * 120 : 480 + (minute - 4) * 60));
  const { first, last } = quarters(samples);
  t.ok(Math.abs(first - 121 / 60) < 1e-9);
  t.ok(Math.abs(last - 61 / 60) < 1e-9);
});

await t.test('the verdict tells all, and is bad when an answer was wrong or a process came or went', async (t) => {
  const good = verdict(soak(60, () => 200, (minute) => minute * 60));
  t.equal(good.ok, true);
  t.match(good.line, /^soak: 60 min; worker 7 RSS \+0\.0 MiB\/h over the second half, at most 200 MiB; 1 calls\/s .* \(100 %\); .*; 16393 us of the server and 8197 us of PostgreSQL a call; 60 checkpoints; other processes took 0\.50 cores; no answer wrong$/);
  const wrong = verdict(soak(60, () => 200, (minute) => minute * 60, { 'lives: lost': 2 }));
  t.equal(wrong.ok, false);
  t.match(wrong.line, 'WRONG: lives: lost 2');
  const samples = soak(60, () => 200, (minute) => minute * 60);
  const restarted = verdict(samples.map((sample, i) => (i < 30 ? sample : { ...sample, serving: [{ ...sample.serving[0]!, pid: 8 }] })));
  t.equal(restarted.ok, false);
  t.match(restarted.line, '2 serving processes came or went');
  t.equal(verdict([]).ok, false);
});

await t.test('samples come back from their file', async (t) => {
  const samples = soak(2, () => 200, (minute) => minute);
  t.same(readSamples(samples.map((sample) => `${JSON.stringify(sample)}\n`).join('')), samples);
});
