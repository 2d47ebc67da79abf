/**
 * Group commit: operations that wait at the same moment share one transaction, which also holds the batch of their entries.
 * They commit together or not at all, and nobody is answered, and nothing opened, before that (docs/MONEY-PATH.md, steps 5 to 7).
 *
 * A writer is one session that commits one batch at a time; while it does, the next operations gather in the queue. A flush in
 * the event-loop turn after the first arrival was as good as waiting a millisecond for more.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { WriterChain } from '../audit/append.ts';
import type { ChainHead, Receipt } from '../audit/append.ts';
import type { Batch } from '../audit/chain.ts';
import type { Entry } from '../audit/entry.ts';
import type { NoteSigner } from '../audit/note.ts';
import type { MadeIn } from './card-store.ts';
import { VaultError } from './errors.ts';
import type { ErrorCode } from './errors.ts';
import { insertEvents, renderEvents } from './outbox.ts';
import type { VaultEvent } from './outbox.ts';
import { begin, classify, prepareSession } from './writer-session.ts';
import type { WriterConnector, WriterSession } from './writer-session.ts';
import { FairQueue } from './fair-queue.ts';
import type { ClientBase } from 'pg';

/**
 * What an operation comes to. With an entry: the entry is committed together with whatever the operation wrote, and `outcome` is
 * answered afterwards. Without (`entry: null`): the operation wrote nothing, and its owner decides from `outcome` what to ask next.
 */
export interface Settlement<Outcome> {
  readonly entry: Entry | null;
  readonly outcome: Outcome;
  /** What the rest of the platform is to learn of; only of an operation with an entry. */
  readonly events?: readonly VaultEvent[];
}

/** One transaction's work for many operations: settlements in the order of the operations. */
export type Execute<Operation, Outcome> = (tx: ClientBase, operations: readonly Operation[], made: MadeIn) => Promise<readonly Settlement<Outcome>[]>;

/** An operation's outcome, and the receipt of its entry; null where it had no entry. */
export interface Committed<Outcome> {
  readonly outcome: Outcome;
  readonly receipt: Receipt | null;
}

/** Thrown by an `Execute` that met a concurrent writer: the transaction is rolled back and run again. */
export class TransactionConflict extends Error {}

export interface CommitLimits {
  /** Operations that may wait, and the sum of their weights; beyond it one is refused as `overloaded`, of the share that has most. */
  readonly maxQueue: number;
  readonly maxQueuedWeight: number;
  /** Operations in one transaction. */
  readonly maxCalls: number;
  /** Sum of the operations' weights (their items) in one transaction; a single heavier operation goes alone. */
  readonly maxWeight: number;
  /** How long an operation may wait for a transaction while the database is away, before `store_unavailable`. */
  readonly maxWaitMs: number;
  /** How long the callers of a batch whose COMMIT was not answered wait for it to be settled, before `outcome_unknown`. */
  readonly maxSettleMs: number;
  /** How long a statement may take. What shares a transaction with one that takes longer waits a little more than twice as long: see `slowParts`. */
  readonly maxStatementMs: number;
}

/** What is worth measuring; implemented by the telemetry adapter. None of these may throw. */
export interface CommitObserver {
  queued(depth: number): void;
  /** How long the operation of a group that came first had waited for its transaction. */
  waited(ms: number): void;
  committed(calls: number, weight: number, ms: number): void;
  /** A transaction that did not commit, by consequence: `conflict`, `refused`, `poison`, `slow`, `lost`, `commit_unknown`, `buried`, `found_committed`. */
  disturbed(kind: string, error: unknown): void;
}

export interface CommitOptions<Operation, Outcome> {
  readonly role: string;
  /** The log's name, as which the HSM's key certifies this writer. */
  readonly origin: string;
  readonly connector: WriterConnector;
  readonly signer: NoteSigner;
  readonly execute: Execute<Operation, Outcome>;
  /** The entry of an operation that failed in a way that its own code does not handle. */
  readonly failureEntry: (operation: Operation, code: ErrorCode, now: Date) => Entry;
  readonly limits: CommitLimits;
  /** Whether events are stored. Without a relay that takes them away their rows would stay for ever. */
  readonly outbox: boolean;
  readonly observer: CommitObserver;
  readonly now: () => Date;
  /** Facts for the start entry: what the predecessor left behind. */
  readonly startDetail: Readonly<Record<string, string | number>>;
  /** Told of every committed batch, in order. */
  readonly onHead: (head: ChainHead, closed: boolean) => void;
}

