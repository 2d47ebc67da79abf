/**
 * Measures the vault against the bare server, interleaved in one run: real, bare, real, bare … for each scenario, medians of the rounds.
 * The targets are ratios, because this machine is not yours. Client, server and PostgreSQL share its cores.
 */
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { isKillCampaign, runKillCampaign } from './kill.ts';
import { startLoadClient, type Job, type LoadClient } from './load-client.ts';
import { cpuSeconds, findGroup, residentBytes } from './processes.ts';
import { compare, table, type Measurement, type Round } from './report.ts';
import type { ScenarioName } from './scenario.ts';
import { hasVault, startBare, startReal, type Target } from './target.ts';

const help = `npm run bench -- [options]

  --seconds N         counted time of one round (5)
  --rounds N          rounds of each target and scenario (5)
  --connections LIST  for tokenize (1,64,256); the other scenarios use 64
  --only LIST         of tokenize, known, detokenize, validate, batch, mixed (the first four); mixed is single tokenize calls beside a full load
                      of batches, whose rate is told in the progress
  --target LIST       of real, bare (both)
  --quick             2 rounds of 2 seconds, 64 connections: a check, not a measurement
  --warmup N          seconds of load before each counted time (1)
  --known N           cards behind known, detokenize and validate (20000)
  --workers N         serving processes of the vault (1)
  --custody NAME      envelope or direct (envelope)
  --bare-pool N       database connections of a bare process (16)
  --bare-processes N  processes of the bare server (1)
  --json FILE         every round, as JSON
  --keep              leaves the temporary folder
  --kill N            instead of measuring: N times kill -9 under load, then a reckoning; --kill N --help says more

Exit code 1 if any answer was wrong or missing.`;

const allScenarios: readonly ScenarioName[] = ['tokenize', 'known', 'detokenize', 'validate', 'batch', 'mixed'];
const seed = 1;
const fixedConnections = 64;
const batchConnections = 4;
const mixedConnections = 16;
/** Cards of the batches beside single calls, far from all others. */
const mixedFirstCard = 500_000_000;

/** The development caller may detokenize 100,000 times a minute (its quota): the bench waits before it would meet that. */
const detokenizesPerMinute = 90_000;

interface Running {
  readonly target: Target;
  readonly client: LoadClient;
  /** Sends batches beside the measured calls. */
  readonly beside: LoadClient;
  nextCard: number;
  nextBesideCard: number;
  /** When how many were detokenized. */
  readonly detokenized: { atMs: number; count: number }[];
}

interface Options {
  readonly seconds: number;
  readonly rounds: number;
  readonly warmup: number;
  readonly known: number;
  readonly connections: readonly number[];
  readonly scenarios: readonly ScenarioName[];
  readonly targets: readonly string[];
  readonly workers: number;
  readonly custody: 'envelope' | 'direct';
  readonly barePool: number;
  readonly bareProcesses: number;
  readonly json: string | undefined;
  readonly keep: boolean;
}

class UsageError extends Error {}

function readOptions(): Options | null {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string' }, rounds: { type: 'string' }, warmup: { type: 'string' }, known: { type: 'string' }, connections: { type: 'string' },
      only: { type: 'string' }, target: { type: 'string' }, quick: { type: 'boolean', default: false }, 'bare-pool': { type: 'string' }, 'bare-processes': { type: 'string' },
      workers: { type: 'string' }, custody: { type: 'string' }, json: { type: 'string' }, keep: { type: 'boolean', default: false }, help: { type: 'boolean', default: false },
    },
  });
  if (values.help) return null;
  const number = (text: string | undefined, otherwise: number, lowest: number): number => {
    const value = text === undefined ? otherwise : Number(text);
    if (!Number.isFinite(value) || value < lowest) throw new UsageError('a number is out of range: see --help');
    return value;
  };
  const scenarios = values.only?.split(',') ?? ['tokenize', 'known', 'detokenize', 'validate'];
  if (scenarios.some((name) => !(allScenarios as readonly string[]).includes(name))) throw new UsageError('--only names an unknown scenario: see --help');
  const targets = values.target?.split(',') ?? ['real', 'bare'];
  if (targets.some((name) => name !== 'real' && name !== 'bare')) throw new UsageError('--target names an unknown target: see --help');
  const custody = values.custody ?? 'envelope';
  if (custody !== 'envelope' && custody !== 'direct') throw new UsageError('--custody is envelope or direct');
  const connections = values.connections?.split(',').map((text) => number(text, 0, 1)) ?? (values.quick ? [fixedConnections] : [1, 64, 256]);
  return {
    seconds: number(values.seconds, values.quick ? 2 : 5, 0.1), rounds: number(values.rounds, values.quick ? 2 : 5, 1), warmup: number(values.warmup, 1, 0), known: number(values.known, values.quick ? 2000 : 20_000, 1),
    workers: number(values.workers, 1, 1), custody, connections, scenarios: scenarios as ScenarioName[], targets, barePool: number(values['bare-pool'], 16, 1), bareProcesses: number(values['bare-processes'], 1, 1), json: values.json, keep: values.keep,
  };
}

