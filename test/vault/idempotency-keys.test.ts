/** Keys that ran out leave the table as fast as they come. What a key tells while it is kept is test/vault/tokenize.test.ts's matter. */
import t from 'tap';
import { sweepIdempotencyKeys } from '../../vault/token-store.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { asOwner } from '../support/memory-vault.ts';

t.test('all keys that ran out are swept, however many, and no other', async (t) => {
  const database = await freshDatabase(t);
  const before = new Date('2026-11-24T12:00:00Z');
  await asOwner(
    database,
    `INSERT INTO idempotency_keys (tenant_id, key_hash, request_mac, tokens, created_tokens, created_at)
     SELECT 1, decode(lpad(to_hex(n + 100), 64, '0'), 'hex'), '', 'tok_', '1', $1::timestamptz + n * interval '1 second' FROM generate_series(-30, 5) AS n`,
    [before],
  );
  await withClient(database.connect('tokenize'), async (client) => {
    t.equal(await sweepIdempotencyKeys(client, before, 10), 31);
    t.equal(await sweepIdempotencyKeys(client, before, 10), 0);
  });
  t.same(await asOwner(database, 'SELECT count(*)::int AS left, min(created_at) AS first FROM idempotency_keys'), [{ left: 5, first: new Date('2026-11-24T12:00:01Z') }]);
});
