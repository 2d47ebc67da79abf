/** SQL of the log after sequencing (migration 0011): the tree, its checkpoints, and what it is searched by. */
import type { ClientBase, Pool } from 'pg';
import type { Batch } from './chain.ts';
import type { RestartStore } from './restart.ts';
import { LogFault } from './sequenced-log.ts';
import type { Advance, ChainState, LogHead, NewLog, RegisteredWriter, StoredChain } from './sequenced-log.ts';
import type { LogView } from './log-watch.ts';
import { SearchKeyReader } from './search-keys.ts';
import { batchOfRow } from './store.ts';
import type { BatchRow } from './store.ts';

const stateCode: Readonly<Record<ChainState, number>> = { open: 0, closed: 1, distrusted: 3 };
/** 2 is what a chain was marked with that another writer named as ended: it says nothing, since anybody may be named. */
const stateOf: readonly ChainState[] = ['open', 'closed', 'open', 'distrusted'];

/** What a log's first leaf is found by (`charter.ts`). */
const charterFacets: readonly bigint[] = new SearchKeyReader().read({ action: 'log.start', outcome: 'allowed' }).facets;

interface ChainRow {
  writer: string;
  next: string;
  previous: Buffer;
  formed_at: Date | null;
  state: number;
}

const storedChain = (row: ChainRow): StoredChain => ({
  writer: BigInt(row.writer),
  position: { next: BigInt(row.next), previous: row.previous, formedAt: row.formed_at },
  state: stateOf[row.state]!,
});

/**
 * No batch that a writer of ours forms comes near this: at most 2000 entries, of which a few are large. Whoever may write batches could have one that is too
 * large to be answered, and nothing of anybody would be sequenced any more.
 */
const maxBundleBytes = 64 * 1024 * 1024;
/** Of a certificate. Characters; ours have some 400. */
const maxCertificate = 8192;

