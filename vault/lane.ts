/** One piece of work at a time; shares take turns, each in its own order, and not too many in wait. */
import { VaultError } from './errors.ts';
import { FairQueue } from './fair-queue.ts';

interface Waiting {
  readonly weight: 1;
  readonly begin: () => void;
  readonly refuse: () => void;
}

export class Lane {
  readonly #maxWaiting: number;
  readonly #queue = new FairQueue<Waiting>();
  #busy = false;

  constructor(maxWaiting: number) {
    this.#maxWaiting = maxWaiting;
  }

  /**
   * Runs `work` once its turn has come, however what was before it ended.
   *
   * @throws VaultError `overloaded` if too many wait and no other share has more of the places than its own, now or later, when another share wants one; what `work` throws.
   */
  async run<T>(share: string, work: () => Promise<T>): Promise<T> {
    if (this.#busy) await this.#turn(share);
    this.#busy = true;
    try {
      return await work();
    } finally {
      const [next] = this.#queue.take(1, 1);
      // Handed on, or else whoever comes in between would go first.
      if (next === undefined) this.#busy = false;
      else next.begin();
    }
  }

  #turn(share: string): Promise<void> {
    // What runs has a place as well.
    if (this.#queue.length + 1 >= this.#maxWaiting) {
      const dropped = this.#queue.makeRoom(share, 1);
      if (dropped === null) throw new VaultError('overloaded');
      dropped.refuse();
    }
    return new Promise((begin, reject) => {
      this.#queue.push(share, { weight: 1, begin, refuse: () => reject(new VaultError('overloaded')) });
    });
  }
}
