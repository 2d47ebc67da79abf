/** The sequencing role over the real PostgreSQL: leadership, signing apart from integration, alerts, faults and the end; and a process's watch over its own batches. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { Entry } from '../../audit/entry.ts';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { encodeVkey, parseVkey, type NoteSigner } from '../../audit/note.ts';
import { WitnessFile } from '../../audit/witness-file.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { createMetrics } from '../../platform-adapters/telemetry/metrics.ts';
import { watchLog } from '../../vault/bin/log-watching.ts';
import { openSequencing, type Sequencing } from '../../vault/bin/sequencing.ts';
import { openWriter, type WriterContext } from '../../vault/bin/writers.ts';
import { readConfig } from '../../vault/config.ts';
import { executeEntries, type EntryOperation, type EntryOutcome } from '../../vault/transaction.ts';
import { withClient, type FreshDatabase } from '../support/database.ts';
import { LogDatabase } from '../support/log-database.ts';
import { origin, signer, signerPem, TestWriter, verifyLog, type LogTables, type Sink } from '../support/log-tables.ts';

const configText = `log: { origin: ${origin}, checkpoint_interval: 50ms, max_unsigned: 2s, max_clock_back: 1s }\nlisteners: { drain_timeout: 5s }\n`;
const config = readConfig(configText, 'cofre.config.yaml', {});

class Vault {
  readonly database: FreshDatabase;
  readonly lines: string[] = [];
  readonly sink: Sink;
  readonly #t: Test;
  readonly #log: LogDatabase;

  private constructor(t: Test, log: LogDatabase) {
    this.#t = t;
    this.#log = log;
    this.database = log.database;
    this.sink = log.sink;
  }

  static async open(t: Test): Promise<Vault> {
    return new Vault(t, await LogDatabase.open(t));
  }

  home(): string {
    const home = mkdtempSync(join(tmpdir(), 'cofre-sequencing-'));
    mkdirSync(join(home, 'writers'));
    this.#t.teardown(async () => rmSync(home, { recursive: true, force: true }));
    return home;
  }

  context(home: string, options: { signer?: NoteSigner; now?: () => Date } = {}): WriterContext {
    const log = (message: string, fields: object = {}): void => void this.lines.push(`${message} ${JSON.stringify(fields)}`);
    return { home, config, access: { url: this.database.adminUrl, roleFile: this.database.rolesFile }, signer: options.signer ?? signer, log: { debug: () => undefined, info: log, warn: log, error: log }, metrics: createMetrics(), now: options.now ?? (() => new Date()), index: 0, policies: '' };
  }

  /** Starts to sequence; ended with the test, unless it was before. */
  async sequence(home = this.home(), options: { signer?: NoteSigner } = {}): Promise<Sequencing & { end(): Promise<void> }> {
    const stack = new AsyncDisposableStack();
    const end = (): Promise<void> => stack.disposeAsync();
    this.#t.teardown(end);
    return { ...(await openSequencing(stack, this.context(home, options))), end };
  }

  async tables(): Promise<LogTables> {
    return await this.#log.tables();
  }

  async query(...statements: readonly string[]): Promise<void> {
    await this.#log.tamper(...statements);
  }
}

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (const deadline = performance.now() + 20_000; !(await condition()); await sleep(20)) if (performance.now() > deadline) throw new Error(`${what} did not come`);
}

const alertsOf = (entries: readonly { readonly entry: Record<string, unknown> }[]): unknown[] => entries.filter(({ entry }) => entry['action'] === 'log.alert').map(({ entry }) => entry['detail']);

t.test('what is committed comes under a checkpoint in the witness file, and the end leaves nothing unsigned', async (t) => {
  const vault = await Vault.open(t);
  const home = vault.home();
  const sequencing = await vault.sequence(home);
  t.same(sequencing.state().ok, true);
  const writer = await TestWriter.start(vault.sink);
  for (let batch = 0; batch < 20; batch += 1) await writer.commit(5);
  const witness = new WitnessFile(join(home, 'witness'));
  const verifiers = [parseVkey(encodeVkey(origin, signer.algorithm, signer.publicKeySpki))];
  const witnessed = async (): Promise<number> => openCheckpoint((await witness.last()) ?? '', verifiers)?.size ?? 0;
  await until('a checkpoint over all', async () => (await witnessed()) >= 100 && (await vault.tables()).chains.get(writer.id)?.position.next === 21n && (await witnessed()) === (await vault.tables()).head!.size);
  // Both at once at the end: what came last, and the sequencer's own stop.
  await writer.commit(7);
  await writer.stop();
  await TestWriter.start(vault.sink);
  await sequencing.end();
  const tables = await vault.tables();
  await verifyLog(t, tables, 'after the end', { complete: [] });
  t.equal(await witnessed(), tables.head!.size, 'all of it is witnessed');
  t.equal(tables.chains.get(sequencing.writer.writer)!.state, 'closed', 'the sequencer\'s own stop too');
  const again = await vault.sequence(home);
  t.ok(again.state().ok);
  await again.end();
  const entries = await verifyLog(t, await vault.tables(), 'after a second life', { complete: [] });
  t.same(alertsOf(entries), []);
});

