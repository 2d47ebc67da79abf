/**
 * The log's tables in memory behind the interface of the sequencer, stricter than PostgreSQL: whatever must never be written is a violation that the
 * test fails with. Each write can be made to fail, before it took effect or after.
 */
import type { Test } from 'tap';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { encodeVkey, parseVkey } from '../../audit/note.ts';
import { SearchKeyReader } from '../../audit/search-keys.ts';
import { LogFault, type Advance, type LogHead, type TreeStore, type Witness } from '../../audit/sequenced-log.ts';
import { Sequencer, type SequencerOptions } from '../../audit/sequencer.ts';
import { changedTiles } from '../../audit/tiles.ts';
import type { LogView } from '../../audit/log-watch.ts';
import { LogTables, origin, signer, verifyLog, type Expectations } from './log-tables.ts';

export type Write = 'create' | 'advance' | 'checkpoint' | 'publish' | 'alert';
export const writes: readonly Write[] = ['create', 'advance', 'checkpoint', 'publish', 'alert'];

export interface Alert {
  readonly kind: string;
  readonly detail: Readonly<Record<string, string | number>>;
}

/** What an injected failure throws. */
export class Injected extends Error {}

/** The database and the witness of a vault, and every instance over them. */
export class MemoryVault {
  tables = new LogTables();
  /** Notes in the order in which they were published. */
  readonly witnessed: string[] = [];
  readonly alerts: Alert[] = [];
  readonly violations: string[] = [];
  /** How often each write was tried. */
  readonly tried: Record<Write, number> = { create: 0, advance: 0, checkpoint: 0, publish: 0, alert: 0 };
  /** Every head that was committed, `size root`. */
  readonly #heads = new Set<string>();
  readonly #verifiers = [parseVkey(encodeVkey(origin, signer.algorithm, signer.publicKeySpki))];
  #failure: { readonly write: Write; readonly when: 'before' | 'after' } | null = null;
  /** Awaited before each call of an instance. */
  gate: (instance: number) => Promise<void> = async () => undefined;

  /** The next write of that kind fails, once: `before` it takes effect, or `after`. */
  fail(write: Write, when: 'before' | 'after'): void {
    this.#failure = { write, when };
  }

  /** Whether a failure was asked for and has not come yet. */
  get failing(): boolean {
    return this.#failure !== null;
  }

