import type { QueryConfig } from 'pg';
import t from 'tap';
import { CallerHistory } from '../../vault/caller-history.ts';
import { freshDatabase, withClient } from '../support/database.ts';

const shop = { spiffeId: 'spiffe://cofre.dev/tenant/acme/service/shop', tenant: 'acme' };
const database = await freshDatabase(t, { migrated: true });
const hour = 3_600_000;
const start = Date.parse('2026-11-24T10:00:00Z');

await withClient({ connectionString: database.adminUrl }, async (client) => {
  const told: number[] = [];
  let time = start;
  const history = (): CallerHistory => new CallerHistory({ limits: { factor: 5, floor: 100, days: 7 }, db: client, now: () => new Date(time), unusual: (_subject, asked) => void told.push(asked) });
  const [one, other] = [history(), history()];
  const asked = async (tokens: number, by = one): Promise<void> => {
    by.add(shop, tokens);
    await by.share();
  };

  await t.test('a caller without a history is not judged', async (t) => {
    await asked(1_000_000);
    t.same(told, []);
    await client.query('DELETE FROM caller_hours');
  });

  await t.test('an hour far above the busiest one is told of, whichever processes it came through', async (t) => {
    for (let days = 8; days > 0; days -= 1) {
      time = start - days * 24 * hour;
      await asked(40 + days);
      await asked(10, other);
    }
    t.equal(Number((await client.query<{ most: string }>('SELECT max(asked) AS most FROM caller_hours')).rows[0]!.most), 58, 'hours add up');
    time = start;
    await asked(200);
    await asked(90, other);
    t.same(told, [], '290 is five times 58');
    await asked(1, other);
    t.same(told, [291]);
  });

  await t.test('below the floor nothing is unusual, and the busiest hour is never the one that runs', async (t) => {
    told.length = 0;
    time = start + hour;
    await client.query('UPDATE caller_hours SET asked = 2');
    await asked(100);
    t.same(told, []);
    await asked(1);
    t.same(told, [101]);
    await asked(1, other);
    t.same(told, [101, 102]);
  });

  await t.test('what is older than four weeks is forgotten, and swept', async (t) => {
    told.length = 0;
    await client.query("UPDATE caller_hours SET asked = 100000 WHERE hour = (SELECT min(hour) FROM caller_hours)");
    time = start + 26 * 24 * hour;
    await asked(600);
    t.equal(told.length, 1, 'the busy hour of a month ago does not excuse it');
    time = start + 40 * 24 * hour;
    await one.sweep();
    t.same((await client.query('SELECT asked FROM caller_hours')).rows, [{ asked: '600' }]);
  });

  await t.test('a database that does not answer loses no other caller\'s count', async (t) => {
    let fails = true;
    const failing = new CallerHistory({
      limits: { factor: 5, floor: 100, days: 7 },
      db: { query: ((query: QueryConfig) => (fails ? Promise.reject(new Error('away')) : client.query(query))) as typeof client.query },
      now: () => new Date(time),
      unusual: () => undefined,
    });
    failing.add({ ...shop, spiffeId: 'spiffe://cofre.dev/tenant/acme/service/first' }, 1);
    failing.add({ ...shop, spiffeId: 'spiffe://cofre.dev/tenant/acme/service/second' }, 2);
    await t.rejects(failing.share());
    fails = false;
    await failing.share();
    t.same((await client.query("SELECT asked FROM caller_hours WHERE caller LIKE '%/second'")).rows, [{ asked: '2' }]);
  });
});