t.test('a process that waits takes over when the one that leads is killed', async (t) => {
  const vault = await Vault.open(t);
  const child = spawn(process.execPath, [new URL('../support/sequencing-process.ts', import.meta.url).pathname], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => void child.kill('SIGKILL'));
  child.stdin.end(JSON.stringify({ home: vault.home(), config: configText, access: { url: vault.database.adminUrl, roleFile: vault.database.rolesFile }, key: signerPem }));
  await once(child.stdout, 'data');
  const waiting = await vault.sequence();
  const writer = await TestWriter.start(vault.sink);
  await writer.commit(3);
  await until('the batch in the tree', async () => (await vault.tables()).chains.get(writer.id)?.position.next === 2n);
  await sleep(1200);
  t.same(waiting.state(), { ok: true, detail: 'another process sequences' });
  const exit = once(child, 'exit');
  child.kill('SIGKILL');
  await exit;
  await writer.commit(3);
  await until('the takeover', () => waiting.state().detail === 'sequencing');
  await until('the next batch in the tree', async () => (await vault.tables()).chains.get(writer.id)?.position.next === 3n);
  await until('its checkpoint', async () => { const tables = await vault.tables(); return tables.checkpoints.has(tables.head!.size); });
  t.same(alertsOf(await verifyLog(t, await vault.tables(), 'taken over', { complete: [] })), []);
});

t.test('a leader that lost its lock, or whose sessions were ended, goes on', async (t) => {
  const vault = await Vault.open(t);
  const sequencing = await vault.sequence();
  const writer = await TestWriter.start(vault.sink);
  await until('the lead', () => sequencing.state().detail === 'sequencing');
  for (let round = 1; round <= 3; round += 1) {
    await vault.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE '%sequencer' AND datname = current_database()");
    await writer.commit(2);
    await until('the batch in the tree', async () => (await vault.tables()).chains.get(writer.id)?.position.next === BigInt(round + 1));
  }
  t.ok(sequencing.state().ok, 'a short absence is no matter for readiness');
  await verifyLog(t, await vault.tables(), 'after it', {});
});

t.test('while the HSM is away the tree grows, readiness says what lags, and the first signature covers all', async (t) => {
  const vault = await Vault.open(t);
  let away = false;
  const sequencing = await vault.sequence(vault.home(), { signer: { ...signer, sign: (message) => (away ? Promise.reject(new Error('away')) : signer.sign(message)) } });
  const writer = await TestWriter.start(vault.sink);
  await until('a checkpoint', async () => (await vault.tables()).checkpoints.size > 0);
  away = true;
  for (let batch = 0; batch < 10; batch += 1) {
    await writer.commit(4);
    await sleep(50);
  }
  await until('the batches in the tree', async () => (await vault.tables()).chains.get(writer.id)?.position.next === 11n);
  await until('the message', () => sequencing.state().detail === 'sequencing, but no checkpoint can be signed');
  t.equal(sequencing.state().ok, true, 'whether calls may go on, the writers\' watch decides');
  t.equal(vault.lines.filter((line) => line.startsWith('no checkpoint could be signed')).length, 1, 'said once');
  away = false;
  await until('the checkpoint', async () => { const tables = await vault.tables(); return tables.checkpoints.has(tables.head!.size); });
  await until('readiness', () => sequencing.state().detail === 'sequencing');
  await verifyLog(t, await vault.tables(), 'after it', {});
});

t.test('an alert stands in the log, once, although the step after it fails again and again', async (t) => {
  const vault = await Vault.open(t);
  const sequencing = await vault.sequence();
  const victim = await TestWriter.start(vault.sink);
  await until('the start in the tree', async () => (await vault.tables()).chains.has(victim.id));
  // The tree cannot be written, the batches can.
  await vault.query('ALTER TABLE log_tiles ADD CONSTRAINT closed CHECK (log_id < 0) NOT VALID', 'ALTER TABLE log_chains ADD CONSTRAINT closed CHECK (next < 0) NOT VALID');
  await vault.sink(victim.chain, { ...victim.form(), signature: Buffer.alloc(64) });
  await until('the alert', () => vault.lines.some((line) => line.includes('has a wrong signature')));
  await sleep(3500);
  await vault.query('ALTER TABLE log_tiles DROP CONSTRAINT closed', 'ALTER TABLE log_chains DROP CONSTRAINT closed');
  await until('the alert in the log', async () => alertsOf(await verifyLog(t, await vault.tables(), 'as it stands')).length > 0);
  await sequencing.end();
  const alerts = alertsOf(await verifyLog(t, await vault.tables(), 'in the end', { complete: [victim.id] }));
  t.same(alerts, [{ kind: 'batch_distrusted', next: 1, reason: 'batch 1 has a wrong signature', writer: victim.chain.name }]);
});

