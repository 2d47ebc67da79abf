/** Writers whose batches are waited for: those that wrote last are looked at each time, the others in turn. Pure. */

/** A writer is silent for good or for now, nobody can tell; a look at each of some ten thousand would take a core. A round of all of them takes this many looks. */
const looksARound = 240;
const leastInTurn = 64;

export class ChainSet<Chain extends { readonly writer: bigint }> {
  readonly #maxActive: number;
  /** The one that moved last, last. */
  readonly #active = new Map<bigint, Chain>();
  /** The one whose turn is next, first. */
  readonly #quiet = new Map<bigint, Chain>();

  constructor(maxActive: number) {
    this.#maxActive = maxActive;
  }

  get size(): number {
    return this.#active.size + this.#quiet.size;
  }

  get(writer: bigint): Chain | undefined {
    return this.#active.get(writer) ?? this.#quiet.get(writer);
  }

  /** Adds a chain as the one that moved last. */
  add(chain: Chain): void {
    this.moved(chain);
  }

  /** A chain moved: it is looked at each time, as long as few others move after it. */
  moved(chain: Chain): void {
    this.#quiet.delete(chain.writer);
    this.#active.delete(chain.writer);
    this.#active.set(chain.writer, chain);
    if (this.#active.size <= this.#maxActive) return;
    const [oldest] = this.#active.values();
    this.#active.delete(oldest!.writer);
    this.#quiet.set(oldest!.writer, oldest!);
  }

  remove(writer: bigint): void {
    this.#active.delete(writer);
    this.#quiet.delete(writer);
  }

  /** Those to look at now; all of them if asked to. */
  due(all = false): Chain[] {
    const due = [...this.#active.values()];
    let turns = all ? this.#quiet.size : Math.min(this.#quiet.size, Math.max(leastInTurn, Math.ceil(this.#quiet.size / looksARound)));
    for (const chain of this.#quiet.values()) {
      if (turns-- === 0) break;
      due.push(chain);
    }
    // Behind the others, for their next turn.
    for (const chain of due.slice(this.#active.size)) {
      this.#quiet.delete(chain.writer);
      this.#quiet.set(chain.writer, chain);
    }
    return due;
  }
}
