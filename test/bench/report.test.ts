import t from 'tap';
import { compare, describe, median, summarize, table, type Measurement, type Round } from './report.ts';

const latencyMs = { p50: 1, p95: 2, p99: 3, max: 4 };

function round(perSecond: number, more: Partial<Round> = {}): Round {
  return {
    perSecond, latencyMs, failures: {}, statuses: { 200: perSecond }, seconds: 1, answered: perSecond, items: perSecond, cpuSeconds: { client: 0.1, server: 0.4, postgres: 0.2, others: 0 }, cpuMicrosPerItem: { server: 40, postgres: 20 },
    database: { checkpoints: 1, walBytes: perSecond * 500, fullPageImages: 0 }, serverBytes: { before: 1, peak: 2, after: 1 }, commitSize: null, beside: null, ...more,
  };
}

const configuration = { workers: 2, custody: 'envelope', existing: 20_000_000 } as const;
const measurement = (scenario: Measurement['scenario'], real: readonly Round[], bare: readonly Round[] = []): Measurement => ({ configuration, scenario, connections: 4, real, bare });
/** Cells of the line that begins with these words. */
const cells = (text: string, start: string): string[] => text.split('\n').find((line) => line.startsWith(start))!.split(/ {2,}/);

t.equal(median([]), 0);
t.equal(median([3, 1, 2]), 2);
t.equal(median([4, 1, 2, 3]), 2.5);
t.equal(describe(configuration), 'envelope custody, 2 workers, into 20,000,000 existing cards');
t.equal(describe({ workers: 1, custody: 'direct', existing: 0 }), 'direct custody, 1 worker, into an empty table');

await t.test('rates are medians, failures and checkpoints are sums', async (t) => {
  const summary = summarize([round(10, { failures: { lost: 1 } }), round(30), round(20, { failures: { lost: 2 } })])!;
  t.match(summary, { rounds: 3, perSecond: 20, perSecondRange: [10, 30], failures: { lost: 3 }, checkpoints: 3, walBytesPerItem: 500 });
  t.equal(summarize([]), null);
});

await t.test('real is compared with the bare round beside it', async (t) => {
  const { ratio } = compare(measurement('tokenize', [round(50), round(75), round(150)], [round(100), round(100), round(100)]));
  t.match(ratio, { perSecond: 0.75, lowest: 0.5, highest: 1.5, p99: 1, cpuPerItem: 1 });
  // The machine ran at half its speed in the second of them.
  t.equal(compare(measurement('tokenize', [round(80), round(40), round(80)], [round(100), round(50), round(100)])).ratio?.perSecond, 0.8);
  t.equal(compare(measurement('known', [round(80)])).ratio, null);
});

await t.test('a table says for which configuration it is, and that batches count tokens', async (t) => {
  const text = table([compare(measurement('tokenize', [round(80)], [round(100)])), compare(measurement('batch', [round(50_000, { answered: 50 })]))]);
  t.match(text, /^envelope custody, 2 workers, into 20,000,000 existing cards\n/);
  t.same(cells(text, 'tokenize').slice(0, 5), ['tokenize', '4', 'real', '80', 'calls']);
  t.same(cells(text, 'batch').slice(0, 5), ['batch', '4', 'real', '50000', 'tokens']);
  t.match(cells(text, 'tokenize'), ['80 % (80..80)', '40.0', '20.0', '500', '1'].reduce((want, cell, i) => Object.assign(want, { [10 + i]: cell }), {}));
});

await t.test('what batches beside single calls did stands below them, and their failures count', async (t) => {
  const mixed = compare(measurement('mixed', [round(80, { cpuMicrosPerItem: null, beside: { perSecond: 30_000, latencyMs, failures: { status_503: 1 } } })]));
  t.match(mixed.real, { failures: { batch_status_503: 1 }, cpuMicrosPerItem: null, walBytesPerItem: null, beside: { perSecond: 30_000 } });
  const text = table([mixed]);
  t.match(cells(text, 'mixed'), ['-', '-', '-', '-'].reduce((want, cell, i) => Object.assign(want, { [10 + i]: cell }), {}), 'nobody can tell whose the processor time and the WAL were');
  t.match(text, /\n {2}its batches +real +30000 +tokens/);
});
