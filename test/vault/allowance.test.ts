import t from 'tap';
import { Allowance } from '../../vault/allowance.ts';

void t.test('as many as it holds at once, then as many as come back', (t) => {
  let now = 1000;
  const allowance = new Allowance(3, 2, () => now);
  const take = (count: number): boolean[] => Array.from({ length: count }, () => allowance.take());
  t.equal(allowance.full, true);
  t.same(take(4), [true, true, true, false]);
  t.equal(allowance.waitMs, 500);
  now += 499;
  t.same(take(1), [false]);
  now += 1;
  t.equal(allowance.waitMs, 0);
  t.same(take(2), [true, false]);
  now += 1_000_000;
  t.equal(allowance.full, true);
  t.same(take(4), [true, true, true, false], 'it holds no more than it did at first');
  t.equal(allowance.full, false);
  t.end();
});

void t.test('what comes back in parts is not lost', (t) => {
  let now = 0;
  const allowance = new Allowance(1, 8, () => now);
  t.ok(allowance.take());
  for (let n = 0; n < 7; n += 1) {
    now += 15.625;
    t.notOk(allowance.take());
  }
  now += 15.625;
  t.ok(allowance.take());
  t.end();
});
