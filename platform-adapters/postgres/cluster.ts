/** The database cluster on disk: made whole or not at all, with the passwords of its two users beside it. */
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { flushFolder, replaceFile } from '../linux/durable-file.ts';
import { parseJson } from './roles.ts';
import { lastLine, readText } from './server-process.ts';
import { ENVIRONMENT, chownTree, identityOf, launcher } from './server-user.ts';
import type { Identity } from './server-user.ts';

export interface Passwords {
  readonly postgres: string;
  readonly cofre: string;
}

/** Makes the cluster under another name and renames it, so that `cluster/` is either whole or absent. */
export function initialize(folder: string, cluster: string, binaries: string, identity: Identity): void {
  const half = join(folder, `initdb-${randomBytes(6).toString('hex')}`);
  mkdirSync(half, { mode: 0o700 });
  const passwords: Passwords = { postgres: randomBytes(32).toString('base64url'), cofre: randomBytes(32).toString('base64url') };
  replaceFile(join(half, 'passwords.json'), JSON.stringify(passwords), 0o600);
  writeFileSync(join(half, 'pwfile'), passwords.postgres, { mode: 0o600 });
  if (identity.kind === 'user') chownTree(half, identity.uid, identity.gid);
  const run = launcher(identity, false);
  const args = [
    ...run.prefix,
    join(binaries, 'initdb'),
    '-D',
    join(half, 'data'),
    '-U',
    'postgres',
    `--pwfile=${join(half, 'pwfile')}`,
    '--auth=scram-sha-256',
    '--data-checksums',
    '--encoding=UTF8',
    '--locale=C',
    '--no-instructions',
  ];
  const made = spawnSync('/bin/sh', args, { ...identityOf(run), cwd: '/', env: ENVIRONMENT, encoding: 'utf8' });
  if (made.status !== 0) {
    rmSync(half, { recursive: true });
    throw new Error(`initdb failed: ${lastLine(made.stderr) ?? 'no reason given'}`);
  }
  rmSync(join(half, 'pwfile'));
  // initdb has flushed its files. From the rename on tokens may be answered, so it must not be lost: the next start would throw the folder away by its old name.
  flushFolder(half);
  renameSync(half, cluster);
  flushFolder(folder);
}

/** @throws Error of one line if the file is not there or holds something else. */
export function readPasswords(cluster: string): Passwords {
  const file = join(cluster, 'passwords.json');
  const parsed = parseJson(readText(file) ?? '') as Partial<Passwords> | null;
  if (typeof parsed?.postgres !== 'string' || typeof parsed.cofre !== 'string') throw new Error(`${file} does not hold the database's passwords: restore it from a backup`);
  return { postgres: parsed.postgres, cofre: parsed.cofre };
}
