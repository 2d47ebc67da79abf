/** The sequencer over the real PostgreSQL: instances side by side, what an administrator does with the tables, and what the database does to it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Client, Pool } from 'pg';
import t, { type Test } from 'tap';
import { writerName } from '../../audit/chain.ts';
import { restartLog, type RestartedLog } from '../../audit/restart.ts';
import { LogFault } from '../../audit/sequenced-log.ts';
import { Sequencer, type SequencerOptions } from '../../audit/sequencer.ts';
import { postgresTreeStore, readDistrusted } from '../../audit/tree-store.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { withClient, type FreshDatabase } from '../support/database.ts';
import { LogDatabase } from '../support/log-database.ts';
import { origin, signer, signerPem, verifyLog, type Expectations, type TestWriter } from '../support/log-tables.ts';
import { settle, type Alert } from '../support/memory-tree-store.ts';

const tables = ['writers', 'batches', 'logs', 'log_chains', 'log_batches', 'log_tiles', 'log_checkpoints', 'log_tokens', 'log_facets'] as const;

/** A vault's database with writers and sequencers, and what they told. */
class Vault {
  readonly alerts: Alert[] = [];
  readonly published: string[] = [];
  readonly database: FreshDatabase;
  readonly log: LogDatabase;
  readonly #t: Test;

  private constructor(t: Test, log: LogDatabase) {
    this.#t = t;
    this.log = log;
    this.database = log.database;
  }

  static async open(t: Test): Promise<Vault> {
    return new Vault(t, await LogDatabase.open(t));
  }

  async writer(options: Parameters<LogDatabase['writer']>[0] = {}): Promise<TestWriter> {
    return await this.log.writer(options);
  }

  pool(settings: object = {}): Pool {
    const pool = new Pool({ ...this.database.connect('sequencer'), max: 2, ...settings });
    pool.on('error', () => undefined);
    this.#t.teardown(() => pool.end());
    return pool;
  }

  sequencer(options: Partial<SequencerOptions> & { pool?: Pool } = {}): Sequencer {
    return new Sequencer({
      store: postgresTreeStore(options.pool ?? this.pool()),
      signer,
      name: origin,
      witnesses: [{ publish: async (note) => void this.published.push(note), last: async () => this.published.at(-1) ?? null }],
      alert: async (kind, detail) => void this.alerts.push({ kind, detail }),
      now: () => new Date(),
      ...options,
    });
  }

  async tamper(...statements: readonly string[]): Promise<void> {
    await this.log.tamper(...statements);
  }

  /** Statements that keep a copy of the log's tables. */
  backUp(): string[] {
    return tables.map((table) => `CREATE TABLE backup_${table} AS TABLE ${table}`);
  }

  /** Statements that put the copy back. */
  restore(): string[] {
    return [...tables.toReversed().map((table) => `DELETE FROM ${table}`), ...tables.map((table) => `INSERT INTO ${table} SELECT * FROM backup_${table}`)];
  }

  async verify(t: Test, message: string, expected: Expectations = {}): Promise<void> {
    await verifyLog(t, await this.log.tables(), message, { published: this.published, ...expected });
  }

  async one<Row extends object>(text: string): Promise<Row> {
    return await withClient(adminConnection(this.database.adminUrl), async (client) => (await client.query<Row>(text)).rows[0]!);
  }
}

t.test('what writers commit comes into the tree as it stands, and the tree is the one that anybody computes', async (t) => {
  const vault = await Vault.open(t);
  const writers = [await vault.writer(), await vault.writer()];
  for (let round = 0; round < 12; round += 1) for (const writer of writers) await writer.commit(1 + ((round * 11) % 40));
  await writers[1]!.bury();
  const sequencer = vault.sequencer({ maxLeaves: 90, maxBatches: 3 });
  for (let more = true; more; ) {
    ({ more } = await sequencer.step());
    await sequencer.sign();
    await vault.verify(t, `${sequencer.head?.size} leaves`);
  }
  await vault.verify(t, 'all of it', { complete: [] });
  t.same(await sequencer.step(), { leaves: 0, batches: 0, oldest: null, more: false });
  await writers[0]!.stop();
  await vault.writer({ predecessor: writers[1]!.left });
  await settle(vault.sequencer());
  await vault.verify(t, 'taken over', { complete: [] });
  t.same(vault.alerts, []);
});

