/** `cofre audit search`: prints entries of a vault's log. */
import type { EarlierLog, LogsAnswer } from '../../../audit/search-logs.ts';
import { readSearchTime } from '../../search-time.ts';
import { count } from '../progress.ts';
import { UsageError } from '../command-group.ts';
import type { Call, Command } from '../command-group.ts';
import { vaultFiles, vaultHelp, vaultOptions } from './vault-and-copy.ts';

export const searchCommand: Command = {
  help: `cofre audit search [--token T] [--caller URI] [--tenant NAME] [--action A] [--outcome O] [--code C] [--purpose P] [--from TIME] [--to TIME] [options]

Prints the entries that match all of it, newest first, as JSON: the log's origin, their index in it, and what they say. After a restore from
a backup the logs before the one in use are searched too, as far as the database has them. The search is an entry of the log itself. What it shows is
what the database says: that the log holds an entry, and so, cofre audit prove shows.

  --token TOKEN   entries that name this token, the one of its making too
  --caller URI    SPIFFE id of the caller; --tenant NAME, --action NAME, --code CODE and --purpose NAME as entries say them
  --outcome NAME  allowed, refused or failed
  --from TIME     of this time or later, of UTC: 2026-11-25 or 2026-11-25T10:00:00Z
  --to TIME       earlier than this time
  --limit N       at most so many entries (100)
  --json          one JSON object a line, instead of indented
${vaultHelp}`,
  options: ['token', 'caller', 'tenant', 'action', 'outcome', 'code', 'purpose', 'from', 'to', 'limit', ...vaultOptions],
  flags: ['json'],
  words: [0, 0],
  run,
};

/** An answer of a thousand entries, each as large as it can be, is no more than this. */
const maxAnswerBytes = 128 * 1024 * 1024;
const criteria = ['token', 'caller', 'tenant', 'action', 'outcome', 'code', 'purpose', 'from', 'to'] as const;

async function run(call: Call): Promise<number> {
  const one = (option: string): string | undefined => call.options[option]?.[0];
  const limit = Number(one('limit') ?? '100');
  if (!Number.isInteger(limit) || limit < 1) throw new UsageError('--limit is to be a number of entries');
  const asked = criteria.flatMap((name): [string, string][] => {
    const value = one(name);
    return value === undefined ? [] : [[name, value]];
  });
  for (const [name, value] of asked) if ((name === 'from' || name === 'to') && readSearchTime(value) === null) throw new UsageError(`--${name} is no time of UTC that there is, like 2026-11-25 or 2026-11-25T10:00:00Z`);
  const vault = vaultFiles(call);
  try {
    let left = limit;
    for (let before: LogsAnswer['next'] = null; ; ) {
      const parameters = new URLSearchParams([...asked, ['limit', String(Math.min(left, 1000))]]);
      if (before !== null) parameters.set('before', String(before));
      const answer = await vault.read(`search?${parameters.toString()}`, maxAnswerBytes);
      if (answer === null) throw new Error('the vault has no log that can be searched');
      const { items, next, searchable_from: from, earlier_logs: earlier = [] } = JSON.parse(answer.toString('utf8')) as Pick<LogsAnswer, 'items' | 'next'> & Partial<LogsAnswer>;
      for (const item of items) process.stdout.write(`${call.flags.has('json') ? JSON.stringify(item) : JSON.stringify(item, null, 2)}\n`);
      left -= items.length;
      before = next;
      if (before === null || left <= 0) {
        if (from !== undefined && from.index > 0) process.stderr.write(`entries before ${count(from.index)} (${from.time ?? ''}) were moved to the archive and are not searched\n`);
        for (const log of earlier) process.stderr.write(`${about(log)}\n`);
        return 0;
      }
    }
  } finally {
    vault.close();
  }
}

/** What was searched of a log that a restore ended. */
function about({ origin, entries, signed, searchable_from: from }: EarlierLog): string {
  const archived = from.index > 0 ? `, those before ${count(from.index)} are in the archive only` : '';
  if (signed === null || signed <= entries) return `${origin}, an earlier log of this vault, is searched too: ${count(entries)} entries${signed === null || signed === entries ? '' : `, of which ${count(signed)} can have been signed`}${archived}`;
  if (entries === 0) return `${origin}, an earlier log of this vault with ${count(signed)} entries, is not in the database and is not searched: only a copy of it holds them`;
  return `${origin}, an earlier log of this vault, is searched as far as the database has it: ${count(entries)} of ${count(signed)} entries${archived}; only a copy of it holds the others`;
}
