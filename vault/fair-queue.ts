/**
 * A queue whose shares take turns: each has its own order, and one with a thousand waiting delays another by one of its own at a time
 * and not by all thousand. Pure.
 */

import { LinkedList } from './linked-list.ts';
import type { Node } from './linked-list.ts';

interface Weighted {
  readonly weight: number;
}

interface Share<Item> {
  readonly items: LinkedList<Item>;
  weight: number;
  /** Its place among those that have items; null while it has none. */
  turn: Node<Share<Item>> | null;
}

export class FairQueue<Item extends Weighted> {
  /** One for each name that ever waited: these are few, and the same. */
  readonly #shares = new Map<string, Share<Item>>();
  /** Those that have items, in the order of their turns. */
  readonly #turns = new LinkedList<Share<Item>>();
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
    let share = this.#shares.get(name);
    if (share === undefined) this.#shares.set(name, (share = { items: new LinkedList(), weight: 0, turn: null }));
    share.items.append(item);
    share.turn ??= this.#turns.append(share);
    share.weight += item.weight;
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
    for (let turn = this.#turns.first; turn !== null && taken.length < maxCount; ) {
      const share = turn.value;
      const head = share.items.first!;
      const next: Node<Share<Item>> | null = turn.next;
      // Neither does what is behind it: it would overtake.
      if (taken.length > 0 && weight + head.value.weight > maxWeight) {
        turn = next;
        continue;
      }
      // Behind the others, where this loop comes by again; of the last one, at once.
      this.#turns.moveToEnd(turn);
      this.#takeOut(share, head);
      taken.push(head.value);
      weight += head.value.weight;
      turn = next ?? share.turn;
    }
    return taken;
  }

  /**
   * Takes out what came last of the share that weighs most, to make room for an item of share `name` that weighs `weight`; null if no other share weighs more than
   * that one would. So one share may have all the room while nobody else needs it, and no more than the others once they do.
   */
  makeRoom(name: string, weight: number): Item | null {
    const own = this.#shares.get(name);
    let heaviest: Share<Item> | null = null;
    let most = (own?.weight ?? 0) + weight;
    for (const share of this.#turns) {
      if (share === own || share.weight <= most) continue;
      heaviest = share;
      most = share.weight;
    }
    if (heaviest === null) return null;
    const last = heaviest.items.last!;
    this.#takeOut(heaviest, last);
    return last.value;
  }

  takeAll(): Item[] {
    return this.takeHeads(() => true);
  }

  /** Takes from the head of each share as long as `condition` holds. */
  takeHeads(condition: (head: Item) => boolean): Item[] {
    const taken: Item[] = [];
    for (let turn = this.#turns.first; turn !== null; ) {
      const share = turn.value;
      turn = turn.next;
      for (let head = share.items.first; head !== null && condition(head.value); head = share.items.first) {
        this.#takeOut(share, head);
        taken.push(head.value);
      }
    }
    return taken;
  }

  #takeOut(share: Share<Item>, node: Node<Item>): void {
    const { weight } = node.value;
    share.items.remove(node);
    share.weight -= weight;
    this.#length -= 1;
    this.#weight -= weight;
    if (share.items.size > 0 || share.turn === null) return;
    this.#turns.remove(share.turn);
    share.turn = null;
  }
}
