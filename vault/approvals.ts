/** Which policies and limits two people approved: rows of the chain of controls, by digest. */
import { createHash } from 'node:crypto';
import type { Config } from './config.ts';
import type { Controls } from './controls.ts';

/** SHA-256 in hex of the configuration that bounds what callers may take: quotas, references, the cap on guessing, abuse. Of its values, in the order of their names. */
export function digestOfLimits({ quotas, references, guessing, abuse }: Pick<Config, 'quotas' | 'references' | 'guessing' | 'abuse'>): string {
  return createHash('sha256').update(JSON.stringify(sorted({ quotas, references, guessing, abuse })), 'utf8').digest('hex');
}

/** Why a set of policies, or limits, may not be in force; null where two people approved it. One line for the operator. */
export function refusalOf(controls: Controls, what: 'policies' | 'limits', digest: string): string | null {
  if (controls.get('approval', `${what} ${digest}`)?.state === 'on') return null;
  return `the ${what} with the digest ${digest} were not approved by two people: cofre change request ${what}.approve digest=${digest}`;
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, member]) => [name, sorted(member)]));
}
