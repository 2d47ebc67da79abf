/**
 * The sequencer: gives the entries of committed batches their place in one Merkle tree, and has the HSM sign its heads.
 *
 * It reads the writers' batches in their order, checks each as an outsider would (`live-chain.ts`: chain, certificate, signature), appends a batch leaf
 * and the entries behind it, and advances the tree in one transaction by compare-and-swap on its size and root. Only a committed head is signed, and only
 * a signed one is published (`head-signing.ts`). There is no recovery beside this: after any failure the state is read again (`tree-loading.ts`) and the
 * ordinary step goes on. Any number of instances may run; those that lose a race read what the winner did.
 */
import { setImmediate as yieldTurn } from 'node:timers/promises';
import { batchLeafAction, encodeBatchLeaf } from './batch-leaf.ts';
import { writerName } from './chain.ts';
import type { Batch } from './chain.ts';
import type { Charter } from './charter.ts';
import type { Checkpoint } from './checkpoint.ts';
import { ChainSet } from './chain-set.ts';
import { HeadSigner } from './head-signing.ts';
import { distrust, follow, identify, isStop, leavesATurn, standsAt, unread } from './live-chain.ts';
import type { LiveChain } from './live-chain.ts';
import { leafHash } from './merkle.ts';
import type { Frontier } from './merkle.ts';
import { encodeVkey, parseVkey } from './note.ts';
import type { NoteSigner, NoteVerifier } from './note.ts';
import { blockEntries, SearchKeyReader, tokenKey } from './search-keys.ts';
import { LogFault } from './sequenced-log.ts';
import type { Advance, LogHead, TreeStore, Witness } from './sequenced-log.ts';
import { bearsOut, oneOfEachCircle, readPredecessor } from './succession.ts';
import type { Told } from './succession.ts';
import type { TileBuilder } from './tiles.ts';
import { loadTree } from './tree-loading.ts';

export interface SequencerOptions {
  readonly store: TreeStore;
  readonly signer: NoteSigner;
  /** Name as which writers are certified; the first log's origin. */
  readonly name: string;
  readonly witnesses: readonly Witness[];
  /**
   * Tells somebody of a batch that is missing or forged (`batch_distrusted`: nothing more of its writer is taken), or is not there as the writer's
   * successor says (`predecessor_missing`, `predecessor_differs`: nothing follows of it for the writer). Called before the step that leaves it behind is
   * committed, which it must not be if this throws; may be called again. At most `alertsAStep` a step, and one that counts the rest.
   */
  readonly alert: (kind: string, detail: Readonly<Record<string, string | number>>) => Promise<void>;
  readonly now: () => Date;
  /**
   * Batches of a writer, leaves of all, and about as many bytes of entries, in one step. So 200,000 entries of 380 bytes in batches of 32 took 27 steps,
   * 4.3 s of this process and 1.2 s of PostgreSQL: 36,000 a second on one core. Half of it is the batches' signatures, a quarter reading the entries.
   */
  readonly maxBatches?: number;
  readonly maxLeaves?: number;
  readonly maxBytes?: number;
  /** Writers that are looked at in every step: those that wrote last. Of the others, some in each. */
  readonly maxActive?: number;
}

export interface StepResult {
  readonly leaves: number;
  readonly batches: number;
  /** When the oldest batch of the step was formed. */
  readonly oldest: Date | null;
  /** Whether more was there than one step takes. */
  readonly more: boolean;
}

interface State {
  head: LogHead;
  readonly charter: Charter;
  readonly builder: TileBuilder;
  readonly frontier: Frontier;
  readonly chains: ChainSet<LiveChain>;
  /** Whom each waits for, of those whose first batch waits for their predecessor's last. */
  readonly waiting: Map<bigint, bigint>;
}

/** Time between two looks for new writers, in ms; how far back, since the clocks of their hosts differ; and between two looks at all of them. */
const meetEveryMs = 1000;
const clocksDifferMs = 3_600_000;
const meetAllEveryMs = 60_000;
/** Time between two looks for batches behind the end of a chain, in ms. */
const strayEveryMs = 600_000;
/** Rows that one look at the writers' batches may find at most, unless it is at more writers. */
const pendingRows = 4096;
const alertsAStep = 16;