/** A fresh server compiles its hot paths and PostgreSQL fills its buffers: the first seconds tell of that and not of the server. */
const settleSeconds = (options: Options): number => (options.seconds < 5 ? 2 : 5);

const progress = (line: string): void => void process.stderr.write(`${line}\n`);

async function main(options: Options, stack: AsyncDisposableStack): Promise<boolean> {
  if (options.targets.includes('real') && !hasVault()) throw new UsageError('there is no vault to measure (vault/bin/cofre.ts): use --target bare');
  const folder = mkdtempSync(join(tmpdir(), 'cofre-bench-'));
  // PostgreSQL may run as another user than this process; the folders below are closed by their owners.
  chmodSync(folder, 0o755);
  stack.defer(() => (options.keep ? progress(`left: ${folder}`) : rmSync(folder, { recursive: true, force: true })));

  const start = async (name: 'real' | 'bare'): Promise<Running | null> => {
    if (!options.targets.includes(name)) return null;
    progress(`starting ${name} …`);
    const home = join(folder, name);
    const target = name === 'real' ? await startReal(home, { workers: options.workers, custody: options.custody }) : await startBare(home, { pool: options.barePool, processes: options.bareProcesses });
    stack.defer(() => target.stop());
    const client = startLoadClient();
    stack.defer(() => client.close());
    const beside = startLoadClient();
    stack.defer(() => beside.close());
    const running: Running = { target, client, beside, nextCard: 0, nextBesideCard: mixedFirstCard, detokenized: [] };
    progress(`${name}: ready, warming up for ${settleSeconds(options)} s …`);
    running.nextCard += (await client.run(job(running, 'tokenize', fixedConnections, { seconds: settleSeconds(options) }))).cards;
    return running;
  };
  const real = await start('real');
  const bare = await start('bare');

  if (real !== null && options.scenarios.some((name) => name === 'known' || name === 'detokenize' || name === 'validate')) {
    progress(`real: ${options.known} cards to know …`);
    const result = await real.client.run(job(real, 'tokenize', fixedConnections, { requests: options.known, remember: true }));
    if (Object.keys(result.failures).length > 0) progress(`real: ${JSON.stringify(result.failures)}`);
    real.nextCard += result.cards;
  }

  const measurements: Measurement[] = [];
  for (const scenario of options.scenarios) {
    for (const connections of scenario === 'tokenize' ? options.connections : [scenario === 'batch' ? batchConnections : scenario === 'mixed' ? mixedConnections : fixedConnections]) {
      const rounds: { real: Round[]; bare: Round[] } = { real: [], bare: [] };
      for (let round = 1; round <= options.rounds; round++) {
        // The bare server answers tokenize only; the other scenarios stand alone.
        for (const running of [real, scenario === 'tokenize' ? bare : null]) {
          if (running === null) continue;
          const measured = await measure(running, scenario, connections, options);
          rounds[running.target.name].push(measured);
          progress(`${scenario} ${connections} ${running.target.name} ${round}/${options.rounds}: ${measured.perSecond.toFixed(0)}/s, p99 ${measured.latencyMs.p99.toFixed(1)} ms${Object.keys(measured.failures).length > 0 ? `, ${JSON.stringify(measured.failures)}` : ''}`);
        }
      }
      if (rounds.real.length + rounds.bare.length > 0) measurements.push({ scenario, connections, ...rounds });
    }
  }

  const comparisons = measurements.map(compare);
  console.log(table(comparisons));
  console.log(`\n${options.rounds} rounds of ${options.seconds} s, medians; ${availableParallelism()} cores (${cpus()[0]?.model.trim() ?? 'unknown'}), shared by client, server and PostgreSQL; Node ${process.version}`);
  if (options.json !== undefined) {
    const { json: _, keep: __, ...settings } = options;
    const machine = { cores: availableParallelism(), cpu: cpus()[0]?.model.trim() ?? null, node: process.version };
    writeFileSync(options.json, `${JSON.stringify({ at: new Date().toISOString(), machine, settings, comparisons, measurements }, null, 2)}\n`);
  }
  return measurements.every(({ real, bare }) => [...real, ...bare].every((round) => Object.keys(round.failures).length === 0));
}

function job(running: Running, scenario: ScenarioName, connections: number, extent: Pick<Job, 'seconds' | 'requests' | 'warmupSeconds' | 'remember'>): Job {
  const { target } = running;
  return { scenario, connections, port: target.port, tlsFiles: target.tlsFiles(scenario === 'detokenize' ? 'getnet' : 'checkout'), seed, firstCard: running.nextCard, ...extent };
}

