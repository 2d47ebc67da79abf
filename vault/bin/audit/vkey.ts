/** `cofre audit vkey`: prints the public key of a vault's log. */
import type { Call, Command } from '../command-group.ts';
import { vaultKey, vkeyOf } from './log-key.ts';
import { vaultFiles, vaultHelp, vaultOptions } from './vault-and-copy.ts';

export const vkeyCommand: Command = {
  help: `cofre audit vkey [options]

Prints the public key of the vault's log, in the form that public tools take.

${vaultHelp}`,
  options: vaultOptions,
  flags: [],
  words: [0, 0],
  run,
};

async function run(call: Call): Promise<number> {
  const vault = vaultFiles(call);
  try {
    process.stdout.write(`${vkeyOf(await vaultKey(vault))}\n`);
    return 0;
  } finally {
    vault.close();
  }
}
