/** SQL of the log before sequencing: writers and their batches. Nobody may update or delete either (migration 0004). */
import type { ClientBase } from 'pg';
import type { WriterChain } from './append.ts';
import type { Batch, BatchKind } from './chain.ts';

/** Registers a writer; to be committed together with its batch 0. */
export async function insertWriter(tx: ClientBase, chain: WriterChain): Promise<void> {
  await tx.query({
    text: 'INSERT INTO writers (writer, role, certificate, started_at) VALUES ($1::bigint, $2::text, $3::text, $4::timestamptz)',
    values: [chain.writer, chain.role, chain.certificate, chain.startedAt],
  });
}

/** Appends a batch in the caller's transaction. A number that is taken already is a unique violation: see `insertTombstone`. */
export async function insertBatch(tx: ClientBase, batch: Batch): Promise<void> {
  await tx.query({
    name: 'insert-batch',
    text: `INSERT INTO batches (writer, number, kind, formed_at, entry_count, previous, bundle, signature)
           VALUES ($1::bigint, $2::bigint, $3::smallint, $4::timestamptz, $5::int, $6::bytea, $7::bytea, $8::bytea)`,
    values: [batch.writer, batch.number, kindCode[batch.kind], batch.formedAt, batch.entryCount, batch.previous, batch.bundle, batch.signature],
  });
}

/**
 * Takes the number of `lost`, a batch whose COMMIT was not answered, on a new connection, in a transaction of its own.
 *
 * If the lost transaction is still in flight, this waits for it to end. Afterwards the answer is certain and final:
 * `'committed'` if `lost` stands in the log, `'buried'` if the tombstone does, so that `lost` can never be committed.
 *
 * @throws what the database throws, and Error if a batch stands there that is neither: somebody else wrote it, and it proves
 *   nothing. The connection is then to be closed.
 */
export async function insertTombstone(client: ClientBase, tombstone: Batch, lost: Batch): Promise<'committed' | 'buried'> {
  await client.query('BEGIN READ WRITE');
  await client.query({
    text: `INSERT INTO batches (writer, number, kind, formed_at, entry_count, previous, bundle, signature)
           VALUES ($1::bigint, $2::bigint, $3::smallint, $4::timestamptz, $5::int, $6::bytea, $7::bytea, $8::bytea)
           ON CONFLICT (writer, number) DO NOTHING`,
    values: [tombstone.writer, tombstone.number, kindCode[tombstone.kind], tombstone.formedAt, tombstone.entryCount, tombstone.previous, tombstone.bundle, tombstone.signature],
  });
  // Who stands there now is told by the signature, which covers all of a batch. The tombstone may also have been committed by an
  // attempt whose answer was lost as well.
  const { rows } = await client.query<{ signature: Buffer }>({
    text: 'SELECT signature FROM batches WHERE writer = $1::bigint AND number = $2::bigint',
    values: [tombstone.writer, tombstone.number],
  });
  const { command } = await client.query('COMMIT');
  if (command !== 'COMMIT') throw new Error('COMMIT was answered by a rollback');
  const standing = rows[0]?.signature;
  if (standing?.equals(tombstone.signature) === true) return 'buried';
  if (standing?.equals(lost.signature) === true) return 'committed';
  throw new Error('the log holds a batch that its writer did not make');
}

/** A writer's batches in order, read in pages of `pageSize` rows. @throws Error at a batch of a kind that was never written. */
export async function* readBatches(client: ClientBase, writer: bigint, options: { readonly after?: bigint; readonly pageSize?: number } = {}): AsyncGenerator<Batch> {
  const { pageSize = 500 } = options;
  let { after = -1n } = options;
  for (;;) {
    const page = await client.query<BatchRow>({
      text: `SELECT number, kind, formed_at, entry_count, previous, bundle, signature
             FROM batches WHERE writer = $1::bigint AND number > $2::bigint ORDER BY number LIMIT $3::int`,
      values: [writer, after, pageSize],
    });
    for (const row of page.rows) {
      after = BigInt(row.number);
      yield batchOfRow(writer, row);
    }
    if (page.rows.length < pageSize) return;
  }
}

/** Every writer with its certificate, oldest first. */
export async function readWriters(client: ClientBase): Promise<{ writer: bigint; role: string; certificate: string }[]> {
  const { rows } = await client.query<{ writer: string; role: string; certificate: string }>(
    'SELECT writer, role, certificate FROM writers ORDER BY started_at, writer',
  );
  return rows.map((row) => ({ writer: BigInt(row.writer), role: row.role, certificate: row.certificate }));
}

const kindCode: Readonly<Record<BatchKind, number>> = { entries: 0, tombstone: 1 };

function kindOf(code: number): BatchKind {
  if (code === kindCode.entries) return 'entries';
  if (code === kindCode.tombstone) return 'tombstone';
  throw new Error('the log holds a batch of an unknown kind');
}

/** A batch as it stands. @throws Error if it is of a kind that was never written. */
export function batchOfRow(writer: bigint, row: BatchRow): Batch {
  return {
    writer,
    number: BigInt(row.number),
    kind: kindOf(row.kind),
    formedAt: row.formed_at,
    entryCount: row.entry_count,
    previous: row.previous,
    bundle: row.bundle,
    signature: row.signature,
  };
}

export interface BatchRow {
  number: string;
  kind: number;
  formed_at: Date;
  entry_count: number;
  previous: Buffer;
  bundle: Buffer;
  signature: Buffer;
}
