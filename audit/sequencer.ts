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
import { encodeBatchLeaf } from './batch-leaf.ts';
import { chainStart, followChain, headerHash, batchHeader, readWriterCertificate, writerName } from './chain.ts';
import type { Batch, ChainPosition } from './chain.ts';
import { newLog, readCharter } from './charter.ts';
import { openCheckpoint, signCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import { decodeBundle } from './entry.ts';
import { consistencyProof, emptyRoot, frontierOf, leafHash, verifyConsistency } from './merkle.ts';
import type { Frontier } from './merkle.ts';
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
  /** Chains that more may come of: open and succeeded ones. */
  chains(): Promise<StoredChain[]>;
  chain(writer: bigint): Promise<StoredChain | null>;
  /** Writers that no chain is kept of yet, oldest first, those of the sequencer before all others. */
  newWriters(): Promise<RegisteredWriter[]>;
  certificates(writers: readonly bigint[]): Promise<RegisteredWriter[]>;
  /** In one snapshot, for each writer: its batches from `next` on, in order, at most `limit`. */
  pending(positions: readonly { readonly writer: bigint; readonly next: bigint }[], limit: number): Promise<Batch[]>;
  batch(writer: bigint, number: bigint): Promise<Batch | null>;
  /** Commits a step durably. False, and nothing written, if the head is no longer `from`. */
  advance(from: LogHead, step: Advance): Promise<boolean>;
  /** The largest signed checkpoint of a log, as a note; null if there is none. */
  checkpoint(logId: number): Promise<string | null>;
  /** Keeps a signed checkpoint durably; keeps the first of a size. */
  addCheckpoint(logId: number, size: number, note: string, at: Date): Promise<void>;
}

/** Takes checkpoints out of the database at once, so that its administrator cannot rewrite what they tell of. A file, a topic, an object store. */
export interface Witness {
  /** Durable when it resolves. Called in the order of sizes; after a failure or a crash, again with the last one. */
  publish(note: string, at: Date): Promise<void>;
  /** The last one published, as a note; null if there is none. */
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
  /** Tells somebody of a batch that is missing or forged. Called before the step that leaves its writer behind is committed; may be called again. */
  readonly alert: (kind: string, detail: Readonly<Record<string, string | number>>) => Promise<void>;
  readonly now: () => Date;
  /** Batches of a writer, and leaves of all, in one step. */
  readonly maxBatches?: number;
  readonly maxLeaves?: number;
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
  readonly key: KeyObject | null;
  position: ChainPosition;
  state: ChainState;
  reason: string | null;
}

interface State {
  head: LogHead;
  readonly builder: TileBuilder;
  readonly frontier: Frontier;
  readonly chains: Map<bigint, Chain>;
}

/** Time between two looks for new writers, and at those that have a successor, in ms. */
const meetEveryMs = 1000;
const revisitEveryMs = 60_000;
/** Leaves after which other work of the process gets its turn: a millisecond or two. */
const leavesATurn = 256;

const nothing: StepResult = { leaves: 0, batches: 0, oldest: null, more: false };

export class Sequencer {
  readonly #options: SequencerOptions;
  readonly #certifier: NoteVerifier;
  readonly #keys = new SearchKeyReader();
  #state: State | null = null;
  #signed: Checkpoint | null = null;
  /** Signed and stored, but not yet with every witness. */
  #unpublished: { readonly note: string; readonly at: Date } | null = null;
  #metAt = Number.NEGATIVE_INFINITY;
  #revisitedAt = Number.NEGATIVE_INFINITY;

  constructor(options: SequencerOptions) {
    this.#options = options;
    this.#certifier = parseVkey(encodeVkey(options.name, options.signer.algorithm, options.signer.publicKeySpki));
  }

  /** The committed head as this instance knows it; null before it has read it. */
  get head(): LogHead | null {
    return this.#state?.head ?? null;
  }

