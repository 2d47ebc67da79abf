/**
 * A queue whose shares take turns: each has its own order, and one with a thousand waiting delays another by one of its own at a time
 * and not by all thousand. Pure.
 */

interface Weighted {
  readonly weight: number;
}

interface Share<Item> {
  readonly items: Item[];
  weight: number;
}

export class FairQueue<Item extends Weighted> {
  /** In the order of their turns. A share without items is not kept. */
  readonly #shares = new Map<string, Share<Item>>();
  #length = 0;
  #weight = 0;

  get length(): number {
    return this.#length;
  }

  /** The sum of the items' weights. */
  get weight(): number {
    return this.#weight;
  }

  push(name: string, item: Item): void {
    const share = this.#shares.get(name);
    if (share === undefined) this.#shares.set(name, { items: [item], weight: item.weight });
    else {
      share.items.push(item);
      share.weight += item.weight;
    }
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
    for (const [name, share] of this.#shares) {
      const head = share.items[0]!;
      if (taken.length >= maxCount) break;
      // Neither does what is behind it: it would overtake.
      if (taken.length > 0 && weight + head.weight > maxWeight) continue;
      share.items.shift();
      // Behind the others, where this loop comes by again: a Map is gone through in the order of insertion, what is added meanwhile included.
      this.#shares.delete(name);
      if (share.items.length > 0) this.#shares.set(name, share);
      this.#forget(share, [head]);
      taken.push(head);
      weight += head.weight;
    }
    return taken;
  }

  /**
   * Takes out what came last of the share that weighs most, to make room for an item of share `name` that weighs `weight`; null if no other share weighs more than
   * that one would. So one share may have all the room while nobody else needs it, and no more than the others once they do.
   */
  makeRoom(name: string, weight: number): Item | null {
    let heaviest: string | null = null;
    let most = (this.#shares.get(name)?.weight ?? 0) + weight;
    for (const [other, share] of this.#shares) {
      if (other === name || share.weight <= most) continue;
      heaviest = other;
      most = share.weight;
    }
    if (heaviest === null) return null;
    const share = this.#shares.get(heaviest)!;
    const last = share.items.pop()!;
    if (share.items.length === 0) this.#shares.delete(heaviest);
    this.#forget(share, [last]);
    return last;
  }

  takeAll(): Item[] {
    return this.takeHeads(() => true);
  }

  /** Takes from the head of each share as long as `condition` holds. */
  takeHeads(condition: (head: Item) => boolean): Item[] {
    const taken: Item[] = [];
    for (const [name, share] of this.#shares) {
      const { items } = share;
      let count = 0;
      while (count < items.length && condition(items[count]!)) count += 1;
      const heads = items.splice(0, count);
      if (items.length === 0) this.#shares.delete(name);
      this.#forget(share, heads);
      taken.push(...heads);
    }
    return taken;
  }

  #forget(share: Share<Item>, taken: readonly Item[]): void {
    this.#length -= taken.length;
    for (const item of taken) {
      this.#weight -= item.weight;
      share.weight -= item.weight;
    }
  }
}
