/** The database session of a writer: how it is opened, and how its errors are told apart by consequence. */
import type { ClientBase } from 'pg';

/** Opens connections for writers. Implemented by the composition root with node-postgres. */
export interface WriterConnector {
  /**
   * A new, connected session in pipeline mode, as the role that this process runs. Every query on it rejects within the
   * configured timeout, after which the session is broken for good.
   *
   * @throws whatever node-postgres throws, when the database is away or refuses.
   */
  connect(): Promise<WriterSession>;
}

export interface WriterSession {
  readonly client: ClientBase;
  /** Whether the session can still be used; false as soon as its connection is known to be gone. */
  alive(): boolean;
  /** Ends the session at once; a transaction in it that was not committed never will be. Never throws. */
  destroy(): void;
  /** Ends the session in order. Never throws. */
  end(): Promise<void>;
}

/**
 * Begins a transaction that may write. Nothing else on a prepared session may: statements follow BEGIN on the wire without waiting
 * for its answer, and if BEGIN itself fails (somebody cancels it), each of them would otherwise be committed on its own, without
 * its entry.
 */
export const begin = 'BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE';

/**
 * Sets a session up for the hot path.
 *
 * Plans are prepared once and live long, until somebody analyzes the tables: with everything forbidden but index scans and nested
 * loops, and statements that leave no choice among these (vault/card-store.ts), a plan made while the tables were empty is also right
 * when they are not. `synchronous_commit` and the isolation level are stated because a role or database setting
 * may have changed them: what a statement of ours waited for (a lock, a twin's row, a lost transaction's end) the next one must see.
 */
export async function prepareSession(client: ClientBase, maxStatementMs: number): Promise<void> {
  await client.query(
    `SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
     SET plan_cache_mode = force_generic_plan; SET default_transaction_read_only = on; SET default_transaction_isolation = 'read committed'; SET synchronous_commit = on; SET statement_timeout = ${maxStatementMs}; SET idle_in_transaction_session_timeout = '15s'`,
  );
}

/** What an error of the database means for the transaction that met it. */
export type DatabaseFailure =
  /** The connection is gone or unusable; whether a COMMIT under way took effect is unknown. */
  | 'lost'
  /** Rolled back for certain, and the same work may well succeed now. */
  | 'conflict'
  /** Rolled back for certain; the database takes no writes at present (disk full, read only, no privilege): nobody's fault in the batch. */
  | 'refused'
  /** Rolled back for certain, because of what one of the operations asked for. */
  | 'poison'
  /** Rolled back for certain: a statement took too long, or somebody cancelled it. One of the operations may be to blame, or none. */
  | 'slow';

/** SQLSTATE classes: https://www.postgresql.org/docs/current/errcodes-appendix.html */
export function classify(error: unknown): DatabaseFailure {
  const code = sqlState(error);
  if (code === null) return 'lost';
  const group = code.slice(0, 2);
  // 57P01..57P05: the server ends this session. 08: connection exceptions. Both may strike while a COMMIT runs.
  if (group === '08' || code.startsWith('57P')) return 'lost';
  // serialization_failure, deadlock_detected, lock_not_available
  if (code === '40001' || code === '40P01' || code === '55P03') return 'conflict';
  // statement_completion_unknown
  if (code === '40003') return 'lost';
  // Data exceptions and constraint violations come from a row; a raised exception (P0001) from a trigger on one.
  if (group === '22' || group === '23' || code === 'P0001') return 'poison';
  // query_canceled: statement_timeout, or pg_cancel_backend.
  if (code === '57014') return 'slow';
  // in_failed_sql_transaction: an earlier statement of the pipeline failed, and its error tells the cause.
  return 'refused';
}

function sqlState(error: unknown): string | null {
  if (typeof error !== 'object' || error === null || !('code' in error)) return null;
  return typeof error.code === 'string' && /^[0-9A-Z]{5}$/u.test(error.code) && !/^E[A-Z]{4}$/u.test(error.code) ? error.code : null;
}
