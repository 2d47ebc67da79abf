import { Client } from 'pg';
import * as fc from 'fast-check';
import t, { type Test } from 'tap';
import { debitQuotas, quotaRules, sweepQuotas, type QuotaDebit, type QuotaLimit } from '../../vault/quota.ts';
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

/** Debits in a transaction, as a writer does: seconds to wait of each that was refused, null for the others. */
async function waits(client: Client, debits: readonly QuotaDebit[], at = now, end: 'COMMIT' | 'ROLLBACK' = 'COMMIT'): Promise<readonly (number | null)[]> {
  await client.query('BEGIN');
  const { refusals, settle } = await debitQuotas(client, debits, at);
  await settle();
  await client.query(end);
  return refusals;
}

const debit = async (client: Client, debits: readonly QuotaDebit[], at = now, end: 'COMMIT' | 'ROLLBACK' = 'COMMIT'): Promise<boolean[]> => (await waits(client, debits, at, end)).map((seconds) => seconds === null);

const minuteOf = (subject: string, most: number): QuotaLimit => ({ subject, counts: 'tokens', windowSeconds: 60, most });
const dayOf = (subject: string, most: number): QuotaLimit => ({ subject, counts: 'tokens', windowSeconds: 86_400, most });
const distinctOf = (subject: string, most: number): QuotaLimit => ({ subject: `distinct ${subject}`, counts: 'distinct_tokens', windowSeconds: 86_400, most });
const tokens = (count: number): string[] => Array.from({ length: count }, (_, n) => `tok_${n}`);
const of = (subject: string, most: number, amount = 1): QuotaDebit => ({ tenantId: 1, limits: [minuteOf(subject, most)], tokens: tokens(amount) });

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
        for (const [at, { limits }] of debits.entries()) if (answers[at] === true) granted = { ...granted, [limits[0]!.subject]: granted[limits[0]!.subject as 'a'] + 1 };
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
  t.same(await waits(client!, [of('a', 1), of('b', 0), { tenantId: 1, limits: [minuteOf('b', 0), dayOf('b', 0)], tokens: ['t'] }], at('35:29.001')), [31, 31, 41_071], 'who is refused is told when the window ends; of several, the last one');
  await sweepQuotas(client!, new Date('2026-11-24T13:35:59Z'));
  const left = async (): Promise<string[]> => (await client!.query<{ name: string }>("SELECT subject || ' ' || window_seconds || ' ' || to_char(begins_at AT TIME ZONE 'UTC', 'HH24:MI') AS name FROM quota_counts ORDER BY 1")).rows.map(({ name }) => name);
  t.same(await left(), ['a 60 12:35', 'b 60 12:35', 'b 86400 00:00'], 'old minutes are swept');
  await sweepQuotas(client!, new Date('2026-11-25T01:00:01Z'));
  t.same(await left(), []);
});

t.test('a call is granted where every limit has room for all of it, and what is refused is counted by none', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  const both = (amount: number): QuotaDebit => ({ tenantId: 1, limits: [minuteOf('m', 5), dayOf('d', 8)], tokens: tokens(amount) });
  t.same(await debit(client!, [both(4), both(4), both(1)]), [true, false, true]);
  for (let round = 0; round < 5; round += 1) t.same(await debit(client!, [both(3)]), [false]);
  const next = new Date(now.getTime() + 60_000);
  t.same(await debit(client!, [both(4), both(3), both(1)], next), [false, true, false], 'the refused ones took nothing of the day');
});

t.test('distinct tokens are counted once a day, however often and by whatever calls they are asked for', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  const distinct = (...asked: string[]): QuotaDebit => ({ tenantId: 1, limits: [distinctOf('a', 3)], tokens: asked });
  t.same(await debit(client!, [distinct('1', '1', '2'), distinct('1'), distinct('2', '1')]), [true, true, true]);
  t.same(await debit(client!, [distinct('3', '4'), distinct('3'), distinct('3'), distinct('4')]), [false, true, true, false], 'what is refused leaves no mark');
  t.same(await debit(client!, [distinct('1', '2', '3')]), [true]);
  t.same(await debit(client!, [{ ...distinct('4'), tenantId: 2 }, { ...distinct('4'), limits: [distinctOf('b', 1)] }]), [true, true], 'another tenant and another caller have their own');
  t.same(await debit(client!, [distinct('4')], new Date(now.getTime() + 86_400_000)), [true], 'the next day begins anew');
  await sweepQuotas(client!, new Date('2026-11-26T01:00:01Z'));
  t.same((await client!.query('SELECT DISTINCT day::text FROM quota_tokens')).rows, [{ day: '2026-11-25' }]);
});

