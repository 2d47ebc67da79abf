/**
 * A queue whose shares take turns: each has its own order, and one with a thousand waiting delays another by one of its own at a time
 * and not by all thousand. Pure.
 */

interface Weighted {
  readonly weight: number;
}

export class FairQueue<Item extends Weighted> {
  /** In the order of their turns. A share without items is not kept. */
  readonly #shares = new Map<string, Item[]>();
  #length = 0;
  #weight = 0;

  get length(): number {
    return this.#length;
  }

  /** The sum of the items' weights. */
  get weight(): number {
    return this.#weight;
  }

  push(share: string, item: Item): void {
    const items = this.#shares.get(share);
    if (items === undefined) this.#shares.set(share, [item]);
    else items.push(item);
    this.#length += 1;
    this.#weight += item.weight;
  }

  /**
   * Takes items share by share, one of each in turn, up to `maxCount` items with `maxWeight` in all; a first item that is heavier goes alone. What
   * was taken first then has its turn last.
   */
  take(maxCount: number, maxWeight: number): Item[] {
    const taken: Item[] = [];
    let weight = 0;
    for (const [share, items] of this.#shares) {
      const head = items[0]!;
      if (taken.length >= maxCount) break;
      // Neither does what is behind it: it would overtake.
      if (taken.length > 0 && weight + head.weight > maxWeight) continue;
      items.shift();
      // Behind the others, where this loop comes by again: a Map is gone through in the order of insertion, what is added meanwhile included.
      this.#shares.delete(share);
      if (items.length > 0) this.#shares.set(share, items);
      taken.push(head);
      weight += head.weight;
    }
    this.#forget(taken);
    return taken;
  }

  takeAll(): Item[] {
    return this.takeHeads(() => true);
  }

  /** Takes from the head of each share as long as `condition` holds. */
  takeHeads(condition: (head: Item) => boolean): Item[] {
    const taken: Item[] = [];
    for (const [share, items] of this.#shares) {
      let count = 0;
      while (count < items.length && condition(items[count]!)) count += 1;
      taken.push(...items.splice(0, count));
      if (items.length === 0) this.#shares.delete(share);
    }
    this.#forget(taken);
    return taken;
  }

  #forget(taken: readonly Item[]): void {
    this.#length -= taken.length;
    for (const item of taken) this.#weight -= item.weight;
  }
}
