/**
 * What the vault itself said was wrong: the `log.alert` entries of a log that is verified. A log may hold in every respect and tell of a forged batch that
 * was kept out of it, or of an archive that lost a file; whoever verifies it is to know.
 */
import { readEntry } from './entry.ts';

export interface ToldAlert {
  readonly index: number;
  /** ISO 8601, as the entry says it. */
  readonly at: string;
  readonly kind: string;
  readonly reason: string;
}

export interface ToldAlerts {
  /** How many there are. */
  readonly count: number;
  /** The first of them, at most 20. */
  readonly first: readonly ToldAlert[];
}

const maxKept = 20;
/** As canonical JSON has it (`entry.ts`). */
const needle = Buffer.from('"action":"log.alert"', 'utf8');

/** Collects them, bundle by bundle, in the order of the log. */
export class AlertCheck {
  readonly #first: ToldAlert[] = [];
  #count = 0;

  get told(): ToldAlerts {
    return { count: this.#count, first: this.#first };
  }

  /** Takes the next bundle and its entries, the first of which has the index `first`. */
  bundle(first: number, bundle: Buffer, entries: readonly Uint8Array[]): void {
    // They are rare: one search of all the bytes costs less than a look at each entry.
    if (!bundle.includes(needle)) return;
    for (const [place, bytes] of entries.entries()) {
      const entry = readEntry(bytes);
      if (entry?.['action'] !== 'log.alert') continue;
      this.#count += 1;
      if (this.#first.length === maxKept) continue;
      const { detail, at } = entry as { detail?: Readonly<Record<string, unknown>> | null; at?: unknown };
      this.#first.push({ index: first + place, at: shown(at), kind: shown(detail?.['kind']), reason: shown(detail?.['reason']) });
    }
  }
}

/** What is said, for a terminal: whoever forged the log chose it. */
function shown(value: unknown): string {
  return typeof value === 'string' ? value.slice(0, 300).replaceAll(/[^\x20-\x7e]/gu, '?') : '';
}
