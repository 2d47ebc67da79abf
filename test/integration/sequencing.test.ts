/** The appliance and its log: calls come under a witnessed checkpoint, and an older database is not served. */
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { WitnessFile } from '../../audit/witness-file.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { plainLines, startAppliance } from '../support/appliance.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { logVerifier } from '../support/log-reader.ts';
import { readTables, verifyLog, type LogTables } from '../support/log-tables.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database });
const tablesNow = (): Promise<LogTables> => withClient(adminConnection(database.adminUrl), (client) => readTables(client));
const asOwner = (...statements: readonly string[]): Promise<void> =>
  withClient(adminConnection(database.adminUrl), async (client) => {
    await client.query('ALTER TABLE batches DISABLE TRIGGER USER; ALTER TABLE writers DISABLE TRIGGER USER');
    for (const statement of statements) await client.query(statement);
  });
const verifier = logVerifier(appliance.home);
const witnessed = async (): Promise<number> => openCheckpoint((await new WitnessFile(join(appliance.home, 'witness')).last()) ?? '', [verifier])?.size ?? 0;
const readiness = async (): Promise<Record<string, { ok: boolean; detail: string }>> => (await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as Record<string, { ok: boolean; detail: string }>;
/** Last batches of the writers that have not ended, and those that they have noted outside of the database, by the name of the writer. */
const lastBatches = (): Promise<{ writer: string; number: string }[]> =>
  withClient(adminConnection(database.adminUrl), async (client) => (await client.query<{ writer: string; number: string }>("SELECT lpad(to_hex(writer), 16, '0') AS writer, max(number)::text AS number FROM batches LEFT JOIN log_chains USING (writer) WHERE state IS DISTINCT FROM 1 GROUP BY writer")).rows);
const noted = (): Map<string, string> => {
  const folder = join(appliance.home, 'writers');
  const notes = readdirSync(folder).filter((name) => name.endsWith('.json')).map((name) => JSON.parse(readFileSync(join(folder, name), 'utf8')) as { writer: string; number: string });
  return new Map(notes.map(({ writer, number }) => [writer, number]));
};
let nextCard = 0;

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (const deadline = performance.now() + 20_000; !(await condition()); await sleep(50)) if (performance.now() > deadline) throw new Error(`${what} did not come`);
}

await t.test('a call comes under a checkpoint outside of the database', async (t) => {
  const checkout = appliance.client('checkout');
  for (let call = 0; call < 20; call += 1) t.equal((await checkout.post('/v1/tokenize', { pan: cardText(nextCard++) })).status, 201);
  checkout.close();
  const waiting = async (): Promise<number> =>
    await withClient(adminConnection(database.adminUrl), async (client) => (await client.query<{ count: number }>('SELECT count(*)::int AS count FROM batches LEFT JOIN log_batches USING (writer, number) WHERE log_batches.writer IS NULL')).rows[0]!.count);
  await until('a checkpoint', async () => (await waiting()) === 0 && (await witnessed()) === (await tablesNow()).head!.size);
  const entries = await verifyLog(t, await tablesNow(), 'the log', { verifier });
  t.equal(entries.filter(({ entry }) => entry['action'] === 'tokenize').length, 20);
  t.match(await readiness(), { sequencer: { ok: true, detail: 'sequencing' }, checkpoints: { ok: true, detail: 'batches come under signed checkpoints' } });
});