t.test('when the sequencer\'s own batches are tampered with, its process says so, and the next one tells of everything again', async (t) => {
  const vault = await Vault.open(t);
  const home = vault.home();
  const first = await vault.sequence(home);
  const victim = await TestWriter.start(vault.sink);
  await until('the start in the tree', async () => (await vault.tables()).chains.has(victim.id));
  // An administrator who would have the alert vanish.
  await withClient(adminConnection(vault.database.adminUrl), async (client) => {
    await client.query('ALTER TABLE batches DISABLE TRIGGER USER');
    await client.query(`CREATE FUNCTION vanish() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; CREATE TRIGGER vanish BEFORE INSERT ON batches FOR EACH ROW WHEN (new.writer = ${first.writer.writer}) EXECUTE FUNCTION vanish()`);
  });
  await vault.sink(victim.chain, { ...victim.form(), signature: Buffer.alloc(64) });
  await until('the distrust', async () => (await vault.tables()).chains.get(victim.id)?.state === 'distrusted');
  await vault.query('DROP TRIGGER vanish ON batches');
  await first.writer.commit({ kind: 'entry', entry: { action: 'any', at: new Date(), outcome: 'allowed' } });
  await until('its own distrust', async () => (await vault.tables()).chains.get(first.writer.writer)?.state === 'distrusted');
  await until('readiness', () => !first.state().ok);
  t.match(first.state().detail, /^the batches of the sequencer itself were tampered with/u);
  await first.end();
  const second = await vault.sequence(home);
  await until('the alerts', async () => alertsOf(await verifyLog(t, await vault.tables(), 'as it stands')).length >= 2);
  await second.end();
  const alerts = alertsOf(await verifyLog(t, await vault.tables(), 'in the end', { complete: [victim.id, first.writer.writer] }));
  t.match(new Set(alerts), new Set([{ kind: 'batch_distrusted', writer: victim.chain.name, reason: 'batch 1 has a wrong signature' }, { kind: 'batch_distrusted', reason: 'batch 1 is missing' }, { kind: 'predecessor_missing', successor: second.writer.writer.toString(16).padStart(16, '0') }]));
  t.equal(alerts.length, 3);
  const third = await vault.sequence(home);
  await third.end();
  t.equal(alertsOf(await verifyLog(t, await vault.tables(), 'later')).length, 3, 'and no more');
});

t.test('what another writer says of the sequencer\'s own batches is told of, and the sequencer goes on', async (t) => {
  const vault = await Vault.open(t);
  const sequencing = await vault.sequence();
  const accused = sequencing.writer.writer.toString(16).padStart(16, '0');
  const liar = await TestWriter.start(vault.sink, { predecessor: { writer: accused, last: 999n, hash: Buffer.alloc(32, 7) } });
  await until('the alert', async () => alertsOf(await verifyLog(t, await vault.tables(), 'as it stands')).length > 0);
  t.same(sequencing.state(), { ok: true, detail: 'sequencing' });
  await sequencing.end();
  const tables = await vault.tables();
  t.match(alertsOf(await verifyLog(t, tables, 'in the end', { complete: [] })), [{ kind: 'predecessor_missing', writer: accused, successor: liar.chain.name }]);
  t.equal(tables.chains.get(sequencing.writer.writer)!.state, 'closed', 'by its own stop');
});

