import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import type { Batch } from '../../audit/chain.ts';
import { signCheckpoint } from '../../audit/checkpoint.ts';
import { LogWatch, type LogView } from '../../audit/log-watch.ts';
import { newSigner, signer, TestWriter, type Sink } from '../support/log-tables.ts';
import { MemoryVault, settle } from '../support/memory-tree-store.ts';

const into = (vault: MemoryVault): Sink => (chain, batch) => vault.tables.insert(chain, batch);

/** What a process has at hand of its writer. */
function watched(writer: TestWriter): { lastBatch: { batch: Batch; certificate: string } } {
  return {
    get lastBatch() {
      return { batch: writer.chain.last!, certificate: writer.chain.certificate };
    },
  };
}

async function scene(): Promise<{ vault: MemoryVault; writer: TestWriter; sequencer: ReturnType<MemoryVault['sequencer']>; watch: LogWatch; calls: string[] }> {
  const vault = new MemoryVault();
  const writer = await TestWriter.start(into(vault));
  const sequencer = vault.sequencer();
  const calls: string[] = [];
  const view = new Proxy(vault.view(), {
    get(target, name: keyof LogView) {
      calls.push(name);
      return target[name];
    },
  });
  return { vault, writer, sequencer, watch: new LogWatch(view, signer, [watched(writer)]), calls };
}

t.test('a batch is waited for until a signed checkpoint covers it, and then the next', async (t) => {
  const { writer, sequencer, watch, calls } = await scene();
  t.equal(watch.lagMs(), 0);
  await watch.check();
  await sleep(5);
  t.ok(watch.lagMs() >= 4, 'there is no log yet');
  await sequencer.step();
  await watch.check();
  t.ok(watch.lagMs() > 0, 'in the tree, but nothing signed');
  await sequencer.sign();
  await watch.check();
  t.equal(watch.lagMs(), 0);
  for (let batch = 0; batch < 5; batch += 1) {
    await writer.commit(3);
    await watch.check();
    t.ok(watch.lagMs() > 0);
    await settle(sequencer);
    await watch.check();
    t.equal(watch.lagMs(), 0);
  }
  calls.length = 0;
  for (let times = 0; times < 5; times += 1) await watch.check();
  t.same(calls, [], 'at rest it asks for nothing');
  t.equal(watch.fault, null);
});

t.test('a batch that is missing is waited for, however many come after it', async (t) => {
  const { vault, writer, sequencer, watch } = await scene();
  await settle(sequencer);
  await watch.check();
  await writer.commit();
  await watch.check();
  // The last one, so nobody but its writer can know of it.
  vault.tables.batches.get(writer.id)!.delete(1n);
  for (let times = 0; times < 3; times += 1) {
    await settle(sequencer);
    await watch.check();
    await sleep(2);
  }
  t.ok(watch.lagMs() > 5);
  t.equal(watch.fault, null, 'it may still come');
  t.same(vault.alerts, []);
  // The next one shows the gap to everybody.
  await writer.commit();
  await settle(sequencer);
  t.match(vault.alerts, [{ detail: { writer: writer.chain.name, reason: 'batch 1 is missing' } }]);
  await watch.check();
  t.match(watch.fault, /^the log takes nothing more of writer [0-9a-f]{16}, whose batches were tampered with/u, 'and then no call may go on');
});

t.test('what comes late is found late, under a checkpoint that was seen before', async (t) => {
  const { vault, writer, sequencer } = await scene();
  await settle(sequencer);
  await writer.commit();
  const view = vault.view();
  let late = true;
  const watch = new LogWatch({ ...view, placeOf: async (logId, id, number) => (late ? null : await view.placeOf(logId, id, number)) }, signer, [watched(writer)]);
  await settle(sequencer);
  await watch.check();
  t.ok(watch.lagMs() > 0);
  late = false;
  await watch.check();
  t.equal(watch.lagMs(), 0, 'without a new checkpoint');
});

t.test('a batch that was committed while the log was looked at is found without another checkpoint', async (t) => {
  const { vault, writer, sequencer } = await scene();
  const view = vault.view();
  let meanwhile: (() => Promise<void>) | null = async () => {
    await writer.commit();
    await settle(sequencer);
  };
  const watch = new LogWatch({ ...view, head: async () => ((await meanwhile?.()), (meanwhile = null), await view.head()) }, signer, [watched(writer)]);
  await watch.check();
  await watch.check();
  t.equal(watch.lagMs(), 0);
});

