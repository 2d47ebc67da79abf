/**
 * A copy of what SoftHSM2 writes anew at each login: the file of its token, without which none of its keys opens. It empties the file first, and a process
 * that is killed in that moment leaves it empty, for good. The keys themselves are written once.
 */
import { existsSync, mkdirSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { replaceFile } from '../../platform-adapters/linux/durable-file.ts';

/**
 * Puts back the files of development's tokens that are not whole, and copies those that are and have changed. May run while others log in: what they are
 * about to write is what is put back.
 */
export function mendTokens(home: string): void {
  const tokens = join(home, 'hsm/tokens');
  const copies = join(home, 'hsm/kept');
  // The configuration may name another token.
  if (!existsSync(tokens)) return;
  mkdirSync(copies, { recursive: true, mode: 0o700 });
  for (const name of readdirSync(tokens)) {
    const file = join(tokens, name, 'token.object');
    const copy = join(copies, name);
    if (!existsSync(file)) continue;
    const found = readFileSync(file);
    const kept = existsSync(copy) ? readFileSync(copy) : null;
    // Its length is the same whatever its PIN: salts, and what they lock, have a fixed size.
    const isWhole = found.length > 0 && (kept === null || found.length === kept.length);
    if (isWhole && kept?.equals(found) !== true) replaceFile(copy, found, 0o600);
    if (!isWhole && kept !== null) replaceFile(file, kept, 0o600);
  }
}
