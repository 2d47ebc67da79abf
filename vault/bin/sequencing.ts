/** The sequencing role of a process: one instance of a vault works, the others wait to take over. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client, Pool } from 'pg';
import type { ClientConfig } from 'pg';
import { readTile } from '../../audit/log-source.ts';
import { LogFault, Sequencer } from '../../audit/sequencer.ts';
import type { TreeStore } from '../../audit/sequencer.ts';
import { tileWidth } from '../../audit/tiles.ts';
import { postgresTreeStore } from '../../audit/tree-store.ts';
import { WitnessFile } from '../../audit/witness-file.ts';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import type { GroupCommit } from '../commit.ts';
import { milliseconds } from '../config.ts';
import { executeEntries } from '../transaction.ts';
import type { EntryOperation, EntryOutcome } from '../transaction.ts';
import { archiveOf, openArchiving } from './archiving.ts';
import { connectionOf, endPool } from './database.ts';
import { openWriter } from './writers.ts';
import type { WriterContext } from './writers.ts';

export interface Sequencing {
  /** The writer that tells of what the sequencer finds. */
  readonly writer: GroupCommit<EntryOperation, EntryOutcome>;
  /** What readiness says. */
  state(): { readonly ok: boolean; readonly detail: string };
}

/** Time between two looks for batches while there are none, and after a failure. */
const idleMs = 250;
const failedMs = 1000;
/** How often an instance that waits tries to take over. */
const standbyMs = 1000;
/** At the end: how long what is committed may take to come under a last checkpoint. */
const finishMs = 10_000;

/** "cofre se" in ASCII. Advisory locks are per database. */
const sequencerLock = '7165064689041240933';

/**
 * Starts to sequence. It goes on until the stack is disposed, and then signs a last checkpoint over what the writers left: so it must be started
 * before them.
 *
 * @throws what the database or the HSM throws.
 */
