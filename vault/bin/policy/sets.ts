/** Where a set of policies comes from: a folder, or a vault that had it in force. */
import { resolve } from 'node:path';
import { loadConfig } from '../../config.ts';
import { digestOfPolicies, openPolicySet, readPolicyFiles } from '../../policy.ts';
import type { Policy, PolicyFiles } from '../../policy.ts';
import { readPolicySet } from '../../policy-store.ts';
import { vaultFiles } from '../audit/vault-and-copy.ts';
import type { Call } from '../command-group.ts';

export type OpenSet = Pick<Policy, 'decide' | 'digest' | 'policyIds' | 'files'>;

/** A set is a schema and some files; this is far more than any. */
const maxSetBytes = 64 * 1024 * 1024;
const digestForm = /^[0-9a-f]{64}$/u;

/** The folder that the configuration of this home names. */
export function configuredFolder({ home, env }: Call): string {
  return resolve(home, loadConfig({ home, file: null, env }).policies);
}

/** Opens the set in a folder, or with a digest (64 hex digits) the one that a vault had in force. @throws PolicySetError, or Error of one line. */
export async function openSet(call: Call, from: string): Promise<OpenSet> {
  return await openPolicySet(digestForm.test(from) ? await fetchSet(call, from) : await readFolder(from), from);
}

/** The set with that digest, as a vault kept it. @throws Error of one line if it has none, or gives another. */
export async function fetchSet(call: Call, digest: string): Promise<PolicyFiles> {
  if (!digestForm.test(digest)) throw new Error('a digest of policies is 64 digits of lower-case hex');
  const vault = vaultFiles(call);
  try {
    const answer = await vault.read(`policies/${digest}`, maxSetBytes);
    if (answer === null) throw new Error(`the vault has no set of policies with the digest ${digest}`);
    const files = readPolicySet(JSON.parse(answer.toString('utf8')));
    // The log vouches for the digest, and the digest for the set: the vault need not be believed.
    if (files === null || digestOfPolicies(files) !== digest) throw new Error(`what the vault gives for ${digest} is another set`);
    return files;
  } finally {
    vault.close();
  }
}

async function readFolder(folder: string): Promise<PolicyFiles> {
  try {
    return await readPolicyFiles(folder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw new Error(`${folder}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`, { cause: error });
  }
}
