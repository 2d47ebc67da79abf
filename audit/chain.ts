/**
 * A writer's chain of batches: its bytes, and what proves that nobody changed, dropped, added or reordered one. Pure.
 *
 * The signed header of a batch is, in bytes:
 *   "cofre/batch/v1\n" (15) || writer (8) || number (8) || kind (1) || formed at, ms since 1970 (8) || entry count (4)
 *   || SHA-256 of the predecessor's header (32) || SHA-256 of the entry bundle (32)            integers big-endian
 * Batch 0 follows 32 zero bytes and holds the writer's start entry.
 */
import { createHash, createPublicKey, verify } from 'node:crypto';
import type { KeyObject } from 'node:crypto';

/** A tombstone takes the number of a batch whose COMMIT was not answered, so that the batch can never be committed later. */
export type BatchKind = 'entries' | 'tombstone';

export interface Batch {
  /** The writer's random 63-bit id. */
  readonly writer: bigint;
  /** 0, 1, 2, … without gaps within a writer. */
  readonly number: bigint;
  readonly kind: BatchKind;
  readonly formedAt: Date;
  readonly entryCount: number;
  /** SHA-256 of the predecessor's header; 32 bytes. */
  readonly previous: Buffer;
  /** The entries as a C2SP entry bundle; empty in a tombstone. */
  readonly bundle: Buffer;
  /** Ed25519 over the header, by the writer's ephemeral key; 64 bytes. */
  readonly signature: Buffer;
}

const magic = Buffer.from('cofre/batch/v1\n', 'ascii');
const headerBytes = 15 + 8 + 8 + 1 + 8 + 4 + 32 + 32;
export const noPredecessor: Buffer = Buffer.alloc(32);

/** The signed header of a batch: 108 bytes. */
export function batchHeader(batch: Omit<Batch, 'signature'>): Buffer {
  return batchHeaderOver(batch, createHash('sha256').update(batch.bundle).digest());
}

/** The signed header of a batch whose bundle has this SHA-256: for whoever does not have the bundle in one piece. */
export function batchHeaderOver(batch: Omit<Batch, 'signature' | 'bundle'>, bundleHash: Buffer): Buffer {
  const header = Buffer.allocUnsafe(headerBytes);
  let at = magic.copy(header);
  at = header.writeBigInt64BE(batch.writer, at);
  at = header.writeBigInt64BE(batch.number, at);
  at = header.writeUInt8(batch.kind === 'entries' ? 0 : 1, at);
  at = header.writeBigInt64BE(BigInt(batch.formedAt.getTime()), at);
  at = header.writeUInt32BE(batch.entryCount, at);
  at += batch.previous.copy(header, at, 0, 32);
  bundleHash.copy(header, at, 0, 32);
  return header;
}

export function headerHash(header: Buffer): Buffer {
  return createHash('sha256').update(header).digest();
}

/** What a chain must go on from: the number and predecessor of the batch that comes next, and the time that it may not fall behind. */
export interface ChainPosition {
  readonly next: bigint;
  /** SHA-256 of the last batch's header; 32 bytes, `noPredecessor` before the first. */
  readonly previous: Buffer;
  /** When the last batch was formed; null before the first. */
  readonly formedAt: Date | null;
}

export const chainStart: ChainPosition = { next: 0n, previous: noPredecessor, formedAt: null };

/**
 * Where the chain stands after `batch`, or what is wrong with `batch` at this place: gap, predecessor, time, signature, count. Never throws.
 * `countEntries` may throw on a bundle that is none.
 */
export function followChain(position: ChainPosition, batch: Batch, publicKey: KeyObject, countEntries: (bundle: Buffer) => number): ChainPosition | string {
  if (batch.number !== position.next) return `batch ${position.next} is missing`;
  try {
    if (!batch.previous.equals(position.previous)) return `batch ${batch.number} does not follow its predecessor`;
    const header = batchHeader(batch);
    if (!verify(null, header, publicKey, batch.signature)) return `batch ${batch.number} has a wrong signature`;
    if (countEntries(batch.bundle) !== batch.entryCount) return `batch ${batch.number} does not hold the entries that it counts`;
    if (position.formedAt !== null && batch.formedAt < position.formedAt) return `batch ${batch.number} is older than its predecessor`;
    return { next: batch.number + 1n, previous: headerHash(header), formedAt: batch.formedAt };
  } catch {
    // A row may hold what no header can: a negative count, a time at infinity, nothing at all.
    return `batch ${batch.number} is not a batch`;
  }
}

/**
 * What is wrong with a writer's batches, or null. `batches` is in ascending order from number 0. That the last one is the last, only
 * somebody outside can tell: a successor's start entry, or a checkpoint.
 */
export function checkChain(batches: Iterable<Batch>, publicKey: KeyObject, countEntries: (bundle: Buffer) => number): string | null {
  let position = chainStart;
  for (const batch of batches) {
    const followed = followChain(position, batch, publicKey, countEntries);
    if (typeof followed === 'string') return followed;
    position = followed;
  }
  return null;
}

/** The text that the HSM's log key signs to certify a writer's ephemeral key; a C2SP signed note around it is the certificate. */
export function writerCertificateText(writer: bigint, role: string, publicKeySpki: Buffer, startedAt: Date): string {
  return `cofre/writer/v1\n${writerName(writer)}\n${role}\n${publicKeySpki.toString('base64')}\n${startedAt.toISOString()}\n`;
}

/** Reads a certificate text back; null if it is not one. */
export function readWriterCertificate(text: string): { writer: bigint; role: string; publicKey: KeyObject; startedAt: Date } | null {
  const [format, name = '', role = '', key = '', startedAt = '', rest, ...more] = text.split('\n');
  // 63 bits of writer, as PostgreSQL holds them.
  if (format !== 'cofre/writer/v1' || rest !== '' || more.length > 0 || !/^[0-7][0-9a-f]{15}$/u.test(name) || Number.isNaN(Date.parse(startedAt))) return null;
  try {
    const publicKey = createPublicKey({ key: Buffer.from(key, 'base64'), format: 'der', type: 'spki' });
    return { writer: BigInt(`0x${name}`), role, publicKey, startedAt: new Date(startedAt) };
  } catch {
    return null;
  }
}

/** A writer's id as people and entries see it: 16 hex digits. */
export function writerName(writer: bigint): string {
  return writer.toString(16).padStart(16, '0');
}
