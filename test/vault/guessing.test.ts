/** The cap on guessing over a real PostgreSQL: what several processes share, and what happens when they cannot. */
import { createHmac, createSecretKey } from 'node:crypto';
import { Pool } from 'pg';
import type { ClientConfig } from 'pg';
import t, { type Test } from 'tap';
import type { TenantKeys } from '../../hsm/keyring.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { dateOf, Guessing } from '../../vault/guessing.ts';
import { sweepGroups } from '../../vault/guessing-store.ts';
import { Pan } from '../../vault/pan.ts';
import type { Tenant } from '../../vault/tenants.ts';
import { freshDatabase, withClient, type FreshDatabase } from '../support/database.ts';
import { TEST_RANGES, madeCandidate } from '../support/made-cards.ts';
import { PostgresProxy } from '../support/postgres-proxy.ts';
import { cardOfLength } from '../support/test-cards.ts';

const limit = 10;
const noon = Date.parse('2026-11-24T12:00:00Z');
const callerOf = (tenant: string, service = 'checkout'): string => `spiffe://cofre.dev/tenant/${tenant}/service/${service}`;

function tenantOf(id: number, name: string): Tenant {
  const keys = { rowMacKey: createSecretKey(createHmac('sha256', 'a domain').update(name).digest()), fingerprint: { compute: (tenant: string, digits: Uint8Array) => createHmac('sha256', 'key').update(`${tenant}\0`).update(digits).digest() } };
  return { id, name, keys: keys as unknown as TenantKeys };
}
const acme = tenantOf(1, 'acme');
const globex = tenantOf(2, 'globex');

interface Asked {
  readonly tenant?: Tenant;
  readonly service?: string;
  readonly exempt?: boolean;
}

/** One process that tokenizes, at a time of its own. */
class Vault {
  time = noon;
  refused = 0;
  exceeded = 0;
  readonly alarms: [string, number][] = [];
  readonly sharing: ('fails' | 'works')[] = [];
  readonly guessing: Guessing;

  constructor(t: Test, connection: ClientConfig, distinctPerDay = limit) {
    const pool = new Pool({ ...connection, max: 1, connectionTimeoutMillis: 2000, query_timeout: 2000 });
    pool.on('error', () => undefined);
    this.guessing = new Guessing({
      distinctPerDay,
      // The tests say when.
      mergeIntervalMs: 1e9,
      now: () => new Date(this.time),
      db: pool,
      observer: {
        refused: () => void (this.refused += 1),
        exceeded: () => void (this.exceeded += 1),
        alarm: (caller, cards) => void this.alarms.push([caller, cards]),
        sharing: (failure) => void this.sharing.push(failure === null ? 'works' : 'fails'),
      },
    });
    t.teardown(async () => {
      await this.guessing.close();
      await pool.end();
    });
  }

  ask(digits: string, { tenant = acme, service = 'checkout', exempt = false }: Asked = {}): string {
    using pan = Pan.parse(Buffer.from(digits, 'latin1'));
    const fingerprint = tenant.keys.fingerprint.compute(tenant.name, pan!.reveal()) as Buffer;
    return this.guessing.ask(tenant, callerOf(tenant.name, service), pan!.group, fingerprint, exempt);
  }

  /** How many of the candidates `first` to `first + count - 1` are granted. */
  granted(first: number, count: number, asked: Asked = {}, last4 = '4242'): number {
    let granted = 0;
    for (let serial = first; serial < first + count; serial += 1) if (this.ask(madeCandidate(TEST_RANGES[0], last4, serial), asked) === 'granted') granted += 1;
    return granted;
  }
}

/** A pool that has no database. */
const nowhere: ClientConfig = { host: '127.0.0.1', port: 1 };
const rows = async (database: FreshDatabase): Promise<Record<string, unknown>[]> => (await withClient(adminConnection(database.adminUrl), (client) => client.query<Record<string, unknown>>('SELECT tenant_id, day::text, card_group, seen::text, shared_at FROM guessed_groups ORDER BY day, tenant_id, card_group'))).rows;

t.test('of the numbers that share both ends a caller brings so many, as often as it likes, and no further one', async (t) => {
  const vault = new Vault(t, nowhere);
  for (let round = 0; round < 3; round += 1) t.equal(vault.granted(0, limit), limit);
  t.equal(vault.granted(limit, 20), 0);
  t.equal(vault.granted(0, limit), limit, 'what it brought before it may bring again');
  t.equal(vault.granted(0, 20, {}, '4243'), limit, 'other last four digits have a count of their own');
  t.equal(vault.granted(20, 20, { service: 'other' }), limit, 'another caller');
  t.equal(vault.granted(40, 20, { tenant: globex }), limit, 'another tenant');
  t.equal(vault.refused, 20 + 10 + 10 + 10);
});

