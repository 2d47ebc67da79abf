/** One round: a load for a counted time, and what it cost. */
import { difference, type DatabaseCounters } from './database-counters.ts';
import type { Job } from './load-client.ts';
import type { Options } from './options.ts';
import { cpuSeconds, findGroup, machineCpuSeconds, residentBytes } from './processes.ts';
import type { Round } from './report.ts';
import type { Running } from './running.ts';
import { batchSize, isBatch, type ScenarioName } from './scenario.ts';
import { readMetrics, sumOf } from './telemetry.ts';

const seed = 1;
const batchConnections = 4;

/** A load of this scenario on the next cards that are free. */
export function jobOf({ target, nextCard }: Running, scenario: ScenarioName, connections: number, extent: Pick<Job, 'seconds' | 'requests' | 'warmupSeconds' | 'remember'>): Job {
  return { scenario, connections, port: target.port, tlsFiles: target.tlsFiles(scenario === 'detokenize' ? 'getnet' : 'checkout'), seed, firstCard: nextCard, ...extent };
}

/** Measures one round of a scenario, after its warm-up. */
export async function measure(running: Running, scenario: ScenarioName, connections: number, options: Pick<Options, 'seconds' | 'warmup'>): Promise<Round> {
  const { target, client, counters } = running;
  const group = findGroup(target.pid, target.folder);
  const before = residentBytes(group.server);
  let peak = before;
  const sampler = setInterval(() => (peak = Math.max(peak, residentBytes(group.server))), 250);
  const commitsBefore = await readCommits(target.telemetryPort);
  const use = { server: 0, postgres: 0, beside: 0, machine: 0 };
  let counted = group;
  const database: Promise<DatabaseCounters>[] = [];
  const batches = scenario !== 'mixed' ? null : running.beside.run({ ...jobOf(running, 'batch', batchConnections, { seconds: options.seconds + options.warmup + 1 }), firstCard: running.nextBesideCard });
  try {
    const result = await client.run(jobOf(running, scenario, connections, { seconds: options.seconds, warmupSeconds: options.warmup }), (begins) => {
      database.push(counters.read());
      // A pool opens its connections, and so PostgreSQL its backends, in the warm-up: only now are all of them known.
      if (begins) counted = findGroup(target.pid, target.folder);
      use.server = cpuSeconds(counted.server) - use.server;
      use.postgres = cpuSeconds(counted.postgres) - use.postgres;
      use.beside = cpuSeconds([running.beside.pid]) - use.beside;
      use.machine = machineCpuSeconds() - use.machine;
    });
    running.nextCard += result.cards;
    const beside = await batches;
    if (beside !== null) running.nextBesideCard += beside.cards;
    const commits = await readCommits(target.telemetryPort);
    const after = residentBytes(counted.server);
    const made = commits === null || commitsBefore === null ? 0 : commits.count - commitsBefore.count;
    const itemsOfCall = isBatch(scenario) ? batchSize : 1;
    const items = result.answered * itemsOfCall;
    const ofClients = result.clientCpuSeconds + use.beside;
    const perItem = (seconds: number): number => (items === 0 ? 0 : (seconds / items) * 1e6);
    const [countersBefore, countersAfter] = await Promise.all(database);
    return {
      perSecond: result.perSecond * itemsOfCall, latencyMs: result.latencyMs, failures: result.failures, statuses: result.statuses, seconds: result.seconds, answered: result.answered, items,
      cpuSeconds: { client: ofClients, server: use.server, postgres: use.postgres, others: Math.max(0, use.machine - ofClients - use.server - use.postgres) },
      // Beside batches nobody can tell whose the work was.
      cpuMicrosPerItem: beside !== null ? null : { server: perItem(use.server), postgres: perItem(use.postgres) },
      database: difference(countersAfter!, countersBefore!),
      serverBytes: { before, peak: Math.max(peak, after), after },
      commitSize: made > 0 ? (commits!.operations - commitsBefore!.operations) / made : null,
      beside: beside === null ? null : { perSecond: beside.perSecond * batchSize, latencyMs: beside.latencyMs, failures: beside.failures },
    };
  } finally {
    clearInterval(sampler);
  }
}

/** Sums of the commit-size histogram; null if the target has none. */
async function readCommits(telemetryPort: number | null): Promise<{ operations: number; count: number } | null> {
  const text = telemetryPort === null ? null : await readMetrics(telemetryPort);
  return text === null || !text.includes('cofre_commit_calls_count') ? null : { operations: sumOf(text, 'cofre_commit_calls_sum'), count: sumOf(text, 'cofre_commit_calls_count') };
}
