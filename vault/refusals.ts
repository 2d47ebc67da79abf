/**
 * Entries of refused calls, bounded: whoever may do nothing here must not be able to fill the log, or the database's disk, by asking.
 * Of each caller the first refusals of a minute are an entry each; the rest are counted, and one entry says how many of which code
 * there were. A refusal that its operation commits itself (a token unknown to an approved caller, a quota used up) is not among
 * them: it always has its own.
 *
 * If the process dies, the counts of its last minute are lost, the entries are not.
 */
import type { Entry } from '../audit/entry.ts';
import { entryOf } from './call.ts';
import type { Call } from './call.ts';
import type { VaultError } from './errors.ts';

export interface RefusalOptions {
  /** Of a caller, in a minute. */
  readonly entriesPerMinute: number;
  readonly now: () => Date;
  /** Commits an entry. @throws VaultError if it cannot. */
  readonly write: (entry: Entry) => Promise<void>;
  /** Told of each refusal that got no entry of its own. Must not throw. */
  readonly summed: () => void;
}

/** What was refused to one caller since `since`. */
interface Tally {
  readonly since: Date;
  readonly call: Call;
  entries: number;
  readonly summed: Map<string, number>;
}

const minuteMs = 60_000;

export class Refusals {
  readonly #options: RefusalOptions;
  /** By SPIFFE id; '' for callers that cannot be told. Bounded by the certificates that our authority gave out. */
  readonly #tallies = new Map<string, Tally>();
  readonly #timer: NodeJS.Timeout;
  #round: Promise<void> | null = null;

  constructor(options: RefusalOptions) {
    this.#options = options;
    this.#timer = setInterval(() => {
      // While the log takes nothing a round lasts longer than this: rounds that piled up would hold up the end of the process.
      this.#round ??= this.#sumUp(false).finally(() => (this.#round = null));
    }, 1000).unref();
  }

  /** Resolves once the refusal's entry is committed, or at once where it is only counted. @throws VaultError if an entry cannot be written. */
  async record(call: Call, action: string, refused: VaultError): Promise<void> {
    const key = call.caller?.spiffeId ?? '';
    let tally = this.#tallies.get(key);
    if (tally === undefined) {
      tally = { since: call.at, call, entries: 0, summed: new Map() };
      this.#tallies.set(key, tally);
    }
    // What the vault failed in is its own doing, and no caller's way to fill the log: each of those has its entry.
    if (refused.status >= 500 || tally.entries < this.#options.entriesPerMinute) {
      tally.entries += 1;
      await this.#options.write(entryOf(call, { ...refused.facts, action, code: refused.code }));
      return;
    }
    tally.summed.set(refused.code, (tally.summed.get(refused.code) ?? 0) + 1);
    this.#options.summed();
  }

  /** Writes what was counted so far. To be called once no more calls come. Never throws: a log that takes nothing now has lost the counts. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    // One round at a time: what one of them writes, no other does.
    await this.#round;
    await this.#sumUp(true);
  }

  async #sumUp(all: boolean): Promise<void> {
    const time = this.#options.now().getTime();
    // A clock that was set back does not keep a caller's minute open for longer.
    const due = [...this.#tallies].filter(([, { since }]) => all || Math.abs(time - since.getTime()) >= minuteMs);
    for (const [key, tally] of due) {
      if (tally.summed.size === 0) this.#tallies.delete(key);
      else await this.#write(key, tally);
    }
  }

  async #write(key: string, tally: Tally): Promise<void> {
    const { since, call, summed } = tally;
    // From here on the caller's refusals are of its next minute.
    this.#tallies.delete(key);
    const counts = Object.fromEntries(summed);
    const total = [...summed.values()].reduce((sum, count) => sum + count, 0);
    const { caller } = call;
    try {
      await this.#options.write({
        action: 'refusals',
        at: this.#options.now(),
        outcome: 'refused',
        ...(caller === null ? {} : { caller: caller.spiffeId, tenant: caller.tenant }),
        detail: { ...counts, since: since.toISOString(), total },
      });
    } catch {
      // The log takes nothing just now: tried again in the next round, with what came meanwhile. The minute's entries stay used up.
      const later = this.#tallies.get(key);
      for (const [code, count] of later?.summed ?? []) summed.set(code, (summed.get(code) ?? 0) + count);
      this.#tallies.set(key, { since, call, entries: tally.entries + (later?.entries ?? 0), summed });
    }
  }
}
