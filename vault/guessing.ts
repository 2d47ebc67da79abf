/**
 * The cap on guessing card numbers. Whoever may tokenize can ask whether a card is known; with the first six and last four digits known
 * 100,000 candidates remain. So of the numbers that share these a caller may bring only so many distinct ones in a day of UTC.
 *
 * Counted in memory, approximately (vault/guess-sketch.ts has the error rates), and shared through a table every few seconds, by OR of
 * filters: several processes, and one before and after its restart, count a card once. A process that cannot share counts on by itself and shares
 * later. What several processes grant between two rounds adds up, to the limit for each of them in the worst case; so does what a kill takes
 * before it was shared. Costs 0.45 to 0.6 us a card (2 busy cores, Node 24.21), and no row and no trip to the database.
 *
 * Keeps no part of a card number: groups are hashes under a key of (tenant, caller), which comes from a secret of the tenant and is the same in
 * every process; cards are bits chosen by their fingerprint, which is an HMAC.
 */
import { createHmac } from 'node:crypto';
import { filterBits, GuessSketch } from './guess-sketch.ts';
import { fromTheStart, readGroups, shareGroups } from './guessing-store.ts';
import type { Queries, ReadUpTo } from './guessing-store.ts';
import { sipHash, sipKey } from './siphash.ts';
import type { SipKey } from './siphash.ts';
import type { Tenant } from './tenants.ts';

/** Told what happens. Must not throw. */
export interface GuessingObserver {
  /** A card was refused. */
  refused(): void;
  /** A caller that is exempt brought a card beyond the limit. */
  exceeded(): void;
  /** A caller was refused `cards` cards since the last time: told at the first one, then at most once a minute. */
  alarm(caller: string, cards: number): void;
  /** The counts cannot be shared any more; null: they can again. */
  sharing(failure: unknown): void;
}

export interface GuessingOptions {
  /** Distinct cards of one group, of a caller, in a day. */
  readonly distinctPerDay: number;
  readonly mergeIntervalMs: number;
  readonly now: () => Date;
  /** As a role that may write `guessed_groups`. Used by one round at a time; a query must end by itself. */
  readonly db: Queries;
  readonly observer: GuessingObserver;
}

const dayMs = 86_400_000;
const alarmMs = 60_000;
/** Rows are seen once they are committed, a while after the moment that they bear: so much is read again each time. */
const overlapMs = 5000;
/** Refusals of a group in a day, in caps, after which none of its cards is granted: see `ask`. */
const capsOfRefusals = 10;
const sharedARound = 500;
const readARound = 1000;
/** 8 MB and 16 MB, touched as the day's groups need them; exempt callers have their own, smaller ones, so that an import leaves no mark on others' counts. */
const sizes = { cells: 2 ** 23, slotBytes: 2 ** 24 };
const exemptSizes = { cells: 2 ** 21, slotBytes: 2 ** 21 };

interface CallerState {
  readonly key: SipKey;
  refused: number;
  alarmAt: number;
}

/** All that is counted in one day. */
interface Day {
  readonly number: number;
  readonly capped: GuessSketch;
  readonly exempt: GuessSketch;
  /** How often cards of a group were refused, by its hash; few groups ever are. */
  readonly refusals: Map<number, number>;
  upTo: ReadUpTo;
}

export class Guessing {
  readonly #options: GuessingOptions;
  /** By SPIFFE id. Bounded by the certificates that our authority gave out. */
  readonly #callers = new Map<string, CallerState>();
  readonly #timer: NodeJS.Timeout;
  readonly #hash = { low: 0, high: 0 };
  #day: Day;
  #merging: Promise<void> | null = null;
  #failing = false;
  #mergedAt: number;

  constructor(options: GuessingOptions) {
    this.#options = options;
    this.#mergedAt = options.now().getTime();
    this.#day = this.#dayOf(this.#mergedAt);
    this.#timer = setInterval(() => void this.merge(), options.mergeIntervalMs).unref();
  }