t.test('a log that is turned back under a running process stops it, in words, until it is set right', async (t) => {
  const vault = await Vault.open(t);
  const home = vault.home();
  const sequencing = await vault.sequence(home);
  const writer = await TestWriter.start(vault.sink);
  await until('a checkpoint', async () => { const tables = await vault.tables(); return tables.chains.has(writer.id) && tables.checkpoints.has(tables.head!.size); });
  const tables = ['logs', 'log_chains', 'log_batches', 'log_tiles', 'log_checkpoints', 'log_tokens', 'log_facets'];
  await vault.query(...tables.map((table) => `CREATE TABLE backup_${table} AS TABLE ${table}`), 'UPDATE log_tiles SET hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1)', "UPDATE logs SET root = sha256('x')");
  await writer.commit();
  await until('the fault', () => !sequencing.state().ok);
  t.match(sequencing.state().detail, /do not give its root/u);
  const signed = (await vault.tables()).checkpoints.size;
  await sleep(2500);
  t.equal((await vault.tables()).checkpoints.size, signed, 'nothing is signed');
  t.equal(vault.lines.filter((line) => line.includes('do not give its root')).length, 1, 'said once');
  await t.rejects(vault.sequence(home), { message: /do not give its root\. If it was restored on purpose, begin a new log that names this one: cofre audit restart$/u }, 'and nobody starts over it');
  await vault.query(...tables.toReversed().map((table) => `DELETE FROM ${table}`), ...tables.map((table) => `INSERT INTO ${table} SELECT * FROM backup_${table}`));
  await until('it goes on', async () => sequencing.state().ok && (await vault.tables()).chains.get(writer.id)?.position.next === 2n);
  await sequencing.end();
  const alerts = alertsOf(await verifyLog(t, await vault.tables(), 'set right', { complete: [] }));
  t.match(alerts, [{ kind: 'corrupt', reason: 'the tiles of the log do not give its root' }], 'and the log tells of it');
  t.equal(alerts.length, 1);
});

t.test('a clock that is set back: entries go on, batches stay in order, readiness says so, one alert', async (t) => {
  const vault = await Vault.open(t);
  const sequencing = await vault.sequence();
  let offsetMs = 0;
  const now = (): Date => new Date(Date.now() + offsetMs);
  const stack = new AsyncDisposableStack();
  t.teardown(() => stack.disposeAsync());
  const context = vault.context(vault.home(), { now });
  const writer = await openWriter<EntryOperation, EntryOutcome>(stack, context, 'tokenize', 'tokenize', executeEntries);
  const record = async (entry: Entry): Promise<void> => void (await writer.commit({ kind: 'entry', entry }));
  const watched = watchLog(stack, { config, connection: vault.database.connect('tokenize'), signer, writers: [writer], record, log: context.log, metrics: context.metrics, now });
  await record({ action: 'before', at: now(), outcome: 'allowed' });
  t.ok(watched.state().ok);
  offsetMs = -60_000;
  for (let entry = 0; entry < 3; entry += 1) {
    await record({ action: 'after', at: now(), outcome: 'allowed' });
    await sleep(1100);
  }
  t.match(watched.state(), { ok: false, detail: /^the clock is (?:5[0-9]|60) s behind the log$/u });
  t.equal(watched.refusal(), null, 'calls go on');
  offsetMs = 0;
  await until('readiness', () => watched.state().ok);
  await stack.disposeAsync();
  await sequencing.end();
  const entries = await verifyLog(t, await vault.tables(), 'in order', { complete: [] });
  t.match(alertsOf(entries), [{ kind: 'clock_back', seconds: Number }]);
  t.equal(alertsOf(entries).length, 1);
});

t.test('without signatures calls go on for a while, then they are refused until there is one', async (t) => {
  const vault = await Vault.open(t);
  const stack = new AsyncDisposableStack();
  t.teardown(() => stack.disposeAsync());
  const context = vault.context(vault.home());
  const writer = await openWriter<EntryOperation, EntryOutcome>(stack, context, 'tokenize', 'tokenize', executeEntries);
  let refusing = true;
  let asked = 0;
  const record = async (entry: Entry): Promise<void> => {
    asked += 1;
    if (refusing) throw new Error('the database is away');
    await writer.commit({ kind: 'entry', entry });
  };
  const watched = watchLog(stack, { config, connection: vault.database.connect('tokenize'), signer, writers: [writer], record, log: context.log, metrics: context.metrics, now: () => new Date() });
  t.equal(watched.refusal(), null);
  await until('the refusal', () => !watched.state().ok);
  await t.rejects(watched.refusal()!, { code: 'audit_unavailable' });
  t.match(watched.state(), { ok: false, detail: /^no signed checkpoint over what was committed for \d+ s$/u });
  await until('a second try to tell of it', () => asked >= 2);
  refusing = false;
  await until('the alert', () => asked >= 3);
  await sleep(1500);
  t.equal(asked, 3, 'told once');
  t.equal(vault.lines.filter((line) => line.startsWith('the log is not as it must be')).length, 1);
  const sequencing = await vault.sequence();
  await until('the end of it', () => watched.state().ok);
  t.equal(watched.refusal(), null);
  await stack.disposeAsync();
  await sequencing.end();
  t.match(alertsOf(await verifyLog(t, await vault.tables(), 'after it', { complete: [] })), [{ kind: 'unsigned' }]);
});