/** The tree in PostgreSQL, as the sequencing role. `pool` is the caller's. Of a bundle that is larger than `maxBundle` bytes nothing is read, as of one that is empty. */
export function postgresTreeStore(pool: Pool, maxBundle: number = maxBundleBytes): RestartStore {
  return {
    head: () => readHead(pool),
    async create({ head, firstLeaf, at }: NewLog) {
      await inTransaction(pool, async (tx) => {
        const { rowCount } = await tx.query(
          'INSERT INTO logs (log_id, origin, size, root, started_at, first_leaf, paired_from, paired_to) VALUES ($1::int, $2::text, $3::bigint, $4::bytea, $5::timestamptz, $6::bytea, 0, $3::bigint) ON CONFLICT DO NOTHING',
          [head.logId, head.origin, head.size, head.root, at, firstLeaf],
        );
        if (rowCount !== 1) return true;
        // The root of a tree with one leaf is the leaf's hash.
        await tx.query('INSERT INTO log_tiles (log_id, level, tile, hashes) VALUES ($1::int, 0, 0, $2::bytea)', [head.logId, head.root]);
        await tx.query('INSERT INTO log_facets (facet, log_id, block) SELECT f, $1::int, 0 FROM unnest($2::bigint[]) AS t(f)', [head.logId, charterFacets]);
        return true;
      });
    },
    async firstLeaf(logId) {
      const { rows } = await pool.query<{ first_leaf: Buffer }>('SELECT first_leaf FROM logs WHERE log_id = $1::int', [logId]);
      if (rows[0] === undefined) throw new Error('a log is gone');
      return rows[0].first_leaf;
    },
    tile: (logId, level, index) => readTile(pool, logId, level, index),
    async chains() {
      const { rows } = await pool.query<ChainRow>('SELECT writer, next, previous, formed_at, state FROM log_chains WHERE state IN (0, 2) ORDER BY formed_at NULLS FIRST, writer');
      return rows.map(storedChain);
    },
    async chain(writer) {
      const { rows } = await pool.query<ChainRow>('SELECT writer, next, previous, formed_at, state FROM log_chains WHERE writer = $1::bigint', [writer]);
      return rows[0] === undefined ? null : storedChain(rows[0]);
    },
    async newWriters(since) {
      const { rows } = await pool.query<{ writer: string; started_at: Date }>({
        name: 'new-writers',
        text: `SELECT writer, started_at FROM writers w
               WHERE started_at > coalesce($1::timestamptz, '-infinity') AND NOT EXISTS (SELECT 1 FROM log_chains c WHERE c.writer = w.writer) ORDER BY started_at, writer`,
        values: [since],
      });
      return rows.map((row) => ({ writer: BigInt(row.writer), startedAt: row.started_at }));
    },
    async certificates(writers) {
      const { rows } = await pool.query<{ writer: string; certificate: string }>('SELECT writer, left(certificate, $2::int) AS certificate FROM writers WHERE writer = ANY ($1::bigint[])', [writers, maxCertificate]);
      return rows.map(registered);
    },
    async pending(positions, limit, maxBytes) {
      if (positions.length === 0) return [];
      // Whatever a row says of its time, none comes before its predecessor: what is cut off is the end of a chain.
      const { rows } = await pool.query<BatchRow & { writer: string }>({
        name: 'pending-batches',
        text: `SELECT writer, number, kind, formed_at, entry_count, previous, CASE WHEN bytes <= $5::int THEN bundle ELSE ''::bytea END AS bundle, signature
               FROM (SELECT *, sum(bytes) OVER (ORDER BY reach, writer, number) - bytes AS before
                     FROM (SELECT b.*, octet_length(b.bundle) AS bytes, max(b.formed_at) OVER (PARTITION BY b.writer ORDER BY b.number) AS reach
                           FROM unnest($1::bigint[], $2::bigint[]) AS w(writer, next)
                           CROSS JOIN LATERAL (SELECT * FROM batches WHERE writer = w.writer AND number >= w.next ORDER BY number LIMIT $3::int) b) AS found) AS counted
               WHERE before < $4::bigint
               ORDER BY writer, number`,
        values: [positions.map(({ writer }) => writer), positions.map(({ next }) => next), limit, maxBytes, maxBundle],
      });
      return rows.map((row) => batchOrForged(BigInt(row.writer), row));
    },
    async batch(writer, number): Promise<Batch | null> {
      const { rows } = await pool.query<BatchRow>(
        `SELECT number, kind, formed_at, entry_count, previous, CASE WHEN octet_length(bundle) <= $3::int THEN bundle ELSE ''::bytea END AS bundle, signature
         FROM batches WHERE writer = $1::bigint AND number = $2::bigint`,
        [writer, number, maxBundle],
      );
      return rows[0] === undefined ? null : batchOrForged(writer, rows[0]);
    },
    async placed(logId, from, maxBytes) {
      const { rows } = await pool.query<BatchRow & { writer: string; first_index: string }>({
        name: 'log-placed',
        text: `SELECT first_index, writer, number, kind, formed_at, entry_count, previous, CASE WHEN bytes <= $4::int THEN bundle ELSE ''::bytea END AS bundle, signature
               FROM (SELECT p.first_index, p.writer, p.number, b.kind, b.formed_at, b.entry_count, b.previous, b.bundle, b.signature, octet_length(b.bundle) AS bytes, sum(octet_length(b.bundle)) OVER (ORDER BY p.first_index) AS until
                     FROM (SELECT * FROM log_batches WHERE log_id = $1::int AND first_index >= $2::bigint ORDER BY first_index LIMIT 4096) p LEFT JOIN batches b USING (writer, number)) AS found
               WHERE coalesce(until - bytes, 0) < $3::bigint
               ORDER BY first_index`,
        values: [logId, from, maxBytes, maxBundle],
      });
      return rows.map((row) => {
        try {
          return { firstIndex: Number(row.first_index), batch: batchOfRow(BigInt(row.writer), row) };
        } catch {
          // Gone, or of a kind that was never written.
          return { firstIndex: Number(row.first_index), batch: null };
        }
      });
    },
    async written() {
      // Whoever took away one of the two has not taken away the other.
      const { rows } = await pool.query<Partial<ChainRow> & { writer: string; last: string | null }>(
        `SELECT writer, (SELECT max(number) FROM batches b WHERE b.writer = w.writer) AS last, next, previous, formed_at, state
         FROM (SELECT writer FROM writers UNION SELECT writer FROM log_chains) AS w LEFT JOIN log_chains USING (writer) ORDER BY writer`,
      );
      return rows.map((row) => ({ writer: BigInt(row.writer), last: row.last === null ? null : BigInt(row.last), chain: row.state === null ? null : storedChain(row as ChainRow) }));
    },
    async close(writers, reason) {
      await pool.query('UPDATE log_chains SET state = 1, reason = $2::text WHERE writer = ANY ($1::bigint[]) AND state IN (0, 2)', [writers, reason]);
    },
    placeOf: (logId, writer, number) => readPlace(pool, logId, writer, number),
    async strays() {
      const { rows } = await pool.query<ChainRow>({
        name: 'stray-batches',
        text: `SELECT writer, next, previous, formed_at, state FROM log_chains c
               WHERE state = 1 AND EXISTS (SELECT 1 FROM batches b WHERE b.writer = c.writer AND b.number >= c.next) LIMIT 100`,
      });
      return rows.map(storedChain);
    },
    advance: (from, step) => inTransaction(pool, (tx) => writeStep(tx, from, step)),
    checkpoint: (logId) => readCheckpoint(pool, logId),
    addCheckpoint: ({ logId, size, root }, note, at) =>
      inTransaction(pool, async (tx) => {
        const { rowCount } = await tx.query('SELECT 1 FROM logs WHERE log_id = $1::int AND (size > $2::bigint OR (size = $2::bigint AND root = $3::bytea))', [logId, size, root]);
        if (rowCount === 0) return false;
        await tx.query('INSERT INTO log_checkpoints (log_id, size, note, signed_at) VALUES ($1::int, $2::bigint, $3::text, $4::timestamptz) ON CONFLICT DO NOTHING', [logId, size, note, at]);
        return true;
      }),
  };
}

