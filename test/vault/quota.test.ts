import { Client } from 'pg';
import * as fc from 'fast-check';
import t, { type Test } from 'tap';
import { debitQuotas, secondsToNextMinute, sweepQuotas, type QuotaDebit } from '../../vault/quota.ts';
import { freshDatabase, type FreshDatabase } from '../support/database.ts';

const now = new Date('2026-11-24T12:34:56.789Z');

async function connections(t: Test, database: FreshDatabase, count: number): Promise<Client[]> {
  return await Promise.all(
    Array.from({ length: count }, async () => {
      const client = new Client(database.connect('detokenize'));
      await client.connect();
      t.teardown(() => client.end());
      return client;
    }),
  );
}

/** Debits in a transaction, as a writer does. */
async function debit(client: Client, debits: readonly QuotaDebit[], at = now, end: 'COMMIT' | 'ROLLBACK' = 'COMMIT'): Promise<boolean[]> {
  await client.query('BEGIN');
  const granted = await debitQuotas(client, debits, at);
  await client.query(end);
  return granted;
}

const of = (subject: string, limit: number, amount = 1): QuotaDebit => ({ tenantId: 1, subject, amount, limit });

t.test('the first calls up to the limit are granted, in their order, and no further one', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  t.same(await debit(client!, Array.from({ length: 5 }, () => of('a', 3))), [true, true, true, false, false]);
  t.same(await debit(client!, [of('a', 3)]), [false], 'in the next transaction too');
  t.same(await debit(client!, [of('b', 1), of('a', 3), of('b', 1)]), [true, false, false], 'each subject has its own');
  t.same(await debit(client!, [{ ...of('a', 3), tenantId: 2 }]), [true], 'and each tenant');
  t.same(await debit(client!, [of('c', 0)]), [false], 'a limit of nothing grants nothing');
  t.same(await debit(client!, []), []);
});

t.test('a call that asks for more than is left is refused, and a smaller one behind it in the same transaction is not', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  t.same(await debit(client!, [of('a', 10, 6), of('a', 10, 6), of('a', 10, 4)]), [true, false, true]);
});

t.test('from several connections at once exactly the limit is granted', async (t) => {
  const database = await freshDatabase(t);
  const clients = await connections(t, database, 4);
  const results = await Promise.all(
    clients.map(async (client, index) => {
      let granted = { a: 0, b: 0 };
      for (let round = 0; round < 25; round += 1) {
        // In opposite orders, which would lock in a circle if the statement did not sort.
        const debits = [...Array.from({ length: 3 }, () => of('a', 100)), ...Array.from({ length: 2 }, () => of('b', 70))];
        if (index % 2 === 1) debits.reverse();
        const answers = await debit(client, debits, now, round % 5 === 4 ? 'ROLLBACK' : 'COMMIT');
        if (round % 5 === 4) continue;
        for (const [at, { subject }] of debits.entries()) if (answers[at] === true) granted = { ...granted, [subject]: granted[subject as 'a'] + 1 };
      }
      return granted;
    }),
  );
  t.equal(results.reduce((sum, granted) => sum + granted.a, 0), 100);
  t.equal(results.reduce((sum, granted) => sum + granted.b, 0), 70);
});

t.test('a rolled-back transaction has taken nothing', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  for (let round = 0; round < 5; round += 1) t.same(await debit(client!, [of('a', 2, 2)], now, 'ROLLBACK'), [true]);
  t.same(await debit(client!, [of('a', 2, 2)]), [true]);
});

t.test('a new minute has a new quota, by the clock that is given', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  const at = (text: string): Date => new Date(`2026-11-24T12:${text}Z`);
  t.same(await debit(client!, [of('a', 1)], at('34:00.000')), [true]);
  t.same(await debit(client!, [of('a', 1)], at('34:59.999')), [false]);
  t.same(await debit(client!, [of('a', 1)], at('35:00.000')), [true]);
  t.same([at('34:00.000'), at('34:59.999'), at('34:30.001')].map(secondsToNextMinute), [60, 1, 30]);
  await sweepQuotas(client!, at('35:00.000'));
  const { rows } = await client!.query<{ n: number }>('SELECT count(*)::int AS n FROM quota_usage');
  t.equal(rows[0]!.n, 1, 'old minutes are swept');
});

t.test('a flood does not overflow the counter, and grants nothing', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  const huge = of('a', 1_000_000_000, 100_000_000);
  for (let round = 0; round < 10; round += 1) t.same(await debit(client!, [huge]), [true]);
  for (let round = 0; round < 30; round += 1) if ((await debit(client!, [huge]))[0] !== false) t.fail('granted beyond the limit');
  t.same(await debit(client!, [of('a', 1_000_000_000)]), [false]);
});

t.test('whatever is asked in whatever transactions, what is granted never exceeds the limit and never starves what fits', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  let run = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 5 }), fc.integer({ min: 0, max: 30 }), async (transactions, limit) => {
      const subject = `run ${run++}`;
      let asked = 0;
      let granted = 0;
      for (const amounts of transactions) {
        const answers = await debit(client!, amounts.map((amount) => of(subject, limit, amount)));
        // What was asked for before this transaction counts, granted or not; within it only what is granted does.
        let left = limit - asked;
        for (const [at, amount] of amounts.entries()) {
          const fits = amount <= left;
          if (answers[at] !== fits) return false;
          if (fits) {
            left -= amount;
            granted += amount;
          }
        }
        asked += amounts.reduce((sum, amount) => sum + amount, 0);
      }
      return granted <= limit;
    }),
    { numRuns: 60 },
  );
  t.pass('60 histories');
});
