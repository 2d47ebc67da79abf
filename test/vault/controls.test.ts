import { createHmac } from 'node:crypto';
import t from 'tap';
import { Controls, ControlsError, honeyMark, noControls, type Control, type ControlRow, type ControlStore } from '../../vault/controls.ts';

const at = new Date('2026-11-24T10:00:00Z');
const control = { mac: async (message: Uint8Array) => createHmac('sha256', 'a control key').update(message).digest() };
const shop = 'spiffe://cofre.dev/tenant/acme/service/shop';
const suspension = (state: 'on' | 'off', subject = shop): Control => ({ kind: 'suspension', subject, state, madeBy: 'abuse.honey_token', madeAt: at, data: '' });

/** Rows in memory; strict about their numbers, as the primary key is. */
class Rows implements ControlStore {
  readonly readsData = true;
  rows: ControlRow[] = [];
  /** What the next insert does beside or instead of inserting. */
  next: 'lost' | 'lost but there' | null = null;

  async from(number: number, most: number): Promise<readonly ControlRow[]> {
    return this.rows.filter((row) => row.number >= number).slice(0, most);
  }

  async insert(row: ControlRow): Promise<boolean> {
    const { next } = this;
    this.next = null;
    if (next === 'lost') throw new Error('the connection was lost');
    if (this.rows.some(({ number }) => number === row.number)) return false;
    this.rows.push(row);
    if (next !== null) throw new Error('the connection was lost');
    return true;
  }
}

t.test('the last row of a caller says whether it is suspended, in every process', async (t) => {
  const rows = new Rows();
  const [one, other] = [new Controls(rows, control), new Controls(rows, control)];
  t.equal(await one.add(suspension('on')), true);
  t.equal(await one.add(suspension('on')), false, 'once is enough');
  t.equal(one.isSuspended(shop), true);
  t.equal(other.isSuspended(shop), false);
  t.equal((await other.read()).length, 1);
  t.equal(other.isSuspended(shop), true);
  t.equal((await other.read()).length, 0);
  t.equal(await other.add(suspension('off')), true);
  await one.read();
  t.equal(one.isSuspended(shop), false);
  t.equal(await one.add(suspension('off')), false);
  t.same(rows.rows.map(({ number, state }) => [number, state]), [[1, 'on'], [2, 'off']]);
});

t.test('many processes at once add one row each and lose none', async (t) => {
  const rows = new Rows();
  const processes = Array.from({ length: 8 }, () => new Controls(rows, control));
  const added = await Promise.all(processes.flatMap((process, n) => [process.add(suspension('on', `${shop}-${n}`)), process.add(suspension('on'))]));
  t.equal(added.filter(Boolean).length, 9, 'the caller whom all suspend is suspended once');
  const fresh = new Controls(rows, control);
  t.equal((await fresh.read()).length, 9);
  t.equal(fresh.suspended.length, 9);
});

t.test('an insert without an answer is not done twice, whether it was done or not', async (t) => {
  for (const next of ['lost', 'lost but there'] as const) {
    const rows = new Rows();
    const controls = new Controls(rows, control);
    rows.next = next;
    await t.rejects(controls.add(suspension('on')));
    t.equal(await controls.add(suspension('on')), next === 'lost', next);
    t.equal(rows.rows.length, 1);
    t.equal(controls.isSuspended(shop), true);
  }
});

t.test('who is held back stays so until its row is there, and by it from then on', async (t) => {
  const rows = new Rows();
  const controls = new Controls(rows, control);
  controls.holdBack(shop);
  t.equal(controls.isSuspended(shop), true);
  t.equal(await controls.add(suspension('on')), true);
  await controls.add(suspension('off'));
  t.equal(controls.isSuspended(shop), false);
});

