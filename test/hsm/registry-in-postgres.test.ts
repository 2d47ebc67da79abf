// The keyring on the store that it has in production, with an administrator of the database at work behind it.
import { Client, Pool } from 'pg';
import t from 'tap';
import { keyIdOf } from '../../hsm/card-cipher.ts';
import { HsmError } from '../../hsm/errors.ts';
import { postgresKeyStore } from '../../platform-adapters/postgres/key-store.ts';
import { freshDatabase } from '../support/database.ts';
import { hsmError } from './hsm-error.ts';
import { custodies, hsmOf, keyringOf, softKind } from './hsms.ts';
import { receipt } from './receipt.ts';

const digits = Buffer.from('4111111111111111');
const binding = { tenant: 'acme', cardId: Buffer.alloc(16, 7) };

for (const custody of custodies) {
  t.test(`in ${custody} custody`, async (t) => {
    const database = await freshDatabase(t);
    const hsm = await hsmOf(t, softKind);
    const storeOf = (role: 'tokenize' | 'detokenize'): ReturnType<typeof postgresKeyStore> => {
      const pool = new Pool({ ...database.connect(role), max: 4 });
      t.teardown(() => pool.end());
      return postgresKeyStore(pool);
    };
    const admin = new Client({ connectionString: database.adminUrl });
    await admin.connect();
    t.teardown(() => admin.end());

    await t.test('processes of both roles that start at once on an empty database end with the same keys', async (t) => {
      const keyrings = await Promise.all(
        (['tokenize', 'detokenize', 'tokenize', 'detokenize'] as const).map((role) => keyringOf(t, hsm, { custody, store: storeOf(role), uses: role === 'tokenize' ? ['seal'] : ['open'] })),
      );
      const [sealing, opening, sealingToo] = keyrings.map((keyring) => keyring.forTenant('acme'));
      for (const { cipher } of [sealing!, sealingToo!]) t.same(await opening!.cipher.open(receipt(), 'pan', await cipher.seal('pan', digits, binding), binding), digits);
      t.same(await sealing!.fingerprint.compute('acme', digits), await opening!.fingerprint.compute('acme', digits));
      const { rows } = await admin.query<{ kind: string; domain: string; versions: string }>('SELECT kind, domain, count(*) AS versions FROM key_registry GROUP BY kind, domain');
      t.equal(rows.length, 4, 'data and fingerprint of acme and globex');
      t.ok(rows.every(({ versions }) => versions === '1'));
    });

    await t.test('small blocks leased by two processes at once never exceed what a key may seal', async (t) => {
      const limits = { blockSeals: 5, keySeals: 20, keyAgeMs: 86_400_000, aheadMs: 0 };
      const pair = await Promise.all([0, 1].map(() => keyringOf(t, hsm, { custody, store: storeOf('tokenize'), limits })));
      const sealed = (
        await Promise.all(
          pair.map(async (keyring) => {
            const values: Buffer[] = [];
            while (values.length < 45) {
              try {
                values.push(await keyring.forTenant('acme').cipher.seal('pan', digits, binding));
              } catch (error) {
                if (!(error instanceof HsmError && error.kind === 'exhausted')) throw error;
                await new Promise((resolve) => setTimeout(resolve, 1));
              }
            }
            return values;
          }),
        )
      ).flat();
      const seals = new Map<number, number>();
      for (const value of sealed) seals.set(keyIdOf(value), (seals.get(keyIdOf(value)) ?? 0) + 1);
      t.ok(seals.size >= 5);
      for (const count of seals.values()) t.ok(count <= 20);
      for (const value of sealed) t.same(await pair[0]!.forTenant('acme').cipher.open(receipt(), 'pan', value, binding), digits);
    });

    await t.test('any edit by SQL of a row is refused at the next start, and at the next upkeep of a running process', async (t) => {
      const store = storeOf('tokenize');
      const running = await keyringOf(t, hsm, { custody, store });
      for (const edit of [
        `state = 'retired'`,
        'row_version = row_version + 1',
        `created_at = created_at + interval '1 day'`,
        `material = set_byte(material, length(material) - 1, get_byte(material, length(material) - 1) # 1)`,
        `domain = 'acme-old'`,
        `mac = decode(repeat('00', 32), 'hex')`,
      ]) {
        await admin.query('BEGIN');
        await admin.query(`CREATE TEMPORARY TABLE kept ON COMMIT PRESERVE ROWS AS SELECT * FROM key_registry`);
        await admin.query(`UPDATE key_registry SET ${edit} WHERE domain = 'acme'`);
        await admin.query('COMMIT');
        if (edit.startsWith('domain')) {
          // The rows are gone from where they were looked for: new keys are made beside them, and the edited ones open nothing.
          await t.rejects(running.upkeep(), hsmError('corrupt'), edit);
        } else {
          await t.rejects(keyringOf(t, hsm, { custody, store }), hsmError('corrupt'), edit);
          await t.rejects(running.upkeep(), hsmError('corrupt'), edit);
        }
        await admin.query('DELETE FROM key_registry');
        await admin.query('INSERT INTO key_registry SELECT * FROM kept');
        await admin.query('DROP TABLE kept');
        await running.upkeep();
      }
    });

    await t.test('the database holds no key in the clear', async (t) => {
      const { rows } = await admin.query<{ material: Buffer }>('SELECT material FROM key_registry');
      t.ok(rows.length > 0);
      t.ok(rows.every(({ material }) => (custody === 'envelope' ? material[0] === 1 && material.length === 63 : material[0] === 2)));
    });
  });
}
