/**
 * Checks what the entries of a log say: that each is one, that the log was begun by its vault, and that every writer's batches stand in it as the
 * writer signed them, without gap, in their order. `docs/audit-entry.md` lists the rules.
 *
 * It reads leaf by leaf and goes on after a fault: a leaf that cannot be read costs the batch that it belongs to and no more, and what was lost
 * with it is not reported again as missing.
 */
import { createHash, hash as hashOf, verify } from 'node:crypto';
import type { Hash, KeyObject } from 'node:crypto';
import { batchLeafAction, decodeBatchLeaf } from './batch-leaf.ts';
import type { BatchLeaf } from './batch-leaf.ts';
import { parseCanonical } from './canonical.ts';
import { batchHeaderOver, headerHash, noPredecessor, readWriterCertificate, writerName } from './chain.ts';
import { readCharter } from './charter.ts';
import type { Charter } from './charter.ts';
import { rangeText } from './findings.ts';
import type { Finding, Findings } from './findings.ts';
import { openNote } from './note.ts';
import type { NoteVerifier } from './note.ts';
import { predecessorOf } from './succession.ts';

type Parsed = Readonly<Record<string, unknown>>;

/** Whether the signature of a batch holds; null while it is not known. */
interface Verdict {
  valid: boolean | null;
}

interface Chain {
  readonly writer: bigint;
  /** Null if nobody certified it. */
  readonly key: KeyObject | null;
  /** Its first batch in this log. */
  readonly begin: bigint;
  next: bigint;
  /** Header hash of the last batch; null if that is not known. */
  previous: Buffer | null;
  last: Verdict;
  formedAt: number;
  closed: boolean;
  /** How many leaves had been lost before its last batch. */
  lost: number;
  readonly hashes: HeaderHashes;
}

/** A batch whose entries are being read. */
interface Open {
  readonly leaf: BatchLeaf;
  readonly index: number;
  /** Null for one that is out of place in its chain. */
  readonly chain: Chain | null;
  remaining: number;
  /** SHA-256 of its bundle as far as it was in earlier bundles of the log; null while all of it is in this one. */
  hash: Hash | null;
  /** Whether an entry of it could not be read. */
  broken: boolean;
}

/** Signatures that may be under way at once. */
const maxUnderWay = 4096;

export interface ChainTotals {
  batches: number;
  tombstones: number;
  /** Entries that writers made. */
  entries: number;
  writers: number;
  /** Predecessors that an earlier log holds, where they cannot be checked from this one. */
  earlier: number;
}

export class ChainCheck {
  readonly totals: ChainTotals = { batches: 0, tombstones: 0, entries: 0, writers: 0, earlier: 0 };
  readonly #certifier: readonly NoteVerifier[];
  readonly #origin: string;
  readonly #findings: Findings;
  readonly #chains = new Map<bigint, Chain>();
  #charter: Charter | null = null;
  /** `lost`: the next batch leaf is to be found first. */
  #state: 'charter' | 'leaf' | 'lost' | Open = 'charter';
  #lost = 0;
  #underWay = 0;
  #settled: (() => void) | null = null;

  constructor(options: { readonly origin: string; readonly certifier: readonly NoteVerifier[]; readonly findings: Findings }) {
    this.#origin = options.origin;
    this.#certifier = options.certifier;
    this.#findings = options.findings;
  }

  get charter(): Charter | null {
    return this.#charter;
  }

