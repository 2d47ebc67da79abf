/** When a new log may be begun in the place of the one that the database has, and when that would only lose entries. */
import { Pool } from 'pg';
import t from 'tap';
import { batchHeader, chainStart, headerHash, type ChainPosition } from '../../audit/chain.ts';
import { readCharter } from '../../audit/charter.ts';
import { signCheckpoint } from '../../audit/checkpoint.ts';
import { encodeVkey, parseVkey } from '../../audit/note.ts';
import { restartLog, type RestartedLog, type RestartStore } from '../../audit/restart.ts';
import type { StoredChain, Witness } from '../../audit/sequenced-log.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { testSigner } from '../support/group-commit.ts';
import { origin, RawWriter, signer, TestWriter, type LogTables, type Sink } from '../support/log-tables.ts';
import { KeptLog, MemoryWitness, monthsAgo } from '../support/kept-log.ts';
import { MemoryVault, settle } from '../support/memory-tree-store.ts';

function restart(vault: MemoryVault, witness: Witness = vault.witness()): Promise<RestartedLog> {
  const { tables } = vault;
  const store: RestartStore = {
    ...vault.store(),
    written: async () =>
      [...new Set([...tables.writers.keys(), ...tables.chains.keys()])].map((writer) => {
        const numbers = [...(tables.batches.get(writer)?.keys() ?? [])];
        return { writer, last: numbers.length === 0 ? null : numbers.reduce((a, b) => (a > b ? a : b)), chain: tables.chains.get(writer) ?? null };
      }),
    async close(writers, reason) {
      for (const writer of writers) tables.chains.set(writer, { ...tables.chains.get(writer)!, state: 'closed', reason });
    },
  };
  return restartLog({ store, witnesses: [witness], signer, name: origin, now: new Date() });
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

t.test('a log whose tiles are damaged tells nobody what it holds: another backup is asked for', async (t) => {
  const { vault, writer } = await vaultOf(300);
  await writer.commit(7);
  await settle(vault.sequencer(), { sign: false });
  vault.tables.tiles.delete('0/1');
  await t.rejects(restart(vault), { message: /^tile 0\/1 of the log is missing or cut short\. So nobody can tell which batches that log holds, and which a new one must: restore another backup$/u });
  t.equal(vault.tables.logs.size, 1, 'and no log is begun');
});

t.test('a log that was begun anew is begun once more only while it holds nothing', async (t) => {
  const { vault, writer } = await vaultOf(300);
  const backup = vault.tables.copy();
  await writer.commit(7);
  await settle(vault.sequencer());
  vault.tables = backup;
  // The database in memory keeps the tree of one log.
  const forgetTree = (): void => {
    for (const table of [vault.tables.places, vault.tables.tiles, vault.tables.checkpoints]) table.clear();
    vault.tables.tiles.set('0/0', vault.tables.head!.root);
  };
  t.match(await restart(vault), { origin: `${origin}/2` });
  forgetTree();
  t.match(await restart(vault), { origin: `${origin}/3`, carried: 0 }, 'after a crash in the midst of it');
  forgetTree();
  vault.tables.chains.clear();
  await settle(vault.sequencer(), { sign: false });
  t.ok(vault.tables.head!.size > 300);
  await t.rejects(restart(vault), { message: /goes on from what was witnessed/u });
});

t.test('a witness that was away while two logs were begun tells nothing about the third, and is given its checkpoints', async (t) => {
  const { vault } = await vaultOf(300);
  const away = vault.witness();
  const first = await away.last();
  const here = new MemoryWitness();
  await here.publish(first!);
  /** Begins the next log in the place of one whose last entries were lost, as this witness tells, and signs it. */
  const next = async (): Promise<void> => {
    const backup = vault.tables.copy();
    await (await TestWriter.start((chain, batch) => vault.tables.insert(chain, batch))).commit(7);
    await settle(vault.sequencer({ witnesses: [here] }));
    vault.tables = backup;
    await restart(vault, here);
    for (const table of [vault.tables.places, vault.tables.tiles, vault.tables.checkpoints, vault.tables.chains, vault.tables.batches, vault.tables.writers]) table.clear();
    vault.tables.tiles.set('0/0', vault.tables.head!.root);
    await settle(vault.sequencer({ witnesses: [here] }));
  };
  await next();
  await next();
  t.match(await here.last(), new RegExp(`^${origin}/3\n`, 'u'));
  const published: string[] = [];
  const witness: Witness = { last: async () => published.at(-1) ?? first, publish: async (note) => void published.push(note) };
  await settle(vault.sequencer({ witnesses: [witness] }));
  t.match(published, [new RegExp(`^${origin}/3\n`, 'u')]);

  // Nothing but what this vault's key has signed is passed over.
  const forged = first!.replace(/\n\d+\n/u, '\n999\n');
  await t.rejects(settle(vault.sequencer({ witnesses: [{ ...witness, last: async () => forged }] })), { message: /is of another log than .*\/3, or not signed by this log's key$/u });
});

/** A vault that was restored from a backup in which batches 3 to 5 of `writer`, and batch 0 of `young`, stand in no tree. */
async function restored(): Promise<{ readonly vault: MemoryVault; readonly backup: LogTables; readonly writer: TestWriter; readonly young: TestWriter }> {
  const vault = new MemoryVault();
  const into: Sink = (chain, batch) => vault.tables.insert(chain, batch);
  const [other, writer] = [await TestWriter.start(into), await TestWriter.start(into)];
  await other.commit(300);
  await writer.commit(4);
  await writer.commit(4);
  await settle(vault.sequencer());
  await other.stop();
  await settle(vault.sequencer());
  for (let batch = 3; batch < 6; batch += 1) await writer.commit(2);
  const young = await TestWriter.start(into);
  const backup = vault.tables.copy();
  await settle(vault.sequencer());
  vault.tables = backup.copy();
  return { vault, backup, writer, young };
}

t.test('what was committed and stands in no tree goes on in the new log, from where the old tree ends', async (t) => {
  const { vault, backup, writer } = await restored();
  t.match(await restart(vault), { origin: `${origin}/2`, carried: 1 });
  const charter = readCharter(vault.tables.logs.get(2)!.firstLeaf, [parseVkey(encodeVkey(origin, signer.algorithm, signer.publicKeySpki))]);
  t.match(charter?.carried, [{ writer: writer.id, next: 3n, previous: backup.chains.get(writer.id)!.position.previous, certificate: writer.chain.certificate }]);
});

/** What a database administrator does to one column of a chain, or to what would give it away; none of it changes what the HSM signs. */
const tamperings: Readonly<Record<string, { readonly message: RegExp | null; readonly tamper: (tables: LogTables, writer: TestWriter, young: TestWriter) => void }>> = {
  'nothing': { message: null, tamper: () => undefined },
  'reason': { message: null, tamper: (tables, { id }) => void tables.chains.set(id, { ...tables.chains.get(id)!, reason: 'moved' }) },
  'next, past a batch': { message: /that the log holds its batches up to 3, and it does not/u, tamper: (tables, { id }) => moveTo(tables, id, 4n) },
  'next, past a batch that it places': {
    message: /that the log holds its batches up to 3, and it does not/u,
    tamper(tables, { id }) {
      moveTo(tables, id, 4n);
      tables.places.set(`${id} 3`, { firstIndex: 5, writer: id, number: 3n, entryCount: 2 });
    },
  },
  'next, past all batches': { message: /that the log holds its batches up to 5, and it does not/u, tamper: (tables, { id }) => moveTo(tables, id, 6n) },
  'next and state, past all batches': {
    message: /that the log holds its batches up to 5, and it does not/u,
    tamper(tables, { id }) {
      moveTo(tables, id, 6n);
      tables.chains.set(id, { ...tables.chains.get(id)!, state: 'closed' });
    },
  },
  'next alone': { message: /that the log holds its batches up to 3, and it does not/u, tamper: (tables, { id }) => void tables.chains.set(id, withPosition(tables, id, { next: 4n })) },
  'next, back over a batch': { message: /that batch 2 comes next, which stands in the log as entry \d+/u, tamper: (tables, { id }) => moveTo(tables, id, 2n) },
  'next, back over a batch that it takes from its place': {
    message: /that batch 2 comes next, which stands in the log as entry \d+/u,
    tamper(tables, { id }) {
      moveTo(tables, id, 2n);
      tables.places.delete(`${id} 2`);
    },
  },
  'next, back to the beginning': { message: /that batch 0 comes next, which stands in the log as entry \d+/u, tamper: (tables, { id }) => void tables.chains.set(id, withPosition(tables, id, chainStart)) },
  'previous': { message: /that the log holds its batches up to 2, and it does not/u, tamper: (tables, { id }) => void tables.chains.set(id, withPosition(tables, id, { previous: Buffer.alloc(32, 7) })) },
  'formed_at, later': { message: /that the log holds its batches up to 2, and it does not/u, tamper: (tables, { id }) => void tables.chains.set(id, withPosition(tables, id, { formedAt: new Date('2099-01-01') })) },
  'formed_at, gone': { message: /that the log holds its batches up to 2, and it does not/u, tamper: (tables, { id }) => void tables.chains.set(id, withPosition(tables, id, { formedAt: null })) },
  'state, closed': { message: /that it ended with batch 2, which does not say so/u, tamper: (tables, { id }) => void tables.chains.set(id, { ...tables.chains.get(id)!, state: 'closed' }) },
  'state, distrusted': { message: /that nothing is to be taken of it from batch 3 on, which is as it must be/u, tamper: (tables, { id }) => void tables.chains.set(id, { ...tables.chains.get(id)!, state: 'distrusted' }) },
  'state, distrusted, and the batch before is gone': {
    message: /that the log holds its batches up to 2, and it does not/u,
    tamper(tables, { id }) {
      tables.chains.set(id, { ...tables.chains.get(id)!, state: 'distrusted' });
      tables.batches.get(id)!.delete(2n);
    },
  },
  'writer, so that the chain is nobody\'s': {
    message: /that batch 0 comes next, which stands in the log as entry \d+/u,
    tamper(tables, { id }) {
      tables.chains.set(5n, { ...tables.chains.get(id)!, writer: 5n });
      tables.chains.delete(id);
      for (let number = 0n; number < 3n; number += 1n) tables.places.delete(`${id} ${number}`);
    },
  },
  'writer, so that the chain is another\'s': {
    message: /that the log holds its batches up to 2, and it does not/u,
    tamper(tables, { id }, young) {
      tables.chains.set(young.id, { ...tables.chains.get(id)!, writer: young.id });
    },
  },
  'the place of the last batch': { message: /that the log holds its batches up to 2, and it does not/u, tamper: (tables, { id }) => void tables.places.delete(`${id} 2`) },
  'the certificate': { message: /what its certificate is, which the HSM did not sign/u, tamper: (tables, { id }, young) => void tables.writers.set(id, tables.writers.get(young.id)!) },
  'the certificate, padded': {
    message: /what its certificate is, which the HSM did not sign/u,
    tamper(tables, { id }) {
      const known = tables.writers.get(id)!;
      tables.writers.set(id, { ...known, certificate: `${known.certificate}${'— somebody AAAAAAAA\n'.repeat(60)}` });
    },
  },
  'the writer': { message: /what its certificate is, which the HSM did not sign/u, tamper: (tables, { id }) => void tables.writers.delete(id) },
};

/** The row as it would be if the tree held the batches before `next`. */
function moveTo(tables: LogTables, writer: bigint, next: bigint): void {
  const before = tables.batches.get(writer)!.get(next - 1n)!;
  tables.chains.set(writer, withPosition(tables, writer, { next, previous: headerHash(batchHeader(before)), formedAt: before.formedAt }));
}

function withPosition(tables: LogTables, writer: bigint, position: Partial<ChainPosition>): StoredChain & { readonly reason: string | null } {
  const chain = tables.chains.get(writer)!;
  return { ...chain, position: { ...chain.position, ...position } };
}

t.test('whatever an administrator changes about a chain in the restored database, no log begins from it', async (t) => {
  const { vault, backup, writer, young } = await restored();
  for (const [what, { message, tamper }] of Object.entries(tamperings)) {
    vault.tables = backup.copy();
    tamper(vault.tables, writer, young);
    if (message === null) t.match(await restart(vault), { carried: 1 }, what);
    else {
      await t.rejects(restart(vault), { message: new RegExp(`^of writer [0-9a-f]{16} the database says ${message.source}.*: it was tampered with, and entries would be lost or come twice\\. Restore another backup$`, 'u') }, what);
      t.equal(vault.tables.logs.size, 1, `${what}: no log was begun`);
    }
  }
});

t.test('what a sequencer distrusted, and what stands behind an end, is left where it was', async (t) => {
  const vault = new MemoryVault();
  const into: Sink = (chain, batch) => vault.tables.insert(chain, batch);
  const [forged, holed, ended] = [await TestWriter.start(into), await TestWriter.start(into), await TestWriter.start(into)];
  for (const writer of [forged, holed, ended]) await writer.commit();
  await settle(vault.sequencer());
  vault.tables.put({ ...forged.form(), signature: Buffer.alloc(64) });
  holed.form();
  await holed.commit();
  await ended.stop();
  await settle(vault.sequencer());
  t.equal(vault.alerts.length, 2);
  await ended.commit();
  const backup = vault.tables.copy();
  await (await TestWriter.start(into)).commit();
  await settle(vault.sequencer());
  vault.tables = backup;
  t.match(await restart(vault), { origin: `${origin}/2`, carried: 0 });
  t.same([forged, holed, ended].map(({ id }) => vault.tables.chains.get(id)!.state), ['distrusted', 'distrusted', 'closed'], 'the last is told of by the sequencer of the new log');
});

t.test('what a writer signed that no log takes is left where it was: it stops no restart', async (t) => {
  const vault = new MemoryVault();
  const into: Sink = (chain, batch) => vault.tables.insert(chain, batch);
  const [reserved, early] = [await TestWriter.start(into), await RawWriter.make()];
  const start = early.start();
  vault.tables.insert({ writer: early.id, certificate: early.certificate, startedAt: new Date() }, start);
  await settle(vault.sequencer());
  await reserved.commit([{ action: 'log.start', at: new Date(), outcome: 'allowed' }]);
  vault.tables.put(early.batch(start, [], 'entries'));
  await settle(vault.sequencer());
  t.same([reserved, early].map(({ id }) => vault.tables.chains.get(id)!.state), ['distrusted', 'distrusted']);
  const backup = vault.tables.copy();
  await (await TestWriter.start(into)).commit();
  await settle(vault.sequencer());
  vault.tables = backup;
  t.match(await restart(vault), { origin: `${origin}/2`, carried: 0 });
});

t.test('a chain that was silent for months goes on behind tiles that were taken out of the database', async (t) => {
  const vault = new MemoryVault();
  const into: Sink = (chain, batch) => vault.tables.insert(chain, batch);
  let now = monthsAgo(6);
  const [other, silent] = [await TestWriter.start(into, { now: () => now }), await TestWriter.start(into, { now: () => now })];
  const grow = async (writer: TestWriter, entries: number): Promise<void> => {
    await writer.commit(entries);
    await settle(vault.sequencer());
  };
  await grow(other, 300);
  await grow(silent, 1);
  await grow(other, 600);
  now = new Date();
  await grow(other, 300);
  await grow(other, 300);
  await silent.commit(2);
  await TestWriter.start(into);
  const backup = vault.tables.copy();
  await settle(vault.sequencer());
  const place = backup.places.get(`${silent.id} 1`)!.firstIndex;
  t.equal(Math.floor(place / 256), 1);

  const without = async (...tiles: number[]): Promise<RestartedLog> => {
    vault.tables = backup.copy();
    for (const tile of tiles) vault.tables.tiles.delete(`0/${tile}`);
    return await restart(vault);
  };
  t.match(await without(0, 2), { origin: `${origin}/2`, carried: 1 }, 'the tile of its last batch is there');
  await t.rejects(without(0, 2, 4), { message: /^tile 0\/4 of the log is missing/u }, 'what is younger than three months is never taken out');
});

t.test('a log may be begun once more after one in which a writer\'s clock was ahead', async (t) => {
  const now = new Date();
  const kept = await KeptLog.open(t, new Date(now.getTime() + 600_000));
  await kept.commit(300);
  await kept.sequence();
  /** As if the log had gone on, and its end were lost. */
  const again = async (): Promise<RestartedLog> => {
    const { origin: log, size } = (await kept.store.head())!;
    const note = await signCheckpoint({ origin: log, size: size + 5, root: Buffer.alloc(32, 7) }, testSigner);
    return await restartLog({ store: kept.store, witnesses: [{ publish: async () => undefined, last: async () => note }], signer: testSigner, name: origin, now });
  };
  t.match(await again(), { origin: `${origin}/2`, carried: 0 });
  t.match(await again(), { origin: `${origin}/3`, carried: 0 });

  // What no earlier log holds either is not taken for a chain of it.
  await kept.commit(10);
  const owner = new Pool(adminConnection(kept.database.adminUrl));
  t.teardown(() => owner.end());
  const { rows } = await owner.query<{ writer: string; number: string }>('SELECT writer, number FROM batches b WHERE number >= (SELECT next FROM log_chains c WHERE c.writer = b.writer) ORDER BY number DESC LIMIT 1');
  const batch = (await kept.store.batch(BigInt(rows[0]!.writer), BigInt(rows[0]!.number)))!;
  await owner.query('UPDATE log_chains SET next = $2, previous = $3, formed_at = $4 WHERE writer = $1', [batch.writer, batch.number + 1n, headerHash(batchHeader(batch)), batch.formedAt]);
  await t.rejects(again(), { message: /the database says that the log holds its batches up to \d+, and it does not: it was tampered with/u });
});
