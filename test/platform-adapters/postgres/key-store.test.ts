import { randomBytes } from 'node:crypto';
import { Pool } from 'pg';
import t from 'tap';
import type { KeyRow, KeyStore } from '../../../hsm/key-registry.ts';
import { postgresKeyStore } from '../../../platform-adapters/postgres/key-store.ts';
import type { ProcessRole } from '../../../platform-adapters/postgres/roles.ts';
import { freshDatabase } from '../../support/database.ts';

function row(keyId: number, version: number, over: Partial<KeyRow> = {}): KeyRow {
  return { keyId, kind: 'data', domain: 'acme', version, state: 'active', material: randomBytes(63), createdAt: new Date(1_790_000_000_123), rowVersion: 1, mac: randomBytes(32), ...over };
}

t.test('the key store in PostgreSQL', async (t) => {
  const database = await freshDatabase(t);
  const open = (role: ProcessRole): { pool: Pool; store: KeyStore } => {
    const pool = new Pool({ ...database.connect(role), max: 8 });
    t.teardown(() => pool.end());
    return { pool, store: postgresKeyStore(pool) };
  };
  const tokenize = open('tokenize');
  const detokenize = open('detokenize');

  await t.test('gives a row back exactly as it was inserted', async (t) => {
    const inserted = row(await tokenize.store.reserveKeyId(), 1);
    t.equal(await tokenize.store.insertKey(inserted), true);
    t.strictSame(await detokenize.store.keyById(inserted.keyId), inserted);
    t.strictSame(await detokenize.store.latestKey('data', 'acme'), inserted);
  });

  await t.test('has no row for an unknown id, kind or domain', async (t) => {
    t.equal(await tokenize.store.keyById(4_000_000_000), null);
    t.equal(await tokenize.store.latestKey('fingerprint', 'acme'), null);
    t.equal(await tokenize.store.latestKey('data', 'globex'), null);
  });

  await t.test('lets one of many processes insert a version and tells the others', async (t) => {
    const results = await Promise.all(
      Array.from({ length: 8 }, async (_, at) => {
        const { store } = at % 2 === 0 ? tokenize : detokenize;
        return store.insertKey(row(await store.reserveKeyId(), 2));
      }),
    );
    t.equal(results.filter(Boolean).length, 1);
  });

  await t.test('an insert that is repeated waits for the first, and learns what became of it', async (t) => {
    for (const [n, end] of (['COMMIT', 'ROLLBACK'] as const).entries()) {
      const key = row(await tokenize.store.reserveKeyId(), n + 1, { domain: 'repeated' });
      const client = await tokenize.pool.connect();
      await client.query('BEGIN');
      t.equal(await postgresKeyStore(client).insertKey(key), true);
      let answered = false;
      const again = tokenize.store.insertKey(key).finally(() => (answered = true));
      await new Promise((resolve) => setTimeout(resolve, 50));
      t.notOk(answered);
      await client.query(end);
      client.release();
      t.equal(await again, end === 'ROLLBACK');
      t.equal(await tokenize.store.insertKey(key), false);
      t.strictSame(await tokenize.store.keyById(key.keyId), key);
    }
  });

  await t.test('never reserves an id twice', async (t) => {
    const ids = await Promise.all(Array.from({ length: 50 }, () => tokenize.store.reserveKeyId()));
    t.equal(new Set(ids).size, 50);
  });

  await t.test('leases every block once and none beyond the limit', async (t) => {
    const key = row(await tokenize.store.reserveKeyId(), 3);
    await tokenize.store.insertKey(key);
    const sums = await Promise.all(Array.from({ length: 12 }, () => tokenize.store.leaseSeals(key.keyId, 10, 95)));
    t.strictSame(
      sums.filter((sum) => sum !== null).sort((a, b) => a - b),
      [10, 20, 30, 40, 50, 60, 70, 80, 90],
    );
    t.equal(await tokenize.store.leaseSeals(key.keyId, 5, 95), 95);
  });

  await t.test('holds 2^32 leased seals and leases none of a retired or a fingerprint key', async (t) => {
    const key = row(await tokenize.store.reserveKeyId(), 4);
    await tokenize.store.insertKey(key);
    t.equal(await tokenize.store.leaseSeals(key.keyId, 2 ** 32, 2 ** 32), 2 ** 32);
    t.equal(await tokenize.store.leaseSeals(key.keyId, 1, 2 ** 32), null);
    for (const other of [row(await tokenize.store.reserveKeyId(), 5, { state: 'retired' }), row(await tokenize.store.reserveKeyId(), 1, { kind: 'fingerprint' })]) {
      t.equal(await tokenize.store.insertKey(other), true);
      t.equal(await tokenize.store.leaseSeals(other.keyId, 1, 100), null);
    }
  });

  await t.test('a process role changes no key and deletes none, and the other roles see none', async (t) => {
    for (const { pool } of [tokenize, detokenize]) {
      for (const statement of [
        `UPDATE key_registry SET state = 'retired'`,
        `UPDATE key_registry SET material = ''`,
        `UPDATE key_registry SET mac = mac`,
        `UPDATE key_registry SET created_at = now()`,
        'DELETE FROM key_registry',
        'TRUNCATE key_registry',
        `SELECT setval('key_ids', 1)`,
      ]) {
        await t.rejects(pool.query(statement), { code: '42501' }, statement);
      }
    }
    for (const role of ['sequencer', 'relay'] as const) await t.rejects(open(role).pool.query('SELECT key_id FROM key_registry'), { code: '42501' });
    await t.rejects(open('admin').pool.query('DELETE FROM key_registry'), { code: '42501' });
  });
});
