/**
 * What `npm run fuzz` runs: each target for a minute, or for `--seconds N`; `--target NAME` for one alone, `--seed N` to begin as an earlier run did, `--keep` to put the few inputs that reach most into test/fuzz/corpus. Ends with `N passed, N failed`. An input for which something does not hold, or that hangs, is written to a file under COFRE_HOME.
 *
 * What a run learned is the next one's start. `npm test` tries those in test/fuzz/corpus; one that found something belongs there once it is mended.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import type { Order, Outcome } from './campaign.ts';
import { writeInput } from './corpus.ts';
import { targetNames } from './target.ts';

/** An execution that takes longer hangs. */
const hangMs = 30_000;
const maxInputBytes = 64 * 1024;

const { values } = parseArgs({ options: { seconds: { type: 'string', default: '60' }, target: { type: 'string' }, seed: { type: 'string' }, keep: { type: 'boolean', default: false } } });
const seconds = Number(values.seconds);
const chosen = targetNames.filter((name) => values.target === undefined || name === values.target);
if (!(seconds > 0) || chosen.length === 0) {
  console.error(`usage: npm run fuzz -- [--seconds N] [--target ${targetNames.join('|')}] [--seed N] [--keep]`);
  process.exit(2);
}
const home = process.env['COFRE_HOME'];
if (home === undefined) throw new Error('COFRE_HOME is not set: npm run fuzz sets it');

let failed = 0;
for (const target of chosen) {
  const seed = values.seed === undefined ? 1 + Math.floor(Math.random() * 0x7fff_ffff) : Number(values.seed);
  const folder = join(home, 'fuzz', target);
  mkdirSync(folder, { recursive: true });
  console.log(`# ${target} (seed ${seed})`);
  const { executions, seconds: took, branches, corpus, finding } = await campaign({ target, seconds, seed, folder, keep: values.keep, shared: new SharedArrayBuffer(8 + maxInputBytes) });
  console.log(`  ${executions} executions in ${took.toFixed(0)} s (${Math.round(executions / took)} a second), ${corpus} inputs kept${branches === 0 ? '' : `, ${branches} branches`}`);
  if (finding === null) console.log('  ok');
  else {
    console.log(`  FAILED ${finding.message}${finding.file === null ? '' : `\n  the input: ${finding.file}`}`);
    failed++;
  }
}
console.log(`${chosen.length - failed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;

/** Runs one target in a worker, and ends it where it hangs. */
async function campaign(order: Order): Promise<Outcome> {
  const worker = new Worker(new URL('campaign.ts', import.meta.url), {
    workerData: order,
    // Stripping types by hand is.
    execArgv: ['--disable-warning=ExperimentalWarning'],
  });
  const shared = new DataView(order.shared);
  const { promise, resolve, reject } = Promise.withResolvers<Outcome>();
  const began = performance.now();
  let last = { executions: 0, at: began };
  const watch = setInterval(() => {
    const executions = shared.getUint32(0);
    if (executions !== last.executions) last = { executions, at: performance.now() };
    // Before the first one, an appliance may have to start.
    else if (executions > 0 && performance.now() - last.at > hangMs) {
      const file = writeInput(join(order.folder, 'findings'), new Uint8Array(order.shared, 8, shared.getUint32(4)), 'hang-');
      resolve({ executions, seconds: (performance.now() - began) / 1000, branches: 0, corpus: 0, finding: { message: 'an execution hangs', file } });
      void worker.terminate();
    }
  }, 1000);
  worker.once('message', resolve);
  worker.once('error', reject);
  worker.once('exit', (code) => (code === 0 ? undefined : reject(new Error('the campaign ended early'))));
  try {
    return await promise;
  } finally {
    clearInterval(watch);
  }
}