interface Waiting<Operation, Outcome> {
  readonly operation: Operation;
  readonly weight: number;
  readonly since: number;
  answered: boolean;
  /** With what the operation broke a transaction that held nothing else; null while it has not. */
  broken: { readonly cause: unknown } | null;
  readonly resolve: (committed: Committed<Outcome>) => void;
  readonly reject: (error: VaultError) => void;
}

/** What a transaction settled: the operations' outcomes in their order, or null for one that is broken. */
type Settled<Outcome> = readonly Settlement<Outcome | null>[];

type Attempt<Outcome> =
  | { readonly kind: 'committed'; readonly outcomes: Settled<Outcome>; readonly receipts: readonly Receipt[] }
  | { readonly kind: 'conflict' | 'poison' | 'slow'; readonly error: unknown }
  | { readonly kind: 'refused'; readonly error: unknown; readonly code: ErrorCode }
  | { readonly kind: 'lost'; readonly error: unknown }
  | { readonly kind: 'commit_unknown'; readonly error: unknown; readonly batch: Batch; readonly outcomes: Settled<Outcome> };

/** How often a group that is certain not to be committed is tried again, beside the time that it may wait for the database. */
const maxRetries = 5;

/**
 * A group with a statement that took too long is divided into so many parts, and these again, until its neighbours have committed without
 * what was slow (docs/decisions/0046). Halves would be more rounds, each of which waits for the slow one; single operations, more commits.
 */
const slowParts = 8;
/** The statements of such parts have this share of the usual time; all of them together have that time once more. */
const slowShare = 0.1;

/** One writer and its queue. `open` makes it ready; afterwards `commit` may be called concurrently without limit. */
export class GroupCommit<Operation, Outcome> {
  readonly #options: CommitOptions<Operation, Outcome>;
  #chain: WriterChain;
  #session: WriterSession | null;
  readonly #queue = new FairQueue<Waiting<Operation, Outcome>>();
  #wake: (() => void) | null = null;
  #closing = false;
  /** No new transactions, and no new attempts to reach the database, after this moment, once closing. */
  #giveUpAt = Number.POSITIVE_INFINITY;
  readonly #served: Promise<void>;
  readonly #expiry: NodeJS.Timeout;
  /** Since when (monotonic, ms) the writer has had no usable session; null while it has one. */
  #awaySince: number | null = null;
  /** See `logRefused`. */
  #logRefused = false;

  private constructor(options: CommitOptions<Operation, Outcome>, chain: WriterChain, session: WriterSession) {
    this.#options = options;
    this.#chain = chain;
    this.#session = session;
    // Nothing that the database, the HSM or a caller does makes this reject. A defect that does ends the process: what was
    // acknowledged is durable, and a writer that no longer serves would leave its callers waiting for ever.
    this.#served = this.#serve();
    this.#expiry = setInterval(() => this.#expire(), 250).unref();
  }

  /**
   * Connects, has the HSM certify a fresh writer and commits its start entry.
   *
   * @throws what the database or the HSM throws, if either is away: the process then does not start to serve.
   */
  static async open<Operation, Outcome>(options: CommitOptions<Operation, Outcome>): Promise<GroupCommit<Operation, Outcome>> {
    const session = await options.connector.connect();
    try {
      await prepareSession(session.client, options.limits.maxStatementMs);
      return new GroupCommit(options, await startChain(options, session.client), session);
    } catch (error) {
      session.destroy();
      throw error;
    }
  }

  /** The writer's id, as its batches carry it. */
  get writer(): bigint {
    return this.#chain.writer;
  }

