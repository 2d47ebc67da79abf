/** The names as which the HSM's one log key signs: of its vault's logs, and of writers' certificates. Pure. */
import { encodeVkey, parseVkey } from './note.ts';
import type { NoteVerifier } from './note.ts';

/** The same key under another name. @throws Error if it cannot be the name of a key. */
export function renamed(verifier: NoteVerifier, name: string): NoteVerifier {
  return parseVkey(encodeVkey(name, verifier.algorithm, verifier.key.export({ format: 'der', type: 'spki' })));
}

/** Whether one log of a vault was begun after another, by their names. */
export function isLater(origin: string, than: string): boolean {
  const [, name = '', number = ''] = /^(.+)\/([1-9][0-9]*)$/u.exec(origin) ?? [];
  const other = /^(.+)\/([1-9][0-9]*)$/u.exec(than);
  return name !== '' && (name === than || (other?.[1] === name && Number(number) > Number(other[2])));
}

export interface LogKeys {
  /** What a checkpoint of this origin is checked against. */
  readonly checkpoint: NoteVerifier;
  /** What charters and writers' certificates are checked against: the key under the vault's name, in which all its logs and writers are certified. */
  readonly certifier: readonly NoteVerifier[];
}

/**
 * The keys of the log called `origin`, from the vkey of that or of another log of its vault: the first is called `<name>`, those after it
 * `<name>/2`, `<name>/3`, … Null if it is another vault's.
 */
export function keysOf(vkey: NoteVerifier, origin: string): LogKeys | null {
  // `a/2` may be the second log of `a`, or the first one of a vault that calls itself so.
  const names = [...new Set([vkey.name, vkey.name.replace(/\/[1-9][0-9]*$/u, '')])].filter((name) => name !== '' && (origin === name || (origin.startsWith(`${name}/`) && /^(?:[2-9]|[1-9][0-9]+)$/u.test(origin.slice(name.length + 1)))));
  if (names.length === 0) return null;
  return { checkpoint: renamed(vkey, origin), certifier: names.map((name) => renamed(vkey, name)) };
}
