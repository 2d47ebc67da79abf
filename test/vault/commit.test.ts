import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import t, { type Test } from 'tap';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import type { Batch } from '../../audit/chain.ts';
import { begin, type WriterConnector } from '../../vault/writer-session.ts';
import { withClient, type FreshDatabase } from '../support/database.ts';
import { Bench, operation, workDatabase } from '../support/group-commit.ts';
import { PostgresProxy, type FrontendMessage, type Verdict } from '../support/postgres-proxy.ts';

const operations = (count: number): ReturnType<typeof operation>[] => Array.from({ length: count }, () => operation());
const kinds = (batches: readonly Batch[]): string[] => batches.map((batch) => batch.kind);

async function asOwner(database: FreshDatabase, sql: string): Promise<void> {
  await withClient(adminConnection(database.adminUrl), (client) => client.query(sql));
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (let tries = 0; tries < 2000; tries += 1) {
    if (condition()) return;
    await sleep(5);
  }
  throw new Error(`${what} did not come`);
}

/** A verdict on the `nth` COMMIT from now on, 1 being the next. */
function onCommit(proxy: PostgresProxy, verdict: Verdict, nth = 1, andThen: () => void = () => undefined): void {
  let seen = 0;
  proxy.judge = ({ query }) => {
    if (query !== 'COMMIT' || ++seen !== nth) return 'pass';
    andThen();
    return verdict;
  };
}

t.test('operations that wait at the same moment share a transaction, one entry each, in their order', async (t) => {
  const database = await workDatabase(t);
  const bench = await Bench.open(t, database);
  const ops = operations(40);
  t.same(await bench.runAll(ops), ops.map(() => 'committed'));
  t.same(bench.committedCalls, [40]);
  const batches = await bench.verify(t, 'each stands once');
  t.same(batches.map((batch) => batch.entryCount), [1, 40], 'the start entry, and all of them in one batch');
  const places = ops.map((op) => bench.answers.get(op)!);
  t.same(places.map((answer) => (typeof answer === 'string' ? -1 : answer.receipt!.index)), ops.map((_, i) => i), 'receipts in the order of arrival');
});

t.test('a transaction holds no more calls and no more weight than it may, and a heavy one goes alone', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t), { limits: { maxCalls: 4, maxWeight: 10 } });
  await Promise.all([bench.run(operation(), 50), ...operations(6).map((op) => bench.run(op)), bench.run(operation(), 6), bench.run(operation(), 6)]);
  t.same(bench.committedCalls, [1, 4, 3, 1]);
  await bench.verify(t, 'however they are divided');
});

t.test('an operation without an entry writes nothing, alone and beside others', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t));
  t.equal(await bench.run(operation('asks')), 'committed');
  t.equal((await bench.verify(t, 'alone')).length, 1, 'no batch');
  await bench.runAll([operation(), operation('asks'), operation()]);
  await bench.verify(t, 'beside others');
});

t.test('one poison operation fails alone and its neighbours commit', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t));
  for (const poison of ['breaks_row', 'throws'] as const) {
    const ops = [...operations(10), operation(poison), ...operations(10)];
    t.same(await bench.runAll(ops), ops.map((op) => (op.behaviour === poison ? 'internal' : 'committed')), poison);
    await bench.verify(t, `${poison}, among twenty`);
  }
  const several = [operation('throws'), operation(), operation('breaks_row'), operation('throws'), operation()];
  t.same(await bench.runAll(several), ['internal', 'committed', 'internal', 'internal', 'committed']);
  t.equal(await bench.run(operation('breaks_row')), 'internal', 'alone');
  await bench.verify(t, 'several, and one alone');
});

t.test('an operation whose failure cannot be recorded either is refused, and the writer goes on', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t));
  t.same(await bench.runAll([operation(), operation('unrecordable'), operation()]), ['committed', 'audit_unavailable', 'committed']);
  t.equal(await bench.run(operation()), 'committed');
  await bench.verify(t, 'nothing of it stands');
});

