/**
 * One target, fuzzed for a while, guided by the branches of the vault that its inputs reach: an input that reaches a branch for the first time, or in a new order of magnitude, is kept and changed further. Runs in a worker of fuzz.ts, which sees when it hangs.
 */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { seeded } from '../support/made-cards.ts';
import { committedCorpus, holdsUnpublishedCard, readInputs, writeInput } from './corpus.ts';
import { counters, countBranchesOf, countersUsed, words } from './instrument.ts';
import { mutated } from './mutate.ts';
import { loadTarget, type TargetName } from './target.ts';

export interface Order {
  readonly target: TargetName;
  readonly seconds: number;
  readonly seed: number;
  /** Where its corpus and what it finds are kept. */
  readonly folder: string;
  /** Puts into the tree, when it is done, the few inputs that reach most. */
  readonly keep: boolean;
  /** Bytes 0 to 3 count the executions, 4 to 7 hold the length of the input that is under way, which follows. */
  readonly shared: SharedArrayBuffer;
}

export interface Outcome {
  readonly executions: number;
  readonly seconds: number;
  readonly branches: number;
  /** Inputs kept, those of before included. */
  readonly corpus: number;
  /** What did not hold, and the file with the input that shows it; null where it showed only at the end. */
  readonly finding: { readonly message: string; readonly file: string | null } | null;
}

/** Inputs that one campaign may add to the tree. */
const maxKept = 40;

const order = workerData as Order;
countBranchesOf(resolve(import.meta.dirname, '../../vault'));
const target = await loadTarget(order.target);
const dice = seeded(order.seed);
const dictionary = [...words, ...target.words].map((word) => Buffer.from(word, /^[\0-\xff]$/u.test(word) ? 'latin1' : 'utf8'));
const shared = new DataView(order.shared);
const current = new Uint8Array(order.shared, 8);

// For each counter the magnitudes seen, a bit each: 1, 2, 3, 4-7, 8-15, 16-31, 32-127, 128 and more.
const magnitude = new Uint8Array(256);
for (let k = 1; k < 256; k++) magnitude[k] = 1 << (k < 4 ? k - 1 : k < 8 ? 3 : k < 16 ? 4 : k < 32 ? 5 : k < 128 ? 6 : 7);
const seen = new Uint8Array(counters.length);
const ways = new Set<string>();
const corpus: Buffer[] = [];
let executions = 0;

/** Tries one input. Returns whether it reached something new. */
async function tried(input: Buffer): Promise<boolean> {
  shared.setUint32(4, input.length);
  current.set(input);
  let way: string | undefined;
  if (target.parallel === 1) {
    counters.fill(0, 0, countersUsed());
    way = target.run(input) as string | undefined;
  } else way = await target.run(input);
  shared.setUint32(0, ++executions);
  let isNew = way !== undefined && !ways.has(way);
  if (way !== undefined) ways.add(way);
  if (target.parallel === 1) {
    for (let k = countersUsed() - 1; k >= 0; k--) {
      const bit = magnitude[counters[k]!]!;
      if ((seen[k]! & bit) !== bit) {
        seen[k] = seen[k]! | bit;
        isNew = true;
      }
    }
  }
  return isNew;
}

const failureOf = async (input: Buffer): Promise<string | null> => {
  try {
    await tried(input);
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
};

/** The input without what it fails the same way without. Bounded; not the smallest there is. */
async function shrunk(input: Buffer, message: string): Promise<Buffer> {
  let small = input;
  let tries = target.parallel === 1 ? 5000 : 100;
  for (let size = small.length >> 1; size > 0 && tries > 0; size = size > 1 ? size >> 1 : 0) {
    for (let at = 0; at < small.length && tries > 0; tries--) {
      const without = Buffer.concat([small.subarray(0, at), small.subarray(at + size)]);
      if ((await failureOf(without)) === message) small = without;
      else at += size;
    }
  }
  return small;
}

/** Tries inputs, as many at once as the target allows; those that reach something new join the corpus. @returns the first that fails. */
async function tryAll(inputs: readonly Buffer[], keep: boolean): Promise<Buffer | null> {
  let failed: Buffer | null = null;
  await Promise.all(
    inputs.map(async (input) => {
      try {
        if (!(await tried(input))) return;
        corpus.push(input);
        if (keep) writeInput(join(order.folder, 'corpus'), input);
      } catch {
        failed ??= input;
      }
    }),
  );
  return failed;
}

async function fuzz(): Promise<Outcome> {
  const began = performance.now();
  const seconds = (): number => (performance.now() - began) / 1000;
  const outcome = (finding: Outcome['finding']): Outcome => ({ executions, seconds: seconds(), branches: seen.reduce((sum, bits) => sum + (bits === 0 ? 0 : 1), 0), corpus: corpus.length, finding });
  const ended = async (input: Buffer): Promise<Outcome> => {
    const message = await failureOf(input);
    // A failure that does not come again is one all the same.
    const small = message === null ? input : await shrunk(input, message);
    return outcome({ message: message ?? 'failed once, and not again', file: writeInput(join(order.folder, 'findings'), small) });
  };

  const known = [...readInputs(committedCorpus(order.target)), ...readInputs(join(order.folder, 'corpus'))].map(({ bytes }) => bytes.subarray(0, target.maxBytes));
  for (let at = 0; at < known.length; at += target.parallel) {
    const failed = await tryAll(known.slice(at, at + target.parallel), false);
    if (failed !== null) return await ended(failed);
  }
  if (corpus.length === 0) corpus.push(Buffer.alloc(0));
  while (seconds() < order.seconds) {
    // What came last is changed most: it has led to something that the others have not.
    const pick = (): Buffer => corpus[dice(2) === 0 ? dice(corpus.length) : Math.max(0, corpus.length - 1 - dice(20))]!;
    const inputs = Array.from({ length: target.parallel }, () => mutated(pick(), pick(), dictionary, target.maxBytes, dice));
    const failed = await tryAll(inputs, true);
    if (failed !== null) return await ended(failed);
  }
  return outcome(null);
}

/** Writes into the tree, shortest first, what of the corpus reaches a branch that nothing there reaches. */
async function keepFew(): Promise<void> {
  const committed = readInputs(committedCorpus(order.target)).map(({ bytes }) => bytes);
  const reached = new Set<number | string>();
  let room = maxKept;
  for (const input of [...committed, ...corpus.toSorted((a, b) => a.length - b.length)]) {
    counters.fill(0);
    // What counts is what the input does alone.
    ways.clear();
    const branches: (number | string)[] = [];
    await tried(input);
    for (let k = 0; k < countersUsed(); k++) if (target.parallel === 1 && counters[k] !== 0) branches.push(k);
    branches.push(...ways);
    if (branches.every((branch) => reached.has(branch))) continue;
    if (!committed.includes(input)) {
      if (room === 0 || holdsUnpublishedCard(input)) continue;
      writeInput(committedCorpus(order.target), input);
      room--;
    }
    for (const branch of branches) reached.add(branch);
  }
}

if (!existsSync(order.folder)) throw new Error('the folder for what is found is missing');
await target.open?.();
let result: Outcome | null = null;
try {
  result = await fuzz();
  if (order.keep && result.finding === null) await keepFew();
} finally {
  try {
    await target.close?.();
  } catch (error) {
    // What an input has shown counts more than what is left of it at the end.
    if (result?.finding === null) result = { ...result, finding: { message: (error as Error).message, file: null } };
  }
}
// oxlint-disable-next-line unicorn/require-post-message-target-origin -- a worker's port has no origin
parentPort!.postMessage(result);
