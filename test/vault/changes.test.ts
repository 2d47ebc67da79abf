import t from 'tap';
import { Changes, type ChangeKind } from '../../vault/changes.ts';
import { Controls, type ControlRow } from '../../vault/controls.ts';
import { VaultError } from '../../vault/errors.ts';

const day = 86_400_000;

function vault(): { changes: Changes; clock: { time: number }; active: Set<string>; runs: string[]; fails: { next: boolean } } {
  const rows: ControlRow[] = [];
  const controls = new Controls({ readsData: true, from: async (number) => rows.filter((row) => row.number >= number), insert: async (row) => (rows.some(({ number }) => number === row.number) ? false : (rows.push(row), true)) }, { mac: async () => Buffer.alloc(32, 1) });
  const clock = { time: Date.parse('2026-11-24T10:00:00Z') };
  const active = new Set(['ana', 'rui', 'eva']);
  const runs: string[] = [];
  const fails = { next: false };
  const kind: ChangeKind = {
    kind: 'test.do',
    title: 'Do it',
    parse: (params) => params,
    async run(params, { decidedBy }) {
      runs.push(`${JSON.stringify(params)} ${decidedBy ?? ''}`);
      if (fails.next) throw new VaultError('hsm_unavailable');
      return { result: { did: 'it' } };
    },
  };
  return { changes: new Changes({ controls, kinds: [kind], isActive: (person) => active.has(person), now: () => new Date(clock.time) }), clock, active, runs, fails };
}

const code = (work: Promise<unknown>): Promise<string> => work.then(() => 'done', (error: VaultError) => error.code);

t.test('approved by another person, it runs once', async (t) => {
  const { changes, runs } = vault();
  const { id, digest } = await changes.request('test.do', { n: 1 }, 'because', 'ana');
  t.equal(await code(changes.run(id, 'rui')), 'change_decided');
  t.equal(await code(changes.approve(id, digest, 'ana')), 'not_authorized');
  await changes.approve(id, digest, 'rui');
  t.equal(await code(changes.run(id, 'eva')), 'not_authorized', 'neither of both');
  t.match((await changes.run(id, 'rui')).change, { state: 'done', result: { did: 'it' } });
  t.equal(await code(changes.run(id, 'ana')), 'change_decided');
  t.same(runs, ['{"n":1} rui']);
});

t.test('one that failed is run again by either, and not long afterwards', async (t) => {
  const { changes, clock, runs, fails } = vault();
  const { id, digest } = await changes.request('test.do', {}, 'because', 'ana');
  await changes.approve(id, digest, 'rui');
  fails.next = true;
  t.equal(await code(changes.run(id, 'rui')), 'hsm_unavailable');
  t.equal((await changes.get(id)).state, 'failed');
  clock.time += 2 * day + 1;
  t.equal(await code(changes.run(id, 'rui')), 'change_decided', 'too old');
  clock.time -= 2;
  fails.next = false;
  t.equal(await code(changes.run(id, 'ana')), 'done');
  t.equal(runs.length, 2);
});

t.test('on the word of somebody who is no operator any more nothing is approved or done', async (t) => {
  const { changes, active, runs } = vault();
  const first = await changes.request('test.do', {}, 'because', 'ana');
  const second = await changes.request('test.do', {}, 'because', 'ana');
  await changes.approve(first.id, first.digest, 'rui');
  active.delete('rui');
  t.equal(await code(changes.run(first.id, 'ana')), 'not_authorized');
  active.add('rui');
  active.delete('ana');
  t.equal(await code(changes.run(first.id, 'rui')), 'not_authorized');
  t.equal(await code(changes.approve(second.id, second.digest, 'rui')), 'not_authorized');
  t.same(runs, []);
});

t.test('a change waits a day, and of one person no more than twenty', async (t) => {
  const { changes, clock } = vault();
  const { id, digest } = await changes.request('test.do', {}, 'because', 'ana');
  for (let n = 1; n < 20; n += 1) await changes.request('test.do', {}, 'because', 'ana');
  t.equal(await code(changes.request('test.do', {}, 'because', 'ana')), 'overloaded');
  t.equal(await code(changes.request('test.do', {}, 'because', 'rui')), 'done');
  clock.time += day;
  t.equal((await changes.get(id)).state, 'expired');
  t.equal(await code(changes.approve(id, digest, 'rui')), 'change_decided');
  t.equal(await code(changes.request('test.do', {}, 'because', 'ana')), 'done');
});
