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
  const results = await Promise.allSettled([lane.run(work('a')), lane.run(work('b', true)), lane.run(work('c'))]);
  t.same(results.map((result) => (result.status === 'fulfilled' ? result.value : (result.reason as Error).message)), ['a', 'b', 'c']);
  t.same(results.map(({ status }) => status), ['fulfilled', 'rejected', 'fulfilled']);
  t.same(seen, ['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends']);
});

t.test('one more than may wait is refused, and there is room again once one has ended', async (t) => {
  const lane = new Lane(2);
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const first = lane.run(() => promise);
  const second = lane.run(async () => 2);
  await t.rejects(lane.run(async () => 3), { code: 'overloaded' });
  resolve(undefined);
  await Promise.all([first, second]);
  t.equal(await lane.run(async () => 4), 4);
});