export async function openSequencing(stack: AsyncDisposableStack, context: WriterContext): Promise<Sequencing> {
  const { home, config, access, signer, log, metrics, now } = context;
  const connection = connectionOf(access, 'sequencer');
  const pool = new Pool({ ...connection, max: 2, application_name: 'cofre sequencer', query_timeout: 15_000 });
  pool.on('error', () => undefined);
  stack.defer(() => endPool(pool));

  let fault: string | null = null;
  let failing: string | null = null;
  let leads = false;
  /** When the oldest batch that no checkpoint covers was formed. */
  let unsignedSince: Date | null = null;
  const alerts = metrics.count('cofre_log_alerts_total', 'Batches that are missing or forged, and logs that are not what was signed.');
  const checkpointSeconds = metrics.histogram('cofre_log_checkpoint_seconds', 'Time from the oldest batch of a checkpoint to its signature.');
  const leaves = metrics.count('cofre_log_leaves_total', 'Leaves that were added to the tree: entries, and one a batch.');

  let writer: GroupCommit<EntryOperation, EntryOutcome> | null = null;
  const alert = async (kind: string, detail: Readonly<Record<string, string | number>>): Promise<void> => {
    alerts();
    log.error('the log was tampered with', { kind, reason: String(detail['reason'] ?? ''), writer: String(detail['writer'] ?? '') });
    await writer?.commit({ kind: 'entry', entry: { action: 'log.alert', at: now(), outcome: 'failed', detail: { kind, ...detail } } });
  };
  const archive = archiveOf(home, config);
  const inDatabase = postgresTreeStore(pool);
  const store: TreeStore = {
    ...inDatabase,
    // What was witnessed here last may be older than what is left: an instance that has not led for months. What a tile proves, no one has to be believed for.
    tile: async (logId, level, index) => (await inDatabase.tile(logId, level, index)) ?? (archive === null ? null : await readTile(archive.of(logId), { level, index, width: tileWidth })),
  };
  const sequencer = new Sequencer({ store, signer, name: config.log.origin, witnesses: [new WitnessFile(join(home, 'witness'))], alert, now });
  const intervalMs = milliseconds(config.log.checkpoint_interval);

  let signedAtMs = Number.NEGATIVE_INFINITY;
  const sign = async (): Promise<void> => {
    const oldest = unsignedSince;
    const checkpoint = await sequencer.sign();
    if (checkpoint === null) return;
    signedAtMs = performance.now();
    if (oldest !== null) checkpointSeconds(Math.max(0, now().getTime() - oldest.getTime()) / 1000);
    unsignedSince = null;
  };
  /** One round. @returns how long to pause. */
  const round = async (): Promise<number> => {
    const { leaves: added, oldest, more } = await sequencer.step();
    leaves(added);
    if (oldest !== null && (unsignedSince === null || oldest < unsignedSince)) unsignedSince = oldest;
    if (performance.now() - signedAtMs >= intervalMs) await sign();
    return more ? 0 : idleMs;
  };

  await sequencer.open().catch((error: unknown) => {
    if (!(error instanceof LogFault)) throw error;
    throw new Error(`${error.message}. If it was restored on purpose, begin a new log that names this one: cofre audit restart`, { cause: error });
  });
  const lead = new Leadership(connection);
  const stop = new AbortController();
  const pause = (ms: number): Promise<void> => sleep(ms, undefined, { signal: stop.signal }).catch(() => undefined);
  const run = async (): Promise<void> => {
    while (!stop.signal.aborted) {
      try {
        leads = await lead.have();
        const ms = leads ? await round() : standbyMs;
        if (failing !== null && leads) log.info('the log is sequenced again');
        failing = null;
        fault = null;
        if (ms > 0) await pause(ms);
      } catch (error) {
        if (error instanceof LogFault) {
          if (fault !== error.message) await alert(error.kind, { reason: error.message }).catch(() => undefined);
          fault = error.message;
        } else if (failing === null) log.warn('the log could not be sequenced', { error: describe(error) });
        failing ??= describe(error);
        await pause(failedMs);
      }
    }
  };
  let running: Promise<void> = Promise.resolve();
  stack.defer(async () => {
    stop.abort();
    await running;
    // The writers have closed their chains: a checkpoint over their last entries.
    const deadline = performance.now() + finishMs;
    try {
      while (leads && fault === null && performance.now() < deadline) if ((await sequencer.step()).leaves === 0) break;
      if (leads && fault === null) await sequencer.sign();
    } catch (error) {
      log.warn('the log could not be sequenced', { error: describe(error) });
    }
    await lead.end();
  });

  metrics.gauge('cofre_log_size', 'Leaves of the tree.', () => sequencer.head?.size ?? 0, 'max');
  metrics.gauge('cofre_log_signed_size', 'Leaves under the last signed checkpoint.', () => sequencer.signed?.size ?? 0, 'max');
  metrics.gauge('cofre_log_unsigned_seconds', 'Age of the oldest batch that is in the tree and under no checkpoint.', () => (unsignedSince === null ? 0 : Math.max(0, now().getTime() - unsignedSince.getTime()) / 1000), 'max');

  writer = await openWriter<EntryOperation, EntryOutcome>(stack, context, 'sequencer', 'sequencer', executeEntries);
  running = run();
  openArchiving(stack, context, {
    archive,
    leads: () => leads && fault === null,
    async record(entry) {
      await writer?.commit({ kind: 'entry', entry });
    },
  });
  return {
    writer,
    state() {
      if (fault !== null) return { ok: false, detail: fault };
      if (failing !== null) return { ok: false, detail: 'the log cannot be sequenced' };
      return { ok: true, detail: leads ? 'sequencing' : 'another process sequences' };
    },
  };
}

/** The lock that saves several instances from doing the same work. It guards nothing: the tree's compare-and-swap does. */
class Leadership {
  readonly #connection: ClientConfig;
  #client: Client | null = null;

  constructor(connection: ClientConfig) {
    this.#connection = connection;
  }

  /** Whether this instance has the lock, trying to take it. @throws what the database throws. */
  async have(): Promise<boolean> {
    if (this.#client !== null) return true;
    const client = new Client({ ...this.#connection, application_name: 'cofre sequencer lock', connectionTimeoutMillis: 5000, query_timeout: 5000 });
    client.on('error', () => undefined);
    client.on('end', () => {
      if (this.#client === client) this.#client = null;
    });
    try {
      await client.connect();
      const { rows } = await client.query<{ got: boolean }>('SELECT pg_try_advisory_lock($1) AS got', [sequencerLock]);
      if (rows[0]?.got === true) {
        this.#client = client;
        return true;
      }
    } catch (error) {
      void client.end().catch(() => undefined);
      throw error;
    }
    await client.end();
    return false;
  }

  async end(): Promise<void> {
    const client = this.#client;
    this.#client = null;
    if (client === null) return;
    await Promise.race([client.end().catch(() => undefined), sleep(2000, undefined, { ref: false })]);
  }
}
