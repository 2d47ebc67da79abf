/** The sequencing role of a process: one instance of a vault works, the others wait to take over. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client, Pool } from 'pg';
import type { ClientBase, ClientConfig } from 'pg';
import { withArchivedTiles } from '../../audit/archived-tiles.ts';
import { LastBatchFile } from '../../audit/last-batch-file.ts';
import { writerName } from '../../audit/chain.ts';
import { LogFault } from '../../audit/sequenced-log.ts';
import { Sequencer } from '../../audit/sequencer.ts';
import { postgresTreeStore, readDistrusted } from '../../audit/tree-store.ts';
import { WitnessFile } from '../../audit/witness-file.ts';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import type { GroupCommit } from '../commit.ts';
import { milliseconds } from '../config.ts';
import { executeEntries } from '../transaction.ts';
import type { EntryOperation, EntryOutcome } from '../transaction.ts';
import { archiveOf, openArchiving } from './archiving.ts';
import { connectionOf, endInTime } from './database.ts';
import { openWriter } from './writers.ts';
import type { WriterContext } from './writers.ts';

export interface Sequencing {
  /** The writer that tells of what the sequencer finds. */
  readonly writer: GroupCommit<EntryOperation, EntryOutcome>;
  /** What readiness says. */
  state(): { readonly ok: boolean; readonly detail: string };
}

/**
 * Time between two looks for batches while there are none, and once there have been none for some seconds. With 20,000 writers of the past, 320 of them
 * in each look, this took 1.0 % of a core with a look each 250 ms, PostgreSQL's part included, and 0.6 % with one each 500 ms.
 */
