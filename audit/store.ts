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
 * Takes the number of a batch whose COMMIT was not answered, on a new connection, in a transaction of its own.
 *
 * If the lost transaction is still in flight, this waits for it to end. Afterwards the answer is certain and final:
 * `'committed'` if the batch stands in the log, `'buried'` if the tombstone does, so that the batch can never be committed.
 */
export async function insertTombstone(client: ClientBase, tombstone: Batch): Promise<'committed' | 'buried'> {
  const inserted = await client.query({
    text: `INSERT INTO batches (writer, number, kind, formed_at, entry_count, previous, bundle, signature)
           VALUES ($1::bigint, $2::bigint, $3::smallint, $4::timestamptz, $5::int, $6::bytea, $7::bytea, $8::bytea)
           ON CONFLICT (writer, number) DO NOTHING`,
    values: [tombstone.writer, tombstone.number, kindCode[tombstone.kind], tombstone.formedAt, tombstone.entryCount, tombstone.previous, tombstone.bundle, tombstone.signature],
  });
  if (inserted.rowCount === 1) return 'buried';
  // The tombstone itself may have been committed by an attempt whose answer was lost as well.
  const standing = await client.query<{ kind: number; signature: Buffer }>({
    text: 'SELECT kind, signature FROM batches WHERE writer = $1::bigint AND number = $2::bigint',
    values: [tombstone.writer, tombstone.number],
  });
  return standing.rows[0]?.kind === kindCode.tombstone ? 'buried' : 'committed';
}

/** A writer's batches in order, read in pages of `pageSize` rows. */
export async function* readBatches(client: ClientBase, writer: bigint, pageSize = 500): AsyncGenerator<Batch> {
  let after = -1n;
  for (;;) {
    const page = await client.query<BatchRow>({
      text: `SELECT number, kind, formed_at, entry_count, previous, bundle, signature
             FROM batches WHERE writer = $1::bigint AND number > $2::bigint ORDER BY number LIMIT $3::int`,
      values: [writer, after, pageSize],
    });
    for (const row of page.rows) {
      const number = BigInt(row.number);
      after = number;
      yield {
        writer,
        number,
        kind: row.kind === kindCode.tombstone ? 'tombstone' : 'entries',
        formedAt: row.formed_at,
        entryCount: row.entry_count,
        previous: row.previous,
        bundle: row.bundle,
        signature: row.signature,
      };
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

interface BatchRow {
  number: string;
  kind: number;
  formed_at: Date;
  entry_count: number;
  previous: Buffer;
  bundle: Buffer;
  signature: Buffer;
}
