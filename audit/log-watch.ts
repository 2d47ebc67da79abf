/**
 * What a writer asks of the log: that its batches appear under a checkpoint that the HSM signed, and that the log only grows. It takes nobody's
 * word: the inclusion of a batch is recomputed from the tiles up to the signed root, and each checkpoint must be consistent with the one before.
 *
 * One batch of each writer is waited for at a time, the last one; the chain carries those before it.
 */
import { encodeBatchLeaf } from './batch-leaf.ts';
import { writerName } from './chain.ts';
import type { Batch } from './chain.ts';
import { openCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import { consistencyProof, inclusionProof, leafHash, verifyConsistency, verifyInclusion } from './merkle.ts';
import { encodeVkey, parseVkey } from './note.ts';
import type { NoteSigner } from './note.ts';
import { tileReader } from './tiles.ts';
import type { LogHead } from './sequenced-log.ts';

/** What is read of the tree. Every method may throw. */
export interface LogView {
  head(): Promise<LogHead | null>;
  checkpoint(logId: number): Promise<string | null>;
  tile(logId: number, level: number, index: number): Promise<Buffer | null>;
  /** Index of a batch's leaf; null if it is not in the tree. A hint: what stands there is checked. */
  placeOf(logId: number, writer: bigint, number: bigint): Promise<number | null>;
  /** Those of `writers` that the sequencer takes nothing of any more. */
  distrusts(writers: readonly bigint[]): Promise<readonly bigint[]>;
}

export interface WatchedWriter {
  readonly lastBatch: { readonly batch: Batch; readonly certificate: string };
}

interface Awaited {
  readonly batch: Batch;
  readonly certificate: string;
  readonly sinceMs: number;
}

/** Time between two looks at a log to which nothing is added, in ms. */
const idleMs = 60_000;

export class LogWatch {
  readonly #view: LogView;
  readonly #key: Pick<NoteSigner, 'algorithm' | 'publicKeySpki'>;
  readonly #writers: readonly WatchedWriter[];
  /** By writer: what is waited for. */
  readonly #awaited = new Map<WatchedWriter, Awaited>();
  /** By writer: number of the batch that was last found. */
  readonly #found = new Map<WatchedWriter, bigint>();
  #seen: Checkpoint | null = null;
  #lookedAt = Number.NEGATIVE_INFINITY;
  #fault: string | null = null;

  constructor(view: LogView, key: Pick<NoteSigner, 'algorithm' | 'publicKeySpki'>, writers: readonly WatchedWriter[]) {
    this.#view = view;
    this.#key = key;
    this.#writers = writers;
  }

  /** What is wrong with the log for good, or null: no call may go on. */
  get fault(): string | null {
    return this.#fault;
  }

  /** For how long, in ms, the batch that has been waited for longest has not appeared under a signed checkpoint; 0 if none is. */
  lagMs(): number {
    let oldest = Number.POSITIVE_INFINITY;
    for (const { sinceMs } of this.#awaited.values()) oldest = Math.min(oldest, sinceMs);
    return oldest === Number.POSITIVE_INFINITY ? 0 : performance.now() - oldest;
  }

  /** Looks at the newest checkpoint. To be called about once a second, not concurrently. @throws what the view throws. */
  async check(): Promise<void> {
    for (const writer of this.#writers) {
      const { batch, certificate } = writer.lastBatch;
      if (!this.#awaited.has(writer) && this.#found.get(writer) !== batch.number) this.#awaited.set(writer, { batch, certificate, sinceMs: performance.now() });
    }
    if (this.#fault !== null) return;
    // While nothing is committed, the log is looked at seldom.
    if (this.#awaited.size === 0 && performance.now() - this.#lookedAt < idleMs) return;
    this.#lookedAt = performance.now();
    const head = await this.#view.head();
    const note = head === null ? null : await this.#view.checkpoint(head.logId);
    if (head === null || note === null) {
      if (this.#seen !== null) this.#fault = 'the log is gone from the database';
      return;
    }
    const checkpoint = openCheckpoint(note, [parseVkey(encodeVkey(head.origin, this.#key.algorithm, this.#key.publicKeySpki))]);
    if (checkpoint === null) return void (this.#fault = 'a checkpoint in the database is not signed by the log\'s key');
    const reader = tileReader(checkpoint.size, async (ref) => {
      const tile = await this.#view.tile(head.logId, ref.level, ref.index);
      return tile === null ? Buffer.alloc(0) : tile.subarray(0, ref.width * 32);
    });
    if (this.#seen !== null) {
      if (this.#seen.origin !== checkpoint.origin) return void (this.#fault = 'another log took the place of the one that this process writes to: start the process again');
      if (checkpoint.size < this.#seen.size) return void (this.#fault = 'the log in the database is shorter than it was');
      const proof = checkpoint.size === this.#seen.size ? [] : await consistencyProof(this.#seen.size, checkpoint.size, reader);
      if (!verifyConsistency(this.#seen.size, checkpoint.size, this.#seen.root, checkpoint.root, proof)) return void (this.#fault = 'the log in the database was rewritten');
    }
    this.#seen = checkpoint;
    for (const [writer, { batch, certificate }] of this.#awaited) {
      const place = await this.#view.placeOf(head.logId, batch.writer, batch.number);
      // It may have come into the tree after this checkpoint was signed.
      if (place === null || place >= checkpoint.size) continue;
      const leaf = leafHash(encodeBatchLeaf(batch, batch.number === 0n ? certificate : null));
      if (!verifyInclusion(leaf, place, checkpoint.size, checkpoint.root, await inclusionProof(place, checkpoint.size, reader))) {
        return void (this.#fault = `batch ${batch.number} of writer ${writerName(batch.writer)} does not stand in the log where the database says`);
      }
      this.#awaited.delete(writer);
      this.#found.set(writer, batch.number);
    }
    // What such a writer commits stands in no log: no call may go on as if it did, not even for as long as checkpoints may lag.
    const awaited = [...this.#awaited.values()].map(({ batch }) => batch.writer);
    const [distrusted] = awaited.length === 0 ? [] : await this.#view.distrusts(awaited);
    if (distrusted !== undefined) this.#fault = `the log takes nothing more of writer ${writerName(distrusted)}, whose batches were tampered with: start the process again`;
  }
}
