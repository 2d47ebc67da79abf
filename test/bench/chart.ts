/** The chart of a run's results: throughput, real beside bare, and latencies. Pure. */
import type { Latency } from './load.ts';
import { byConfiguration, unitOf, type Comparison } from './report.ts';
import { bar, figure, line, logTicks, svgDocument, text, ticks, type Colour } from './svg.ts';

interface Mark {
  readonly colour: Colour;
  readonly name: string;
  readonly perSecond: number;
  readonly latencyMs: Latency;
  readonly note: string;
}

interface Row {
  readonly label: string;
  readonly marks: readonly Mark[];
}

interface Section {
  readonly title: string;
  readonly unit: 'calls' | 'tokens';
  readonly groups: readonly { readonly title: string; readonly rows: readonly Row[] }[];
}

const width = 1180;
/** Where the two panels begin and end; what is between them is for the bars' numbers. */
const throughput = { from: 210, to: 570 };
const latency = { from: 730, to: 1150 };
const markHeight = 18;
const rowGap = 10;
const groupHeading = 26;

/** Draws every scenario in every configuration. A rate counts calls, of batches tokens; a latency is always a whole call's. */
export function resultsChart(comparisons: readonly Comparison[]): string {
  const parts: string[] = [text(24, 34, 'Cofre: throughput and latency', 'title'), ...legend()];
  let y = 76;
  for (const section of [sectionOf(comparisons, 'calls'), sectionOf(comparisons, 'tokens')]) {
    if (section.groups.length === 0) continue;
    const drawn = drawSection(section, y);
    parts.push(...drawn.parts);
    y = drawn.y + 36;
  }
  return svgDocument(width, y, 'Throughput and latency of the vault, beside the bare server', parts);
}

function sectionOf(comparisons: readonly Comparison[], unit: Section['unit']): Section {
  const groups = byConfiguration(comparisons).map(([title, group]) => ({ title, rows: group.flatMap((comparison) => rowOf(comparison, unit)) }));
  return { title: unit === 'calls' ? 'Single calls' : 'Batches of 1,000 cards', unit, groups: groups.filter(({ rows }) => rows.length > 0) };
}

function rowOf({ scenario, connections, real, bare, ratio }: Comparison, unit: Section['unit']): Row[] {
  if (unit === 'tokens' && scenario === 'mixed') {
    const beside = real?.beside ?? null;
    return beside === null ? [] : [{ label: 'batches of mixed', marks: [{ colour: 'one', name: 'real', perSecond: beside.perSecond, latencyMs: beside.latencyMs, note: '' }] }];
  }
  if (unitOf(scenario) !== unit) return [];
  const marks: Mark[] = [];
  if (real !== null) marks.push({ colour: 'one', name: 'real', perSecond: real.perSecond, latencyMs: real.latencyMs, note: ratio === null ? '' : ` (${(ratio.perSecond * 100).toFixed(0)} % of bare)` });
  if (bare !== null) marks.push({ colour: 'two', name: 'bare', perSecond: bare.perSecond, latencyMs: bare.latencyMs, note: '' });
  return [{ label: `${scenario}, ${connections} connection${connections === 1 ? '' : 's'}`, marks }];
}

function legend(): string[] {
  const y = 56;
  return [
    bar(24, y - 10, 14, 11, 'one', 'the vault'), text(44, y, 'real: the vault'),
    bar(150, y - 10, 14, 11, 'two', 'the bare server'), text(170, y, 'bare: mutual TLS, a schema and one INSERT, nothing else'),
    text(latency.from, y, '● p50', 'faint'), text(latency.from + 60, y, '◆ p95', 'faint'), text(latency.from + 120, y, '┃ p99 of a whole call', 'faint'),
  ];
}