  /** Takes the next bundle of the log, and its entries, which are views into it one behind the other. */
  async bundle(first: number, bundle: Buffer, entries: readonly Uint8Array[]): Promise<void> {
    let offset = 0;
    // Where the open batch's entries begin in this bundle.
    let from = 0;
    for (const [place, bytes] of entries.entries()) {
      const end = offset + 2 + bytes.length;
      const index = first + place;
      const entry = parseCanonical(bytes);
      if (entry === null) this.#findings.add({ code: 'entry_malformed', entry: index, message: `entry ${index} is not canonical JSON of version 1` });
      const open = this.#state;
      if (typeof open === 'string' || entry?.['action'] === batchLeafAction) {
        await this.#outside(index, bytes, entry);
        if (this.#state !== open) from = end;
      } else this.#inside(open, index, bytes, entry);
      if (typeof this.#state === 'object' && this.#state.remaining === 0) {
        this.#complete(this.#state, index, bundle.subarray(from, end));
        from = end;
      }
      offset = end;
    }
    if (typeof this.#state === 'object' && from < offset) (this.#state.hash ??= createHash('sha256')).update(bundle.subarray(from, offset));
    if (this.#underWay > maxUnderWay) await this.#settle();
  }

  /** Takes note that the next `count` leaves cannot be read. */
  missing(count: number): void {
    this.#lost += count;
    if (typeof this.#state === 'object' && this.#state.remaining >= count) {
      this.#state.broken = true;
      this.#state.remaining -= count;
      if (this.#state.remaining === 0) this.#skip(this.#state);
    } else {
      if (typeof this.#state === 'object') this.#skip(this.#state);
      this.#state = 'lost';
    }
  }

  /** Ends, when all signatures are checked. */
  async end(size: number): Promise<void> {
    if (typeof this.#state === 'object') this.#incomplete(this.#state, size);
    await this.#settle();
  }

  /** A leaf where a batch leaf, or the charter, is to stand. */
  async #outside(index: number, bytes: Uint8Array, entry: Parsed | null): Promise<void> {
    if (this.#state === 'charter') {
      this.#state = 'leaf';
      this.#begin(bytes);
      return;
    }
    if (typeof this.#state === 'object') {
      const leaf = decodeBatchLeaf(entry);
      if (leaf === null) {
        this.#misplaced(index);
        this.#inside(this.#state, index, bytes, null);
        return;
      }
      this.#incomplete(this.#state, index);
      this.#lost += 1;
      await this.#open(index, leaf);
      return;
    }
    const leaf = entry?.['action'] === batchLeafAction ? decodeBatchLeaf(entry) : null;
    if (leaf !== null) {
      await this.#open(index, leaf);
      return;
    }
    if (entry?.['action'] === 'log.start') this.#misplaced(index);
    if (this.#state === 'leaf') {
      const code = entry === null || entry['action'] === batchLeafAction ? 'batch_leaf_malformed' : 'batch_leaf_missing';
      this.#findings.add({ code, entry: index, message: code === 'batch_leaf_missing' ? `entry ${index} stands in no batch: the leaf of one is to stand there` : `entry ${index} is to be the leaf of a batch, and is none` });
    }
    this.#lost += 1;
    this.#state = 'lost';
  }

  #begin(bytes: Uint8Array): void {
    const charter = readCharter(bytes, this.#certifier);
    if (charter === null || charter.origin !== this.#origin) {
      this.#findings.add({ code: 'charter_invalid', entry: 0, message: charter === null ? 'entry 0 is not a charter that the vault\'s key has signed' : `entry 0 is the charter of the log ${charter.origin}, not of ${this.#origin}` });
      this.#lost += 1;
      return;
    }
    this.#charter = charter;
    for (const { writer, next, previous, certificate } of charter.carried) {
      const key = this.#keyOf(writer, certificate, 0);
      this.#chains.set(writer, { writer, key, begin: next, next, previous, last: { valid: true }, formedAt: Number.NEGATIVE_INFINITY, closed: false, lost: 0, hashes: new HeaderHashes(next, previous) });
    }
  }

  #misplaced(index: number): void {
    this.#findings.add({ code: 'entry_misplaced', entry: index, message: `entry ${index} looks like a part of the log itself, and stands where none may` });
  }

  /** An entry of an open batch. */
  #inside(open: Open, index: number, bytes: Uint8Array, entry: Parsed | null): void {
    const { leaf, chain } = open;
    if (entry?.['action'] === 'log.start') this.#misplaced(index);
    if (leaf.number === 0n && open.remaining === leaf.entryCount) {
      if (entry?.['action'] !== 'writer.start' || (entry['detail'] as Parsed | undefined)?.['writer'] !== writerName(leaf.writer)) {
        this.#findings.add({ code: 'start_missing', entry: index, ...batchOf(leaf), message: `entry ${index}, the first of writer ${writerName(leaf.writer)}, does not say that it starts` });
      } else this.#succeeds(index, bytes, leaf);
    }
    open.remaining -= 1;
    if (open.remaining === 0 && chain !== null && entry?.['action'] === 'writer.stop' && (entry['detail'] as Parsed | undefined)?.['writer'] === writerName(leaf.writer)) chain.closed = true;
  }

  /** A leaf of a batch: its place in the writer's chain. */
  async #open(index: number, leaf: BatchLeaf): Promise<void> {
    const name = writerName(leaf.writer);
    const report = (code: Finding['code'], message: string): void => this.#findings.add({ code, entry: index, ...batchOf(leaf), message: `entry ${index}: ${message}` });
    let chain = this.#chains.get(leaf.writer);
    let inPlace = true;
    if (chain === undefined) {
      let key: KeyObject | null = null;
      if (leaf.certificate !== null) key = this.#keyOf(leaf.writer, leaf.certificate, index);
      else if (this.#lost > 0) report('writer_unknown', `the certificate of writer ${name} is in a part of the log that cannot be read, so its batches cannot be checked`);
      else report('batch_missing', `writer ${name} begins with batch ${leaf.number}: those before it, with its certificate, are missing`);
      chain = { writer: leaf.writer, key, begin: leaf.number, next: leaf.number, previous: leaf.number === 0n ? noPredecessor : null, last: { valid: null }, formedAt: Number.NEGATIVE_INFINITY, closed: false, lost: this.#lost, hashes: new HeaderHashes(leaf.number, null) };
      this.#chains.set(leaf.writer, chain);
      this.totals.writers += 1;
    }
    if (leaf.number < chain.next) {
      report('batch_repeated', `batch ${leaf.number} of writer ${name} stands in the log a second time, or after a later one`);
      inPlace = false;
    } else {
      // What cannot be read may have held the batches that are missing; that is reported already.
      const gap = leaf.number > chain.next;
      if (gap && chain.lost === this.#lost) report('batch_missing', `${chain.next + 1n === leaf.number ? `batch ${chain.next}` : `batches ${chain.next} to ${leaf.number - 1n}`} of writer ${name} before this one ${chain.next + 1n === leaf.number ? 'is' : 'are'} missing`);
      if (!gap && chain.previous !== null && !chain.previous.equals(leaf.previous)) {
        // After a batch with a wrong signature, which is reported, nobody knows what came before.
        await this.#settle();
        if (chain.last.valid !== false) report('batch_unchained', `batch ${leaf.number} of writer ${name} does not follow the batch ${leaf.number - 1n} that is in the log`);
      }
      if (leaf.formedAt.getTime() < chain.formedAt) report('batch_older', `batch ${leaf.number} of writer ${name} is older than the one before it`);
      if (chain.closed) report('batch_after_stop', `batch ${leaf.number} of writer ${name} comes after the writer has stopped`);
      chain.lost = this.#lost;
    }
    const open: Open = { leaf, index, chain: inPlace ? chain : null, remaining: leaf.entryCount, hash: null, broken: false };
    this.#state = open;
  }

  /** The last leaf of a batch was read; `rest` is the part of its bundle that was not hashed yet. */
  #complete(open: Open, last: number, rest: Buffer): void {
    const { leaf, chain, index } = open;
    this.#state = 'leaf';
    this.totals.batches += 1;
    this.totals.entries += leaf.entryCount;
    if (leaf.kind === 'tombstone') {
      this.totals.tombstones += 1;
      if (leaf.number === 0n) this.#findings.add({ code: 'start_missing', entry: index, ...batchOf(leaf), message: `entry ${index}: the first batch of writer ${writerName(leaf.writer)} is a tombstone, and does not say that it starts` });
    }
    if (open.broken) {
      this.#skip(open);
      return;
    }
    const bundleHash = open.hash === null ? Buffer.from(hashOf('sha256', rest, 'binary'), 'latin1') : open.hash.update(rest).digest();
    const header = batchHeaderOver(leaf, bundleHash);
    const verdict: Verdict = { valid: null };
    const key = chain?.key ?? this.#chains.get(leaf.writer)?.key ?? null;
    if (chain !== null) this.#advance(chain, leaf, headerHash(header), verdict);
    if (key === null) return;
    this.#underWay += 1;
    // By the thread pool of Node: the signatures of small batches are most of the work, and another core may do it.
    verify(null, header, key, leaf.signature, (error, valid) => {
      verdict.valid = error === null && valid;
      if (!verdict.valid) {
        const message = `batch ${leaf.number} of writer ${writerName(leaf.writer)} (${rangeText(index, last)}) is not as its writer signed it: it was changed or forged`;
        this.#findings.add({ code: 'batch_signature', entry: index, to: last, ...batchOf(leaf), message });
      }
      this.#underWay -= 1;
      if (this.#underWay === 0) this.#settled?.();
    });
  }

  #advance(chain: Chain, leaf: BatchLeaf, hash: Buffer | null, verdict: Verdict): void {
    chain.next = leaf.number + 1n;
    chain.previous = hash;
    chain.last = verdict;
    chain.formedAt = Math.max(chain.formedAt, leaf.formedAt.getTime());
    chain.hashes.add(leaf.number, hash);
  }

  /** Leaves a batch that was not read whole; the chain goes on behind it. */
  #skip({ leaf, chain }: Open): void {
    if (chain !== null) this.#advance(chain, leaf, null, { valid: null });
    this.#state = 'leaf';
  }

  #incomplete(open: Open, index: number): void {
    const { leaf } = open;
    this.#findings.add({ code: 'batch_incomplete', entry: open.index, to: index - 1, ...batchOf(leaf), message: `batch ${leaf.number} of writer ${writerName(leaf.writer)} (entry ${open.index}) counts ${leaf.entryCount} entries, of which ${open.remaining} are missing` });
    this.#skip(open);
  }

  /** What a start entry says of the writer before it. */
  #succeeds(index: number, bytes: Uint8Array, leaf: BatchLeaf): void {
    const claim = predecessorOf(bytes);
    if (claim === null) return;
    const [name, own] = [writerName(claim.writer), writerName(leaf.writer)];
    const where = { entry: index, writer: name, batch: Number(claim.last) };
    const chain = this.#chains.get(claim.writer);
    if (chain === undefined || claim.last < chain.begin - 1n) {
      if ((this.#charter?.predecessor ?? null) !== null) this.totals.earlier += 1;
      else if (this.#lost === 0) this.#findings.add({ code: 'predecessor_missing', ...where, message: `entry ${index}: batch ${claim.last} of writer ${name}, which writer ${own} succeeds, is missing with all of that writer` });
      return;
    }
    if (chain.next <= claim.last) {
      if (chain.lost !== this.#lost) return;
      const missing = chain.next === claim.last ? `batch ${claim.last}` : `batches ${chain.next} to ${claim.last}`;
      this.#findings.add({ code: 'predecessor_missing', ...where, message: `entry ${index}: ${missing} of writer ${name} ${chain.next === claim.last ? 'is' : 'are'} missing: writer ${own}, which succeeds it, saw batch ${claim.last} committed` });
      return;
    }
    if (chain.hashes.differs(claim.last, claim.hash)) this.#findings.add({ code: 'predecessor_differs', ...where, message: `entry ${index}: batch ${claim.last} of writer ${name} is not the one that writer ${own}, which succeeds it, saw committed` });
  }

  #keyOf(writer: bigint, certificate: string, index: number): KeyObject | null {
    const text = openNote(certificate, this.#certifier);
    const read = text === null ? null : readWriterCertificate(text);
    if (read !== null && read.writer === writer && read.publicKey.asymmetricKeyType === 'ed25519') return read.publicKey;
    this.#findings.add({ code: 'certificate_invalid', entry: index, writer: writerName(writer), message: `entry ${index}: the certificate of writer ${writerName(writer)} is not signed by the vault's key: its batches are forged` });
    return null;
  }

  /** Resolves when all signatures so far are checked. */
  async #settle(): Promise<void> {
    if (this.#underWay > 0) await new Promise<void>((done) => (this.#settled = done));
    this.#settled = null;
  }
}

function batchOf(leaf: BatchLeaf): { readonly writer: string; readonly batch: number } {
  return { writer: writerName(leaf.writer), batch: Number(leaf.number) };
}

const keptBytes = 8;
const firstChunk = 64;

/**
 * The header hashes of a writer's batches, of which a successor may name any. Eight bytes of each are enough: whoever would find another header
 * with the same ones would still have to sign it.
 */
class HeaderHashes {
  #first: bigint;
  readonly #before: Buffer | null;
  #kept = Buffer.alloc(0);
  #count = 0;

  /** @param before hash of the batch before the first, where it is known. */
  constructor(first: bigint, before: Buffer | null) {
    this.#first = first;
    this.#before = before;
  }

  /** Batches in ascending order; null is a hash that is not known. After a gap all before it are forgotten. */
  add(number: bigint, hash: Buffer | null): void {
    if (number !== this.#first + BigInt(this.#count)) {
      this.#first = number;
      this.#count = 0;
    }
    const at = this.#count * keptBytes;
    if (at + keptBytes > this.#kept.length) {
      const larger = Buffer.alloc(Math.max(firstChunk * keptBytes, Math.ceil((this.#kept.length * 3) / 2 / keptBytes) * keptBytes));
      this.#kept.copy(larger);
      this.#kept = larger;
    }
    if (hash === null) this.#kept.fill(0, at, at + keptBytes);
    else hash.copy(this.#kept, at, 0, keptBytes);
    this.#count += 1;
  }

  /** Whether a batch is known to have another hash. */
  differs(number: bigint, hash: Buffer): boolean {
    if (number === this.#first - 1n) return this.#before !== null && !this.#before.equals(hash);
    const place = Number(number - this.#first);
    if (place < 0 || place >= this.#count) return false;
    const kept = this.#kept.subarray(place * keptBytes, (place + 1) * keptBytes);
    return kept.some((byte) => byte !== 0) && !kept.equals(hash.subarray(0, keptBytes));
  }
}
