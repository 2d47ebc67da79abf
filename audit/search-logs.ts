/**
 * Searches all logs that the database holds: the one in use, and those before it, each of which a restore from a backup ended (`restart.ts`). Of such a log
 * the database has what was in the backup; what was signed after that, only copies have, and an answer says so.
 */
import type { ClientBase } from 'pg';
import { readCharter } from './charter.ts';
import { keysOf } from './log-keys.ts';
import { searchableFrom, searchLog } from './log-reader.ts';
import type { FoundEntry, LogQuery, SearchableFrom } from './log-reader.ts';
import { encodeVkey, parseVkey } from './note.ts';
import type { NoteSigner } from './note.ts';

type Queryable = Pick<ClientBase, 'query'>;

export interface LogsQuery extends LogQuery {
  /** Number of the log that `before` is an index of, 1 for the vault's first; without it, of the log in use. */
  readonly beforeIn?: number;
}

/** An index in one of the logs. */
export interface FoundInLog extends FoundEntry {
  readonly origin: string;
}

export interface EarlierLog {
  readonly origin: string;
  /** Entries that the database has of it, from index 0 on but for those that `searchable_from` says were moved to the archive. */
  readonly entries: number;
  /** Entries that were signed before the log after it was begun, by that one's charter; null if that is not in the database. What is beyond `entries` is in copies only. */
  readonly signed: number | null;
  readonly searchable_from: SearchableFrom;
}

export interface LogsAnswer {
  /** Newest first, all of one log. */
  readonly items: readonly FoundInLog[];
  /** Where to go on; null if there is no more. The index in the log in use, or `<index>@<number>` in an earlier log. */
  readonly next: number | string | null;
  /** What stands before it in the log in use is in the archive only. */
  readonly searchable_from: SearchableFrom;
  /** Logs before the one in use, newest first: they are searched after it, as far as the database has them. */
  readonly earlier_logs: readonly EarlierLog[];
}

interface LogRow {
  readonly logId: number;
  readonly origin: string;
  readonly size: number;
  readonly predecessor: { readonly origin: string; readonly size: number } | null;
}

/**
 * The entries that match all of `query`, the newest log's first; null if there is no log `beforeIn`. Whoever goes on with `next` until it is null has
 * found every one that is in the database. `key` is the one that signed the logs' charters.
 *
 * @throws as `searchLog`.
 */
export async function searchLogs(client: Queryable, { beforeIn, ...query }: LogsQuery, key: Pick<NoteSigner, 'algorithm' | 'publicKeySpki'>): Promise<LogsAnswer | null> {
  const logs = await readLogs(client, key);
  const [inUse] = logs;
  const begin = beforeIn === undefined ? 0 : logs.findIndex(({ logId }) => logId === beforeIn);
  if (begin < 0) return null;
  if (inUse === undefined) return { items: [], next: null, searchable_from: { index: 0, time: null }, earlier_logs: [] };
  const about = { searchable_from: await searchableFrom(client, inUse.logId), earlier_logs: await earlierLogs(client, logs) };
  const place = (log: LogRow, index: number): number | string => (log === inUse ? index : `${index}@${log.logId}`);
  for (const [offset, log] of logs.slice(begin).entries()) {
    const { items, next, searchable_from } = await searchLog(client, log.logId, log.size, offset === 0 ? query : { ...query, before: log.size });
    const found = { ...about, ...(log === inUse ? { searchable_from } : {}), items: items.map(({ index, entry }) => ({ origin: log.origin, index, entry })) };
    if (next !== null) return { ...found, next: place(log, next) };
    const older = logs[begin + offset + 1];
    // Where nothing was found, the next log is looked through at once: there are few.
    if (older === undefined || items.length > 0) return { ...found, next: older === undefined ? null : place(older, older.size) };
  }
  throw new Error('there is always a last log');
}

/** Newest first. */
async function readLogs(client: Queryable, { algorithm, publicKeySpki }: Pick<NoteSigner, 'algorithm' | 'publicKeySpki'>): Promise<LogRow[]> {
  const { rows } = await client.query<{ log_id: number; origin: string; size: string; first_leaf: Buffer }>({ name: 'logs', text: 'SELECT log_id, origin, size, first_leaf FROM logs ORDER BY log_id DESC' });
  return rows.map((row) => {
    const certifier = keysOf(parseVkey(encodeVkey(row.origin, algorithm, publicKeySpki)), row.origin)?.certifier ?? [];
    return { logId: row.log_id, origin: row.origin, size: Number(row.size), predecessor: readCharter(row.first_leaf, certifier)?.predecessor ?? null };
  });
}

async function earlierLogs(client: Queryable, logs: readonly LogRow[]): Promise<EarlierLog[]> {
  const earlier: EarlierLog[] = [];
  for (const [index, { predecessor }] of logs.entries()) {
    // A backup may be from before there was the log that the charter names.
    if (predecessor !== null && !logs.some(({ origin }) => origin === predecessor.origin)) earlier.push({ origin: predecessor.origin, entries: 0, signed: predecessor.size, searchable_from: { index: 0, time: null } });
    const log = logs[index + 1];
    if (log === undefined) continue;
    const named = logs.find((one) => one.predecessor?.origin === log.origin)?.predecessor ?? null;
    earlier.push({ origin: log.origin, entries: log.size, signed: named?.size ?? null, searchable_from: await searchableFrom(client, log.logId) });
  }
  return earlier;
}
