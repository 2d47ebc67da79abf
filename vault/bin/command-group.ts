/** Commands that belong together, as `cofre audit …`: their options read, their errors told in one line. */
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { ParseArgsOptionsConfig } from 'node:util';
import { fileURLToPath } from 'node:url';
import { ConfigError } from '../config.ts';
import { explain } from './explain.ts';

/** What a command got: options of its own by name, each as often as it was given, and what stands alone. */
export interface Call {
  readonly name: string;
  readonly options: Readonly<Record<string, readonly string[]>>;
  readonly flags: ReadonlySet<string>;
  readonly words: readonly string[];
  readonly home: string;
  readonly env: NodeJS.ProcessEnv;
}

export interface Command {
  readonly help: string;
  /** Options with a value; those whose name ends in `*` may be given several times. `home` is everybody's. */
  readonly options: readonly string[];
  readonly flags: readonly string[];
  /** How many words it takes, at least and at most. */
  readonly words: readonly [number, number];
  /** @returns the exit code. @throws UsageError, or what is explained in one line with exit code 1. */
  run(call: Call): Promise<number>;
}

/** Something that was asked for in a way that is not understood: exit code 2. */
export class UsageError extends Error {}

export interface CommandGroup {
  /** As it is typed: `audit`. */
  readonly group: string;
  readonly usage: string;
  readonly commands: Readonly<Record<string, Command>>;
}

/** Runs one command of a group, `cofre <group> <command> …`. @returns the exit code. */
export async function runCommandOf({ group, usage, commands }: CommandGroup, argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const [name, ...rest] = argv;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(usage);
    return name === undefined ? 2 : 0;
  }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (command === undefined) {
    process.stderr.write(`cofre ${group}: there is no command of that name; cofre ${group} --help lists them\n`);
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
    process.stderr.write(`cofre ${group} ${name}: an option is not understood; cofre ${group} ${name} --help lists them\n`);
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
    process.stderr.write(`cofre ${group} ${name}: ${refusal}\n`);
    return 2;
  }
  const home = resolve(given['home']?.[0] ?? (env['COFRE_HOME'] || fileURLToPath(new URL('../../.cofre', import.meta.url))));
  const flags = new Set(command.flags.filter((flag) => values[flag] === true));
  try {
    return await command.run({ name, options: given, flags, words, home, env });
  } catch (error) {
    process.stderr.write(`${error instanceof UsageError ? `cofre ${group} ${name}` : 'cofre'}: ${explain(error)}\n`);
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
