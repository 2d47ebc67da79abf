/**
 * A sequenced log as it is kept: its head, how far each writer's chain is in it, and what the sequencer asks of the database that keeps it and of the
 * witnesses that keep its checkpoints elsewhere.
 */
import type { Batch, ChainPosition } from './chain.ts';

/** What is older than this may have been taken out of the database (`retention.ts`), in ms: three months of the calendar have 89 days at least. */
export const prunableMs = 89 * 86_400_000;

/** The tree as it is committed. */
export interface LogHead {
  readonly logId: number;
  readonly origin: string;
  readonly size: number;
  /** 32 bytes. */
  readonly root: Buffer;
}

/**
 * `open`: more may come. `closed`: it said that it ended. `distrusted`: nothing of it is taken any more. All of them follow from the chain's own
 * batches, never from what another writer says of it.
 */
export type ChainState = 'open' | 'closed' | 'distrusted';

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
  /** Chains that more may come of: that which moved last, last. */
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