await t.test('a clean stop leaves every chain closed under the last checkpoint, and a kill is succeeded to', async (t) => {
  // Who runs it as a service may signal all of its processes at once.
  const children = readFileSync(`/proc/${appliance.pid}/task/${appliance.pid}/children`, 'utf8').trim().split(' ').map(Number);
  const sequencer = children.find((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').endsWith('\0worker\0sequencer\0'))!;
  process.kill(sequencer, 'SIGTERM');
  t.same(await appliance.stop(), { code: 0, signal: null });
  const stopped = await tablesNow();
  await verifyLog(t, stopped, 'stopped', { verifier, complete: [] });
  t.ok([...stopped.chains.values()].every(({ state }) => state === 'closed'));
  t.equal(await witnessed(), stopped.head!.size);
  await appliance.start();
  // Until each writer has noted its last batch outside of the database: killed before, its successor names the one before it.
  await until('the notes', async () => (await lastBatches()).every(({ writer, number }) => noted().get(writer) === number));
  await appliance.kill9();
  await appliance.start();
  await until('the successors', async () => [...(await tablesNow()).chains.values()].filter(({ state }) => state === 'open').length === 8);
  await appliance.stop();
  const tables = await tablesNow();
  const entries = await verifyLog(t, tables, 'after a kill', { verifier, complete: [] });
  t.same(entries.filter(({ entry }) => entry['action'] === 'log.alert'), []);
});

await t.test('a batch that is changed before it is in the tree: an alert that names its writer, and calls are refused', async (t) => {
  await appliance.start();
  const checkout = appliance.client('checkout');
  await until('a checkpoint', async () => (await witnessed()) === (await tablesNow()).head!.size);
  await withClient(adminConnection(database.adminUrl), async (holding) => {
    // While another holds the head, nothing is sequenced.
    await holding.query('BEGIN; SELECT 1 FROM logs FOR UPDATE');
    t.equal((await checkout.post('/v1/tokenize', { pan: cardText(nextCard++) })).status, 201);
    // It waits with the first one, and has not read the second.
    await until('the sequencer', async () => (await holding.query("SELECT 1 FROM pg_stat_activity WHERE application_name = 'cofre sequencer' AND wait_event_type = 'Lock'")).rowCount === 1);
    t.equal((await checkout.post('/v1/tokenize', { pan: cardText(nextCard++) })).status, 201);
    await asOwner("UPDATE batches SET bundle = set_byte(bundle, 60, get_byte(bundle, 60) # 1) WHERE (writer, number) = (SELECT writer, number FROM batches JOIN writers USING (writer) WHERE role = 'tokenize' ORDER BY formed_at DESC LIMIT 1)");
    await holding.query('ROLLBACK');
  });
  await until('readiness', async () => !(await readiness())['checkpoints']!.ok);
  t.match(await readiness(), { checkpoints: { ok: false, detail: /^the log takes nothing more of writer [0-9a-f]{16}, whose batches were tampered with: start the process again$/u } });
  isProblem(t, await checkout.post('/v1/tokenize', { pan: cardText(nextCard++) }), 'audit_unavailable');
  checkout.close();
  await appliance.stop();
  const tables = await tablesNow();
  const distrusted = [...tables.chains.values()].filter(({ state }) => state === 'distrusted');
  t.equal(distrusted.length, 1);
  const entries = await verifyLog(t, tables, 'the others', { verifier, complete: distrusted.map(({ writer }) => writer) });
  t.match(entries.filter(({ entry }) => entry['action'] === 'log.alert').map(({ entry }) => entry['detail']), [{ kind: 'batch_distrusted', reason: /^batch \d+ has a wrong signature$/u, writer: distrusted[0]!.writer.toString(16).padStart(16, '0') }]);
});

await t.test('a database restored from an older backup is refused in one line that says what to do', async (t) => {
  await appliance.start();
  await appliance.stop();
  const tables = ['writers', 'batches', 'logs', 'log_chains', 'log_batches', 'log_tiles', 'log_checkpoints', 'log_tokens', 'log_facets'];
  await asOwner(...tables.map((table) => `CREATE TABLE backup_${table} AS TABLE ${table}`));
  await appliance.start();
  t.equal((await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(nextCard++) })).status, 201, 'a new start serves again');
  appliance.closeClients();
  await appliance.stop();
  const newest = await witnessed();
  await asOwner(...tables.toReversed().map((table) => `DELETE FROM ${table}`), ...tables.map((table) => `INSERT INTO ${table} SELECT * FROM backup_${table}`), ...tables.map((table) => `DROP TABLE backup_${table}`));
  const { size } = (await tablesNow()).head!;
  // The writers' own notes would be the first to say so.
  rmSync(join(appliance.home, 'writers'), { recursive: true });
  const mark = appliance.err.length;
  const outMark = appliance.out.length;
  t.same(await appliance.launch(), { code: 1, signal: null });
  t.same(plainLines(appliance.err.slice(mark)), [`cofre: a checkpoint of ${newest} entries was witnessed, but the log in the database has ${size}: the database was restored from an older backup, or cut off. If it was restored on purpose, begin a new log that names this one: cofre audit restart`]);
  t.notMatch(appliance.out.slice(outMark), /cofre ready/u);
  t.equal(await witnessed(), newest, 'nothing is signed');
});
