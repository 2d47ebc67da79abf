/** A log of several months in PostgreSQL, made by real writers and the real sequencer by a clock that the test moves. */
import type { Test } from 'tap';
import { Pool } from 'pg';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import type { Checkpoint } from '../../audit/checkpoint.ts';
import { databaseLog } from '../../audit/database-log.ts';
import { decodeBundle } from '../../audit/entry.ts';
import type { Entry } from '../../audit/entry.ts';
import { readBundle, readTile } from '../../audit/log-source.ts';
import type { LogSource } from '../../audit/log-source.ts';
import { Frontier, leafHash } from '../../audit/merkle.ts';
import { encodeVkey, parseVkey } from '../../audit/note.ts';
import { Sequencer } from '../../audit/sequencer.ts';
import type { TreeStore, Witness } from '../../audit/sequenced-log.ts';
import { changedTiles, TileBuilder, tilePath, tileWidth, tileWidthAt } from '../../audit/tiles.ts';
import { postgresTreeStore } from '../../audit/tree-store.ts';
import type { RestartStore } from '../../audit/restart.ts';
import { createWriterConnector } from '../../platform-adapters/postgres/writer-connector.ts';
import { GroupCommit } from '../../vault/commit.ts';
import { executeEntries } from '../../vault/transaction.ts';
import type { EntryOperation, EntryOutcome } from '../../vault/transaction.ts';
import { freshDatabase, type FreshDatabase } from './database.ts';
import { limits, origin, testSigner } from './group-commit.ts';

export const keptVerifier = parseVkey(encodeVkey(origin, 'ed25519', testSigner.publicKeySpki));

export class MemoryWitness implements Witness {
  notes: string[] = [];
  async publish(note: string): Promise<void> {
    if (this.notes.at(-1) !== note) this.notes.push(note);
  }
  async last(): Promise<string | null> {
    return this.notes.at(-1) ?? null;
  }
}

/** The first of the month, of UTC, so many months before the one that runs. */
export function monthsAgo(months: number, now = new Date()): Date {
  return new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - months, 1));
}

export class KeptLog {
  readonly database: FreshDatabase;
  readonly pool: Pool;
  readonly witness = new MemoryWitness();
  readonly store: RestartStore;
  sequencer: Sequencer;
  time: Date;
  /** A writer that only started, in the first month. */
  silent: GroupCommit<EntryOperation, EntryOutcome> | null = null;
  #writers: GroupCommit<EntryOperation, EntryOutcome>[] = [];
  #made = 0;
  readonly #t: Test;

  private constructor(t: Test, database: FreshDatabase, pool: Pool, time: Date) {
    this.#t = t;
    this.database = database;
    this.pool = pool;
    this.time = time;
    this.store = postgresTreeStore(pool);
    this.sequencer = this.newSequencer();
  }

  /** An empty log. Everything is closed with the test. */
  static async open(t: Test, time: Date): Promise<KeptLog> {
    const database = await freshDatabase(t);
    const pool = new Pool({ ...database.connect('sequencer'), max: 6 });
    pool.on('error', () => undefined);
    t.teardown(() => pool.end());
    const kept = new KeptLog(t, database, pool, time);
    kept.#writers = [await kept.openWriter('tokenize'), await kept.openWriter('sequencer')];
    return kept;
  }

  /** A log of `entriesAMonth` and a few more in each month from `months` ago to now, a checkpoint every two days. */
  static async of(t: Test, months: number, entriesAMonth: number): Promise<KeptLog> {
    const now = new Date();
    const kept = await KeptLog.open(t, new Date(monthsAgo(months, now).getTime() + 3.5 * 86_400_000));
    // One that starts, and is not heard of any more.
    kept.silent = await kept.openWriter('detokenize');
    const perVisit = Math.ceil(entriesAMonth / 15);
    while (kept.time < now) {
      await kept.commit(perVisit);
      await kept.sequence();
      kept.time = new Date(kept.time.getTime() + 2 * 86_400_000);
    }
    kept.time = now;
    await kept.commit(10);
    await kept.sequence();
    return kept;
  }

