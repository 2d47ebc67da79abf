import t, { type Test } from 'tap';
import { encodeBatchLeaf } from '../../audit/batch-leaf.ts';
import { decodeBundle, encodeBundle, encodeEntry } from '../../audit/entry.ts';
import { batchHeader, headerHash, writerCertificateText, writerName, type Batch } from '../../audit/chain.ts';
import { leafHash } from '../../audit/merkle.ts';
import { signNote } from '../../audit/note.ts';
import { LogFault } from '../../audit/sequenced-log.ts';
import type { Sequencer } from '../../audit/sequencer.ts';
import { TileBuilder, tileWidthAt } from '../../audit/tiles.ts';
import { monthsAgo } from '../support/kept-log.ts';
import { newSigner, origin, RawWriter, signer, TestWriter, type Predecessor, type Sink } from '../support/log-tables.ts';
import { Injected, MemoryVault, settle, writes, type Write } from '../support/memory-tree-store.ts';

const into = (vault: MemoryVault): Sink => (chain, batch) => vault.tables.insert(chain, batch);

/** Steps and signs as the role does, through failures: a new instance takes over after each. Returns how many were needed. */
async function goOn(vault: MemoryVault): Promise<number> {
  for (let instances = 1; ; instances += 1) {
    try {
      await settle(vault.sequencer());
      return instances;
    } catch (error) {
      if (!(error instanceof Injected) || instances > 5) throw error;
    }
  }
}

t.test('batches of many writers come into one tree, each writer\'s in order, by the time of the batches', async (t) => {
  const vault = new MemoryVault();
  let clock = Date.parse('2026-11-25T00:00:00.000Z');
  const now = (): Date => new Date((clock += 1));
  const writers = await Promise.all([1, 2, 3].map(() => TestWriter.start(into(vault), { now })));
  for (let round = 0; round < 20; round += 1) for (const [index, writer] of writers.entries()) await writer.commit(1 + ((round * 7 + index) % 40));
  await writers[0]!.bury();
  const sequencer = vault.sequencer({ maxLeaves: 100, maxBatches: 3 });
  t.equal(await sequencer.sign(), null, 'nothing is signed before the tree was read');
  await sequencer.open();
  await vault.verify(t, 'a log of its charter only');
  let steps = 0;
  for (let more = true; more; steps += 1) {
    const step = await sequencer.step();
    more = step.more;
    await sequencer.sign();
    await vault.verify(t, 'in the midst of it');
  }
  t.ok(steps > 10, `${steps} steps`);
  const entries = await vault.verify(t, 'all of it', { complete: [] });
  t.equal(entries.length, 3 + writers.reduce((sum, _writer, index) => sum + Array.from({ length: 20 }, (_, round) => 1 + ((round * 7 + index) % 40)).reduce((a, b) => a + b), 0));
  t.same(await sequencer.step(), { leaves: 0, batches: 0, oldest: null, more: false });
  t.equal(await sequencer.sign(), null, 'nothing new, no signature');
  t.equal(vault.witnessed.length, vault.tables.checkpoints.size);
});

t.test('a step takes the batch that was formed first, whoever formed it', async (t) => {
  const vault = new MemoryVault();
  const times = [5, 1, 3];
  const writers = await Promise.all(times.map((second) => TestWriter.start(into(vault), { now: () => new Date(second * 1000) })));
  const step = await vault.sequencer().step();
  t.equal(step.oldest?.getTime(), 1000);
  t.same([...vault.tables.places.values()].map(({ writer }) => writer), [writers[1]!.id, writers[2]!.id, writers[0]!.id]);
});

t.test('every write fails once, before it takes effect and after: a new instance loads, goes on, and the log is whole', async (t) => {
  for (const write of writes) {
    for (const when of ['before', 'after'] as const) {
      // The n-th of its kind, up to the last that there is.
      for (let nth = 0; ; nth += 1) {
        const vault = new MemoryVault();
        const failed = await crashOn(t, vault, write, when, nth);
        if (!failed) {
          t.ok(nth > 0, `${write} was met ${nth} times`);
          break;
        }
      }
    }
  }
});

/** A short life of a log in which the `nth` write of a kind fails. False if there was none. */
async function crashOn(t: Test, vault: MemoryVault, write: Write, when: 'before' | 'after', nth: number): Promise<boolean> {
  const message = `${write} ${nth} failed ${when}`;
  let failed = false;
  let sequencer = vault.sequencer({ maxLeaves: 20 });
  const attempt = async (work: () => Promise<unknown>): Promise<void> => {
    for (let tries = 0; tries < 4; tries += 1) {
      if (!failed && vault.tried[write] >= nth && !vault.failing) vault.fail(write, when);
      try {
        await work();
        return;
      } catch (error) {
        if (!(error instanceof Injected)) throw error;
        failed = true;
        await vault.verify(t, `${message}: as it was left`);
        // Twice as another instance, and twice as the same one, which reads the tree again.
        if (tries % 2 === 0) sequencer = vault.sequencer({ maxLeaves: 20 });
      }
    }
    throw new Error(`${message}: does not go on`);
  };
  const writer = await TestWriter.start(into(vault));
  const other = await TestWriter.start(into(vault));
  for (let round = 0; round < 3; round += 1) {
    await writer.commit(15);
    await other.commit(3);
    await attempt(() => sequencer.step());
    await attempt(() => sequencer.sign());
  }
  // An alert, too.
  vault.tables.put({ ...other.form(), signature: Buffer.alloc(64) });
  await attempt(() => settle(sequencer));
  await writer.stop();
  await attempt(() => settle(sequencer));
  await vault.verify(t, message, { complete: [other.id] });
  t.equal(Number(vault.witnessed.at(-1)!.split('\n')[1]), vault.tables.head!.size, `${message}: the last head is published`);
  t.ok(vault.alerts.length >= 1 && vault.alerts.every(({ detail }) => detail['writer'] === other.chain.name), `${message}: the alert was raised`);
  return failed;
}

t.test('an instance that was killed anywhere is followed by one that goes on', async (t) => {
  const vault = new MemoryVault();
  const writer = await TestWriter.start(into(vault));
  for (let round = 0; round < 12; round += 1) {
    await writer.commit(30);
    vault.fail(writes[round % 4]!, round % 2 === 0 ? 'before' : 'after');
    await goOn(vault);
    await vault.verify(t, `round ${round}`, { complete: [] });
  }
});

