/** Rounds become medians, comparisons, and tables for a terminal. Pure. */
import type { DatabaseCounters } from './database-counters.ts';
import type { Latency } from './load.ts';
import type { Configuration } from './options.ts';
import { isBatch, type ScenarioName } from './scenario.ts';

/** One measurement of one target. An item is a call, or in batches a card. */
export interface Round {
  /** Items. */
  readonly perSecond: number;
  /** Of a call. */
  readonly latencyMs: Latency;
  readonly failures: Readonly<Record<string, number>>;
  readonly statuses: Readonly<Record<string, number>>;
  readonly seconds: number;
  /** Calls that were answered rightly, and the items in them. */
  readonly answered: number;
  readonly items: number;
  /** Processor seconds in the counted time. `others` is what ran on this machine and is none of ours: it disturbs. */
  readonly cpuSeconds: { readonly client: number; readonly server: number; readonly postgres: number; readonly others: number };
  /** Processor time for one item: the figure that other load on the machine disturbs least. null where other calls ran beside. */
  readonly cpuMicrosPerItem: { readonly server: number; readonly postgres: number } | null;
  /** What PostgreSQL did in the counted time. */
  readonly database: DatabaseCounters;
  /** Resident bytes of the server's processes. */
  readonly serverBytes: { readonly before: number; readonly peak: number; readonly after: number };
  /** Operations in one commit, on average; null if the target does not tell. */
  readonly commitSize: number | null;
  /** The batches that ran beside single calls: cards a second, and the latency of a batch. */
  readonly beside: { readonly perSecond: number; readonly latencyMs: Latency; readonly failures: Readonly<Record<string, number>> } | null;
}

export interface Measurement {
  readonly configuration: Configuration;
  readonly scenario: ScenarioName;
  readonly connections: number;
  readonly real: readonly Round[];
  readonly bare: readonly Round[];
}

/** Medians over rounds; failures and checkpoints are sums. */
export interface Summary extends Omit<Round, 'statuses' | 'database'> {
  readonly rounds: number;
  /** Lowest and highest round. */
  readonly perSecondRange: readonly [number, number];
  readonly checkpoints: number;
  /** null where other calls ran beside. */
  readonly walBytesPerItem: number | null;
}

export interface Comparison {
  readonly configuration: Configuration;
  readonly scenario: ScenarioName;
  readonly connections: number;
  readonly real: Summary | null;
  readonly bare: Summary | null;
  /** Real by bare: the median, lowest and highest of neighbouring rounds, as the machine's speed drifts between them; latency and cost of the medians. */
  readonly ratio: { readonly perSecond: number; readonly lowest: number; readonly highest: number; readonly p99: number; readonly cpuPerItem: number } | null;
}

/** The middle value, or the mean of the two in the middle; 0 of none. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length === 0 ? 0 : sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Everything that went wrong in a round, the batches beside it included. */
export function failuresOf(round: Pick<Round, 'failures' | 'beside'>): Record<string, number> {
  const all = { ...round.failures };
  for (const [name, count] of Object.entries(round.beside?.failures ?? {})) all[`batch_${name}`] = count;
  return all;
}

export function summarize(rounds: readonly Round[]): Summary | null {
  if (rounds.length === 0) return null;
  const of = (pick: (round: Round) => number): number => median(rounds.map(pick));
  const ofSome = (pick: (round: Round) => number | null): number | null => {
    const values = rounds.flatMap((round) => pick(round) ?? []);
    return values.length === 0 ? null : median(values);
  };
  const latency = (pick: (round: Round) => Latency): Latency => ({ p50: of((round) => pick(round).p50), p95: of((round) => pick(round).p95), p99: of((round) => pick(round).p99), max: Math.max(...rounds.map((round) => pick(round).max)) });
  const failures: Record<string, number> = {};
  for (const round of rounds) for (const [name, count] of Object.entries(failuresOf(round))) failures[name] = (failures[name] ?? 0) + count;
  const rates = rounds.map((round) => round.perSecond);
  const alone = rounds.every((round) => round.beside === null);
  return {
    rounds: rounds.length,
    perSecond: of((round) => round.perSecond),
    perSecondRange: [Math.min(...rates), Math.max(...rates)],
    latencyMs: latency((round) => round.latencyMs),
    failures,
    seconds: of((round) => round.seconds),
    answered: of((round) => round.answered),
    items: of((round) => round.items),
    cpuSeconds: { client: of((round) => round.cpuSeconds.client), server: of((round) => round.cpuSeconds.server), postgres: of((round) => round.cpuSeconds.postgres), others: of((round) => round.cpuSeconds.others) },
    cpuMicrosPerItem: alone ? { server: of((round) => round.cpuMicrosPerItem?.server ?? 0), postgres: of((round) => round.cpuMicrosPerItem?.postgres ?? 0) } : null,
    checkpoints: rounds.reduce((sum, round) => sum + round.database.checkpoints, 0),
    walBytesPerItem: alone ? of((round) => (round.items === 0 ? 0 : round.database.walBytes / round.items)) : null,
    serverBytes: { before: rounds[0]!.serverBytes.before, peak: Math.max(...rounds.map((round) => round.serverBytes.peak)), after: rounds.at(-1)!.serverBytes.after },
    commitSize: ofSome((round) => round.commitSize),
    beside: alone ? null : { perSecond: of((round) => round.beside?.perSecond ?? 0), latencyMs: latency((round) => round.beside?.latencyMs ?? round.latencyMs), failures: {} },
  };
}