  /**
   * Whether a caller may bring this card. `group` is `Pan.group`, `fingerprint` the card's own. The same card again may come as often as it
   * likes. An exempt caller is counted, and always granted. Never throws, never waits.
   *
   * That the same card is granted again tells it from those that are refused: whoever went on beyond the cap would find what the caller brought that day. So a group that was refused
   * ten times as often as the cap allows cards is `closed` for the day to all of its cards, and no answer tells one from another.
   */
  ask(tenant: Tenant, caller: string, group: number, fingerprint: Uint8Array, exempt: boolean): 'granted' | 'refused' | 'closed' {
    const time = this.#options.now().getTime();
    const number = Math.floor(time / dayMs);
    if (number !== this.#day.number) this.#day = this.#dayOf(time);
    const day = this.#day;
    const known = this.#callers.get(caller);
    const state = known ?? this.#newCaller(tenant, caller);
    // 34 bits of group, and the day above them, so that rows of two days cannot be told to be of one group.
    sipHash(state.key, group | 0, Math.trunc(group / 2 ** 32) | (number << 8), this.#hash);
    if (exempt) {
      if (day.exempt.add(this.#hash, tenant.id, fingerprint, false) === 'beyond') this.#options.observer.exceeded();
      return 'granted';
    }
    const name = (this.#hash.low >>> 0) * 2 ** 21 + (this.#hash.high >>> 11);
    const refusals = day.refusals.get(name) ?? 0;
    const isClosed = refusals >= capsOfRefusals * this.#options.distinctPerDay;
    if (!isClosed && day.capped.add(this.#hash, tenant.id, fingerprint, true) !== 'beyond') return 'granted';
    day.refusals.set(name, refusals + 1);
    state.refused += 1;
    this.#options.observer.refused();
    this.#alarm(caller, state, time);
    return isClosed ? 'closed' : 'refused';
  }

  /** Seconds until the day ends and the counts with it, at least 1: what a refused caller is told to wait. */
  secondsToNextDay(): number {
    return Math.max(1, Math.ceil((dayMs - (this.#options.now().getTime() % dayMs)) / 1000));
  }

  /** Shares what this process counted and takes over what others did. Never throws: what could not be shared is shared in a later round. */
  async merge(): Promise<void> {
    this.#merging ??= this.#merge().finally(() => {
      this.#merging = null;
    });
    await this.#merging;
  }

  /** Shares for the last time. To be called once no more calls come. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    // A round that is under way may have begun before the last card.
    await this.merge();
    await this.merge();
  }

  /** Distinct cards of the group of which an exempt caller brought most today, as this process saw it. */
  get exemptMost(): number {
    return this.#day.exempt.most;
  }

  /** How long ago the counts were shared, in ms. */
  sharedAgoMs(): number {
    return Math.max(0, this.#options.now().getTime() - this.#mergedAt);
  }

  /** Bytes that the counts take, touched or not. */
  get bytes(): number {
    return this.#day.capped.bytes + this.#day.exempt.bytes;
  }

  async #merge(): Promise<void> {
    const { db, now, observer } = this.#options;
    const time = now().getTime();
    for (const [caller, state] of this.#callers) if (state.refused > 0) this.#alarm(caller, state, time);
    const day = this.#day;
    const date = dateOf(day.number);
    try {
      for (;;) {
        const filters = day.capped.unshared(sharedARound);
        if (filters.length === 0) break;
        try {
          await shareGroups(db, date, filters);
        } catch (error) {
          day.capped.keepUnshared(filters);
          throw error;
        }
      }
      let upTo: ReadUpTo = { ...fromTheStart, at: new Date(Math.max(0, day.upTo.at.getTime() - overlapMs)) };
      for (;;) {
        const read = await readGroups(db, date, upTo, readARound);
        for (const filter of read.filters) day.capped.absorb(filter);
        upTo = read.upTo;
        if (read.filters.length < readARound) break;
      }
      day.upTo = upTo.at > day.upTo.at ? upTo : day.upTo;
      this.#mergedAt = now().getTime();
      if (this.#failing) observer.sharing(null);
      this.#failing = false;
    } catch (error) {
      if (!this.#failing) observer.sharing(error);
      this.#failing = true;
    }
  }

  #dayOf(time: number): Day {
    const limit = this.#options.distinctPerDay;
    return { number: Math.floor(time / dayMs), capped: new GuessSketch({ limit, ...sizes }), exempt: new GuessSketch({ limit, ...exemptSizes }), refusals: new Map(), upTo: fromTheStart };
  }

  #newCaller(tenant: Tenant, caller: string): CallerState {
    // Filters of two sizes must not meet: each limit's size has groups of its own.
    const key = createHmac('sha256', tenant.keys.rowMacKey).update(`cofre/guessing/v1\0${filterBits(this.#options.distinctPerDay)}\0${caller}`, 'utf8').digest();
    const state = { key: sipKey(key), refused: 0, alarmAt: -Infinity };
    this.#callers.set(caller, state);
    return state;
  }

  #alarm(caller: string, state: CallerState, time: number): void {
    // A clock that was set back does not silence it for longer.
    if (Math.abs(time - state.alarmAt) < alarmMs) return;
    this.#options.observer.alarm(caller, state.refused);
    state.refused = 0;
    state.alarmAt = time;
  }
}

/** A day, by its number since 1970, as PostgreSQL takes it. */
export function dateOf(day: number): string {
  return new Date(day * dayMs).toISOString().slice(0, 10);
}
