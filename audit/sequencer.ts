/**
 * The sequencer: gives the entries of committed batches their place in one Merkle tree, and has the HSM sign its heads.
 *
 * It reads the writers' batches in their order, checks each as an outsider would (chain, certificate, signature, what a successor says of its
 * predecessor), appends a batch leaf and the entries behind it, and advances the tree in one transaction by compare-and-swap on its size and
 * root. Only a committed head is signed, and only a signed one is published. There is no recovery beside this: after any failure the state is
 * read again and the ordinary step goes on. Any number of instances may run; those that lose a race read what the winner did.
 */
import { setImmediate as yieldTurn } from 'node:timers/promises';
import type { KeyObject } from 'node:crypto';
import { batchLeafAction, encodeBatchLeaf } from './batch-leaf.ts';
import { chainStart, followChain, headerHash, batchHeader, noPredecessor, readWriterCertificate, writerName } from './chain.ts';
import type { Batch, ChainPosition } from './chain.ts';
import { newLog, readCharter } from './charter.ts';
import type { Charter } from './charter.ts';
import { openCheckpoint, signCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import { ChainSet } from './chain-set.ts';
import { decodeBundle, readEntry } from './entry.ts';
import { consistencyProof, frontierOf, inclusionProof, leafHash, verifyConsistency, verifyInclusion } from './merkle.ts';
import type { Frontier, HashReader } from './merkle.ts';
import { encodeVkey, openNote, parseVkey } from './note.ts';
import type { NoteSigner, NoteVerifier } from './note.ts';
import { blockEntries, SearchKeyReader, tokenKey } from './search-keys.ts';
import { TileBuilder, tileReader, tileWidthAt } from './tiles.ts';

/** The tree as it is committed. */
export interface LogHead {
  readonly logId: number;
  readonly origin: string;
  readonly size: number;
  /** 32 bytes. */
  readonly root: Buffer;
}

/** `open`: more may come. `closed`: it said that it ended. `succeeded`: another writer took its place. `distrusted`: nothing of it is taken any more. */
export type ChainState = 'open' | 'closed' | 'succeeded' | 'distrusted';

export interface StoredChain {
  readonly writer: bigint;
  readonly position: ChainPosition;
  readonly state: ChainState;
}

/** A log that begins: one leaf, which is its charter. */
export interface NewLog {
  readonly head: LogHead;
  readonly firstLeaf: Buffer;
  readonly at: Date;
}

export interface RegisteredWriter {
  readonly writer: bigint;
  readonly certificate: string;
}

/** What one step adds. All of it is committed, or nothing. */
export interface Advance {
  readonly size: number;
  readonly root: Buffer;
  readonly batches: readonly { readonly firstIndex: number; readonly writer: bigint; readonly number: bigint; readonly entryCount: number; readonly formedAt: Date }[];
  readonly chains: readonly (StoredChain & { readonly reason: string | null })[];
  readonly tiles: readonly { readonly level: number; readonly index: number; readonly hashes: Buffer }[];
  readonly tokens: readonly { readonly key: bigint; readonly entry: number }[];
  readonly facets: readonly { readonly key: bigint; readonly block: number }[];
}

/** Where the tree is kept. Every method may throw, and then says nothing about whether it took effect. */
export interface TreeStore {
  /** The log in use; null before there is one. */
  head(): Promise<LogHead | null>;
  /** Starts a log with its first leaf, unless one of its number is there. Durable when it resolves. */
  create(log: NewLog): Promise<void>;
  /** The first leaf of a log. */
  firstLeaf(logId: number): Promise<Buffer>;
  /** The hashes of a tile, as many as it has so far; null where it has none. */
  tile(logId: number, level: number, index: number): Promise<Buffer | null>;
  /** Chains that more may come of, open and succeeded ones: that which moved last, last. */
  chains(): Promise<StoredChain[]>;
  chain(writer: bigint): Promise<StoredChain | null>;
  /** Writers that no chain is kept of yet, oldest first; only those that started after `since`, by their own clocks, unless it is null. */
  newWriters(since: Date | null): Promise<{ readonly writer: bigint; readonly startedAt: Date }[]>;
  certificates(writers: readonly bigint[]): Promise<RegisteredWriter[]>;
  /**
   * In one snapshot, for each writer: its batches from `next` on, in order, at most `limit`; of all of them the oldest `maxBytes`, and one at least.
   * A row that cannot be read as a batch is given as one that nobody signed.
   */
  pending(positions: readonly { readonly writer: bigint; readonly next: bigint }[], limit: number, maxBytes: number): Promise<Batch[]>;
  batch(writer: bigint, number: bigint): Promise<Batch | null>;
  /** The first batches of a log that stand at `from` or behind it, in order, as many as fit into about `maxBytes`, and one at least; null is one that is gone. */
  placed(logId: number, from: number, maxBytes: number): Promise<readonly { readonly firstIndex: number; readonly batch: Batch | null }[]>;
  /** Index of a batch's leaf; null if it is not in the tree of that log. */
  placeOf(logId: number, writer: bigint, number: bigint): Promise<number | null>;
  /** Some of the closed chains that a batch stands beyond the end of. */
  strays(): Promise<StoredChain[]>;
  /**
   * Commits a step durably. False, and nothing written, if the head is no longer `from`.
   *
   * @throws LogFault if one of its batches stands in the tree already.
   */
  advance(from: LogHead, step: Advance): Promise<boolean>;
  /** The largest signed checkpoint of a log, as a note; null if there is none. */
  checkpoint(logId: number): Promise<string | null>;
  /** Keeps a signed checkpoint of `head` durably; keeps the first of a size. False, and nothing kept, if the log in the database is not that long any more. */
  addCheckpoint(head: LogHead, note: string, at: Date): Promise<boolean>;
}

/** Takes checkpoints out of the database at once, so that its administrator cannot rewrite what they tell of. A file, a topic, an object store. */
export interface Witness {
  /** Durable when it resolves. Called in the order of sizes by an instance, but for one that lost a race to another; after a failure or a crash, again. */
  publish(note: string, at: Date): Promise<void>;
  /** The largest one published of the log that was published of last, as a note; null if there is none. */
  last(): Promise<string | null>;
}

/** What must never be, with a word for metrics. The sequencer ends with it; nothing was signed. */
export class LogFault extends Error {
  readonly kind: 'behind_witness' | 'rewritten' | 'corrupt';

  constructor(kind: LogFault['kind'], message: string) {
    super(message);
    this.kind = kind;
  }
}

export interface SequencerOptions {
  readonly store: TreeStore;
  readonly signer: NoteSigner;
  /** Name as which writers are certified; the first log's origin. */
  readonly name: string;
  readonly witnesses: readonly Witness[];
  /**
   * Tells somebody of a batch that is missing or forged. Called before the step that leaves its writer behind is committed, which it must not be if this
   * throws; may be called again. At most `alertsAStep` a step, and one that counts the rest.
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

interface Chain {
  readonly writer: bigint;
  /** Its certificate and the key that this certifies; null as long as nothing was read of it. */
  identity: { readonly certificate: string; readonly key: KeyObject } | null;
  /** Whether `position` is known to be that of the tree: this instance brought it there, or has found the last batch in the tree. */
  proven: boolean;
  position: ChainPosition;
  state: ChainState;
  reason: string | null;
  /** Steps in which it waited for its predecessor and nothing moved. */
  stuck: number;
}

interface State {
  head: LogHead;
  readonly charter: Charter;
  readonly builder: TileBuilder;
  readonly frontier: Frontier;
  readonly chains: ChainSet<Chain>;
}

/** Time between two looks for new writers, in ms; how far back, since the clocks of their hosts differ; and between two looks at all of them. */
const meetEveryMs = 1000;
const clocksDifferMs = 3_600_000;
const meetAllEveryMs = 60_000;
/** Time between two looks for batches behind the end of a chain, in ms. */
const strayEveryMs = 600_000;
/** Leaves after which other work of the process gets its turn, in about a millisecond: p99 of calls beside it was 65 and 58 ms, and 83 and 62 ms with 256, in two pairs on a noisy machine. */
const leavesATurn = 32;
/** Rows that one look at the writers' batches may find at most, unless it is at more writers. */
const pendingRows = 4096;
const alertsAStep = 16;
/** A chain of a writer that waits for its predecessor, and that for another, is resolved from its end: each step moves one. */
const stuckSteps = 3;
/** Longer than any certificate of ours; a signed note may carry lines that its signature does not cover. */
const maxCertificate = 4096;

const nothing: StepResult = { leaves: 0, batches: 0, oldest: null, more: false };

export class Sequencer {
  readonly #options: SequencerOptions;
  readonly #certifier: NoteVerifier;
  readonly #keys = new SearchKeyReader();
  /** The tree as `step` goes on from it; null while a step is under way, and after one that failed: then it is read again. */
  #state: State | null = null;
  /** The last head that is known to be committed; null before there is one, and while the tree is read. */
  #head: LogHead | null = null;
  #signed: Checkpoint | null = null;
  #signing: Promise<Checkpoint | null> | null = null;
  /** Signed and stored, but not yet with every witness. */
  #unpublished: { readonly note: string; readonly at: Date } | null = null;
  #metAt = Number.NEGATIVE_INFINITY;
  #metAllAt = Number.NEGATIVE_INFINITY;
  #strayedAt = Number.NEGATIVE_INFINITY;

  constructor(options: SequencerOptions) {
    this.#options = options;
    this.#certifier = parseVkey(encodeVkey(options.name, options.signer.algorithm, options.signer.publicKeySpki));
  }

  /** The committed head as this instance knows it; null before it has read it. */
  get head(): LogHead | null {
    return this.#head;
  }

  /** The last checkpoint that was signed and stored. */
  get signed(): Checkpoint | null {
    return this.#signed;
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
    this.#signing ??= this.#signHead().finally(() => {
      this.#signing = null;
    });
    return this.#signing;
  }

  async #signHead(): Promise<Checkpoint | null> {
    if (this.#unpublished !== null) await this.#publish(this.#unpublished.note, this.#unpublished.at);
    const { store, now } = this.#options;
    const head = this.#head;
    if (head === null || (this.#signed !== null && this.#signed.origin === head.origin && this.#signed.size >= head.size)) return null;
    const checkpoint: Checkpoint = { origin: head.origin, size: head.size, root: head.root };
    const note = await signCheckpoint(checkpoint, this.#options.signer);
    const at = now();
    // The database may have lost what it had committed, by a failover or a restore. Then nobody sees this signature, and what stands there is read.
    if (!(await store.addCheckpoint(head, note, at))) {
      this.#head = null;
      this.#state = null;
      return null;
    }
    this.#signed = checkpoint;
    await this.#publish(note, at);
    return checkpoint;
  }

  async #publish(note: string, at: Date): Promise<void> {
    this.#unpublished = { note, at };
    for (const witness of this.#options.witnesses) await witness.publish(note, at);
    this.#unpublished = null;
  }

  /** Reads the committed tree, and refuses it if it is not the one that was signed. */
  async #load(): Promise<State> {
    const { store, name, now, witnesses, maxActive = 256 } = this.#options;
    // A checkpoint that is being kept now would seem to be ahead of what is read here.
    this.#head = null;
    await this.#signing?.catch(() => undefined);
    // Read in the opposite order of writing, witness, checkpoint, head: whatever another instance does meanwhile, what is read later is not behind.
    const published = await Promise.all(witnesses.map((witness) => witness.last()));
    let before = await store.head();
    if (before === null) {
      // A vault that has witnessed a log, or signed one, does not start another as if it were the first.
      if (this.#signed !== null || published.some((note) => note !== null)) throw new LogFault('behind_witness', 'the database has no log, but a checkpoint of one was witnessed: it was restored from before the log began, or exchanged');
      // Dies before: nothing is there. After: a log of one leaf, unsigned. A rival's charter that came first is the log's.
      await store.create(await newLog({ logId: 1, origin: name, startedAt: now(), predecessor: null, carried: [] }, name, this.#options.signer));
      before = await store.head();
      if (before === null) throw new Error('a log that was made is not there');
    }
    const { logId } = before;
    const stored = await store.checkpoint(logId);
    const head = await store.head();
    if (head === null || head.logId !== logId) throw new Error('the log was exchanged while it was read');
    const { size } = head;
    // Only the HSM starts a log: a database administrator cannot begin a new one beside the one that is witnessed.
    const firstLeaf = await store.firstLeaf(logId);
    const charter = readCharter(firstLeaf, [this.#certifier]);
    if (charter === null || charter.origin !== head.origin) throw new LogFault('rewritten', 'the log in the database was not begun by this vault');
    const edges = new Map<number, Buffer>();
    for (let level = 0; Math.floor(size / 256 ** level) > 0; level += 1) {
      const index = Math.floor(size / 256 ** (level + 1));
      const width = tileWidthAt(level, index, size);
      if (width > 0) edges.set(level, await this.#tile(logId, level, index, width));
    }
    const reader = this.#reader(head);
    const frontier = await frontierOf(size, reader);
    if (!frontier.root().equals(head.root)) throw new LogFault('corrupt', 'the tiles of the log do not give its root');

    const verifiers = [parseVkey(encodeVkey(head.origin, this.#options.signer.algorithm, this.#options.signer.publicKeySpki))];
    const kept = stored === null ? null : openCheckpoint(stored, verifiers);
    if (stored !== null && kept === null) throw new LogFault('rewritten', 'a stored checkpoint is not signed by this log\'s key');
    const held: Checkpoint[] = [];
    for (const note of published) {
      // Of the log before this one, which the charter names, nothing can follow in this one.
      if (note === null || (charter.predecessor !== null && note.startsWith(`${charter.predecessor.origin}\n`))) continue;
      const checkpoint = openCheckpoint(note, verifiers);
      if (checkpoint === null) throw new LogFault('behind_witness', `a witnessed checkpoint is of another log than ${head.origin}, or not signed by this log's key`);
      held.push(checkpoint);
    }
    // What this instance signed earlier holds as well, whatever the database says by now.
    if (this.#signed !== null) held.push(this.#signed);
    for (const checkpoint of held) await this.#assertExtends(checkpoint, head, reader, true);
    if (kept !== null) await this.#assertExtends(kept, head, reader, false);
    // It is stored before anybody sees it, so one that is not there any more was taken away.
    for (const { size: witnessed } of held) if (kept === null || kept.size < witnessed) throw new LogFault('behind_witness', `the checkpoint of ${witnessed} entries, which was witnessed, is gone from the database`);
    await this.#assertWritten(head, kept ?? { size: 1, root: leafHash(firstLeaf) }, charter, reader);
    if (kept !== null) this.#signed = kept;
    // The last one may not have reached every witness.
    if (stored !== null && published.some((note) => note !== stored)) this.#unpublished ??= { note: stored, at: now() };

    const chains = new ChainSet<Chain>(maxActive);
    for (const { writer, position, state } of await store.chains()) {
      chains.add({ writer, position, state, identity: null, proven: false, reason: null, stuck: 0 }, state === 'succeeded');
    }
    this.#metAt = Number.NEGATIVE_INFINITY;
    this.#metAllAt = Number.NEGATIVE_INFINITY;
    this.#head = head;
    return { head, charter, builder: new TileBuilder(size, edges), frontier, chains };
  }

  #reader({ logId, size }: Pick<LogHead, 'logId' | 'size'>): HashReader {
    return tileReader(size, async (ref) => await this.#tile(logId, ref.level, ref.index, ref.width));
  }

  async #tile(logId: number, level: number, index: number, width: number): Promise<Buffer> {
    const tile = await this.#options.store.tile(logId, level, index);
    if (tile === null || tile.length < width * 32) throw new LogFault('corrupt', `tile ${level}/${index} of the log is missing or cut short`);
    return tile.subarray(0, width * 32);
  }

  async #assertExtends(earlier: Checkpoint, head: LogHead, reader: Parameters<typeof consistencyProof>[2], witnessed: boolean): Promise<void> {
    if (earlier.origin !== head.origin) throw new LogFault('behind_witness', `a checkpoint of log ${earlier.origin} was witnessed, which is not the one in the database`);
    if (earlier.size > head.size) {
      const what = witnessed ? 'witnessed' : 'signed';
      throw new LogFault('behind_witness', `a checkpoint of ${earlier.size} entries was ${what}, but the log in the database has ${head.size}: the database was restored from an older backup, or cut off`);
    }
    const proof = earlier.size === head.size ? [] : await consistencyProof(earlier.size, head.size, reader);
    if (!verifyConsistency(earlier.size, head.size, earlier.root, head.root, proof)) throw new LogFault('rewritten', `the log in the database is not the one whose first ${earlier.size} entries were signed`);
  }

  /**
   * That behind `signed` there stands what steps have appended: batches as their writers signed them, each behind the one before it. Until a checkpoint covers
   * it, only the database says so, and whoever writes there could have any leaf signed, and proven to everybody. @throws LogFault
   */
  async #assertWritten(head: LogHead, signed: Pick<Checkpoint, 'size' | 'root'>, charter: Charter, reader: HashReader): Promise<void> {
    const { store, maxBytes = 6 * 1024 * 1024 } = this.#options;
    const wrong = (index: number): LogFault => new LogFault('rewritten', `the log in the database has leaves behind its last checkpoint that are no writer's, from ${index} on`);
    const frontier = await frontierOf(signed.size, reader);
    if (!frontier.root().equals(signed.root)) throw wrong(0);
    const chains = new Map<bigint, Chain>();
    for (let sinceTurn = 0; frontier.size < head.size; ) {
      const found = await store.placed(head.logId, frontier.size, maxBytes);
      if (found.length === 0) throw wrong(frontier.size);
      const met = found.flatMap(({ batch }) => (batch === null || chains.has(batch.writer) ? [] : [batch]));
      for (const batch of met) if (!chains.has(batch.writer)) chains.set(batch.writer, { ...unread(batch.writer), position: await this.#before(batch, head.logId, signed, charter) });
      await this.#identify(met.map(({ writer }) => chains.get(writer)!), new Set());
      for (const { firstIndex, batch } of found) {
        if (frontier.size === head.size) break;
        const chain = batch === null ? undefined : chains.get(batch.writer);
        const identity = chain?.identity ?? null;
        if (batch === null || chain === undefined || identity === null || firstIndex !== frontier.size) throw wrong(frontier.size);
        const followed = follow(chain, batch);
        if (typeof followed === 'string') throw wrong(frontier.size);
        frontier.append(leafHash(encodeBatchLeaf(batch, batch.number === 0n ? identity.certificate : null)));
        for (const entry of followed.entries) frontier.append(leafHash(entry));
        chain.position = followed.position;
        if (isStop(followed.parsed.at(-1), batch.writer)) chain.state = 'closed';
        sinceTurn += 1 + batch.entryCount;
        if (sinceTurn < leavesATurn) continue;
        sinceTurn = 0;
        await yieldTurn();
      }
    }
    if (!frontier.root().equals(head.root)) throw wrong(signed.size);
  }

  /** Where a chain stood before `batch`, by what is signed: at its beginning, or behind a batch that stands in the tree of `signed`. */
  async #before({ writer, number }: Batch, logId: number, signed: Pick<Checkpoint, 'size' | 'root'>, charter: Charter): Promise<ChainPosition> {
    const { store } = this.#options;
    if (number === 0n) return chainStart;
    const carried = charter.carried.find((each) => each.writer === writer && each.next === number);
    if (carried !== undefined) return { next: number, previous: carried.previous, formedAt: null };
    const last = await store.batch(writer, number - 1n);
    const place = await store.placeOf(logId, writer, number - 1n);
    if (last !== null && place !== null && place < signed.size) {
      const [registered] = last.number === 0n ? await store.certificates([writer]) : [];
      const leaf = leafHash(encodeBatchLeaf(last, last.number === 0n ? (registered?.certificate ?? '') : null));
      if (verifyInclusion(leaf, place, signed.size, signed.root, await inclusionProof(place, signed.size, this.#reader({ logId, size: signed.size })))) return { next: number, previous: headerHash(batchHeader(last)), formedAt: last.formedAt };
    }
    // No batch can follow this one.
    return { next: -1n, previous: noPredecessor, formedAt: null };
  }

  /** One step on `state`, which is of no use any more if this throws or returns null: somebody else advanced the tree. */
  async #advance(state: State, thorough: boolean): Promise<StepResult | null> {
    const { store, maxBatches = 256, maxLeaves = 8192, maxBytes = 6 * 1024 * 1024 } = this.#options;
    const { head, chains, builder, frontier } = state;
    const touched = new Set<Chain>();

    // 1. Who writes. Those that wrote last are looked at in each step, the others in turn: of a writer that was killed something may still become visible.
    const time = performance.now();
    if (thorough || time - this.#metAt >= meetEveryMs) {
      const all = thorough || time - this.#metAllAt >= meetAllEveryMs;
      this.#metAt = time;
      if (all) this.#metAllAt = time;
      const since = all ? null : new Date(this.#options.now().getTime() - clocksDifferMs);
      const met: Chain[] = [];
      for (const { writer } of await store.newWriters(since)) {
        if (chains.get(writer) !== undefined) continue;
        met.push(unread(writer));
        chains.add(met.at(-1)!);
      }
      // Of many at once, the rest show who they are with their first batch.
      await this.#identify(met.slice(0, 256), touched);
    }
    if (thorough || time - this.#strayedAt >= strayEveryMs) {
      this.#strayedAt = time;
      for (const { writer, position } of await store.strays()) {
        const chain: Chain = { ...unread(writer), position, proven: true };
        distrust(chain, `batch ${position.next} stands behind the end of the chain`, touched);
      }
    }
    const polled = chains.due(thorough);

    // 2. What they committed.
    const limit = Math.max(1, Math.min(maxBatches, Math.ceil(pendingRows / Math.max(1, polled.length))));
    const found = await store.pending(polled.map(({ writer, position }) => ({ writer, next: position.next })), limit, maxBytes);
    const queues = new Map<bigint, Batch[]>();
    let bytes = 0;
    for (const batch of found) {
      bytes += batch.bundle.length;
      const queue = queues.get(batch.writer);
      if (queue === undefined) queues.set(batch.writer, [batch]);
      else queue.push(batch);
    }
    let more = bytes >= maxBytes || [...queues.values()].some((queue) => queue.length >= limit);
    await this.#identify([...queues.keys()].map((writer) => chains.get(writer)!), touched);
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
    const waiting: Chain[] = [];
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
      if (batch.number === 0n && (await this.#followsPredecessor(parsed[0], chain, chains, touched)) === 'wait') {
        waiting.push(chain);
        queues.delete(batch.writer);
        continue;
      }
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
    // Who waits has a predecessor with batches to come, which the next step looks at. Where nothing moves, two wait for one another.
    if (batches.length === 0 && touched.size === 0) {
      for (const chain of waiting) {
        chain.stuck += 1;
        if (chain.stuck >= stuckSteps) distrust(chain, 'its predecessor never comes', touched);
      }
    }
    more ||= waiting.length > 0;

    // 4. Tell of it. Dies after this: it is told again, which is better than never.
    const accused = [...touched].filter(({ state: now }) => now === 'distrusted');
    const told = accused.slice(0, alertsAStep).map(({ writer, position, reason }) => this.#options.alert('batch_distrusted', { reason: reason!, writer: writerName(writer), next: Number(position.next) }));
    if (accused.length > alertsAStep) told.push(this.#options.alert('batches_distrusted', { writers: accused.length - alertsAStep }));
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
      chain.stuck = 0;
      if (chain.state === 'closed' || chain.state === 'distrusted') chains.remove(chain.writer);
    }
    return { leaves: size - head.size, batches: batches.length, oldest, more };
  }

  /** Reads the certificates of those whose key is not known yet. Who has none of the HSM's is distrusted. */
  async #identify(chains: readonly Chain[], touched: Set<Chain>): Promise<void> {
    const unknown = chains.filter(({ identity }) => identity === null);
    if (unknown.length === 0) return;
    const certificates = new Map((await this.#options.store.certificates(unknown.map(({ writer }) => writer))).map(({ writer, certificate }) => [writer, certificate]));
    for (const chain of unknown) {
      const certificate = certificates.get(chain.writer) ?? '';
      const text = certificate.length > maxCertificate ? null : openNote(certificate, [this.#certifier]);
      const read = text === null ? null : readWriterCertificate(text);
      if (read !== null && read.writer === chain.writer) chain.identity = { certificate, key: read.publicKey };
      else distrust(chain, 'its certificate is not the HSM\'s', touched);
    }
  }

  /**
   * A chain's position is only a row, and whoever moved it on would have batches left out of the tree with every signature in place: so before a chain
   * goes on from it, the batch before it is found in the tree. Of a chain that may go on, that one is never moved out of the database.
   *
   * @returns false if another instance has advanced the tree since it was read. @throws LogFault
   */
  async #stands(chain: Chain, { head, charter }: State): Promise<boolean> {
    const { writer, position, identity } = chain;
    const { store } = this.#options;
    const carried = charter.carried.find((each) => each.writer === writer);
    const begins = carried === undefined ? position.next === 0n : carried.next === position.next && carried.previous.equals(position.previous);
    if (!begins) {
      const last = await store.batch(writer, position.next - 1n);
      const place = await store.placeOf(head.logId, writer, position.next - 1n);
      const stands =
        place !== null && place < head.size &&
        last !== null && headerHash(batchHeader(last)).equals(position.previous) && last.formedAt.getTime() === position.formedAt?.getTime() &&
        verifyInclusion(leafHash(encodeBatchLeaf(last, last.number === 0n ? identity!.certificate : null)), place, head.size, head.root, await inclusionProof(place, head.size, this.#reader(head)));
      if (!stands) {
        // Chains are read after the head.
        const now = await store.head();
        if (now?.logId !== head.logId || now.size !== head.size) return false;
        throw new LogFault('rewritten', `the log does not hold batch ${position.next - 1n} of writer ${writerName(writer)}, from which the database says that it goes on`);
      }
    }
    chain.proven = true;
    return true;
  }

  /**
   * What a new writer says of the one before it in its place: that batch must be in the tree already, or come before. If it is nowhere, somebody
   * cut off the tail of the predecessor's chain.
   */
  async #followsPredecessor(start: Readonly<Record<string, unknown>> | undefined, successor: Chain, chains: ChainSet<Chain>, touched: Set<Chain>): Promise<'go on' | 'wait'> {
    const claim = readPredecessor(start);
    if (claim === null) return 'go on';
    const { store } = this.#options;
    let chain = chains.get(claim.writer);
    if (chain === undefined) {
      const stored = await store.chain(claim.writer);
      chain = { ...unread(claim.writer), ...(stored === null ? {} : { position: stored.position, state: stored.state, proven: false }) };
      // Not met yet, since its clock may be another, or met by another instance.
      const registered = stored !== null || (await store.certificates([claim.writer])).length > 0;
      if (registered && (chain.state === 'open' || chain.state === 'succeeded')) chains.add(chain);
    }
    if (chain.state === 'distrusted') return 'go on';
    if (chain.position.next <= claim.last) {
      // Nobody's successor is waited for but of a writer that more can come of: see `stuck` for those that go in a circle.
      if (chain.state !== 'closed' && chain !== successor && chains.get(claim.writer) === chain && (await store.batch(claim.writer, claim.last)) !== null) {
        chains.moved(chain);
        return 'wait';
      }
      distrust(chain, `batch ${claim.last} is missing, which its successor names as the last`, touched);
      return 'go on';
    }
    const hash = chain.position.next === claim.last + 1n ? chain.position.previous : await this.#hashOf(claim.writer, claim.last);
    if (hash !== null && !hash.equals(claim.hash)) {
      distrust(chain, `batch ${claim.last} is not the one that its successor saw committed`, touched);
      return 'go on';
    }
    if (chain.state === 'open') {
      chain.state = 'succeeded';
      touched.add(chain);
    }
    return 'go on';
  }

  /** Header hash of a batch that is in the tree; null if it has been moved out of the database since. */
  async #hashOf(writer: bigint, number: bigint): Promise<Buffer | null> {
    const batch = await this.#options.store.batch(writer, number);
    return batch === null ? null : headerHash(batchHeader(batch));
  }
}

/** A chain of which nothing is in the tree. */
function unread(writer: bigint): Chain {
  return { writer, identity: null, proven: true, position: chainStart, state: 'open', reason: null, stuck: 0 };
}

/** Takes nothing of a writer from here on. */
function distrust(chain: Chain, reason: string, touched: Set<Chain>): void {
  chain.state = 'distrusted';
  chain.reason = reason;
  touched.add(chain);
}

/** What a batch's own leaf is found by. */
const batchLeafEntry = { action: batchLeafAction, outcome: 'allowed' } as const;
/** Leaves that only a log has: no writer may bring them. */
const reserved: ReadonlySet<unknown> = new Set([batchLeafAction, 'log.start']);

/** The position after `batch` with its entries, or what is wrong with it. What a verifier of the log would refuse must not come into it. */
function follow(chain: Chain, batch: Batch): { readonly position: ChainPosition; readonly entries: readonly Uint8Array[]; readonly parsed: readonly Readonly<Record<string, unknown>>[] } | string {
  if (chain.state === 'closed') return `batch ${batch.number} stands behind the end of the chain`;
  let entries: readonly Uint8Array[] = [];
  const position = followChain(chain.position, batch, chain.identity!.key, (bundle) => (entries = decodeBundle(bundle)).length);
  if (typeof position === 'string') return position;
  const parsed: Readonly<Record<string, unknown>>[] = [];
  for (const bytes of entries) {
    const entry = readEntry(bytes);
    if (entry === null || reserved.has(entry['action'])) return `batch ${batch.number} holds what is no entry of a writer`;
    parsed.push(entry);
  }
  if ((batch.kind === 'tombstone') !== (entries.length === 0)) return `batch ${batch.number} holds entries in a tombstone, or none outside of one`;
  if (batch.number === 0n && (parsed[0]?.['action'] !== 'writer.start' || detailOf(parsed[0])['writer'] !== writerName(batch.writer))) return 'batch 0 does not tell of its writer\'s start';
  return { position, entries, parsed };
}

function oldestOf(queues: ReadonlyMap<bigint, readonly Batch[]>): Batch {
  let oldest: Batch | null = null;
  for (const [first] of queues.values()) if (oldest === null || first!.formedAt < oldest.formedAt) oldest = first!;
  return oldest!;
}

function detailOf(entry: Readonly<Record<string, unknown>> | undefined): Readonly<Record<string, unknown>> {
  const detail = entry?.['detail'];
  return typeof detail === 'object' && detail !== null ? (detail as Record<string, unknown>) : {};
}

function isStop(entry: Readonly<Record<string, unknown>> | undefined, writer: bigint): boolean {
  return entry?.['action'] === 'writer.stop' && detailOf(entry)['writer'] === writerName(writer);
}

function readPredecessor(start: Readonly<Record<string, unknown>> | undefined): Predecessor | null {
  const { predecessor, predecessor_last: last, predecessor_hash: hash } = detailOf(start);
  if (start?.['action'] !== 'writer.start' || typeof predecessor !== 'string' || typeof last !== 'string' || typeof hash !== 'string') return null;
  if (!/^[0-7][0-9a-f]{15}$/u.test(predecessor) || !/^[0-9]{1,18}$/u.test(last) || !/^[0-9a-f]{64}$/u.test(hash)) return null;
  return { writer: BigInt(`0x${predecessor}`), last: BigInt(last), hash: Buffer.from(hash, 'hex') };
}

/** The batch that a start entry names as its predecessor's last. */
interface Predecessor {
  readonly writer: bigint;
  readonly last: bigint;
  readonly hash: Buffer;
}

/** Whether an entry is the one with which a writer ends its chain. */
export function closes(entry: Uint8Array | undefined, writer: bigint): boolean {
  if (entry === undefined || !Buffer.from(entry.buffer, entry.byteOffset, entry.byteLength).includes('"writer.stop"')) return false;
  return isStop(readEntry(entry) ?? undefined, writer);
}

/** The batch that a start entry names as its predecessor's last; null if it names none. */
export function predecessorOf(entry: Uint8Array | undefined): Predecessor | null {
  return entry === undefined ? null : readPredecessor(readEntry(entry) ?? undefined);
}