const nothing: StepResult = { leaves: 0, batches: 0, oldest: null, more: false };

export class Sequencer {
  readonly #options: SequencerOptions;
  readonly #certifier: NoteVerifier;
  readonly #keys = new SearchKeyReader();
  /** The tree as `step` goes on from it; null while a step is under way, and after one that failed: then it is read again. */
  #state: State | null = null;
  /** The last head that is known to be committed; null before there is one, and while the tree is read. */
  #head: LogHead | null = null;
  readonly #heads: HeadSigner;
  #metAt = Number.NEGATIVE_INFINITY;
  #metAllAt = Number.NEGATIVE_INFINITY;
  #strayedAt = Number.NEGATIVE_INFINITY;

  constructor(options: SequencerOptions) {
    this.#options = options;
    this.#certifier = parseVkey(encodeVkey(options.name, options.signer.algorithm, options.signer.publicKeySpki));
    this.#heads = new HeadSigner({
      ...options,
      lost: () => {
        this.#head = null;
        this.#state = null;
      },
    });
  }

  /** The committed head as this instance knows it; null before it has read it. */
  get head(): LogHead | null {
    return this.#head;
  }

  /** The last checkpoint that was signed and stored. */
  get signed(): Checkpoint | null {
    return this.#heads.signed;
  }

  /** Reads the tree, and begins the log if there is none: what a start should fail with, it fails with here. @throws as `step`. */
  async open(): Promise<void> {
    this.#state ??= await this.#load();
  }

  /** Has the next step read the tree again: whoever takes over from another knows only what was before. Not while a step is under way. */
  forget(): void {
    this.#state = null;
  }

  /**
   * Integrates what writers have committed since the last step, up to a bound. After an exception the next call begins by reading the tree again.
   * Not for concurrent use, but while `sign` is under way.
   *
   * @param thorough looks at every writer, those that have long been silent too.
   * @throws LogFault if the tree is not what was signed or witnessed; what the store throws.
   */
  async step(thorough = false): Promise<StepResult> {
    const state = this.#head === null || this.#state === null ? await this.#load() : this.#state;
    this.#state = null;
    const result = await this.#advance(state, thorough);
    if (result === null) return { ...nothing, more: true };
    this.#state = state;
    return result;
  }

  /**
   * Signs the committed head if it has grown since the last checkpoint, keeps the checkpoint and gives it to the witnesses. Steps may go on meanwhile,
   * so that an HSM that is slow or away holds up nobody. Dies before it is kept: a signature that nobody has seen. Before it is published: the next
   * instance publishes it.
   *
   * @throws what the HSM, the store or a witness throws.
   */
  sign(): Promise<Checkpoint | null> {
    return this.#heads.sign(() => this.#head);
  }

  /** Reads the committed tree and the chains, and refuses a tree that is not the one that was signed. */
  async #load(): Promise<State> {
    const { store, maxActive = 256 } = this.#options;
    // A checkpoint that is being kept now would seem to be ahead of what is read here.
    this.#head = null;
    await this.#heads.idle();
    const { head, charter, builder, frontier, kept, unpublished } = await loadTree({ ...this.#options, certifier: this.#certifier, signed: this.#heads.signed });
    if (kept !== null) this.#heads.found(kept, unpublished);
    const chains = new ChainSet<LiveChain>(maxActive);
    for (const { writer, position, state } of await store.chains()) chains.add({ ...unread(writer), position, state, proven: false });
    this.#metAt = Number.NEGATIVE_INFINITY;
    this.#metAllAt = Number.NEGATIVE_INFINITY;
    this.#head = head;
    return { head, charter, builder, frontier, chains, waiting: new Map() };
  }

  /** One step on `state`, which is of no use any more if this throws or returns null: somebody else advanced the tree. */
  async #advance(state: State, thorough: boolean): Promise<StepResult | null> {
    const { store, maxBatches = 256, maxLeaves = 8192, maxBytes = 6 * 1024 * 1024 } = this.#options;
    const { head, chains, builder, frontier, waiting } = state;
    const touched = new Set<LiveChain>();

    // 1. Who writes. Those that wrote last are looked at in each step, the others in turn: of a writer that was killed something may still become visible.
    const time = performance.now();
    if (thorough || time - this.#metAt >= meetEveryMs) {
      const all = thorough || time - this.#metAllAt >= meetAllEveryMs;
      this.#metAt = time;
      if (all) this.#metAllAt = time;
      const since = all ? null : new Date(this.#options.now().getTime() - clocksDifferMs);
      const met: LiveChain[] = [];
      for (const { writer } of await store.newWriters(since)) {
        if (chains.get(writer) !== undefined) continue;
        met.push(unread(writer));
        chains.add(met.at(-1)!);
      }
      // Of many at once, the rest show who they are with their first batch.
      await identify(store, this.#certifier, met.slice(0, 256), touched);
    }
    if (thorough || time - this.#strayedAt >= strayEveryMs) {
      this.#strayedAt = time;
      for (const { writer, position } of await store.strays()) {
        const chain: LiveChain = { ...unread(writer), position, proven: true };
        distrust(chain, `batch ${position.next} stands behind the end of the chain`, touched);
      }
    }
    const polled = chains.due(thorough);

    // 2. What they committed.
    const limit = Math.max(1, Math.min(maxBatches, Math.ceil(pendingRows / Math.max(1, polled.length))));
    const pendingOf = async (of: readonly LiveChain[], atMost: number): Promise<Batch[]> => await store.pending(of.map(({ writer, position }) => ({ writer, next: position.next })), atMost, maxBytes);
    const found = await pendingOf(polled.filter(({ writer }) => !waiting.has(writer)), limit);
    // Of who waits, no more than what it waits with: all that stands behind it could be older than what it waits for, and fill every step.
    const held = waiting.size === 0 ? [] : await pendingOf(polled.filter(({ writer }) => waiting.has(writer)), 1);
    const queues = new Map<bigint, Batch[]>();
    let bytes = 0;
    for (const batch of [...found, ...held]) {
      if (!waiting.has(batch.writer)) bytes += batch.bundle.length;
      const queue = queues.get(batch.writer);
      if (queue === undefined) queues.set(batch.writer, [batch]);
      else queue.push(batch);
    }
    let more = held.length > 0 || bytes >= maxBytes || [...queues].some(([writer, queue]) => !waiting.has(writer) && queue.length >= limit);
    await identify(store, this.#certifier, [...queues.keys()].map((writer) => chains.get(writer)!), touched);
    for (const writer of queues.keys()) {
      const chain = chains.get(writer)!;
      chains.moved(chain);
      if (!chain.proven && chain.state !== 'distrusted' && !(await this.#stands(chain, state))) return null;
    }

    // 3. Their leaves, by the time of the batches as far as the chains allow.
    const batches: Advance['batches'][number][] = [];
    const tokens: Advance['tokens'][number][] = [];
    const facets: Advance['facets'][number][] = [];
    const blockOf = new Map<bigint, number>();
    const unborne: Told[] = [];
    let oldest: Date | null = null;
    let size = head.size;
    const append = (leaf: Uint8Array, entry: Readonly<Record<string, unknown>>): void => {
      const hash = leafHash(leaf);
      frontier.append(hash);
      builder.append(hash);
      const keys = this.#keys.read(entry);
      for (const token of keys.tokens) tokens.push({ key: tokenKey(token), entry: size });
      const block = Math.floor(size / blockEntries);
      for (const key of keys.facets) {
        // Indexes ascend, so a key that was seen in this block was seen in it last.
        if (blockOf.get(key) === block) continue;
        blockOf.set(key, block);
        facets.push({ key, block });
      }
      size += 1;
    };
    for (let sinceTurn = 0; queues.size > 0 && size - head.size < maxLeaves; ) {
      const batch = oldestOf(queues);
      const queue = queues.get(batch.writer)!;
      queue.shift();
      if (queue.length === 0) queues.delete(batch.writer);
      const chain = chains.get(batch.writer)!;
      if (chain.state === 'distrusted') {
        queues.delete(batch.writer);
        continue;
      }
      const followed = follow(chain, batch);
      if (typeof followed === 'string') {
        distrust(chain, followed, touched);
        queues.delete(batch.writer);
        continue;
      }
      const { entries, parsed, position } = followed;
      const claim = batch.number === 0n ? readPredecessor(parsed[0]) : null;
      const borneOut = claim === null || (await bearsOut(store, claim, chain, state, this.#options.now()));
      if (borneOut === 'not yet') {
        waiting.set(chain.writer, claim!.writer);
        queues.delete(batch.writer);
        continue;
      }
      waiting.delete(chain.writer);
      if (borneOut !== true) unborne.push(borneOut);
      batches.push({ firstIndex: size, writer: batch.writer, number: batch.number, entryCount: batch.entryCount, formedAt: batch.formedAt });
      if (oldest === null || batch.formedAt < oldest) oldest = batch.formedAt;
      append(encodeBatchLeaf(batch, batch.number === 0n ? chain.identity!.certificate : null), batchLeafEntry);
      for (const [index, entry] of entries.entries()) append(entry, parsed[index]!);
      chain.position = position;
      if (isStop(parsed.at(-1), batch.writer)) chain.state = 'closed';
      touched.add(chain);
      sinceTurn += 1 + entries.length;
      if (sinceTurn >= leavesATurn) {
        sinceTurn = 0;
        await yieldTurn();
      }
    }
    more ||= queues.size > 0;
    // Who waits has a predecessor with batches to come, which the next step looks at.
    for (const writer of oneOfEachCircle(waiting)) chains.get(writer)!.waits = false;
    more ||= waiting.size > 0;

    // 4. Tell of it. Dies after this: it is told again, which is better than never.
    // Writers that nobody certified come last: whoever may write to the database makes as many as it takes to bury the others among them.
    const [known, strangers] = [true, false].map((of) => [...touched].filter(({ state: now, identity, position }) => now === 'distrusted' && (identity !== null || position.next > 0n) === of));
    const distrusted = [...known!, ...strangers!].map(({ writer, position, reason }): Told => ({ kind: 'batch_distrusted', detail: { reason: reason!, writer: writerName(writer), next: Number(position.next) } }));
    const alerts = [...unborne, ...distrusted];
    const told = alerts.slice(0, alertsAStep).map(({ kind, detail }) => this.#options.alert(kind, detail));
    if (alerts.length > alertsAStep) told.push(this.#options.alert('more_alerts', { alerts: alerts.length - alertsAStep }));
    await Promise.all(told);

    // 5. All of it, or nothing. Dies before: the batches wait. After: the tree has grown, unsigned.
    if (touched.size === 0) return { ...nothing, more };
    const root = frontier.root();
    const committed = await store.advance(head, {
      size, root, batches, tokens, facets,
      chains: [...touched].map(({ writer, position, state: now, reason }) => ({ writer, position, state: now, reason })),
      tiles: builder.take(),
    });
    if (!committed) return null;
    state.head = { ...head, size, root };
    // Unless `sign` has found meanwhile that the database lost what it had.
    if (this.#head !== null) this.#head = state.head;
    for (const chain of touched) {
      chain.proven = true;
      if (chain.state === 'distrusted') waiting.delete(chain.writer);
      if (chain.state === 'closed' || chain.state === 'distrusted') chains.remove(chain.writer);
    }
    return { leaves: size - head.size, batches: batches.length, oldest, more };
  }

  /**
   * Makes sure that a chain goes on from where the tree holds it.
   *
   * @returns false if another instance has advanced the tree since it was read. @throws LogFault if the database has another position of it.
   */
  async #stands(chain: LiveChain, { head, charter }: State): Promise<boolean> {
    const { store } = this.#options;
    if (!(await standsAt(store, chain, head, charter))) {
      // Chains are read after the head.
      const now = await store.head();
      if (now?.logId !== head.logId || now.size !== head.size) return false;
      throw new LogFault('rewritten', `the log does not hold batch ${chain.position.next - 1n} of writer ${writerName(chain.writer)}, from which the database says that it goes on`);
    }
    chain.proven = true;
    return true;
  }
}

/** What a batch's own leaf is found by. */
const batchLeafEntry = { action: batchLeafAction, outcome: 'allowed' } as const;

function oldestOf(queues: ReadonlyMap<bigint, readonly Batch[]>): Batch {
  let oldest: Batch | null = null;
  for (const [first] of queues.values()) if (oldest === null || first!.formedAt < oldest.formedAt) oldest = first!;
  return oldest!;
}
