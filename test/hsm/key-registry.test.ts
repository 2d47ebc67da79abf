import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { encodeLabel, KeyRegistry } from '../../hsm/key-registry.ts';
import { memoryStore } from './hsms.ts';
import { storeFailure } from './memory-store.ts';

t.test('upkeep and whoever needs a key settle one row together, and forget none that comes to be unsettled after it', async (t) => {
  const store = memoryStore(t);
  const registry = new KeyRegistry(store, { mac: async () => Buffer.alloc(32, 1) }, () => new Date());
  const unmade: string[] = [];
  const make = async (keyId: number): Promise<Buffer> => encodeLabel(`object ${keyId}`);
  const unmake = async (material: Buffer): Promise<void> => void unmade.push(material.toString('utf8', 1));
  const create = (version: number): Promise<boolean> => registry.create('data', 'acme', version, make, unmake);
  const failTwice = (): void => {
    for (let n = 0; n < 2; n += 1) store.failNext('insertKey');
  };
  // Another process has version 1 meanwhile.
  const other = new KeyRegistry(store, { mac: async () => Buffer.alloc(32, 2) }, () => new Date());

  failTwice();
  await t.rejects(create(1), storeFailure);
  t.ok(await other.create('data', 'acme', 1, make, unmake));

  // The store takes longer over one of two that ask it the same.
  const keyById = store.keyById.bind(store);
  let asked = 0;
  store.keyById = async (keyId) => {
    asked += 1;
    if (asked === 1) await sleep(100);
    return await keyById(keyId);
  };
  const round = registry.settle();
  t.notOk(await create(1), 'it cannot come any more');
  failTwice();
  await t.rejects(create(2), storeFailure);
  await round;
  t.same(unmade, ['object 1'], 'once');

  t.ok(await create(2), 'what came of it is found out before another is made');
  t.same(store.rows.map(({ keyId }) => keyId), [2, 3], 'the row of that key came, and no key was made beside it');
  t.same(unmade, ['object 1']);
});
