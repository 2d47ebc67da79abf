/** `cofre policy check`: the checks that a vault makes before it takes a set of policies, without a vault. */
import { PolicySetError } from '../../policy.ts';
import type { Call, Command } from '../command-group.ts';
import { configuredFolder, openSet } from './sets.ts';

export const checkCommand: Command = {
  help: `cofre policy check [DIR] [--json] [--home DIR]

Checks a folder of Cedar policies (the home's own unless named) as the vault does at its start and on SIGHUP: syntax, strict validation against the
schema, an @id for every policy, nothing granted to callers that no policy names, and somebody who may administer. Exit code 1 if it would be refused.

  --json      the digest and ids, or the findings, as JSON
  --home DIR  state of a vault on this machine; default COFRE_HOME, else .cofre beside the package
`,
  options: [],
  flags: ['json'],
  words: [0, 1],
  run,
};

async function run(call: Call): Promise<number> {
  const folder = call.words[0] ?? configuredFolder(call);
  const json = call.flags.has('json');
  try {
    const { digest, policyIds } = await openSet(call, folder);
    process.stdout.write(json ? `${JSON.stringify({ ok: true, digest, policies: policyIds })}\n` : `${policyIds.length} policies, digest ${digest}: in order\n`);
    return 0;
  } catch (error) {
    if (!(error instanceof PolicySetError)) throw error;
    const findings = error.message.split('\n');
    if (json) process.stdout.write(`${JSON.stringify({ ok: false, findings })}\n`);
    else process.stderr.write(`${findings.join('\n')}\n`);
    return 1;
  }
}
