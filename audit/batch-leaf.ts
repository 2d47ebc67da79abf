/**
 * The leaf that stands in the tree before the entries of a batch: its signed header, without the bundle, which the leaves that follow
 * make again. So the tree alone tells of every writer's chain. Pure.
 *
 * It is an entry like every other (`entry.ts`):
 *   {"action":"log.batch","at":<formed at>,"detail":{"certificate":<the writer's, a signed note; in batch 0 only>,"count":<entries>,
 *    "kind":"entries"|"tombstone","number":<integer>,"previous":<64 hex>,"signature":<128 hex>,"writer":<16 hex>},"outcome":"allowed","v":1}
 */
import { writerName, type Batch } from './chain.ts';
import { encodeEntry } from './entry.ts';

/** A batch as its leaf tells of it. */
export type BatchLeaf = Omit<Batch, 'bundle'> & {
  /** The writer's certificate, a signed note; null in every batch but 0. */
  readonly certificate: string | null;
};

/** No entry but a batch leaf may have this action. */
export const batchLeafAction = 'log.batch';

/**
 * The canonical bytes of a batch's leaf. `certificate` is null in every batch but 0.
 *
 * @throws RangeError if the number is none that JSON carries (2**53 batches), or the certificate is missing or one too many.
 */
export function encodeBatchLeaf(batch: Omit<Batch, 'bundle'>, certificate: string | null): Buffer {
  const number = Number(batch.number);
  if (!Number.isSafeInteger(number) || number < 0) throw new RangeError('a batch number beyond JSON');
  if ((number === 0) !== (certificate !== null)) throw new RangeError('a certificate stands in batch 0, and nowhere else');
  return encodeEntry({
    action: batchLeafAction,
    at: batch.formedAt,
    detail: {
      ...(certificate === null ? {} : { certificate }),
      count: batch.entryCount,
      kind: batch.kind,
      number,
      previous: batch.previous.toString('hex'),
      signature: batch.signature.toString('hex'),
      writer: writerName(batch.writer),
    },
    outcome: 'allowed',
  });
}

/**
 * Reads a batch's leaf from what `JSON.parse` gave. Null if it is not, member for member and in their order, what `encodeBatchLeaf`
 * gives, or counts entries in a tombstone or none outside of one. Whether it is true, the chain says.
 */
export function decodeBatchLeaf(entry: unknown): BatchLeaf | null {
  if (!isRecord(entry) || !isRecord(entry['detail'])) return null;
  const { certificate = null, count, kind, number, previous, signature, writer } = entry['detail'];
  if (certificate !== null && typeof certificate !== 'string') return null;
  if (kind !== 'entries' && kind !== 'tombstone') return null;
  if (typeof count !== 'number' || !Number.isInteger(count) || count < 0 || count > 0xffff_ffff || (count === 0) !== (kind === 'tombstone')) return null;
  if (typeof number !== 'number' || !Number.isSafeInteger(number)) return null;
  // 63 bits of writer, as PostgreSQL holds them.
  if (typeof writer !== 'string' || !/^[0-7][0-9a-f]{15}$/u.test(writer)) return null;
  if (typeof previous !== 'string' || !/^[0-9a-f]{64}$/u.test(previous)) return null;
  if (typeof signature !== 'string' || !/^[0-9a-f]{128}$/u.test(signature)) return null;
  if (typeof entry['at'] !== 'string') return null;
  const leaf: BatchLeaf = {
    writer: BigInt(`0x${writer}`),
    number: BigInt(number),
    kind,
    formedAt: new Date(entry['at']),
    entryCount: count,
    previous: Buffer.from(previous, 'hex'),
    signature: Buffer.from(signature, 'hex'),
    certificate,
  };
  try {
    return encodeBatchLeaf(leaf, certificate).toString('utf8') === JSON.stringify(entry) ? leaf : null;
  } catch {
    // A time that is none, a certificate where none belongs or that is too long.
    return null;
  }
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
