/** `cofre audit verify`: recomputes a copy of the log from its entries, and tells what is wrong with it. */
import { verifyLog } from '../../../audit/fsck.ts';
import { logSource } from '../../../audit/log-source.ts';
import { count, openProgress } from '../progress.ts';
import { UsageError } from '../command-group.ts';
import type { Call, Command } from '../command-group.ts';
import { neededKey } from './log-key.ts';
import { readText } from './text-file.ts';
import { copyFiles } from './vault-and-copy.ts';

export const verifyCommand: Command = {
  help: `cofre audit verify DIR|s3://BUCKET/PREFIX --vkey KEY [--checkpoint FILE]... [--json]

Verifies a copy of the log: recomputes the tree from its entries, checks all signatures and the chain of every writer, and names what
is wrong. Needs no vault. Exit code 1 if anything is. Alerts that the vault itself put into its log (log.alert) are told of, and do not
change the exit code: the log holds them.

  --vkey KEY         public key of the log, or a file that holds it: got from the vault's owner, not from the copy
  --checkpoint FILE  a checkpoint that was kept from earlier, which the log must continue; of a witness file (.jsonl) the largest one
                     of each log. May be given several times. Without one, a log whose end was cut off looks like a shorter one.
  --json             the report as JSON
`,
  options: ['vkey', 'checkpoint*'],
  flags: ['json'],
  words: [1, 1],
  run,
};

async function run(call: Call): Promise<number> {
  const [address = ''] = call.words;
  const vkey = neededKey(call);
  const olderCheckpoints = (call.options['checkpoint'] ?? []).flatMap(readCheckpointFile);
  const copy = await copyFiles(address, call.env);
  const progress = openProgress('verified');
  const began = performance.now();
  const report = await verifyLog(logSource(copy), { vkey, olderCheckpoints, readAhead: address.startsWith('s3://') ? 16 : 4, onProgress: ({ done, total }) => progress.update(done, total) }).finally(() => {
    progress.end();
    copy.close();
  });
  const { holds, checkpoint, totals, findings, found, continued, earlier, alerts } = report;
  if (call.flags.has('json')) {
    process.stdout.write(`${JSON.stringify({ holds, origin: checkpoint?.origin ?? null, size: checkpoint?.size ?? null, root: checkpoint?.root.toString('base64') ?? null, totals, found, findings, continued, earlier, alerts })}\n`);
    return holds ? 0 : 1;
  }
  const lines = findings.map(({ code, message }) => `${code}: ${message}`);
  if (found > findings.length) lines.push(`… and ${count(found - findings.length)} more`);
  for (const name of continued) lines.push(`continues ${name}`);
  for (const name of earlier) lines.push(`says nothing about ${name}, which is of an earlier log of this vault`);
  if (totals.earlier > 0) lines.push(`${count(totals.earlier)} of the writers follow one that only the earlier log tells of`);
  if (alerts.count > 0) {
    lines.push(`tells of ${count(alerts.count)} ${alerts.count === 1 ? 'alert' : 'alerts'} of the vault's own:`);
    for (const { index, at, kind, reason } of alerts.first.slice(0, 5)) lines.push(`  entry ${index}, ${at}: ${kind}${reason === '' ? '' : `: ${reason}`}`);
    if (alerts.count > 5) lines.push(`  … and ${count(alerts.count - 5)} more (cofre audit search --action log.alert)`);
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  const what = checkpoint === null ? address : `${address}: ${count(checkpoint.size)} entries of ${checkpoint.origin}, ${count(totals.batches)} batches of ${count(totals.writers)} writers`;
  lines.push(holds ? `${what}: all in order (${seconds} s)` : `${what}: ${count(found)} ${found === 1 ? 'finding' : 'findings'} (${seconds} s)`);
  if (holds && olderCheckpoints.length === 0) lines.push('whether its end was cut off only an older checkpoint would tell (--checkpoint)');
  process.stdout.write(`${lines.join('\n')}\n`);
  return holds ? 0 : 1;
}

/** A checkpoint, or the largest one of each log that a witness file tells of, each under a name for people. */
function readCheckpointFile(file: string): { readonly name: string; readonly note: string }[] {
  let text;
  let cut;
  try {
    ({ text, cut } = readText(file, true));
  } catch (error) {
    throw new UsageError(`${file}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`, { cause: error });
  }
  if (!cut && !text.startsWith('{')) return [{ name: file, note: text }];
  // What a crash left behind has no end; what lies before it counts.
  const largest = new Map<string, string>();
  for (const line of text.split('\n').slice(0, -1).toReversed()) {
    try {
      const { note } = JSON.parse(line) as { note?: unknown };
      if (typeof note !== 'string') continue;
      const [origin = '', size] = note.split('\n', 2);
      const known = largest.get(origin);
      if (known === undefined || Number(known.split('\n', 2)[1]) < Number(size)) largest.set(origin, note);
    } catch {
      continue;
    }
  }
  if (largest.size > 0) return [...largest].map(([origin, note], place) => ({ name: place === 0 ? file : `${file} (${origin.slice(0, 300).replaceAll(/[^\x20-\x7e]/gu, '?')})`, note }));
  throw new UsageError(`${file}: holds no checkpoint`);
}
