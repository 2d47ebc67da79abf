/** The rows of vault/controls.ts in PostgreSQL. */
import type { Pool } from 'pg';
import type { ControlKind, ControlRow, ControlStore } from './controls.ts';

interface Row {
  readonly number: string;
  readonly made_at: Date;
  readonly kind: ControlKind;
  readonly subject: string;
  readonly state: string;
  readonly made_by: string;
  readonly data?: string;
  readonly data_hash: Buffer;
  readonly hash: Buffer;
  readonly mac: Buffer;
}

/** As the role `admin`, which reads and adds all; or as a serving one, which does not read `data` (`readsData` false) and adds suspensions only: migration 0017. */
export function postgresControlStore(pool: Pick<Pool, 'query'>, readsData: boolean): ControlStore {
  const columns = `number, made_at, kind, subject, state, made_by, ${readsData ? 'data, ' : ''}data_hash, hash, mac`;
  return {
    readsData,
    async from(number, most) {
      const { rows } = await pool.query<Row>({ name: 'read-controls', text: `SELECT ${columns} FROM controls WHERE number >= $1 ORDER BY number LIMIT $2`, values: [number, most] });
      return rows.map((row): ControlRow => ({ number: Number(row.number), madeAt: row.made_at, kind: row.kind, subject: row.subject, state: row.state, madeBy: row.made_by, data: row.data ?? '', dataHash: row.data_hash, hash: row.hash, mac: row.mac }));
    },
    async insert(row) {
      const { rowCount } = await pool.query({
        name: 'add-control',
        text: 'INSERT INTO controls (number, made_at, kind, subject, state, made_by, data, data_hash, hash, mac) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (number) DO NOTHING',
        values: [row.number, row.madeAt, row.kind, row.subject, row.state, row.madeBy, row.data, row.dataHash, row.hash, row.mac],
      });
      return rowCount === 1;
    },
  };
}
