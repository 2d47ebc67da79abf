/** The sets of policies that were in force, in the database, each by its digest: it is what the log names a set by. */
import type { ClientBase, Pool } from 'pg';
import { digestOfPolicies } from './policy.ts';
import type { PolicyFiles } from './policy.ts';

/** Keeps a set, once. Any role that decides on calls may. */
export async function keepPolicySet(client: ClientBase, digest: string, files: PolicyFiles, now: Date): Promise<void> {
  // Without a target: to name one would ask for the right to read the row.
  await client.query({ text: 'INSERT INTO policy_sets (digest, files, kept_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING', values: [Buffer.from(digest, 'hex'), JSON.stringify([...files]), now] });
}

/** The set with that digest, or null. @throws Error where what stands there has another: somebody changed it. */
export async function findPolicySet(client: Pick<Pool, 'query'>, digest: string): Promise<PolicyFiles | null> {
  const { rows } = await client.query<{ files: unknown }>({ text: 'SELECT files FROM policy_sets WHERE digest = $1', values: [Buffer.from(digest, 'hex')] });
  const [row] = rows;
  if (row === undefined) return null;
  const files = readPolicySet(row.files);
  if (files === null || digestOfPolicies(files) !== digest) throw new Error('the database holds something else under the digest of a set of policies');
  return files;
}

/** A set as JSON has it, `[[name, text], …]`; null if it is none. */
export function readPolicySet(value: unknown): PolicyFiles | null {
  const isFile = (pair: unknown): pair is [string, string] => Array.isArray(pair) && pair.length === 2 && pair.every((part) => typeof part === 'string');
  return Array.isArray(value) && value.every(isFile) ? new Map(value) : null;
}
