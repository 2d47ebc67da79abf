/** When a new log may be begun in the place of the one that the database has, and when that would only lose entries. */
import t from 'tap';
import { restartLog, type RestartedLog, type RestartStore } from '../../audit/restart.ts';
import { origin, signer, TestWriter } from '../support/log-tables.ts';
import { MemoryVault, settle } from '../support/memory-tree-store.ts';

function restart(vault: MemoryVault): Promise<RestartedLog> {
  const store: RestartStore = { ...vault.store(), close: async () => undefined };
  return restartLog({ store, witnesses: [vault.witness()], signer, name: origin, now: new Date() });
}

async function vaultOf(entries: number): Promise<{ readonly vault: MemoryVault; readonly writer: TestWriter }> {
  const vault = new MemoryVault();
  const writer = await TestWriter.start((chain, batch) => vault.tables.insert(chain, batch));
  await writer.commit(entries);
  await settle(vault.sequencer());
  return { vault, writer };
}

t.test('a log that goes on from what was witnessed keeps its place: its last entries would be in none', async (t) => {
  const { vault, writer } = await vaultOf(300);
  await t.rejects(restart(vault), { message: /is the one that was witnessed/u });
  await writer.commit(7);
  await settle(vault.sequencer(), { sign: false });
  await t.rejects(restart(vault), { message: /goes on from what was witnessed: start the vault/u }, 'killed before it was signed');
  t.equal(vault.tables.logs.size, 1);
  await settle(vault.sequencer());
  await vault.verify(t, 'and the vault goes on');
});

t.test('a log that is not what was witnessed is left behind', async (t) => {
  const { vault, writer } = await vaultOf(300);
  const backup = vault.tables.copy();
  await writer.commit(7);
  await settle(vault.sequencer());
  const [signed] = vault.witnessed.toReversed();
  vault.tables = backup.copy();
  t.match(await restart(vault), { origin: `${origin}/2`, predecessor: { size: Number(signed!.split('\n')[1]) }, had: 304 }, 'an older one');

  vault.tables = backup.copy();
  await (await TestWriter.start((chain, batch) => vault.tables.insert(chain, batch))).commit(400);
  const witnessed = vault.witnessed.splice(1);
  await settle(vault.sequencer(), { sign: false });
  vault.witnessed.push(...witnessed);
  t.match(await restart(vault), { origin: `${origin}/2` }, 'a longer one that forked');
});

t.test('a log whose tiles are damaged is left behind', async (t) => {
  const { vault, writer } = await vaultOf(300);
  await writer.commit(7);
  await settle(vault.sequencer(), { sign: false });
  vault.tables.tiles.delete('0/1');
  t.match(await restart(vault), { origin: `${origin}/2` });
});

t.test('a log that was begun anew is begun once more only while it holds nothing', async (t) => {
  const { vault, writer } = await vaultOf(300);
  const backup = vault.tables.copy();
  await writer.commit(7);
  await settle(vault.sequencer());
  vault.tables = backup;
  t.match(await restart(vault), { origin: `${origin}/2` });
  t.match(await restart(vault), { origin: `${origin}/3` }, 'after a crash in the midst of it');
  // The database in memory keeps the tree of one log.
  for (const table of [vault.tables.places, vault.tables.tiles, vault.tables.checkpoints, vault.tables.chains]) table.clear();
  vault.tables.tiles.set('0/0', vault.tables.head!.root);
  await settle(vault.sequencer(), { sign: false });
  t.ok(vault.tables.head!.size > 300);
  await t.rejects(restart(vault), { message: /goes on from what was witnessed/u });
});
