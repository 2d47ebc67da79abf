/**
 * The tables of the log, in memory or read from PostgreSQL, and the one helper that re-verifies all of them from the stored batches, by arithmetic of
 * its own: to be called after each step.
 */
import { createHash, createPublicKey, generateKeyPairSync, randomBytes, sign, type KeyObject } from 'node:crypto';
import type { ClientBase } from 'pg';
import type { Test } from 'tap';
import { WriterChain } from '../../audit/append.ts';
import { encodeBatchLeaf } from '../../audit/batch-leaf.ts';
import { batchHeader, checkChain, headerHash, noPredecessor, readWriterCertificate, writerCertificateText, writerName, type Batch } from '../../audit/chain.ts';
import { readCharter } from '../../audit/charter.ts';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { decodeBundle, encodeBundle, encodeEntry, type Entry } from '../../audit/entry.ts';
import { consistencyProof, verifyConsistency } from '../../audit/merkle.ts';
import { encodeVkey, openNote, parseVkey, signNote, type NoteSigner, type NoteVerifier } from '../../audit/note.ts';
import { SearchKeyReader, tokenKey } from '../../audit/search-keys.ts';
import type { ChainState, LogHead, StoredChain } from '../../audit/sequenced-log.ts';
import { batchOfRow, type BatchRow } from '../../audit/store.ts';
import { tileReader } from '../../audit/tiles.ts';

export const origin = 'cofre.test/log';

export function signerOf(key: KeyObject): NoteSigner {
  return { algorithm: 'ed25519', publicKeySpki: createPublicKey(key).export({ format: 'der', type: 'spki' }), sign: async (message) => sign(null, message, key) };
}

export function newSigner(): NoteSigner {
  return signerOf(generateKeyPairSync('ed25519').privateKey);
}

/** The HSM's key of all tests of a process; in PEM for those in another. */
const { privateKey } = generateKeyPairSync('ed25519');
export const signer: NoteSigner = signerOf(privateKey);
export const signerPem = privateKey.export({ format: 'pem', type: 'pkcs8' }) as string;

/** What the database holds of the log. */
export class LogTables {
  readonly writers = new Map<bigint, { readonly certificate: string; readonly startedAt: Date }>();
  /** By writer, and by number. */
  readonly batches = new Map<bigint, Map<bigint, Batch>>();
  readonly logs = new Map<number, { head: LogHead; readonly firstLeaf: Buffer }>();
  readonly chains = new Map<bigint, StoredChain & { readonly reason: string | null }>();
  /** Of the log in use. */
  readonly places = new Map<string, { readonly firstIndex: number; readonly writer: bigint; readonly number: bigint; readonly entryCount: number }>();
  readonly tiles = new Map<string, Buffer>();
  readonly checkpoints = new Map<number, string>();
  readonly tokens = new Set<string>();
  readonly facets = new Set<string>();

  get head(): LogHead | null {
    return this.logs.get(Math.max(...this.logs.keys()))?.head ?? null;
  }

  insert(chain: Pick<WriterChain, 'writer' | 'certificate' | 'startedAt'>, batch: Batch): void {
    if (!this.writers.has(chain.writer)) this.writers.set(chain.writer, { certificate: chain.certificate, startedAt: chain.startedAt });
    this.put(batch);
  }

  /** Whatever the batch is, and whatever stood there. */
  put(batch: Batch): void {
    const chain = this.batches.get(batch.writer) ?? new Map<bigint, Batch>();
    this.batches.set(batch.writer, chain.set(batch.number, batch));
  }

  copy(): LogTables {
    const copy = new LogTables();
    for (const name of ['writers', 'chains', 'places', 'tiles', 'checkpoints'] as const) for (const [key, value] of this[name] as Map<unknown, unknown>) (copy[name] as Map<unknown, unknown>).set(key, value);
    for (const [writer, chain] of this.batches) copy.batches.set(writer, new Map(chain));
    for (const [id, log] of this.logs) copy.logs.set(id, { ...log });
    for (const name of ['tokens', 'facets'] as const) for (const key of this[name]) copy[name].add(key);
    return copy;
  }
}

/** Where a writer's batches go. */
export type Sink = (chain: WriterChain, batch: Batch) => void | Promise<void>;

export interface Predecessor {
  readonly writer: string;
  readonly last: bigint;
  readonly hash: Buffer;
  readonly notedAt?: Date;
}

/** An honest writer, which commits what it is told to at once. */
export class TestWriter {
  readonly chain: WriterChain;
  readonly #sink: Sink;
  #now: () => Date;

  private constructor(chain: WriterChain, sink: Sink, now: () => Date) {
    this.chain = chain;
    this.#sink = sink;
    this.#now = now;
  }

