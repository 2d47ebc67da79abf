/**
 * Entries for those who read the log: one for each reader, address and minute, with what was read of it. PCI DSS asks for access to the log itself to be
 * in the log. If the process dies, the reads of its last minute are not told of.
 */
import type { Entry } from '../audit/entry.ts';
import type { Call } from './call.ts';

export interface LogReadsOptions {
  readonly now: () => Date;
  /** Commits an entry. @throws VaultError if it cannot. */
  readonly write: (entry: Entry) => Promise<void>;
}

interface Reads {
  readonly since: Date;
  readonly call: Call;
  readonly policies: readonly string[];
  checkpoints: number;
  tiles: number;
  /** Ranges of entries, each with its end, in no order. */
  readonly ranges: { from: number; to: number }[];
}

const minuteMs = 60_000;
/** Ranges that one entry names; more are joined to their neighbours, so that it names too much rather than too little. */
const maxRanges = 50;

export class LogReads {
  readonly #options: LogReadsOptions;
  /** By SPIFFE id, certificate and address: each is in the entry. */
  readonly #reads = new Map<string, Reads>();
  readonly #timer: NodeJS.Timeout;
  #round: Promise<void> | null = null;

  constructor(options: LogReadsOptions) {
    this.#options = options;
    this.#timer = setInterval(() => {
      // While the log takes nothing a round lasts longer than this: rounds that piled up would hold up the end of the process.
      this.#round ??= this.#sumUp(false).finally(() => (this.#round = null));
    }, 1000).unref();
  }

  /** Notes what `call` reads: the checkpoint, a tile of hashes, or the entries `from` to `to` (exclusive). */
  note(call: Call, policies: readonly string[], what: 'checkpoint' | 'tile' | { readonly from: number; readonly to: number }): void {
    const key = `${call.caller?.spiffeId ?? ''} ${call.caller?.serial ?? ''} ${call.from}`;
    let reads = this.#reads.get(key);
    if (reads === undefined) this.#reads.set(key, (reads = { since: call.at, call, policies, checkpoints: 0, tiles: 0, ranges: [] }));
    if (what === 'checkpoint') reads.checkpoints += 1;
    else if (what === 'tile') reads.tiles += 1;
    else addRange(reads.ranges, what.from, what.to);
  }

  /** Writes what was noted so far. To be called once no more calls come. Never throws. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#round;
    await this.#sumUp(true);
  }

  async #sumUp(all: boolean): Promise<void> {
    const time = this.#options.now().getTime();
    // A clock that was set back does not keep a reader's minute open for longer.
    const due = Array.from(this.#reads).filter(([, { since }]) => all || Math.abs(time - since.getTime()) >= minuteMs);
    for (const [key, reads] of due) {
      // What is read while the entry is written is of the reader's next one: this one would not name it.
      this.#reads.delete(key);
      try {
        await this.#options.write(entryOfReads(reads, this.#options.now()));
      } catch {
        // The log takes nothing just now: tried again in the next round, with what came meanwhile.
        this.#keep(key, reads);
      }
    }
  }

  #keep(key: string, reads: Reads): void {
    const later = this.#reads.get(key);
    if (later !== undefined) {
      reads.checkpoints += later.checkpoints;
      reads.tiles += later.tiles;
      for (const { from, to } of later.ranges) addRange(reads.ranges, from, to);
    }
    this.#reads.set(key, reads);
  }
}

function entryOfReads({ since, call, policies, checkpoints, tiles, ranges }: Reads, at: Date): Entry {
  const { caller, from } = call;
  const merged = mergeRanges(ranges, maxRanges);
  return {
    action: 'log_read',
    at,
    from,
    outcome: 'allowed',
    policies,
    ...(caller === null ? {} : { caller: caller.spiffeId, serial: caller.serial, tenant: caller.tenant }),
    detail: {
      checkpoints,
      since: since.toISOString(),
      tiles,
      ...(merged.length === 0 ? {} : { entries: merged.map((range) => `${range.from}-${range.to - 1}`).join(' ') }),
    },
  };
}

/** Readers go forward: most ranges begin where the last one ended. */
function addRange(ranges: { from: number; to: number }[], from: number, to: number): void {
  const last = ranges.at(-1);
  if (last !== undefined && from <= last.to && to >= last.from) {
    last.from = Math.min(last.from, from);
    last.to = Math.max(last.to, to);
    return;
  }
  ranges.push({ from, to });
  if (ranges.length > 20 * maxRanges) ranges.splice(0, ranges.length, ...mergeRanges(ranges, 10 * maxRanges));
}

/** The same entries, and if need be those between, in at most `most` ranges in order. */
export function mergeRanges(ranges: readonly { readonly from: number; readonly to: number }[], most: number): { from: number; to: number }[] {
  const merged: { from: number; to: number }[] = [];
  for (const { from, to } of [...ranges].sort((a, b) => a.from - b.from)) {
    const last = merged.at(-1);
    if (last !== undefined && from <= last.to) last.to = Math.max(last.to, to);
    else merged.push({ from, to });
  }
  while (merged.length > most) {
    let narrowest = 1;
    for (let index = 2; index < merged.length; index += 1) if (merged[index]!.from - merged[index - 1]!.to < merged[narrowest]!.from - merged[narrowest - 1]!.to) narrowest = index;
    merged[narrowest - 1]!.to = merged[narrowest]!.to;
    merged.splice(narrowest, 1);
  }
  return merged;
}
