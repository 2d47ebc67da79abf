/** What the leading sequencer does beside sequencing: copies the log to its archive, takes what is old out of the database, thins checkpoints. Nothing waits for it. */
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Pool } from 'pg';
import { directoryFiles } from '../../audit/directory-log.ts';
import type { Entry } from '../../audit/entry.ts';
import { logTarget } from '../../audit/log-source.ts';
import type { LogTarget, WritableLogFiles } from '../../audit/log-source.ts';
import { ArchiveFault, archiveLogs, pruneLogs, sampleArchive } from '../../audit/retention.ts';
import type { Archive } from '../../audit/retention.ts';
import { postgresRetentionStore } from '../../audit/retention-store.ts';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import { connectionOf, endInTime } from './database.ts';
import type { WriterContext } from './writers.ts';

export interface ArchivingOptions {
  readonly archive: Archive | null;
  /** Whether this instance is the one that works. */
  readonly leads: () => boolean;
  /** Commits an entry. @throws if it cannot. */
  readonly record: (entry: Entry) => Promise<void>;
}

/** How often is looked whether something is due. */
const lookMs = 1000;
const dayMs = 86_400_000;
/** After a failure; a copy is tried again at its own interval if that is shorter. */
const againMs = 5 * 60_000;
/** How long the archive may take for a file. */
const answerMs = 60_000;
/** Between two deletions. */
const breathMs = 10;
/** All checkpoints of this time are kept. */
const allCheckpointsMs = dayMs;

/** The archive that is configured; null for none. Each log lies in a folder of its own, named by its number: 1, and after each restore the next. */
export async function archiveOf(stack: AsyncDisposableStack, home: string, config: Config, env: NodeJS.ProcessEnv = process.env): Promise<Archive | null> {
  const { archive } = config.log;
  if (archive === 'none') return null;
  let place = (logId: number): string => join(resolve(home, archive), String(logId));
  let filesOf: (logId: number) => WritableLogFiles = (logId) => directoryFiles(place(logId));
  if (archive.startsWith('s3://')) {
    // The SDK is large: only whoever has a bucket loads it.
    const { s3Files } = await import('../../platform-adapters/aws/s3-log.ts');
    place = (logId) => `${archive}/${logId}`;
    filesOf = (logId) => {
      const files = s3Files(place(logId), env);
      stack.defer(() => files.close());
      return files;
    };
  }
  const targets = new Map<number, LogTarget>();
  return {
    place,
    of(logId) {
      const target = targets.get(logId) ?? answering(logTarget(filesOf(logId)));
      targets.set(logId, target);
      return target;
    },
  };
}

/** The same, but a call that is not answered fails: a store that has fallen silent is to be told of. */
function answering(target: LogTarget): LogTarget {
  const within = async <Answer>(call: Promise<Answer>): Promise<Answer> => {
    const answered = new AbortController();
    const late = sleep(answerMs, undefined, { signal: answered.signal, ref: false }).then(() => {
      throw new Error('the archive does not answer');
    });
    try {
      return await Promise.race([call, late]);
    } finally {
      answered.abort();
    }
  };
  return {
    checkpoint: () => within(target.checkpoint()),
    tile: (ref) => within(target.tile(ref)),
    bundle: (ref) => within(target.bundle(ref)),
    put: (path, bytes) => within(target.put(path, bytes)),
  };
}