t.test('a transaction that met a concurrent writer is run again, and not for ever', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t));
  t.same(await bench.runAll([operation(), operation('conflicts_once')]), ['committed', 'committed']);
  t.equal(await bench.run(operation('conflicts')), 'store_unavailable');
  t.same(bench.disturbances, Array.from({ length: 7 }, () => 'conflict'));
  await bench.verify(t, 'each once');
});

t.test('an operation with a statement that takes too long is refused alone, and its neighbours commit', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t), { limits: { maxStatementMs: 3000 } });
  const ops = [...operations(20), operation('slow'), ...operations(20)];
  t.same(await bench.runAll(ops), ops.map((op) => (op.behaviour === 'slow' ? 'store_unavailable' : 'committed')));
  await bench.verify(t, 'among forty');
  t.same(await bench.runAll([operation('breaks_row'), operation(), operation('slow')]), ['internal', 'committed', 'store_unavailable'], 'beside a poison one');
  await bench.verify(t, 'nothing of it stands');
});

t.test('where every statement takes too long the writer does not ask each operation in turn', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t), { limits: { maxStatementMs: 500 } });
  const ops = Array.from({ length: 40 }, () => operation('slow'));
  t.same(await bench.runAll(ops), ops.map(() => 'store_unavailable'));
  t.ok(bench.disturbances.length <= 12, `${bench.disturbances.length} transactions: one in the usual time, and in that time again what has a tenth each`);
  await bench.verify(t, 'nothing stands');
});

t.test('an audit failure commits nothing, and the log goes on when it can be written again', async (t) => {
  const database = await workDatabase(t);
  const bench = await Bench.open(t, database);
  // Refused by the table itself, in the way a full disk or a lost grant would be.
  await asOwner(database, `CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$; CREATE TRIGGER full_disk BEFORE INSERT ON batches FOR EACH ROW EXECUTE FUNCTION full_disk()`);
  t.same(await bench.runAll([...operations(5), operation('throws')]), Array.from({ length: 6 }, () => 'audit_unavailable').with(5, 'audit_unavailable'));
  await bench.verify(t, 'without the log nothing stands');
  t.ok(bench.commit.logRefused, 'it is said that the log cannot be written');
  await asOwner(database, 'DROP TRIGGER full_disk ON batches');
  t.same(await bench.runAll(operations(3)), ['committed', 'committed', 'committed']);
  t.notOk(bench.commit.logRefused);
  t.same(kinds(await bench.verify(t, 'with it')), ['entries', 'entries'], 'the refused number was used again');
});

t.test('a database that takes no writes refuses all, and no one is blamed', async (t) => {
  const database = await workDatabase(t);
  const bench = await Bench.open(t, database);
  await asOwner(database, `REVOKE INSERT ON work FROM "${database.database}_tokenize"`);
  t.same(await bench.runAll(operations(3)), Array.from({ length: 3 }, () => 'store_unavailable'));
  await bench.verify(t, 'nothing stands');
  await asOwner(database, `GRANT INSERT ON work TO "${database.database}_tokenize"`);
  t.equal(await bench.run(operation()), 'committed');
  await bench.verify(t, 'and it goes on');
});

t.test('one more than may wait is refused as overloaded, and those that wait are served', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t), { limits: { maxQueue: 8 } });
  const answers = await bench.runAll(operations(20));
  t.same(answers, Array.from({ length: 20 }, (_, i) => (i < 8 ? 'committed' : 'overloaded')));
  await bench.verify(t, 'the refused ones left nothing');
});

t.test('a share that has taken all the room gives way to others, until each has as much', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t), { limits: { maxQueue: 8, maxQueuedWeight: 80 } });
  const of = (share: string, count: number, weight = 1): Promise<string>[] => operations(count).map((op) => bench.run(op, weight, share));
  const [many, few, heavy] = [of('many', 20), of('few', 2), of('heavy', 1, 80)];
  t.same(await Promise.all(many), Array.from({ length: 20 }, (_, i) => (i < 6 ? 'committed' : 'overloaded')), 'what came last of it');
  t.same(await Promise.all(few), ['committed', 'committed']);
  t.same(await Promise.all(heavy), ['overloaded'], 'and nobody gives way to one that would have more');
  await bench.verify(t, 'the refused ones left nothing');
});

