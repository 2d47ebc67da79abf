/** `cofre audit prove`: writes the proof that one entry is in the log. */
import { openCheckpoint, parseCheckpoint } from '../../../audit/checkpoint.ts';
import { decodeBundle } from '../../../audit/entry.ts';
import { keysOf } from '../../../audit/log-keys.ts';
import { logSource, readBundle, readTile } from '../../../audit/log-source.ts';
import type { LogSource } from '../../../audit/log-source.ts';
import { inclusionProof, leafHash, verifyInclusion } from '../../../audit/merkle.ts';
import type { NoteVerifier } from '../../../audit/note.ts';
import { encodeProof } from '../../../audit/proof.ts';
import { tilePath, tileReader, tileWidth, tileWidthAt } from '../../../audit/tiles.ts';
import { count } from '../progress.ts';
import { UsageError } from '../command-group.ts';
import type { Call, Command } from '../command-group.ts';
import { originOf, readKey, vaultKey } from './log-key.ts';
import { writeWhole } from './text-file.ts';
import { copyFiles, vaultFiles, vaultHelp, vaultOptions } from './vault-and-copy.ts';

export const proveCommand: Command = {
  help: `cofre audit prove INDEX [--from DIR|s3://BUCKET/PREFIX] [--out FILE] [--vkey KEY] [options]

Writes a proof (c2sp.org/tlog-proof) that the entry with this index is in the log. It holds the entry, and is checked with nothing but
the log's public key. A vault proves entries of the log in use; those of one before it are proven from a copy of that.

  --from ADDRESS  take it from a copy; default from the vault
  --out FILE      where to write it; default standard output
  --vkey KEY      public key of the log, or a file that holds it, which the checkpoint is then held against
${vaultHelp}`,
  options: ['from', 'out', 'vkey', ...vaultOptions],
  flags: [],
  words: [1, 1],
  run,
};

async function run(call: Call): Promise<number> {
  const [word = ''] = call.words;
  const index = /^(?:0|[1-9][0-9]{0,15})$/u.test(word) ? Number(word) : Number.NaN;
  if (!Number.isSafeInteger(index)) throw new UsageError('INDEX is to be the number of an entry, from 0 on');
  const from = call.options['from']?.[0];
  const files = from === undefined ? vaultFiles(call) : await copyFiles(from, call.env);
  try {
    const given = call.options['vkey']?.[0];
    // A vault that was reached by its certificate says itself which key it has.
    const vkey = given === undefined ? (from === undefined ? await vaultKey(files) : null) : readKey(given);
    const text = await proofOf(logSource(files), index, vkey);
    const out = call.options['out']?.[0];
    if (out === undefined) process.stdout.write(text);
    else {
      await writeWhole(out, text);
      process.stdout.write(`${out}: the proof of entry ${index}\n`);
    }
    return 0;
  } finally {
    files.close();
  }
}

/** The text of a proof that holds. @throws Error of one line if the log does not give one. */
async function proofOf(source: LogSource, index: number, vkey: NoteVerifier | null): Promise<string> {
  const note = await source.checkpoint();
  if (note === null) throw new Error('there is no checkpoint: this is no log, or a copy of one that was never completed');
  const keys = vkey === null ? null : keysOf(vkey, originOf(note));
  const checkpoint = vkey === null ? parseCheckpoint(note.slice(0, note.lastIndexOf('\n\n') + 1)) : keys === null ? null : openCheckpoint(note, [keys.checkpoint]);
  if (checkpoint === null) throw new Error('the checkpoint is not signed by the log\'s key');
  const { size, root } = checkpoint;
  if (index >= size) throw new Error(`the log has ${count(size)} entries under a checkpoint, so there is no entry ${index} yet`);
  const bundleIndex = Math.floor(index / tileWidth);
  const reader = tileReader(size, async (ref) => {
    const tile = await readTile(source, ref);
    if (tile === null) throw new Error(`${tilePath(ref)} is missing`);
    return tile;
  });
  const [bundle, hashes] = await Promise.all([readBundle(source, { index: bundleIndex, width: tileWidthAt(0, bundleIndex, size) }), inclusionProof(index, size, reader)]);
  if (bundle === null) throw new Error(`the log does not hold entry ${index} any more: a copy does`);
  let entry;
  try {
    entry = decodeBundle(bundle)[index % tileWidth];
  } catch {
    entry = undefined;
  }
  if (entry === undefined || !verifyInclusion(leafHash(entry), index, size, root, hashes)) throw new Error(`entry ${index} is not what the checkpoint signs: cofre audit verify tells what is wrong`);
  return encodeProof({ index, hashes, checkpoint: note, extra: Buffer.from(entry) });
}