async function measure(running: Running, scenario: ScenarioName, connections: number, options: Options): Promise<Round> {
  const { target, client } = running;
  if (scenario === 'detokenize') await waitForQuota(running);
  const group = findGroup(target.pid, target.folder);
  const before = residentBytes(group.server);
  let peak = before;
  const sampler = setInterval(() => (peak = Math.max(peak, residentBytes(group.server))), 250);
  const commitsBefore = await readCommits(target);
  const use = { server: 0, postgres: 0 };
  let counted = group;
  const batches = scenario !== 'mixed' ? null : running.beside.run({ ...job(running, 'batch', batchConnections, { seconds: options.seconds + options.warmup + 1 }), firstCard: running.nextBesideCard });
  try {
    const result = await client.run(job(running, scenario, connections, { seconds: options.seconds, warmupSeconds: options.warmup }), (begins) => {
      // A pool opens its connections, and so PostgreSQL its backends, in the warm-up: only now are all of them known.
      if (begins) counted = findGroup(target.pid, target.folder);
      use.server = cpuSeconds(counted.server) - use.server;
      use.postgres = cpuSeconds(counted.postgres) - use.postgres;
    });
    running.nextCard += result.cards;
    if (batches !== null) {
      const beside = await batches;
      running.nextBesideCard += beside.cards;
      progress(`  beside it ${(beside.perSecond * 1000).toFixed(0)} cards a second in batches, p99 ${beside.latencyMs.p99.toFixed(0)} ms${Object.keys(beside.failures).length > 0 ? `, ${JSON.stringify(beside.failures)}` : ''}`);
    }
    if (scenario === 'detokenize') running.detokenized.push({ atMs: Date.now(), count: result.sent });
    const commits = await readCommits(target);
    const after = residentBytes(counted.server);
    const made = commits === null || commitsBefore === null ? 0 : commits.count - commitsBefore.count;
    return {
      perSecond: result.perSecond, latencyMs: result.latencyMs, failures: result.failures, statuses: result.statuses, seconds: result.seconds, answered: result.answered,
      cpuSeconds: { client: result.clientCpuSeconds, ...use },
      cpuMicrosPerAnswer: result.answered === 0 ? 0 : ((use.server + use.postgres) / result.answered) * 1e6,
      serverBytes: { before, peak: Math.max(peak, after), after },
      commitSize: made > 0 ? (commits!.operations - commitsBefore!.operations) / made : null,
    };
  } finally {
    clearInterval(sampler);
  }
}

/** Sums of the commit-size histogram, `cofre_commit_calls`; null if the target has none. */
async function readCommits({ telemetryPort }: Target): Promise<{ operations: number; count: number } | null> {
  if (telemetryPort === null) return null;
  try {
    const text = await (await fetch(`http://127.0.0.1:${telemetryPort}/metrics`)).text();
    const total = (name: string): number => [...text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? ([0-9.e+]+)$`, 'gm'))].reduce((sum, match) => sum + Number(match[1]), 0);
    return text.includes('cofre_commit_calls_count') ? { operations: total('cofre_commit_calls_sum'), count: total('cofre_commit_calls_count') } : null;
  } catch {
    return null;
  }
}

async function waitForQuota(running: Running): Promise<void> {
  const largest = Math.max(0, ...running.detokenized.map((entry) => entry.count));
  const inLastMinute = (): number => running.detokenized.filter((entry) => entry.atMs > Date.now() - 60_000).reduce((sum, entry) => sum + entry.count, 0);
  if (inLastMinute() + largest <= detokenizesPerMinute) return;
  progress('detokenize: waiting for the quota of the minute …');
  while (inLastMinute() > 0 && inLastMinute() + largest > detokenizesPerMinute) await new Promise((resolve) => setTimeout(resolve, 1000));
}

const stack = new AsyncDisposableStack();
// Children that do not hold the event loop must still be waited for: without this, Node may end in the middle of the cleaning up.
const holdOpen = setInterval(() => {}, 1000);
let interrupted = false;
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    interrupted = true;
    progress('stopping …');
    void stack.disposeAsync().finally(() => process.exit(130));
  });
}
try {
  const args = process.argv.slice(2);
  const options = isKillCampaign(args) ? null : readOptions();
  if (isKillCampaign(args)) process.exitCode = await runKillCampaign(args, stack);
  else if (options === null) console.log(help);
  else process.exitCode = (await main(options, stack)) ? 0 : 1;
} catch (error) {
  if (!interrupted) {
    console.error(`bench: ${(error as Error).message}`);
    process.exitCode = 2;
  }
} finally {
  await stack.disposeAsync();
  clearInterval(holdOpen);
}
