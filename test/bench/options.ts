/** What `npm run bench` can be told. */
import { parseArgs } from 'node:util';
import type { ScenarioName } from './scenario.ts';

export const help = `npm run bench -- [options]

  --seconds N         counted time of one round (5)
  --rounds N          rounds of each target and scenario (5)
  --connections LIST  for tokenize (1,64,256); batch uses 4, mixed 16, the others 64
  --only LIST         of tokenize, known, detokenize, validate, batch, mixed (all); mixed is single tokenize calls beside a full load of batches
  --target LIST       of real, bare (both); bare answers tokenize only
  --quick             2 rounds of 2 seconds, 64 connections: a check, not a measurement
  --warmup N          seconds of load before each counted time (1)
  --known N           cards behind known, detokenize and validate (20000)
  --bare-pool N       database connections of a bare process (16)
  --bare-processes N  processes of the bare server (as many as the vault's)

Each is measured anew for every combination of:
  --workers LIST      serving processes of the vault (1)
  --custody LIST      of envelope, direct (envelope)
  --existing LIST     cards that the database holds already (0): 20000000 take some minutes and 8 GB for each target, and as much WAL meanwhile

  --checkpoints N     PostgreSQL begins a checkpoint every N seconds, 30 at least, and spreads it over nine tenths of them; otherwise every 15 minutes.
                      Long enough rounds then hold some: the table tells how many were completed in the counted time
  --shared-buffers S  memory that PostgreSQL keeps pages in (256MB, as the vault's own has it): a server for many millions of cards is given a quarter of its machine's

Instead of measuring:
  --soak [MINUTES]    a steady load of all kinds of calls (60); samples of memory, heap, event loop, database and throughput go to a file of JSON lines, and
                      the last line says how they went. With --workers, --custody, --existing and --checkpoints, one of each
  --load SHARE        of the soak's usual rates, 1 by default: about 3,200 single calls and 5,000 cards in batches a second
  --samples FILE      of the soak (soak.jsonl)
  --draw LIST         draws the --json files or --samples of earlier runs into --svg
  --log N             the log by itself: N entries written, sequenced, exported, verified and searched; --log N --help says more
  --kill N            N times kill -9 under load, then a reckoning; --kill N --help says more

  --json FILE         every round, as JSON
  --svg FILE          a chart of the results
  --keep              leaves the temporary folder

Exit code 1 if any answer was wrong or missing.`;

export const scenarioNames: readonly ScenarioName[] = ['tokenize', 'known', 'detokenize', 'validate', 'batch', 'mixed'];

export type Custody = 'envelope' | 'direct';

/** What stands still while scenarios are measured. */
export interface Configuration {
  readonly workers: number;
  readonly custody: Custody;
  /** Cards in the database before the first of ours. */
  readonly existing: number;
}

export interface Options {
  readonly seconds: number;
  readonly rounds: number;
  readonly warmup: number;
  readonly known: number;
  readonly connections: readonly number[];
  readonly scenarios: readonly ScenarioName[];
  readonly targets: readonly string[];
  readonly configurations: readonly Configuration[];
  readonly barePool: number;
  /** null: as many as the vault has. */
  readonly bareProcesses: number | null;
  /** Seconds between two checkpoints; null: as the vault's own PostgreSQL has it. */
  readonly checkpointSeconds: number | null;
  /** PostgreSQL's shared_buffers, in its notation; null: as the vault's own PostgreSQL has it. */
  readonly sharedBuffers: string | null;
  readonly soak: { readonly minutes: number; readonly load: number; readonly samplesFile: string } | null;
  readonly draw: readonly string[];
  readonly json: string | undefined;
  readonly svg: string | undefined;
  readonly keep: boolean;
}