/** A batch as its row has it; one that nobody signed where that is of a kind that was never written. */
function batchOrForged(writer: bigint, row: BatchRow): Batch {
  try {
    return batchOfRow(writer, row);
  } catch {
    return batchOfRow(writer, { ...row, kind: 0, signature: Buffer.alloc(0) });
  }
}

/** Chains that nothing is taken of any more, and why: the ones with which the sequencer was most recently at odds. */
export async function readDistrusted(client: Queryable, limit: number): Promise<{ readonly writer: bigint; readonly next: bigint; readonly reason: string }[]> {
  const { rows } = await client.query<{ writer: string; next: string; reason: string | null }>('SELECT writer, next, reason FROM log_chains WHERE state = 3 ORDER BY formed_at DESC NULLS LAST, writer LIMIT $1::int', [limit]);
  return rows.map(({ writer, next, reason }) => ({ writer: BigInt(writer), next: BigInt(next), reason: reason ?? '' }));
}

type Queryable = Pick<ClientBase, 'query'>;

/** The log in use; null before there is one. */
export async function readHead(client: Queryable): Promise<LogHead | null> {
  const { rows } = await client.query<{ log_id: number; origin: string; size: string; root: Buffer }>('SELECT log_id, origin, size, root FROM logs ORDER BY log_id DESC LIMIT 1');
  const [row] = rows;
  return row === undefined ? null : { logId: row.log_id, origin: row.origin, size: Number(row.size), root: row.root };
}

/** A tile's hashes, as many as it has so far. */
export async function readTile(client: Queryable, logId: number, level: number, index: number): Promise<Buffer | null> {
  const { rows } = await client.query<{ hashes: Buffer }>({
    name: 'log-tile',
    text: 'SELECT hashes FROM log_tiles WHERE log_id = $1::int AND level = $2::smallint AND tile = $3::bigint',
    values: [logId, level, index],
  });
  return rows[0]?.hashes ?? null;
}

/** The largest signed checkpoint of a log, as a note. */
export async function readCheckpoint(client: Queryable, logId: number): Promise<string | null> {
  const { rows } = await client.query<{ note: string }>({
    name: 'log-checkpoint',
    text: 'SELECT note FROM log_checkpoints WHERE log_id = $1::int ORDER BY size DESC LIMIT 1',
    values: [logId],
  });
  return rows[0]?.note ?? null;
}

/** Index of a batch's leaf in the tree of a log; null if it is not in it. */
async function readPlace(client: Queryable, logId: number, writer: bigint, number: bigint): Promise<number | null> {
  const { rows } = await client.query<{ first_index: string }>({
    name: 'log-place',
    text: 'SELECT first_index FROM log_batches WHERE writer = $1::bigint AND number = $2::bigint AND log_id = $3::int',
    values: [writer, number, logId],
  });
  return rows[0] === undefined ? null : Number(rows[0].first_index);
}

