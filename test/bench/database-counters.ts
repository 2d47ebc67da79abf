/** What PostgreSQL counts of its own work, read by a connection of the bench's own before and after a measurement. */
import { Client } from 'pg';

export interface DatabaseCounters {
  /** Checkpoints that were completed. */
  readonly checkpoints: number;
  readonly walBytes: number;
  /** Pages written to the WAL whole, because they were touched for the first time after a checkpoint began. */
  readonly fullPageImages: number;
}

export interface CounterReader {
  read(): Promise<DatabaseCounters>;
  /** Bytes of the whole database on disk, without WAL. */
  readSize(): Promise<number>;
  close(): Promise<void>;
}

/** Opens the connection; `databaseUrl` is the owner's. */
export async function openCounters(databaseUrl: string): Promise<CounterReader> {
  const client = new Client({ connectionString: databaseUrl });
  client.on('error', () => undefined);
  await client.connect();
  const row = async (text: string): Promise<Record<string, string>> => (await client.query<Record<string, string>>(text)).rows[0]!;
  return {
    async read() {
      // The position in the WAL and not pg_stat_wal.wal_bytes: backends report there only now and then, so a short measurement would miss some.
      const found = await row(`SELECT c.num_done AS checkpoints, pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS wal_bytes, w.wal_fpi AS full_page_images FROM pg_stat_checkpointer c, pg_stat_wal w`);
      return { checkpoints: Number(found['checkpoints']), walBytes: Number(found['wal_bytes']), fullPageImages: Number(found['full_page_images']) };
    },
    readSize: async () => Number((await row('SELECT pg_database_size(current_database()) AS bytes'))['bytes']),
    close: () => client.end().catch(() => undefined),
  };
}

/** What came between two readings. */
export function difference(after: DatabaseCounters, before: DatabaseCounters): DatabaseCounters {
  return { checkpoints: after.checkpoints - before.checkpoints, walBytes: after.walBytes - before.walBytes, fullPageImages: after.fullPageImages - before.fullPageImages };
}
