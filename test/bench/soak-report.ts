/** What a soak's samples say in the end. Pure. */

/** Calls that were answered rightly since the start, the cards and tokens in them, and the latency of a call lately. */
export interface Count {
  readonly calls: number;
  readonly items: number;
  readonly p99Ms: number;
}

export interface ProcessSample {
  readonly pid: number;
  /** `worker`, or of several the `primary` beside them. */
  readonly role: string;
  readonly rssBytes: number;
}

/** One line of the samples' file. Counts are since the start; times, counts and bytes are all plain numbers. */
export interface Sample {
  readonly seconds: number;
  readonly serving: readonly ProcessSample[];
  /** Of all serving processes together, as Node tells; null when the metrics did not answer. */
  readonly heapUsedBytes: number | null;
  readonly externalBytes: number | null;
  /** Mean over the processes of the 99th percentile that each measured since the last time. */
  readonly eventLoopLagP99Ms: number | null;
  readonly databaseBytes: number;
  readonly walBytes: number;
  readonly checkpoints: number;
  /** Processor seconds so far: of the serving processes, of PostgreSQL, and of what ran on this machine and is none of ours. */
  readonly cpuSeconds: { readonly server: number; readonly postgres: number; readonly others: number };
  /** When the client counted, by its own clock. */
  readonly countedSeconds: number;
  readonly counts: Readonly<Record<string, Count>>;
  readonly failures: Readonly<Record<string, number>>;
}

export interface Verdict {
  readonly ok: boolean;
  readonly line: string;
}

const mebibyte = 2 ** 20;

/** Samples from their file. Throws SyntaxError for lines that are no JSON. */
export function readSamples(text: string): Sample[] {
  return text.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Sample);
}

/** The slope of the line through these points with the least squares; 0 of fewer than two, or of points above one another. */
export function slope(points: readonly (readonly [x: number, y: number])[]): number {
  const meanX = points.reduce((sum, [x]) => sum + x, 0) / points.length;
  const meanY = points.reduce((sum, [, y]) => sum + y, 0) / points.length;
  const square = points.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0);
  return points.length < 2 || square === 0 ? 0 : points.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0) / square;
}

export interface ProcessTrend {
  readonly pid: number;
  readonly role: string;
  /** Over the second half of the time: what a process takes to warm up is no leak. */
  readonly mebibytesPerHour: number;
  readonly highestBytes: number;
  /** Whether it was there at the first sample and at the last. */
  readonly whole: boolean;
}

export function trends(samples: readonly Sample[]): ProcessTrend[] {
  const half = (samples.at(-1)?.seconds ?? 0) / 2;
  const pids = new Set(samples.flatMap(({ serving }) => serving.map(({ pid }) => pid)));
  return [...pids].map((pid) => {
    const points = samples.flatMap(({ seconds, serving }) => serving.filter((one) => one.pid === pid).map((one) => ({ seconds, ...one })));
    return {
      pid,
      role: points[0]!.role,
      mebibytesPerHour: slope(points.filter(({ seconds }) => seconds >= half).map(({ seconds, rssBytes }) => [seconds / 3600, rssBytes / mebibyte])),
      highestBytes: Math.max(...points.map(({ rssBytes }) => rssBytes)),
      whole: points.length === samples.length,
    };
  });
}

export interface Rate {
  /** The middle of the time between two samples. */
  readonly seconds: number;
  /** Calls of all kinds. */
  readonly callsPerSecond: number;
  /** Cards in, by single calls and batches. */
  readonly tokensPerSecond: number;
}

const sum = (counts: Sample['counts'], pick: (count: Count, kind: string) => number): number => Object.entries(counts).reduce((total, [kind, count]) => total + pick(count, kind), 0);
const made: ReadonlySet<string> = new Set(['tokenize', 'batch']);

/** What was answered between each two samples, by the client's clock. */
export function rates(samples: readonly Sample[]): Rate[] {
  // A busy client may have told nothing new between two samples.
  const told = samples.filter((sample, i) => i === 0 || sample.countedSeconds > samples[i - 1]!.countedSeconds);
  return told.slice(1).map((sample, i) => {
    const before = told[i]!;
    const seconds = sample.countedSeconds - before.countedSeconds;
    const per = (pick: (count: Count, kind: string) => number): number => (sum(sample.counts, pick) - sum(before.counts, pick)) / seconds;
    return { seconds: (sample.seconds + before.seconds) / 2, callsPerSecond: per(({ calls }) => calls), tokensPerSecond: per(({ items }, kind) => (made.has(kind) ? items : 0)) };
  });
}

/** Mean calls a second in the first and in the last quarter of the time. */
export function quarters(samples: readonly Sample[]): { readonly first: number; readonly last: number } {
  const all = rates(samples);
  const end = samples.at(-1)?.seconds ?? 0;
  const mean = (some: readonly Rate[]): number => (some.length === 0 ? 0 : some.reduce((total, { callsPerSecond }) => total + callsPerSecond, 0) / some.length);
  return { first: mean(all.filter(({ seconds }) => seconds < end / 4)), last: mean(all.filter(({ seconds }) => seconds > (end * 3) / 4)) };
}

/** The last line of a soak. Not ok if any answer was wrong or missing, or if a serving process came or went. */
export function verdict(samples: readonly Sample[]): Verdict {
  const last = samples.at(-1);
  if (last === undefined || samples.length < 2) return { ok: false, line: 'soak: too short to say anything' };
  const memory = trends(samples);
  const { first: early, last: late } = quarters(samples);
  const failures = Object.entries(last.failures);
  const restarted = memory.filter(({ whole }) => !whole).length;
  const answered = sum(last.counts, ({ calls }) => calls);
  const micros = (of: 'server' | 'postgres'): string => (((last.cpuSeconds[of] - samples[0]!.cpuSeconds[of]) / Math.max(1, answered)) * 1e6).toFixed(0);
  const tokens = sum(last.counts, ({ items }, kind) => (made.has(kind) ? items : 0));
  const parts = [
    `${(last.seconds / 60).toFixed(0)} min`,
    ...memory.map(({ role, pid, mebibytesPerHour, highestBytes }) => `${role} ${pid} RSS ${mebibytesPerHour >= 0 ? '+' : ''}${mebibytesPerHour.toFixed(1)} MiB/h over the second half, at most ${(highestBytes / mebibyte).toFixed(0)} MiB`),
    `${early.toFixed(0)} calls/s in the first quarter and ${late.toFixed(0)} in the last (${early === 0 ? '-' : ((late / early) * 100).toFixed(0)} %)`,
    `${answered} calls answered rightly, ${tokens} tokens made`,
    `${micros('server')} us of the server and ${micros('postgres')} us of PostgreSQL a call`,
    `${last.checkpoints - samples[0]!.checkpoints} checkpoints`,
    `other processes took ${((last.cpuSeconds.others - samples[0]!.cpuSeconds.others) / last.seconds).toFixed(2)} cores`,
    failures.length === 0 ? 'no answer wrong' : `WRONG: ${failures.map(([name, count]) => `${name} ${count}`).join(', ')}`,
    ...(restarted === 0 ? [] : [`${restarted} serving processes came or went`]),
  ];
  return { ok: failures.length === 0 && restarted === 0, line: `soak: ${parts.join('; ')}` };
}
