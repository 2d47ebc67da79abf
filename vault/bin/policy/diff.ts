/** `cofre policy diff`: what a change of policies gives and takes away. */
import { differenceOf, grantsOf, namedBy, namedByBoth } from '../../access-review.ts';
import { vaultHelp, vaultOptions } from '../audit/vault-and-copy.ts';
import type { Call, Command } from '../command-group.ts';
import { grantsTable } from './grants-table.ts';
import { openSet } from './sets.ts';

export const diffCommand: Command = {
  help: `cofre policy diff BEFORE AFTER [options]

Asks both sets about every caller that either names, every action, purpose and tenant, and prints what somebody may do under one and not under the
other. A set is a folder, or the digest of one that a vault had in force. Exit code 0 if they allow the same, 1 if not.

  --json        {"gained": […], "lost": […]} instead of a table
${vaultHelp}`,
  options: vaultOptions,
  flags: ['json'],
  words: [2, 2],
  run,
};

async function run(call: Call): Promise<number> {
  const [before, after] = [await openSet(call, call.words[0]!), await openSet(call, call.words[1]!)];
  const both = namedByBoth(namedBy(before.files), namedBy(after.files));
  const { gained, lost } = differenceOf(grantsOf(before, both), grantsOf(after, both));
  if (call.flags.has('json')) process.stdout.write(`${JSON.stringify({ before: before.digest, after: after.digest, gained, lost })}\n`);
  else if (gained.length + lost.length === 0) process.stdout.write('both allow the same\n');
  else process.stdout.write(`${[...grantsTable(gained, '+ '), ...grantsTable(lost, '- ')].join('\n')}\n`);
  return gained.length + lost.length === 0 ? 0 : 1;
}
