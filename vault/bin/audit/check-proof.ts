/** `cofre audit check-proof`: checks a proof and prints the entry that it proves. */
import { keysOf } from '../../../audit/log-keys.ts';
import { checkProof, parseProof } from '../../../audit/proof.ts';
import { count } from '../progress.ts';
import type { Call, Command } from '../command-group.ts';
import { neededKey, originOf } from './log-key.ts';
import { readText } from './text-file.ts';

export const checkProofCommand: Command = {
  help: `cofre audit check-proof FILE --vkey KEY [--json]

Checks a proof and prints the entry that it proves. Needs no vault. Exit code 1, and nothing on standard output, if it does not hold.

  --vkey KEY  public key of the log, or a file that holds it
  --json      the entry with its index and the log's size and root
`,
  options: ['vkey'],
  flags: ['json'],
  words: [1, 1],
  run,
};

async function run(call: Call): Promise<number> {
  const [file = ''] = call.words;
  const vkey = neededKey(call);
  let text;
  try {
    ({ text } = readText(file));
  } catch (error) {
    throw new Error(`${file}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`, { cause: error });
  }
  const proof = parseProof(text);
  if (proof === null) throw new Error(`${file}: is not a proof`);
  const keys = keysOf(vkey, originOf(proof.checkpoint));
  const checked = checkProof(proof, keys === null ? [] : [keys.checkpoint]);
  if (typeof checked === 'string') throw new Error(`${file}: does not hold: ${checked}`);
  const { entry, checkpoint } = checked;
  const { origin, size, root } = checkpoint;
  if (call.flags.has('json')) process.stdout.write(`${JSON.stringify({ index: proof.index, origin, size, root: root.toString('base64'), entry: entry.toString('utf8') })}\n`);
  else {
    process.stdout.write(`${entry.toString('utf8')}\n`);
    process.stderr.write(`is entry ${proof.index} of ${origin}, under a checkpoint of ${count(size)} entries\n`);
  }
  return 0;
}