/** Starts it; it ends, in the middle of whatever it does, with the stack. */
export function openArchiving(stack: AsyncDisposableStack, context: WriterContext, { archive, leads, record }: ArchivingOptions): void {
  const { config, access, signer, log, metrics, now } = context;
  const pool = new Pool({ ...connectionOf(access, 'sequencer'), max: 4, application_name: 'cofre log archive', query_timeout: 10 * 60_000 });
  pool.on('error', () => undefined);
  const stop = new AbortController();
  const store = postgresRetentionStore(pool);
  const stoppable = archive === null ? null : endingWith(archive, stop.signal);
  const intervalMs = milliseconds(config.log.archive_interval);

  let archivedSize = 0;
  /** What failed last and has not succeeded since, by task: told once. */
  const failing = new Set<string>();
  const failed = metrics.count('cofre_log_archive_failures_total', 'Copies of the log, looks at the archive and deletions of what is old that failed.');
  const prunedTotal = metrics.count('cofre_log_pruned_entries_total', 'Entries that were taken out of the database, for the archive holds them.');
  metrics.gauge('cofre_log_archived_size', 'Leaves of the log that its archive holds under a signed checkpoint; 0 in a process that does not copy it.', () => archivedSize, 'max');
  metrics.gauge('cofre_log_archive_failed', 'Whether the archive of the log cannot be written or read, or does not hold what it must.', () => (failing.size > 0 ? 1 : 0), 'max');

  const tell = async (task: string, error: unknown): Promise<void> => {
    failed();
    if (failing.has(task)) return;
    failing.add(task);
    if (!(error instanceof ArchiveFault)) {
      log.error('the log\'s retention does not go on', { kind: task, error: describe(error) });
      return;
    }
    log.error('the archive of the log does not hold what it must', { kind: task, reason: error.message });
    await record({ action: 'log.alert', at: now(), outcome: 'failed', detail: { kind: 'archive', reason: error.message } }).catch(() => undefined);
  };
  const tasks: { readonly name: string; readonly everyMs: number; dueMs: number; readonly work: () => Promise<void> }[] = [
    {
      name: 'thin',
      everyMs: dayMs,
      dueMs: 0,
      async work() {
        while ((await store.thinCheckpoints(new Date(now().getTime() - allCheckpointsMs))) > 0) await sleep(breathMs, undefined, { signal: stop.signal });
      },
    },
  ];
  if (stoppable !== null) {
    const options = { store, archive: stoppable, key: signer, now };
    tasks.push(
      {
        name: 'archive',
        everyMs: intervalMs,
        dueMs: 0,
        async work() {
          archivedSize = await archiveLogs(options);
        },
      },
      {
        name: 'prune',
        everyMs: dayMs,
        dueMs: 0,
        async work() {
          const { pruned, held } = await pruneLogs({ ...options, searchableMonths: config.log.searchable_months, record, pause: () => sleep(breathMs, undefined, { signal: stop.signal }) });
          for (const { from, to } of pruned) {
            prunedTotal(to - from);
            log.info('old entries were taken out of the database', { count: to - from });
          }
          if (held) log.warn('old entries stay in the database: nobody has taken their events');
        },
      },
      { name: 'sample', everyMs: dayMs, dueMs: 0, work: () => sampleArchive({ ...options, keepMonths: config.log.keep_months }) },
    );
  }
  const look = async (): Promise<void> => {
    for (const task of tasks) {
      if (stop.signal.aborted || !leads() || performance.now() < task.dueMs) continue;
      try {
        await task.work();
        task.dueMs = performance.now() + task.everyMs;
        if (failing.delete(task.name)) log.info('the log\'s retention goes on', { kind: task.name });
      } catch (error) {
        if (stop.signal.aborted) return;
        task.dueMs = performance.now() + Math.min(task.everyMs, againMs);
        await tell(task.name, error);
      }
    }
  };
  let timer: NodeJS.Timeout | undefined;
  let looking: Promise<void> = Promise.resolve();
  const schedule = (): void => {
    timer = setTimeout(() => {
      looking = look().finally(() => {
        if (!stop.signal.aborted) schedule();
      });
    }, lookMs).unref();
  };
  schedule();
  stack.defer(async () => {
    stop.abort();
    clearTimeout(timer);
    // A database or an archive that has fallen silent is not waited for.
    await Promise.race([looking, sleep(2000, undefined, { ref: false })]);
    await endInTime(pool);
  });
}

/** The archive, whose every call fails once the process ends: a copy may take hours, and goes on where it ended. */
function endingWith(archive: Archive, signal: AbortSignal): Archive {
  return {
    place: (logId) => archive.place(logId),
    of(logId) {
      const target = archive.of(logId);
      const going = async <Answer>(call: () => Promise<Answer>): Promise<Answer> => {
        signal.throwIfAborted();
        return await call();
      };
      return {
        checkpoint: () => going(() => target.checkpoint()),
        tile: (ref) => going(() => target.tile(ref)),
        bundle: (ref) => going(() => target.bundle(ref)),
        put: (path, bytes) => going(() => target.put(path, bytes)),
      };
    },
  };
}
