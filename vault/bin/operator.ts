/** `cofre operator …`: the people who run the vault. */
import { runCommandOf } from './command-group.ts';
import type { Command } from './command-group.ts';
import { initCommand } from './operator/ceremony.ts';
import { enrolCommand, listCommand, loginCommand, logoutCommand } from './operator/login.ts';

const usage = `cofre operator <command> [options]

The people who run the vault: each has a client certificate, a password and an authenticator. What one asks for another approves: cofre change --help.

  init    invite the first operators, on the machine of a vault that is stopped
  enrol   turn an invitation into a password and an authenticator
  login   open a session
  logout  end it
  list    the operators and their states

  --help  this, or the command's own help
`;

const commands: Readonly<Record<string, Command>> = { init: initCommand, enrol: enrolCommand, login: loginCommand, logout: logoutCommand, list: listCommand };

/** Runs one command about operators. @returns the exit code. */
export async function operator(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  return await runCommandOf({ group: 'operator', usage, commands }, argv, env);
}
