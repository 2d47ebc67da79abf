/** What an entry is found by: small keys that stand in the search tables instead of the words themselves. Pure. */
import { hash } from 'node:crypto';

/** Members of an entry whose values are looked up by block. */
export const facetNames = ['action', 'caller', 'code', 'outcome', 'purpose', 'tenant'] as const;
export type FacetName = (typeof facetNames)[number];

/** Entries that one row of a facet stands for. */
export const blockEntries = 256;

export interface SearchKeys {
  /** Tokens that the entry names, but for those that it tells the making of: their rows name this entry's batch. */
  readonly tokens: readonly string[];
  readonly facets: readonly bigint[];
}

/** First eight bytes of SHA-256, as PostgreSQL's signed bigint. Others may share it: whoever finds an entry reads it. */
export function tokenKey(token: string): bigint {
  return firstEight(`token\0${token}`);
}

/** @see tokenKey */
export function facetKey(name: FacetName, value: string): bigint {
  return firstEight(`${name}\0${value}`);
}

/** Keys of an entry, given as its parsed JSON, whoever wrote it. */
export class SearchKeyReader {
  /** Values recur in nearly every entry. */
  readonly #known = new Map<string, bigint>();

  read(entry: Readonly<Record<string, unknown>>): SearchKeys {
    const facets: bigint[] = [];
    for (const name of facetNames) {
      const value = entry[name];
      if (typeof value === 'string') facets.push(this.#facet(name, value));
    }
    return { tokens: tokensOf(entry['tokens']), facets };
  }

  #facet(name: FacetName, value: string): bigint {
    const id = `${name}\0${value}`;
    let key = this.#known.get(id);
    if (key === undefined) {
      if (this.#known.size >= 10_000) this.#known.clear();
      key = facetKey(name, value);
      this.#known.set(id, key);
    }
    return key;
  }
}

function tokensOf(tokens: unknown): string[] {
  if (typeof tokens !== 'object' || tokens === null) return [];
  const named = new Set<string>();
  for (const [became, list] of Object.entries(tokens)) {
    if (became === 'created' || !Array.isArray(list)) continue;
    for (const token of list as unknown[]) if (typeof token === 'string') named.add(token);
  }
  return [...named];
}

function firstEight(text: string): bigint {
  return BigInt.asIntN(64, BigInt(`0x${hash('sha256', text, 'hex').slice(0, 16)}`));
}