t.test('operations without items take room as well, and give way', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t), { limits: { maxQueue: 8 } });
  const [empty, few] = [operations(20).map((op) => bench.run(op, 0, 'empty')), operations(2).map((op) => bench.run(op, 1, 'few'))];
  t.same(await Promise.all(empty), Array.from({ length: 20 }, (_, i) => (i < 6 ? 'committed' : 'overloaded')));
  t.same(await Promise.all(few), ['committed', 'committed']);
});

t.test('at the close everything is answered, the chain is closed, and nothing more is taken', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t), { limits: { maxCalls: 5 } });
  const answers = bench.runAll(operations(23));
  await bench.commit.close(5000);
  t.same(await answers, Array.from({ length: 23 }, () => 'committed'));
  t.equal(await bench.run(operation()), 'overloaded');
  const batches = await bench.verify(t, 'all stand');
  t.same(batches.map((batch) => batch.entryCount), [1, 5, 5, 5, 5, 3, 1]);
  t.same(bench.heads.at(-1), { number: 6n, closed: true });
  await bench.commit.close(5000);
  t.same(bench.heads.length, 7, 'a second close changes nothing');
});

t.test('a statement that outlives a BEGIN that failed is not committed on its own', async (t) => {
  const database = await workDatabase(t);
  // Strikes BEGIN as pg_cancel_backend would: the server answers an error and goes on with what is behind it on the wire.
  let strike = true;
  const connector = (real: WriterConnector): WriterConnector => ({
    async connect() {
      const session = await real.connect();
      const query = session.client.query.bind(session.client) as (text: unknown) => Promise<unknown>;
      session.client.query = ((text: unknown) => {
        if (text !== begin || !strike || bench === null) return query(text);
        strike = false;
        return query("DO $$ BEGIN RAISE EXCEPTION 'canceling statement due to user request' USING ERRCODE = '57014'; END $$");
      }) as never;
      return session;
    },
  });
  let bench: Bench | null = null;
  bench = await Bench.open(t, database, { connector });
  t.equal(await bench.run(operation()), 'store_unavailable', 'alone');
  t.notOk(strike);
  await bench.verify(t, 'nothing of it stands');
  t.equal(await bench.run(operation()), 'committed');
});

/** A writer behind a proxy. */
async function struck(t: Test, options: Parameters<typeof Bench.open>[2] = {}): Promise<{ proxy: PostgresProxy; bench: Bench; database: FreshDatabase }> {
  const database = await workDatabase(t);
  const { proxy, through } = await PostgresProxy.open(t, database.connect('tokenize'));
  return { proxy, bench: await Bench.open(t, database, { through, ...options }), database };
}

t.test('a COMMIT that never arrived is buried, and its operations commit under the next number', async (t) => {
  const { proxy, bench } = await struck(t);
  onCommit(proxy, 'cut');
  t.same(await bench.runAll(operations(5)), Array.from({ length: 5 }, () => 'committed'));
  t.equal(proxy.strikes, 1);
  t.same(bench.disturbances, ['commit_unknown', 'buried']);
  t.same(kinds(await bench.verify(t, 'each once')), ['entries', 'tombstone', 'entries']);
  t.same(await bench.runAll(operations(2)), ['committed', 'committed']);
  await bench.verify(t, 'and it goes on');
});

t.test('a COMMIT whose answer was lost is found, the real answer is given, and nothing stands twice', async (t) => {
  const { proxy, bench } = await struck(t);
  onCommit(proxy, 'answer_lost');
  t.same(await bench.runAll(operations(5)), Array.from({ length: 5 }, () => 'committed'));
  t.equal(proxy.strikes, 1);
  t.same(bench.disturbances, ['commit_unknown', 'found_committed']);
  t.same(kinds(await bench.verify(t, 'each once')), ['entries', 'entries']);
  t.same(await bench.runAll(operations(2)), ['committed', 'committed']);
  await bench.verify(t, 'and it goes on');
});

t.test('the entry of a poison operation survives a lost COMMIT both ways', async (t) => {
  for (const verdict of ['cut', 'answer_lost'] as const) {
    const { proxy, bench } = await struck(t);
    onCommit(proxy, verdict);
    t.equal(await bench.run(operation('throws')), 'internal', verdict);
    t.equal(proxy.strikes, 1);
    await bench.verify(t, 'its entry stands once');
  }
});