  async #write<T>(write: Write, work: () => T): Promise<T> {
    this.tried[write] += 1;
    const failure = this.#failure?.write === write ? this.#failure : null;
    if (failure !== null) this.#failure = null;
    if (failure?.when === 'before') throw new Injected(`${write} failed`);
    const result = work();
    if (failure?.when === 'after') throw new Injected(`${write} failed, but persisted`);
    return result;
  }

  #violated(what: string): void {
    this.violations.push(what);
  }

  sequencer(options: Partial<SequencerOptions> = {}, instance = 0): Sequencer {
    return new Sequencer({
      store: this.store(instance),
      signer,
      name: origin,
      witnesses: [this.witness()],
      alert: async (kind, detail) => await this.#write('alert', () => void this.alerts.push({ kind, detail })),
      now: () => new Date(),
      ...options,
    });
  }

  /** One witness of all instances, as a topic is. */
  witness(): Witness {
    let last = 0;
    return {
      publish: async (note) =>
        await this.#write('publish', () => {
          if (![...this.tables.checkpoints.values()].includes(note)) this.#violated('a checkpoint was published that is not stored');
          const size = sizeOf(note);
          if (size < last) this.#violated(`a checkpoint of ${size} was published after one of ${last}`);
          last = size;
          if (note !== this.witnessed.at(-1)) this.witnessed.push(note);
        }),
      last: async () => this.witnessed.toSorted((a, b) => sizeOf(a) - sizeOf(b)).at(-1) ?? null,
    };
  }

  store(instance = 0): TreeStore {
    const tables = (): LogTables => this.tables;
    const gated = async <T>(work: () => T | Promise<T>): Promise<T> => {
      await this.gate(instance);
      return await work();
    };
    return {
      head: () => gated(() => tables().head),
      create: (log) =>
        gated(() =>
          this.#write('create', () => {
            if (log.head.size !== 1) this.#violated('a log begins with more than one leaf');
            if (tables().logs.has(log.head.logId)) return;
            tables().logs.set(log.head.logId, { head: log.head, firstLeaf: log.firstLeaf });
            tables().tiles.set('0/0', log.head.root);
            for (const key of new SearchKeyReader().read({ action: 'log.start', outcome: 'allowed' }).facets) tables().facets.add(`${key} 0`);
            this.#heads.add(`1 ${log.head.root.toString('hex')}`);
          }),
        ),
      firstLeaf: (logId) => gated(() => tables().logs.get(logId)!.firstLeaf),
      tile: (_logId, level, index) => gated(() => tables().tiles.get(`${level}/${index}`) ?? null),
      chains: () => gated(() => [...tables().chains.values()].filter(({ state }) => state === 'open').sort((a, b) => (a.position.formedAt?.getTime() ?? 0) - (b.position.formedAt?.getTime() ?? 0))),
      chain: (writer) => gated(() => tables().chains.get(writer) ?? null),
      newWriters: (since) => gated(() => [...tables().writers].filter(([writer, { startedAt }]) => !tables().chains.has(writer) && (since === null || startedAt > since)).map(([writer, { startedAt }]) => ({ writer, startedAt }))),
      certificates: (writers) => gated(() => writers.flatMap((writer) => (tables().writers.has(writer) ? [{ writer, certificate: tables().writers.get(writer)!.certificate }] : []))),
      pending: (positions, limit, maxBytes) =>
        gated(() => {
          const found = positions.flatMap(({ writer, next }) => [...(tables().batches.get(writer)?.values() ?? [])].filter(({ number }) => number >= next).sort((a, b) => Number(a.number - b.number)).slice(0, limit));
          const reach = new Map<bigint, number>();
          const keyed = found.map((batch) => {
            reach.set(batch.writer, Math.max(reach.get(batch.writer) ?? 0, Number(batch.formedAt)));
            return { batch, at: reach.get(batch.writer)! };
          });
          let bytes = 0;
          const kept = keyed
            .sort((a, b) => a.at - b.at || Number(a.batch.writer - b.batch.writer) || Number(a.batch.number - b.batch.number))
            .filter(({ batch }) => {
              const before = bytes;
              bytes += batch.bundle.length;
              return before < maxBytes;
            });
          return kept.map(({ batch }) => batch).sort((a, b) => (a.writer === b.writer ? Number(a.number - b.number) : a.writer < b.writer ? -1 : 1));
        }),
      batch: (writer, number) => gated(() => tables().batches.get(writer)?.get(number) ?? null),
      placed: (_logId, from) =>
        gated(() =>
          [...tables().places.values()]
            .filter(({ firstIndex }) => firstIndex >= from)
            .sort((a, b) => a.firstIndex - b.firstIndex)
            .slice(0, 3)
            .map(({ firstIndex, writer, number }) => ({ firstIndex, batch: tables().batches.get(writer)?.get(number) ?? null })),
        ),
      placeOf: (_logId, writer, number) => gated(() => tables().places.get(`${writer} ${number}`)?.firstIndex ?? null),
      strays: () => gated(() => [...tables().chains.values()].filter(({ writer, state, position }) => state === 'closed' && [...(tables().batches.get(writer)?.keys() ?? [])].some((number) => number >= position.next))),
      advance: (from, step) => gated(() => this.#write('advance', () => this.#advance(from, step))),
      checkpoint: () => gated(() => tables().checkpoints.get(Math.max(...tables().checkpoints.keys())) ?? null),
      addCheckpoint: (head, note) =>
        gated(() =>
          this.#write('checkpoint', () => {
            const checkpoint = openCheckpoint(note, this.#verifiers);
            const stored = tables().logs.get(head.logId)?.head;
            if (stored === undefined || stored.size < head.size || (stored.size === head.size && !stored.root.equals(head.root))) return false;
            if (checkpoint === null || checkpoint.size !== head.size || !this.#heads.has(`${checkpoint.size} ${checkpoint.root.toString('hex')}`)) this.#violated('a checkpoint was signed of what was never committed');
            if (!tables().checkpoints.has(head.size)) tables().checkpoints.set(head.size, note);
            return true;
          }),
        ),
    };
  }

  #advance(from: LogHead, step: Advance): boolean {
    const { tables } = this;
    const stored = tables.logs.get(from.logId);
    if (stored === undefined || stored.head.size !== from.size || !stored.head.root.equals(from.root)) return false;
    if (step.size < from.size) this.#violated('a head shrinks');
    if (step.size === from.size && !step.root.equals(from.root)) this.#violated('a root changes without a leaf');
    let next = from.size;
    for (const batch of step.batches) {
      if (batch.firstIndex !== next) this.#violated('batches do not stand next to one another');
      if (tables.places.has(`${batch.writer} ${batch.number}`)) throw new LogFault('rewritten', 'a batch that the database says is next stands in the log already');
      next += 1 + batch.entryCount;
    }
    if (next !== step.size) this.#violated('the size is not that of the batches');
    const changed = [...changedTiles(from.size, step.size)].map(({ level, index, width }) => `${level}/${index} ${width * 32}`);
    if (changed.join() !== step.tiles.map(({ level, index, hashes }) => `${level}/${index} ${hashes.length}`).join()) this.#violated('tiles are written that did not change, or others than did, or in another width');
    for (const { level, index, hashes } of step.tiles) {
      const known = tables.tiles.get(`${level}/${index}`);
      if (known !== undefined && (known.length >= hashes.length || !hashes.subarray(0, known.length).equals(known))) this.#violated(`tile ${level}/${index} changes in place`);
    }
    for (const chain of step.chains) {
      const known = tables.chains.get(chain.writer);
      if (known !== undefined && known.position.next > chain.position.next) this.#violated('a chain goes back');
      if (known?.state === 'distrusted') this.#violated('a distrusted writer is touched');
      if (known?.state === 'closed' && chain.state !== 'distrusted') this.#violated('a closed chain goes on');
    }
    for (const writer of new Set(step.batches.map((batch) => batch.writer))) if (!step.chains.some((chain) => chain.writer === writer)) this.#violated('a batch comes without its chain');
    for (const { key, entry } of step.tokens) {
      if (entry < from.size || entry >= step.size) this.#violated('a token is found at an entry of another step');
      tables.tokens.add(`${key} ${entry}`);
    }
    if (new Set(step.facets.map(({ key, block }) => `${key} ${block}`)).size !== step.facets.length) this.#violated('a facet is written twice');
    for (const { key, block } of step.facets) tables.facets.add(`${key} ${block}`);
    for (const batch of step.batches) tables.places.set(`${batch.writer} ${batch.number}`, batch);
    for (const { level, index, hashes } of step.tiles) tables.tiles.set(`${level}/${index}`, Buffer.from(hashes));
    for (const chain of step.chains) tables.chains.set(chain.writer, { ...chain });
    tables.logs.set(from.logId, { ...stored, head: { ...from, size: step.size, root: step.root } });
    this.#heads.add(`${step.size} ${step.root.toString('hex')}`);
    return true;
  }

  /** How a writer's process sees it. */
  view(): LogView {
    const store = this.store();
    return { ...store, distrusts: async (writers) => writers.filter((writer) => this.tables.chains.get(writer)?.state === 'distrusted') };
  }

  async verify(t: Test, message: string, expected: Expectations = {}): Promise<{ readonly index: number; readonly entry: Record<string, unknown> }[]> {
    t.same(this.violations, [], `${message}: nothing was written that must never be`);
    return await verifyLog(t, this.tables, message, { published: this.witnessed, ...expected });
  }

}

const sizeOf = (note: string): number => Number(note.split('\n')[1]);

/** Steps until nothing is left to do, and signs. */
export async function settle(sequencer: Sequencer, { sign = true }: { sign?: boolean } = {}): Promise<void> {
  for (let more = true; more; ) {
    const step = await sequencer.step(true);
    more = step.more || step.leaves > 0;
  }
  if (sign) await sequencer.sign();
}