export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** Reads the arguments; null if they ask for help. Throws UsageError, or what parseArgs throws, for those that make no sense. */
export function readOptions(args: readonly string[]): Options | null {
  const text = { type: 'string' } as const;
  const flag = { type: 'boolean', default: false } as const;
  const { values } = parseArgs({
    args: withSoakMinutes(args),
    options: {
      seconds: text, rounds: text, warmup: text, known: text, connections: text, only: text, target: text, quick: flag, 'bare-pool': text, 'bare-processes': text, workers: text, custody: text,
      existing: text, checkpoints: text, 'shared-buffers': text, soak: text, load: text, samples: text, draw: text, json: text, svg: text, keep: flag, help: { ...flag, short: 'h' },
    },
  });
  if (values.help) return null;
  const number = (name: string, given: string | undefined, otherwise: number, lowest: number): number => {
    const value = given === undefined ? otherwise : Number(given);
    if (!Number.isFinite(value) || value < lowest) throw new UsageError(`--${name} is no number, or below ${lowest}`);
    return value;
  };
  const count = (name: string, given: string | undefined, otherwise: number, lowest: number): number => {
    const value = number(name, given, otherwise, lowest);
    if (!Number.isSafeInteger(value)) throw new UsageError(`--${name} is not a whole number`);
    return value;
  };
  const choice = <T extends string>(name: string, given: string | undefined, all: readonly T[], otherwise: readonly T[]): readonly T[] => {
    const chosen = given?.split(',') ?? otherwise;
    const unknown = chosen.find((one) => !(all as readonly string[]).includes(one));
    if (unknown !== undefined) throw new UsageError(`--${name} is of ${all.join(', ')}`);
    return chosen as readonly T[];
  };
  const workers = (values.workers ?? '1').split(',').map((one) => count('workers', one, 1, 1));
  const existing = (values.existing ?? '0').split(',').map((one) => count('existing', one, 0, 0));
  const custodies = choice('custody', values.custody, ['envelope', 'direct'], ['envelope']);
  const configurations = existing.flatMap((cards) => custodies.flatMap((custody) => workers.map((processes) => ({ workers: processes, custody, existing: cards }))));
  const soak = values.soak === undefined ? null : { minutes: number('soak', values.soak, 60, 0.1), load: number('load', values.load, 1, 0.01), samplesFile: values.samples ?? 'soak.jsonl' };
  if (soak !== null && configurations.length > 1) throw new UsageError('--soak takes one --workers, --custody and --existing');
  if (soak === null && (values.load !== undefined || values.samples !== undefined)) throw new UsageError('--load and --samples are of --soak');
  if (values.draw !== undefined && values.svg === undefined) throw new UsageError('--draw needs --svg');
  const sharedBuffers = values['shared-buffers'];
  if (sharedBuffers !== undefined && !/^[1-9][0-9]{0,5}(MB|GB)$/u.test(sharedBuffers)) throw new UsageError('--shared-buffers is a number of MB or GB, as 4GB');
  return {
    seconds: number('seconds', values.seconds, values.quick ? 2 : 5, 0.1),
    rounds: count('rounds', values.rounds, values.quick ? 2 : 5, 1),
    warmup: number('warmup', values.warmup, 1, 0),
    known: count('known', values.known, values.quick ? 2000 : 20_000, 1),
    connections: values.connections?.split(',').map((one) => count('connections', one, 0, 1)) ?? (values.quick ? [64] : [1, 64, 256]),
    scenarios: choice('only', values.only, scenarioNames, scenarioNames),
    targets: choice('target', values.target, ['real', 'bare'], ['real', 'bare']),
    configurations,
    barePool: count('bare-pool', values['bare-pool'], 16, 1),
    bareProcesses: values['bare-processes'] === undefined ? null : count('bare-processes', values['bare-processes'], 1, 1),
    checkpointSeconds: values.checkpoints === undefined ? null : count('checkpoints', values.checkpoints, 0, 30),
    sharedBuffers: sharedBuffers ?? null,
    soak,
    draw: values.draw?.split(',') ?? [],
    json: values.json,
    svg: values.svg,
    keep: values.keep,
  };
}

/** parseArgs knows no option whose value may be left out. */
function withSoakMinutes(args: readonly string[]): string[] {
  return args.flatMap((arg, i) => (arg === '--soak' && !/^[0-9.]+$/.test(args[i + 1] ?? '') ? ['--soak', '60'] : [arg]));
}
