/** `bench --soak`: a steady load of every kind of call on the real thing, sampled from outside until it ends. */
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { CounterReader } from './database-counters.ts';
import type { Options } from './options.ts';
import { cpuSeconds, findGroup, machineCpuSeconds, residentBytes } from './processes.ts';
import { describe } from './report.ts';
import { startTarget } from './running.ts';
import { soakChart } from './soak-chart.ts';
import { startSoakLoad, type SoakMessage } from './soak-load.ts';
import { quarters, rates, verdict, type ProcessSample, type Sample } from './soak-report.ts';
import type { Target } from './target.ts';
import { readMetrics, sumOf } from './telemetry.ts';

/** About so many samples, but none more often than once a second. */
const samplesInAll = 360;
const longestIntervalSeconds = 10;
const progressSeconds = 30;

/** Runs the soak and prints its verdict. Returns the exit code: 1 if any answer was wrong or missing. */
export async function runSoak(folder: string, options: Options, progress: (line: string) => void, stack: AsyncDisposableStack): Promise<number> {
  const { minutes, load, samplesFile } = options.soak!;
  const configuration = options.configurations[0]!;
  const { target, counters } = await startTarget('real', folder, options, configuration, progress, stack);
  progress(`${minutes} minutes of soak, ${describe(configuration)}; samples in ${samplesFile}`);
  writeFileSync(samplesFile, '');

  let latest: Told = { countedSeconds: 0, counts: {}, failures: {} };
  const begun = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<void>();
  // Whoever fails before the load begins is heard there.
  ended.promise.catch(() => undefined);
  let over = false;
  const onMessage = (message: SoakMessage): void => {
    if (message.type === 'counts') latest = { countedSeconds: message.countedSeconds, counts: message.counts, failures: message.failures };
    else if (message.type === 'begins') begun.resolve();
    else {
      over = true;
      if (message.type === 'done') return ended.resolve();
      const error = new Error(message.message);
      begun.reject(error);
      ended.reject(error);
    }
  };
  const client = startSoakLoad({ port: target.port, tlsFiles: { checkout: target.tlsFiles('checkout'), getnet: target.tlsFiles('getnet'), intruder: target.tlsFiles('intruder') }, seconds: minutes * 60, load }, onMessage);
  stack.defer(() => client.close());
  await begun.promise;

  const intervalMs = Math.min(longestIntervalSeconds, Math.max(1, (minutes * 60) / samplesInAll)) * 1000;
  const startedMs = performance.now();
  const samples: Sample[] = [];
  let toldMs = startedMs;
  for (let due = startedMs; !over; due += intervalMs) {
    await Promise.race([sleep(Math.max(0, due - performance.now())), ended.promise]);
    const sample = { seconds: (performance.now() - startedMs) / 1000, ...(await observe(target, configuration.workers, client.pid, counters)), ...latest };
    samples.push(sample);
    appendFileSync(samplesFile, `${JSON.stringify(sample)}\n`);
    if (performance.now() - toldMs < progressSeconds * 1000) continue;
    toldMs = performance.now();
    progress(tell(samples, minutes));
  }
  await ended.promise;
  if (options.svg !== undefined) writeFileSync(options.svg, soakChart(samples));
  const { ok, line } = verdict(samples);
  console.log(line);
  return ok ? 0 : 1;
}

type Told = Pick<Sample, 'countedSeconds' | 'counts' | 'failures'>;

async function observe(target: Target, workers: number, clientPid: number, counters: CounterReader): Promise<Omit<Sample, 'seconds' | keyof Told>> {
  const group = findGroup(target.pid, target.folder);
  // Of several workers the first process serves nothing itself.
  const roleOf = (pid: number): string => (pid === target.pid && workers > 1 ? 'primary' : sequences(pid) ? 'sequencer' : 'worker');
  const serving = group.server.map((pid): ProcessSample => ({ pid, role: roleOf(pid), rssBytes: residentBytes([pid]) }));
  const metrics = await readMetrics(target.telemetryPort!);
  const { checkpoints, walBytes } = await counters.read();
  const metric = (name: string): number | null => (metrics === null ? null : sumOf(metrics, name));
  const lag = metric('nodejs_eventloop_lag_p99_seconds');
  const [server, postgres, ours] = [cpuSeconds(group.server), cpuSeconds(group.postgres), cpuSeconds([clientPid, process.pid])];
  return { serving, cpuSeconds: { server, postgres, others: machineCpuSeconds() - server - postgres - ours }, heapUsedBytes: metric('nodejs_heap_size_used_bytes'), externalBytes: metric('nodejs_external_memory_bytes'), eventLoopLagP99Ms: lag === null ? null : lag * 1000, databaseBytes: await counters.readSize(), walBytes, checkpoints };
}

function tell(samples: readonly Sample[], minutes: number): string {
  const { seconds, serving, databaseBytes, checkpoints, failures, eventLoopLagP99Ms } = samples.at(-1)!;
  const lately = rates(samples.slice(-4)).at(-1);
  const wrong = Object.values(failures).reduce((sum, count) => sum + count, 0);
  const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);
  return [
    `${(seconds / 60).toFixed(1)} of ${minutes} min: ${lately?.callsPerSecond.toFixed(0) ?? '-'} calls/s, ${lately?.tokensPerSecond.toFixed(0) ?? '-'} new tokens/s (first quarter ${quarters(samples).first.toFixed(0)} calls/s)`,
    `RSS ${serving.map(({ role, rssBytes }) => `${role} ${mebibytes(rssBytes)}`).join(', ')} MiB`,
    `event loop p99 ${eventLoopLagP99Ms?.toFixed(1) ?? '-'} ms`,
    `database ${mebibytes(databaseBytes)} MiB, ${checkpoints} checkpoints`,
    wrong === 0 ? 'no answer wrong' : `${wrong} WRONG: ${JSON.stringify(failures)}`,
  ].join('; ');
}

function sequences(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').endsWith('\0sequencer\0');
  } catch {
    return false; // it ended meanwhile
  }
}
