/** Logs made in memory, as the sequencer would have made them: many writers with real keys, and whatever one wants to be wrong with them. */
import { generateKeyPairSync, randomBytes, sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { encodeBatchLeaf } from '../../audit/batch-leaf.ts';
import { batchHeader, headerHash, noPredecessor, writerCertificateText, writerName } from '../../audit/chain.ts';
import type { Batch, BatchKind } from '../../audit/chain.ts';
import { newLog } from '../../audit/charter.ts';
import type { CarriedWriter, Charter } from '../../audit/charter.ts';
import { signCheckpoint } from '../../audit/checkpoint.ts';
import { encodeBundle, encodeEntry } from '../../audit/entry.ts';
import type { Entry } from '../../audit/entry.ts';
import { logTarget } from '../../audit/log-source.ts';
import type { LogTarget, WritableLogFiles } from '../../audit/log-source.ts';
import { leafHash } from '../../audit/merkle.ts';
import { encodeVkey, parseVkey, signNote } from '../../audit/note.ts';
import type { NoteAlgorithm, NoteSigner, NoteVerifier } from '../../audit/note.ts';
import { bundlePath, TileBuilder, tilePath, tileWidth } from '../../audit/tiles.ts';

/** A key pair that signs notes. */
export function makeSigner(algorithm: NoteAlgorithm = 'ed25519'): NoteSigner {
  const { privateKey, publicKey } = algorithm === 'ed25519' ? generateKeyPairSync('ed25519') : generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  return {
    algorithm,
    publicKeySpki: publicKey.export({ format: 'der', type: 'spki' }),
    sign: async (message) => (algorithm === 'ed25519' ? sign(null, message, privateKey) : sign('sha256', message, privateKey)),
  };
}

/** A log's files in memory. Strict: a file that is written once stays as it is, unless a test reaches for `files` itself. */
export class MemoryFiles implements WritableLogFiles {
  readonly files = new Map<string, Buffer>();

  async read(path: string, maxBytes: number): Promise<Buffer | null> {
    const bytes = this.files.get(path);
    if (bytes === undefined) return null;
    if (bytes.length > maxBytes) throw new Error(`${path}: is larger than it can be`);
    return Buffer.from(bytes);
  }

  async create(path: string, bytes: Uint8Array): Promise<boolean> {
    if (this.files.has(path)) return false;
    this.files.set(path, Buffer.from(bytes));
    return true;
  }

  async replace(path: string, bytes: Uint8Array): Promise<void> {
    this.files.set(path, Buffer.from(bytes));
  }

  copy(): MemoryFiles {
    const copy = new MemoryFiles();
    for (const [path, bytes] of this.files) copy.files.set(path, Buffer.from(bytes));
    return copy;
  }
}

export interface MadeWriter {
  readonly writer: bigint;
  readonly name: string;
  readonly certificate: string;
  readonly key: KeyObject;
  next: bigint;
  previous: Buffer;
  formedAt: Date;
}

/** What a batch may say other than the truth. */
export interface BatchOverrides {
  readonly number?: bigint;
  readonly previous?: Buffer;
  readonly formedAt?: Date;
  readonly kind?: BatchKind;
  readonly count?: number;
  readonly signature?: Buffer;
  readonly signedBy?: KeyObject;
  readonly certificate?: string | null;
}

/**
 * A log that grows. Whatever is appended goes through the frozen formats; `leaf` appends any bytes. `publish` writes tiles, bundles and a signed
 * checkpoint into `files`, as a server would serve them.
 */
export class MadeLog {
  readonly origin: string;
  readonly base: string;
  readonly signer: NoteSigner;
  readonly vkey: string;
  readonly verifier: NoteVerifier;
  readonly files: MemoryFiles = new MemoryFiles();
  readonly target: LogTarget = logTarget(this.files);
  readonly writers: MadeWriter[] = [];
  /** Notes of all checkpoints so far, oldest first. */
  readonly checkpoints: string[] = [];
  readonly #builder = new TileBuilder(0, new Map());
  /** Entries since the last full bundle, and full bundles since the last publication. */
  #open: Uint8Array[] = [];
  #nextBundle = 0;
  #clock = Date.parse('2026-01-02T03:04:05.678Z');

  private constructor(base: string, origin: string, signer: NoteSigner) {
    this.base = base;
    this.origin = origin;
    this.signer = signer;
    this.vkey = encodeVkey(base, signer.algorithm, signer.publicKeySpki);
    this.verifier = parseVkey(this.vkey);
  }

  /** A log with its charter. */
  static async start(options: { readonly base?: string; readonly algorithm?: NoteAlgorithm; readonly signer?: NoteSigner; readonly logId?: number; readonly predecessor?: Charter['predecessor']; readonly carried?: readonly CarriedWriter[]; readonly charterSigner?: NoteSigner } = {}): Promise<MadeLog> {
    const { base = 'cofre.test/log', logId = 1, predecessor = null, carried = [], signer = makeSigner(options.algorithm) } = options;
    const log = new MadeLog(base, logId === 1 ? base : `${base}/${logId}`, signer);
    const { firstLeaf } = await newLog({ logId, origin: log.origin, startedAt: log.now(), predecessor, carried }, base, options.charterSigner ?? signer);
    log.leaf(firstLeaf);
    return log;
  }

  get size(): number {
    return this.#builder.size;
  }

  root(): Buffer {
    return this.#builder.frontier().root();
  }

  /** A time a millisecond after the last one. */
  now(): Date {
    return new Date((this.#clock += 1));
  }

  leaf(bytes: Uint8Array): number {
    const index = this.size;
    this.#builder.append(leafHash(bytes));
    this.#open.push(bytes);
    if (this.#open.length === tileWidth) {
      this.files.files.set(bundlePath({ index: this.#nextBundle, width: tileWidth }), encodeBundle(this.#open));
      this.#open = [];
      this.#nextBundle += 1;
    }
    return index;
  }

  /** A writer with its batch 0, whose only entry is its start; of `predecessor` the last batch is named, or `claim` in its place. */
  async writer(options: { readonly predecessor?: MadeWriter; readonly claim?: Readonly<Record<string, string>>; readonly signer?: NoteSigner; readonly entries?: readonly Uint8Array[]; readonly overrides?: BatchOverrides } = {}): Promise<MadeWriter> {
    const { publicKey, privateKey } = generateKeyPairSync('ed25519');
    const id = randomBytes(8).readBigUInt64BE() >> 1n;
    const formedAt = this.now();
    const certificate = await signNote(writerCertificateText(id, 'tokenize', publicKey.export({ format: 'der', type: 'spki' }), formedAt), this.base, options.signer ?? this.signer);
    const writer: MadeWriter = { writer: id, name: writerName(id), certificate, key: privateKey, next: 0n, previous: noPredecessor, formedAt };
    this.writers.push(writer);
    const { predecessor } = options;
    const claim = predecessor === undefined ? {} : { predecessor: predecessor.name, predecessor_last: String(predecessor.next - 1n), predecessor_hash: predecessor.previous.toString('hex') };
    const start = encodeEntry({ action: 'writer.start', at: formedAt, outcome: 'allowed', detail: { ...claim, ...options.claim, role: 'tokenize', writer: writer.name } });
    this.batch(writer, options.entries ?? [start], { formedAt, ...options.overrides });
    return writer;
  }

  /** A batch of `entries`, or of so many made ones. @returns the index of its batch leaf. */
  batch(writer: MadeWriter, entries: readonly Uint8Array[] | number, overrides: BatchOverrides = {}): number {
    const contents = typeof entries === 'number' ? Array.from({ length: entries }, (_, place) => this.entry(`${writer.name}-${writer.next}-${place}`)) : entries;
    const { batch, leaf } = this.form(writer, contents, overrides);
    const index = this.leaf(leaf);
    for (const entry of contents) this.leaf(entry);
    writer.next = batch.number + 1n;
    writer.previous = headerHash(batchHeader(batch));
    writer.formedAt = batch.formedAt;
    return index;
  }

  /** The batch that would come next, and its leaf; nothing is appended. */
  form(writer: MadeWriter, contents: readonly Uint8Array[], overrides: BatchOverrides = {}): { readonly batch: Batch; readonly leaf: Buffer } {
    const bundle = encodeBundle(contents);
    const unsigned = {
      writer: writer.writer,
      number: overrides.number ?? writer.next,
      kind: overrides.kind ?? ('entries' as const),
      formedAt: overrides.formedAt ?? this.now(),
      entryCount: overrides.count ?? contents.length,
      previous: overrides.previous ?? writer.previous,
      bundle,
    };
    const batch = { ...unsigned, signature: overrides.signature ?? sign(null, batchHeader(unsigned), overrides.signedBy ?? writer.key) };
    return { batch, leaf: encodeBatchLeaf(batch, overrides.certificate === undefined ? (batch.number === 0n ? writer.certificate : null) : overrides.certificate) };
  }

  tombstone(writer: MadeWriter): number {
    return this.batch(writer, [], { kind: 'tombstone' });
  }

  /** Ends a writer's chain. */
  stop(writer: MadeWriter): number {
    const at = this.now();
    return this.batch(writer, [encodeEntry({ action: 'writer.stop', at, outcome: 'allowed', detail: { writer: writer.name } })], { formedAt: at });
  }

  /** An entry as a call would make it, about 360 bytes. */
  entry(request: string, more: Partial<Entry> = {}): Buffer {
    return encodeEntry({
      action: 'tokenize',
      at: new Date(this.#clock),
      caller: 'spiffe://cofre.test/tenant/acme/service/checkout',
      from: '127.0.0.1',
      outcome: 'allowed',
      policies: ['acme.tokenize'],
      request,
      serial: '5ab1e0d15ab1e0d15ab1e0d15ab1e0d1',
      tenant: 'acme',
      tokens: { created: ['tok_madeForATestAndForNothingElse'] },
      ...more,
    });
  }

  /** Serves what has been appended, under a checkpoint of it. @returns the checkpoint, a signed note. */
  async publish(): Promise<string> {
    if (this.#open.length > 0) this.files.files.set(bundlePath({ index: this.#nextBundle, width: this.#open.length }), encodeBundle(this.#open));
    for (const tile of this.#builder.take()) this.files.files.set(tilePath(tile), tile.hashes);
    const note = await signCheckpoint({ origin: this.origin, size: this.size, root: this.root() }, this.signer);
    this.files.files.set('checkpoint', Buffer.from(note));
    this.checkpoints.push(note);
    return note;
  }
}

/**
 * A log of exactly `size` leaves, from 5 on, by several writers in turn, with tombstones, stops and successors, published at its end and at each
 * of `at`.
 */
export async function makeLog(size: number, options: { readonly writers?: number; readonly batchSize?: number; readonly at?: readonly number[]; readonly algorithm?: NoteAlgorithm } = {}): Promise<MadeLog> {
  const { writers = 3, batchSize = 5, at = [] } = options;
  const log = await MadeLog.start(options.algorithm === undefined ? {} : { algorithm: options.algorithm });
  const live: MadeWriter[] = [];
  const stops = [...at.filter((one) => one < size), size];
  let turn = 0;
  for (const stop of stops) {
    while (log.size < stop) {
      const room = stop - log.size;
      turn += 1;
      if (live.length < writers && room >= 4) live.push(await log.writer());
      else if (room === 1 && live.length > 0) log.tombstone(live[turn % live.length]!);
      else if (live.length === 0) throw new Error('too small for a writer');
      else if (turn % 41 === 0 && room >= 6) {
        const place = turn % live.length;
        const leaving = live[place]!;
        if (turn % 2 === 0) log.stop(leaving);
        live[place] = await log.writer({ predecessor: leaving });
      } else if (turn % 17 === 0) log.tombstone(live[turn % live.length]!);
      else log.batch(live[turn % live.length]!, Math.min(batchSize, room - 1));
    }
    await log.publish();
  }
  return log;
}
