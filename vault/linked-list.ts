/**
 * A doubly linked list for what comes and goes all the time. What is taken out is held on to by nothing that stays.
 *
 * A Set, a Map or an array leaves its table behind, as it is, each time it takes a new one. A table that has become old lives until the whole heap is
 * collected, and keeps alive all that it names: under 64 connections 3 KB of each call, so that the whole heap was collected twice a second, on the
 * processor that PostgreSQL wants.
 */
export class Node<Value> {
  readonly value: Value;
  previous: Node<Value> | null = null;
  next: Node<Value> | null = null;

  constructor(value: Value) {
    this.value = value;
  }
}

export class LinkedList<Value> {
  #first: Node<Value> | null = null;
  #last: Node<Value> | null = null;
  #size = 0;

  get first(): Node<Value> | null {
    return this.#first;
  }

  get last(): Node<Value> | null {
    return this.#last;
  }

  get size(): number {
    return this.#size;
  }

  append(value: Value): Node<Value> {
    const node = new Node(value);
    this.#link(node);
    return node;
  }

  /** Takes a node out that is in this list. */
  remove(node: Node<Value>): void {
    if (node.previous === null) this.#first = node.next;
    else node.previous.next = node.next;
    if (node.next === null) this.#last = node.previous;
    else node.next.previous = node.previous;
    node.previous = node.next = null;
    this.#size -= 1;
  }

  /** Makes a node the last one of this list, in which it is. */
  moveToEnd(node: Node<Value>): void {
    if (node.next === null) return;
    this.remove(node);
    this.#link(node);
  }

  *[Symbol.iterator](): Iterator<Value> {
    for (let node = this.#first; node !== null; node = node.next) yield node.value;
  }

  #link(node: Node<Value>): void {
    node.previous = this.#last;
    if (this.#last === null) this.#first = node;
    else this.#last.next = node;
    this.#last = node;
    this.#size += 1;
  }
}
