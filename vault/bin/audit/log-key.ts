/** The public key of a log: as it is given, or as a vault tells it. */
import { readVkey } from '../../../audit/log-source.ts';
import type { LogFiles } from '../../../audit/log-source.ts';
import { encodeVkey, parseVkey } from '../../../audit/note.ts';
import type { NoteVerifier } from '../../../audit/note.ts';
import { UsageError } from '../command-group.ts';
import type { Call } from '../command-group.ts';
import { readText } from './text-file.ts';

/** The key itself, or the one in the file of that name. */
export function readKey(value: string): NoteVerifier {
  const readable = (text: string): NoteVerifier | null => {
    try {
      return parseVkey(text);
    } catch {
      return null;
    }
  };
  const itself = readable(value);
  if (itself !== null) return itself;
  let text;
  try {
    text = readText(value).text.trim();
  } catch (error) {
    throw new UsageError(`--vkey is neither a public key nor a file that can be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`, { cause: error });
  }
  const inFile = readable(text);
  if (inFile === null) throw new UsageError(`${value}: holds no public key of a log`);
  return inFile;
}

/** The key that `--vkey` gives. @throws UsageError if there is none. */
export function neededKey({ options }: Call): NoteVerifier {
  const value = options['vkey']?.[0];
  if (value === undefined) throw new UsageError('--vkey KEY is needed: the public key of the log, got from the vault\'s owner');
  return readKey(value);
}

/** A key in the form that public tools take. */
export function vkeyOf({ name, algorithm, key }: NoteVerifier): string {
  return encodeVkey(name, algorithm, key.export({ format: 'der', type: 'spki' }));
}

/** The name of the log that a checkpoint is of, unchecked; empty if there is none. */
export function originOf(note: string | null): string {
  return note?.slice(0, Math.max(0, note.indexOf('\n'))) ?? '';
}

/** The key that a vault says is its log's. @throws Error of one line if it says none. */
export async function vaultKey(files: LogFiles): Promise<NoteVerifier> {
  const text = await readVkey(files);
  try {
    return parseVkey(text ?? '');
  } catch (error) {
    throw new Error('the vault does not tell the public key of its log', { cause: error });
  }
}
