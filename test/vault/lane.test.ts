import { setImmediate as nextTurn } from 'node:timers/promises';
import t from 'tap';
import { Lane } from '../../vault/lane.ts';

t.test('work runs one by one in the order of arrival, whatever becomes of it', async (t) => {
  const lane = new Lane(10);
  const seen: string[] = [];
  const work = (name: string, fails = false) => async (): Promise<string> => {
    seen.push(`${name} begins`);
    await nextTurn();
    seen.push(`${name} ends`);
    if (fails) throw new TypeError(name);
    return name;
  };
  const results = await Promise.allSettled([lane.run('x', work('a')), lane.run('x', work('b', true)), lane.run('x', work('c'))]);
  t.same(results.map((result) => (result.status === 'fulfilled' ? result.value : (result.reason as Error).message)), ['a', 'b', 'c']);
  t.same(results.map(({ status }) => status), ['fulfilled', 'rejected', 'fulfilled']);
  t.same(seen, ['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends']);
});

t.test('one more than may wait is refused, and there is room again once one has ended', async (t) => {
  const lane = new Lane(2);
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const first = lane.run('x', () => promise);
  const second = lane.run('x', async () => 2);
  await t.rejects(lane.run('x', async () => 3), { code: 'overloaded' });
  resolve(undefined);
  await Promise.all([first, second]);
  t.equal(await lane.run('x', async () => 4), 4);
});

t.test('shares take turns, and one that has most of the places gives way to one that has few', async (t) => {
  const lane = new Lane(4);
  const seen: string[] = [];
  const first = Promise.withResolvers<undefined>();
  const runs = [lane.run('a', () => first.promise)];
  const add = (share: string, name: string): Promise<undefined> => {
    const run = lane.run(share, async () => void seen.push(name));
    runs.push(run);
    return run;
  };
  void add('a', 'a1');
  void add('a', 'a2');
  const last = add('a', 'a3');
  await t.rejects(add('a', 'a4'), { code: 'overloaded' }, 'its own share is full');
  void add('b', 'b1');
  await t.rejects(last, { code: 'overloaded' }, 'what came last of the other share');
  await t.rejects(add('b', 'b2'), { code: 'overloaded' }, 'no share has more than it would have now');
  first.resolve(undefined);
  await Promise.allSettled(runs);
  t.same(seen, ['a1', 'b1', 'a2']);
  t.equal(await lane.run('a', async () => 7), 7);
});

t.test('nobody goes first who comes while a turn is handed on', async (t) => {
  const lane = new Lane(10);
  const seen: string[] = [];
  let running = 0;
  const work = (name: string) => async (): Promise<void> => {
    t.equal(++running, 1, 'one at a time');
    seen.push(name);
    await nextTurn();
    running -= 1;
  };
  const first = lane.run('a', work('first'));
  const second = lane.run('a', work('second'));
  const third = first.then(() => lane.run('b', work('third')));
  await Promise.all([first, second, third]);
  t.same(seen, ['first', 'second', 'third']);
});
