/**
 * How long the log stays where. All of it is copied to an archive as it grows (`export.ts`). What is older than the months that are searched is taken
 * out of the database, once the archive was seen to hold it; the tree's upper levels stay, so every later entry is proven as before. Nothing
 * is ever removed from the archive by us, and once a day some of what it must hold is read back.
 *
 * An entry `log.pruned` is committed before anything is deleted. Dies after it: the range is still there, in whole or in part, and the next run does all of
 * this again for it. Tiles go last, and how far they went is where the next run begins.
 */
import { randomInt } from 'node:crypto';
import { openCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import type { Entry } from './entry.ts';
import { eachOf, exportLog, holds, SignedTree } from './export.ts';
import { readBundle, readTile } from './log-source.ts';
import type { LogSource, LogTarget } from './log-source.ts';
import { encodeVkey, parseVkey } from './note.ts';
import type { NoteSigner, NoteVerifier } from './note.ts';
import { bundlePath, tilePath, tileWidth } from './tiles.ts';

/** A log in the database: the one in use, or one before it, which a restore ended. */
export interface RetainedLog {
  readonly logId: number;
  readonly origin: string;
}

/** What pruning asks of the database, as the sequencing role. Every method may throw, and then says nothing about whether it took effect. */
export interface RetentionStore {
  /** Oldest first. */
  logs(): Promise<RetainedLog[]>;
  source(logId: number): LogSource;
  /** Up to where everything was done, a multiple of 256, and when the first batch that was not taken out was formed. */
  begin(logId: number): Promise<{ readonly index: number; readonly since: Date | null }>;
  /** Up to where entries may go, a multiple of 256: all below were formed before `before` and are under a checkpoint, and nobody waits for their events. `held`: that is so for younger ones. */
  prunable(logId: number, before: Date): Promise<{ readonly index: number; readonly held: boolean }>;
  /** Leaves under the newest checkpoint that was signed before `before`; 0 if none was. */
  sizeAt(logId: number, before: Date): Promise<number>;
  /** Deletes the lowest batches that end below `boundary`, with their places, but for the last of a chain that more may come of; how many it went through, 0 once all are gone. */
  pruneBatches(logId: number, boundary: number): Promise<number>;
  /** Deletes what the entries that are gone were found by, in a part of the tables; where the next part begins, null after the last. */
  pruneSearch(logId: number, part: number): Promise<number | null>;
  /** Deletes the lowest tiles of leaf hashes below `boundary`; how many it went through. */
  pruneTiles(logId: number, boundary: number): Promise<number>;
  /** Deletes checkpoints signed before `before`, but for the largest of each hour; how many, 0 once all are gone. */
  thinCheckpoints(before: Date): Promise<number>;
}

export interface Archive {
  /** Each log has a place of its own. */
  of(logId: number): LogTarget;
  /** What people call that place. */
  place(logId: number): string;
}

export interface RetentionOptions {
  readonly store: RetentionStore;
  readonly archive: Archive;
  readonly key: Pick<NoteSigner, 'algorithm' | 'publicKeySpki'>;
  readonly now: () => Date;
}

/** The archive does not hold what it must. The message names the place and what is wrong there. */
export class ArchiveFault extends Error {}

/** Bundles read at once: others use the database and the archive as well. */
const parallel = 4;
const sampledBundles = 64;

function verifiersOf(origin: string, { algorithm, publicKeySpki }: RetentionOptions['key']): NoteVerifier[] {
  return [parseVkey(encodeVkey(origin, algorithm, publicKeySpki))];
}

/** Copies what is new of every log. @returns leaves of the log in use that the archive holds. @throws as `exportLog`. */
export async function archiveLogs({ store, archive, key }: RetentionOptions): Promise<number> {
  const logs = await store.logs();
  let archived = 0;
  for (const { logId, origin } of logs) {
    const source = store.source(logId);
    const note = await source.checkpoint();
    if (note === null) continue;
    const verifiers = verifiersOf(origin, key);
    const target = archive.of(logId);
    if (logId !== logs.at(-1)!.logId) {
      // Its copy may go further than what the database had of it after the restore.
      const held = await target.checkpoint();
      const copy = held === null ? null : openCheckpoint(held, verifiers);
      if (copy !== null && copy.size >= (openCheckpoint(note, verifiers)?.size ?? 0)) continue;
    }
    const { checkpoint, from } = await exportLog(source, target, { verifiers, parallel });
    if (from === 0) await target.put('vkey', Buffer.from(`${encodeVkey(origin, key.algorithm, key.publicKeySpki)}\n`, 'utf8'));
    archived = checkpoint.size;
  }
  return archived;
}

export interface PrunedRange {
  readonly origin: string;
  readonly from: number;
  /** Exclusive. */
  readonly to: number;
}

export interface PruneOptions extends RetentionOptions {
  /** Whole months, beside the one that runs, that stay. */
  readonly searchableMonths: number;
  /** Commits an entry. @throws if it cannot. */
  readonly record: (entry: Entry) => Promise<void>;
  /** Between two deletions, for others to get their turn. May throw, which ends the run. */
  readonly pause: () => Promise<void>;
}

/**
 * Takes out of the database what is older than the months that are searched, a month at a time. `held`: some of it stays, for nobody took its events.
 *
 * @throws ArchiveFault if the archive does not hold it: nothing of that month was deleted. What the store, the archive and `record` throw: the next
 *   run goes on.
 */
export async function pruneLogs(options: PruneOptions): Promise<{ readonly pruned: readonly PrunedRange[]; readonly held: boolean }> {
  const { store, archive, key, now, record, pause } = options;
  const cutoff = startOfMonth(now(), -options.searchableMonths);
  const pruned: PrunedRange[] = [];
  let held = false;
  for (const { logId, origin } of await store.logs()) {
    const begin = await store.begin(logId);
    let from = begin.index;
    let month = begin.since ?? cutoff;
    for (const before of monthsUntil(begin.since, cutoff)) {
      // 1. How far.
      const { index: to, held: waits } = await store.prunable(logId, before);
      held ||= waits;
      if (to <= from) continue;
      // 2. That the archive holds it, by what is read from there.
      const checkpoint = await assertArchived(archive, logId, verifiersOf(origin, key), bundlesOf(from, to), store.source(logId));
      // 3. The intent. Dies here: nothing has gone.
      const last = new Date(Math.max(before.getTime() - 1, month.getTime())).toISOString().slice(0, 7);
      const first = month.toISOString().slice(0, 7);
      await record({
        action: 'log.pruned',
        at: now(),
        outcome: 'allowed',
        detail: { checkpoint_size: checkpoint.size, entries: `${from}-${to - 1}`, log: origin, months: first === last ? first : `${first} to ${last}`, root: checkpoint.root.toString('hex'), target: archive.place(logId) },
      });
      // 4. Batches from the lowest on, then what they were found by, then their tiles. Dies anywhere: from `begin` on, the next run does the rest.
      while ((await store.pruneBatches(logId, to)) > 0) await pause();
      for (let part: number | null = 0; part !== null; part = await store.pruneSearch(logId, part)) await pause();
      while ((await store.pruneTiles(logId, to)) > 0) await pause();
      pruned.push({ origin, from, to });
      from = to;
      month = (await store.begin(logId)).since ?? before;
    }
  }
  return { pruned, held };
}

/**
 * Reads back some of what the archive must hold: of each log the oldest bundle of the last `keepMonths`, and others by chance.
 *
 * @throws ArchiveFault if one is gone or changed; what the store and the archive throw.
 */
export async function sampleArchive(options: RetentionOptions & { readonly keepMonths: number; readonly pick?: (below: number) => number }): Promise<void> {
  const { store, archive, key, now, keepMonths, pick = randomInt } = options;
  for (const { logId, origin } of await store.logs()) {
    const verifiers = verifiersOf(origin, key);
    const oldest = Math.floor((await store.sizeAt(logId, startOfMonth(now(), -keepMonths))) / tileWidth);
    const note = await archive.of(logId).checkpoint();
    const bundles = Math.floor(((note === null ? null : openCheckpoint(note, verifiers))?.size ?? 0) / tileWidth);
    if (bundles <= oldest) continue;
    const chosen = new Set([oldest]);
    for (let count = 1; count < sampledBundles; count += 1) chosen.add(oldest + pick(bundles - oldest));
    await assertArchived(archive, logId, verifiers, chosen, null);
  }
}

/** That the archive holds these bundles whole, as a checkpoint signs them that it holds too, and as `database` has their hashes. @throws ArchiveFault. */
async function assertArchived(archive: Archive, logId: number, verifiers: readonly NoteVerifier[], bundles: Iterable<number>, database: LogSource | null): Promise<Checkpoint> {
  const target = archive.of(logId);
  const fault = (what: string, cause?: unknown): ArchiveFault => new ArchiveFault(`the archive ${archive.place(logId)}: ${what}`, { cause });
  const note = await target.checkpoint();
  const checkpoint = note === null ? null : openCheckpoint(note, verifiers);
  if (checkpoint === null) throw fault('has no checkpoint that is signed by this log\'s key');
  // What cannot be read now is not known to be wrong, and is told apart from what was read and does not fit.
  const unread = new Set<unknown>();
  const reading = async (read: Promise<Uint8Array | null>): Promise<Uint8Array | null> => await read.catch((error: unknown) => {
    unread.add(error);
    throw error;
  });
  const tree = new SignedTree({ checkpoint: () => target.checkpoint(), tile: (ref) => reading(target.tile(ref)), bundle: (ref) => target.bundle(ref) }, checkpoint);
  const ofTree = async <Read>(read: Promise<Read>): Promise<Read> => await read.catch((error: unknown) => {
    throw unread.has(error) || !(error instanceof Error) ? error : fault(error.message, error);
  });
  await ofTree(tree.open());
  await eachOf(bundles, parallel, async (index) => {
    const ref = { level: 0, index, width: tileWidth };
    if ((index + 1) * tileWidth > checkpoint.size) throw fault(`holds ${checkpoint.size} entries under a signed checkpoint, and not those from ${index * tileWidth} on`);
    const hashes = await ofTree(tree.tile(0, index));
    const bundle = await readBundle(target, ref);
    if (bundle === null) throw fault(`lacks ${bundlePath(ref)}`);
    if (!holds(bundle, hashes)) throw fault(`holds something else in ${bundlePath(ref)} than its checkpoint signs`);
    if (database !== null && (await readTile(database, ref))?.equals(hashes) !== true) throw fault(`has another ${tilePath(ref)} than the database`);
  });
  return checkpoint;
}

function* bundlesOf(from: number, to: number): Generator<number, void, undefined> {
  for (let index = from / tileWidth; index < to / tileWidth; index += 1) yield index;
}

/** The first of the month, in UTC, so many months later. */
function startOfMonth(date: Date, months: number): Date {
  return new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + months, 1));
}

/** The ends of the months from `since` on that end before `cutoff`, and `cutoff`. */
function* monthsUntil(since: Date | null, cutoff: Date): Generator<Date, void, undefined> {
  if (since !== null) for (let end = startOfMonth(since, 1); end < cutoff; end = startOfMonth(end, 1)) yield end;
  yield cutoff;
}
