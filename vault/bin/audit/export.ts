/** `cofre audit export`: copies the log to where its auditor has it. */
import { exportLog } from '../../../audit/export.ts';
import { keysOf } from '../../../audit/log-keys.ts';
import { logSource, logTarget, readVkey } from '../../../audit/log-source.ts';
import { count, openProgress } from '../progress.ts';
import type { Call, Command } from '../command-group.ts';
import { originOf, readKey, vaultKey, vkeyOf } from './log-key.ts';
import { copyFiles, vaultFiles, vaultHelp, vaultOptions } from './vault-and-copy.ts';

export const exportCommand: Command = {
  help: `cofre audit export DIR|s3://BUCKET/PREFIX [--vkey KEY] [--json] [options]

Copies the log as plain files (c2sp.org/tlog-tiles), only what the copy does not have yet. Every file is held against the signed
checkpoint before it is written, and the new checkpoint must continue the copy's own. It may be interrupted at any time.

  --vkey KEY    public key of the log, or a file that holds it; default what the vault says
${vaultHelp}`,
  options: ['vkey', ...vaultOptions],
  flags: ['json'],
  words: [1, 1],
  run,
};

async function run(call: Call): Promise<number> {
  const [address = ''] = call.words;
  const vault = vaultFiles(call);
  const copy = await copyFiles(address, call.env);
  try {
    const kept = await readVkey(copy);
    const vkey = call.options['vkey']?.[0] === undefined ? await vaultKey(vault) : readKey(call.options['vkey'][0]);
    const source = logSource(vault);
    const target = logTarget(copy);
    const origins = [originOf(await source.checkpoint()), originOf(await target.checkpoint())];
    const verifiers = origins.flatMap((origin) => keysOf(vkey, origin)?.checkpoint ?? []);
    const progress = openProgress('exported');
    const exported = await exportLog(source, target, { verifiers, onProgress: ({ done, total }) => progress.update(done, total) }).finally(() => progress.end());
    const { origin, size, root } = exported.checkpoint;
    // For whoever finds the copy; who verifies it has the key from elsewhere.
    const text = vkeyOf(keysOf(vkey, origin)!.checkpoint);
    if (kept !== text) await target.put('vkey', Buffer.from(`${text}\n`));
    const added = size - exported.from;
    process.stdout.write(call.flags.has('json') ? `${JSON.stringify({ origin, size, root: root.toString('base64'), added, target: address })}\n` : `${address}: ${count(size)} entries of ${origin}, ${added === 0 ? 'as before' : `${count(added)} of them new`}\n`);
    return 0;
  } finally {
    vault.close();
    copy.close();
  }
}