t.test('instances side by side: no batch twice, none lost, one history', async (t) => {
  const vault = await Vault.open(t);
  const writers = [await vault.writer(), await vault.writer(), await vault.writer()];
  const instances = [1, 2, 3].map(() => vault.sequencer({ maxLeaves: 40, witnesses: [] }));
  let writing = true;
  let lost = 0;
  const working = instances.map(async (sequencer) => {
    while (writing) {
      const { leaves, more } = await sequencer.step();
      if (leaves === 0 && more) lost += 1;
      await sequencer.sign();
    }
  });
  for (let round = 0; round < 40; round += 1) await writers[round % 3]!.commit(1 + (round % 9));
  writing = false;
  await Promise.all(working);
  for (const sequencer of instances) await settle(sequencer);
  t.ok(lost > 0, `${lost} steps found that another was faster`);
  await vault.verify(t, 'one history', { complete: [] });
});

t.test('a process that is killed in the midst of its steps leaves a log that the next one goes on with', async (t) => {
  const vault = await Vault.open(t);
  const writer = await vault.writer();
  for (let round = 0; round < 5; round += 1) {
    for (let batch = 0; batch < 40; batch += 1) await writer.commit(3);
    const child = spawn(process.execPath, [new URL('../support/sequencing-victim.ts', import.meta.url).pathname], { stdio: ['pipe', 'pipe', 'inherit'] });
    child.stdin.end(JSON.stringify({ connection: vault.database.connect('sequencer'), key: signerPem }));
    const exit = once(child, 'exit');
    await Promise.race([once(child.stdout, 'data'), exit]);
    t.ok(child.kill('SIGKILL'), 'it was at work');
    await exit;
    await vault.verify(t, `round ${round}: as it was left`);
  }
  await settle(vault.sequencer());
  await vault.verify(t, 'and went on', { complete: [] });
});

t.test('each write that fails in the database, before or after it took effect, is gone on from', async (t) => {
  const vault = await Vault.open(t);
  const writer = await vault.writer();
  for (const [round, statement] of ['UPDATE logs', 'INSERT INTO log_batches', 'INSERT INTO log_tiles', 'INSERT INTO log_chains', 'INSERT INTO log_tokens', 'INSERT INTO log_facets', 'COMMIT', 'COMMIT', 'INSERT INTO log_checkpoints'].entries()) {
    for (const when of ['before', 'after'] as const) {
      const pool = vault.pool();
      let failed = false;
      pool.on('connect', (client) => {
        const query = client.query.bind(client) as (...args: unknown[]) => Promise<unknown>;
        client.query = (async (...args: unknown[]) => {
          const text = typeof args[0] === 'string' ? args[0] : (args[0] as { text: string }).text;
          const hit = !failed && text.startsWith(statement);
          if (hit) failed = true;
          if (hit && when === 'before') throw new Error('not sent');
          const result = await query(...args);
          if (hit) throw new Error('no answer');
          return result;
        }) as unknown as typeof client.query;
      });
      const sequencer = vault.sequencer({ pool });
      await writer.commit(5);
      await t.rejects(settle(sequencer), { message: when === 'before' ? 'not sent' : 'no answer' }, `${statement} ${when}`);
      await vault.verify(t, `${statement} ${when}: as it was left`);
      await settle(round % 2 === 0 ? sequencer : vault.sequencer());
      await vault.verify(t, `${statement} ${when}: gone on from`, { complete: [] });
    }
  }
});

