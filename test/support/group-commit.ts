/** A writer over a real PostgreSQL with operations made for tests, and the one helper that re-verifies everything that it left. */
import { generateKeyPairSync, randomUUID, sign } from 'node:crypto';
import type { ClientBase, ClientConfig } from 'pg';
import type { Test } from 'tap';
import { checkChain, readWriterCertificate, type Batch } from '../../audit/chain.ts';
import { decodeBundle, type Entry } from '../../audit/entry.ts';
import { encodeVkey, openNote, parseVkey, type NoteSigner, type NoteVerifier } from '../../audit/note.ts';
import { readBatches, readWriters } from '../../audit/store.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { quoteIdentifier, roleName } from '../../platform-adapters/postgres/roles.ts';
import { createWriterConnector } from '../../platform-adapters/postgres/writer-connector.ts';
import { GroupCommit, TransactionConflict, type CommitLimits, type CommitOptions, type Committed, type Settlement } from '../../vault/commit.ts';
import { VaultError, type ErrorCode } from '../../vault/errors.ts';
import type { MadeIn } from '../../vault/card-store.ts';
import type { VaultEvent } from '../../vault/outbox.ts';
import type { WriterConnector } from '../../vault/writer-session.ts';
import { freshDatabase, withClient, type FreshDatabase } from './database.ts';

/** What an operation does in its transaction, beside writing its row. */
export type Behaviour =
  | 'writes'
  /** Breaks a constraint. */
  | 'breaks_row'
  /** Throws an error of our own making. */
  | 'throws'
  /** Its event is of a row that nothing can be said of. */
  | 'untellable'
  /** Throws, and its failure has an entry that is too large as well. */
  | 'unrecordable'
  /** Writes nothing and has no entry. */
  | 'asks'
  /** Meets a concurrent writer in its first transaction; or in each. */
  | 'conflicts_once'
  | 'conflicts'
  /** Has a statement that takes longer than any may. */
  | 'slow';

export interface TestOperation {
  readonly id: string;
  readonly behaviour: Behaviour;
}

export interface TestOutcome {
  readonly id: string;
  readonly batch: bigint;
}

export const origin = 'cofre.test/log';
const keys = generateKeyPairSync('ed25519');
export const testSigner: NoteSigner = { algorithm: 'ed25519', publicKeySpki: keys.publicKey.export({ format: 'der', type: 'spki' }), sign: async (message) => sign(null, message, keys.privateKey) };
const testVerifier = parseVkey(encodeVkey(origin, 'ed25519', testSigner.publicKeySpki));

export const limits: CommitLimits = { maxQueue: 1000, maxQueuedWeight: 100_000, maxCalls: 50, maxWeight: 1000, maxWaitMs: 10_000, maxSettleMs: 10_000, maxStatementMs: 10_000 };

export function operation(behaviour: Behaviour = 'writes'): TestOperation {
  return { id: randomUUID(), behaviour };
}

const entryOf = (op: TestOperation, at: Date, code?: ErrorCode): Entry => ({
  action: 'test',
  at,
  outcome: code === undefined ? 'allowed' : 'failed',
  request: op.id,
  ...(code === undefined ? {} : { code }),
  ...(op.behaviour === 'unrecordable' && code !== undefined ? { purpose: 'x'.repeat(70_000) } : {}),
});

/** A migrated database with a table that the operations write. */
export async function workDatabase(t: Test): Promise<FreshDatabase> {
  const database = await freshDatabase(t);
  await withClient(adminConnection(database.adminUrl), (client) =>
    client.query(`CREATE TABLE work (id text PRIMARY KEY, writer bigint NOT NULL, batch bigint NOT NULL CHECK (batch >= 0)); GRANT SELECT, INSERT ON work TO ${quoteIdentifier(roleName(database.database, 'tokenize'))}`),
  );
  return database;
}

/** A writer with what it was told and what it answered. */
export class Bench {
  readonly commit: GroupCommit<TestOperation, TestOutcome>;
  /** Kinds of disturbances, in order. */
  readonly disturbances: string[];
  readonly committedCalls: number[];
  readonly heads: { number: bigint; closed: boolean }[];
  /** What each operation was answered, as promised. */
  readonly answers = new Map<TestOperation, Committed<TestOutcome> | ErrorCode>();
  readonly #database: FreshDatabase;

  private constructor(database: FreshDatabase, commit: GroupCommit<TestOperation, TestOutcome>, told: Pick<Bench, 'disturbances' | 'committedCalls' | 'heads'>) {
    this.#database = database;
    this.commit = commit;
    this.disturbances = told.disturbances;
    this.committedCalls = told.committedCalls;
    this.heads = told.heads;
  }