t.test("the tombstone's own COMMIT is lost, both ways, again and again", async (t) => {
  for (const first of ['cut', 'answer_lost'] as const) {
    for (const second of ['cut', 'answer_lost'] as const) {
      const { proxy, bench } = await struck(t);
      const script = [first, second, second];
      proxy.judge = ({ query }) => (query === 'COMMIT' ? (script.shift() ?? 'pass') : 'pass');
      t.same(await bench.runAll(operations(3)), Array.from({ length: 3 }, () => 'committed'), `${first}, then ${second} twice`);
      t.equal(proxy.strikes, 3);
      t.equal(bench.disturbances.filter((kind) => kind === 'settling').length, 2);
      await bench.verify(t, 'each once');
    }
  }
});

t.test('a COMMIT that is lost each time is not tried for ever', async (t) => {
  const { proxy, bench } = await struck(t);
  // Three statements with parameters in front (work, events, batch) make a batch; the tombstone's, with two, passes.
  let batches = 0;
  let inserts = 0;
  proxy.judge = ({ type, query }) => {
    if (type === 'B') inserts += 1;
    if (query !== 'COMMIT') return 'pass';
    const isBatch = inserts === 3;
    inserts = 0;
    if (!isBatch) return 'pass';
    batches += 1;
    return 'cut';
  };
  t.equal(await bench.run(operation()), 'store_unavailable');
  t.equal(batches, 6);
  proxy.judge = () => 'pass';
  t.equal(await bench.run(operation()), 'committed');
  t.same(kinds(await bench.verify(t, 'it left only tombstones')), ['entries', ...Array.from({ length: 6 }, () => 'tombstone'), 'entries']);
});

t.test('a connection cut before any message of a transaction costs nobody anything', async (t) => {
  const { proxy, bench } = await struck(t);
  // Of the first transaction on a session: BEGIN, the work (5 messages), its events (5), the batch (5), COMMIT.
  const seen: FrontendMessage[] = [];
  proxy.judge = (message) => (seen.push(message), 'pass');
  t.equal(await bench.run(operation()), 'committed');
  const length = seen.length;
  t.ok(length >= 10, `${length} messages`);
  for (let at = 0; at < length + 1; at += 1) {
    let passed = 0;
    let done = false;
    proxy.judge = () => {
      if (done || passed++ < at) return 'pass';
      done = true;
      return 'cut';
    };
    t.same(await bench.runAll(operations(2)), ['committed', 'committed'], `before message ${at}`);
    await bench.verify(t, 'each once');
  }
});

t.test('everything that a session says on its way back can be lost', async (t) => {
  const { proxy, bench } = await struck(t);
  for (const type of ['S', 'Q'] as const) {
    for (let nth = 1; nth <= 2; nth += 1) {
      let seen = 0;
      proxy.judge = (message) => (message.type === type && ++seen === nth ? 'answer_lost' : 'pass');
      t.same(await bench.runAll(operations(2)), ['committed', 'committed'], `the answer to ${type} ${nth}`);
      proxy.judge = () => 'pass';
      await bench.verify(t, 'each once');
    }
  }
});

t.test('a session that is set up again fails in the middle of that, and is set up once more', async (t) => {
  const { proxy, bench } = await struck(t);
  let cuts = 3;
  let broken = false;
  proxy.judge = ({ query }) => {
    if (query === 'COMMIT' && !broken) {
      broken = true;
      return 'cut';
    }
    return query.includes('statement_timeout') && cuts-- > 0 ? 'cut' : 'pass';
  };
  t.same(await bench.runAll(operations(3)), Array.from({ length: 3 }, () => 'committed'));
  t.same(bench.disturbances, ['commit_unknown', 'connect', 'connect', 'connect', 'buried']);
  await bench.verify(t, 'each once');
});

