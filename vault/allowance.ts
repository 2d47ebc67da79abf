/** How often something may happen: `most` at once, and `perSecond` in the long run. Pure but for the clock that it is given. */
export class Allowance {
  readonly #most: number;
  readonly #perSecond: number;
  readonly #nowMs: () => number;
  #left: number;
  #at: number;

  /** `nowMs` is monotonic. */
  constructor(most: number, perSecond: number, nowMs: () => number) {
    this.#most = most;
    this.#perSecond = perSecond;
    this.#nowMs = nowMs;
    this.#left = most;
    this.#at = nowMs();
  }

  /** Whether it may happen now; if so, it counts. */
  take(): boolean {
    this.#fill();
    if (this.#left < 1) return false;
    this.#left -= 1;
    return true;
  }

  /** Until it may happen again: 0 if now. */
  get waitMs(): number {
    this.#fill();
    return Math.max(0, ((1 - this.#left) * 1000) / this.#perSecond);
  }

  /** Whether nothing of it is used: as good as a new one. */
  get full(): boolean {
    this.#fill();
    return this.#left === this.#most;
  }

  #fill(): void {
    const now = this.#nowMs();
    this.#left = Math.min(this.#most, this.#left + ((now - this.#at) * this.#perSecond) / 1000);
    this.#at = now;
  }
}
