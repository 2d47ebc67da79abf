/** SQL of retention (migration 0012), as the sequencing role. */
import type { Pool } from 'pg';
import { databaseLog } from './database-log.ts';
import type { RetentionStore } from './retention.ts';
import { tileWidth } from './tiles.ts';

/** What one statement deletes at most, so that it holds its locks for a fraction of a second: batches (of up to some hundred entries), tiles, pages, checkpoints. */
export interface RetentionSteps {
  readonly batches: number;
  readonly tiles: number;
  readonly pages: number;
  readonly checkpoints: number;
}

const bounded: RetentionSteps = { batches: 100, tiles: 1000, pages: 2000, checkpoints: 10_000 };

/** `pool` is the caller's. */
export function postgresRetentionStore(pool: Pool, steps: RetentionSteps = bounded): RetentionStore {
  const count = async (text: string, values: readonly unknown[]): Promise<number> => (await pool.query<{ count: number }>(text, [...values])).rows[0]!.count;
  return {
    async logs() {
      const { rows } = await pool.query<{ log_id: number; origin: string }>('SELECT log_id, origin FROM logs ORDER BY log_id');
      return rows.map((row) => ({ logId: row.log_id, origin: row.origin }));
    },
    source: (logId) => databaseLog(pool, logId),
    async begin(logId) {
      const { rows } = await pool.query<{ tiles_from: string | null; since: Date | null }>(
        `SELECT x.tiles_from, (SELECT formed_at FROM log_batches WHERE log_id = l.log_id AND first_index >= coalesce(x.entries_from, 0) ORDER BY first_index LIMIT 1) AS since
         FROM logs l LEFT JOIN log_pruned x USING (log_id) WHERE l.log_id = $1::int`,
        [logId],
      );
      return { index: Number(rows[0]?.tiles_from ?? 0) * tileWidth, since: rows[0]?.since ?? null };
    },
    async prunable(logId, before) {
      const { rows } = await pool.query<{ younger: string; waited_for: string; signed: string }>(
        `SELECT coalesce((SELECT first_index FROM log_batches WHERE log_id = l.log_id AND first_index >= coalesce(x.entries_from, 0) AND formed_at >= $2::timestamptz ORDER BY first_index LIMIT 1), l.size) AS younger,
                coalesce((SELECT min(p.first_index) FROM outbox o JOIN log_batches p USING (writer, number) WHERE p.log_id = l.log_id), l.size) AS waited_for,
                coalesce((SELECT max(size) FROM log_checkpoints WHERE log_id = l.log_id), 0) AS signed
         FROM logs l LEFT JOIN log_pruned x USING (log_id) WHERE l.log_id = $1::int`,
        [logId, before],
      );
      const [row] = rows;
      if (row === undefined) throw new Error('a log is gone');
      const old = Math.min(Number(row.younger), Number(row.signed));
      const most = Math.min(old, Number(row.waited_for));
      return { index: most - (most % tileWidth), held: most < old };
    },
    async sizeAt(logId, before) {
      const { rows } = await pool.query<{ size: string | null }>('SELECT max(size) AS size FROM log_checkpoints WHERE log_id = $1::int AND signed_at < $2::timestamptz', [logId, before]);
      return Number(rows[0]?.size ?? 0);
    },
    pruneBatches: (logId, boundary) => count('SELECT prune_log_batches($1::int, $2::bigint, $3::int) AS count', [logId, boundary, steps.batches]),
    async pruneSearch(logId, page) {
      const { rows } = await pool.query<{ more: boolean }>('SELECT prune_log_search($1::int, $2::bigint, $3::int) AS more', [logId, page, steps.pages]);
      return rows[0]!.more ? page + steps.pages : null;
    },
    pruneTiles: (logId, boundary) => count('SELECT prune_log_tiles($1::int, $2::bigint, $3::int) AS count', [logId, boundary, steps.tiles]),
    async thinCheckpoints(before) {
      const { rowCount } = await pool.query(
        `DELETE FROM log_checkpoints WHERE (log_id, size) IN (
           SELECT log_id, size FROM (SELECT log_id, size, max(size) OVER (PARTITION BY log_id, date_trunc('hour', signed_at, 'UTC')) AS largest FROM log_checkpoints WHERE signed_at < $1::timestamptz) AS old
           WHERE size < largest ORDER BY log_id, size LIMIT $2::int)`,
        [before, steps.checkpoints],
      );
      return rowCount ?? 0;
    },
  };
}