/** What is done to the log behind the watch's back, and what it says. */
const faults: Readonly<Record<string, readonly [RegExp, (vault: MemoryVault, writer: TestWriter, earlier: MemoryVault['tables']) => Promise<void> | void]>> = {
  'another batch in its place': [/^batch 2 of writer [0-9a-f]{16} does not stand in the log where the database says$/u, (vault, { id }) => void vault.tables.places.set(`${id} 2`, { ...vault.tables.places.get(`${id} 2`)!, firstIndex: 1 })],
  'an edited tile': [
    /^(?:batch 2 of writer [0-9a-f]{16} does not stand|the log in the database was rewritten)/u,
    (vault) => {
      const tile = Buffer.from(vault.tables.tiles.get('0/0')!);
      tile[32]! ^= 1;
      vault.tables.tiles.set('0/0', tile);
    },
  ],
  'a shorter log': [/^the log in the database is shorter than it was$/u, (vault, _writer, earlier) => void (vault.tables = earlier)],
  'no log': [/^the log is gone from the database$/u, (vault) => vault.tables.logs.clear()],
  'no checkpoint': [/^the log is gone from the database$/u, (vault) => vault.tables.checkpoints.clear()],
  'a forged checkpoint': [
    /^a checkpoint in the database is not signed by the log's key$/u,
    async (vault) => void vault.tables.checkpoints.set(10_000, await signCheckpoint({ origin: 'cofre.test/log', size: 10_000, root: Buffer.alloc(32) }, newSigner())),
  ],
  'another history': [
    /^the log in the database was rewritten$/u,
    async (vault) => {
      // Signed by the HSM: as if somebody had led it to believe that this is the log.
      const other = new MemoryVault();
      const writer = await TestWriter.start(into(other));
      await writer.commit(50);
      await settle(other.sequencer());
      vault.tables = other.tables;
    },
  ],
  'another root of the same size': [
    /^the log in the database was rewritten$/u,
    async (vault) => {
      const { size } = vault.tables.head!;
      vault.tables.checkpoints.set(size, await signCheckpoint({ origin: 'cofre.test/log', size, root: Buffer.alloc(32) }, signer));
    },
  ],
  'another log': [
    /^another log took the place of the one that this process writes to/u,
    async (vault) => {
      vault.tables.logs.set(2, { ...vault.tables.logs.get(1)!, head: { ...vault.tables.head!, logId: 2, origin: 'cofre.test/log/2' } });
      vault.tables.checkpoints.set(10_000, await signCheckpoint({ origin: 'cofre.test/log/2', size: 10_000, root: Buffer.alloc(32) }, signer));
    },
  ],
};

for (const [what, [fault, change]] of Object.entries(faults)) {
  t.test(`a log with ${what} is a fault for good`, async (t) => {
    const { vault, writer, sequencer, watch } = await scene();
    await settle(sequencer);
    const earlier = vault.tables.copy();
    await writer.commit();
    await settle(sequencer);
    await watch.check();
    t.equal(watch.fault, null);
    await writer.commit();
    if (what !== 'a shorter log' && what !== 'another root of the same size') await settle(sequencer);
    await change(vault, writer, earlier);
    await watch.check();
    t.match(watch.fault, fault);
    vault.tables = earlier;
    await watch.check();
    t.match(watch.fault, fault, 'whatever comes after');
  });
}

t.test('a tile that is missing or short says nothing, and the batch is waited for', async (t) => {
  const { vault, writer, sequencer, watch } = await scene();
  await writer.commit();
  await settle(sequencer);
  const tile = vault.tables.tiles.get('0/0')!;
  vault.tables.tiles.set('0/0', tile.subarray(0, 32));
  await t.rejects(watch.check(), { message: /is not \d+ hashes long/u });
  vault.tables.tiles.delete('0/0');
  await t.rejects(watch.check());
  t.equal(watch.fault, null);
  t.ok(watch.lagMs() > 0);
  vault.tables.tiles.set('0/0', tile);
  await watch.check();
  t.equal(watch.lagMs(), 0);
});