t.test('whoever goes on beyond the cap does not find the cards that were brought that day among the others', async (t) => {
  const vault = new Vault(t, nowhere);
  const known = 5000;
  vault.granted(known, 1);
  let found = 0;
  for (let serial = 0; serial < 2 * known; serial += 1) if (vault.granted(serial, 1) === 1 && serial === known) found += 1;
  t.equal(found, 0, 'a card of the day is refused like the others');
  t.equal(vault.ask(madeCandidate(TEST_RANGES[0], '4242', known)), 'closed');
  t.equal(vault.granted(0, limit, {}, '4243'), limit, 'other last four digits go on');
  t.equal(vault.granted(known, 1, { service: 'other' }), 1, 'and other callers');
  vault.time += 86_400_000;
  t.equal(vault.granted(known, 1), 1, 'and all of them the next day');
});

t.test('card numbers that show no first six digits are counted by brand, length and last four', async (t) => {
  const vault = new Vault(t, nowhere, 5);
  for (const length of [12, 13, 14]) {
    const groups = new Map<string, { asked: number; granted: number }>();
    // The last four are 007 and a check digit.
    for (let serial = 7; serial < 100_000; serial += 1000) {
      const digits = cardOfLength(length, serial);
      const group = groups.get(digits.slice(-4)) ?? { asked: 0, granted: 0 };
      groups.set(digits.slice(-4), group);
      group.asked += 1;
      if (vault.ask(digits) === 'granted') group.granted += 1;
    }
    t.ok(groups.size > 1 && [...groups.values()].every(({ asked, granted }) => granted === Math.min(asked, 5)), `${length} digits`);
  }
  t.ok(vault.refused > 100);
});

t.test('a caller that may import is never refused, and is watched', async (t) => {
  const vault = new Vault(t, nowhere);
  t.equal(vault.granted(0, 100, { exempt: true }), 100);
  t.equal(vault.exceeded, 90);
  t.ok(Math.abs(vault.guessing.exemptMost - 100) < 5, `${vault.guessing.exemptMost}`);
  t.equal(vault.granted(200, limit), limit, 'what it brought without having to counts for nobody');
  t.same(vault.alarms, []);
});

t.test('the alarm is raised with the first refusal of a caller, then once a minute with their number', async (t) => {
  const vault = new Vault(t, nowhere);
  vault.granted(0, 50);
  t.same(vault.alarms.splice(0), [[callerOf('acme'), 1]]);
  vault.granted(50, 5, { service: 'other' });
  await vault.guessing.merge();
  t.same(vault.alarms, [], 'within the minute nothing more');
  vault.time += 60_000;
  await vault.guessing.merge();
  t.same(vault.alarms.splice(0), [[callerOf('acme'), 39]]);
  vault.time += 60_000;
  vault.granted(60, 1);
  t.same(vault.alarms.splice(0), [[callerOf('acme'), 1]]);
  vault.time -= 3_600_000;
  vault.granted(61, 1);
  t.same(vault.alarms, [[callerOf('acme'), 1]], 'a clock that was set back does not silence it');
});

t.test('a new day of UTC has a count of its own, and a refused caller is told when it begins', async (t) => {
  const database = await freshDatabase(t);
  const vault = new Vault(t, database.connect('tokenize'));
  vault.time = Date.parse('2026-11-24T23:59:59.500Z');
  t.equal(vault.granted(0, 20), limit);
  t.equal(vault.guessing.secondsToNextDay(), 1);
  await vault.guessing.merge();
  vault.time += 500;
  t.equal(vault.guessing.secondsToNextDay(), 86_400);
  await vault.guessing.merge();
  t.equal(vault.granted(20, 20), limit);
  await vault.guessing.merge();
  const [yesterday, today] = await rows(database);
  t.same([yesterday!['day'], today!['day']], ['2026-11-24', '2026-11-25']);
  t.not(String(yesterday!['card_group']), String(today!['card_group']), 'nobody can tell that it is the same group');

  vault.time -= 500;
  t.equal(vault.granted(0, limit), limit);
  await vault.guessing.merge();
  t.equal(vault.granted(40, 20), 0, 'a clock that goes back finds that day\'s counts in the table');
  await withClient(database.connect('tokenize'), (client) => sweepGroups(client, dateOf(Math.floor(noon / 86_400_000) + 1)));
  t.same((await rows(database)).map((row) => row['day']), ['2026-11-25'], 'old days are swept');
});

t.test('two processes share what they count, each card once', async (t) => {
  const database = await freshDatabase(t);
  const [a, b] = [new Vault(t, database.connect('tokenize')), new Vault(t, database.connect('tokenize'))];
  t.equal(a.granted(0, 6), 6);
  t.equal(b.granted(3, 6), 6, 'three of them are the same');
  for (let round = 0; round < 3; round += 1) for (const vault of [a, b]) await vault.guessing.merge();
  t.equal(b.granted(20, 5), 1, 'nine were seen, so one more is granted');
  await b.guessing.merge();
  await a.guessing.merge();
  t.equal(a.granted(30, 5), 0);
  t.equal(a.granted(3, 6) + b.granted(0, 6), 12, 'what one of them granted, both do');
  t.equal((await rows(database)).length, 1);
});