  newSequencer(options: { readonly store?: TreeStore; readonly witness?: Witness } = {}): Sequencer {
    return new Sequencer({ store: options.store ?? this.store, signer: testSigner, name: origin, witnesses: [options.witness ?? this.witness], alert: async (kind, detail) => void this.#t.fail(`${kind} ${JSON.stringify(detail)}`), now: () => this.time });
  }

  async openWriter(role: 'tokenize' | 'detokenize' | 'sequencer'): Promise<GroupCommit<EntryOperation, EntryOutcome>> {
    const writer = await GroupCommit.open<EntryOperation, EntryOutcome>({
      role,
      origin,
      connector: createWriterConnector(this.database.connect(role), { connectTimeoutMs: 5000, queryTimeoutMs: 15_000 }),
      signer: testSigner,
      execute: executeEntries,
      failureEntry: (op) => op.entry,
      limits: { ...limits, maxCalls: 512 },
      outbox: false,
      observer: { queued: () => undefined, waited: () => undefined, committed: () => undefined, disturbed: () => undefined },
      now: () => this.time,
      startDetail: { name: role },
      onHead: () => undefined,
    });
    this.#t.teardown(() => writer.close(2000));
    return writer;
  }

  async record(entry: Entry): Promise<void> {
    await this.#writers[1]!.commit({ kind: 'entry', entry });
  }

  get tokenizing(): GroupCommit<EntryOperation, EntryOutcome> {
    return this.#writers[0]!;
  }

  /** Commits so many entries, in one or two batches. Entry n names the token `tok_n`. */
  async commit(count: number): Promise<void> {
    await Promise.all(
      Array.from({ length: count }, (_, index) => {
        const entry: Entry = { action: 'validate', at: this.time, caller: 'spiffe://cofre.test/tenant/acme/service/checkout', outcome: 'allowed', request: `r-${this.#made}`, tenant: 'acme', tokens: { active: [`tok_${this.#made++}`] } };
        return this.#writers[index % 10 === 0 ? 1 : 0]!.commit({ kind: 'entry', entry });
      }),
    );
  }

  /** Takes in what was committed. */
  async sequence(sign = true): Promise<void> {
    await this.sequencer.open();
    // Two rounds: a writer is met once a second.
    while ((await this.sequencer.step()).leaves > 0);
    if (sign) await this.sequencer.sign();
  }

  source(): LogSource {
    return databaseLog(this.pool, 1);
  }
}

/** Recomputes a copy of a log from its entries alone: every hash of every tile, and the root of its checkpoint. Throws at what does not fit. */
export async function recompute(source: LogSource): Promise<{ readonly checkpoint: Checkpoint; readonly entries: readonly Record<string, unknown>[] }> {
  const note = await source.checkpoint();
  const checkpoint = note === null ? null : openCheckpoint(note, [keptVerifier]);
  if (checkpoint === null) throw new Error('the copy has no signed checkpoint');
  const builder = new TileBuilder(0, new Map());
  const frontier = new Frontier();
  const entries: Record<string, unknown>[] = [];
  for (let index = 0; index * tileWidth < checkpoint.size; index += 1) {
    const bundle = await readBundle(source, { index, width: tileWidthAt(0, index, checkpoint.size) });
    if (bundle === null) throw new Error(`bundle ${index} is missing`);
    for (const entry of decodeBundle(bundle)) {
      builder.append(leafHash(entry));
      frontier.append(leafHash(entry));
      entries.push(JSON.parse(Buffer.from(entry).toString('utf8')) as Record<string, unknown>);
    }
  }
  if (!frontier.root().equals(checkpoint.root)) throw new Error('the entries do not give the root');
  const tiles = new Map(builder.take().map((tile) => [tilePath(tile), tile.hashes]));
  for (const ref of changedTiles(0, checkpoint.size)) if ((await readTile(source, ref))?.equals(tiles.get(tilePath(ref))!) !== true) throw new Error(`${tilePath(ref)} is missing or another`);
  return { checkpoint, entries };
}
