/**
 * Signed notes (https://c2sp.org/signed-note): a text, an empty line, and signature lines that name the key. Pure.
 *
 * The log's checkpoints and the certificates of its writers are notes, so public tools can check both.
 * Two signature types are in use: 0x01 Ed25519, and 0x02 ECDSA for an HSM without Ed25519 (DER signature over the SHA-256 of
 * the text, key id from the SubjectPublicKeyInfo).
 */
import { createHash, createPublicKey, verify as verifySignature } from 'node:crypto';
import type { KeyObject } from 'node:crypto';

export type NoteAlgorithm = 'ed25519' | 'ecdsa-p256';

/** What signs a note. `sign` gets the whole text and returns 64 raw bytes (Ed25519) or a DER signature over its SHA-256 (ECDSA). */
export interface NoteSigner {
  readonly algorithm: NoteAlgorithm;
  readonly publicKeySpki: Buffer;
  sign(message: Uint8Array): Promise<Buffer>;
}

/** A public key that notes are checked against, under the name that it signs as. */
export interface NoteVerifier {
  readonly name: string;
  readonly keyId: Buffer;
  readonly algorithm: NoteAlgorithm;
  readonly key: KeyObject;
}

const typeByte: Readonly<Record<NoteAlgorithm, number>> = { ed25519: 0x01, 'ecdsa-p256': 0x02 };
/** SubjectPublicKeyInfo of an Ed25519 key is this prefix and 32 key bytes (RFC 8410, section 4). */
const ed25519SpkiPrefix = Buffer.from('302a300506032b6570032100', 'hex');

/** The key material as a vkey carries it: 32 raw bytes for Ed25519, the SubjectPublicKeyInfo for ECDSA. */
function keyMaterial(algorithm: NoteAlgorithm, spki: Buffer): Buffer {
  if (algorithm === 'ecdsa-p256') return spki;
  if (spki.length !== 44 || !spki.subarray(0, 12).equals(ed25519SpkiPrefix)) throw new Error('not an Ed25519 public key');
  return spki.subarray(12);
}

/** The 4-byte key id: SHA-256(name || 0x0A || 0x01 || key)[:4] for Ed25519, SHA-256(SPKI)[:4] for ECDSA. */
export function noteKeyId(name: string, algorithm: NoteAlgorithm, spki: Buffer): Buffer {
  const hash = createHash('sha256');
  if (algorithm === 'ed25519') hash.update(name, 'utf8').update(Buffer.from([0x0a, typeByte.ed25519])).update(keyMaterial(algorithm, spki));
  else hash.update(spki);
  return hash.digest().subarray(0, 4);
}

/** The published form of a public key: `<name>+<key id in hex>+<base64 of type byte and key>`. */
export function encodeVkey(name: string, algorithm: NoteAlgorithm, spki: Buffer): string {
  const key = Buffer.concat([Buffer.from([typeByte[algorithm]]), keyMaterial(algorithm, spki)]);
  return `${name}+${noteKeyId(name, algorithm, spki).toString('hex')}+${key.toString('base64')}`;
}

/**
 * Reads a vkey.
 *
 * @throws Error if it is malformed, or if its key id does not belong to its key.
 */
export function parseVkey(vkey: string): NoteVerifier {
  const match = /^([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+=*)$/u.exec(vkey);
  if (match === null) throw new Error('not a vkey');
  const [, name = '', id = '', encoded = ''] = match;
  const bytes = Buffer.from(encoded, 'base64');
  if (bytes.toString('base64') !== encoded) throw new Error('not a vkey');
  let algorithm: NoteAlgorithm;
  let spki: Buffer;
  if (bytes[0] === typeByte.ed25519 && bytes.length === 33) {
    algorithm = 'ed25519';
    spki = Buffer.concat([ed25519SpkiPrefix, bytes.subarray(1)]);
  } else if (bytes[0] === typeByte['ecdsa-p256']) {
    algorithm = 'ecdsa-p256';
    spki = bytes.subarray(1);
  } else {
    throw new Error('a vkey of an unknown type');
  }
  const keyId = noteKeyId(name, algorithm, spki);
  if (keyId.toString('hex') !== id) throw new Error('the key id of a vkey does not belong to its key');
  return { name, keyId, algorithm, key: createPublicKey({ key: spki, format: 'der', type: 'spki' }) };
}

/**
 * Signs `text`, which must end in a newline and hold no control characters but newlines, as `name`.
 *
 * @returns the whole note.
 */
export async function signNote(text: string, name: string, signer: NoteSigner): Promise<string> {
  if (!isNoteText(text)) throw new Error('not a note text');
  if (!/^[^\s+]+$/u.test(name)) throw new Error('not a key name');
  const signature = await signer.sign(Buffer.from(text, 'utf8'));
  const blob = Buffer.concat([noteKeyId(name, signer.algorithm, signer.publicKeySpki), signature]);
  return `${text}\n— ${name} ${blob.toString('base64')}\n`;
}

/**
 * The text of a note that at least one of `verifiers` has signed; null if none has. Signatures by unknown keys are ignored, as
 * the specification says; a known key with a bad signature refuses the whole note.
 */
export function openNote(note: string, verifiers: readonly NoteVerifier[]): string | null {
  const split = note.lastIndexOf('\n\n');
  if (split < 0 || !note.endsWith('\n') || Buffer.byteLength(note) > 1_000_000) return null;
  const text = note.slice(0, split + 1);
  if (!isNoteText(text)) return null;
  let verified = false;
  const lines = note.slice(split + 2, -1).split('\n');
  if (lines.length > 100) return null;
  for (const line of lines) {
    const match = /^— ([^\s+]+) ([A-Za-z0-9+/]+=*)$/u.exec(line);
    if (match === null) return null;
    const blob = Buffer.from(match[2] ?? '', 'base64');
    // Base64 has several spellings of the same bytes; a note has one.
    if (blob.length < 5 || blob.toString('base64') !== match[2]) return null;
    const verifier = verifiers.find((known) => known.name === match[1] && known.keyId.equals(blob.subarray(0, 4)));
    if (verifier === undefined) continue;
    if (!verifyNoteSignature(verifier, Buffer.from(text, 'utf8'), blob.subarray(4))) return null;
    verified = true;
  }
  return verified ? text : null;
}

function verifyNoteSignature(verifier: NoteVerifier, text: Buffer, signature: Buffer): boolean {
  if (verifier.algorithm === 'ed25519') return signature.length === 64 && verifySignature(null, text, verifier.key, signature);
  return verifySignature('sha256', text, { key: verifier.key, dsaEncoding: 'der' }, signature);
}

function isNoteText(text: string): boolean {
  if (!text.endsWith('\n')) return false;
  for (const character of text) {
    const code = character.codePointAt(0) ?? 0;
    if ((code < 0x20 && code !== 0x0a) || (code >= 0xd800 && code <= 0xdfff)) return false;
  }
  return true;
}
