/** The fuzzer's own parts: a counter for each branch and nothing else changed; changes that differ and stay short. */
import { readFileSync, readdirSync } from 'node:fs';
import { stripTypeScriptTypes } from 'node:module';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parse } from 'acorn';
import t from 'tap';
import { seeded } from '../support/made-cards.ts';
import { counters, withCounters } from './instrument.ts';
import { mutated } from './mutate.ts';

const sample = `
  export function classify(x, y = x ?? 5) {
    if (x === 1) return 'one'; else if (x === 2) return 'two'; else { }
    for (const k of [1, 2]) if (k > x) break;
    do y++; while (y < 3);
    switch (x) { case 3: return 'three'; case 4: { return 'four'; } case 5: default: }
    const pick = (z) => z > 6 ? { big: z } : null;
    return x === 6 || (x === 7 && y > 0) ? 'some' : pick(x)?.big ?? 'none';
  }`;

t.test('an instrumented module does what it did, and each way through it leaves its own counts', async (t) => {
  const folder = t.testdir({ 'plain.mjs': sample, 'counted.mjs': withCounters(sample) });
  (globalThis as unknown as { __counters: Uint8Array }).__counters = counters;
  const load = async (name: string): Promise<(x: number) => unknown> => ((await import(pathToFileURL(join(folder, name)).href)) as { classify: (x: number) => unknown }).classify;
  const [plain, counted] = [await load('plain.mjs'), await load('counted.mjs')];
  const ways = new Set<string>();
  for (const x of [1, 2, 3, 4, 5, 6, 7, 8]) {
    counters.fill(0);
    t.equal(counted(x), plain(x));
    ways.add(counters.toString());
  }
  t.equal(ways.size, 8);
});

t.test('every module of the vault can be instrumented', (t) => {
  const folder = resolve(import.meta.dirname, '../../vault');
  for (const name of readdirSync(folder).filter((name) => name.endsWith('.ts'))) {
    const source = withCounters(stripTypeScriptTypes(readFileSync(join(folder, name), 'utf8')));
    t.doesNotThrow(() => parse(source, { ecmaVersion: 'latest', sourceType: 'module' }), name);
  }
  t.end();
});

t.test('changed inputs differ, keep to the longest length, come again with the same seed, and leave their parents alone', (t) => {
  const parent = Buffer.from('{"pan":"4111111111111111"}');
  const other = Buffer.from('other');
  const series = (): string[] => {
    const dice = seeded(7);
    return Array.from({ length: 2000 }, () => mutated(parent, other, [Buffer.from('word')], 40, dice).toString('latin1'));
  };
  const first = series();
  t.ok(new Set(first).size > 1800);
  t.ok(first.every((text) => text.length <= 40));
  t.ok(first.some((text) => text.includes('word')));
  t.same(series(), first);
  t.equal(parent.toString(), '{"pan":"4111111111111111"}');
  t.end();
});
