import { generateKeyPairSync, sign } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import t, { type Test } from 'tap';
import { Receipt, WriterChain } from '../../audit/append.ts';
import { checkChain, readWriterCertificate, type Batch } from '../../audit/chain.ts';
import { decodeBundle, type Entry } from '../../audit/entry.ts';
import { encodeVkey, openNote, parseVkey, type NoteSigner } from '../../audit/note.ts';
import { readBatches, readWriters } from '../../audit/store.ts';
import { freshDatabase, type FreshDatabase } from '../support/database.ts';

const origin = 'cofre.test/log';
const { publicKey, privateKey } = generateKeyPairSync('ed25519');
const signer: NoteSigner = { algorithm: 'ed25519', publicKeySpki: publicKey.export({ format: 'der', type: 'spki' }), sign: async (message) => sign(null, message, privateKey) };
const at = new Date('2026-11-24T00:00:00.000Z');
const entry = (action: string): Entry => ({ action, at, outcome: 'allowed' });
const newChain = (): Promise<WriterChain> => WriterChain.start({ role: 'tokenize', origin, signer, now: at });

async function connect(t: Test, database: FreshDatabase, role: 'tokenize' | 'admin' | 'sequencer' = 'tokenize'): Promise<Client> {
  const client = new Client(database.connect(role));
  client.on('error', () => undefined);
  await client.connect();
  t.teardown(() => client.end());
  return client;
}

async function commit(client: Client, chain: WriterChain, batch: Batch, registers = false): Promise<void> {
  await client.query('BEGIN');
  if (registers) await chain.register(client);
  await chain.append(client, batch);
  await client.query('COMMIT');
}

/** The chain as an outsider reads it: its certificate by the log's key, its batches by the certified key. */
async function verifyChain(client: Client, writer: bigint): Promise<{ fault: string | null; batches: Batch[] }> {
  const row = (await readWriters(client)).find((candidate) => candidate.writer === writer);
  const text = openNote(row?.certificate ?? '', [parseVkey(encodeVkey(origin, 'ed25519', signer.publicKeySpki))]);
  const certificate = readWriterCertificate(text ?? '');
  const batches = await Array.fromAsync(readBatches(client, writer, { pageSize: 2 }));
  if (certificate === null || certificate.writer !== writer) return { fault: 'no certificate', batches };
  return { fault: checkChain(batches, certificate.publicKey, (bundle) => decodeBundle(bundle).length), batches };
}

t.test('a receipt cannot be made from outside', async (t) => {
  const chain = await newChain();
  const batch = chain.form([entry('a')], at);
  const [real] = chain.committed(batch);
  for (const key of [Symbol('mint'), Symbol.for('mint'), undefined as unknown as symbol]) t.throws(() => new Receipt(key, batch, 0), { message: 'a receipt is made by a committed batch only' });
  const forged = Object.create(Receipt.prototype) as Receipt;
  t.throws(() => forged.redeem('pan'), TypeError, 'one without its private parts redeems nothing');
  t.throws(() => structuredClone(real!).redeem('pan'), TypeError, 'nor does a copy');
});

t.test('a receipt serves once for each value, and never again', async (t) => {
  const chain = await newChain();
  const [receipt, other] = chain.committed(chain.form([entry('a'), entry('b')], at));
  receipt!.redeem('pan of card 1');
  receipt!.redeem('name of card 1');
  t.throws(() => receipt!.redeem('pan of card 1'), { message: 'a receipt serves once for each value' });
  t.throws(() => receipt!.redeem('name of card 1'));
  t.doesNotThrow(() => other!.redeem('pan of card 1'), 'another entry has its own');
  t.match([receipt!, other!], [{ writer: chain.writer, number: 0n, index: 0 }, { writer: chain.writer, number: 0n, index: 1 }]);
});

t.test('nothing advances before a batch is committed, and only the next batch can be', async (t) => {
  const chain = await newChain();
  t.equal(chain.head(), null);
  const first = chain.form([entry('a')], at);
  t.ok(first.signature.equals(chain.form([entry('a')], at).signature), 'formed again after a rollback, it is the same batch');
  t.equal(chain.nextNumber, 0n);
  const stranger = await newChain();
  t.throws(() => chain.committed(stranger.form([entry('a')], at)), { message: 'a batch was committed out of order' }, 'another writer, though its number is the next');
  chain.committed(first);
  t.match(chain.head(), { writer: chain.writer, number: 0n });
  t.throws(() => chain.committed(first), { message: 'a batch was committed out of order' });
  t.equal(chain.committed(chain.tombstone(at)).length, 0, 'a tombstone gives no receipt');
  t.equal(chain.nextNumber, 2n);
});

t.test('what a writer commits verifies from the database alone', async (t) => {
  const database = await freshDatabase(t);
  const client = await connect(t, database);
  const chain = await newChain();
  for (let number = 0; number < 5; number += 1) {
    const batch = number === 3 ? chain.tombstone(at) : chain.form(Array.from({ length: number + 1 }, (_, i) => entry(`${number}.${i}`)), new Date(at.getTime() + number));
    await commit(client, chain, batch, number === 0);
    chain.committed(batch);
  }
  const { fault, batches } = await verifyChain(await connect(t, database, 'sequencer'), chain.writer);
  t.equal(fault, null);
  t.same(batches.map((batch) => [batch.number, batch.kind, batch.entryCount]), [[0n, 'entries', 1], [1n, 'entries', 2], [2n, 'entries', 3], [3n, 'tombstone', 0], [4n, 'entries', 5]]);
});