/** One step of the sequencer. False, with nothing written, if the head is not `from` any more. */
async function writeStep(tx: ClientBase, from: LogHead, step: Advance): Promise<boolean> {
  const { logId } = from;
  // The row's lock makes rivals wait here, and then find that they lost.
  const { rowCount } = await tx.query({
    name: 'log-advance',
    // Entries since `paired_from` have facets of pairs. If one was appended meanwhile by a Cofre that does not write them, that begins anew.
    text: `UPDATE logs SET size = $1::bigint, root = $2::bytea, paired_from = CASE WHEN paired_to = $4::bigint THEN paired_from ELSE $4::bigint END, paired_to = $1::bigint
           WHERE log_id = $3::int AND size = $4::bigint AND root = $5::bytea AND NOT EXISTS (SELECT 1 FROM logs l WHERE l.log_id > $3::int)`,
    values: [step.size, step.root, logId, from.size, from.root],
  });
  if (rowCount !== 1) return false;
  const { batches, chains, tiles, tokens, facets } = step;
  if (batches.length > 0) {
    try {
      await tx.query({
        name: 'log-batches',
        text: `INSERT INTO log_batches (log_id, first_index, writer, number, entry_count, formed_at)
               SELECT $1::int, * FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::int[], $6::timestamptz[])`,
        values: [logId, batches.map((b) => b.firstIndex), batches.map((b) => b.writer), batches.map((b) => b.number), batches.map((b) => b.entryCount), batches.map((b) => b.formedAt)],
      });
    } catch (error) {
      // unique_violation. Nobody else advances this head meanwhile: somebody turned a chain's position back.
      if ((error as { code?: unknown }).code === '23505') throw new LogFault('rewritten', 'a batch that the database says is next stands in the log already');
      throw error;
    }
  }
  if (tiles.length > 0) {
    await tx.query({
      name: 'log-tiles',
      text: `INSERT INTO log_tiles (log_id, level, tile, hashes) SELECT $1::int, * FROM unnest($2::smallint[], $3::bigint[], $4::bytea[])
             ON CONFLICT (log_id, level, tile) DO UPDATE SET hashes = excluded.hashes`,
      values: [logId, tiles.map((tile) => tile.level), tiles.map((tile) => tile.index), tiles.map((tile) => tile.hashes)],
    });
  }
  if (chains.length > 0) {
    await tx.query({
      name: 'log-chains',
      text: `INSERT INTO log_chains (writer, next, previous, formed_at, state, reason) SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::timestamptz[], $5::smallint[], $6::text[])
             ON CONFLICT (writer) DO UPDATE SET next = excluded.next, previous = excluded.previous, formed_at = excluded.formed_at, state = excluded.state, reason = excluded.reason`,
      values: [chains.map((c) => c.writer), chains.map((c) => c.position.next), chains.map((c) => c.position.previous), chains.map((c) => c.position.formedAt), chains.map((c) => stateCode[c.state]), chains.map((c) => c.reason)],
    });
  }
  if (tokens.length > 0) {
    await tx.query({
      name: 'log-tokens',
      text: 'INSERT INTO log_tokens (token_key, log_id, entry) SELECT k, $1::int, e FROM unnest($2::bigint[], $3::bigint[]) AS t(k, e) ON CONFLICT DO NOTHING',
      values: [logId, tokens.map((token) => token.key), tokens.map((token) => token.entry)],
    });
  }
  if (facets.length > 0) {
    await tx.query({
      name: 'log-facets',
      text: 'INSERT INTO log_facets (facet, log_id, block) SELECT f, $1::int, b FROM unnest($2::bigint[], $3::bigint[]) AS t(f, b) ON CONFLICT DO NOTHING',
      values: [logId, facets.map((facet) => facet.key), facets.map((facet) => facet.block)],
    });
  }
  return true;
}

/**
 * Runs `work` in a transaction that is committed if it returns true and rolled back if false.
 *
 * @throws what the database throws; whether COMMIT took effect is then unknown.
 */
async function inTransaction(pool: Pool, work: (tx: ClientBase) => Promise<boolean>): Promise<boolean> {
  const client = await pool.connect();
  // A session that the server ends between two statements would otherwise be an error of the process.
  const ignore = (): void => undefined;
  client.on('error', ignore);
  let broken = true;
  try {
    await client.query('BEGIN');
    const done = await work(client);
    const { command } = await client.query(done ? 'COMMIT' : 'ROLLBACK');
    if (done && command !== 'COMMIT') throw new Error('COMMIT was answered by a rollback');
    broken = false;
    return done;
  } finally {
    client.off('error', ignore);
    client.release(broken);
  }
}

function registered(row: { writer: string; certificate: string }): RegisteredWriter {
  return { writer: BigInt(row.writer), certificate: row.certificate };
}

/** The tree as any role may read it. */
export function postgresLogView(client: Queryable): LogView {
  return {
    head: () => readHead(client),
    checkpoint: (logId) => readCheckpoint(client, logId),
    tile: (logId, level, index) => readTile(client, logId, level, index),
    placeOf: (logId, writer, number) => readPlace(client, logId, writer, number),
    async distrusts(writers) {
      const { rows } = await client.query<{ writer: string }>({ name: 'log-distrusts', text: 'SELECT writer FROM log_chains WHERE writer = ANY ($1::bigint[]) AND state = 3', values: [writers] });
      return rows.map(({ writer }) => BigInt(writer));
    },
  };
}
