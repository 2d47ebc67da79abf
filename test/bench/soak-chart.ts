/** The chart of a soak: what the serving processes hold and what they answer, over its time. Pure. */
import { rates, type Sample } from './soak-report.ts';
import { colours, figure, line, polyline, svgDocument, text, ticks, type Colour } from './svg.ts';

interface Curve {
  readonly name: string;
  readonly points: readonly (readonly [seconds: number, value: number])[];
}

interface Panel {
  readonly title: string;
  readonly unit: string;
  readonly curves: readonly Curve[];
}

const width = 1180;
const left = 90;
const right = 960;
const panelHeight = 170;
const panelGap = 58;
const mebibyte = 2 ** 20;
/** More points than pixels only make the file large. */
const pointsInAll = 600;

/** Draws memory, throughput, processors, event loop lag and the size of the database, one below the other, over the same minutes. */
export function soakChart(samples: readonly Sample[]): string {
  const end = Math.max(1, samples.at(-1)?.seconds ?? 1);
  const minutes = (end / 60).toFixed(0);
  const of = (name: string, pick: (sample: Sample) => number | null): Curve => ({ name, points: samples.flatMap((sample) => { const value = pick(sample); return value === null ? [] : [[sample.seconds, value] as const]; }) });
  const cores = (whose: keyof Sample['cpuSeconds'], name: string): Curve => ({
    name,
    points: samples.slice(1).map((sample, i) => [sample.seconds, Math.max(0, (sample.cpuSeconds[whose] - samples[i]!.cpuSeconds[whose]) / (sample.seconds - samples[i]!.seconds))]),
  });
  const serving = new Map(samples.flatMap((sample) => sample.serving.map(({ pid, role }) => [pid, role] as const)));
  const all = rates(samples);
  const panels: Panel[] = [
    {
      title: 'Memory of the serving processes', unit: 'MiB',
      curves: [
        ...[...serving].map(([pid, role]) => of(`RSS of ${role} ${pid}`, (sample) => { const one = sample.serving.find((process) => process.pid === pid); return one === undefined ? null : one.rssBytes / mebibyte; })),
        of('V8 heap used, all', ({ heapUsedBytes }) => (heapUsedBytes === null ? null : heapUsedBytes / mebibyte)),
      ],
    },
    { title: 'Calls answered', unit: 'calls a second', curves: [{ name: 'all kinds of calls', points: all.map(({ seconds, callsPerSecond }) => [seconds, callsPerSecond]) }] },
    { title: 'Tokens made, by single calls and batches', unit: 'tokens a second', curves: [{ name: 'tokens', points: all.map(({ seconds, tokensPerSecond }) => [seconds, tokensPerSecond]) }] },
    { title: 'Processors at work; what is none of ours disturbs', unit: 'cores', curves: [cores('server', 'serving processes'), cores('postgres', 'PostgreSQL'), cores('others', 'others on this machine')] },
    { title: 'Event loop lag, p99', unit: 'ms', curves: [of('mean of the processes', ({ eventLoopLagP99Ms }) => eventLoopLagP99Ms)] },
    { title: 'Database on disk, without WAL', unit: 'MiB', curves: [of('tables and indexes', ({ databaseBytes }) => databaseBytes / mebibyte)] },
  ];
  const parts = [text(24, 34, `Cofre: ${minutes === '1' ? 'a minute' : `${minutes} minutes`} of soak`, 'title')];
  let top = 74;
  for (const panel of panels) {
    parts.push(...drawPanel(panel, top, end));
    top += panelHeight + panelGap;
  }
  return svgDocument(width, top - 14, 'A soak of the vault: memory and throughput over time', parts);
}

function drawPanel({ title, unit, curves }: Panel, top: number, end: number): string[] {
  const bottom = top + panelHeight;
  const valueTicks = ticks(Math.max(...curves.flatMap(({ points }) => points.map(([, value]) => value)), 0), 4);
  const minuteTicks = ticks(end / 60, 8).filter((minutes) => minutes * 60 <= end + 1e-6);
  const x = (seconds: number): number => left + (seconds / end) * (right - left);
  const y = (value: number): number => bottom - (value / valueTicks.at(-1)!) * panelHeight;
  return [
    text(24, top - 14, `${title} (${unit})`, 'heading'),
    ...valueTicks.map((tick) => line(left, y(tick), right, y(tick), tick === 0 ? 'axis' : 'grid') + text(left - 8, y(tick) + 4, figure(tick), 'end small faint')),
    ...minuteTicks.map((minutes) => line(x(minutes * 60), bottom, x(minutes * 60), bottom + 4, 'axis') + text(x(minutes * 60), bottom + 17, figure(minutes), 'middle small faint')),
    text(right + 10, bottom + 17, 'minutes', 'small faint'),
    ...curves.map(({ points }, i) => polyline(thinned(points).map(([seconds, value]) => [x(seconds), y(value)]), colourOf(i))),
    ...curves.flatMap(({ name }, i) => [line(right + 12, top + 8 + i * 18, right + 30, top + 8 + i * 18, `span ${colourOf(i)} stroke`), text(right + 36, top + 12 + i * 18, name, 'small')]),
  ];
}

/** Grey is left out: it is for what is beside the point. */
function colourOf(i: number): Colour {
  const own = colours.filter((colour) => colour !== 'two');
  return own[i % own.length]!;
}

function thinned<T>(points: readonly T[]): readonly T[] {
  const step = Math.ceil(points.length / pointsInAll);
  return step <= 1 ? points : points.filter((_, i) => i % step === 0 || i === points.length - 1);
}
