import { Client } from 'pg';
import t, { type Test } from 'tap';
import { referenceRules, spendReferences, sweepReferences, type ReferenceUse } from '../../vault/references.ts';
import { freshDatabase, type FreshDatabase } from '../support/database.ts';

const now = new Date('2026-11-24T12:34:56.789Z');

async function connection(t: Test, database: FreshDatabase): Promise<Client> {
  const client = new Client(database.connect('detokenize'));
  await client.connect();
  t.teardown(() => client.end());
  return client;
}

const use = (token: string, reference = 'order-1', more: Partial<ReferenceUse> = {}): ReferenceUse => ({ tenantId: 1, purpose: 'refund', token, reference, ...more });

t.test('a reference serves once for a tenant, a purpose and a token', async (t) => {
  const client = await connection(t, await freshDatabase(t));
  t.same(await spendReferences(client, [use('a'), use('b'), use('a'), use('a', 'order-2'), use('a', 'order-1', { purpose: 'chargeback' }), use('a', 'order-1', { tenantId: 2 })], now), [true, true, false, true, true, true]);
  t.same(await spendReferences(client, [use('a'), use('c')], now), [false, true]);
  await sweepReferences(client, now);
  t.same(await spendReferences(client, [use('a')], now), [false], 'it is remembered for its time');
  await sweepReferences(client, new Date(now.getTime() + 1));
  t.same(await spendReferences(client, [use('a')], now), [true]);
});

t.test('of two transactions with one reference the second waits for the first, and is granted only where that is undone', async (t) => {
  const database = await freshDatabase(t);
  const [first, second] = [await connection(t, database), await connection(t, database)];
  for (const [end, answer] of [['COMMIT', false], ['ROLLBACK', true]] as const) {
    await first.query('BEGIN');
    t.same(await spendReferences(first, [use(end)], now), [true]);
    const waiting = spendReferences(second, [use(end)], now);
    t.equal(await Promise.race([waiting, new Promise((resolve) => setTimeout(resolve, 200, 'waits'))]), 'waits');
    await first.query(end);
    t.same(await waiting, [answer]);
  }
});

t.test('transactions that spend the same references in opposite orders do not wait for each other in a circle', async (t) => {
  const database = await freshDatabase(t);
  const clients = [await connection(t, database), await connection(t, database)];
  let granted = 0;
  for (let round = 0; round < 40; round += 1) {
    const uses = Array.from({ length: 20 }, (_, n) => use(`${round} ${n}`));
    const answers = await Promise.all(
      clients.map(async (client, lane) => {
        await client.query('BEGIN');
        const spent = await spendReferences(client, lane === 0 ? uses : uses.toReversed(), now);
        await client.query('COMMIT');
        return spent;
      }),
    );
    granted += answers.flat().filter(Boolean).length;
  }
  t.equal(granted, 40 * 20);
});

t.test('a tenant\'s own demand goes before that of all', (t) => {
  const rule = referenceRules([{ purpose: 'refund', rule: 'required' }, { tenant: 'acme', purpose: 'refund', rule: 'single_use' }, { tenant: 'globex', purpose: 'capture', rule: 'required' }]);
  t.same([rule('acme', 'refund'), rule('globex', 'refund'), rule('globex', 'capture'), rule('acme', 'capture')], ['single_use', 'required', 'required', null]);
  t.end();
});
