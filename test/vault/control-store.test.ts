import { createHmac } from 'node:crypto';
import { Pool } from 'pg';
import t from 'tap';
import { postgresControlStore } from '../../vault/control-store.ts';
import { Controls, type Control } from '../../vault/controls.ts';
import { freshDatabase } from '../support/database.ts';

const database = await freshDatabase(t);
const control = { mac: async (message: Uint8Array) => createHmac('sha256', 'a control key').update(message).digest() };
const made = (kind: Control['kind'], subject: string, state: 'on' | 'off'): Control => ({ kind, subject, state, madeBy: 'somebody', madeAt: new Date('2026-11-24T10:00:00.123Z'), data: '' });
const pools: Pool[] = [];
const poolOf = (role: 'tokenize' | 'detokenize' | 'admin'): Pool => {
  const pool = new Pool({ ...database.connect(role), max: 1 });
  pools.push(pool);
  return pool;
};
t.teardown(async () => void (await Promise.all(pools.map((pool) => pool.end()))));

t.test('processes of all roles that add at once add each row once, and read the same chain', async (t) => {
  const all = (['tokenize', 'detokenize', 'admin'] as const).map((role) => new Controls(postgresControlStore(poolOf(role), role === 'admin'), control));
  const added = await Promise.all(all.flatMap((controls, n) => [controls.add(made('suspension', 'shared', 'on')), controls.add(made('suspension', `own-${n}`, 'on'))]));
  t.equal(added.filter(Boolean).length, 4);
  for (const controls of all) {
    await controls.read();
    t.same(controls.suspended.map(({ subject }) => subject).sort(), ['own-0', 'own-1', 'own-2', 'shared']);
    t.equal(controls.head.number, 4);
  }
  t.ok(all.every(({ head }) => head.hash.equals(all[0]!.head.hash)));
});

t.test('serving roles may suspend, and neither lift, nor make decoys, nor change what is there', async (t) => {
  const admin = new Controls(postgresControlStore(poolOf('admin'), true), control);
  for (const role of ['tokenize', 'detokenize'] as const) {
    const pool = poolOf(role);
    const controls = new Controls(postgresControlStore(pool, false), control);
    t.equal(await controls.add(made('suspension', role, 'on')), true);
    await t.rejects(controls.add(made('suspension', role, 'off')), /row-level security/u);
    await t.rejects(controls.add(made('honey_token', 'mark', 'on')), /row-level security/u);
    await t.rejects(pool.query('SELECT data FROM controls'), /permission denied/u);
    await t.rejects(pool.query('DELETE FROM controls'), /permission denied/u);
    await t.rejects(pool.query("UPDATE controls SET state = 'off'"), /permission denied/u);
    t.equal(await admin.add(made('suspension', role, 'off')), true, 'the admin role lifts');
  }
  await t.rejects(poolOf('admin').query('DELETE FROM controls'), /permission denied/u, 'and forgets as little');
});
