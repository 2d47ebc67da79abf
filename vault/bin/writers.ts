/** The writers of a serving process: for each role its own session, chain and queue. */
import { join } from 'node:path';
import { LastBatchFile } from '../../audit/last-batch-file.ts';
import type { NoteSigner } from '../../audit/note.ts';
import { createWriterConnector } from '../../platform-adapters/postgres/writer-connector.ts';
import type { ProcessRole } from '../../platform-adapters/postgres/roles.ts';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import type { Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import { GroupCommit } from '../commit.ts';
import type { Execute } from '../commit.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import { failureEntry } from '../transaction.ts';
import type { DetokenizingOperation, EntryOperation, EntryOutcome, TokenizingOperation } from '../transaction.ts';
import { connectionOf } from './database.ts';
import type { DatabaseAccess } from './database.ts';

export interface WriterContext {
  readonly home: string;
  readonly config: Config;
  readonly access: DatabaseAccess;
  readonly signer: NoteSigner;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly now: () => Date;
  /** Which of the processes of this home it is, from 0. */
  readonly index: number;
  /** SHA-256 of the policies in force, for the start entry, where calls are decided. */
  readonly policies?: string;
}

/** Items in one transaction: a batch call of the largest size, and another. */
const maxWeight = 2000;
/** Less than after which a query's session is given up. */
const maxStatementMs = 10_000;
const tryAgainMs = 1000;

/**
 * Opens a writer called `name` that commits as `role`; it is closed, and its last batch noted, with the stack.
 *
 * @throws what the database or the HSM throws.
 */
export async function openWriter<Operation extends TokenizingOperation | DetokenizingOperation, Outcome>(
  stack: AsyncDisposableStack,
  context: WriterContext,
  name: string,
  role: ProcessRole,
  execute: Execute<Operation, Outcome>,
): Promise<GroupCommit<Operation, Outcome>> {
  const { home, config, access, signer, log, metrics, now, index, policies } = context;
  const place = index === 0 ? name : `${name}-${index}`;
  const file = new LastBatchFile(join(home, 'writers', `${place}.json`));
  const predecessor = await file.read();
  const writer = await GroupCommit.open<Operation, Outcome>({
    role,
    origin: config.log.origin,
    connector: createWriterConnector(connectionOf(access, role), { connectTimeoutMs: 5000, queryTimeoutMs: 15_000 }),
    signer,
    execute,
    failureEntry,
    limits: {
      maxQueue: config.commit.max_queue,
      maxQueuedWeight: config.commit.max_queued_items,
      maxCalls: config.commit.max_calls,
      maxWeight,
      maxWaitMs: milliseconds(config.database.max_away),
      maxSettleMs: milliseconds(config.database.max_settle),
      maxStatementMs,
    },
    outbox: config.events.outbox,
    observer: {
      queued: (depth) => metrics.queued(name, depth),
      waited: (ms) => metrics.waited(name, ms),
      committed: (calls, _weight, ms) => metrics.committed(name, calls, ms),
      disturbed(kind, error) {
        metrics.disturbed(name, kind);
        log.warn('a transaction did not commit', { role: name, kind, error: describe(error) });
      },
    },
    now,
    startDetail: { name: place, ...(policies === undefined ? {} : { policies }), ...(predecessor === null ? {} : { predecessor: predecessor.writer, predecessor_closed: predecessor.closed ? 'yes' : 'no', predecessor_hash: predecessor.hash, predecessor_last: predecessor.number, predecessor_noted: predecessor.notedAt.toISOString() }) },
    onHead: (head, closed) => file.note(head, closed),
  });
  stack.defer(async () => {
    await writer.close(milliseconds(config.listeners.drain_timeout));
    await file.flush().catch((error: unknown) => log.error('the last batch could not be noted', { role: name, error: describe(error) }));
  });
  return writer;
}

/** A log that was refused (disk full, …) is tried again without a caller: while readiness says so, none may come. The entry that succeeds says that it was. */
export function tryAgain(stack: AsyncDisposableStack, writers: readonly GroupCommit<EntryOperation, EntryOutcome>[], now: () => Date): void {
  const timer = setInterval(() => {
    for (const writer of writers) if (writer.logRefused) void writer.commit({ kind: 'entry', entry: { action: 'log.resumed', at: now(), outcome: 'allowed' } }).catch(() => undefined);
  }, tryAgainMs).unref();
  stack.defer(() => clearInterval(timer));
}
