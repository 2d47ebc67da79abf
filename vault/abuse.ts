/**
 * Signs that a caller does what its service would not: tokens tried that nobody has, numeric tokens tried one after the other, card numbers
 * guessed, a honey token named, more cards taken out than ever. Each is an alert, and by the configuration suspends the caller at once.
 *
 * Counted in the memory of each process, by the calls that it answered: several processes of a vault raise the number of tries that stay unseen to as many
 * times the limit. If the process dies, the counts of its last minute are lost, and what it could not write yet as the database was away. Costs the usual call, whose one
 * token is known and opaque, a look-up in a map.
 */
import { isNumericToken } from './numeric-token.ts';

export const abuseKinds = ['honey_token', 'unknown_tokens', 'sequential_tokens', 'card_guessing', 'unusual_volume'] as const;
export type AbuseKind = (typeof abuseKinds)[number];

/** Who is told on. */
export interface AbuseSubject {
  readonly spiffeId: string;
  readonly tenant: string;
}

export interface AbuseLimits {
  /** Tokens of a caller in a minute that are unknown or no tokens at all. */
  readonly unknownPerMinute: number;
  /** Numeric tokens of a caller in a row of which each is a neighbour of the one before. */
  readonly sequential: number;
}

export interface AbuseOptions {
  readonly limits: AbuseLimits;
  readonly now: () => Date;
  /** Whether a token is a decoy: asked only of what is no token of the tenant. Must not throw. */
  isHoney(tenantId: number, token: string): boolean;
  /** Told of each sign, of one caller and kind at most once a minute, with how many tries made it. Must not throw. */
  alert(kind: AbuseKind, subject: AbuseSubject, count: number): void;
}

/**
 * Told of tokens that an authorized call named, as they stood there, once its entry is committed: an alert is never of a call that the log does not have.
 * `missed` are those that the tenant does not have, well formed or not. Must not throw.
 */
export interface TokenWatch {
  /** To know of them, or to change them. */
  named(subject: AbuseSubject, tenantId: number, tokens: readonly string[], missed: readonly string[]): void;
  /** To open them. */
  opened(subject: AbuseSubject, tenantId: number, tokens: readonly string[], missed: readonly string[]): void;
}

interface CallerState {
  minute: number;
  missed: number;
  /** The last numeric token, without the last four digits, which are the card's; NaN for none. */
  lastStem: number;
  lastToken: string;
  run: number;
  readonly alertedAt: Map<AbuseKind, number>;
}

const minuteMs = 60_000;
/** How far apart two neighbours are at most. Of 10^8 and more stems with the same ending, two random ones lie this close once in millions. */
const neighbourhood = 32;

export class Abuse {
  readonly #options: AbuseOptions;
  /** By SPIFFE id. Bounded by the certificates that our authority gave out. */
  readonly #callers = new Map<string, CallerState>();

  constructor(options: AbuseOptions) {
    this.#options = options;
  }

  /** As `TokenWatch.named`. Never throws, never waits. */
  named(subject: AbuseSubject, tenantId: number, tokens: readonly string[], missed: readonly string[]): void {
    const numeric = tokens.some(isDigit);
    if (missed.length === 0 && !numeric) return;
    const state = this.#stateOf(subject);
    for (const token of missed) if (this.#options.isHoney(tenantId, token)) this.#alert('honey_token', subject, state, 1);
    this.#countMissed(subject, state, missed.length);
    if (numeric) this.#follow(subject, state, tokens);
  }

  /** What another part of the vault saw: at most one alert of a kind a minute comes of it. */
  told(kind: AbuseKind, subject: AbuseSubject, count: number): void {
    this.#alert(kind, subject, this.#stateOf(subject), count);
  }

  #countMissed(subject: AbuseSubject, state: CallerState, count: number): void {
    if (count === 0) return;
    const minute = Math.floor(this.#options.now().getTime() / minuteMs);
    if (minute !== state.minute) {
      state.minute = minute;
      state.missed = 0;
    }
    state.missed += count;
    if (state.missed > this.#options.limits.unknownPerMinute) this.#alert('unknown_tokens', subject, state, state.missed);
  }

  #follow(subject: AbuseSubject, state: CallerState, tokens: readonly string[]): void {
    for (const token of tokens) {
      if (!isNumericToken(token) || token === state.lastToken) continue;
      // At most fifteen digits: exact in a double.
      const stem = Number(token.slice(0, -4));
      state.run = token.length === state.lastToken.length && Math.abs(stem - state.lastStem) <= neighbourhood ? state.run + 1 : 1;
      state.lastStem = stem;
      state.lastToken = token;
      if (state.run >= this.#options.limits.sequential) this.#alert('sequential_tokens', subject, state, state.run);
    }
  }

  #alert(kind: AbuseKind, subject: AbuseSubject, state: CallerState, count: number): void {
    const time = this.#options.now().getTime();
    // A clock that was set back does not silence it for longer.
    if (Math.abs(time - (state.alertedAt.get(kind) ?? -Infinity)) < minuteMs) return;
    state.alertedAt.set(kind, time);
    this.#options.alert(kind, subject, count);
  }

  #stateOf({ spiffeId }: AbuseSubject): CallerState {
    let state = this.#callers.get(spiffeId);
    if (state === undefined) this.#callers.set(spiffeId, (state = { minute: 0, missed: 0, lastStem: Number.NaN, lastToken: '', run: 0, alertedAt: new Map() }));
    return state;
  }
}

function isDigit(token: string): boolean {
  const first = token.charCodeAt(0);
  return first >= 48 && first <= 57;
}
