/**
 * How often a caller may detokenize for a purpose: exact, durable and shared by all processes, because the debit is part of the
 * transaction that commits the call's entry.
 */
import type { ClientBase } from 'pg';
import { int4Array, textArray } from './binary-arrays.ts';

/** What one call takes from one quota. */
export interface QuotaDebit {
  readonly tenantId: number;
  /** Caller and purpose. */
  readonly subject: string;
  /** Tokens that the call asks for. */
  readonly amount: number;
  /** Allowed in one minute. */
  readonly limit: number;
}

/**
 * Debits calls in their order and says which of them the quota still covers.
 *
 * The counter also counts what is refused: each transaction takes its own interval of it under the row's lock, and what lies
 * below the limit is granted, so no two transactions can grant the same unit. Subjects are locked in sorted order.
 */
export async function debitQuotas(tx: ClientBase, debits: readonly QuotaDebit[], now: Date): Promise<boolean[]> {
  const totals = new Map<string, { debit: QuotaDebit; amount: number }>();
  for (const debit of debits) {
    const key = `${debit.tenantId} ${debit.subject}`;
    const total = totals.get(key);
    if (total === undefined) totals.set(key, { debit, amount: debit.amount });
    else total.amount += debit.amount;
  }
  const sorted = [...totals.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, total]) => total);
  const minute = minuteOf(now);
  const { rows } = await tx.query<{ tenant_id: number; subject: string; used: number }>({
    name: 'debit-quotas',
    // Far above any limit the counter stops, so that a flood cannot overflow it.
    text: `INSERT INTO quota_usage AS u (tenant_id, subject, minute, used)
           SELECT q.tenant_id, q.subject, $4::timestamptz, q.amount FROM unnest($1::int[], $2::text[], $3::int[]) AS q(tenant_id, subject, amount)
           ON CONFLICT (tenant_id, subject, minute) DO UPDATE SET used = LEAST(u.used + EXCLUDED.used, 2000000000)
           RETURNING tenant_id, subject, used`,
    values: [int4Array(sorted.map(({ debit }) => debit.tenantId)), textArray(sorted.map(({ debit }) => debit.subject)), int4Array(sorted.map(({ amount }) => amount)), minute],
  });
  const position = new Map<string, number>();
  for (const row of rows) {
    const key = `${row.tenant_id} ${row.subject}`;
    position.set(key, row.used - (totals.get(key)?.amount ?? 0));
  }
  return debits.map((debit) => {
    const key = `${debit.tenantId} ${debit.subject}`;
    const before = position.get(key) ?? debit.limit;
    if (before + debit.amount > debit.limit) return false;
    position.set(key, before + debit.amount);
    return true;
  });
}

/** Seconds until the minute of `now` ends, at least 1: what a refused caller is told to wait. */
export function secondsToNextMinute(now: Date): number {
  return Math.max(1, 60 - now.getUTCSeconds());
}

/** Removes counters of minutes before `before`. */
export async function sweepQuotas(client: ClientBase, before: Date): Promise<void> {
  await client.query({ text: 'DELETE FROM quota_usage WHERE minute < $1::timestamptz', values: [before] });
}

function minuteOf(now: Date): Date {
  return new Date(Math.floor(now.getTime() / 60_000) * 60_000);
}