/** A registered writer with batch 0 committed, and batch 1 formed. */
async function started(t: Test): Promise<{ database: FreshDatabase; chain: WriterChain; client: Client; second: Client; batch: Batch }> {
  const database = await freshDatabase(t);
  const [client, second] = [await connect(t, database), await connect(t, database)];
  const chain = await newChain();
  const start = chain.form([entry('writer.start')], at);
  await commit(client, chain, start, true);
  chain.committed(start);
  return { database, chain, client, second, batch: chain.form([entry('lost')], at) };
}

t.test('a tombstone buries a batch that never came, which then can never come', async (t) => {
  const { chain, client, second, batch } = await started(t);
  const tombstone = chain.tombstone(at);
  t.equal(await chain.bury(second, tombstone, batch), 'buried');
  t.equal(await chain.bury(second, tombstone, batch), 'buried', 'as often as one asks: the answer to its own COMMIT may have been lost');
  await client.query('BEGIN');
  await t.rejects(chain.append(client, batch), { code: '23505' });
  await client.query('ROLLBACK');
  chain.committed(tombstone);
  const next = chain.form([entry('next')], at);
  await commit(client, chain, next);
  t.equal((await verifyChain(second, chain.writer)).fault, null);
});

t.test('a tombstone finds a batch that was committed, and leaves it as it is', async (t) => {
  const { chain, client, second, batch } = await started(t);
  await commit(client, chain, batch);
  t.equal(await chain.bury(second, chain.tombstone(at), batch), 'committed');
  const { fault, batches } = await verifyChain(second, chain.writer);
  t.equal(fault, null);
  t.same(batches.map((each) => each.kind), ['entries', 'entries']);
});

t.test('a tombstone waits for a batch in flight, whichever way that ends', async (t) => {
  for (const [ending, standing] of [['COMMIT', 'committed'], ['ROLLBACK', 'buried']] as const) {
    const { chain, client, second, batch } = await started(t);
    await client.query('BEGIN');
    await chain.append(client, batch);
    let settled = false;
    const buried = chain.bury(second, chain.tombstone(at), batch).finally(() => (settled = true));
    await untilLockWait(client);
    t.notOk(settled, 'it waits');
    await client.query(ending);
    t.equal(await buried, standing, ending);
  }
});

t.test('a tombstone whose COMMIT is answered by a rollback has decided nothing', async (t) => {
  const { chain, second, batch } = await started(t);
  // What PostgreSQL does with COMMIT in a transaction that failed, without a word of error.
  const rollsBack = { query: (query: string | object) => second.query(query === 'COMMIT' ? 'ROLLBACK' : (query as string)) } as unknown as Client;
  const tombstone = chain.tombstone(at);
  await t.rejects(chain.bury(rollsBack, tombstone, batch), { message: 'COMMIT was answered by a rollback' });
  t.equal((await verifyChain(second, chain.writer)).batches.length, 1, 'it does not stand');
  t.equal(await chain.bury(second, tombstone, batch), 'buried', 'and is repeated');
});

async function untilLockWait(client: Client): Promise<void> {
  for (;;) {
    const { rows } = await client.query<{ waiting: boolean }>("SELECT count(*) > 0 AS waiting FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'");
    if (rows[0]!.waiting) return;
    await sleep(5);
  }
}

t.test('a batch of somebody else under the number proves nothing and is told', async (t) => {
  const { chain, client, second, batch } = await started(t);
  const forged = { ...batch, signature: Buffer.alloc(64, 7) };
  await commit(client, chain, forged);
  await t.rejects(chain.bury(second, chain.tombstone(at), batch), { message: 'the log holds a batch that its writer did not make' });
  t.equal((await verifyChain(client, chain.writer)).fault, 'batch 1 has a wrong signature');
});

t.test('a batch of a kind that was never written is refused by whoever reads it', async (t) => {
  const { database, chain, client, batch } = await started(t);
  await client.query('BEGIN');
  await client.query('INSERT INTO batches (writer, number, kind, formed_at, entry_count, previous, bundle, signature) VALUES ($1, 1, 7, now(), 0, $2, $3, $4)', [chain.writer, batch.previous, batch.bundle, batch.signature]);
  await client.query('COMMIT');
  await t.rejects(Array.fromAsync(readBatches(await connect(t, database, 'sequencer'), chain.writer)), { message: 'the log holds a batch of an unknown kind' });
});

t.test('a batch of an unregistered writer, a second writer of the same id, and a writer of another role are refused by the database', async (t) => {
  const { chain, client, database } = await started(t);
  const stranger = await newChain();
  await t.rejects(stranger.append(client, stranger.form([entry('a')], at)), { code: '42501' });
  await t.rejects(chain.register(await connect(t, database, 'tokenize')), { code: '23505' });
  await t.rejects(chain.register(await connect(t, database, 'admin')), { code: '42501' });
});
