import t from 'tap';
import { NumericSpace } from '../../vault/numeric-space.ts';

/** Draws `count` tokens, of which one in `oneIn` is taken. */
function draw(space: NumericSpace, count: number, oneIn: number): void {
  for (let n = 1; n <= count; n += 1) {
    space.drawn();
    if (n % oneIn === 0) space.taken();
  }
}

t.test('an alarm is raised once a minute while a hundredth or more of the space is in use', async (t) => {
  let time = Date.parse('2026-11-24T12:00:00Z');
  const alarms: number[] = [];
  const space = new NumericSpace({ now: () => new Date(time), alarm: (percent) => void alarms.push(percent) });
  draw(space, 100_000, 200);
  t.same(alarms, [], 'a two-hundredth');
  draw(space, 100_000, 20);
  t.same(alarms, [1], 'a hundredth of those of late, told once');
  time += 60_000;
  draw(space, 1000, 20);
  time -= 3_600_000;
  draw(space, 1000, 20);
  t.same(alarms.slice(1), [5, 5], 'also where the clock was set back');
});

t.test('a few that are taken say nothing', async (t) => {
  const space = new NumericSpace({ now: () => new Date(), alarm: () => void t.fail('an alarm') });
  draw(space, 9, 1);
  t.pass('nine of nine');
});
