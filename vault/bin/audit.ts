/**
 * `cofre audit …`: what an auditor does with the log, on any machine. Only `export`, `search`, `prove` and `vkey` speak to a vault, and only if they are not
 * told otherwise; `restart` is the operator's, on the vault's own machine.
 */
import { checkProofCommand } from './audit/check-proof.ts';
import { exportCommand } from './audit/export.ts';
import { proveCommand } from './audit/prove.ts';
import { restartCommand } from './audit/restart.ts';
import { searchCommand } from './audit/search.ts';
import { verifyCommand } from './audit/verify.ts';
import { vkeyCommand } from './audit/vkey.ts';
import { runCommandOf } from './command-group.ts';
import type { Command } from './command-group.ts';

const usage = `cofre audit <command> [options]

Copies, verifies, searches and proves the log. Only export, search, prove and vkey speak to a vault, and restart needs its home; all else works on any
machine without one.

  export       copy the log to a folder or a bucket, or bring a copy up to date
  verify       verify a copy from its entries to its signed root, offline
  search       find entries by token, caller, tenant, action, outcome, code, purpose and time; itself an entry
  prove        write a proof that one entry is in the log
  check-proof  check such a proof, offline, and print the entry
  vkey         print the public key of the log
  restart      begin a new log after the database was restored from a backup

  --help       this, or the command's own help
`;

const commands: Readonly<Record<string, Command>> = {
  export: exportCommand,
  verify: verifyCommand,
  search: searchCommand,
  restart: restartCommand,
  prove: proveCommand,
  'check-proof': checkProofCommand,
  vkey: vkeyCommand,
};

/** Runs one command of the auditor's. @returns the exit code. */
export async function audit(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  return await runCommandOf({ group: 'audit', usage, commands }, argv, env);
}