t.test('honey tokens are kept by their marks, of their tenant', async (t) => {
  const rows = new Rows();
  const controls = new Controls(rows, control);
  t.equal(controls.isHoney(1, 'tok_decoy'), false);
  await controls.add({ kind: 'honey_token', subject: honeyMark(1, 'tok_decoy'), state: 'on', madeBy: shop, madeAt: at, data: '' });
  t.equal(controls.isHoney(1, 'tok_decoy'), true);
  t.equal(controls.isHoney(2, 'tok_decoy'), false);
  t.notMatch(JSON.stringify(rows.rows), /tok_decoy/u);
});

t.test('what somebody changed in the rows is not believed', async (t) => {
  const made = new Rows();
  const writer = new Controls(made, control);
  await writer.add(suspension('on', `${shop}-1`));
  await writer.add(suspension('on'));
  await writer.add(suspension('on', `${shop}-3`));
  const [first, second, third] = made.rows as [ControlRow, ControlRow, ControlRow];
  const forged: ControlRow[] = [];
  const other = new Controls({ readsData: true, from: async (number) => forged.filter((row) => row.number >= number), insert: async (row) => (forged.push(row), true) }, { mac: async (message) => createHmac('sha256', 'another key').update(message).digest() });
  for (const subject of [`${shop}-1`, shop, `${shop}-3`]) await other.add(suspension('on', subject));
  const changes: Readonly<Record<string, readonly ControlRow[]>> = {
    'a row that was lifted': [first, { ...second, state: 'off' }, third],
    'another caller in its place': [first, { ...second, subject: `${shop}-9` }, third],
    'other data': [first, { ...second, data: '{}' }, third],
    'another moment': [first, { ...second, madeAt: new Date(0) }, third],
    'a row taken out of the middle': [first, third],
    'and the rest numbered anew': [first, { ...third, number: 2 }],
    'two rows that changed places': [{ ...second, number: 1 }, { ...first, number: 2 }, third],
    'the first one gone': [second, third],
    'another MAC at the end': [first, second, { ...third, mac: Buffer.alloc(32) }],
    'rows that another key made': forged,
  };
  for (const [what, rows] of Object.entries(changes)) {
    const store = new Rows();
    store.rows = [...rows];
    const controls = new Controls(store, control);
    await t.rejects(controls.read(), ControlsError, what);
    t.equal(controls.head.number, 0, 'and nothing of it is taken');
  }
});

t.test('rows that were put back are refused by whoever has seen more', async (t) => {
  const rows = new Rows();
  const controls = new Controls(rows, control);
  await controls.add(suspension('on', `${shop}-1`));
  await controls.add(suspension('on'));
  const { head } = controls;
  rows.rows = rows.rows.slice(0, 1);
  await t.rejects(controls.read(), ControlsError);
  t.equal(controls.isSuspended(shop), true, 'what was in force stays');
  await t.rejects(controls.add(suspension('off')), ControlsError, 'and nothing is added to it');
  await t.rejects(new Controls(rows, control, head).read(), { message: /ends at row 1, and this vault has seen row 2/u }, 'a later process, by the note of the earlier one');
  rows.rows = [];
  await t.rejects(new Controls(rows, control, head).read(), ControlsError);
  t.same(await new Controls(rows, control, noControls).read(), [], 'who has seen nothing cannot tell');

  // Made again by somebody with the HSM's key, at the same number, in other words.
  const rewritten = new Controls(rows, control);
  await rewritten.add(suspension('on', `${shop}-1`));
  await rewritten.add(suspension('on', `${shop}-2`));
  await t.rejects(new Controls(rows, control, head).read(), { message: /is another than the one that this vault saw, at row 2/u });
  await t.rejects(controls.read(), ControlsError);
});

t.test('more rows than are read at once', async (t) => {
  const rows = new Rows();
  const writer = new Controls(rows, control);
  for (let n = 0; n < 2003; n += 1) await writer.add(suspension('on', `${shop}-${n}`));
  const reader = new Controls(rows, control);
  t.equal((await reader.read()).length, 2003);
  t.equal(reader.suspended.length, 2003);
  await writer.add(suspension('on'));
  t.equal((await reader.read()).length, 1);
});