const idleMs = 250;
const restMs = 500;
const restAfterMs = 10_000;
/** Time after a failure. */
const failedMs = 1000;
/** How often an instance that waits tries to take over. */
const standbyMs = 1000;
/** For how long it may fail before readiness says so: a database that fails over is back by then. */
const patienceMs = 10_000;
/** At the end: how long what is committed may take to come under a last checkpoint. */
const finishMs = 10_000;
/** Alerts that are remembered so as not to be told again by this process. */
const maxTold = 1000;

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
  // A head that the server forgot in a crash, although its checkpoint was witnessed, would be the end of this log. And a transaction of an
  // instance that hangs must not hold the head for longer than its rivals wait.
  const verify = (client: ClientBase, done: (error?: Error) => void): void => client.query("SET synchronous_commit = on; SET statement_timeout = '12s'; SET idle_in_transaction_session_timeout = '12s'", (error) => done(error ?? undefined));
  const pool = new Pool({ ...connection, max: 2, application_name: 'cofre sequencer', connectionTimeoutMillis: 5000, query_timeout: 15_000, keepAlive: true, verify });
  pool.on('error', () => undefined);
  stack.defer(() => endInTime(pool));

  /** What is wrong with the log, for good; with sequencing it, and since when; with signing. */
  let fault: string | null = null;
  let failingSinceMs: number | null = null;
  let unsignable = false;
  /** Whether this sequencer's own batches were tampered with, so that nobody finds in the log what it tells of. */
  let distrusted = false;
  let leads = false;
  /** When the oldest batch that no checkpoint covers was formed. */
  let unsignedSince: Date | null = null;
  const alerts = metrics.count('cofre_log_alerts_total', 'Batches that are missing or forged, and logs that are not what was signed.');
  const checkpointSeconds = metrics.histogram('cofre_log_checkpoint_seconds', 'Time from the oldest batch of a checkpoint to its signature.');
  const leaves = metrics.count('cofre_log_leaves_total', 'Leaves that were added to the tree: entries, and one a batch.');

  let writer: GroupCommit<EntryOperation, EntryOutcome> | null = null;
  const told = new Set<string>();
  /** Resolves once the alert is committed. A step that fails after it is repeated, and would tell of the same again. */
  const alert = async (kind: string, detail: Readonly<Record<string, string | number>>): Promise<void> => {
    const id = JSON.stringify([kind, detail]);
    if (told.has(id)) return;
    alerts();
    log.error('the log was tampered with', { kind, reason: String(detail['reason'] ?? ''), writer: String(detail['writer'] ?? '') });
    if (kind === 'batch_distrusted' && writer !== null && detail['writer'] === writerName(writer.writer)) distrusted = true;
    await writer?.commit({ kind: 'entry', entry: { action: 'log.alert', at: now(), outcome: 'failed', detail: { kind, ...detail } } });
    if (told.size >= maxTold) told.clear();
    told.add(id);
  };
  const archive = await archiveOf(stack, home, config);
  const store = withArchivedTiles(postgresTreeStore(pool), archive);
  const sequencer = new Sequencer({ store, signer, name: config.log.origin, witnesses: [new WitnessFile(join(home, 'witness'))], alert, now });
  const intervalMs = milliseconds(config.log.checkpoint_interval);

  const sign = async (): Promise<void> => {
    const oldest = unsignedSince;
    unsignedSince = null;
    const putBack = (): void => {
      if (oldest !== null && (unsignedSince === null || oldest < unsignedSince)) unsignedSince = oldest;
    };
    try {
      if ((await sequencer.sign()) === null) return putBack();
      if (oldest !== null) checkpointSeconds(Math.max(0, now().getTime() - oldest.getTime()) / 1000);
      if (unsignable) log.info('checkpoints are signed again');
      unsignable = false;
    } catch (error) {
      putBack();
      // The tree goes on to grow. How long calls may go on meanwhile, the writers decide (bin/log-watching.ts).
      if (!unsignable) log.warn('no checkpoint could be signed', { error: describe(error) });
      unsignable = true;
    }
  };
  let triedAtMs = Number.NEGATIVE_INFINITY;
  let movedAtMs = performance.now();
  let signing: Promise<void> | null = null;

  await sequencer.open().catch((error: unknown) => {
    if (!(error instanceof LogFault)) throw error;
    throw new Error(`${error.message}. If it was restored on purpose, begin a new log that names this one: cofre audit restart`, { cause: error });
  });
  const lead = new Leadership(connection);
  const stop = new AbortController();
  const pause = (ms: number): Promise<void> => sleep(ms, undefined, { signal: stop.signal }).catch(() => undefined);
  const run = async (): Promise<void> => {
    while (!stop.signal.aborted) {
      let ms = standbyMs;
      try {
        const led = leads;
        leads = await lead.have();
        // Another has advanced the tree in the meantime.
        if (leads && !led) sequencer.forget();
        if (leads) {
          const { leaves: added, oldest, more } = await sequencer.step();
          leaves(added);
          if (oldest !== null && (unsignedSince === null || oldest < unsignedSince)) unsignedSince = oldest;
          if (signing === null && performance.now() - triedAtMs >= intervalMs) {
            triedAtMs = performance.now();
            signing = sign().finally(() => (signing = null));
          }
          if (added > 0) movedAtMs = performance.now();
          ms = more ? 0 : performance.now() - movedAtMs < restAfterMs ? idleMs : restMs;
        }
        if (failingSinceMs !== null || fault !== null) log.info('the log is sequenced again');
        failingSinceMs = null;
        fault = null;
      } catch (error) {
        if (error instanceof LogFault) {
          // Tried again all the same: a database that was turned back by mistake may be set right.
          if (fault !== error.message) await alert(error.kind, { reason: error.message }).catch(() => undefined);
          fault = error.message;
        } else if (failingSinceMs === null) {
          log.warn('the log could not be sequenced', { error: describe(error) });
          failingSinceMs = performance.now();
        }
        ms = failedMs;
      }
      if (ms > 0) await pause(ms);
    }
  };
  let running: Promise<void> = Promise.resolve();
  stack.defer(async () => {
    stop.abort();
    await running;
    // The writers have closed their chains: a checkpoint over their last entries. Whoever is killed before leaves it to the next start.
    const deadline = performance.now() + finishMs;
    try {
      for (let more = leads && fault === null; more && performance.now() < deadline; ) {
        const step = await sequencer.step(true);
        leaves(step.leaves);
        more = step.more || step.leaves > 0;
      }
      await signing;
      if (leads && fault === null) await sign();
    } catch (error) {
      log.warn('the log could not be sequenced', { error: describe(error) });
    }
    await lead.end();
  });

  metrics.gauge('cofre_log_size', 'Leaves of the tree.', () => sequencer.head?.size ?? 0, 'max');
  metrics.gauge('cofre_log_signed_size', 'Leaves under the last signed checkpoint.', () => sequencer.signed?.size ?? 0, 'max');
  metrics.gauge('cofre_log_unsigned_seconds', 'Age of the oldest batch that is in the tree and under no checkpoint.', () => (unsignedSince === null ? 0 : Math.max(0, now().getTime() - unsignedSince.getTime()) / 1000), 'max');

  const predecessor = await new LastBatchFile(join(home, 'writers', 'sequencer.json')).read();
  writer = await openWriter<EntryOperation, EntryOutcome>(stack, context, 'sequencer', 'sequencer', executeEntries);
  // What a sequencer tells of after somebody tampered with its own batches does not come into the log: the next one tells of it.
  const known = await readDistrusted(pool, 100);
  if (predecessor !== null && known.some((chain) => writerName(chain.writer) === predecessor.writer)) {
    for (const { writer: accused, next, reason } of known) await alert('batch_distrusted', { reason, writer: writerName(accused), next: Number(next) });
  }
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
      if (distrusted) return { ok: false, detail: 'the batches of the sequencer itself were tampered with: start the process again' };
      if (failingSinceMs !== null && performance.now() - failingSinceMs > patienceMs) return { ok: false, detail: `the log cannot be sequenced for ${Math.round((performance.now() - failingSinceMs) / 1000)} s` };
      if (unsignable) return { ok: true, detail: 'sequencing, but no checkpoint can be signed' };
      return { ok: true, detail: leads ? 'sequencing' : 'another process sequences' };
    },
  };
}

