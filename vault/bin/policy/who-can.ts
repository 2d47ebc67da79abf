/** `cofre policy who-can`: the access review, of today or of a past moment. */
import type { LogsAnswer } from '../../../audit/search-logs.ts';
import { grantsOf, namedBy } from '../../access-review.ts';
import { actions, callersNamedIn, purposes } from '../../policy.ts';
import { readSearchTime } from '../../search-time.ts';
import { vaultFiles, vaultHelp, vaultOptions } from '../audit/vault-and-copy.ts';
import { UsageError } from '../command-group.ts';
import type { Call, Command } from '../command-group.ts';
import { grantsTable } from './grants-table.ts';
import { configuredFolder, openSet } from './sets.ts';

export const whoCanCommand: Command = {
  help: `cofre policy who-can [ACTION] [options]

Prints who may do something (${actions.join(', ')}; everything unless named), for which
purpose, with whose cards, and by which policies. "any other service of tenant acme" is a caller that no policy names.
A caller that policies know by a pattern alone is told of only where --caller names it.

  --caller URI      only of this caller, whether a policy names it or not
  --purpose NAME    only for this purpose
  --tenant NAME     only with cards of this tenant
  --policies SET    a folder, or the digest of a set that a vault had in force; the home's own folder unless named
  --at TIME         the set that was in force then, by what the log of the vault says: 2026-11-25 (its beginning) or 2026-11-25T10:00:00Z
  --json            {"digest": …, "grants": […]} instead of a table
${vaultHelp}`,
  options: ['caller', 'purpose', 'tenant', 'policies', 'at', ...vaultOptions],
  flags: ['json'],
  words: [0, 1],
  run,
};

async function run(call: Call): Promise<number> {
  const one = (option: string): string | undefined => call.options[option]?.[0];
  const [action] = call.words;
  const [purpose, tenant, caller, at, policies] = [one('purpose'), one('tenant'), one('caller'), one('at'), one('policies')];
  if (action !== undefined && !(actions as readonly string[]).includes(action)) throw new UsageError(`there is no such action; there are ${actions.join(', ')}`);
  if (purpose !== undefined && !(purposes as readonly string[]).includes(purpose)) throw new UsageError(`there is no such purpose; there are ${purposes.join(', ')}`);
  if (at !== undefined && policies !== undefined) throw new UsageError('--at and --policies both name a set');
  if (at !== undefined && readSearchTime(at) === null) throw new UsageError('--at is no time of UTC that there is, like 2026-11-25 or 2026-11-25T10:00:00Z');
  const since = at === undefined ? null : await inForceAt(call, at);
  const set = await openSet(call, since?.digest ?? policies ?? configuredFolder(call));
  const named = namedBy(set.files);
  const grants = grantsOf(set, caller === undefined ? named : { ...named, callers: callersNamedIn(`"${caller}"`).map(({ spiffeId }) => spiffeId) }).filter(
    (grant) => (action === undefined || grant.action === action) && (purpose === undefined || grant.purpose === purpose) && (tenant === undefined || grant.tenant === tenant) && (caller === undefined || grant.caller === caller),
  );
  if (call.flags.has('json')) process.stdout.write(`${JSON.stringify({ digest: set.digest, ...(since === null ? {} : { in_force_since: since.time, entry: { origin: since.origin, index: since.index } }), grants })}\n`);
  else {
    const lines = grantsTable(grants);
    process.stdout.write(`${lines.length === 0 ? 'nobody' : lines.join('\n')}\n`);
    process.stderr.write(`by the policies with digest ${set.digest}${since === null ? '' : `, in force since ${since.time} by entry ${since.index} of ${since.origin}`}\n`);
  }
  return 0;
}

interface InForce {
  readonly digest: string;
  readonly time: string;
  readonly origin: string;
  readonly index: number;
}

/** Entries of these tell the set that a process decides by from then on. */
const telling = ['policy.reload', 'writer.start'] as const;
const maxAnswerBytes = 64 * 1024 * 1024;

/**
 * The set that the last entry before that moment names. Processes of one vault read one folder; between the reload of one and of the next, some seconds, two sets may be in force.
 *
 * @throws Error of one line if the log holds no such entry.
 */
async function inForceAt(call: Call, at: string): Promise<InForce> {
  const vault = vaultFiles(call);
  try {
    let last: InForce | null = null;
    for (const action of telling) {
      const found = await lastOf(action);
      if (found !== null && (last === null || found.time > last.time)) last = found;
    }
    if (last === null) throw new Error(`the log that is searched holds no entry of before ${at} that names a set of policies`);
    return last;

    async function lastOf(action: string): Promise<InForce | null> {
      // A sequencer's start names no set: pages are gone through until one does.
      for (let before: LogsAnswer['next'] = null; ; ) {
        const query = new URLSearchParams({ action, to: at, limit: '100', ...(before === null ? {} : { before: String(before) }) });
        const answer = await vault.read(`search?${query.toString()}`, maxAnswerBytes);
        if (answer === null) throw new Error('the vault has no log that can be searched');
        const { items, next } = JSON.parse(answer.toString('utf8')) as Pick<LogsAnswer, 'items' | 'next'>;
        let latest: InForce | null = null;
        for (const { origin, index, entry } of items as readonly { origin: string; index: number; entry: { at: string; detail?: { policies?: unknown } } }[]) {
          const digest = entry.detail?.policies;
          // One that could not be told at once may stand behind that of a later reload, of another process.
          if (typeof digest === 'string' && (latest === null || entry.at > latest.time)) latest = { digest, time: entry.at, origin, index };
        }
        if (latest !== null || next === null) return latest;
        before = next;
      }
    }
  } finally {
    vault.close();
  }
}
