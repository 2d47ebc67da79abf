import t, { type Test } from 'tap';
import { resultsChart } from './chart.ts';
import { compare, type Round } from './report.ts';
import type { ScenarioName } from './scenario.ts';
import { soakChart } from './soak-chart.ts';
import type { Sample } from './soak-report.ts';
import { escape, figure, logTicks, ticks } from './svg.ts';

/** Every element is closed in order, every number is one, and nothing is fetched from elsewhere. */
function assertSound(t: Test, svg: string): void {
  const open: string[] = [];
  for (const [, closing, name, rest] of svg.matchAll(/<(\/?)([a-z]+)((?:[^>"]|"[^"]*")*)>/gi)) {
    if (closing === '/') {
      if (open.pop() !== name) throw new Error(`</${name}> closes nothing`);
    } else if (!rest!.endsWith('/')) open.push(name!);
  }
  t.same(open, [], 'every element is closed');
  t.notMatch(svg, /NaN|Infinity|undefined|null/);
  t.notMatch(svg.replace('http://www.w3.org/2000/svg', ''), /https?:|href|url\(|<script|<image/);
  t.match(svg, '@media (prefers-color-scheme: dark)');
}

const words = (svg: string): string[] => [...svg.matchAll(/<text[^>]*>([^<]*)<\/text>/g)].map((match) => match[1]!);

function round(perSecond: number, more: Partial<Round> = {}): Round {
  return {
    perSecond, latencyMs: { p50: 5, p95: 10, p99: 20, max: 99 }, failures: {}, statuses: {}, seconds: 1, answered: perSecond, items: perSecond, cpuSeconds: { client: 0, server: 0, postgres: 0, others: 0 }, cpuMicrosPerItem: { server: 1, postgres: 1 },
    database: { checkpoints: 0, walBytes: 0, fullPageImages: 0 }, serverBytes: { before: 0, peak: 0, after: 0 }, commitSize: null, beside: null, ...more,
  };
}

const result = (scenario: ScenarioName, workers: number, real: readonly Round[], bare: readonly Round[] = []): ReturnType<typeof compare> =>
  compare({ configuration: { workers, custody: 'envelope', existing: 0 }, scenario, connections: 64, real, bare });

await t.test('the chart of results shows single calls and batches apart, each with its unit, for every configuration', async (t) => {
  const beside = { perSecond: 12_345, latencyMs: { p50: 50, p95: 80, p99: 90, max: 99 }, failures: {} };
  const svg = resultsChart([result('tokenize', 1, [round(8000)], [round(10_000)]), result('batch', 1, [round(50_000)]), result('tokenize', 2, [round(9000)]), result('mixed', 2, [round(700, { beside })])]);
  assertSound(t, svg);
  const said = words(svg);
  for (const wanted of ['Single calls', 'Batches of 1,000 cards', 'calls a second', 'tokens a second', '8,000 (80 % of bare)', '10,000', '50,000', '9,000', '700', '12,345', 'tokenize, 64 connections', 'batches of mixed'])
    t.ok(said.includes(wanted), wanted);
  t.equal(said.filter((text) => text === 'milliseconds, logarithmic').length, 2);
  t.equal(said.filter((text) => text === 'envelope custody, 2 workers, into an empty table').length, 2);
});

await t.test('a longer bar is a higher rate, and a target without an answer draws none', async (t) => {
  const svg = resultsChart([result('tokenize', 1, [round(5000)], [round(10_000)]), result('known', 1, [round(0, { latencyMs: { p50: 0, p95: 0, p99: 0, max: 0 } })])]);
  assertSound(t, svg);
  const bars = [...svg.matchAll(/<rect x="210" y="[0-9.]+" width="([0-9.]+)"/g)].map((match) => Number(match[1]));
  t.same(bars, [180, 360, 1]);
});

await t.test('the chart of a soak has a curve for each serving process, and axes with units', async (t) => {
  const samples: Sample[] = Array.from({ length: 2000 }, (_, i) => ({
    seconds: i * 10, serving: [{ pid: 1, role: 'serve', rssBytes: 5e7 }, { pid: 2, role: 'worker', rssBytes: 2e8 + i }], heapUsedBytes: i === 5 ? null : 9e7, externalBytes: 1e6, eventLoopLagP99Ms: 12, databaseBytes: i * 1e6, walBytes: 0, checkpoints: 0, cpuSeconds: { server: 0, postgres: 0, others: 0 }, countedSeconds: i * 10,
    counts: { tokenize: { calls: i * 5000, items: i * 5000, p99Ms: 2 } }, failures: {},
  }));
  const svg = soakChart(samples);
  assertSound(t, svg);
  const said = words(svg);
  for (const wanted of ['Cofre: 333 minutes of soak', 'RSS of serve 1', 'RSS of worker 2', 'Memory of the serving processes (MiB)', 'Calls answered (calls a second)', 'minutes']) t.ok(said.includes(wanted), wanted);
  t.equal([...svg.matchAll(/<polyline/g)].length, 10);
  t.ok(svg.length < 150_000, 'however long the soak was');
  assertSound(t, soakChart([]));
  assertSound(t, soakChart(samples.slice(0, 1)));
});

t.same(ticks(9000, 5), [0, 2000, 4000, 6000, 8000, 10_000]);
t.same(ticks(10_000, 5), [0, 2000, 4000, 6000, 8000, 10_000]);
t.same(ticks(0.3, 3), [0, 0.1, 0.2, 0.3]);
t.same(ticks(0, 5), [0, 1]);
t.same(logTicks(3, 40), [2, 5, 10, 20, 50]);
t.same(logTicks(0.5, 0.5), [0.5, 1]);
t.equal(figure(1234.56), '1,235');
t.equal(figure(1.256), '1.26');
t.equal(escape('<a & "b">'), '&lt;a &amp; &quot;b&quot;&gt;');