function drawSection({ title, unit, groups }: Section, top: number): { parts: string[]; y: number } {
  const rows = groups.flatMap((group) => group.rows);
  const marks = rows.flatMap((row) => row.marks);
  const rateTicks = ticks(Math.max(...marks.map((mark) => mark.perSecond)), 5);
  const timeTicks = logTicks(Math.max(0.01, Math.min(...marks.map((mark) => mark.latencyMs.p50))), Math.max(0.02, ...marks.map((mark) => mark.latencyMs.p99)));
  const rateAt = (perSecond: number): number => throughput.from + (perSecond / rateTicks.at(-1)!) * (throughput.to - throughput.from);
  const [lowest, highest] = [timeTicks[0]!, timeTicks.at(-1)!];
  const timeAt = (ms: number): number => latency.from + (Math.log(Math.min(Math.max(ms, lowest), highest) / lowest) / Math.log(highest / lowest)) * (latency.to - latency.from);

  const body: string[] = [];
  let y = top + 24;
  /** Where the rows of each group begin and end: lines through a heading would make it hard to read. */
  const spans: (readonly [number, number])[] = [];
  for (const group of groups) {
    body.push(text(24, y + 14, group.title, 'faint'));
    y += groupHeading;
    const firstY = y - 4;
    for (const row of group.rows) {
      body.push(text(throughput.from - 10, y + (row.marks.length * markHeight) / 2 + 3, row.label, 'end'));
      for (const mark of row.marks) {
        body.push(...drawMark(mark, unit, y, rateAt, timeAt));
        y += markHeight;
      }
      y += rowGap;
    }
    spans.push([firstY, y - 4]);
  }
  const grid = [
    ...spans.flatMap(([from, to]) => [
      ...rateTicks.map((tick) => line(rateAt(tick), from, rateAt(tick), to, tick === 0 ? 'axis' : 'grid')),
      ...timeTicks.map((tick) => line(timeAt(tick), from, timeAt(tick), to, 'grid')),
    ]),
    ...rateTicks.map((tick) => text(rateAt(tick), y + 15, figure(tick), 'middle small faint')),
    ...timeTicks.map((tick) => text(timeAt(tick), y + 15, figure(tick), 'middle small faint')),
    text((throughput.from + throughput.to) / 2, y + 31, `${unit} a second`, 'middle small faint'),
    text((latency.from + latency.to) / 2, y + 31, 'milliseconds, logarithmic', 'middle small faint'),
  ];
  return { parts: [text(24, top + 10, title, 'heading'), ...grid, ...body], y: y + 40 };
}

function drawMark({ colour, name, perSecond, latencyMs, note }: Mark, unit: string, y: number, rateAt: (perSecond: number) => number, timeAt: (ms: number) => number): string[] {
  const middle = y + markHeight / 2;
  const { p50, p95, p99 } = latencyMs;
  const hint = `${name}: p50 ${figure(p50)} ms, p95 ${figure(p95)} ms, p99 ${figure(p99)} ms`;
  const x = timeAt(p95);
  return [
    bar(rateAt(0), y + 2, rateAt(perSecond) - rateAt(0), markHeight - 4, colour, `${name}: ${figure(perSecond)} ${unit} a second`),
    text(rateAt(perSecond) + 6, middle + 4, `${figure(perSecond)}${note}`, 'small'),
    `<g class="${colour} fill stroke">`,
    line(timeAt(p50), middle, timeAt(p99), middle, 'span'),
    `<circle cx="${timeAt(p50).toFixed(1)}" cy="${middle}" r="4"/><path d="M${x.toFixed(1)} ${middle - 5}l5 5l-5 5l-5 -5z"/>`,
    `<rect x="${(timeAt(p99) - 1.5).toFixed(1)}" y="${middle - 6}" width="3" height="12"/>`,
    // Wider than the marks, to be hit by a pointer.
    `<rect x="${(timeAt(p50) - 6).toFixed(1)}" y="${y}" width="${(timeAt(p99) - timeAt(p50) + 12).toFixed(1)}" height="${markHeight}" fill-opacity="0" stroke="none"><title>${hint}</title></rect></g>`,
  ];
}
