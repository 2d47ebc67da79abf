/** `cofre policy …`: what a security officer and an assessor ask of the policies, before they are in force and long after. */
import { runCommandOf } from './command-group.ts';
import type { Command } from './command-group.ts';
import { checkCommand } from './policy/check.ts';
import { diffCommand } from './policy/diff.ts';
import { restoreCommand } from './policy/restore.ts';
import { whoCanCommand } from './policy/who-can.ts';

const usage = `cofre policy <command> [options]

Checks and compares sets of policies, and says who may do what, now or at a past moment.

  check    check a folder of policies as the vault does before it takes them
  diff     what anybody may do under one set and may not under another
  who-can  who may do something, for which purpose, and by which policies; with --at, at a past moment by what the log says
  restore  write a set that was in force to a folder, by its digest

  --help   this, or the command's own help
`;

const commands: Readonly<Record<string, Command>> = { check: checkCommand, diff: diffCommand, 'who-can': whoCanCommand, restore: restoreCommand };

/** Runs one command about policies. @returns the exit code. */
export async function policy(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  return await runCommandOf({ group: 'policy', usage, commands }, argv, env);
}
