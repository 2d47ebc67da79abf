/** What the approximate counts get wrong, and how often: with fixed seeds, so that a figure is the same in every run. */
import { spawnSync } from 'node:child_process';
import t from 'tap';
import { filterBits, GuessSketch, type GroupFilter, type SketchOptions } from '../../vault/guess-sketch.ts';
import { sipHash, sipKey } from '../../vault/siphash.ts';
import { seeded } from '../support/made-cards.ts';

const key = sipKey(Buffer.from('000102030405060708090a0b0c0d0e0f', 'hex'));
const sizes = { cells: 2 ** 23, slotBytes: 2 ** 24 };
const fingerprint = new Uint8Array(24);
const words = new Uint32Array(fingerprint.buffer);
const group = { low: 0, high: 0 };

/** The finalizer of MurmurHash3: every bit of the result depends on every bit of the number. */
function mixed(number: number): number {
  let x = Math.imul(number ^ (number >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Brings the n-th card of a series into a group. An HMAC would take the most of the test's time. */
function add(sketch: GuessSketch, name: number, card: number, series: number, refuses = true): string {
  let state = mixed(card ^ Math.imul(series, 0x9e3779b9));
  for (let word = 0; word < words.length; word += 1) {
    state = (state + 0x9e3779b9) | 0;
    words[word] = mixed(state ^ Math.imul(card, 0x27d4eb2f + 2 * word));
  }
  sipHash(key, name, series, group);
  return sketch.add(group, 1, fingerprint, refuses);
}

/** How many of `candidates` are granted to each of `guessers`, sorted. */
function guess(sketch: GuessSketch, guessers: number, candidates: number, series: number): number[] {
  const granted = Array.from({ length: guessers }, (_, guesser) => {
    let count = 0;
    for (let card = 0; card < candidates; card += 1) if (add(sketch, guesser, guesser * candidates + card, series) !== 'beyond') count += 1;
    return count;
  });
  return granted.sort((a, b) => a - b);
}

const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
const sketchOf = (limit: number, options: Partial<SketchOptions> = {}): GuessSketch => new GuessSketch({ limit, ...sizes, ...options });

t.test('of all 100,000 candidates a guesser is granted the limit and 2.5 percent, and never a sixth more', async (t) => {
  const granted = guess(sketchOf(200), 200, 100_000, 1);
  t.ok(mean(granted) > 203 && mean(granted) < 206, `${mean(granted)} on average`);
  t.ok(granted[0]! >= 190 && granted.at(-1)! <= 232, `${granted[0]} to ${granted.at(-1)}`);
});

t.test('10 million distinct cards of a day over 2,000 bins refuse nobody, and hide no guesser among them', async (t) => {
  const random = seeded(20_261_124);
  // Zipf's law: the largest bin has an eighth of all cards, 122 for each last four digits.
  const bins = 2000;
  const shares = new Float64Array(bins);
  let total = 0;
  for (let bin = 0; bin < bins; bin += 1) shares[bin] = total += 1 / (bin + 1);
  const pick = (): number => {
    const at = (random(2 ** 30) / 2 ** 30) * total;
    let low = 0;
    let high = bins - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (shares[middle]! < at) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const sketch = sketchOf(200);
  const truth = new Uint16Array(bins * 10_000);
  const slow = [0, 0, 0, 0, 0];
  let refused = 0;
  for (let card = 0; card < 10_000_000; card += 1) {
    const name = pick() * 10_000 + random(10_000);
    truth[name]! += 1;
    if (add(sketch, name, card, 2) === 'beyond') refused += 1;
    // Beside them, five that guess 2,000 times each over the whole day.
    if (card % 5000 === 0) for (const guesser of slow.keys()) if (add(sketch, guesser, card + guesser, 3) !== 'beyond') slow[guesser]! += 1;
  }
  let largest = 0;
  let crowded = 0;
  for (const count of truth) {
    if (count > largest) largest = count;
    if (count >= 9) crowded += 1;
  }
  t.equal(refused, 0);
  t.ok(largest > 150 && largest < 190, `the largest group had ${largest} cards`);
  t.ok(crowded > 2 * 32_768, `${crowded} groups were crowded, more than there are places`);
  t.ok(Math.max(...slow) <= 232 && Math.min(...slow) >= 180, `the slow ones were granted ${slow.join(', ')}`);
  const after = guess(sketch, 50, 100_000, 4);
  t.ok(mean(after) > 198 && mean(after) < 207 && after.at(-1)! <= 232, `at the end of such a day a guesser is granted ${after[0]} to ${after.at(-1)}`);
});

t.test('a group is not refused before nine tenths of the limit, whatever others do', async (t) => {
  const sketch = sketchOf(200, { cells: 2 ** 16 });
  // Every cell is crowded by others: each group gets its place with its first card.
  for (let card = 0; card < 2 ** 20; card += 1) add(sketch, card, card, 5);
  let refused = 0;
  for (let name = 0; name < 1000; name += 1) for (let card = 0; card < 180; card += 1) if (add(sketch, name, name * 180 + card, 6) === 'beyond') refused += 1;
  t.equal(refused, 0);
});

t.test('other limits are kept as well, to ten exactly', async (t) => {
  for (const [limit, least, most] of [[1, 1, 1], [5, 5, 5], [10, 10, 10], [49, 46, 51], [50, 44, 61], [500, 475, 525], [2000, 1960, 2040]] as const) {
    const granted = guess(sketchOf(limit), 100, 3 * limit, 100 + limit);
    t.ok(granted[0]! >= least && granted.at(-1)! <= most, `${limit}: ${granted[0]} to ${granted.at(-1)}`);
  }
});

t.test('a card that was there before is free, at the limit too, and a refused one leaves no trace', async (t) => {
  const sketch = sketchOf(10);
  for (let round = 0; round < 3; round += 1) for (let card = 0; card < 10; card += 1) t.equal(add(sketch, 1, card, 7), round === 0 ? 'within' : 'known');
  for (let round = 0; round < 3; round += 1) t.equal(add(sketch, 1, 10, 7), 'beyond');
  t.equal(add(sketch, 1, 0, 7), 'known');
  t.equal(add(sketch, 2, 10, 7), 'within', 'another group has its own count');
  t.equal(add(sketch, 1, 10, 7, false), 'beyond', 'without a refusal it is beyond once');
  t.equal(add(sketch, 1, 10, 7, false), 'known', 'and known then');
});

t.test('the largest group is told to ten times the limit and more', async (t) => {
  const sketch = sketchOf(200);
  t.equal(sketch.most, 0);
  for (const cards of [100, 200, 1000, 2000]) {
    for (let card = 0; card < cards; card += 1) add(sketch, 1, card, 8, false);
    t.ok(Math.abs(sketch.most - cards) < cards / 10, `${cards} are told as ${sketch.most}`);
  }
});

t.test('memory is what it was from the start, whatever came', async (t) => {
  const sketch = sketchOf(200);
  t.ok(sketch.bytes < 26e6, `${sketch.bytes} bytes`);
  const before = process.memoryUsage().arrayBuffers;
  for (let card = 0; card < 3_000_000; card += 1) add(sketch, card % 300_000, card, 9);
  t.ok(process.memoryUsage().arrayBuffers - before < 1e6);
});

const absorbAll = (sketch: GuessSketch, filters: readonly GroupFilter[]): void => {
  for (const filter of filters) sketch.absorb(filter);
};

t.test('what is shared and absorbed counts a card once, however often', async (t) => {
  const [a, b] = [sketchOf(10), sketchOf(10)];
  for (let card = 0; card < 6; card += 1) {
    add(a, 1, card, 10);
    add(b, 1, card + 3, 10);
  }
  const shared = a.unshared(100);
  t.equal(shared.length, 1);
  t.same(a.unshared(100), [], 'once only');
  for (let round = 0; round < 3; round += 1) absorbAll(b, shared);
  // b knows of 9 now.
  t.same([9, 10, 11].map((card) => add(b, 1, card, 10)), ['within', 'beyond', 'beyond']);
  t.same([0, 1, 2].map((card) => add(b, 1, card, 10)), ['known', 'known', 'known'], 'what only the other saw is known');
  a.keepUnshared(shared);
  t.same(a.unshared(100), shared, 'what could not be shared is kept');
});

t.test('a group with few cards is not shared, and one that is absorbed takes nobody\'s place who has more', async (t) => {
  const sketch = sketchOf(200, { slotBytes: 8 * 512 });
  for (let card = 0; card < 4; card += 1) add(sketch, 1, card, 11);
  t.same(sketch.unshared(100), []);
  for (let name = 0; name < 8; name += 1) for (let card = 0; card < 100; card += 1) add(sketch, name, card, 11);
  const other = sketchOf(200, { slotBytes: 8 * 512 });
  for (let card = 0; card < 50; card += 1) add(other, 99, card, 11);
  absorbAll(sketch, other.unshared(100));
  const groups = sketch.unshared(100).map(({ group }) => group.toString('hex'));
  t.equal(groups.length, 8);
  t.notOk(groups.includes(other.unshared(100)[0]?.group.toString('hex') ?? ''));
});

t.test('filters of another size, and what is none, are passed over', async (t) => {
  const sketch = sketchOf(20);
  const foreign = sketchOf(2000);
  for (let card = 0; card < 2000; card += 1) add(foreign, 1, card, 12);
  absorbAll(sketch, foreign.unshared(100));
  sketch.absorb({ tenantId: 1, group: Buffer.alloc(3), seen: Buffer.alloc(filterBits(20) / 8, 0xff) });
  for (let card = 0; card < 20; card += 1) t.equal(add(sketch, 1, card, 12), 'within');
});

t.test('what waits to be shared is bounded where nobody takes it', async (t) => {
  const sketch = sketchOf(10, { slotBytes: 64 * 256 });
  for (let card = 0; card < 200_000; card += 1) add(sketch, card >> 2, card, 13);
  t.ok(sketch.unshared(1_000_000).length <= 64);
});

t.test('no more of it is resident than was touched, under the C library\'s settings of the vault too', async (t) => {
  const program = `
    const { GuessSketch } = await import(${JSON.stringify(new URL('../../vault/guess-sketch.ts', import.meta.url).href)});
    const before = process.memoryUsage.rss();
    globalThis.kept = new GuessSketch({ limit: 200, cells: ${sizes.cells}, slotBytes: ${sizes.slotBytes} });
    console.log(process.memoryUsage.rss() - before);`;
  const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { env: { ...process.env, MALLOC_PERTURB_: '90' }, encoding: 'utf8' });
  t.match(stdout, /^[0-9]+\n$/u);
  t.ok(Number(stdout) < 8 * 2 ** 20, `${stdout.trim()} of ${sizes.cells + sizes.slotBytes} bytes`);
});