  /** Opens a writer, by default straight on the database. Closed with the test, unless it was before. */
  static async open(t: Test, database: FreshDatabase, options: { through?: ClientConfig; limits?: Partial<CommitLimits>; connector?: (real: WriterConnector) => WriterConnector; queryTimeoutMs?: number; now?: () => Date } = {}): Promise<Bench> {
    const told = { disturbances: [] as string[], committedCalls: [] as number[], heads: [] as { number: bigint; closed: boolean }[] };
    const real = createWriterConnector(options.through ?? database.connect('tokenize'), { connectTimeoutMs: 5000, queryTimeoutMs: options.queryTimeoutMs ?? 15_000 });
    const commitOptions: CommitOptions<TestOperation, TestOutcome> = {
      role: 'tokenize',
      origin,
      connector: options.connector?.(real) ?? real,
      signer: testSigner,
      execute: executor(),
      failureEntry: (op, code, now) => entryOf(op, now, code),
      limits: { ...limits, ...options.limits },
      outbox: true,
      observer: { queued: () => undefined, waited: () => undefined, committed: (calls) => void told.committedCalls.push(calls), disturbed: (kind) => void told.disturbances.push(kind) },
      now: options.now ?? (() => new Date()),
      startDetail: {},
      onHead: (head, closed) => void told.heads.push({ number: head.number, closed }),
    };
    const bench = new Bench(database, await GroupCommit.open(commitOptions), told);
    t.teardown(() => bench.commit.close(2000));
    return bench;
  }

  /** Commits an operation and keeps its answer. @returns 'committed', or the code of the refusal. */
  async run(op: TestOperation, weight?: number, share?: string): Promise<'committed' | ErrorCode> {
    try {
      this.answers.set(op, await this.commit.commit(op, weight, share));
      return 'committed';
    } catch (error) {
      if (!(error instanceof VaultError)) throw error;
      this.answers.set(op, error.code);
      // Whoever gets `internal` must not write a second entry; whoever gets another code may.
      if (error.recorded !== (error.code === 'internal')) throw new Error(`${error.code} says that its entry is ${error.recorded ? '' : 'not '}written`, { cause: error });
      return error.code;
    }
  }

  async runAll(ops: readonly TestOperation[]): Promise<('committed' | ErrorCode)[]> {
    return await Promise.all(ops.map((op) => this.run(op)));
  }