t.test('two instances at once, in every order of their calls: no batch twice, none lost, one history', async (t) => {
  const turns = 10;
  let lost = 0;
  for (let order = 0; order < 2 ** (turns + 1); order += 1) {
    const vault = new MemoryVault();
    const writers = [await TestWriter.start(into(vault)), await TestWriter.start(into(vault))];
    // Half of them with a past.
    if (order % 2 === 1) await settle(vault.sequencer());
    for (const writer of writers) await writer.commit(2);
    const schedule = new Schedule(order >> 1, turns);
    vault.gate = (instance) => schedule.turn(instance);
    const instances = [vault.sequencer({}, 0), vault.sequencer({}, 1)];
    const work = async (sequencer: Sequencer, index: number): Promise<void> => {
      for (let round = 0; round < 2; round += 1) {
        const { leaves, more } = await sequencer.step();
        if (leaves === 0 && more) lost += 1;
        await sequencer.sign();
      }
      schedule.leave(index);
    };
    await Promise.all(instances.map(work));
    vault.gate = async () => undefined;
    await settle(instances[0]!);
    // One assertion for each order would be thousands.
    if (order % 97 === 0) await vault.verify(t, `order ${order.toString(2)}`, { complete: [] });
    else await quietly((quiet) => vault.verify(quiet, `order ${order.toString(2)}`, { complete: [] }));
  }
  t.ok(lost > 50, `${lost} steps found that another was faster`);
});

/** Lets two instances make their calls in a given order, and both go on when that is used up. */
class Schedule {
  readonly #order: number[];
  readonly #waiting = new Map<number, () => void>();
  readonly #left = new Set<number>();

  constructor(bits: number, turns: number) {
    this.#order = Array.from({ length: turns }, (_, turn) => (bits >> turn) & 1);
  }

