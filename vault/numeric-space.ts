/**
 * How full the space of numeric tokens is, as a process sees it: they are drawn at random, so the share of new ones that turn out to be taken is the share that is in use.
 * Raises an alarm long before a call would draw in vain.
 */

export interface NumericSpaceOptions {
  readonly now: () => Date;
  /** Told the share that is in use, in percent: when it is one or more, then at most once a minute. Must not throw. */
  readonly alarm: (percent: number) => void;
}

/** Fewer say nothing: of a space that is nearly empty one may be taken by chance. */
const leastTaken = 10;
/** After so many drawn the older ones count half. */
const window = 10_000;
const alarmMs = 60_000;

export class NumericSpace {
  readonly #options: NumericSpaceOptions;
  #drawn = 0;
  #taken = 0;
  #alarmAt = -Infinity;

  constructor(options: NumericSpaceOptions) {
    this.#options = options;
  }

  /** A numeric token was drawn. */
  drawn(): void {
    this.#drawn += 1;
    if (this.#drawn < window) return;
    this.#drawn /= 2;
    this.#taken /= 2;
  }

  /** One that was drawn is in use already. */
  taken(): void {
    this.#taken += 1;
    const percent = (100 * this.#taken) / this.#drawn;
    const time = this.#options.now().getTime();
    // A clock that was set back does not silence it for longer.
    if (this.#taken < leastTaken || percent < 1 || Math.abs(time - this.#alarmAt) < alarmMs) return;
    this.#alarmAt = time;
    this.#options.alarm(Math.round(percent));
  }
}
