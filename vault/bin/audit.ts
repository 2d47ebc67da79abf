/**
 * `cofre audit …`: what an auditor does with the log, on any machine. Only `export`, `search`, `prove` and `vkey` speak to a vault, and only if they are not
 * told otherwise; `restart` is the operator's, on the vault's own machine.
 */
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { ParseArgsOptionsConfig } from 'node:util';
import { fileURLToPath } from 'node:url';
import { ConfigError } from '../config.ts';
import { checkProofCommand } from './audit/check-proof.ts';
import { UsageError } from './audit/command.ts';
import type { Command } from './audit/command.ts';
import { exportCommand } from './audit/export.ts';
import { proveCommand } from './audit/prove.ts';
import { restartCommand } from './audit/restart.ts';
import { searchCommand } from './audit/search.ts';
import { verifyCommand } from './audit/verify.ts';
import { vkeyCommand } from './audit/vkey.ts';
import { explain } from './explain.ts';

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
  const [name, ...rest] = argv;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(usage);
    return name === undefined ? 2 : 0;
  }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (command === undefined) {
    process.stderr.write('cofre audit: there is no command of that name; cofre audit --help lists them\n');
    return 2;
  }
  const options: ParseArgsOptionsConfig = { help: { type: 'boolean', short: 'h' }, home: { type: 'string' } };
  for (const option of command.options) options[option.replace('*', '')] = { type: 'string', multiple: true };
  for (const flag of command.flags) options[flag] = { type: 'boolean' };
  let values: Readonly<Record<string, unknown>>;
  let words: readonly string[];
  try {
    ({ values, positionals: words } = parseArgs({ args: rest, options, allowPositionals: true }));
  } catch {
    process.stderr.write(`cofre audit ${name}: an option is not understood; cofre audit ${name} --help lists them\n`);
    return 2;
  }
  if (values['help'] === true) {
    process.stdout.write(command.help);
    return 0;
  }
  const given: Record<string, readonly string[]> = {};
  for (const option of ['home', ...command.options]) {
    const key = option.replace('*', '');
    const value = values[key];
    given[key] = typeof value === 'string' ? [value] : ((value as string[] | undefined) ?? []);
  }
  const refusal = refusalOf(command, given, words);
  if (refusal !== null) {
    process.stderr.write(`cofre audit ${name}: ${refusal}\n`);
    return 2;
  }
  const home = resolve(given['home']?.[0] ?? (env['COFRE_HOME'] || fileURLToPath(new URL('../../.cofre', import.meta.url))));
  const flags = new Set(command.flags.filter((flag) => values[flag] === true));
  try {
    return await command.run({ name, options: given, flags, words, home, env });
  } catch (error) {
    process.stderr.write(`${error instanceof UsageError ? `cofre audit ${name}` : 'cofre'}: ${explain(error)}\n`);
    if (env['COFRE_DEBUG'] === '1' && error instanceof Error) process.stderr.write(`${error.stack ?? ''}\n`);
    return error instanceof UsageError || error instanceof ConfigError ? 2 : 1;
  }
}

function refusalOf(command: Command, given: Readonly<Record<string, readonly string[]>>, words: readonly string[]): string | null {
  for (const option of ['home', ...command.options]) {
    const key = option.replace('*', '');
    // Empty is what a script passes whose variable is not set.
    if (given[key]!.includes('')) return `--${key} is empty`;
    if (given[key]!.length > 1 && !option.endsWith('*')) return `--${key} is given twice`;
  }
  if (words.includes('')) return 'a name is empty';
  const [least, most] = command.words;
  if (words.length < least) return `${/^\S+ \S+ \S+ (\S+)/u.exec(command.help)?.[1] ?? 'a name'} is needed`;
  return words.length > most ? 'more is given than it takes' : null;
}
