/** What a verification of a log finds wrong, in words that stay the same for programs and sentences for people. */

export type FindingCode =
  // The signed statement.
  | 'checkpoint_missing'
  | 'checkpoint_invalid'
  // Files.
  | 'file_unreadable'
  | 'bundle_missing'
  | 'bundle_malformed'
  | 'tile_missing'
  | 'tile_malformed'
  // The tree.
  | 'entry_changed'
  | 'tile_changed'
  | 'range_changed'
  | 'undecided'
  | 'root_mismatch'
  | 'older_checkpoint_invalid'
  | 'older_checkpoint_ahead'
  | 'older_checkpoint_differs'
  // What the entries say.
  | 'entry_malformed'
  | 'charter_invalid'
  | 'entry_misplaced'
  | 'batch_leaf_missing'
  | 'batch_leaf_malformed'
  | 'batch_incomplete'
  | 'batch_missing'
  | 'batch_repeated'
  | 'batch_unchained'
  | 'batch_older'
  | 'batch_signature'
  | 'batch_after_stop'
  | 'certificate_invalid'
  | 'start_missing'
  | 'writer_unknown'
  | 'predecessor_missing'
  | 'predecessor_differs';

export interface Finding {
  readonly code: FindingCode;
  readonly message: string;
  /** Index of the entry, or of the first one of a range. */
  readonly entry?: number;
  /** Index of the last entry of a range. */
  readonly to?: number;
  /** Path of the tile or bundle. */
  readonly file?: string;
  /** 16 hex digits. */
  readonly writer?: string;
  readonly batch?: number;
}

/** Collects findings, of which it keeps a bounded number: a log of which everything is wrong is no reason to run out of memory. */
export class Findings {
  readonly #limit: number;
  readonly #kept: Finding[] = [];
  #count = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  get count(): number {
    return this.#count;
  }

  add(finding: Finding): void {
    this.#count += 1;
    if (this.#kept.length < this.#limit) this.#kept.push(finding);
  }

  /** In the order of the log; what is about all of it comes first. */
  list(): Finding[] {
    return this.#kept.toSorted((a, b) => (a.entry ?? -1) - (b.entry ?? -1));
  }
}

/** `entry 7`, `entries 7 to 9`. */
export function rangeText(from: number, to: number): string {
  return from === to ? `entry ${from}` : `entries ${from} to ${to}`;
}