export function compare(measurement: Measurement): Comparison {
  const { configuration, scenario, connections } = measurement;
  const real = summarize(measurement.real);
  const bare = summarize(measurement.bare);
  if (real === null || bare === null) return { configuration, scenario, connections, real, bare, ratio: null };
  const pairs = measurement.real.flatMap((round, i) => (measurement.bare[i] === undefined ? [] : round.perSecond / measurement.bare[i].perSecond));
  const cpu = ({ cpuMicrosPerItem }: Summary): number => (cpuMicrosPerItem?.server ?? 0) + (cpuMicrosPerItem?.postgres ?? 0);
  return { configuration, scenario, connections, real, bare, ratio: { perSecond: median(pairs), lowest: Math.min(...pairs), highest: Math.max(...pairs), p99: real.latencyMs.p99 / bare.latencyMs.p99, cpuPerItem: cpu(real) / cpu(bare) } };
}

/** What was held still, in words. */
export function describe({ workers, custody, existing }: Configuration): string {
  const cards = existing === 0 ? 'into an empty table' : `into ${existing.toLocaleString('en')} existing cards`;
  return `${custody} custody, ${workers} worker${workers === 1 ? '' : 's'}, ${cards}`;
}

/** What a rate of this scenario counts. */
export function unitOf(scenario: ScenarioName): 'calls' | 'tokens' {
  return isBatch(scenario) ? 'tokens' : 'calls';
}

/** Comparisons of one configuration after the other, in the order of their first ones. */
export function byConfiguration(comparisons: readonly Comparison[]): (readonly [string, readonly Comparison[]])[] {
  return [...Map.groupBy(comparisons, ({ configuration }) => describe(configuration))];
}

const columns = [
  'scenario', 'conn', 'target', 'per second', 'counts', 'low..high', 'p50 ms', 'p95', 'p99', 'max', 'of bare', 'us each server', 'postgres', 'WAL B each', 'checkpoints', 'CPU s client', 'server', 'postgres', 'others', 'RSS MiB before', 'peak', 'after', 'commit', 'errors',
] as const;
const textColumns: ReadonlySet<string> = new Set(['scenario', 'target', 'counts', 'errors']);

/** The tables for a terminal, one of each configuration, one line a target. Rates and costs of batches are by the token, of the others by the call; a latency is always a call's. */
export function table(comparisons: readonly Comparison[]): string {
  return byConfiguration(comparisons).map(([title, group]) => `${title}\n${tableOf(group)}`).join('\n\n');
}

function tableOf(comparisons: readonly Comparison[]): string {
  const rows: string[][] = [[...columns]];
  const latencies = (latency: Latency): string[] => [latency.p50, latency.p95, latency.p99, latency.max].map((ms) => ms.toFixed(1));
  for (const { scenario, connections, real, bare, ratio } of comparisons) {
    for (const [name, summary] of [['real', real], ['bare', bare]] as const) {
      if (summary === null) continue;
      const { cpuSeconds, cpuMicrosPerItem, walBytesPerItem, serverBytes, beside } = summary;
      rows.push([
        scenario, String(connections), name, summary.perSecond.toFixed(0), unitOf(scenario), summary.perSecondRange.map((rate) => rate.toFixed(0)).join('..'),
        ...latencies(summary.latencyMs),
        name === 'real' && ratio !== null ? `${(ratio.perSecond * 100).toFixed(0)} % (${(ratio.lowest * 100).toFixed(0)}..${(ratio.highest * 100).toFixed(0)})` : '-',
        cpuMicrosPerItem?.server.toFixed(1) ?? '-', cpuMicrosPerItem?.postgres.toFixed(1) ?? '-', walBytesPerItem?.toFixed(0) ?? '-', String(summary.checkpoints),
        ...[cpuSeconds.client, cpuSeconds.server, cpuSeconds.postgres, cpuSeconds.others].map((seconds) => seconds.toFixed(2)),
        ...[serverBytes.before, serverBytes.peak, serverBytes.after].map((bytes) => (bytes / 2 ** 20).toFixed(0)),
        summary.commitSize?.toFixed(1) ?? '-',
        Object.entries(summary.failures).map(([failure, count]) => `${failure} ${count}`).join(', ') || '0',
      ]);
      if (beside !== null) rows.push(['  its batches', '', name, beside.perSecond.toFixed(0), 'tokens', '', ...latencies(beside.latencyMs), ...Array.from({ length: columns.length - 10 }, () => '')]);
    }
  }
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  return rows.map((row) => row.map((cell, i) => (textColumns.has(columns[i]!) ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ').trimEnd()).join('\n');
}
