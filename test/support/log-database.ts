/** A vault's database whose log the tests' writers commit to, as the tokenizing role does. */
import { Client } from 'pg';
import type { Test } from 'tap';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { freshDatabase, withClient, type FreshDatabase } from './database.ts';
import { readTables, TestWriter, type LogTables, type Sink } from './log-tables.ts';

export class LogDatabase {
  readonly database: FreshDatabase;
  readonly #writing: Client;

  private constructor(database: FreshDatabase, writing: Client) {
    this.database = database;
    this.#writing = writing;
  }

  /** A fresh one, gone with the test. */
  static async open(t: Test): Promise<LogDatabase> {
    const database = await freshDatabase(t);
    const writing = new Client(database.connect('tokenize'));
    writing.on('error', () => undefined);
    await writing.connect();
    t.teardown(() => writing.end());
    return new LogDatabase(database, writing);
  }

  /** Commits a batch, and with the first one its writer. */
  readonly sink: Sink = async (chain, batch) => {
    await this.#writing.query('BEGIN');
    if (batch.number === 0n) await chain.register(this.#writing);
    await chain.append(this.#writing, batch);
    await this.#writing.query('COMMIT');
  };

  async writer(options: Parameters<typeof TestWriter.start>[1] = {}): Promise<TestWriter> {
    return await TestWriter.start(this.sink, options);
  }

  async tables(): Promise<LogTables> {
    return await withClient(adminConnection(this.database.adminUrl), (client) => readTables(client));
  }

  /** As the owner of the tables, past the triggers that guard them. */
  async tamper(...statements: readonly string[]): Promise<void> {
    await withClient(adminConnection(this.database.adminUrl), async (client) => {
      await client.query('ALTER TABLE batches DISABLE TRIGGER USER; ALTER TABLE writers DISABLE TRIGGER USER');
      for (const statement of statements) await client.query(statement);
    });
  }
}