  /**
   * Reads everything back as an outsider would and asserts it: every chain, and for every operation exactly the entries and rows that its answer
   * promised. To be called after each step.
   */
  async verify(t: Test, message: string): Promise<readonly Batch[]> {
    const log = await readLog(this.#database, testVerifier);
    const faults = [...log.faults];
    const rows = new Map(log.work.map((row) => [row.id, row]));
    const asked = new Set<string>();
    for (const [op, answer] of this.answers) {
      asked.add(op.id);
      const places = log.places.get(op.id) ?? [];
      const row = rows.get(op.id);
      const seen = `${places.map((place) => place.entry.outcome).join('+') || 'no entry'}, ${row === undefined ? 'no row' : 'a row'}`;
      const fault = (why: string): void => void faults.push(`an operation that ${op.behaviour} was answered ${typeof answer === 'string' ? answer : 'committed'} and left ${seen}: ${why}`);
      const together = places.length === 1 && row !== undefined && row.writer === places[0]!.writer && row.batch === places[0]!.number && places[0]!.entry.outcome === 'allowed';
      if (typeof answer !== 'string') {
        if (answer.outcome.id !== op.id) fault('it got the answer of another');
        if (op.behaviour === 'asks') {
          if (answer.receipt !== null || places.length > 0 || row !== undefined) fault('it only asked');
        } else if (!together) fault('it must stand in one batch, together with its row');
        else if (answer.receipt?.writer !== row.writer || answer.receipt.number !== row.batch || answer.receipt.index !== places[0]!.index || answer.outcome.batch !== row.batch) fault('its receipt is of another entry');
      } else if (answer === 'internal') {
        if (places.length !== 1 || places[0]!.entry.outcome !== 'failed' || row !== undefined) fault('its entry must say that it failed, and nothing of it may stand');
      } else if (answer === 'outcome_unknown') {
        if (!together && (places.length > 0 || row !== undefined)) fault('it must stand as a whole or not at all');
      } else if (places.length > 0 || row !== undefined) fault('it must not stand');
    }
    // Operation by operation: its row and its event stand together or not at all.
    const inOrder = (list: readonly Stored[]): string[] => list.map(({ id, writer, batch }) => `${id} ${writer} ${batch}`).sort();
    t.same(inOrder(log.events), inOrder(log.work), `${message}: events`);
    for (const id of log.places.keys()) if (!asked.has(id)) faults.push('an entry of nobody stands in the log');
    t.same(faults, [], message);
    return log.batches.get(this.commit.writer) ?? [];
  }
}

function executor(): CommitOptions<TestOperation, TestOutcome>['execute'] {
  const met = new Set<string>();
  return async (tx: ClientBase, operations: readonly TestOperation[], made: MadeIn): Promise<Settlement<TestOutcome>[]> => {
    for (const op of operations) {
      if (op.behaviour === 'throws' || op.behaviour === 'unrecordable') throw new TypeError('a defect met by an operation');
      if (op.behaviour === 'conflicts') throw new TransactionConflict('again');
      if (op.behaviour === 'conflicts_once' && !met.has(op.id)) {
        met.add(op.id);
        throw new TransactionConflict('a concurrent writer');
      }
    }
    if (operations.some((op) => op.behaviour === 'slow')) await tx.query('SELECT pg_sleep(100)');
    const writing = operations.filter((op) => op.behaviour !== 'asks');
    if (writing.length > 0) {
      await tx.query({
        name: 'insert-work',
        text: 'INSERT INTO work (id, writer, batch) SELECT id, $2::bigint, CASE WHEN broken THEN -1 ELSE $3::bigint END FROM unnest($1::text[], $4::boolean[]) AS w(id, broken)',
        values: [writing.map((op) => op.id), made.writer, made.batch, writing.map((op) => op.behaviour === 'breaks_row')],
      });
    }
    return operations.map((op) => ({ entry: op.behaviour === 'asks' ? null : entryOf(op, made.at), outcome: { id: op.id, batch: made.batch }, events: op.behaviour === 'asks' ? [] : [eventOf(op, made.at)] }));
  };
}

/** An event whose request id tells whose it is. */
function eventOf(op: TestOperation, at: Date): VaultEvent {
  return {
    type: 'token.created',
    call: { requestId: op.id, at, caller: null, from: '' },
    row: { tenantId: 1, token: 'tok_test', cardToken: 'tok_test', fingerprint: Buffer.alloc(32), cardId: Buffer.alloc(16), expiry: null, brand: 'visa', bin: null, last4: '1111', panLength: 16, format: 'opaque', status: 'active', rowVersion: 1, expiresAt: null, tokenMac: Buffer.alloc(16), metadata: null, createdAt: op.behaviour === 'untellable' ? (Number.POSITIVE_INFINITY as unknown as Date) : at },
  };
}

/** Where an entry stands. */
export interface Place {
  readonly writer: bigint;
  readonly number: bigint;
  readonly index: number;
  readonly entry: { readonly action: string; readonly outcome: string; readonly code?: string; readonly request?: string; readonly detail?: Readonly<Record<string, unknown>>; readonly tokens?: readonly { readonly token: string; readonly outcome: string }[] };
}

export interface Log {
  readonly batches: ReadonlyMap<bigint, readonly Batch[]>;
  /** Entries by request id. */
  readonly places: ReadonlyMap<string, readonly Place[]>;
  readonly entries: readonly Place[];
  readonly faults: readonly string[];
}

/** Every chain, checked by its certificate under `verifier`, with its entries. */
export async function readChains(client: ClientBase, verifier: NoteVerifier): Promise<Log> {
  const faults: string[] = [];
  const batches = new Map<bigint, Batch[]>();
  const places = new Map<string, Place[]>();
  const entries: Place[] = [];
  for (const { writer, certificate } of await readWriters(client)) {
    const text = openNote(certificate, [verifier]);
    const read = text === null ? null : readWriterCertificate(text);
    const chain = await Array.fromAsync(readBatches(client, writer));
    batches.set(writer, chain);
    if (read === null || read.writer !== writer) faults.push('a writer has no certificate');
    else {
      const fault = checkChain(chain, read.publicKey, (bundle) => decodeBundle(bundle).length);
      if (fault !== null) faults.push(fault);
    }
    if (chain.length === 0) faults.push('a writer is registered without its start entry');
    for (const { number, bundle } of chain) {
      for (const [index, bytes] of decodeBundle(bundle).entries()) {
        const entry = JSON.parse(Buffer.from(bytes).toString('utf8')) as Place['entry'];
        const place = { writer, number, index, entry };
        entries.push(place);
        if (entry.request !== undefined) places.set(entry.request, [...(places.get(entry.request) ?? []), place]);
      }
    }
  }
  return { batches, places, entries, faults };
}

interface Stored {
  readonly id: string;
  readonly writer: bigint;
  readonly batch: bigint;
}

/** The log, with the rows that operations wrote and the events that they left. */
async function readLog(database: FreshDatabase, verifier: NoteVerifier): Promise<Log & { readonly work: readonly Stored[]; readonly events: readonly Stored[] }> {
  return await withClient(adminConnection(database.adminUrl), async (client) => {
    // One snapshot, whatever a writer does meanwhile.
    await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
    const log = await readChains(client, verifier);
    const { rows } = await client.query<{ id: string; writer: string; batch: string }>('SELECT id, writer, batch FROM work');
    const events = await client.query<{ id: string; writer: string; batch: string }>("SELECT event #>> '{data,request_id}' AS id, writer, number AS batch FROM outbox, json_array_elements(events) AS event");
    const stored = (row: { id: string; writer: string; batch: string }): Stored => ({ id: row.id, writer: BigInt(row.writer), batch: BigInt(row.batch) });
    return { ...log, work: rows.map(stored), events: events.rows.map(stored) };
  });
}
