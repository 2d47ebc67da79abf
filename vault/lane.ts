/** One piece of work at a time, in the order of arrival, and not too many in wait. */
import { VaultError } from './errors.ts';

export class Lane {
  readonly #maxWaiting: number;
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  constructor(maxWaiting: number) {
    this.#maxWaiting = maxWaiting;
  }

  /** Runs `work` once all that came before has ended, however it ended. @throws VaultError `overloaded` if too many wait; what `work` throws. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#waiting >= this.#maxWaiting) throw new VaultError('overloaded');
    this.#waiting += 1;
    const before = this.#last;
    const turn = before.then(work, work);
    this.#last = turn.catch(() => undefined);
    try {
      return await turn;
    } finally {
      this.#waiting -= 1;
    }
  }
}