t.test('a COMMIT that takes its time is waited for, while others gather', async (t) => {
  const { proxy, bench } = await struck(t);
  onCommit(proxy, 'hold');
  const first = bench.run(operation());
  await until(() => proxy.strikes === 1, 'the hold');
  const others = bench.runAll(operations(10));
  await sleep(50);
  t.equal(bench.answers.size, 0, 'nobody is answered before the log is');
  t.equal(bench.commit.depth, 10);
  proxy.release();
  t.equal(await first, 'committed');
  await others;
  t.same(bench.committedCalls, [1, 10]);
  await bench.verify(t, 'each once');
});

t.test('a database that falls silent in its COMMIT is given up on, and its outcome is settled on another connection', async (t) => {
  const { proxy, bench } = await struck(t, { queryTimeoutMs: 300 });
  onCommit(proxy, 'hold');
  t.same(await bench.runAll(operations(3)), Array.from({ length: 3 }, () => 'committed'));
  t.same(bench.disturbances, ['commit_unknown', 'found_committed']);
  await bench.verify(t, 'each once');
});

t.test('with the database away for longer than callers wait, the outcome is unknown; when it returns, the chain goes on', async (t) => {
  for (const verdict of ['cut', 'answer_lost'] as const) {
    const { proxy, bench } = await struck(t, { limits: { maxSettleMs: 200, maxWaitMs: 100 } });
    onCommit(proxy, verdict, 1, () => (proxy.away = true));
    const lost = operations(3);
    t.same(await bench.runAll(lost), Array.from({ length: 3 }, () => 'outcome_unknown'), verdict);
    t.same(await bench.runAll(operations(2)), Array.from({ length: 2 }, () => 'store_unavailable'), 'meanwhile others are refused');
    t.ok(bench.commit.awayMs() > 0);
    await bench.verify(t, 'while it is away');
    proxy.away = false;
    await until(() => bench.disturbances.includes(verdict === 'cut' ? 'buried' : 'found_committed'), 'the settlement');
    t.equal(bench.commit.awayMs(), 0);
    t.equal(await bench.run(operation()), 'committed');
    t.same(kinds(await bench.verify(t, 'when it is back')), ['entries', verdict === 'cut' ? 'tombstone' : 'entries', 'entries']);
  }
});

t.test('operations that wait for a database that is away are refused in time, and served if it returns in time', async (t) => {
  const { proxy, bench } = await struck(t, { limits: { maxWaitMs: 300 } });
  proxy.away = true;
  proxy.cutAll();
  t.same(await bench.runAll(operations(5)), Array.from({ length: 5 }, () => 'store_unavailable'));
  await bench.verify(t, 'refused');
  const patient = bench.runAll(operations(5));
  proxy.away = false;
  t.same(await patient, Array.from({ length: 5 }, () => 'committed'));
  await bench.verify(t, 'served');
});

t.test('of a group that waits for the database again, who was refused meanwhile is not committed with the rest', async (t) => {
  const { proxy, bench } = await struck(t, { limits: { maxWaitMs: 1000 } });
  proxy.away = true;
  proxy.cutAll();
  // Before anything is asked for, or the first one would be a group of its own.
  await until(() => bench.commit.awayMs() > 0, 'the loss of the session');
  const [first, second] = [operation(), operation()];
  const impatient = bench.run(first);
  await sleep(500);
  const patient = bench.run(second);
  // Both come into one group, whose session is lost before anything of it is committed.
  let struckAt = 0;
  proxy.judge = ({ query }) => {
    if (query !== begin || (struckAt += 1) > 1) return 'pass';
    proxy.away = true;
    return 'cut';
  };
  proxy.away = false;
  t.equal(await impatient, 'store_unavailable');
  t.equal(struckAt, 1, 'in the group');
  proxy.away = false;
  t.equal(await patient, 'committed');
  await bench.verify(t, 'the one that was refused stands nowhere');
});

t.test('the close of a writer whose COMMIT was lost and whose database is away ends, and leaves nobody waiting', async (t) => {
  const { proxy, bench } = await struck(t);
  onCommit(proxy, 'cut', 1, () => (proxy.away = true));
  const answers = Promise.all([bench.run(operation()), bench.run(operation())]);
  await until(() => proxy.strikes === 1, 'the strike');
  const late = bench.runAll(operations(3));
  await bench.commit.close(200);
  t.same(await answers, ['outcome_unknown', 'outcome_unknown']);
  t.same(await late, Array.from({ length: 3 }, () => 'store_unavailable'));
  await bench.verify(t, 'nothing is half there');
});

