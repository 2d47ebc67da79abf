/**
 * `bench --kill`: ends processes of the vault and of its PostgreSQL with kill -9, at random moments under load, and reckons with all that stands
 * afterwards (test/support/ledger.ts). The seed repeats the dice, of kills and of calls; the moments themselves are the machine's.
 */
import { readFileSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { plainLines, freePort, startAppliance, until, type Appliance } from '../support/appliance.ts';
import { auditCommands } from '../support/audit-commands.ts';
import { Ledger, diceOf } from '../support/ledger.ts';
import { describeProcesses } from './stalled.ts';

const help = `npm run bench -- --kill N [options]

  --seed S            repeats the dice of an earlier run (random)
  --workers W         serving processes of the vault (2)
  --every K           kills between two reckonings (50)
  --lanes L           calls under way at once (8)
  --keep              leaves the home of the vault if anything was wrong

Ends with exit code 1, and a list of what is wrong, if anything acknowledged was lost or anything was done twice.`;

/** What can be killed. `vault` is the serving process, or of several workers the primary. */
const kinds = ['vault', 'worker', 'backend', 'auxiliary', 'postmaster'] as const;
type Kind = (typeof kinds)[number];

/** Starts in a row that may fail although nothing was killed meanwhile: what was killed before them may still be recovering. */
const maxFailedStarts = 2;
const pauseMs = 25;
/** How long the load may stand still after a kill, in half minutes. */
const maxHalfMinutes = 4;

/** Whether the arguments ask for this and not for a measurement. */
export function isKillCampaign(args: readonly string[]): boolean {
  return args.some((arg) => arg === '--kill' || arg.startsWith('--kill='));
}

/** @returns the exit code. */
export async function runKillCampaign(args: readonly string[], stack: AsyncDisposableStack): Promise<number> {
  const { values } = parseArgs({ args: [...args], options: { kill: { type: 'string' }, seed: { type: 'string' }, workers: { type: 'string' }, every: { type: 'string' }, lanes: { type: 'string' }, keep: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } });
  if (values.help === true) {
    console.log(help);
    return 0;
  }
  const number = (name: 'kill' | 'seed' | 'workers' | 'every' | 'lanes', otherwise: number, lowest: number): number => {
    const value = Number(values[name] ?? otherwise);
    if (!Number.isSafeInteger(value) || value < lowest || value > 1e9) throw new Error(`--${name} is out of range: see --kill 1 --help`);
    return value;
  };
  const options = { kills: number('kill', 0, 1), seed: number('seed', Math.floor(Math.random() * 1e6), 0), workers: number('workers', 2, 1), every: number('every', 50, 1), lanes: number('lanes', 8, 1) };
  return await new Campaign(options).run(stack, values.keep === true);
}

interface CampaignOptions {
  readonly kills: number;
  readonly seed: number;
  readonly workers: number;
  readonly every: number;
  readonly lanes: number;
}

class Campaign {
  readonly #options: CampaignOptions;
  readonly #dice: (bound: number) => number;
  readonly #killed = new Map<Kind, number>();
  readonly #faults: string[] = [];
  /** Starts that ended with a line because something had been killed under them, by that line. */
  readonly #failedStarts = new Map<string, number>();
  #kills = 0;
  #startedMs = 0;
  #reckonedMs = 0;

  constructor(options: CampaignOptions) {
    this.#options = options;
    this.#dice = diceOf(options.seed, -1);
  }

  async run(stack: AsyncDisposableStack, keep: boolean): Promise<number> {
    const { kills, seed, workers, every, lanes } = this.#options;
    console.log(`${kills} kills, seed ${seed}, ${workers} serving process${workers === 1 ? '' : 'es'}: npm run bench -- --kill ${kills} --seed ${seed} --workers ${workers}`);
    // A worker that is started again would get another port if it were free to choose.
    const [port, adminPort] = [await freePort(), await freePort()];
    let left = false;
    const appliance = await startAppliance(
      { teardown: (end) => stack.defer(async () => (left ? undefined : await end())) },
      { config: { workers, events: { outbox: true }, tokens: { sweep_interval: '2s' }, log: { level: 'warn' } }, env: { COFRE_API_PORT: String(port), COFRE_ADMIN_PORT: String(adminPort) } },
    );
    const ledger = new Ledger(appliance, { port, seed, lanes, pauseMs, outbox: true });
    stack.defer(() => ledger.close());
    const progress = new Progress(kills);
    stack.defer(() => progress.end());
    this.#startedMs = performance.now();
    const show = (doing: string): void => progress.show(this.#kills, `${doing}  ${line(ledger)}`);

    ledger.resume();
    while (this.#kills < kills && this.#faults.length === 0) {
      await this.#strike(appliance, ledger);
      show('');
      if (this.#kills % every === 0 || this.#kills >= kills) await this.#reckon(appliance, ledger, this.#kills >= kills, show);
    }
    if (this.#faults.length === 0) await this.#verifyLog(appliance, stack);
    try {
      const { code, signal } = await appliance.stop();
      if (code !== 0) this.#faults.push(`the last stop ended with ${code ?? signal}`);
    } catch (error) {
      this.#faults.push((error as Error).message);
    }
    // What Node itself says of a primary that is gone before any code of ours runs is not ours to prevent.
    const ours = appliance.err.replaceAll(/^node:events:\d+\n(?:(?!^Node\.js)[^])*?_setupWorker[^]*?^Node\.js .*$/gmu, '');
    const told = plainLines(ours).filter((text) => !text.startsWith('cofre: '));
    if (told.length > 0) this.#faults.push(`standard error holds ${told.length} lines that are no message:\n${told.slice(0, 60).join('\n')}`);
    progress.end();

    const seconds = (performance.now() - this.#startedMs) / 1000;
    const calls = ledger.counts.acknowledged / (seconds - this.#reckonedMs / 1000);
    console.log(`${this.#kills} kills (${kinds.map((kind) => `${kind} ${this.#killed.get(kind) ?? 0}`).join(', ')}) in ${seconds.toFixed(0)} s: ${((this.#kills / seconds) * 60).toFixed(0)} a minute`);
    for (const [reason, count] of this.#failedStarts) console.log(`${count} starts failed under a kill and were repeated: ${reason}`);
    console.log(`${line(ledger)}; ${ledger.cards} cards, ${ledger.tokens} tokens; about ${calls.toFixed(0)} calls acknowledged a second`);
    if (this.#faults.length === 0) {
      console.log('nothing acknowledged was lost, nothing was done twice');
      return 0;
    }
    console.log(`\nWRONG (seed ${seed}):`);
    for (const fault of this.#faults) console.log(`- ${fault}`);
    if (keep) {
      left = true;
      writeFileSync(join(appliance.home, 'messages.log'), appliance.err);
      console.log(`left: ${appliance.home}, with what the vault said in messages.log`);
    }
    return 1;
  }

  /** Has an auditor copy the log and verify it against the last checkpoint that left the database. */
  async #verifyLog(appliance: Appliance, stack: AsyncDisposableStack): Promise<void> {
    const run = auditCommands({ teardown: (end) => stack.defer(end) });
    const env = { COFRE_HOME: appliance.home, COFRE_ADMIN_PORT: String(appliance.adminPort) };
    const copy = join(appliance.home, 'copy');
    const witness = join(appliance.home, 'witness');
    // What is witnessed now must be in the copy that is made next.
    const checkpoint = join(appliance.home, 'witnessed.jsonl');
    writeFileSync(checkpoint, readFileSync(join(witness, readdirSync(witness).sort().at(-1)!)));
    const exported = await run(['export', copy], env);
    const verified = exported.code === 0 ? await run(['verify', copy, '--vkey', join(copy, 'vkey'), '--checkpoint', checkpoint], env) : exported;
    if (verified.code === 0) console.log(`the log, as an auditor has it: ${verified.out.trim().split('\n').at(-1)}`);
    else this.#faults.push(`the log does not verify: ${verified.err}${verified.out}`);
  }

  /** Waits for a random moment, kills something, and starts again what does not start by itself. */
  async #strike(appliance: Appliance, ledger: Ledger): Promise<void> {
    const dice = this.#dice;
    // Mostly the load comes to its senses in between; at times one kill follows on another.
    if (dice(5) > 0) {
      const wanted = ledger.counts.acknowledged + 1 + dice(80);
      await this.#untilLoad(appliance, () => ledger.counts.acknowledged >= wanted);
    }
    await sleep(dice(400));
    if (!isRunning(appliance.pid)) this.#faults.push(`the vault ended by itself after kill ${this.#kills}: ${appliance.err.trim().split('\n').at(-1)}`);
    else if (this.#pick(appliance) === 'vault') await this.#startAgain(appliance);
  }

  /** Waits for the load to go on. A recovery may take its time (it flushes every file first), but is then shown to be under way: what PostgreSQL does after each half minute is told. */
  async #untilLoad(appliance: Appliance, goesOn: () => boolean): Promise<void> {
    const seen: string[] = [];
    for (let tries = 0; tries < maxHalfMinutes; tries += 1) {
      try {
        await until(goesOn, 'the load to go on');
        if (tries > 0) console.log(`after kill ${this.#kills} the load went on only after ${tries * 30} s and more:\n${seen.join('\n')}`);
        return;
      } catch {
        seen.push(`${new Date().toISOString()}:`, ...describeProcesses(dataFolderOf(appliance)).map((process) => `  ${process}`));
      }
    }
    this.#faults.push(`the load did not go on after kill ${this.#kills}:\n${seen.join('\n')}`);
  }

  async #startAgain(appliance: Appliance): Promise<void> {
    const dice = this.#dice;
    await appliance.kill9();
    for (let failed = 0; failed <= maxFailedStarts; ) {
      const before = this.#kills;
      const started = appliance.launch();
      // Now and then something is killed in the midst of the start as well.
      const timer = dice(4) === 0 ? setTimeout(() => this.#pick(appliance), dice(1800)) : null;
      const ended = await started;
      if (timer !== null) clearTimeout(timer);
      if (ended === null && isRunning(appliance.pid)) return;
      // Killed in the moment of being ready.
      if (ended === null) await appliance.kill9();
      else if (ended.signal !== 'SIGKILL') {
        const reason = plainLines(appliance.err).at(-1) ?? 'without a word';
        this.#failedStarts.set(reason, (this.#failedStarts.get(reason) ?? 0) + 1);
      }
      // What was killed just before may still be recovering; but not for ever.
      failed = this.#kills > before ? 0 : failed + 1;
    }
    this.#faults.push(`it does not start again: ${plainLines(appliance.err).at(-1)}`);
  }

  /** Kills one process of a random kind that is there. */
  #pick(appliance: Appliance): Kind {
    const victims = victimsOf(appliance);
    const present = kinds.filter((kind) => victims[kind].length > 0);
    const kind = present[this.#dice(present.length)]!;
    const pid = victims[kind][this.#dice(victims[kind].length)]!;
    this.#kill(kind, pid);
    return kind;
  }

  #kill(kind: Kind, pid: number): void {
    try {
      if (pid === 0) return;
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has just ended.
      return;
    }
    this.#kills += 1;
    this.#killed.set(kind, (this.#killed.get(kind) ?? 0) + 1);
  }

  async #reckon(appliance: Appliance, ledger: Ledger, whole: boolean, show: (doing: string) => void): Promise<void> {
    const sinceMs = performance.now();
    show('waiting for the load');
    await ledger.pause();
    await until(async () => await isReady(appliance), 'readiness').catch(() => this.#faults.push('it does not become ready again'));
    show('reckoning');
    this.#faults.push(...(await ledger.reckon(whole)));
    this.#reckonedMs += performance.now() - sinceMs;
    if (!whole) ledger.resume();
  }
}

async function isReady(appliance: Appliance): Promise<boolean> {
  try {
    return ((await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as { ok: boolean }).ok;
  } catch {
    return false;
  }
}

const text = (path: string): string => {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
};

function isRunning(pid: number): boolean {
  return pid > 0 && /^State:\s+[^ZX\s]/mu.test(text(`/proc/${pid}/status`));
}

function childrenOf(pid: number): number[] {
  return text(`/proc/${pid}/task/${pid}/children`).trim().split(' ').filter((child) => child !== '').map(Number);
}

function dataFolderOf(appliance: Appliance): string {
  return `${appliance.home}/postgres/cluster/data`;
}

/** The processes that are the vault's own: its serving processes by descent, PostgreSQL by its data folder. */
function victimsOf(appliance: Appliance): Readonly<Record<Kind, readonly number[]>> {
  const data = dataFolderOf(appliance);
  const postmaster = Number.parseInt(text(`${data}/postmaster.pid`), 10);
  const worksThere = (pid: number): boolean => {
    try {
      return readlinkSync(`/proc/${pid}/cwd`) === data;
    } catch {
      return false;
    }
  };
  const isPostmaster = Number.isInteger(postmaster) && worksThere(postmaster) && isRunning(postmaster);
  const below = isPostmaster ? childrenOf(postmaster).filter(worksThere) : [];
  const serves = (pid: number): boolean => text(`/proc/${pid}/cmdline`).includes('[local]');
  return {
    vault: [appliance.pid],
    worker: childrenOf(appliance.pid).filter((pid) => text(`/proc/${pid}/cmdline`).includes('\0worker\0')),
    backend: below.filter(serves),
    auxiliary: below.filter((pid) => !serves(pid)),
    postmaster: isPostmaster ? [postmaster] : [],
  };
}

function line({ counts, open }: Ledger): string {
  return `calls acknowledged ${counts.acknowledged}, unknown ${counts.unknown}, settled ${counts.settled}, open ${open}, refused for now ${counts.refused}`;
}

/** A bar on a terminal; elsewhere a line now and then. */
class Progress {
  readonly #of: number;
  #toldAt = Number.NEGATIVE_INFINITY;
  #open = false;

  constructor(of: number) {
    this.#of = of;
  }

  show(done: number, what: string): void {
    const full = Math.min(20, Math.floor((done / this.#of) * 20));
    const bar = `[${'#'.repeat(full)}${'.'.repeat(20 - full)}] kills ${done}/${this.#of} ${what}`;
    if (process.stderr.isTTY) {
      process.stderr.write(`\r\x1b[K${bar}`);
      this.#open = true;
    } else if (performance.now() - this.#toldAt > 15_000) {
      process.stderr.write(`${bar}\n`);
      this.#toldAt = performance.now();
    }
  }

  end(): void {
    if (this.#open) process.stderr.write('\n');
    this.#open = false;
  }
}
