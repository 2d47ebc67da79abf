import * as fc from 'fast-check';
import t from 'tap';
import { FairQueue } from '../../vault/fair-queue.ts';

interface Item {
  readonly name: string;
  readonly weight: number;
}
const item = (name: string, weight = 1): Item => ({ name, weight });
const names = (items: readonly Item[]): string => items.map(({ name }) => name).join(' ');

t.test('shares take turns, each in its own order', async (t) => {
  const queue = new FairQueue<Item>();
  for (let n = 0; n < 4; n += 1) queue.push('a', item(`a${n}`));
  queue.push('b', item('b0'));
  queue.push('c', item('c0'));
  queue.push('c', item('c1'));
  t.equal(queue.length, 7);
  t.equal(names(queue.take(4, 100)), 'a0 b0 c0 a1');
  t.equal(names(queue.take(2, 100)), 'c1 a2', 'who had a turn last waits for the others');
  t.equal(names(queue.take(9, 100)), 'a3');
  t.same([queue.length, queue.weight, names(queue.take(9, 100))], [0, 0, '']);
});

t.test('one with a thousand waiting delays another by one at a time', async (t) => {
  const queue = new FairQueue<Item>();
  for (let n = 0; n < 1000; n += 1) queue.push('batches', item('batch', 1000));
  queue.push('single', item('single'));
  t.equal(names(queue.take(512, 2000)), 'batch single');
  t.equal(queue.weight, 999_000);
});

t.test('no more weight than asked for, a heavier one alone, and nobody overtakes in his share', async (t) => {
  const queue = new FairQueue<Item>();
  queue.push('a', item('heavy', 50));
  queue.push('a', item('light'));
  queue.push('b', item('b', 4));
  t.equal(names(queue.take(10, 10)), 'heavy');
  t.equal(names(queue.take(10, 4)), 'b', 'b has its turn before the share that was served');
  queue.push('a', item('more', 10));
  queue.push('a', item('last'));
  t.equal(names(queue.take(10, 5)), 'light', 'last stays behind more');
  t.equal(names(queue.take(10, 11)), 'more last');
});

t.test('heads that meet a condition are taken, up to the first that does not', async (t) => {
  const queue = new FairQueue<Item>();
  for (const weight of [1, 2, 9, 1]) queue.push('a', item(`a${weight}`, weight));
  for (const weight of [9, 1]) queue.push('b', item(`b${weight}`, weight));
  t.equal(names(queue.takeHeads(({ weight }) => weight < 5)), 'a1 a2');
  t.same([queue.length, queue.weight], [4, 20]);
  t.equal(names(queue.takeAll()), 'a9 a1 b9 b1');
  t.same([queue.length, queue.weight], [0, 0]);
});

t.test('room is made by what came last of the share that weighs most, as long as that is another', async (t) => {
  const queue = new FairQueue<Item>();
  for (let n = 0; n < 3; n += 1) queue.push('a', item(`a${n}`, 10));
  for (let n = 0; n < 9; n += 1) queue.push('b', item(`b${n}`));
  t.equal(queue.makeRoom('a', 1), null, 'nobody has more');
  t.equal(queue.makeRoom('c', 30), null, 'as much is not more');
  t.equal(queue.makeRoom('c', 29)?.name, 'a2');
  t.equal(queue.makeRoom('b', 2)?.name, 'a1');
  t.equal(queue.makeRoom('b', 1), null);
  t.same([queue.length, queue.weight], [10, 19]);
  t.equal(queue.makeRoom('c', 1)?.name, 'a0');
  t.equal(queue.makeRoom('c', 1)?.name, 'b8', 'the heaviest that is left');
  t.equal(names(queue.takeAll()), 'b0 b1 b2 b3 b4 b5 b6 b7');
});

t.test('whatever is pushed comes out once, in the order of its share, within the bounds', async (t) => {
  const step = fc.oneof(fc.record({ share: fc.constantFrom('a', 'b', 'c'), weight: fc.integer({ min: 1, max: 20 }) }), fc.record({ count: fc.integer({ min: 1, max: 5 }), weight: fc.integer({ min: 1, max: 30 }) }));
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const queue = new FairQueue<{ share: string; place: number; weight: number }>();
      const pushed: Record<string, number> = { a: 0, b: 0, c: 0 };
      const taken: Record<string, number> = { a: 0, b: 0, c: 0 };
      const see = (items: readonly { share: string; place: number }[]): void => {
        for (const { share, place } of items) if (place !== taken[share]!++) throw new Error('out of order');
      };
      for (const one of steps) {
        if ('share' in one) {
          queue.push(one.share, { share: one.share, place: pushed[one.share]!++, weight: one.weight });
          continue;
        }
        const waiting = queue.length;
        const items = queue.take(one.count, one.weight);
        const weight = items.reduce((sum, { weight }) => sum + weight, 0);
        if (items.length > one.count || (items.length > 1 && weight > one.weight) || (waiting > 0 && items.length === 0)) throw new Error('out of bounds');
        see(items);
      }
      see(queue.takeAll());
      return JSON.stringify(pushed) === JSON.stringify(taken) && queue.length === 0 && queue.weight === 0;
    }),
  );
  t.pass('100 runs');
});
