/**
 * Checkpoints (https://c2sp.org/tlog-checkpoint): what a log signs about its tree. Pure.
 *
 * The text is three lines, each ended by a newline: the origin, which names the log; the size in decimal digits; the root in base64.
 * A signed note (`note.ts`) around it is the checkpoint.
 */
import { openNote, signNote, type NoteSigner, type NoteVerifier } from './note.ts';

export interface Checkpoint {
  /** What names the log, and is the name of its key. */
  readonly origin: string;
  /** Leaves. */
  readonly size: number;
  /** 32 bytes. */
  readonly root: Buffer;
}

/**
 * The text of a checkpoint.
 *
 * @throws RangeError if it is none: an origin that is empty or more than a line, a size below 0, a root that is not 32 bytes.
 */
export function checkpointText({ origin, size, root }: Checkpoint): string {
  if (origin === '' || /[\r\n]/u.test(origin) || !Number.isSafeInteger(size) || size < 0 || root.length !== 32) throw new RangeError('not a checkpoint');
  return `${origin}\n${size}\n${root.toString('base64')}\n`;
}

/** Reads the text of a checkpoint, which only a signature makes one; null if it is none. Extension lines are passed over. */
export function parseCheckpoint(text: string): Checkpoint | null {
  const match = /^([^\r\n]+)\n(0|[1-9]\d{0,15})\n([A-Za-z0-9+/]{43}=)\n(?:[^\r\n]+\n)*$/u.exec(text);
  if (match === null) return null;
  const [, origin = '', digits = '', base64 = ''] = match;
  const size = Number(digits);
  const root = Buffer.from(base64, 'base64');
  // Base64 has several spellings of the same bytes; a checkpoint has one.
  if (!Number.isSafeInteger(size) || root.toString('base64') !== base64) return null;
  return { origin, size, root };
}

/**
 * Signs a checkpoint under its origin.
 *
 * @returns the whole note.
 * @throws RangeError if it is none, Error if its origin cannot be the name of a key, and what the signer throws.
 */
export async function signCheckpoint(checkpoint: Checkpoint, signer: NoteSigner): Promise<string> {
  return await signNote(checkpointText(checkpoint), checkpoint.origin, signer);
}

/**
 * The checkpoint in a note, if one of `verifiers` whose name is the checkpoint's origin has signed it; null otherwise. A key under
 * another name says nothing here: it is a witness, or another log.
 */
export function openCheckpoint(note: string, verifiers: readonly NoteVerifier[]): Checkpoint | null {
  const origin = note.slice(0, Math.max(0, note.indexOf('\n')));
  const text = openNote(
    note,
    verifiers.filter((verifier) => verifier.name === origin),
  );
  return text === null ? null : parseCheckpoint(text);
}
