/**
 * A proof in one file that an entry is in the log (https://c2sp.org/tlog-proof, extension `.tlog-proof`), to be checked offline with
 * nothing but the log's public key. Pure.
 *
 * Its lines: `c2sp.org/tlog-proof@v1`; `extra ` and base64, which may be missing; `index ` and decimal digits; the hashes of the
 * inclusion proof in base64, the leaf's sibling first; an empty line; the checkpoint, a signed note. Our extra data is the entry.
 */
import { openCheckpoint, type Checkpoint } from './checkpoint.ts';
import { leafHash, verifyInclusion } from './merkle.ts';
import type { NoteVerifier } from './note.ts';

export interface LogProof {
  readonly index: number;
  /** The inclusion proof, 32 bytes each. */
  readonly hashes: readonly Buffer[];
  /** The signed note. */
  readonly checkpoint: string;
  /** The bytes of the entry; null in proofs of other makers. Nothing vouches for them until the proof is checked. */
  readonly extra: Buffer | null;
}

const format = 'c2sp.org/tlog-proof@v1';

/**
 * The text of a proof.
 *
 * @throws RangeError if it is none: an index below 0, a hash that is not 32 bytes, empty extra data, which is written as none.
 */
export function encodeProof({ index, hashes, checkpoint, extra }: LogProof): string {
  if (!Number.isSafeInteger(index) || index < 0 || hashes.some((hash) => hash.length !== 32) || extra?.length === 0) throw new RangeError('not a proof');
  let text = `${format}\n`;
  if (extra !== null) text += `extra ${extra.toString('base64')}\n`;
  text += `index ${index}\n`;
  for (const hash of hashes) text += `${hash.toString('base64')}\n`;
  return `${text}\n${checkpoint}`;
}

/** Reads the text of a proof; null if it is not, byte for byte, one that `encodeProof` gives. Whether it proves anything, checkProof says. */
export function parseProof(text: string): LogProof | null {
  const end = text.indexOf('\n\n');
  if (end < 0) return null;
  const lines = text.slice(0, end).split('\n');
  const checkpoint = text.slice(end + 2);
  if (lines.shift() !== format || checkpoint === '') return null;
  let extra: Buffer | null = null;
  if (lines[0]?.startsWith('extra ') === true) extra = Buffer.from(lines.shift()!.slice('extra '.length), 'base64');
  const index = Number(/^index (\d{1,16})$/u.exec(lines.shift() ?? '')?.[1] ?? Number.NaN);
  const hashes = lines.map((line) => Buffer.from(line, 'base64'));
  // Numbers and base64 have several spellings; a proof has one.
  try {
    const proof = { index, hashes, checkpoint, extra };
    return encodeProof(proof) === text ? proof : null;
  } catch {
    return null;
  }
}

/**
 * The entry that a proof proves to be in a log of one of `verifiers`, and the checkpoint it is under; otherwise what is wrong, in words.
 */
export function checkProof(proof: LogProof, verifiers: readonly NoteVerifier[]): { entry: Buffer; checkpoint: Checkpoint } | string {
  if (proof.extra === null) return 'the proof does not hold the entry';
  const checkpoint = openCheckpoint(proof.checkpoint, verifiers);
  if (checkpoint === null) return 'the checkpoint is not signed by a known key in the name of its log';
  if (proof.index >= checkpoint.size) return 'the checkpoint is older than the entry';
  if (!verifyInclusion(leafHash(proof.extra), proof.index, checkpoint.size, checkpoint.root, proof.hashes)) return 'the entry is not in the log at this index';
  return { entry: proof.extra, checkpoint };
}
