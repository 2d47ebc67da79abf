import t from 'tap';
import { KeyLifecycle, type KeyLifecycleStore } from '../../hsm/key-lifecycle.ts';
import { hsmError } from './hsm-error.ts';
import { custodies, hsmOf, keyringOf, kinds, memoryStore } from './hsms.ts';
import type { MemoryStore } from './memory-store.ts';
import { receipt } from './receipt.ts';

const digits = Buffer.from('4111111111111111');
const binding = { tenant: 'acme', cardId: Buffer.alloc(16, 7) };

function lifecycleStore(store: MemoryStore, beforeReplace: () => void = () => undefined): KeyLifecycleStore {
  return {
    listKeys: async () => store.rows.map((row) => ({ ...row, leasedSeals: store.leased.get(row.keyId) ?? 0 })),
    async replaceKey(row) {
      beforeReplace();
      const standing = store.rows.find(({ keyId }) => keyId === row.keyId);
      if (standing?.rowVersion !== row.rowVersion - 1) return false;
      store.edit(row.keyId, row);
      return true;
    },
  };
}

for (const kind of kinds) {
  for (const custody of custodies) {
    t.test(`a data key that was retired seals no more and still opens, without a call that fails: ${kind}, ${custody}`, async (t) => {
      const hsm = await hsmOf(t, kind);
      const store = memoryStore(t);
      const keyring = await keyringOf(t, hsm, { custody, store });
      const other = await keyringOf(t, hsm, { custody, store });
      const lifecycle = new KeyLifecycle(lifecycleStore(store), keyring.control);
      const { cipher } = keyring.forTenant('acme');
      const before = Buffer.from(await cipher.seal('pan', digits, binding));
      t.equal(await lifecycle.retire('acme', 1), true);
      t.equal(await lifecycle.retire('acme', 1), false, 'once');
      await cipher.seal('pan', digits, binding);

      // Sealing goes on while every process moves on.
      let sealing = true;
      let sealed = 0;
      const load = (async () => {
        while (sealing) {
          await cipher.seal('pan', digits, binding);
          sealed += 1;
          await new Promise((done) => setImmediate(done));
        }
      })();
      await Promise.all([keyring.upkeep(), other.upkeep()]);
      sealing = false;
      await load;
      t.ok(sealed > 0);
      const after = Buffer.from(await cipher.seal('pan', digits, binding));
      const keys = await lifecycle.list();
      t.same(keys.filter((key) => key.kind === 'data' && key.domain === 'acme').map(({ version, state }) => [version, state]), [[1, 'retired'], [2, 'active']], 'one successor, whoever made it');
      t.not(before.subarray(0, 12).equals(after.subarray(0, 12)), true);
      for (const value of [before, after]) {
        t.same(await cipher.open(receipt(), 'pan', value, binding), digits);
        t.same(await other.forTenant('acme').cipher.open(receipt(), 'pan', value, binding), digits);
      }
    });
  }
}

t.test('what somebody edited is neither listed nor retired, and of two who retire at once one did', async (t) => {
  const hsm = await hsmOf(t, kinds[1]);
  const store = memoryStore(t);
  const keyring = await keyringOf(t, hsm, { custody: 'envelope', store });
  const lifecycle = new KeyLifecycle(lifecycleStore(store), keyring.control);
  await t.rejects(lifecycle.retire('acme', 7), hsmError('not_found'));
  await t.rejects(lifecycle.retire('nobody', 1), hsmError('not_found'));
  t.same((await Promise.all([lifecycle.retire('acme', 1), lifecycle.retire('acme', 1)])).sort(), [false, true]);

  const row = store.rows.find(({ kind, domain }) => kind === 'data' && domain === 'acme')!;
  t.equal(row.rowVersion, 2);
  store.edit(row.keyId, { state: 'active' });
  await t.rejects(lifecycle.list(), hsmError('corrupt'), 'revived');
  await t.rejects(lifecycle.retire('acme', 1), hsmError('corrupt'));
});