t.test('from several connections at once exactly as many distinct tokens are granted', async (t) => {
  const database = await freshDatabase(t);
  const clients = await connections(t, database, 4);
  const granted = new Set<string>();
  await Promise.all(
    clients.map(async (client, lane) => {
      for (let round = 0; round < 30; round += 1) {
        // Lanes meet over the same tokens.
        const asked = Array.from({ length: 3 }, (_, n) => `tok_${(lane * 7 + round * 3 + n) % 60}`);
        const [answer] = await debit(client, [{ tenantId: 1, limits: [distinctOf('a', 40)], tokens: asked }], now, round % 6 === 5 ? 'ROLLBACK' : 'COMMIT');
        if (answer === true && round % 6 !== 5) for (const token of asked) granted.add(token);
      }
    }),
  );
  const { rows } = await clients[0]!.query<{ used: string; marks: string }>("SELECT (SELECT used FROM quota_counts) AS used, (SELECT count(*) FROM quota_tokens) AS marks");
  t.same(rows, [{ used: String(granted.size), marks: String(granted.size) }]);
  t.ok(granted.size <= 40 && granted.size > 37, `${granted.size}`);
});

t.test('the limits that bind a caller are those of every line that fits', (t) => {
  const caller = 'spiffe://cofre.dev/tenant/acme/service/getnet';
  const limits = quotaRules([
    { caller, purpose: 'refund', per_minute: 1, distinct_tokens_per_day: 2 },
    { caller, per_hour: 3 },
    { tenant: 'acme', purpose: 'refund', per_day: 4 },
    { tenant: 'globex', per_day: 5 },
    { caller: `${caller}-other`, per_day: 6 },
  ]);
  const told = (...of: Parameters<typeof limits>): unknown[] => limits(...of).map(({ counts, windowSeconds, most }) => [counts, windowSeconds, most]);
  t.same(told(caller, 'acme', 'refund'), [['tokens', 60, 1], ['distinct_tokens', 86_400, 2], ['tokens', 3600, 3], ['tokens', 86_400, 4]]);
  t.same(told(caller, 'acme', 'capture'), [['tokens', 3600, 3]]);
  t.same(told('spiffe://cofre.dev/tenant/globex/service/x', 'globex', 'capture'), [['tokens', 86_400, 5]]);
  t.same(told('spiffe://cofre.dev/tenant/third/service/x', 'third', 'capture'), []);
  const subjects = [...limits(caller, 'acme', 'refund'), ...limits(caller, 'acme', 'capture')].map(({ subject, windowSeconds }) => `${subject} ${windowSeconds}`);
  t.equal(new Set(subjects).size, 4, 'a line is one counter, whatever call it binds');
  t.end();
});

t.test('a flood is refused without taking anything', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  const flood = Array.from({ length: 200 }, () => of('a', 10_000, 100));
  for (let round = 0; round < 3; round += 1) await debit(client!, flood);
  t.same((await client!.query('SELECT used FROM quota_counts')).rows, [{ used: '10000' }]);
  t.same(await debit(client!, [of('a', 10_000)]), [false]);
  t.same(await debit(client!, [of('a', 10_001)]), [true]);
});

t.test('whatever is asked in whatever transactions, a call is granted exactly where it fits all of its limits', async (t) => {
  const [client] = await connections(t, await freshDatabase(t), 1);
  const call = fc.record({ minute: fc.boolean(), distinct: fc.boolean(), tokens: fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 1, maxLength: 4 }) });
  let run = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(call, { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 5 }), fc.nat({ max: 20 }), fc.nat({ max: 8 }), async (transactions, most, different) => {
      const subject = `run ${run++}`;
      let used = 0;
      const seen = new Set<number>();
      for (const calls of transactions) {
        const answers = await debit(client!, calls.map((one) => ({ tenantId: 1, limits: [...(one.minute ? [minuteOf(subject, most)] : []), ...(one.distinct ? [distinctOf(subject, different)] : [])], tokens: one.tokens.map(String) })));
        for (const [at, one] of calls.entries()) {
          const added = new Set(one.tokens.filter((token) => !seen.has(token)));
          const fits = (!one.minute || used + one.tokens.length <= most) && (!one.distinct || added.size === 0 || seen.size + added.size <= different);
          if (answers[at] !== fits) return false;
          if (!fits) continue;
          if (one.minute) used += one.tokens.length;
          if (one.distinct) for (const token of added) seen.add(token);
        }
      }
      return true;
    }),
    { numRuns: 80 },
  );
  t.pass('80 histories');
});