t.test('the close of a writer whose session was cut while it idled still closes its chain', async (t) => {
  const { proxy, bench } = await struck(t);
  t.equal(await bench.run(operation()), 'committed');
  proxy.cutAll();
  await bench.commit.close(5000);
  t.match(bench.heads.at(-1), { closed: true });
  await bench.verify(t, 'closed');
});

t.test('a server that ends the session, or cancels its statements, is no matter', async (t) => {
  const database = await workDatabase(t);
  const bench = await Bench.open(t, database);
  const admin = new Client(adminConnection(database.adminUrl));
  await admin.connect();
  t.teardown(() => admin.end());
  // The owner holds the roles that it created, and may signal their sessions.
  await admin.query(`GRANT "${database.database}_tokenize" TO CURRENT_USER`);
  const stop = new AbortController();
  const load = (async () => {
    while (!stop.signal.aborted) await bench.runAll(operations(5));
  })();
  for (let round = 0; round < 30; round += 1) {
    await admin.query(`SELECT ${round % 3 === 0 ? 'pg_terminate_backend' : 'pg_cancel_backend'}(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename LIKE '%tokenize'`);
    await sleep(round % 7);
  }
  stop.abort();
  await load;
  t.equal(await bench.run(operation()), 'committed');
  await bench.verify(t, 'each as it was answered');
  const unexpected = [...bench.answers.values()].filter((answer) => typeof answer === 'string' && answer !== 'store_unavailable' && answer !== 'audit_unavailable');
  t.same(unexpected, [], 'whoever was not served was told that the store or the log did not work');
});

t.test('a storm of strikes at random messages loses nothing and doubles nothing', async (t) => {
  const { proxy, bench } = await struck(t);
  let state = 20_261_124;
  const random = (): number => (state = (state * 1_103_515_245 + 12_345) % 2 ** 31) / 2 ** 31;
  proxy.judge = ({ query, type }) => {
    const dice = random();
    if (query === 'COMMIT') return dice < 0.15 ? 'cut' : dice < 0.3 ? 'answer_lost' : 'pass';
    return (type === 'S' || type === 'Q') && dice < 0.02 ? 'cut' : 'pass';
  };
  for (let wave = 0; wave < 60; wave += 1) {
    await bench.runAll(Array.from({ length: 1 + Math.floor(random() * 6) }, () => operation(random() < 0.05 ? 'throws' : random() < 0.05 ? 'asks' : 'writes')));
    if (wave % 20 === 19) await bench.verify(t, `after wave ${wave}`);
  }
  t.ok(proxy.strikes > 10, `${proxy.strikes} strikes`);
  proxy.judge = () => 'pass';
  await bench.commit.close(5000);
  await bench.verify(t, 'at the end');
});

t.test('an operation whose event cannot be made fails alone, and nothing stands without its events', async (t) => {
  const bench = await Bench.open(t, await workDatabase(t));
  t.same(await bench.runAll([operation(), operation('untellable'), operation()]), ['committed', 'internal', 'committed']);
  await bench.verify(t, 'its neighbours stand with theirs');
  t.same(await bench.runAll(operations(2)), ['committed', 'committed']);
  await bench.verify(t, 'and the chain goes on');
});

t.test('where events cannot be stored nothing is, and the writer goes on once they can', async (t) => {
  const database = await workDatabase(t);
  const bench = await Bench.open(t, database);
  await asOwner(database, 'ALTER TABLE outbox ADD CONSTRAINT closed CHECK (number < 0) NOT VALID');
  t.same(await bench.runAll(operations(3)), ['audit_unavailable', 'audit_unavailable', 'audit_unavailable']);
  await bench.verify(t, 'refused');
  await asOwner(database, 'ALTER TABLE outbox DROP CONSTRAINT closed');
  t.same(await bench.runAll(operations(3)), ['committed', 'committed', 'committed']);
  await bench.verify(t, 'stored again');
});
