/** `cofre audit restart`: begins a new log over a database that was restored. The operator's, on the vault's own machine. */
import { resolve } from 'node:path';
import { loadConfig } from '../../config.ts';
import { count } from '../progress.ts';
import type { Call, Command } from '../command-group.ts';

export const restartCommand: Command = {
  help: `cofre audit restart [--home DIR] [--config FILE] [--json]

Begins a new log that names the one that was witnessed, on the machine of a vault that is stopped, after its database was restored from an older backup: the
vault does not start over such a log by itself. What was signed since the backup stays signed, and only copies of the old log hold it.

  --config FILE  configuration; default cofre.config.yaml in the home, else the defaults of development
  --home DIR     state of the vault; default COFRE_HOME, else .cofre beside the package
`,
  options: ['config'],
  flags: ['json'],
  words: [0, 0],
  run,
};

async function run(call: Call): Promise<number> {
  const { restartLogOf } = await import('../restart-log.ts');
  const file = call.options['config']?.[0];
  const config = loadConfig({ home: call.home, file: file === undefined ? null : resolve(file), env: call.env });
  const { origin, predecessor, had, carried, movedAside } = await restartLogOf(call.home, config, call.env);
  if (call.flags.has('json')) process.stdout.write(`${JSON.stringify({ origin, predecessor: { origin: predecessor.origin, size: predecessor.size, root: predecessor.root.toString('base64') }, had, carried, moved_aside: movedAside })}\n`);
  else {
    process.stdout.write(`${origin} begins; it names ${predecessor.origin} with ${count(predecessor.size)} entries, of which the database has ${count(had)}\n`);
    if (carried > 0) process.stdout.write(`${count(carried)} writers go on in it\n`);
    for (const path of movedAside) process.stdout.write(`moved aside: ${path}\n`);
  }
  return 0;
}
