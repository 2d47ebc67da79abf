import type { Latency } from './load.ts';
import type { ScenarioName } from './scenario.ts';

/** One measurement of one target. */
export interface Round {
  readonly perSecond: number;
  readonly latencyMs: Latency;
  readonly failures: Readonly<Record<string, number>>;
  readonly statuses: Readonly<Record<string, number>>;
  readonly seconds: number;
  readonly answered: number;
  /** Processor seconds in the counted time. */
  readonly cpuSeconds: { readonly client: number; readonly server: number; readonly postgres: number };
  /** Resident bytes of the server's processes. */
  readonly serverBytes: { readonly before: number; readonly peak: number; readonly after: number };
  /** Processor time of server and PostgreSQL for one right answer: the figure that other load on the machine disturbs least. */
  readonly cpuMicrosPerAnswer: number;
  /** Operations in one commit, on average; null if the target does not tell. */
  readonly commitSize: number | null;
}

export interface Measurement {
  readonly scenario: ScenarioName;
  readonly connections: number;
  readonly real: readonly Round[];
  readonly bare: readonly Round[];
}

/** Medians over rounds; failures are sums. */
export interface Summary extends Omit<Round, 'statuses'> {
  readonly rounds: number;
  /** Lowest and highest round. */
  readonly perSecondRange: readonly [number, number];
}

export interface Comparison {
  readonly scenario: ScenarioName;
  readonly connections: number;
  readonly real: Summary | null;
  readonly bare: Summary | null;
  /** Real by bare: of the medians, and the lowest and highest of neighbouring rounds. */
  readonly ratio: { readonly perSecond: number; readonly lowest: number; readonly highest: number; readonly p99: number; readonly cpuPerAnswer: number } | null;
}

/** The middle value, or the mean of the two in the middle; 0 of none. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length === 0 ? 0 : sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

export function summarize(rounds: readonly Round[]): Summary | null {
  if (rounds.length === 0) return null;
  const of = (pick: (round: Round) => number): number => median(rounds.map(pick));
  const failures: Record<string, number> = {};
  for (const round of rounds) for (const [name, count] of Object.entries(round.failures)) failures[name] = (failures[name] ?? 0) + count;
  const rates = rounds.map((round) => round.perSecond);
  const sizes = rounds.flatMap((round) => round.commitSize ?? []);
  return {
    rounds: rounds.length,
    perSecond: of((round) => round.perSecond),
    perSecondRange: [Math.min(...rates), Math.max(...rates)],
    latencyMs: { p50: of((round) => round.latencyMs.p50), p95: of((round) => round.latencyMs.p95), p99: of((round) => round.latencyMs.p99), max: Math.max(...rounds.map((round) => round.latencyMs.max)) },
    failures,
    seconds: of((round) => round.seconds),
    answered: of((round) => round.answered),
    cpuSeconds: { client: of((round) => round.cpuSeconds.client), server: of((round) => round.cpuSeconds.server), postgres: of((round) => round.cpuSeconds.postgres) },
    cpuMicrosPerAnswer: of((round) => round.cpuMicrosPerAnswer),
    serverBytes: { before: rounds[0]!.serverBytes.before, peak: Math.max(...rounds.map((round) => round.serverBytes.peak)), after: rounds.at(-1)!.serverBytes.after },
    commitSize: sizes.length === 0 ? null : median(sizes),
  };
}

export function compare(measurement: Measurement): Comparison {
  const { scenario, connections } = measurement;
  const real = summarize(measurement.real);
  const bare = summarize(measurement.bare);
  if (real === null || bare === null) return { scenario, connections, real, bare, ratio: null };
  const pairs = measurement.real.flatMap((round, i) => (measurement.bare[i] === undefined ? [] : round.perSecond / measurement.bare[i].perSecond));
  return { scenario, connections, real, bare, ratio: { perSecond: real.perSecond / bare.perSecond, lowest: Math.min(...pairs), highest: Math.max(...pairs), p99: real.latencyMs.p99 / bare.latencyMs.p99, cpuPerAnswer: real.cpuMicrosPerAnswer / bare.cpuMicrosPerAnswer } };
}

const columns = ['scenario', 'conn', 'target', 'per second', 'low..high', 'p50 ms', 'p95', 'p99', 'max', 'CPU s client', 'server', 'postgres', 'us/answer', 'RSS MiB before', 'peak', 'after', 'commit', 'of bare', 'errors'] as const;

/** The table for a terminal, one line a target. */
export function table(comparisons: readonly Comparison[]): string {
  const rows: string[][] = [[...columns]];
  for (const { scenario, connections, real, bare, ratio } of comparisons) {
    for (const [name, summary] of [['real', real], ['bare', bare]] as const) {
      if (summary === null) continue;
      const { latencyMs, cpuSeconds, cpuMicrosPerAnswer, serverBytes } = summary;
      rows.push([
        scenario, String(connections), name, summary.perSecond.toFixed(0), summary.perSecondRange.map((rate) => rate.toFixed(0)).join('..'),
        ...[latencyMs.p50, latencyMs.p95, latencyMs.p99, latencyMs.max].map((ms) => ms.toFixed(1)),
        ...[cpuSeconds.client, cpuSeconds.server, cpuSeconds.postgres].map((seconds) => seconds.toFixed(2)),
        cpuMicrosPerAnswer.toFixed(0),
        ...[serverBytes.before, serverBytes.peak, serverBytes.after].map((bytes) => (bytes / 2 ** 20).toFixed(0)),
        summary.commitSize?.toFixed(1) ?? '-',
        name === 'real' && ratio !== null ? `${(ratio.perSecond * 100).toFixed(0)} % (${(ratio.lowest * 100).toFixed(0)}..${(ratio.highest * 100).toFixed(0)})` : '-',
        Object.entries(summary.failures).map(([failure, count]) => `${failure} ${count}`).join(', ') || '0',
      ]);
    }
  }
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  return rows.map((row) => row.map((cell, i) => (i === 0 || i === 2 || i === row.length - 1 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ').trimEnd()).join('\n');
}