t.test('what an administrator does to a batch before it is in the tree is told of by name, and others go on', async (t) => {
  const vault = await Vault.open(t);
  const pool = vault.pool();
  const sequencer = vault.sequencer({ pool });
  for (const [what, statements, reason] of [
    ['an unknown kind', ['UPDATE batches SET kind = 7 WHERE writer = $ AND number = 2'], /^batch 2 has a wrong signature$/u],
    ['a time that never comes', ["UPDATE batches SET formed_at = 'infinity' WHERE writer = $ AND number = 2"], /^batch 2 is not a batch$/u],
    ['a time before all', ["UPDATE batches SET formed_at = '-infinity' WHERE writer = $ AND number = 2"], /^batch 2 is not a batch$/u],
    ['a time beyond JavaScript', ["UPDATE batches SET formed_at = '294276-01-01' WHERE writer = $ AND number = 2"], /^batch 2 /u],
    ['a time long ago', ["UPDATE batches SET formed_at = '1999-01-01' WHERE writer = $ AND number = 2"], /^batch 2 has a wrong signature$/u],
    ['a negative count', ['UPDATE batches SET entry_count = -1 WHERE writer = $ AND number = 2'], /^batch 2 is not a batch$/u],
    ['no previous', ["UPDATE batches SET previous = '' WHERE writer = $ AND number = 2"], /^batch 2 does not follow its predecessor$/u],
    ['nothing in it', ['ALTER TABLE batches ALTER bundle DROP NOT NULL', 'UPDATE batches SET bundle = NULL WHERE writer = $ AND number = 2'], /^batch 2 /u],
    ['a byte of an entry', ['UPDATE batches SET bundle = set_byte(bundle, 40, get_byte(bundle, 40) # 1) WHERE writer = $ AND number = 2'], /^batch 2 has a wrong signature$/u],
    ['a batch deleted', ['DELETE FROM batches WHERE writer = $ AND number = 2'], /^batch 2 is missing$/u],
    ['a batch repeated', ['INSERT INTO batches SELECT writer, 5, kind, formed_at, entry_count, previous, bundle, signature FROM batches WHERE writer = $ AND number = 4'], /^batch 5 does not follow its predecessor$/u],
    ['two batches swapped', ['UPDATE batches SET number = number + 100 WHERE writer = $ AND number = 2', 'UPDATE batches SET number = 2 WHERE writer = $ AND number = 3', 'UPDATE batches SET number = 3 WHERE writer = $ AND number = 102'], /^batch 2 does not follow its predecessor$/u],
    ['the certificate', ["UPDATE writers SET certificate = 'x' WHERE writer = $"], /^its certificate is not the HSM's$/u],
    ['the writer deleted', ['ALTER TABLE batches DROP CONSTRAINT batches_writer_fkey', 'DELETE FROM writers WHERE writer = $'], null],
  ] as const) {
    vault.alerts.length = 0;
    const [victim, other] = [await vault.writer(), await vault.writer()];
    for (let batch = 0; batch < 4; batch += 1) {
      await victim.commit(2);
      await other.commit(2);
    }
    const { left } = victim;
    await vault.tamper(...statements.map((statement) => statement.replace('$', victim.id.toString())));
    const successor = await vault.writer({ predecessor: left });
    await settle(sequencer);
    const alerts = vault.alerts.toSorted((one, two) => (one.kind < two.kind ? -1 : 1));
    // What is not taken of it is missing where its successor says.
    const lacks = reason !== null && what !== 'a batch repeated';
    t.match(alerts.slice(1), !lacks ? [] : [{ kind: 'predecessor_missing', detail: { writer: victim.chain.name, successor: successor.chain.name } }], what);
    t.equal(alerts.length, lacks ? 2 : 1, what);
    t.match(alerts[0], { kind: reason === null ? 'predecessor_missing' : 'batch_distrusted', detail: { writer: victim.chain.name, reason: reason ?? /^batch 4 is missing, which its successor names/u } }, what);
    const { rows } = await pool.query<{ n: number }>('SELECT count(*)::int AS n FROM log_batches WHERE writer IN ($1, $2)', [other.id, successor.id]);
    t.equal(rows[0]!.n, 6, `${what}: others go on`);
    t.equal((await readDistrusted(pool, 100)).some(({ writer }) => writer === victim.id), reason !== null, `${what}: nothing more of it`);
    await vault.tamper(...['formed_at = \'infinity\'', 'kind = 7', 'entry_count = -1'].map((set) => `UPDATE batches SET ${set} WHERE writer = ${other.id} AND number = 4`));
    vault.alerts.length = 0;
    const after = await vault.writer({ predecessor: other.left });
    await settle(sequencer);
    t.match(vault.alerts, [{ kind: 'predecessor_differs', detail: { writer: other.chain.name, successor: after.chain.name } }], `${what}: a row that holds no batch ends no step`);
  }
});

/** What an administrator does to the tree, and what the next start says of it. */
const rewritings: readonly (readonly [string, readonly string[], LogFault['kind'], RegExp])[] = [
  ['edits a tile', ['UPDATE log_tiles SET hashes = set_byte(hashes, 5, get_byte(hashes, 5) # 1) WHERE level = 0'], 'corrupt', /do not give its root/u],
  ['deletes the tiles', ['DELETE FROM log_tiles'], 'corrupt', /missing or cut short/u],
  ['turns the head back', ['UPDATE logs SET size = 1'], 'corrupt', /do not give its root/u],
  ['turns the head back, with its root', ["UPDATE logs SET size = 1, root = substring((SELECT hashes FROM log_tiles WHERE level = 0 AND tile = 0) FOR 32)"], 'behind_witness', /but the log in the database has 1/u],
  ['deletes the checkpoints', ['DELETE FROM log_checkpoints'], 'behind_witness', /is gone from the database/u],
  ['exchanges a checkpoint', ["UPDATE log_checkpoints SET note = replace(note, 'log', 'lag')"], 'rewritten', /a stored checkpoint is not signed/u],
  ['exchanges the charter', ["UPDATE logs SET first_leaf = '{}'"], 'rewritten', /not begun by this vault/u],
  ['gives the log another name', ["UPDATE logs SET origin = 'cofre.test/other'"], 'rewritten', /not begun by this vault/u],
  ['deletes the log', ['DELETE FROM log_checkpoints; DELETE FROM log_tiles; DELETE FROM log_batches; DELETE FROM log_chains; DELETE FROM logs'], 'behind_witness', /has no log, but a checkpoint of one was witnessed/u],
  ['turns a chain back', ["UPDATE log_chains SET next = 1, formed_at = (SELECT formed_at FROM batches b WHERE b.writer = log_chains.writer AND number = 0), previous = (SELECT previous FROM batches b WHERE b.writer = log_chains.writer AND number = 1)"], 'rewritten', /stands in the log already/u],
  ['gives a chain another time', ["UPDATE log_chains SET formed_at = '2099-01-01'"], 'rewritten', /does not hold batch 3 of writer [0-9a-f]{16}, from which/u],
  ['forgets the chains', ['DELETE FROM log_chains'], 'rewritten', /stands in the log already/u],
];

t.test('a tree that is not what was witnessed is refused, and nothing is signed', async (t) => {
  const vault = await Vault.open(t);
  const pool = vault.pool();
  const writer = await vault.writer();
  for (let batch = 0; batch < 3; batch += 1) await writer.commit(4);
  await settle(vault.sequencer({ pool }));
  const { published } = vault;
  const signed = published.length;
  await writer.commit();
  await vault.tamper(...vault.backUp());
  for (const [what, statements, kind, message] of rewritings) {
    await vault.tamper(...statements);
    const next = vault.sequencer({ pool });
    const error: unknown = await next.step().then(() => null, (thrown: unknown) => thrown);
    t.ok(error instanceof LogFault, what);
    t.match(error, { kind, message }, what);
    t.equal(await next.sign(), null, `${what}: no signature`);
    t.equal(published.length, signed);
    await vault.tamper(...vault.restore());
  }
  await settle(vault.sequencer({ pool }));
  await vault.verify(t, 'set right', { complete: [] });
});

t.test('a database restored from an older backup is refused by whoever has the witness, and taken by who has none', async (t) => {
  const vault = await Vault.open(t);
  const writer = await vault.writer();
  await settle(vault.sequencer());
  await vault.tamper(...vault.backUp());
  await writer.commit(5);
  const sequencer = vault.sequencer();
  await settle(sequencer);
  await vault.tamper(...vault.restore());
  await t.rejects(vault.sequencer().open(), { message: /was witnessed, but the log in the database has \d+: the database was restored from an older backup, or cut off/u });
  sequencer.forget();
  await t.rejects(sequencer.step(), { message: /restored from an older backup/u });
  await t.resolves(vault.sequencer({ witnesses: [] }).open(), 'nobody else can know');
});

t.test('a backup of two logs ago: the start says which log it is of and what was left behind, and the new log names the newest', async (t) => {
  const vault = await Vault.open(t);
  const pool = vault.pool();
  const witness = { publish: async (note: string) => void vault.published.push(note), last: async () => vault.published.at(-1) ?? null };
  const restart = (): Promise<RestartedLog> => restartLog({ store: postgresTreeStore(pool), witnesses: [witness], signer, name: origin, now: new Date() });
  const cut = await vault.writer();
  await settle(vault.sequencer());
  await cut.commit();
  await vault.tamper(...vault.backUp());
  await settle(vault.sequencer());
  for (const number of [2, 3, 4]) {
    await vault.writer();
    await settle(vault.sequencer());
    const newest = vault.published.at(-1)!.split('\n', 2);
    await vault.tamper(...vault.restore());
    const refusal = number === 2 ? /^a checkpoint of \d+ entries was witnessed, but the log in the database has \d+: the database was restored from an older backup/u : new RegExp(`^a checkpoint of the log ${newest[0]} was witnessed, and the database has ${origin}, which was left behind for it: the database was restored from a backup of before$`, 'u');
    await t.rejects(vault.sequencer().open(), { message: refusal }, `before ${number}`);
    t.match(await restart(), { origin: `${origin}/${number}`, predecessor: { origin: newest[0], size: Number(newest[1]) }, carried: 1 });
    await settle(vault.sequencer());
    t.match(await vault.one(`SELECT p.number::int FROM log_batches p WHERE writer = ${cut.id} AND log_id = ${number}`), { number: 1 }, 'what stood in no tree of the backup comes');
    await t.rejects(restart(), { message: /is the one that was witnessed/u }, 'and once is enough');
  }
  t.same(vault.alerts, []);
});

t.test('a database that goes away and comes back, or does not answer, costs a step and nothing else', async (t) => {
  const vault = await Vault.open(t);
  const writer = await vault.writer();
  const pool = vault.pool({ query_timeout: 300 });
  const sequencer = vault.sequencer({ pool });
  await settle(sequencer);
  await writer.commit();
  const blocker = new Client(adminConnection(vault.database.adminUrl));
  await blocker.connect();
  t.teardown(() => blocker.end());
  await blocker.query('BEGIN; SELECT 1 FROM logs FOR UPDATE');
  await t.rejects(sequencer.step(), { message: /timeout/iu }, 'another holds the head');
  await blocker.query('ROLLBACK');
  await settle(sequencer);
  await vault.verify(t, 'after a timeout', { complete: [] });
  await writer.commit();
  await vault.one("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename LIKE '%sequencer' AND datname = current_database()");
  await sequencer.step().catch(() => undefined);
  await settle(sequencer);
  await vault.verify(t, 'after its sessions were ended', { complete: [] });
});

t.test('a checkpoint of a head that the database has lost is not kept', async (t) => {
  const vault = await Vault.open(t);
  const writer = await vault.writer();
  const sequencer = vault.sequencer();
  await settle(sequencer);
  const { size, root } = sequencer.head!;
  await writer.commit();
  await sequencer.step();
  await vault.tamper(`UPDATE logs SET size = ${size}, root = '\\x${root.toString('hex')}'`, `UPDATE log_tiles SET hashes = substring(hashes FOR ${size * 32}) WHERE level = 0`, `DELETE FROM log_batches WHERE first_index >= ${size}`, 'UPDATE log_chains SET next = 1, formed_at = (SELECT formed_at FROM batches b WHERE b.writer = log_chains.writer AND number = 0), previous = (SELECT previous FROM batches b WHERE b.writer = log_chains.writer AND number = 1)', `DELETE FROM log_tokens WHERE entry >= ${size}`, `DELETE FROM log_facets WHERE facet NOT IN (SELECT facet FROM log_facets LIMIT 0) AND block < 0`);
  t.equal(await sequencer.sign(), null);
  t.equal(vault.published.length, 1);
  await settle(sequencer);
  t.equal(vault.published.length, 2);
  await vault.verify(t, 'and goes on from what is there', { complete: [] });
});

t.test('new writers are found whatever their clock says, and batches behind a stop whenever they came', async (t) => {
  const vault = await Vault.open(t);
  const store = postgresTreeStore(vault.pool());
  const past = await vault.writer({ now: () => new Date('2001-01-01') });
  const future = await vault.writer({ now: () => new Date('2091-01-01') });
  t.same((await store.newWriters(null)).map(({ writer }) => writer), [past.id, future.id]);
  t.same((await store.newWriters(new Date())).map(({ writer }) => writer), [future.id]);
  const sequencer = vault.sequencer();
  await settle(sequencer);
  t.same(await store.newWriters(null), []);
  await past.stop();
  await settle(sequencer);
  t.same(await store.strays(), []);
  await past.commit();
  t.match(await store.strays(), [{ writer: past.id, state: 'closed', position: { next: 2n } }]);
  await settle(sequencer);
  t.match(vault.alerts, [{ detail: { writer: writerName(past.id), reason: 'batch 2 stands behind the end of the chain' } }]);
});

t.test('what is pending is cut at the ends of chains only', async (t) => {
  const vault = await Vault.open(t);
  const store = postgresTreeStore(vault.pool());
  const writers = [await vault.writer(), await vault.writer()];
  for (let batch = 0; batch < 6; batch += 1) for (const writer of writers) await writer.commit(4);
  await vault.tamper(`UPDATE batches SET formed_at = '1999-01-01' WHERE writer = ${writers[0]!.id} AND number = 5`);
  const positions = writers.map(({ id }) => ({ writer: id, next: 0n }));
  for (const maxBytes of [0, 1, 1000, 3000, 5000, 8000, 1_000_000]) {
    const found = await store.pending(positions, 6, maxBytes);
    for (const { id } of writers) {
      const numbers = found.filter(({ writer }) => writer === id).map(({ number }) => number);
      t.same(numbers, numbers.map((_number, index) => BigInt(index)), `${maxBytes} bytes: a beginning`);
    }
    const bytes = found.slice(0, -1).reduce((sum, { bundle }) => sum + bundle.length, 0);
    t.ok(maxBytes === 0 || found.length === 1 || bytes < maxBytes + 2000, `${maxBytes}: ${bytes}`);
    t.equal(found.length > 0, maxBytes > 0);
  }
  t.equal((await store.pending(positions, 6, 1_000_000)).length, 12);
  t.same(await store.pending([], 6, 1000), []);
});

t.test('a batch or a certificate that is too large to be read costs its writer, and nobody else', async (t) => {
  const vault = await Vault.open(t);
  const [honest, other, uncertified] = [await vault.writer(), await vault.writer(), await vault.writer()];
  const pool = vault.pool();
  const sequencer = vault.sequencer({ store: postgresTreeStore(pool, 100_000) });
  await honest.commit(5);
  const large = await other.commit(400);
  t.ok(large.bundle.length > 100_000);
  await vault.tamper(`UPDATE writers SET certificate = repeat('x', 5000000) WHERE writer = ${uncertified.id}`);
  await settle(sequencer);
  t.same(new Map(vault.alerts.map(({ detail }) => [detail['writer'], detail['reason']])), new Map([[other.chain.name, 'batch 1 has a wrong signature'], [uncertified.chain.name, 'its certificate is not the HSM\'s']]));
  t.equal((await postgresTreeStore(pool, 100_000).batch(other.id, 1n))?.bundle.length, 0);
  t.ok((await postgresTreeStore(pool).certificates([uncertified.id]))[0]!.certificate.length < 10_000);
  await honest.commit(5);
  await settle(sequencer);
  await vault.verify(t, 'the others go on', { complete: [other.id, uncertified.id] });
});
