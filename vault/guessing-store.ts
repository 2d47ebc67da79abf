/** Counts of card numbers by group, as processes share them (vault/guessing.ts). A filter is a bit string; two of one group are joined by OR, so to add one twice changes nothing. */
import type { ClientBase } from 'pg';
import { byteaArray, int4Array } from './binary-arrays.ts';
import type { GroupFilter } from './guess-sketch.ts';

/** A connection, or a pool of them. */
export type Queries = Pick<ClientBase, 'query'>;

/** Where a reading of the table ended. */
export interface ReadUpTo {
  readonly at: Date;
  readonly tenantId: number;
  readonly group: Buffer;
}

export const fromTheStart: ReadUpTo = { at: new Date(0), tenantId: 0, group: Buffer.alloc(0) };

/** Joins these filters to those of the table. Each is of another group. Rows are locked in one order by everybody. */
export async function shareGroups(db: Queries, day: string, filters: readonly GroupFilter[]): Promise<void> {
  await db.query({
    name: 'share-guessed-groups',
    // To the millisecond, which is what a reader can hold on to.
    text: `INSERT INTO guessed_groups AS g (tenant_id, day, card_group, seen, shared_at)
           SELECT f.tenant_id, $1::date, f.card_group, ('x' || encode(f.seen, 'hex'))::varbit, date_trunc('milliseconds', clock_timestamp())
             FROM unnest($2::int[], $3::bytea[], $4::bytea[]) AS f (tenant_id, card_group, seen) ORDER BY 1, 3
           ON CONFLICT (tenant_id, day, card_group) DO UPDATE SET seen = g.seen | EXCLUDED.seen, shared_at = EXCLUDED.shared_at`,
    values: [day, int4Array(filters.map(({ tenantId }) => tenantId)), byteaArray(filters.map(({ group }) => group)), byteaArray(filters.map(({ seen }) => seen))],
  });
}

/** The filters of a day that were shared behind `after`, in the order of their sharing, `limit` at most; and where they end. */
export async function readGroups(db: Queries, day: string, after: ReadUpTo, limit: number): Promise<{ filters: GroupFilter[]; upTo: ReadUpTo }> {
  const { rows } = await db.query<{ tenant_id: number; card_group: Buffer; seen: Buffer; shared_at: Date }>({
    name: 'read-guessed-groups',
    text: `SELECT tenant_id, card_group, varbit_send(seen) AS seen, shared_at FROM guessed_groups
            WHERE (shared_at, tenant_id, card_group) > ($1::timestamptz, $2::int, $3::bytea) AND day = $4::date
            ORDER BY shared_at, tenant_id, card_group LIMIT $5`,
    values: [after.at, after.tenantId, after.group, day, limit],
  });
  const last = rows.at(-1);
  return {
    // varbit_send puts the number of bits before them, in four bytes.
    filters: rows.map((row) => ({ tenantId: row.tenant_id, group: row.card_group, seen: row.seen.subarray(4) })),
    upTo: last === undefined ? after : { at: last.shared_at, tenantId: last.tenant_id, group: last.card_group },
  };
}

/** Removes the groups of days before `day`. */
export async function sweepGroups(db: Queries, day: string): Promise<void> {
  await db.query({ text: 'DELETE FROM guessed_groups WHERE day < $1::date', values: [day] });
}