  static async start(sink: Sink, options: { now?: () => Date; predecessor?: Predecessor; role?: string; by?: NoteSigner; startEntry?: boolean } = {}): Promise<TestWriter> {
    const now = options.now ?? (() => new Date());
    const writer = new TestWriter(await WriterChain.start({ role: options.role ?? 'tokenize', origin, signer: options.by ?? signer, now: now() }), sink, now);
    const { predecessor } = options;
    const detail = { ...(predecessor === undefined ? {} : { predecessor: predecessor.writer, predecessor_hash: predecessor.hash.toString('hex'), predecessor_last: predecessor.last.toString(), ...(predecessor.notedAt === undefined ? {} : { predecessor_noted: predecessor.notedAt.toISOString() }) }), writer: writer.chain.name };
    if (options.startEntry !== false) await writer.commit([{ action: 'writer.start', at: now(), outcome: 'allowed', detail }]);
    return writer;
  }

  get id(): bigint {
    return this.chain.writer;
  }

  /** The last batch, as a successor names it. */
  get left(): Predecessor {
    const head = this.chain.head()!;
    return { writer: this.chain.name, last: head.number, hash: head.hash };
  }

  /** Forms the next batch and counts it as committed, without giving it to anybody. */
  form(entries: readonly Entry[] | number = 1): Batch {
    const batch = this.chain.form(typeof entries === 'number' ? Array.from({ length: entries }, (_, index) => this.#entry(index)) : entries, this.#now());
    this.chain.committed(batch);
    return batch;
  }

  async commit(entries: readonly Entry[] | number = 1): Promise<Batch> {
    const batch = this.form(entries);
    await this.#sink(this.chain, batch);
    return batch;
  }

  async bury(): Promise<Batch> {
    const batch = this.chain.tombstone(this.#now());
    this.chain.committed(batch);
    await this.#sink(this.chain, batch);
    return batch;
  }

  async stop(): Promise<Batch> {
    return await this.commit([{ action: 'writer.stop', at: this.#now(), outcome: 'allowed', detail: { writer: this.chain.name } }]);
  }

  #entry(index: number): Entry {
    const token = `tok_${this.chain.name}${this.chain.nextNumber}${index}`;
    return { action: index % 2 === 0 ? 'tokenize' : 'detokenize', at: this.#now(), caller: 'spiffe://cofre.test/tenant/acme/service/checkout', outcome: 'allowed', tenant: 'acme', request: `r-${this.chain.name}-${this.chain.nextNumber}-${index}`, tokens: index % 2 === 0 ? { created: [token] } : { opened: [token, `${token}x`] } };
  }
}

/** A certified writer whose key the test has: it signs what no honest writer forms. */
export class RawWriter {
  readonly id: bigint;
  readonly #key: KeyObject;
  readonly certificate: string;

  private constructor(key: KeyObject, id: bigint, certificate: string) {
    this.#key = key;
    this.id = id;
    this.certificate = certificate;
  }

  static async make(): Promise<RawWriter> {
    const { publicKey, privateKey } = generateKeyPairSync('ed25519');
    const id = randomBytes(8).readBigUInt64BE() >> 1n;
    return new RawWriter(privateKey, id, await signNote(writerCertificateText(id, 'tokenize', publicKey.export({ format: 'der', type: 'spki' }), new Date()), origin, signer));
  }

  get name(): string {
    return writerName(this.id);
  }

  /** The batch behind `before`, or the first one. */
  batch(before: Batch | null, entries: readonly Uint8Array[], kind: Batch['kind'] = 'entries'): Batch {
    const unsigned = { writer: this.id, number: before === null ? 0n : before.number + 1n, kind, formedAt: new Date(), entryCount: entries.length, previous: before === null ? noPredecessor : headerHash(batchHeader(before)), bundle: encodeBundle(entries) };
    return { ...unsigned, signature: sign(null, batchHeader(unsigned), this.#key) };
  }

  /** Its first batch as it must be. */
  start(): Batch {
    return this.batch(null, [encodeEntry({ action: 'writer.start', at: new Date(), outcome: 'allowed', detail: { writer: this.name } })]);
  }
}

const node = (...parts: Uint8Array[]): Buffer => {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
};

/** RFC 6962, section 2.1, word for word. */
function rootOf(leaves: readonly Buffer[]): Buffer {
  if (leaves.length === 0) return node();
  if (leaves.length === 1) return leaves[0]!;
  let k = 1;
  while (k * 2 < leaves.length) k *= 2;
  return node(Buffer.from([1]), rootOf(leaves.slice(0, k)), rootOf(leaves.slice(k)));
}

/** c2sp.org/tlog-tiles, from scratch. */
function tilesOf(leaves: readonly Buffer[]): Map<string, Buffer> {
  const tiles = new Map<string, Buffer>();
  let hashes = leaves;
  for (let level = 0; hashes.length > 0; level += 1) {
    const above: Buffer[] = [];
    for (let tile = 0; tile * 256 < hashes.length; tile += 1) {
      const part = hashes.slice(tile * 256, tile * 256 + 256);
      tiles.set(`${level}/${tile}`, Buffer.concat(part));
      if (part.length === 256) above.push(rootOf(part));
    }
    hashes = above;
  }
  return tiles;
}

export interface Expectations {
  /** Every batch of every writer is in the tree, but those of these writers. */
  readonly complete?: readonly bigint[];
  /** The log's key, where it is not the tests'. */
  readonly verifier?: NoteVerifier;
  /** Every checkpoint that was ever signed, whoever has it. */
  readonly published?: readonly string[];
}

/** Recomputes the whole log from what the writers stored, and asserts that it is what stands there. Returns its entries. */
export async function verifyLog(t: Test, tables: LogTables, message: string, expected: Expectations = {}): Promise<{ readonly index: number; readonly entry: Record<string, unknown> }[]> {
  const faults: string[] = [];
  const certifier = expected.verifier ?? parseVkey(encodeVkey(origin, signer.algorithm, signer.publicKeySpki));
  const { head } = tables;
  const log = head === null ? undefined : tables.logs.get(head.logId);
  if (head === null || log === undefined) {
    t.equal(tables.places.size + tables.tiles.size + tables.checkpoints.size, 0, `${message}: nothing stands in no log`);
    return [];
  }
  // Leaves, in order, from the batches.
  const charter = readCharter(log.firstLeaf, [certifier]);
  if (charter === null || charter.origin !== head.origin) faults.push('the first leaf is no charter');
  const leaves: Uint8Array[] = [log.firstLeaf];
  const byWriter = new Map<bigint, Batch[]>();
  const entries: { index: number; entry: Record<string, unknown> }[] = [];
  for (const place of [...tables.places.values()].sort((a, b) => a.firstIndex - b.firstIndex)) {
    const batch = tables.batches.get(place.writer)?.get(place.number);
    const certificate = tables.writers.get(place.writer)?.certificate;
    const name = `batch ${place.number} of ${writerName(place.writer)}`;
    if (place.firstIndex !== leaves.length) faults.push(`${name} stands at ${place.firstIndex} instead of ${leaves.length}`);
    if (batch === undefined || certificate === undefined) {
      faults.push(`${name} is in the tree only`);
      continue;
    }
    const chain = byWriter.get(place.writer) ?? [];
    byWriter.set(place.writer, [...chain, batch]);
    leaves.push(encodeBatchLeaf(batch, batch.number === 0n ? certificate : null));
    for (const bytes of decodeBundle(batch.bundle)) {
      entries.push({ index: leaves.length, entry: JSON.parse(Buffer.from(bytes).toString('utf8')) as Record<string, unknown> });
      leaves.push(bytes);
    }
    if (batch.entryCount !== place.entryCount) faults.push(`${name} has another count`);
  }
  for (const [writer, chain] of byWriter) {
    const text = openNote(tables.writers.get(writer)!.certificate, [certifier]);
    const read = text === null ? null : readWriterCertificate(text);
    const fault = read === null ? 'has no certificate' : checkChain(chain, read.publicKey, (bundle) => decodeBundle(bundle).length);
    if (fault !== null) faults.push(`writer ${writerName(writer)}: ${fault}`);
    const kept = tables.chains.get(writer);
    if (kept === undefined || kept.position.next !== BigInt(chain.length)) faults.push(`the position of writer ${writerName(writer)} is not its last batch`);
    // Bundle by bundle, in order, wherever they lie.
    for (const [index, batch] of chain.entries()) if (batch.number !== BigInt(index)) faults.push(`writer ${writerName(writer)} is out of order`);
  }
  if (expected.complete !== undefined) {
    for (const [writer, chain] of tables.batches) {
      const missing = expected.complete.includes(writer) ? 0 : chain.size - (byWriter.get(writer)?.length ?? 0);
      if (missing !== 0) faults.push(`${missing} batches of writer ${writerName(writer)} are not in the tree`);
    }
  }
  // The tree over them.
  const hashes = leaves.map((leaf) => node(Buffer.from([0]), leaf));
  if (head.size !== leaves.length) faults.push(`the head counts ${head.size} leaves, ${leaves.length} there are`);
  if (!head.root.equals(rootOf(hashes))) faults.push('the root is another');
  const tiles = tilesOf(hashes);
  if ([...tiles.keys()].sort().join(' ') !== [...tables.tiles.keys()].sort().join(' ')) faults.push('tiles are missing, or too many');
  for (const [path, tile] of tiles) if (tables.tiles.get(path)?.equals(tile) !== true) faults.push(`tile ${path} is another`);
  // Every signature ever given.
  const verifiers = [expected.verifier ?? parseVkey(encodeVkey(head.origin, signer.algorithm, signer.publicKeySpki))];
  const reader = tileReader(head.size, async ({ level, index, width }) => tables.tiles.get(`${level}/${index}`)!.subarray(0, width * 32));
  for (const note of new Set([...tables.checkpoints.values(), ...(expected.published ?? [])])) {
    const checkpoint = openCheckpoint(note, verifiers);
    if (checkpoint === null || checkpoint.size > head.size) faults.push('a checkpoint is none of this log');
    else if (!checkpoint.root.equals(rootOf(hashes.slice(0, checkpoint.size)))) faults.push(`the checkpoint of ${checkpoint.size} has another root`);
    else if (!verifyConsistency(checkpoint.size, head.size, checkpoint.root, head.root, checkpoint.size === head.size ? [] : await consistencyProof(checkpoint.size, head.size, reader))) faults.push(`the checkpoint of ${checkpoint.size} is not consistent`);
  }
  for (const [size, note] of tables.checkpoints) if (openCheckpoint(note, verifiers)?.size !== size) faults.push('a checkpoint stands under another size');
  // What finds entries.
  const tokens = new Set<string>();
  const facets = new Set<string>();
  const keys = new SearchKeyReader();
  for (const [index, leaf] of leaves.entries()) {
    const read = keys.read(JSON.parse(Buffer.from(leaf).toString('utf8')) as Record<string, unknown>);
    for (const token of read.tokens) tokens.add(`${tokenKey(token)} ${index}`);
    for (const facet of read.facets) facets.add(`${facet} ${Math.floor(index / 256)}`);
  }
  if ([...tokens].sort().join() !== [...tables.tokens].sort().join()) faults.push('tokens are not found, or too many');
  if ([...facets].sort().join() !== [...tables.facets].sort().join()) faults.push('facets are not found, or too many');
  t.same(faults, [], message);
  return entries;
}

const stateOf: readonly ChainState[] = ['open', 'closed', 'open', 'distrusted'];

/** The tables as they stand in PostgreSQL, in one snapshot. */
export async function readTables(client: ClientBase): Promise<LogTables> {
  const tables = new LogTables();
  await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
  const rows = async <Row extends object>(text: string): Promise<Row[]> => (await client.query<Row>(text)).rows;
  for (const row of await rows<{ writer: string; certificate: string; started_at: Date }>('SELECT writer, certificate, started_at FROM writers')) tables.writers.set(BigInt(row.writer), { certificate: row.certificate, startedAt: row.started_at });
  for (const row of await rows<BatchRow & { writer: string }>('SELECT * FROM batches ORDER BY writer, number')) tables.put(batchOfRow(BigInt(row.writer), row));
  for (const row of await rows<{ log_id: number; origin: string; size: string; root: Buffer; first_leaf: Buffer }>('SELECT * FROM logs')) tables.logs.set(row.log_id, { head: { logId: row.log_id, origin: row.origin, size: Number(row.size), root: row.root }, firstLeaf: row.first_leaf });
  for (const row of await rows<{ writer: string; next: string; previous: Buffer; formed_at: Date | null; state: number; reason: string | null }>('SELECT * FROM log_chains')) {
    tables.chains.set(BigInt(row.writer), { writer: BigInt(row.writer), position: { next: BigInt(row.next), previous: row.previous, formedAt: row.formed_at }, state: stateOf[row.state]!, reason: row.reason });
  }
  const logId = tables.head?.logId ?? 0;
  for (const row of await rows<{ first_index: string; writer: string; number: string; entry_count: number }>(`SELECT * FROM log_batches WHERE log_id = ${logId}`)) tables.places.set(`${row.writer} ${row.number}`, { firstIndex: Number(row.first_index), writer: BigInt(row.writer), number: BigInt(row.number), entryCount: row.entry_count });
  for (const row of await rows<{ level: number; tile: string; hashes: Buffer }>(`SELECT * FROM log_tiles WHERE log_id = ${logId}`)) tables.tiles.set(`${row.level}/${row.tile}`, row.hashes);
  for (const row of await rows<{ size: string; note: string }>(`SELECT * FROM log_checkpoints WHERE log_id = ${logId}`)) tables.checkpoints.set(Number(row.size), row.note);
  for (const row of await rows<{ token_key: string; entry: string }>(`SELECT * FROM log_tokens WHERE log_id = ${logId}`)) tables.tokens.add(`${row.token_key} ${row.entry}`);
  for (const row of await rows<{ facet: string; block: string }>(`SELECT * FROM log_facets WHERE log_id = ${logId}`)) tables.facets.add(`${row.facet} ${row.block}`);
  await client.query('COMMIT');
  return tables;
}
