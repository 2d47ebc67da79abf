/** `cofre policy restore`: a set that was in force once, as files again. */
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { vaultHelp, vaultOptions } from '../audit/vault-and-copy.ts';
import type { Call, Command } from '../command-group.ts';
import { fetchSet } from './sets.ts';

export const restoreCommand: Command = {
  help: `cofre policy restore DIGEST DIR [options]

Writes the set of policies with that digest, as the vault kept it and the log names it, to a folder that is new or empty. To go back to it, put the
files in the place of the vault's and send SIGHUP.

${vaultHelp}`,
  options: vaultOptions,
  flags: [],
  words: [2, 2],
  run,
};

async function run(call: Call): Promise<number> {
  const [digest, to] = [call.words[0]!, resolve(call.words[1]!)];
  if (existsSync(to) && readdirSync(to).length > 0) throw new Error(`${to}: is not empty`);
  const files = await fetchSet(call, digest);
  // By the digest they are what was in force; a name that leads elsewhere was never a file of a folder.
  for (const name of files.keys()) if (!/^[^/\0]+\.(cedar|cedarschema)$/u.test(name)) throw new Error('the set holds a file with a name that no set has');
  mkdirSync(to, { recursive: true });
  for (const [name, text] of files) writeFileSync(join(to, name), text, { flag: 'wx' });
  process.stdout.write(`${files.size} files in ${to}\n`);
  return 0;
}