t.test('what several grant between two rounds adds up, and no more', async (t) => {
  const database = await freshDatabase(t);
  const vaults = Array.from({ length: 4 }, () => new Vault(t, database.connect('tokenize'), 200));
  let granted = 0;
  for (let round = 0; round < 100; round += 1) {
    for (const [at, vault] of vaults.entries()) granted += vault.granted(round * 80 + at * 20, 20);
    await Promise.all(vaults.map((vault) => vault.guessing.merge()));
  }
  // In a round each brings 20; before a process shares a group it has seen about nine of it.
  t.ok(granted >= 190 && granted <= 200 + 4 * 20 + 3 * 15, `${granted} of 8,000 were granted`);
});

t.test('a restart goes on with the count, and so does the successor of a process that was killed', async (t) => {
  const database = await freshDatabase(t);
  const first = new Vault(t, database.connect('tokenize'));
  t.equal(first.granted(0, 6), 6);
  await first.guessing.close();
  const second = new Vault(t, database.connect('tokenize'));
  await second.guessing.merge();
  t.equal(second.granted(6, 10), 4);
  await second.guessing.merge();
  // Killed here: it shares nothing any more.
  t.equal(second.granted(0, 4, {}, '1111'), 4);
  const third = new Vault(t, database.connect('tokenize'));
  await third.guessing.merge();
  t.equal(third.granted(20, 10), 0);
  t.equal(third.granted(10, 10, {}, '1111'), limit, 'what was not shared is lost');
});

t.test('without its database a process counts on, and shares when it is back', async (t) => {
  const database = await freshDatabase(t);
  const { proxy, through } = await PostgresProxy.open(t, database.connect('tokenize'));
  const [a, b] = [new Vault(t, through), new Vault(t, database.connect('tokenize'))];
  await a.guessing.merge();
  proxy.away = true;
  proxy.cutAll();
  t.equal(a.granted(0, 20), limit);
  for (let round = 0; round < 3; round += 1) await a.guessing.merge();
  a.time += 60_000;
  t.ok(a.guessing.sharedAgoMs() >= 60_000);
  t.same(a.sharing, ['fails'], 'it is said once');
  await b.guessing.merge();
  t.equal(b.granted(30, 3), 3, 'others do not know');
  proxy.away = false;
  await a.guessing.merge();
  t.same(a.sharing, ['fails', 'works']);
  t.equal(a.guessing.sharedAgoMs(), 0);
  await b.guessing.merge();
  t.equal(b.granted(40, 20), 0, 'and then they do');
});

t.test('an answer that is lost, or a statement that never arrives, changes no count', async (t) => {
  const database = await freshDatabase(t);
  const { proxy, through } = await PostgresProxy.open(t, database.connect('tokenize'));
  const a = new Vault(t, through);
  let seen = 0;
  for (const verdict of ['answer_lost', 'cut'] as const) {
    for (let nth = 0; nth < 2; nth += 1) {
      t.equal(a.granted(seen, 2), 2);
      seen += 2;
      // The first execution of a round shares, the second one reads.
      let executions = 0;
      proxy.judge = ({ type }) => (type === 'S' && executions++ === nth ? verdict : 'pass');
      await a.guessing.merge();
      proxy.judge = () => 'pass';
      await a.guessing.merge();
    }
  }
  t.equal(proxy.strikes, 4);
  t.same(a.sharing, ['fails', 'works', 'fails', 'works', 'fails', 'works', 'fails', 'works']);
  const b = new Vault(t, database.connect('tokenize'));
  await b.guessing.merge();
  t.equal(b.granted(100, 20), limit - seen);
});

t.test('more groups than one statement takes are shared and read', async (t) => {
  const database = await freshDatabase(t);
  const [a, b] = [new Vault(t, database.connect('tokenize')), new Vault(t, database.connect('tokenize'))];
  const ends = Array.from({ length: 2345 }, (_, n) => String(n).padStart(4, '0'));
  for (const last4 of ends) a.granted(0, 9, {}, last4);
  await a.guessing.merge();
  t.equal((await rows(database)).length, ends.length);
  await b.guessing.merge();
  // One more of each; a filter is off by one in a few of a thousand.
  t.ok(ends.filter((last4) => b.granted(20, 5, {}, last4) !== 1).length < 30);
});

t.test('the table says nothing of callers and card numbers, and has no row for a group with few', async (t) => {
  const database = await freshDatabase(t);
  const vault = new Vault(t, database.connect('tokenize'), 200);
  for (let serial = 0; serial < 1000; serial += 1) vault.granted(0, 3, {}, String(serial).padStart(4, '0'));
  await vault.guessing.merge();
  t.same(await rows(database), []);
  for (const asked of [{}, { service: 'other' }, { tenant: globex }]) vault.granted(0, 100, asked);
  await vault.guessing.merge();
  const found = await rows(database);
  t.equal(new Set(found.map((row) => (row['card_group'] as Buffer).toString('hex'))).size, 3, 'one group, told apart by caller and tenant');
  const text = JSON.stringify(found);
  for (const secret of ['411111', '4242', 'checkout', madeCandidate(TEST_RANGES[0], '4242', 0)]) t.notOk(text.replaceAll(/"seen":"[01]*"/gu, '').includes(secret), secret);
});