/**
 * The lock that saves several instances from doing the same work. It guards nothing: the tree's compare-and-swap does. Whoever holds it says every
 * other second that it lives, and the server frees it where nobody does: a machine that is gone closes no connection.
 */
class Leadership {
  readonly #connection: ClientConfig;
  #client: Client | null = null;
  #has = false;
  #askedAtMs = Number.NEGATIVE_INFINITY;

  constructor(connection: ClientConfig) {
    this.#connection = connection;
  }

  /** Whether this instance has the lock, trying to take it. @throws what the database throws. */
  async have(): Promise<boolean> {
    if (this.#client !== null && this.#has && performance.now() - this.#askedAtMs < 2000) return true;
    const client = this.#client ?? (await this.#connect());
    try {
      const { rows } = await client.query<{ got: boolean }>(this.#has ? 'SELECT true AS got' : 'SELECT pg_try_advisory_lock($1) AS got', this.#has ? [] : [sequencerLock]);
      this.#askedAtMs = performance.now();
      this.#has = rows[0]!.got;
      return this.#has;
    } catch (error) {
      this.#drop(client);
      throw error;
    }
  }

  async #connect(): Promise<Client> {
    const client = new Client({ ...this.#connection, application_name: 'cofre sequencer lock', connectionTimeoutMillis: 5000, query_timeout: 5000, keepAlive: true });
    client.on('error', () => undefined);
    client.on('end', () => this.#drop(client));
    try {
      await client.connect();
      await client.query("SET idle_session_timeout = '15s'");
    } catch (error) {
      void client.end().catch(() => undefined);
      throw error;
    }
    this.#client = client;
    return client;
  }

  #drop(client: Client): void {
    if (this.#client !== client) return;
    this.#client = null;
    this.#has = false;
    void client.end().catch(() => undefined);
  }

  async end(): Promise<void> {
    const client = this.#client;
    this.#client = null;
    this.#has = false;
    if (client === null) return;
    await Promise.race([client.end().catch(() => undefined), sleep(2000, undefined, { ref: false })]);
  }
}
