/** `cofre operator init`: the first operators, from nothing. */
import { resolve } from 'node:path';
import { loadConfig } from '../../config.ts';
import type { Call, Command } from '../command-group.ts';

export const initCommand: Command = {
  help: `cofre operator init SPIFFE_ID… [--recover] [--home DIR] [--config FILE] [--json]

Invites the first operators, two people or more, on the machine of a vault that is stopped, and approves the policies and limits in force. Prints a code for each,
once: hand it to the person, who enrols with it within a day (cofre operator enrol). Refused once there are operators: they add others by a change.

  --recover      although there are operators: where too few are left to decide anything. The log has it as operator.recover.
  --config FILE  configuration; default cofre.config.yaml in the home, else the defaults of development
  --home DIR     state of the vault; default COFRE_HOME, else .cofre beside the package
`,
  options: ['config'],
  flags: ['json', 'recover'],
  words: [1, 20],
  run,
};

async function run(call: Call): Promise<number> {
  const { inviteFirstOperators } = await import('../operator-ceremony.ts');
  const file = call.options['config']?.[0];
  const config = loadConfig({ home: call.home, file: file === undefined ? null : resolve(file), env: call.env });
  const { invitations, policies, limits } = await inviteFirstOperators(call.home, config, call.env, call.words, call.flags.has('recover'));
  if (call.flags.has('json')) process.stdout.write(`${JSON.stringify({ invitations: invitations.map(({ operator, code, expiresAt }) => ({ operator, code, expires_at: expiresAt.toISOString() })), approved: { policies, limits } })}\n`);
  else {
    for (const { operator, code, expiresAt } of invitations) process.stdout.write(`${operator}\t${code}\tuntil ${expiresAt.toISOString()}\n`);
    process.stdout.write(`approved: policies ${policies}\napproved: limits ${limits}\n`);
  }
  return 0;
}
