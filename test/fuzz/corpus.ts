/** The inputs that are kept: in the tree, a few for each target, and in the state folder all that ever reached something new. */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { passesLuhn } from '../support/made-cards.ts';
import { publishedCards } from '../support/test-cards.ts';

export interface Input {
  readonly name: string;
  readonly bytes: Buffer;
}

export const committedCorpus = (target: string): string => join(import.meta.dirname, 'corpus', target);

/** The inputs in a folder, by name; none where there is no folder. */
export function readInputs(folder: string): Input[] {
  let names: string[];
  try {
    names = readdirSync(folder).sort();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
  return names.map((name) => ({ name, bytes: readFileSync(join(folder, name)) }));
}

/** Writes an input under a name made of its content; returns its path. */
export function writeInput(folder: string, bytes: Uint8Array, prefix = ''): string {
  mkdirSync(folder, { recursive: true });
  const file = join(folder, prefix + createHash('sha256').update(bytes).digest('hex').slice(0, 12));
  writeFileSync(file, bytes);
  return file;
}

/** Whether an input holds a number that could be a card's and that nobody has published as a test number: it does not go into the tree then. */
export function holdsUnpublishedCard(bytes: Buffer): boolean {
  return Array.from(bytes.toString('latin1').matchAll(/(?<![0-9])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])/gu), ([run]) => run.replaceAll(/[ -]/gu, '')).some((digits) => /^(?:[3-6]|2[2-7])/u.test(digits) && passesLuhn(digits) && !publishedCards.some(({ pan }) => pan === digits));
}