  async turn(instance: number): Promise<void> {
    if (this.#order.length === 0) return;
    await new Promise<void>((resolve) => {
      this.#waiting.set(instance, resolve);
      this.#next();
    });
  }

  leave(instance: number): void {
    this.#left.add(instance);
    this.#next();
  }

  #next(): void {
    // Both have asked, or one has ended: then the order decides, as far as it can.
    if (this.#waiting.size + this.#left.size < 2 && this.#order.length > 0) return;
    const wanted = this.#order.shift() ?? 0;
    const chosen = this.#waiting.has(wanted) ? wanted : 1 - wanted;
    const resolve = this.#waiting.get(chosen);
    this.#waiting.delete(chosen);
    resolve?.();
    if (this.#order.length === 0) {
      for (const go of this.#waiting.values()) go();
      this.#waiting.clear();
    }
  }
}

/** Runs assertions that only failures show of. */
async function quietly(work: (t: Test) => Promise<unknown>): Promise<void> {
  const quiet = {
    same(found: unknown, wanted: unknown, message: string) {
      if (JSON.stringify(found) !== JSON.stringify(wanted)) throw new Error(`${message}: ${JSON.stringify(found)}`);
    },
  };
  await work(quiet as unknown as Test);
}

/** What a database administrator does to the batches of one writer while another goes on, before they are in the tree. */
const tamperings: Readonly<Record<string, { readonly reason: RegExp; readonly tamper: (vault: MemoryVault, victim: TestWriter) => Promise<void> | void }>> = {
  'deletes a batch in the middle': { reason: /^batch 2 is missing$/u, tamper: (vault, { id }) => void vault.tables.batches.get(id)!.delete(2n) },
  'deletes the first batch': { reason: /^batch 0 is missing$/u, tamper: (vault, { id }) => void vault.tables.batches.get(id)!.delete(0n) },
  'swaps two batches': {
    reason: /^batch 1 does not follow its predecessor$/u,
    tamper(vault, { id }) {
      const chain = vault.tables.batches.get(id)!;
      const [one, two] = [chain.get(1n)!, chain.get(2n)!];
      vault.tables.put({ ...two, number: 1n });
      vault.tables.put({ ...one, number: 2n });
    },
  },
  'repeats a batch': { reason: /^batch 4 does not follow its predecessor$/u, tamper: (vault, { id }) => vault.tables.put({ ...vault.tables.batches.get(id)!.get(3n)!, number: 4n }) },
  'forges a batch': {
    reason: /^batch 4 has a wrong signature$/u,
    async tamper(vault, victim) {
      const stranger = await TestWriter.start(() => undefined);
      const last = vault.tables.batches.get(victim.id)!.get(3n)!;
      vault.tables.put({ ...stranger.form(), writer: victim.id, number: 4n, previous: headerHash(batchHeader(last)), formedAt: last.formedAt });
    },
  },
  'exchanges the certificate': {
    reason: /^its certificate is not the HSM's$/u,
    async tamper(vault, { id }) {
      const stranger = await TestWriter.start(() => undefined);
      vault.tables.writers.set(id, { ...vault.tables.writers.get(id)!, certificate: stranger.chain.certificate });
    },
  },
  'pads the certificate': {
    reason: /^its certificate is not the HSM's$/u,
    tamper(vault, { id }) {
      const known = vault.tables.writers.get(id)!;
      vault.tables.writers.set(id, { ...known, certificate: `${known.certificate}${'— somebody AAAAAAAA\n'.repeat(90)}— somebody ${Buffer.alloc(60_000).toString('base64')}\n` });
    },
  },
  'removes the writer': { reason: /^its certificate is not the HSM's$/u, tamper: (vault, { id }) => void vault.tables.writers.set(id, { ...vault.tables.writers.get(id)!, certificate: '' }) },
  'puts a batch behind the stop': {
    reason: /^batch 5 stands behind the end of the chain$/u,
    async tamper(_vault, victim) {
      await victim.stop();
      await victim.commit();
    },
  },
  'has a writer bring a leaf of the log': { reason: /^batch 4 holds what is no entry of a writer$/u, tamper: async (_vault, victim) => void (await victim.commit([{ action: 'log.batch', at: new Date(), outcome: 'allowed' }])) },
  'has a writer bring a charter': { reason: /^batch 4 holds what is no entry of a writer$/u, tamper: async (_vault, victim) => void (await victim.commit([{ action: 'log.start', at: new Date(), outcome: 'allowed' }])) },
};

for (const [what, { reason, tamper }] of Object.entries(tamperings)) {
  for (const live of [false, true]) {
    t.test(`an administrator ${what} ${live ? 'of a writer that is known' : 'of a writer that is new'}: told of by name, and others go on`, async (t) => {
      if (live && /first|certificate|removes/u.test(what)) return void t.pass('is in the tree already');
      const vault = new MemoryVault();
      const [victim, other] = [await TestWriter.start(into(vault)), await TestWriter.start(into(vault))];
      const sequencer = vault.sequencer();
      if (live) await settle(sequencer);
      for (let batch = 0; batch < 3; batch += 1) {
        await victim.commit(3);
        await other.commit(3);
      }
      await tamper(vault, victim);
      const { id } = victim;
      await settle(sequencer);
      await vault.verify(t, 'after it', { complete: [id] });
      t.equal(vault.alerts.length, 1, 'one alert');
      t.match(vault.alerts[0], { kind: 'batch_distrusted', detail: { writer: writerName(id), reason } });
      t.match(vault.tables.chains.get(id), { state: 'distrusted', reason });
      const size = vault.tables.head!.size;
      // Nothing of it ever again, by this instance or another.
      vault.tables.put(victim.form());
      await other.commit(2);
      await settle(sequencer);
      t.equal(vault.tables.head!.size, size + 3);
      await other.commit(2);
      await settle(vault.sequencer());
      t.equal(vault.tables.head!.size, size + 6);
      t.equal(vault.alerts.length, 1, 'still one alert');
      await vault.verify(t, 'later', { complete: [id] });
    });
  }
}

t.test('whatever is changed in a batch is told of, unless it changes nothing', async (t) => {
  const edits: Record<string, (batch: Batch) => Batch> = {
    kind: (batch) => ({ ...batch, kind: 'tombstone' }),
    'formed at': (batch) => ({ ...batch, formedAt: new Date(batch.formedAt.getTime() + 1) }),
    'formed never': (batch) => ({ ...batch, formedAt: Number.POSITIVE_INFINITY as unknown as Date }),
    'formed at no time': (batch) => ({ ...batch, formedAt: new Date(Number.NaN) }),
    count: (batch) => ({ ...batch, entryCount: batch.entryCount + 1 }),
    'negative count': (batch) => ({ ...batch, entryCount: -1 }),
    'no previous': (batch) => ({ ...batch, previous: Buffer.alloc(0) }),
    'previous is null': (batch) => ({ ...batch, previous: null as unknown as Buffer }),
    'bundle is cut': (batch) => ({ ...batch, bundle: batch.bundle.subarray(0, -1) }),
    'bundle is empty': (batch) => ({ ...batch, bundle: Buffer.alloc(0) }),
    'no signature': (batch) => ({ ...batch, signature: Buffer.alloc(0) }),
  };
  const length = 40;
  for (const field of ['previous', 'bundle', 'signature'] as const) {
    for (let place = 0; place < length; place += 1) {
      edits[`${field} ${place}`] = (batch) => {
        const bytes = Buffer.from(batch[field]);
        bytes[Math.floor((place * bytes.length) / length)]! ^= 1 << (place % 8);
        return { ...batch, [field]: bytes };
      };
    }
  }
  for (const [what, edit] of Object.entries(edits)) {
    const vault = new MemoryVault();
    const [victim, other] = [await TestWriter.start(into(vault)), await TestWriter.start(into(vault))];
    await victim.commit(2);
    vault.tables.put(edit(vault.tables.batches.get(victim.id)!.get(1n)!));
    await victim.commit(2);
    await other.commit();
    await settle(vault.sequencer());
    t.match(vault.alerts, [{ kind: 'batch_distrusted', detail: { writer: victim.chain.name, next: 1, reason: /^batch 1 / } }], what);
    t.equal(vault.alerts.length, 1, what);
    await quietly((quiet) => vault.verify(quiet, what, { complete: [victim.id] }));
  }
});

t.test('entries that a verifier would not read do not come into the tree', async (t) => {
  const entry = encodeEntry({ action: 'tokenize', at: new Date(), outcome: 'allowed' }).toString('utf8');
  const bad: Readonly<Record<string, Buffer>> = {
    'not JSON': Buffer.from('tokenize'),
    'not an object': Buffer.from('[]'),
    null: Buffer.from('null'),
    nothing: Buffer.alloc(0),
    'no version': Buffer.from(entry.replace(',"v":1', '')),
    'another version': Buffer.from(entry.replace('"v":1', '"v":2')),
    'a space': Buffer.from(entry.replace('{', '{ ')),
    'out of order': Buffer.from(entry.replace(/^\{("action":"[^"]*"),("at":"[^"]*")/u, '{$2,$1')),
    'a name twice': Buffer.from(entry.replace('"v":1', '"v":1,"v":1')),
    'not UTF-8': Buffer.concat([Buffer.from(entry.slice(0, 12)), Buffer.from([0xff]), Buffer.from(entry.slice(12))]),
    'half a character': Buffer.from(entry.replace('tokenize', 'tok\\ud800nize')),
    'no action': Buffer.from(entry.replace('"action":"tokenize",', '')),
  };
  for (const [what, bytes] of Object.entries(bad)) await refused(t, what, 'batch 1 holds what is no entry of a writer', (raw, start) => [start, raw.batch(start, [bytes])]);
  const good = Buffer.from(entry);
  await refused(t, 'a tombstone that holds something', 'batch 1 holds entries in a tombstone, or none outside of one', (raw, start) => [start, raw.batch(start, [good], 'tombstone')]);
  await refused(t, 'entries that are none', 'batch 1 holds entries in a tombstone, or none outside of one', (raw, start) => [start, raw.batch(start, [])]);
  const begins = 'batch 0 does not tell of its writer\'s start';
  await refused(t, 'a writer without a start', begins, (raw) => [raw.batch(null, [good])]);
  await refused(t, 'the start of another', begins, (raw) => [raw.batch(null, [encodeEntry({ action: 'writer.start', at: new Date(), outcome: 'allowed', detail: { writer: '0000000000000000' } })])]);
  await refused(t, 'a tombstone for a start', begins, (raw) => [raw.batch(null, [], 'tombstone')]);
  await refused(t, 'an entry beyond what a leaf may be', 'batch 1 is not a batch', (raw, start) => [start, { ...raw.batch(start, [good]), bundle: Buffer.from([0xff, 0xff]) }], /^batch 1 /u);
});

/** Has a writer bring batches of which the last one must not come into the tree. */
async function refused(t: Test, what: string, reason: string, batches: (raw: RawWriter, start: Batch) => Batch[], pattern: RegExp | string = reason): Promise<void> {
  const vault = new MemoryVault();
  const [raw, other] = [await RawWriter.make(), await TestWriter.start(into(vault))];
  for (const batch of batches(raw, raw.start())) vault.tables.insert({ writer: raw.id, certificate: raw.certificate, startedAt: new Date() }, batch);
  await other.commit();
  await settle(vault.sequencer());
  t.match(vault.alerts, [{ detail: { writer: raw.name, reason: pattern } }], what);
  await quietly((quiet) => vault.verify(quiet, what, { complete: [raw.id] }));
}

t.test('a batch of more entries than any writer commits at once is not cut up', async (t) => {
  const vault = new MemoryVault();
  const [raw, other] = [await RawWriter.make(), await TestWriter.start(into(vault))];
  const start = raw.start();
  vault.tables.insert({ writer: raw.id, certificate: raw.certificate, startedAt: new Date() }, start);
  const entry = encodeEntry({ action: 'validate', at: new Date(), outcome: 'allowed' });
  vault.tables.put(raw.batch(start, Array.from({ length: 65_537 }, () => entry)));
  await other.commit();
  await settle(vault.sequencer());
  t.match(vault.alerts, [{ kind: 'batch_distrusted', detail: { writer: raw.name, reason: 'batch 1 is not a batch', next: 1 } }]);
  await vault.verify(t, 'the others go on', { complete: [raw.id] });
});

t.test('a forged writer is told of, and so are many, in a few alerts', async (t) => {
  const vault = new MemoryVault();
  const other = await TestWriter.start(into(vault));
  const thief = newSigner();
  const forged = await Promise.all(Array.from({ length: 40 }, () => TestWriter.start(into(vault), { by: thief })));
  await settle(vault.sequencer());
  t.equal(vault.alerts.length, 17);
  t.match(vault.alerts[0], { kind: 'batch_distrusted', detail: { reason: 'its certificate is not the HSM\'s' } });
  t.same(vault.alerts.at(-1), { kind: 'more_alerts', detail: { alerts: 24 } });
  await other.commit();
  await settle(vault.sequencer());
  t.equal(vault.alerts.length, 17, 'once');
  await vault.verify(t, 'the others go on', { complete: forged.map(({ id }) => id) });
});

t.test('many forged writers bury nothing that is told of others', async (t) => {
  const vault = new MemoryVault();
  const [dead, victim] = [await TestWriter.start(into(vault)), await TestWriter.start(into(vault))];
  await dead.commit();
  vault.tables.batches.get(dead.id)!.delete(1n);
  const sequencer = vault.sequencer();
  await settle(sequencer);
  const thief = newSigner();
  for (let count = 0; count < 20; count += 1) await TestWriter.start(into(vault), { by: thief });
  const successor = await TestWriter.start(into(vault), { predecessor: dead.left });
  vault.tables.put({ ...victim.form(), signature: Buffer.alloc(64) });
  await settle(sequencer);
  const named = vault.alerts.map(({ kind, detail }) => [kind, detail['writer'], detail['successor']]);
  t.same(named.slice(0, 2), [['predecessor_missing', dead.chain.name, successor.chain.name], ['batch_distrusted', victim.chain.name, undefined]]);
  t.same(vault.alerts.at(-1), { kind: 'more_alerts', detail: { alerts: 6 } });
});

t.test('nothing of a distrusted writer is left behind before the alert is told', async (t) => {
  const vault = new MemoryVault();
  const victim = await TestWriter.start(into(vault));
  const sequencer = vault.sequencer();
  await settle(sequencer);
  vault.tables.put({ ...victim.form(), signature: Buffer.alloc(64) });
  for (let tries = 0; tries < 3; tries += 1) {
    vault.fail('alert', 'before');
    await t.rejects(sequencer.step(), { message: 'alert failed' });
    t.equal(vault.tables.chains.get(victim.id)!.state, 'open');
  }
  await settle(sequencer);
  t.equal(vault.tables.chains.get(victim.id)!.state, 'distrusted');
  t.equal(vault.alerts.length, 1);
});

t.test('a successor names the last batch of a dead writer: whoever cuts it off is told of', async (t) => {
  for (const [what, cut, reason] of [
    ['the last', 1, 'batch 3 is missing, which its successor names as the last'],
    ['all but the start', 3, 'batch 3 is missing, which its successor names as the last'],
    ['all', 4, 'batch 3 is missing, which its successor names as the last'],
  ] as const) {
    for (const known of [false, true]) {
      const vault = new MemoryVault();
      const dead = await TestWriter.start(into(vault));
      for (let batch = 0; batch < 3; batch += 1) await dead.commit();
      const { left } = dead;
      for (let number = 4 - cut; number < 4; number += 1) vault.tables.batches.get(dead.id)!.delete(BigInt(number));
      if (cut === 4) {
        vault.tables.batches.delete(dead.id);
        vault.tables.writers.delete(dead.id);
      }
      const sequencer = vault.sequencer();
      if (known) await settle(sequencer);
      const successor = await TestWriter.start(into(vault), { predecessor: left });
      await successor.commit();
      await settle(sequencer);
      t.match(vault.alerts, [{ kind: 'predecessor_missing', detail: { writer: dead.chain.name, successor: successor.chain.name, reason } }], `${what}, ${known ? 'seen before' : 'seen together'}`);
      t.equal(vault.alerts.length, 1);
      await vault.verify(t, what, { complete: [dead.id] });
    }
  }
});

t.test('a tail that was exchanged for another is told of by the successor', async (t) => {
  const vault = new MemoryVault();
  const dead = await TestWriter.start(into(vault));
  await dead.commit();
  await settle(vault.sequencer());
  // Its host remembers another batch under that number: the key was stolen, or the machine.
  const successor = await TestWriter.start(into(vault), { predecessor: { ...dead.left, hash: Buffer.alloc(32, 7) } });
  await dead.commit();
  await settle(vault.sequencer());
  t.match(vault.alerts, [{ kind: 'predecessor_differs', detail: { writer: dead.chain.name, successor: successor.chain.name, reason: /^batch 1 is not the one that its successor saw committed$/ } }]);
  t.equal(vault.alerts.length, 1);
  await vault.verify(t, 'what is signed is taken', { complete: [] });
});

t.test('a successor waits until its predecessor\'s tail is in the tree, however long that is, and through several', async (t) => {
  const vault = new MemoryVault();
  let clock = 0;
  const first = await TestWriter.start(into(vault), { now: () => new Date((clock += 1000)) });
  for (let batch = 0; batch < 50; batch += 1) await first.commit(2);
  // Their clocks are behind: they would come first.
  const second = await TestWriter.start(into(vault), { predecessor: first.left, now: () => new Date(0) });
  await second.commit(2);
  const third = await TestWriter.start(into(vault), { predecessor: second.left, now: () => new Date(0) });
  const sequencer = vault.sequencer({ maxBatches: 5 });
  for (let steps = 0; steps < 30; steps += 1) {
    await sequencer.step();
    await vault.verify(t, `step ${steps}`);
  }
  await vault.verify(t, 'in the end', { complete: [] });
  t.same(vault.alerts, []);
  const order = [...vault.tables.places.values()].map(({ writer }) => writer);
  t.ok(order.lastIndexOf(first.id) < order.indexOf(second.id) && order.lastIndexOf(second.id) < order.indexOf(third.id));
  t.equal(vault.tables.chains.get(first.id)!.state, 'open');
  // Its host noted the last batch a little late: what it committed after is taken all the same.
  await first.commit();
  await settle(sequencer);
  await vault.verify(t, 'a late one', { complete: [] });
});

t.test('a predecessor that is closed has no batch to come', async (t) => {
  const vault = new MemoryVault();
  const first = await TestWriter.start(into(vault));
  await first.stop();
  await settle(vault.sequencer());
  t.equal(vault.tables.chains.get(first.id)!.state, 'closed');
  const second = await TestWriter.start(into(vault), { predecessor: first.left });
  await settle(vault.sequencer());
  await vault.verify(t, 'a clean succession', { complete: [] });
  t.equal(vault.tables.chains.get(first.id)!.state, 'closed', 'stays closed');
  await TestWriter.start(into(vault), { predecessor: { ...first.left, last: 2n } });
  await second.commit();
  await settle(vault.sequencer());
  t.match(vault.alerts, [{ kind: 'predecessor_missing', detail: { writer: first.chain.name, reason: 'batch 2 is missing, which its successor names as the last' } }]);
});

t.test('what a start entry says of another writer, by mistake or as a lie, is told of and changes nothing for that writer', async (t) => {
  for (const [what, kind, claim] of [
    ['a batch that is to come', 'predecessor_missing', ({ left }) => ({ ...left, last: left.last + 1n })],
    ['a batch that never comes', 'predecessor_missing', ({ left }) => ({ ...left, last: 999n })],
    ['another batch', 'predecessor_differs', ({ left }) => ({ ...left, hash: Buffer.alloc(32, 7) })],
    ['its last batch, although it goes on', null, ({ left }) => left],
  ] as readonly (readonly [string, string | null, (victim: TestWriter) => Predecessor])[]) {
    for (const live of [false, true]) {
      const vault = new MemoryVault();
      const sequencer = vault.sequencer();
      const victim = await TestWriter.start(into(vault));
      await victim.commit();
      if (live) await settle(sequencer);
      const liar = await TestWriter.start(into(vault), { predecessor: claim(victim) });
      await settle(sequencer);
      const told = kind === null ? [] : [{ kind, detail: { writer: victim.chain.name, successor: liar.chain.name } }];
      t.match(vault.alerts, told, what);
      t.equal(vault.alerts.length, told.length, what);
      t.equal(vault.tables.chains.get(victim.id)!.state, 'open', `${what}: nobody is distrusted`);
      t.same(await vault.view().distrusts([victim.id, liar.id]), []);
      for (const instance of [sequencer, vault.sequencer()]) {
        await victim.commit(3);
        await instance.step();
        t.equal(vault.tables.chains.get(victim.id)!.position.next, victim.chain.nextNumber, `${what}: it is taken in the next step`);
      }
      await victim.stop();
      await settle(vault.sequencer());
      t.equal(vault.alerts.length, told.length, what);
      await vault.verify(t, what, { complete: [] });
    }
  }
});

t.test('a tail that was cut off is told of, whatever the database says of the chain', async (t) => {
  for (const state of ['open', 'closed'] as const) {
    for (const placed of [false, true]) {
      for (const cut of [true, false]) {
        const vault = new MemoryVault();
        const dead = await TestWriter.start(into(vault));
        await dead.commit();
        await settle(vault.sequencer());
        await dead.commit(2);
        const { left } = dead;
        const batch = vault.tables.batches.get(dead.id)!.get(2n)!;
        // The row says that the tree holds what it does not hold.
        vault.tables.chains.set(dead.id, { writer: dead.id, position: { next: 3n, previous: left.hash, formedAt: batch.formedAt }, state, reason: null });
        if (placed) vault.tables.places.set(`${dead.id} 2`, { firstIndex: 3, writer: dead.id, number: 2n, entryCount: 2 });
        if (cut) vault.tables.batches.get(dead.id)!.delete(2n);
        const successor = await TestWriter.start(into(vault), { predecessor: left });
        await settle(vault.sequencer());
        const what = `${state}, ${placed ? 'placed' : 'not placed'}, ${cut ? 'cut off' : 'left there'}`;
        t.match(vault.alerts, [{ kind: 'predecessor_missing', detail: { writer: dead.chain.name, successor: successor.chain.name, reason: 'batch 2, which its successor names as the last, is not in the tree as the database says' } }], what);
        t.equal(vault.alerts.length, 1, what);
        t.equal(vault.tables.chains.get(successor.id)!.position.next, 1n, `${what}: the successor goes on`);
      }
    }
  }
});

t.test('a predecessor that left the database with what is old is not missed', async (t) => {
  const old = monthsAgo(5);
  for (const closed of [true, false]) {
    for (const [what, notedAt, more, told] of [
      ['its host was off for months', old, {}, []],
      ['its host does not say since when', undefined, {}, ['predecessor_missing']],
      ['its host was not off for as long', new Date(), {}, ['predecessor_missing']],
      ['a batch that no chain had', old, { last: 99n }, ['predecessor_missing']],
      ['another last batch', old, { hash: Buffer.alloc(32, 7) }, ['predecessor_differs']],
    ] as const) {
      const vault = new MemoryVault();
      const first = await TestWriter.start(into(vault), { now: () => old });
      await first.commit(2);
      const { left } = closed ? { left: await first.stop().then(() => first.left) } : first;
      await settle(vault.sequencer());
      // As retention leaves them: an end that nothing can follow goes too.
      if (!closed) await first.commit(2);
      await settle(vault.sequencer());
      const kept = first.left.last;
      for (let number = 0n; number <= kept - (closed ? 0n : 1n); number += 1n) {
        vault.tables.batches.get(first.id)!.delete(number);
        vault.tables.places.delete(`${first.id} ${number}`);
      }
      // Of a chain that goes on behind it, nobody can tell any more.
      const seen = closed ? told : told.filter((kind) => kind !== 'predecessor_differs');
      const successor = await TestWriter.start(into(vault), { predecessor: { ...left, ...more, ...(notedAt === undefined ? {} : { notedAt }) } });
      await settle(vault.sequencer());
      t.same(vault.alerts.map(({ kind }) => kind), seen, `${closed ? 'closed' : 'open'}, ${what}`);
      t.equal(vault.tables.chains.get(successor.id)!.position.next, 1n, `${what}: the successor goes on`);
    }
  }
});

t.test('writers that wait for one another, for themselves or for nobody hold nobody up for long', async (t) => {
  const vault = new MemoryVault();
  // Only who has their keys can.
  const circle = await circleOf(vault);
  const good = await TestWriter.start(into(vault));
  // Honest, in the place of one of them.
  const start = vault.tables.batches.get(circle[1]!.id)!.get(0n)!;
  const behind = await TestWriter.start(into(vault), { predecessor: { writer: circle[1]!.name, last: 0n, hash: headerHash(batchHeader(start)) } });
  const sequencer = vault.sequencer();
  let steps = 0;
  for (let more = true; more && steps < 50; steps += 1) {
    await good.commit();
    more = (await sequencer.step(true)).more;
  }
  t.ok(steps < 10, `${steps} steps, although others write in each`);
  t.same(await sequencer.step(true), { leaves: 0, batches: 0, oldest: null, more: false }, 'at rest');
  const told = vault.alerts.map(({ kind, detail }) => [kind, detail['writer'], detail['successor']]);
  t.same(told.filter(([kind]) => kind === 'predecessor_missing').length, 2, 'one of those that waited for one another, and the one that named itself');
  t.same(told.filter(([kind]) => kind === 'predecessor_differs').length, 1, 'the other, which then found what it named');
  t.same(new Set(told.map(([, , successor]) => successor)), new Set(circle.map(({ name }) => name)), 'each under its name');
  t.equal(vault.tables.chains.get(behind.id)!.position.next, 1n, 'and who is behind them goes on');
  await vault.verify(t, 'nobody is left out', { complete: [] });
});

t.test('who waits with more than one step takes does not keep out the one that it waits for, nor anybody else', async (t) => {
  const vault = new MemoryVault();
  const first = await TestWriter.start(into(vault));
  const good = await TestWriter.start(into(vault));
  const waiting = await TestWriter.start(into(vault), { predecessor: first.left, now: () => new Date(0) });
  for (let batch = 0; batch < 20; batch += 1) await waiting.commit(20);
  const sequencer = vault.sequencer({ maxBytes: 10_000 });
  let steps = 0;
  for (let more = true; more && steps < 50; steps += 1) ({ more } = await sequencer.step(true));
  t.ok(steps < 50, `${steps} steps`);
  t.equal(vault.tables.chains.get(good.id)?.position.next, 1n);
  await vault.verify(t, 'in the end', { complete: [] });
  t.same(vault.alerts, []);
});

/** Two writers whose first batches each name the other's, and one that names its own. */
async function circleOf(vault: MemoryVault): Promise<RawWriter[]> {
  const writers = [await RawWriter.make(), await RawWriter.make(), await RawWriter.make()];
  for (const [index, writer] of writers.entries()) {
    const named = writers[[1, 0, 2][index]!]!;
    const start = encodeEntry({ action: 'writer.start', at: new Date(), outcome: 'allowed', detail: { predecessor: named.name, predecessor_hash: '00'.repeat(32), predecessor_last: '0', writer: writer.name } });
    vault.tables.insert({ writer: writer.id, certificate: writer.certificate, startedAt: new Date() }, writer.batch(null, [start]));
  }
  return writers;
}

t.test('a batch that is put behind the end of a chain long after is told of', async (t) => {
  const vault = new MemoryVault();
  const writer = await TestWriter.start(into(vault));
  await writer.stop();
  await settle(vault.sequencer());
  vault.tables.put(writer.form());
  await settle(vault.sequencer());
  t.match(vault.alerts, [{ detail: { writer: writer.chain.name, reason: 'batch 2 stands behind the end of the chain' } }]);
  await settle(vault.sequencer());
  t.equal(vault.alerts.length, 1, 'once');
  await vault.verify(t, 'the log', { complete: [writer.id] });
});

/** A step finds that the log is not what was signed. */
async function faults(t: Test, sequencer: Sequencer, kind: LogFault['kind'] | null, message = /./u): Promise<void> {
  const error: unknown = await sequencer.step().then(() => null, (thrown: unknown) => thrown);
  if (!(error instanceof LogFault)) return void t.fail(`no fault of the log, but ${String(error)}`);
  if (kind !== null) t.equal(error.kind, kind);
  t.match(error.message, message);
}

/** What a database administrator does to the tree after it was signed, and the fault that it is seen as. */
const rewritings: Readonly<Record<string, { readonly kind: LogFault['kind']; readonly message: RegExp; readonly rewrite: (vault: MemoryVault, earlier: MemoryVault['tables'], writer: TestWriter) => void }>> = {
  'edits a tile at the edge': { kind: 'corrupt', message: /do not give its root/u, rewrite: (vault) => flip(vault, '0/1') },
  'deletes a tile at the edge': { kind: 'corrupt', message: /tile 0\/1 of the log is missing or cut short/u, rewrite: (vault) => void vault.tables.tiles.delete('0/1') },
  'cuts a tile short': { kind: 'corrupt', message: /missing or cut short/u, rewrite: (vault) => void vault.tables.tiles.set('0/1', vault.tables.tiles.get('0/1')!.subarray(0, 32)) },
  'turns the head back': {
    kind: 'behind_witness',
    message: /a checkpoint of \d+ entries was witnessed, but the log in the database has \d+/u,
    rewrite: (vault, earlier) => void vault.tables.logs.set(1, { ...earlier.logs.get(1)! }),
  },
  'rolls everything back': { kind: 'behind_witness', message: /restored from an older backup/u, rewrite: (vault, earlier) => void (vault.tables = earlier) },
  'deletes the last checkpoint': { kind: 'behind_witness', message: /the checkpoint of \d+ entries, which was witnessed, is gone/u, rewrite: (vault) => void vault.tables.checkpoints.delete(Math.max(...vault.tables.checkpoints.keys())) },
  'deletes all checkpoints': { kind: 'behind_witness', message: /which was witnessed, is gone/u, rewrite: (vault) => vault.tables.checkpoints.clear() },
  'forges a checkpoint': { kind: 'rewritten', message: /a stored checkpoint is not signed/u, rewrite: (vault) => void vault.tables.checkpoints.set(10_000, `cofre.test/log\n10000\n${Buffer.alloc(32).toString('base64')}\n\n— cofre.test/log AAAAAAAA\n`) },
  'exchanges the charter': { kind: 'rewritten', message: /was not begun by this vault/u, rewrite: (vault) => void vault.tables.logs.set(1, { ...vault.tables.logs.get(1)!, firstLeaf: Buffer.from('{}') }) },
  'deletes the log': {
    kind: 'behind_witness',
    message: /the database has no log, but a checkpoint of one was witnessed/u,
    rewrite(vault) {
      vault.tables.logs.clear();
      vault.tables.tiles.clear();
    },
  },
  'turns a chain back': {
    kind: 'rewritten',
    message: /stands in the log already/u,
    rewrite(vault, earlier, writer) {
      vault.tables.chains.set(writer.id, earlier.chains.get(writer.id)!);
    },
  },
  'forgets a chain': { kind: 'rewritten', message: /stands in the log already/u, rewrite: (vault, _earlier, writer) => void vault.tables.chains.delete(writer.id) },
  'moves a chain on, past a batch': {
    kind: 'rewritten',
    message: /the log does not hold batch \d+ of writer [0-9a-f]{16}, from which the database says that it goes on/u,
    rewrite(vault, _earlier, writer) {
      const skipped = writer.form();
      vault.tables.put(skipped);
      const known = vault.tables.chains.get(writer.id)!;
      vault.tables.chains.set(writer.id, { ...known, position: { next: skipped.number + 1n, previous: headerHash(batchHeader(skipped)), formedAt: skipped.formedAt } });
      // And says that it stands where another does.
      vault.tables.places.set(`${writer.id} ${skipped.number}`, { firstIndex: 5, writer: writer.id, number: skipped.number, entryCount: 1 });
      vault.tables.put(writer.form());
    },
  },
  'moves a chain on, past a batch that it deletes': {
    kind: 'rewritten',
    message: /the log does not hold batch \d+ of writer [0-9a-f]{16}, from which the database says that it goes on/u,
    rewrite(vault, _earlier, writer) {
      const skipped = writer.form();
      const known = vault.tables.chains.get(writer.id)!;
      vault.tables.chains.set(writer.id, { ...known, position: { next: skipped.number + 1n, previous: headerHash(batchHeader(skipped)), formedAt: skipped.formedAt } });
      vault.tables.places.set(`${writer.id} ${skipped.number}`, { firstIndex: 5, writer: writer.id, number: skipped.number, entryCount: 1 });
      vault.tables.put(writer.form());
    },
  },
};

/** Puts a batch into the tree as a step would, whatever it is, and moves its chain on. */
function append(vault: MemoryVault, batch: Batch): void {
  const { tables } = vault;
  const head = tables.head!;
  const edges = new Map<number, Buffer>();
  for (let level = 0; Math.floor(head.size / 256 ** level) > 0; level += 1) {
    const index = Math.floor(head.size / 256 ** (level + 1));
    const width = tileWidthAt(level, index, head.size);
    if (width > 0) edges.set(level, tables.tiles.get(`${level}/${index}`)!.subarray(0, width * 32));
  }
  const builder = new TileBuilder(head.size, edges);
  for (const leaf of [encodeBatchLeaf(batch, batch.number === 0n ? tables.writers.get(batch.writer)!.certificate : null), ...decodeBundle(batch.bundle)]) builder.append(leafHash(leaf));
  tables.logs.set(1, { ...tables.logs.get(1)!, head: { ...head, size: builder.size, root: builder.frontier().root() } });
  for (const { level, index, hashes } of builder.take()) tables.tiles.set(`${level}/${index}`, hashes);
  tables.put(batch);
  tables.places.set(`${batch.writer} ${batch.number}`, { firstIndex: head.size, writer: batch.writer, number: batch.number, entryCount: batch.entryCount });
  tables.chains.set(batch.writer, { writer: batch.writer, position: { next: batch.number + 1n, previous: headerHash(batchHeader(batch)), formedAt: batch.formedAt }, state: 'open', reason: null });
}

const nobodys = /has leaves behind its last checkpoint that are no writer's, from \d+ on/u;
/** What a database administrator puts behind the last checkpoint. */
const additions: Readonly<Record<string, (vault: MemoryVault, writer: TestWriter) => Promise<void> | void>> = {
  'an entry that he made up': (vault, writer) => {
    const batch = writer.form();
    const bundle = encodeBundle([encodeEntry({ action: 'detokenize', at: new Date(), outcome: 'allowed', caller: 'spiffe://cofre.test/tenant/acme/service/framed' })]);
    append(vault, { ...batch, bundle });
  },
  'a writer that he made up': async (vault) => {
    const forger = await RawWriter.make();
    const start = forger.start();
    vault.tables.insert({ writer: forger.id, certificate: await signNote(writerCertificateText(forger.id, 'tokenize', newSigner().publicKeySpki, new Date()), origin, newSigner()), startedAt: new Date() }, start);
    append(vault, start);
  },
  'a batch, and leaves out the one before it': (vault, writer) => {
    vault.tables.put(writer.form());
    append(vault, writer.form());
  },
  'two batches in the wrong order': (vault, writer) => {
    const first = writer.form();
    append(vault, writer.form());
    append(vault, first);
  },
  'a batch with fewer entries': (vault, writer) => {
    const batch = writer.form(3);
    append(vault, { ...batch, entryCount: 2, bundle: encodeBundle(decodeBundle(batch.bundle).slice(0, 2)) });
  },
  'a batch behind a stop': async (vault, writer) => {
    append(vault, writer.form([{ action: 'writer.stop', at: new Date(), outcome: 'allowed', detail: { writer: writer.chain.name } }]));
    append(vault, writer.form());
  },
  'a batch that is not in the database': (vault, writer) => {
    const batch = writer.form();
    append(vault, batch);
    vault.tables.batches.get(writer.id)!.delete(batch.number);
  },
  'nothing, but another root': (vault) => {
    const log = vault.tables.logs.get(1)!;
    vault.tables.tiles.set('0/1', Buffer.concat([vault.tables.tiles.get('0/1')!, Buffer.alloc(32, 7)]));
    const builder = new TileBuilder(0, new Map());
    for (const path of ['0/0', '0/1']) for (let at = 0; at < vault.tables.tiles.get(path)!.length; at += 32) builder.append(vault.tables.tiles.get(path)!.subarray(at, at + 32));
    vault.tables.logs.set(1, { ...log, head: { ...log.head, size: builder.size, root: builder.frontier().root() } });
  },
};

for (const [what, add] of Object.entries(additions)) {
  t.test(`an administrator puts into the tree ${what}: nobody signs it`, async (t) => {
    const vault = new MemoryVault();
    const writer = await TestWriter.start(into(vault));
    const sequencer = vault.sequencer();
    await writer.commit(299);
    await writer.commit(3);
    await settle(sequencer);
    await add(vault, writer);
    const signed = vault.tried.checkpoint;
    await writer.commit();
    // The one at work meets another head than its own, and reads the tree.
    t.same(await sequencer.step(), { leaves: 0, batches: 0, oldest: null, more: true });
    for (const instance of [sequencer, vault.sequencer()]) {
      await faults(t, instance, 'rewritten', nobodys);
      t.equal(await instance.sign(), null);
    }
    t.equal(vault.tried.checkpoint, signed);
  });
}

t.test('what steps appended and nobody signed is gone on from, whoever\'s batches they are', async (t) => {
  const vault = new MemoryVault();
  const writers = [await TestWriter.start(into(vault)), await TestWriter.start(into(vault)), await TestWriter.start(into(vault))];
  await settle(vault.sequencer());
  for (let round = 0; round < 5; round += 1) {
    for (const writer of writers) await writer.commit(40);
    await writers[round % 3]!.bury();
    writers.push(await TestWriter.start(into(vault), { predecessor: writers[1]!.left }));
    if (round === 3) await writers.splice(0, 1)[0]!.stop();
    await settle(vault.sequencer(), { sign: round % 2 === 1 });
  }
  t.ok(vault.tables.head!.size > Math.max(...vault.tables.checkpoints.keys()), 'some of it is unsigned');
  await settle(vault.sequencer());
  await vault.verify(t, 'all of it', { complete: [] });
});

function flip(vault: MemoryVault, path: string): void {
  const tile = Buffer.from(vault.tables.tiles.get(path)!);
  tile[0]! ^= 1;
  vault.tables.tiles.set(path, tile);
}

for (const [what, { kind, message, rewrite }] of Object.entries(rewritings)) {
  t.test(`an administrator ${what}: a new instance refuses, and signs nothing`, async (t) => {
    const vault = new MemoryVault();
    const writer = await TestWriter.start(into(vault));
    const sequencer = vault.sequencer();
    await writer.commit(150);
    await settle(sequencer);
    const earlier = vault.tables.copy();
    await writer.commit(150);
    await settle(sequencer);
    const signed = vault.tried.checkpoint;
    rewrite(vault, earlier, writer);
    const next = vault.sequencer();
    for (let tries = 0; tries < 2; tries += 1) {
      await faults(t, next, kind, message);
      await next.sign();
    }
    t.equal(vault.tried.checkpoint, signed, 'nothing is signed');
    t.same(vault.alerts, []);
    // The one that knows what it signed sees it as soon as it reads again, even without a witness.
    if (/tile|checkpoint|chain/u.test(what)) return;
    sequencer.forget();
    await faults(t, sequencer, null);
    t.equal(await sequencer.sign(), null);
  });
}

t.test('an instance without a witness of its own remembers what it signed', async (t) => {
  const vault = new MemoryVault();
  const writer = await TestWriter.start(into(vault));
  const sequencer = vault.sequencer({ witnesses: [] });
  await sequencer.step();
  const earlier = vault.tables.copy();
  await writer.commit(3);
  await settle(sequencer);
  vault.tables = earlier;
  sequencer.forget();
  await faults(t, sequencer, 'behind_witness');
  vault.tables.logs.clear();
  vault.tables.tiles.clear();
  await faults(t, sequencer, 'behind_witness', /has no log/u);
});

t.test('what the database lost in a failover is not signed', async (t) => {
  const vault = new MemoryVault();
  const writer = await TestWriter.start(into(vault));
  const sequencer = vault.sequencer();
  await settle(sequencer);
  const replica = vault.tables.copy();
  await writer.commit(5);
  await sequencer.step();
  const lost = vault.tables;
  vault.tables = replica;
  t.equal(await sequencer.sign(), null);
  await vault.verify(t, 'the replica is as it was');
  // The writer's batch is lost with it, and is written again by the next.
  for (const [writerId, chain] of lost.batches) vault.tables.batches.set(writerId, chain);
  await settle(sequencer);
  await vault.verify(t, 'and goes on', { complete: [] });
});

t.test('an HSM that is slow or away holds up no step, and what it missed is signed at once', async (t) => {
  const vault = new MemoryVault();
  const writer = await TestWriter.start(into(vault));
  let answers: (() => void) | null = null;
  let away = false;
  const sequencer = vault.sequencer({
    signer: {
      ...signer,
      sign: async (message) => {
        if (away) throw new Error('HSM is away');
        if (answers !== null) await new Promise<void>((resolve) => (answers = resolve));
        return await signer.sign(message);
      },
    },
  });
  await settle(sequencer);
  answers = () => undefined;
  await writer.commit(5);
  await sequencer.step();
  const signing = sequencer.sign();
  t.equal(sequencer.sign(), signing, 'one at a time');
  const size = sequencer.head!.size;
  for (let batch = 0; batch < 5; batch += 1) {
    await writer.commit(5);
    await sequencer.step();
  }
  t.equal(sequencer.head!.size, size + 30);
  answers();
  answers = null;
  t.equal((await signing)!.size, size, 'of the head that was there when it began');
  away = true;
  for (let tries = 0; tries < 3; tries += 1) {
    await writer.commit(5);
    await sequencer.step();
    await t.rejects(sequencer.sign(), { message: 'HSM is away' });
  }
  away = false;
  t.equal((await sequencer.sign())!.size, size + 48);
  await vault.verify(t, 'all of it', { complete: [] });
});

t.test('a tree that is read while a checkpoint is under way waits for it', async (t) => {
  const vault = new MemoryVault();
  const writer = await TestWriter.start(into(vault));
  const sequencer = vault.sequencer({ signer: { ...signer, sign: async (message) => (await new Promise((resolve) => setTimeout(resolve, 20)), await signer.sign(message)) } });
  await settle(sequencer);
  for (let round = 0; round < 5; round += 1) {
    await writer.commit(3);
    await sequencer.step();
    const signing = sequencer.sign();
    sequencer.forget();
    await writer.commit(3);
    await sequencer.step();
    await signing;
  }
  await settle(sequencer);
  await vault.verify(t, 'all of it', { complete: [] });
});

t.test('of many writers that are silent a few are looked at each time, and each in its turn', async (t) => {
  const vault = new MemoryVault();
  const silent = await Promise.all(Array.from({ length: 300 }, () => TestWriter.start(into(vault))));
  const sequencer = vault.sequencer({ maxActive: 4 });
  await settle(sequencer, { sign: false });
  const lively = silent[7]!;
  await lively.commit();
  for (let steps = 0; steps < 6; steps += 1) await sequencer.step();
  t.equal(vault.tables.chains.get(lively.id)!.position.next, 2n, 'within a round');
  const store = vault.store();
  let asked = 0;
  const counting = vault.sequencer({ maxActive: 4, store: { ...store, pending: async (positions, limit, maxBytes) => ((asked = positions.length), await store.pending(positions, limit, maxBytes)) } });
  await counting.step();
  t.equal(asked, 4 + 64);
  await counting.step(true);
  t.equal(asked, 300, 'all, where it must be thorough');
  for (const writer of silent.slice(0, 30)) await writer.commit();
  for (let steps = 0; steps < 6; steps += 1) await counting.step();
  await vault.verify(t, 'all of it', { complete: [] });
});

t.test('a step holds as many bytes as it may, and one batch at least', async (t) => {
  const vault = new MemoryVault();
  const writers = [await TestWriter.start(into(vault)), await TestWriter.start(into(vault))];
  const sequencer = vault.sequencer({ maxBytes: 2000 });
  await settle(sequencer);
  for (let batch = 0; batch < 5; batch += 1) for (const writer of writers) await writer.commit(20);
  for (let steps = 1; steps <= 10; steps += 1) {
    const step = await sequencer.step();
    t.equal(step.batches, 1);
    t.equal(step.more, true);
  }
  t.equal((await sequencer.step()).more, false);
  await vault.verify(t, 'all of it', { complete: [] });
});