  /** The last checkpoint that was signed and stored. */
  get signed(): Checkpoint | null {
    return this.#signed;
  }

  /** Reads the tree, and begins the log if there is none: what a start should fail with, it fails with here. @throws as `step`. */
  async open(): Promise<void> {
    this.#state ??= await this.#load();
  }

  /**
   * Integrates what writers have committed since the last step, up to a bound. After an exception the next call begins by reading the tree again.
   *
   * @throws LogFault if the tree is not what was signed or witnessed; what the store throws.
   */
  async step(): Promise<StepResult> {
    const state = this.#state ?? (await this.#load());
    this.#state = null;
    const result = await this.#advance(state);
    if (result === null) return nothing;
    this.#state = state;
    return result;
  }

  /**
   * Signs the committed head if it has grown since the last checkpoint, keeps the checkpoint and gives it to the witnesses.
   * Dies before it is kept: a signature that nobody has seen. Before it is published: the next instance publishes it.
   *
   * @throws what the HSM, the store or a witness throws.
   */
  async sign(): Promise<Checkpoint | null> {
    if (this.#unpublished !== null) await this.#publish(this.#unpublished.note, this.#unpublished.at);
    const { store, now } = this.#options;
    const head = this.#state?.head;
    if (head === undefined || head.size === 0 || (this.#signed !== null && this.#signed.origin === head.origin && this.#signed.size >= head.size)) return null;
    const checkpoint: Checkpoint = { origin: head.origin, size: head.size, root: head.root };
    const note = await signCheckpoint(checkpoint, this.#options.signer);
    const at = now();
    await store.addCheckpoint(head.logId, head.size, note, at);
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
    const { store, name, now } = this.#options;
    let head = await store.head();
    if (head === null) {
      // A vault that has witnessed a log does not start another one as if it were the first.
      for (const witness of this.#options.witnesses) if ((await witness.last()) !== null) throw new LogFault('behind_witness', 'the database has no log, but a checkpoint of one was witnessed: it was restored from before the log began, or exchanged');
      await store.create(await newLog({ logId: 1, origin: name, startedAt: now(), predecessor: null, carried: [] }, name, this.#options.signer));
      head = await store.head();
      if (head === null) throw new Error('a log that was made is not there');
    }
    const { logId, size } = head;
    const charter = readCharter(await store.firstLeaf(logId), [this.#certifier]);
    // Only the HSM starts a log: a database administrator cannot begin a new one beside the one that is witnessed.
    if (charter === null || charter.origin !== head.origin) throw new LogFault('rewritten', 'the log in the database was not begun by this vault');
    const edges = new Map<number, Buffer>();
    for (let level = 0; Math.floor(size / 256 ** level) > 0; level += 1) {
      const index = Math.floor(size / 256 ** (level + 1));
      const width = tileWidthAt(level, index, size);
      if (width > 0) edges.set(level, await this.#tile(logId, level, index, width));
    }
    const reader = tileReader(size, async (ref) => await this.#tile(logId, ref.level, ref.index, ref.width));
    const frontier = await frontierOf(size, reader);
    if (!frontier.root().equals(head.root)) throw new LogFault('corrupt', 'the tiles of the log do not give its root');

    const verifiers = [parseVkey(encodeVkey(head.origin, this.#options.signer.algorithm, this.#options.signer.publicKeySpki))];
    const stored = await store.checkpoint(logId);
    const notes = [stored, ...(await Promise.all(this.#options.witnesses.map((witness) => witness.last())))];
    for (const [index, note] of notes.entries()) {
      // Of the log before this one, which the charter names, nothing can follow in this one.
      if (note === null || (charter.predecessor !== null && note.startsWith(`${charter.predecessor.origin}\n`))) continue;
      const checkpoint = openCheckpoint(note, verifiers);
      const witnessed = index > 0;
      if (checkpoint === null) throw new LogFault(witnessed ? 'behind_witness' : 'rewritten', witnessed ? `a witnessed checkpoint is of another log than ${head.origin}, or not signed by this log's key` : 'a stored checkpoint is not signed by this log\'s key');
      await this.#assertExtends(checkpoint, head, reader, witnessed);
      if (this.#signed === null || this.#signed.origin !== head.origin || this.#signed.size < checkpoint.size) this.#signed = checkpoint;
    }
    // What this instance signed or saw earlier holds as well, whatever the database says by now.
    if (this.#signed !== null) await this.#assertExtends(this.#signed, head, reader, true);
    // The last one may not have reached every witness.
    if (stored !== null && notes.slice(1).some((note) => note !== stored)) this.#unpublished ??= { note: stored, at: now() };

    const chains = new Map<bigint, Chain>();
    const known = await store.chains();
    const certificates = new Map((await store.certificates(known.map(({ writer }) => writer))).map(({ writer, certificate }) => [writer, certificate]));
    for (const { writer, position, state } of known) chains.set(writer, { writer, position, state, key: this.#keyOf(writer, certificates.get(writer) ?? ''), reason: null });
    this.#metAt = Number.NEGATIVE_INFINITY;
    this.#revisitedAt = Number.NEGATIVE_INFINITY;
    return { head, builder: new TileBuilder(size, edges), frontier, chains };
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

  #keyOf(writer: bigint, certificate: string): KeyObject | null {
    const text = openNote(certificate, [this.#certifier]);
    const read = text === null ? null : readWriterCertificate(text);
    return read !== null && read.writer === writer ? read.publicKey : null;
  }

  /** One step on `state`, which is of no use any more if this throws or returns null: somebody else advanced the tree. */
  async #advance(state: State): Promise<StepResult | null> {
    const { store, maxBatches = 64, maxLeaves = 8192 } = this.#options;
    const { head, chains, builder, frontier } = state;
    const certificates = new Map<bigint, string>();
    const touched = new Set<Chain>();

    // 1. Who writes. New writers are met once a second, and those that have a successor are looked at once a minute: what they committed last
    // may have become visible after it.
    const time = performance.now();
    if (time - this.#metAt >= meetEveryMs) {
      this.#metAt = time;
      for (const { writer, certificate } of await store.newWriters()) {
        const chain: Chain = { writer, position: chainStart, state: 'open', key: this.#keyOf(writer, certificate), reason: null };
        chains.set(writer, chain);
        certificates.set(writer, certificate);
        if (chain.key === null) await this.#distrust(chain, 'its certificate is not the HSM\'s', touched);
      }
    }
    const revisit = time - this.#revisitedAt >= revisitEveryMs;
    if (revisit) this.#revisitedAt = time;
    const polled = [...chains.values()].filter(({ state: now }) => now === 'open' || (revisit && now === 'succeeded'));
    for (const chain of polled) if (chain.key === null && chain.state !== 'distrusted') await this.#distrust(chain, 'its certificate is not the HSM\'s', touched);

    // 2. What they committed.
    const found = await store.pending(polled.filter(({ state: now }) => now !== 'distrusted').map(({ writer, position }) => ({ writer, next: position.next })), maxBatches);
    const queues = new Map<bigint, Batch[]>();
    for (const batch of found) {
      const queue = queues.get(batch.writer);
      if (queue === undefined) queues.set(batch.writer, [batch]);
      else queue.push(batch);
    }
    let more = [...queues.values()].some((queue) => queue.length >= maxBatches);

    // 3. Their leaves, by the time of the batches as far as the chains allow.
    const batches: Advance['batches'][number][] = [];
    const tokens: Advance['tokens'][number][] = [];
    const facets = new Map<string, Advance['facets'][number]>();
    let oldest: Date | null = null;
    let size = head.size;
    const append = (leaf: Uint8Array): void => {
      const hash = leafHash(leaf);
      frontier.append(hash);
      builder.append(hash);
      this.#index(leaf, size, tokens, facets);
      size += 1;
    };
    for (let sinceTurn = 0; queues.size > 0 && size - head.size < maxLeaves; ) {
      const batch = oldestOf(queues);
      const queue = queues.get(batch.writer)!;
      queue.shift();
      if (queue.length === 0) queues.delete(batch.writer);
      const chain = chains.get(batch.writer)!;
      const followed = follow(chain, batch);
      if (typeof followed === 'string') {
        await this.#distrust(chain, followed, touched);
        queues.delete(batch.writer);
        continue;
      }
      const { entries, position } = followed;
      if (batch.number === 0n) {
        const verdict = await this.#followsPredecessor(entries[0], chains, touched);
        if (verdict === 'wait') {
          queues.delete(batch.writer);
          more = true;
          continue;
        }
      }
      batches.push({ firstIndex: size, writer: batch.writer, number: batch.number, entryCount: batch.entryCount, formedAt: batch.formedAt });
      if (oldest === null || batch.formedAt < oldest) oldest = batch.formedAt;
      append(encodeBatchLeaf(batch, batch.number === 0n ? (certificates.get(batch.writer) ?? (await this.#certificateOf(batch.writer))) : null));
      for (const entry of entries) append(entry);
      chain.position = position;
      if (closes(entries.at(-1), batch.writer)) chain.state = 'closed';
      touched.add(chain);
      sinceTurn += 1 + entries.length;
      if (sinceTurn >= leavesATurn) {
        sinceTurn = 0;
        await yieldTurn();
      }
    }
    more ||= queues.size > 0;

    // 4. All of it, or nothing. Dies before: the batches wait. After: the tree has grown, unsigned.
    if (touched.size === 0 && batches.length === 0) return nothing;
    const root = size === 0 ? emptyRoot : frontier.root();
    const committed = await store.advance(head, {
      size, root, batches, tokens,
      chains: [...touched].map(({ writer, position, state: now, reason }) => ({ writer, position, state: now, reason })),
      tiles: builder.take(),
      facets: [...facets.values()],
    });
    if (!committed) return null;
    state.head = { ...head, size, root };
    for (const chain of touched) if (chain.state === 'closed' || chain.state === 'distrusted') chains.delete(chain.writer);
    return { leaves: size - head.size, batches: batches.length, oldest, more };
  }

  #index(leaf: Uint8Array, index: number, tokens: Advance['tokens'][number][], facets: Map<string, Advance['facets'][number]>): void {
    let parsed: unknown;
    try {
      parsed = JSON.parse(Buffer.from(leaf.buffer, leaf.byteOffset, leaf.byteLength).toString('utf8'));
    } catch {
      // Signed by a genuine writer, so it stands in the tree; nothing finds it.
      return;
    }
    if (typeof parsed !== 'object' || parsed === null) return;
    const keys = this.#keys.read(parsed as Record<string, unknown>);
    for (const token of keys.tokens) tokens.push({ key: tokenKey(token), entry: index });
    const block = Math.floor(index / blockEntries);
    for (const key of keys.facets) {
      const id = `${key} ${block}`;
      if (!facets.has(id)) facets.set(id, { key, block });
    }
  }

  async #certificateOf(writer: bigint): Promise<string> {
    const [row] = await this.#options.store.certificates([writer]);
    if (row === undefined) throw new Error('a writer of the log is gone');
    return row.certificate;
  }

  /** Takes nothing of a writer from here on, and tells of it first: an alert that is told twice is better than none. */
  async #distrust(chain: Chain, reason: string, touched: Set<Chain>): Promise<void> {
    await this.#options.alert('batch_distrusted', { reason, writer: writerName(chain.writer), next: Number(chain.position.next) });
    chain.state = 'distrusted';
    chain.reason = reason;
    touched.add(chain);
  }

  /**
   * What a new writer says of the one before it in its place: that batch must be in the tree already, or come before. If it is nowhere, somebody
   * cut off the tail of the predecessor's chain.
   */
  async #followsPredecessor(first: Uint8Array | undefined, chains: ReadonlyMap<bigint, Chain>, touched: Set<Chain>): Promise<'go on' | 'wait'> {
    const claim = predecessorOf(first);
    if (claim === null) return 'go on';
    const { store } = this.#options;
    const live = chains.get(claim.writer);
    const stored = live === undefined ? await store.chain(claim.writer) : null;
    const chain: Chain = live ?? { writer: claim.writer, position: stored?.position ?? chainStart, state: stored?.state ?? 'open', key: null, reason: null };
    if (chain.state === 'distrusted') return 'go on';
    if (chain.position.next <= claim.last) {
      if (chain.state !== 'closed' && (await store.batch(claim.writer, claim.last)) !== null) {
        this.#revisitedAt = Number.NEGATIVE_INFINITY;
        return 'wait';
      }
      await this.#distrust(chain, `batch ${claim.last} is missing, which its successor names as the last`, touched);
      return 'go on';
    }
    const hash = chain.position.next === claim.last + 1n ? chain.position.previous : await this.#hashOf(claim.writer, claim.last);
    if (hash !== null && !hash.equals(claim.hash)) {
      await this.#distrust(chain, `batch ${claim.last} is not the one that its successor saw committed`, touched);
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

/** The position after `batch` with its entries, or what is wrong with it. */
function follow(chain: Chain, batch: Batch): { readonly position: ChainPosition; readonly entries: readonly Uint8Array[] } | string {
  let entries: readonly Uint8Array[] = [];
  const position = followChain(chain.position, batch, chain.key!, (bundle) => (entries = decodeBundle(bundle)).length);
  if (typeof position === 'string') return position;
  return { position, entries };
}

function oldestOf(queues: ReadonlyMap<bigint, readonly Batch[]>): Batch {
  let oldest: Batch | null = null;
  for (const [first] of queues.values()) if (oldest === null || first!.formedAt < oldest.formedAt) oldest = first!;
  return oldest!;
}

/** Whether an entry is the one with which a writer ends its chain. */
export function closes(entry: Uint8Array | undefined, writer: bigint): boolean {
  if (entry === undefined || !Buffer.from(entry.buffer, entry.byteOffset, entry.byteLength).includes('"writer.stop"')) return false;
  const parsed = parseEntry(entry);
  return parsed?.['action'] === 'writer.stop' && (parsed['detail'] as Record<string, unknown> | undefined)?.['writer'] === writerName(writer);
}

/** The batch that a start entry names as its predecessor's last; null if it names none. */
export function predecessorOf(entry: Uint8Array | undefined): { readonly writer: bigint; readonly last: bigint; readonly hash: Buffer } | null {
  const parsed = entry === undefined ? null : parseEntry(entry);
  if (parsed?.['action'] !== 'writer.start') return null;
  const { predecessor, predecessor_last: last, predecessor_hash: hash } = (parsed['detail'] ?? {}) as Record<string, unknown>;
  if (typeof predecessor !== 'string' || typeof last !== 'string' || typeof hash !== 'string') return null;
  if (!/^[0-7][0-9a-f]{15}$/u.test(predecessor) || !/^[0-9]{1,19}$/u.test(last) || !/^[0-9a-f]{64}$/u.test(hash)) return null;
  return { writer: BigInt(`0x${predecessor}`), last: BigInt(last), hash: Buffer.from(hash, 'hex') };
}

function parseEntry(entry: Uint8Array): Record<string, unknown> | null {
  try {
    const parsed: unknown = JSON.parse(Buffer.from(entry.buffer, entry.byteOffset, entry.byteLength).toString('utf8'));
    return typeof parsed === 'object' && parsed !== null ? (parsed as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}
