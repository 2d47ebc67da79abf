/**
 * Measures the vault against the bare server, interleaved in one run: real, bare, real, bare … for each scenario, medians of the rounds.
 * The targets are ratios, because this machine is not yours. Client, server and PostgreSQL share its cores.
 */
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { resultsChart } from './chart.ts';
import { isKillCampaign, runKillCampaign } from './kill.ts';
import { isLogBench, runLogBench } from './log.ts';
import { jobOf, measure } from './measure.ts';
import { UsageError, help, readOptions, type Configuration, type Options } from './options.ts';
import { compare, describe, failuresOf, table, type Comparison, type Measurement, type Round } from './report.ts';
import { startRunning, type Running } from './running.ts';
import type { ScenarioName } from './scenario.ts';
import { soakChart } from './soak-chart.ts';
import { readSamples } from './soak-report.ts';
import { runSoak } from './soak.ts';
import { hasVault } from './target.ts';

const fixedConnections = 64;
const ownConnections: Partial<Record<ScenarioName, number>> = { batch: 4, mixed: 16 };
const onKnownCards: ReadonlySet<ScenarioName> = new Set(['known', 'detokenize', 'validate']);

/** A fresh server compiles its hot paths and PostgreSQL fills its buffers: the first seconds tell of that and not of the server. */
const settleSeconds = (options: Options): number => (options.seconds < 5 ? 2 : 5);

const progress = (line: string): void => void process.stderr.write(`${line}\n`);

/** Returns the exit code. */
async function main(options: Options, stack: AsyncDisposableStack): Promise<number> {
  if (options.draw.length > 0) return draw(options);
  if ((options.soak !== null || options.targets.includes('real')) && !hasVault()) throw new UsageError('there is no vault to measure (vault/bin/cofre.ts): use --target bare');
  const folder = mkdtempSync(join(tmpdir(), 'cofre-bench-'));
  // PostgreSQL may run as another user than this process; the folders below are closed by their owners.
  chmodSync(folder, 0o755);
  stack.defer(() => (options.keep ? progress(`left: ${folder}`) : rmSync(folder, { recursive: true, force: true })));
  if (options.soak !== null) return await runSoak(folder, options, progress, stack);

  const measurements: Measurement[] = [];
  for (const [i, configuration] of options.configurations.entries()) {
    progress(`${describe(configuration)} …`);
    await using servers = stack.use(new AsyncDisposableStack());
    const ownFolder = join(folder, String(i));
    // A database of millions of cards makes room for the next one.
    if (!options.keep) servers.defer(() => rmSync(ownFolder, { recursive: true, force: true }));
    measurements.push(...(await measureAll(ownFolder, options, configuration, servers)));
  }
  const comparisons = measurements.map(compare);
  console.log(table(comparisons));
  console.log(`\n${options.rounds} rounds of ${options.seconds} s, medians, checkpoints in all; ${availableParallelism()} cores (${cpus()[0]?.model.trim() ?? 'unknown'}), shared by client, server and PostgreSQL; Node ${process.version}`);
  if (options.json !== undefined) {
    const { json: _, svg: __, keep: ___, ...settings } = options;
    const machine = { cores: availableParallelism(), cpu: cpus()[0]?.model.trim() ?? null, node: process.version };
    writeFileSync(options.json, `${JSON.stringify({ at: new Date().toISOString(), machine, settings, comparisons, measurements }, null, 2)}\n`);
  }
  if (options.svg !== undefined) writeFileSync(options.svg, resultsChart(comparisons));
  return measurements.every(({ real, bare }) => [...real, ...bare].every((round) => Object.keys(failuresOf(round)).length === 0)) ? 0 : 1;
}

/** Every scenario in one configuration. */
async function measureAll(folder: string, options: Options, configuration: Configuration, stack: AsyncDisposableStack): Promise<Measurement[]> {
  const start = async (name: 'real' | 'bare'): Promise<Running | null> => {
    if (!options.targets.includes(name)) return null;
    const running = await startRunning(name, folder, options, configuration, progress, stack);
    progress(`${name}: ready, warming up for ${settleSeconds(options)} s …`);
    running.nextCard += (await running.client.run(jobOf(running, 'tokenize', fixedConnections, { seconds: settleSeconds(options) }))).cards;
    return running;
  };
  const real = await start('real');
  // It answers nothing else, and to fill its database may take minutes.
  const bare = options.scenarios.includes('tokenize') ? await start('bare') : null;

  if (real !== null && options.scenarios.some((name) => onKnownCards.has(name))) {
    progress(`real: ${options.known} cards to know …`);
    const result = await real.client.run(jobOf(real, 'tokenize', fixedConnections, { requests: options.known, remember: true }));
    if (Object.keys(result.failures).length > 0) progress(`real: ${JSON.stringify(result.failures)}`);
    real.nextCard += result.cards;
  }

  const measurements: Measurement[] = [];
  for (const scenario of options.scenarios) {
    for (const connections of scenario === 'tokenize' ? options.connections : [ownConnections[scenario] ?? fixedConnections]) {
      const rounds: { real: Round[]; bare: Round[] } = { real: [], bare: [] };
      for (let round = 1; round <= options.rounds; round++) {
        for (const running of scenario === 'tokenize' ? [real, bare] : [real]) {
          if (running === null) continue;
          const measured = await measure(running, scenario, connections, options);
          rounds[running.target.name].push(measured);
          progress(`${scenario} ${connections} ${running.target.name} ${round}/${options.rounds}: ${tell(measured)}`);
        }
      }
      if (rounds.real.length + rounds.bare.length > 0) measurements.push({ configuration, scenario, connections, ...rounds });
    }
  }
  return measurements;
}

function tell(round: Round): string {
  const failures = failuresOf(round);
  return [
    `${round.perSecond.toFixed(0)}${round.items > round.answered ? ' tokens' : ''}/s, p99 ${round.latencyMs.p99.toFixed(1)} ms`,
    ...(round.beside === null ? [] : [`beside ${round.beside.perSecond.toFixed(0)} tokens/s in batches`]),
    ...(round.database.checkpoints === 0 ? [] : [`checkpoints: ${round.database.checkpoints}`]),
    ...(Object.keys(failures).length === 0 ? [] : [JSON.stringify(failures)]),
  ].join(', ');
}

/** Charts of earlier runs. */
function draw({ draw: files, svg }: Options): number {
  const texts = files.map((file) => ({ file, text: readFileSync(file, 'utf8') }));
  const soaks = texts.filter(({ file }) => file.endsWith('.jsonl'));
  if (soaks.length > 0 && texts.length > 1) throw new UsageError('--draw takes the samples of one soak, or results');
  const chart = soaks.length > 0 ? soakChart(readSamples(soaks[0]!.text)) : resultsChart(texts.flatMap(({ text }) => (JSON.parse(text) as { comparisons: Comparison[] }).comparisons));
  writeFileSync(svg!, chart);
  return 0;
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
  const options = isKillCampaign(args) || isLogBench(args) ? null : readOptions(args);
  if (isLogBench(args)) process.exitCode = await runLogBench(args, stack);
  else if (isKillCampaign(args)) process.exitCode = await runKillCampaign(args, stack);
  else if (options === null) console.log(help);
  else process.exitCode = await main(options, stack);
} catch (error) {
  if (!interrupted) {
    console.error(`bench: ${(error as Error).message}`);
    process.exitCode = 2;
  }
} finally {
  await stack.disposeAsync();
  clearInterval(holdOpen);
}