  /** The last batch that is committed, and what certifies the writer: what must appear under a signed checkpoint. */
  get lastBatch(): { readonly batch: Batch; readonly certificate: string } {
    // Its start entry is committed before anybody has it.
    return { batch: this.#chain.last!, certificate: this.#chain.certificate };
  }

  /** How far the clock is behind the last batch, in ms: it was set back by that much, or more. 0 if it is not. */
  clockBehindMs(): number {
    return Math.max(0, this.#chain.last!.formedAt.getTime() - this.#options.now().getTime());
  }

  /** How long the writer has been without the database, in ms; 0 while it has it. */
  awayMs(): number {
    return this.#awaySince === null ? 0 : performance.now() - this.#awaySince;
  }

  /**
   * Whether the database, although it answers, has refused a batch and committed none since. While readiness says so, no call may
   * come that would find the log writable again: the composition root tries by itself.
   */
  get logRefused(): boolean {
    return this.#logRefused;
  }

  get depth(): number {
    return this.#queue.length;
  }

  /**
   * Resolves once the operation's entry is durably committed. Operations of one `share` are committed in their order; the shares take turns,
   * so that none of them waits for another's long queue. Where too many wait, the share that has most of the room gives way.
   *
   * @throws VaultError `overloaded` if too many wait; `store_unavailable` or `audit_unavailable` if nothing was or will be
   *   written; `outcome_unknown` if that cannot be told in time; `internal`, whose entry is committed already, if the operation
   *   itself broke its transaction.
   */
  commit(operation: Operation, items = 1, share = ''): Promise<Committed<Outcome>> {
    const { maxQueue, maxQueuedWeight } = this.#options.limits;
    // A batch of which no item came this far takes a place like any other: without a weight its share would never have most.
    const weight = Math.max(1, items);
    if (this.#closing) return Promise.reject(new VaultError('overloaded'));
    // One that is heavier than all that may wait is taken where nothing else waits.
    while (this.#queue.length >= maxQueue || (this.#queue.length > 0 && this.#queue.weight + weight > maxQueuedWeight)) {
      const dropped = this.#queue.makeRoom(share, weight);
      if (dropped === null) return Promise.reject(new VaultError('overloaded'));
      fail(dropped, 'overloaded');
    }
    return new Promise((resolve, reject) => {
      this.#queue.push(share, { operation, weight, since: performance.now(), answered: false, broken: null, resolve, reject });
      this.#options.observer.queued(this.#queue.length);
      this.#wake?.();
    });
  }

  /**
   * Commits what waits, closes the chain with a stop entry and ends the session. Waits at most `deadlineMs`, after which what
   * still waits is refused.
   */
  async close(deadlineMs: number): Promise<void> {
    this.#closing = true;
    this.#giveUpAt = performance.now() + deadlineMs;
    this.#wake?.();
    await this.#served;
    clearInterval(this.#expiry);
  }

  async #serve(): Promise<void> {
    for (;;) {
      if (this.#queue.length === 0) {
        if (this.#closing) break;
        // A lost session is replaced at once and not with the next call: while readiness says that the database is away, none may come.
        if (this.#session?.alive() !== true) {
          await this.#haveSession();
          continue;
        }
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        this.#wake = null;
        // Whatever else arrives in this turn of the event loop joins.
        await new Promise<void>((resolve) => setImmediate(resolve));
        continue;
      }
      if (!(await this.#haveSession())) {
        for (const waiting of this.#queue.takeAll()) fail(waiting, 'store_unavailable');
        continue;
      }
      const { maxCalls, maxWeight } = this.#options.limits;
      const group = this.#queue.take(maxCalls, maxWeight).filter((waiting) => !waiting.answered);
      if (group.length > 0) this.#options.observer.waited(performance.now() - Math.min(...group.map(({ since }) => since)));
      if (group.length > 0) await this.#commitGroup(group);
    }
    await this.#stop();
  }

  /** Commits a group whatever comes in between. Every member is answered when this returns. `hurryUntil`: a part of one that was slow. */
  async #commitGroup(group: readonly Waiting<Operation, Outcome>[], hurryUntil: number | null = null): Promise<void> {
    const { observer, limits } = this.#options;
    for (let retries = 0; ; ) {
      // Members whose callers gave up in the meantime are certain not to be committed, so they leave the group.
      const left = group.filter((waiting) => !waiting.answered);
      if (left.length === 0) return;
      if (!(await this.#haveSession(left))) {
        for (const waiting of left) fail(waiting, 'store_unavailable');
        return;
      }
      // Those that waited too long for the session were told that nothing of them was or will be written.
      const members = left.filter((waiting) => !waiting.answered);
      if (members.length === 0) return;
      if (hurryUntil !== null && performance.now() > hurryUntil) {
        for (const waiting of members) fail(waiting, 'store_unavailable');
        return;
      }
      const attempt = await this.#attempt(members, hurryUntil === null ? null : limits.maxStatementMs * slowShare);
      if (attempt.kind !== 'committed') observer.disturbed(attempt.kind, attempt.error);
      switch (attempt.kind) {
        case 'committed': {
          answer(members, attempt.outcomes, attempt.receipts);
          return;
        }
        case 'conflict': {
          retries += 1;
          if (retries <= maxRetries) {
            // Two that met in a circle would meet again: who was thrown back could take its lock before the other has woken.
            await sleep(Math.random() * 5 * retries);
            break;
          }
          for (const waiting of members) fail(waiting, 'store_unavailable', attempt.error);
          return;
        }
        case 'refused': {
          for (const waiting of members) fail(waiting, attempt.code, attempt.error);
          return;
        }
        case 'poison': {
          // One of them breaks the transaction. Halves find it in a logarithm of steps, and its neighbours commit without it.
          if (members.length === 1) {
            const culprit = members[0]!;
            if (culprit.broken !== null) {
              fail(culprit, 'audit_unavailable', attempt.error);
              return;
            }
            // Alone, it is the one: the next round commits nothing of it but the entry that says so.
            culprit.broken = { cause: attempt.error };
            break;
          }
          const half = members.length >> 1;
          await this.#commitGroup(members.slice(0, half), hurryUntil);
          await this.#commitGroup(members.slice(half), hurryUntil);
          return;
        }
        case 'slow': {
          // Alone, it is refused without an entry: it may be that nothing but a lock of somebody else's is to blame.
          if (members.length === 1) {
            fail(members[0]!, 'store_unavailable', attempt.error);
            return;
          }
          const until = hurryUntil ?? performance.now() + limits.maxStatementMs;
          const size = Math.ceil(members.length / slowParts);
          for (let from = 0; from < members.length; from += size) await this.#commitGroup(members.slice(from, from + size), until);
          return;
        }
        case 'lost': {
          // COMMIT was not sent: the server rolls back, and the same number is formed again.
          this.#dropSession();
          break;
        }
        case 'commit_unknown': {
          this.#dropSession();
          const settled = await this.#settle(members, attempt.batch);
          observer.disturbed(settled, attempt.error);
          if (settled === 'found_committed') {
            const receipts = this.#advance(attempt.batch);
            answer(members, attempt.outcomes, receipts);
            return;
          }
          if (settled === 'given_up') return;
          retries += 1;
          if (retries <= maxRetries) break;
          for (const waiting of members) fail(waiting, 'store_unavailable', attempt.error);
          return;
        }
      }
    }
  }

  /** One transaction, one try. Leaves the session clean, or the attempt says that it is lost. `statementMs`: the time of its statements, where that is not the usual. */
  async #attempt(members: readonly Waiting<Operation, Outcome>[], statementMs: number | null): Promise<Attempt<Outcome>> {
    const { execute, failureEntry, now } = this.#options;
    const session = this.#session!;
    const tx = session.client;
    const startedAt = now();
    const startedMs = performance.now();
    const made: MadeIn = { at: startedAt, writer: this.#chain.writer, batch: this.#chain.nextNumber };
    const begun = quiet(tx.query(statementMs === null ? begin : `${begin}; SET LOCAL statement_timeout = ${Math.ceil(statementMs)}`));

    // 5.1 The operations' own rows. Nothing is committed: a crash here leaves nothing behind.
    let outcomes: Settled<Outcome>;
    try {
      const [first] = members;
      outcomes =
        first !== undefined && first.broken !== null
          ? [{ entry: failureEntry(first.operation, 'internal', startedAt), outcome: null }]
          : await execute(tx, members.map((waiting) => waiting.operation), made);
      if (outcomes.length !== members.length) throw new Error('a transaction settled more or fewer operations than it was given');
      await begun;
    } catch (error) {
      return await this.#rollBack(session, error);
    }
    const entries = outcomes.flatMap((settlement) => (settlement.entry === null ? [] : [settlement.entry]));
    if (entries.length === 0) {
      const rolledBack = await this.#rollBack(session, null);
      return rolledBack.kind === 'lost' ? rolledBack : { kind: 'committed', outcomes, receipts: [] };
    }

    // 5.2 The batch of their entries and their events, and COMMIT right behind them on the wire.
    // A crash before COMMIT arrives leaves nothing; after it, everything is durable and nobody has been answered yet.
    let batch: Batch;
    let events: string | null = null;
    try {
      batch = this.#chain.form(entries, startedAt);
      const told = this.#options.outbox ? outcomes.flatMap((settlement) => settlement.events ?? []) : [];
      if (told.length > 0) events = renderEvents(told, startedAt);
    } catch (error) {
      return await this.#rollBack(session, error);
    }
    const appended = quiet(this.#chain.append(tx, batch));
    const stored = events === null ? null : quiet(insertEvents(tx, made, events));
    const committed = quiet(tx.query('COMMIT'));
    try {
      await appended;
      await stored;
    } catch (error) {
      if (!session.alive() || classify(error) === 'lost') return { kind: 'commit_unknown', error, batch, outcomes };
      // One of the two was refused, so COMMIT behind them can only have rolled back.
      await committed.catch(() => undefined);
      this.#logRefused = true;
      return { kind: 'refused', error, code: 'audit_unavailable' };
    }
    try {
      const { command } = await committed;
      if (command !== 'COMMIT') return { kind: 'refused', error: new Error('COMMIT was answered by a rollback'), code: 'store_unavailable' };
    } catch (error) {
      if (!session.alive()) return { kind: 'commit_unknown', error, batch, outcomes };
      const consequence = classify(error);
      if (consequence === 'lost') return { kind: 'commit_unknown', error, batch, outcomes };
      return consequence === 'refused' ? { kind: 'refused', error, code: 'store_unavailable' } : { kind: consequence, error };
    }

    // 6. Only now is anything true.
    const receipts = this.#advance(batch);
    this.#logRefused = false;
    this.#options.observer.committed(members.length, members.reduce((sum, waiting) => sum + waiting.weight, 0), performance.now() - startedMs);
    return { kind: 'committed', outcomes, receipts };
  }

  async #rollBack(session: WriterSession, error: unknown): Promise<Exclude<Attempt<Outcome>, { kind: 'committed' | 'commit_unknown' }>> {
    if (!session.alive()) return { kind: 'lost', error };
    try {
      await session.client.query('ROLLBACK');
    } catch (rollbackError) {
      return { kind: 'lost', error: error ?? rollbackError };
    }
    if (error instanceof TransactionConflict) return { kind: 'conflict', error };
    const consequence = classify(error);
    // The session lives, so an error without an SQLSTATE is one of our own code, met by one of the operations.
    if (consequence === 'lost') return { kind: hasSqlState(error) ? 'lost' : 'poison', error };
    return consequence === 'refused' ? { kind: 'refused', error, code: 'store_unavailable' } : { kind: consequence, error };
  }

  /**
   * 7. A COMMIT that was not answered: the tombstone decides, and the decision is final. Callers wait for it at most
   * `maxSettleMs`; the writer waits as long as the database is away, because it must not form another batch before.
   */
  async #settle(members: readonly Waiting<Operation, Outcome>[], batch: Batch): Promise<'found_committed' | 'buried' | 'given_up'> {
    const { limits, now } = this.#options;
    const tombstone = this.#chain.tombstone(now());
    const patience = setTimeout(() => {
      for (const waiting of members) fail(waiting, 'outcome_unknown');
    }, limits.maxSettleMs);
    try {
      for (;;) {
        if (!(await this.#haveSession())) {
          for (const waiting of members) fail(waiting, 'outcome_unknown');
          return 'given_up';
        }
        try {
          const standing = await this.#chain.bury(this.#session!.client, tombstone, batch);
          if (standing === 'committed') return 'found_committed';
          this.#advance(tombstone);
          return 'buried';
        } catch (error) {
          this.#options.observer.disturbed('settling', error);
          this.#dropSession();
          await sleep(100);
        }
      }
    } finally {
      clearTimeout(patience);
    }
  }

  #advance(batch: Batch): Receipt[] {
    const receipts = this.#chain.committed(batch);
    const head = this.#chain.head();
    if (head !== null) this.#options.onHead(head, false);
    return receipts;
  }

  /**
   * Makes sure of a session, trying again while any of `members` still waits (always, if it is empty) and the writer may go on.
   * Members that have waited too long are refused with `store_unavailable`: nothing of them was written.
   */
  async #haveSession(members: readonly Waiting<Operation, Outcome>[] = []): Promise<boolean> {
    const { limits, observer } = this.#options;
    const forMembers = members.length > 0;
    for (let delayMs = 20; ; delayMs = Math.min(delayMs * 2, 1000)) {
      const time = performance.now();
      if (time > this.#giveUpAt) return false;
      if (this.#session?.alive() === true) return true;
      this.#dropSession();
      if (forMembers) {
        for (const waiting of members) if (time - waiting.since > limits.maxWaitMs) fail(waiting, 'store_unavailable');
        if (members.every((waiting) => waiting.answered)) return false;
      }
      try {
        await this.#connect();
      } catch (error) {
        observer.disturbed('connect', error);
        await sleep(delayMs);
      }
    }
  }

  async #connect(): Promise<void> {
    const session = await this.#options.connector.connect();
    try {
      await prepareSession(session.client, this.#options.limits.maxStatementMs);
    } catch (error) {
      session.destroy();
      throw error;
    }
    this.#session = session;
    this.#awaySince = null;
  }

  #dropSession(): void {
    this.#session?.destroy();
    this.#session = null;
    this.#awaySince ??= performance.now();
  }

  /** Four times a second: refuses what has waited too long, and has the writer notice a session that was lost while nobody called. */
  #expire(): void {
    if (this.#session !== null && !this.#session.alive()) this.#wake?.();
    const limit = performance.now() - this.#options.limits.maxWaitMs;
    for (const waiting of this.#queue.takeHeads((head) => head.since < limit)) fail(waiting, 'store_unavailable');
  }

  /**
   * The stop entry tells that the chain ends here on purpose. Tried on the session and, should that turn out to be gone, on one new
   * one: what keeps the database away must not keep the process from ending. If the entry cannot be written, or its COMMIT is not
   * answered, the successor names an earlier batch instead, which is true as well.
   */
  async #stop(): Promise<void> {
    const at = this.#options.now();
    const batch = this.#chain.form([{ action: 'writer.stop', at, outcome: 'allowed', detail: { writer: this.#chain.name } }], at);
    for (let tries = 0; tries < 2 && performance.now() <= this.#giveUpAt; tries += 1) {
      try {
        if (this.#session?.alive() !== true) await this.#connect();
        const session = this.#session!;
        await session.client.query(begin);
        await this.#chain.append(session.client, batch);
        await session.client.query('COMMIT');
        this.#chain.committed(batch);
        this.#options.onHead(this.#chain.head()!, true);
        await session.end();
        return;
      } catch (error) {
        this.#options.observer.disturbed('stop', error);
        this.#dropSession();
      }
    }
    this.#dropSession();
  }
}

/** Registers a fresh writer: its row and its start entry, in one transaction. If the answer to COMMIT is lost, this writer is never used. */
async function startChain<Operation, Outcome>(options: CommitOptions<Operation, Outcome>, client: ClientBase): Promise<WriterChain> {
  const chain = await WriterChain.start({ role: options.role, origin: options.origin, signer: options.signer, now: options.now() });
  const batch = chain.form([{ action: 'writer.start', at: chain.startedAt, outcome: 'allowed', detail: { ...options.startDetail, role: options.role, writer: chain.name } }], chain.startedAt);
  await client.query(begin);
  await chain.register(client);
  await chain.append(client, batch);
  await client.query('COMMIT');
  chain.committed(batch);
  options.onHead(chain.head()!, false);
  return chain;
}

function answer<Operation, Outcome>(members: readonly Waiting<Operation, Outcome>[], outcomes: Settled<Outcome>, receipts: readonly Receipt[]): void {
  let next = 0;
  for (const [index, waiting] of members.entries()) {
    const settlement = outcomes[index]!;
    const receipt = settlement.entry === null ? null : receipts[next++]!;
    if (waiting.answered) continue;
    waiting.answered = true;
    if (settlement.outcome === null) {
      const failure = new VaultError('internal', { cause: waiting.broken?.cause });
      failure.recorded = true;
      waiting.reject(failure);
    } else waiting.resolve({ outcome: settlement.outcome, receipt });
  }
}

function fail<Operation, Outcome>(waiting: Waiting<Operation, Outcome>, code: ErrorCode, cause?: unknown): void {
  if (waiting.answered) return;
  waiting.answered = true;
  waiting.reject(new VaultError(code, { cause }));
}

/** Keeps a rejection that is awaited later from counting as unhandled in the meantime. */
function quiet<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined);
  return promise;
}

function hasSqlState(error: unknown): boolean {
  return typeof error === 'object' && error !== null && 'code' in error && typeof error.code === 'string' && error.code.length === 5;
}
