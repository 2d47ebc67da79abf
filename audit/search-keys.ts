/** What an entry is found by: small keys that stand in the search tables instead of the words themselves. Pure. */
import { hash } from 'node:crypto';

/** Members of an entry whose values are looked up by block. */
export const facetNames = ['action', 'caller', 'code', 'outcome', 'purpose', 'tenant'] as const;
export type FacetName = (typeof facetNames)[number];

/**
 * Members that are also looked up together. In a busy log nearly every block has each caller and, of somebody, a refusal: only a row for both tells where
 * they meet in one entry. Not caller and action, which meet in nearly every block where the caller occurs at all, and would nearly double the rows of a block.
 */
export const facetPairs = [
  ['caller', 'outcome'],
  ['tenant', 'outcome'],
  ['action', 'outcome'],
  ['caller', 'code'],
  ['tenant', 'code'],
] as const satisfies readonly (readonly [FacetName, FacetName])[];

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

/** Of two values in one entry. @see tokenKey */
export function pairKey(first: FacetName, firstValue: string, second: FacetName, secondValue: string): bigint {
  return firstEight(`${first}\0${firstValue}\0${second}\0${secondValue}`);
}

interface KnownValue {
  readonly text: string;
  readonly key: bigint;
  /** Keys of the pairs of which this is the first value, by the second. */
  readonly pairs: Map<KnownValue, bigint>;
}

/** Values recur in nearly every entry, so their keys are kept; so many of them, and of pairs of them, at most. Not of a text that is longer than any of ours: a thousand of those are 64 MB. */
const maxKnown = 10_000;
const maxKnownText = 1024;

/** Keys of an entry, given as its parsed JSON, whoever wrote it. */
export class SearchKeyReader {
  readonly #known: Readonly<Record<FacetName, Map<string, KnownValue>>> = { action: new Map(), caller: new Map(), code: new Map(), outcome: new Map(), purpose: new Map(), tenant: new Map() };
  #size = 0;

  read(entry: Readonly<Record<string, unknown>>): SearchKeys {
    if (this.#size >= maxKnown) this.#forget();
    const facets: bigint[] = [];
    const values: Partial<Record<FacetName, KnownValue>> = {};
    for (const name of facetNames) {
      const text = entry[name];
      if (typeof text !== 'string') continue;
      const value = this.#value(name, text);
      values[name] = value;
      facets.push(value.key);
    }
    for (const [first, second] of facetPairs) {
      const one = values[first];
      const other = values[second];
      if (one !== undefined && other !== undefined) facets.push(this.#pair(first, one, second, other));
    }
    return { tokens: tokensOf(entry['tokens']), facets };
  }

  #value(name: FacetName, text: string): KnownValue {
    let value = this.#known[name].get(text);
    if (value === undefined) {
      value = { text, key: facetKey(name, text), pairs: new Map() };
      if (text.length > maxKnownText) return value;
      this.#known[name].set(text, value);
      this.#size += 1;
    }
    return value;
  }

  #pair(first: FacetName, one: KnownValue, second: FacetName, other: KnownValue): bigint {
    let key = one.pairs.get(other);
    if (key === undefined) {
      key = pairKey(first, one.text, second, other.text);
      if (other.text.length > maxKnownText) return key;
      one.pairs.set(other, key);
      this.#size += 1;
    }
    return key;
  }

  #forget(): void {
    for (const values of Object.values(this.#known)) values.clear();
    this.#size = 0;
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
