/**
 * The writer's side of the log: numbers, chains and signs batches, and hands out the receipts without which nothing is opened.
 *
 * A writer is one database connection that commits one batch at a time. Its key is made here, lives in this process's memory only
 * and is certified once, at the start, by the HSM's log signing key: so a batch costs a signature in software
 * instead of a trip to the HSM, and still nobody but this process can have made it.
 */
import { generateKeyPairSync, randomBytes, sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { batchHeader, headerHash, noPredecessor, writerCertificateText, writerName } from './chain.ts';
import type { Batch } from './chain.ts';
import { encodeBundle, encodeEntry } from './entry.ts';
import type { Entry } from './entry.ts';
import { signNote } from './note.ts';
import type { NoteSigner } from './note.ts';
import { insertBatch, insertTombstone, insertWriter } from './store.ts';
import type { ClientBase } from 'pg';

/**
 * Proof that an entry is committed. Only `WriterChain.committed` makes one, and it serves once for each sealed value: whoever opens
 * one must redeem the receipt for it first. So "no entry, no plaintext" is a matter of types and not of discipline.
 */
export class Receipt {
  readonly writer: bigint;
  readonly number: bigint;
  /** Place of the entry in its batch. */
  readonly index: number;
  readonly #redeemed = new Set<string>();

  /** @throws Error unless called by this file: the key is not exported. */
  constructor(key: symbol, batch: Batch, index: number) {
    if (key !== mint) throw new Error('a receipt is made by a committed batch only');
    this.writer = batch.writer;
    this.number = batch.number;
    this.index = index;
  }

  /**
   * Takes the right to open one sealed value, named by `what` (its kind and card).
   *
   * @throws Error on a second use for the same value.
   */
  redeem(what: string): void {
    if (this.#redeemed.has(what)) throw new Error('a receipt serves once for each value');
    this.#redeemed.add(what);
  }
}

const mint: symbol = Symbol('mint');

/** Where a writer's chain stands: the last batch that is known to be committed. */
export interface ChainHead {
  readonly writer: bigint;
  readonly number: bigint;
  /** SHA-256 of that batch's header; 32 bytes. */
  readonly hash: Buffer;
}

/** The chain of one writer. Not for concurrent use: one batch is formed, and settled, before the next one is formed. */
export class WriterChain {
  readonly writer: bigint;
  /** C2SP signed note by the HSM's log key over `writerCertificateText`. */
  readonly certificate: string;
  readonly startedAt: Date;
  readonly role: string;
  readonly #key: KeyObject;
  #next = 0n;
  #previous: Buffer = noPredecessor;
  #last: Batch | null = null;

  private constructor(writer: bigint, role: string, key: KeyObject, certificate: string, startedAt: Date) {
    this.writer = writer;
    this.role = role;
    this.#key = key;
    this.certificate = certificate;
    this.startedAt = startedAt;
  }

  /** Makes a writer with a fresh key and has the HSM certify it. `origin` is the log's name, as which the HSM's key signs. */
  static async start(options: { role: string; origin: string; signer: NoteSigner; now: Date }): Promise<WriterChain> {
    const { publicKey, privateKey } = generateKeyPairSync('ed25519');
    // 63 random bits: a positive bigint in PostgreSQL, and two writers never meet.
    const writer = randomBytes(8).readBigUInt64BE() >> 1n;
    const text = writerCertificateText(writer, options.role, publicKey.export({ format: 'der', type: 'spki' }), options.now);
    const certificate = await signNote(text, options.origin, options.signer);
    return new WriterChain(writer, options.role, privateKey, certificate, options.now);
  }

  /** The writer's id as entries and files name it: 16 hex digits. */
  get name(): string {
    return writerName(this.writer);
  }

  /** Registers this writer in the caller's transaction, which must also append its batch 0. */
  async register(tx: ClientBase): Promise<void> {
    await insertWriter(tx, this);
  }

  /** Appends a formed batch in the caller's transaction. Rejects with a unique violation if its number is taken. */
  async append(tx: ClientBase, batch: Batch): Promise<void> {
    await insertBatch(tx, batch);
  }

  /** Settles the COMMIT of `lost` for good: see `insertTombstone`. To be repeated with the same tombstone until it answers. */
  async bury(client: ClientBase, tombstone: Batch, lost: Batch): Promise<'committed' | 'buried'> {
    return await insertTombstone(client, tombstone, lost);
  }

  /** The last committed batch; null before the first. */
  get last(): Batch | null {
    return this.#last;
  }

  /** The number that the next batch will have. */
  get nextNumber(): bigint {
    return this.#next;
  }

  /**
   * Forms and signs the batch that would come next. Nothing advances: a batch whose transaction was certainly rolled back is
   * simply formed again with the same number.
   */
  form(entries: readonly Entry[], now: Date): Batch {
    return this.#sign({ kind: 'entries', formedAt: now, entryCount: entries.length, bundle: encodeBundle(entries.map(encodeEntry)) });
  }

  /** Forms the tombstone that takes the same number as a batch whose COMMIT was never answered. */
  tombstone(now: Date): Batch {
    return this.#sign({ kind: 'tombstone', formedAt: now, entryCount: 0, bundle: Buffer.alloc(0) });
  }

  /**
   * Records that `batch` is durably committed, moves the chain on, and returns one receipt an entry.
   *
   * @throws Error if the batch is not the next one of this chain.
   */
  committed(batch: Batch): Receipt[] {
    if (batch.writer !== this.writer || batch.number !== this.#next) throw new Error('a batch was committed out of order');
    this.#previous = headerHash(batchHeader(batch));
    this.#last = batch;
    this.#next += 1n;
    return Array.from({ length: batch.entryCount }, (_, index) => new Receipt(mint, batch, index));
  }

  /** The last committed batch; null before the first. */
  head(): ChainHead | null {
    return this.#next === 0n ? null : { writer: this.writer, number: this.#next - 1n, hash: this.#previous };
  }

  #sign(body: Pick<Batch, 'kind' | 'formedAt' | 'entryCount' | 'bundle'>): Batch {
    // A clock that is set back does not take the chain with it: entries keep the time that it showed, batches stay in order.
    const least = this.#last?.formedAt ?? this.startedAt;
    const formedAt = body.formedAt < least ? least : body.formedAt;
    const unsigned = { writer: this.writer, number: this.#next, previous: this.#previous, ...body, formedAt };
    return { ...unsigned, signature: sign(null, batchHeader(unsigned), this.#key) };
  }
}
