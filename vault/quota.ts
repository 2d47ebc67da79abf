/**
 * How often a caller may detokenize, for which purpose: exact, durable and shared by all processes, because the debit is part of the
 * transaction that commits the call's entry.
 */
import { createHash } from 'node:crypto';
import type { ClientBase } from 'pg';
import { byteaArray, int4Array, textArray, timestampArray } from './binary-arrays.ts';
import type { Purpose } from './policy.ts';

/** One line of the configuration: of one caller, or of all callers of a tenant together; for one purpose, or for all of them together. */
export interface QuotaRule {
  readonly caller?: string;
  readonly tenant?: string;
  readonly purpose?: Purpose;
  /** Tokens asked for in a minute, an hour, a day of UTC: each token of a batch counts. */
  readonly per_minute?: number;
  readonly per_hour?: number;
  readonly per_day?: number;
  /** Different tokens in a day of UTC. One that was asked for that day costs nothing more. */
  readonly distinct_tokens_per_day?: number;
}

/** One limit that binds a call. */
export interface QuotaLimit {
  /** What is counted, whose, and for which purpose: with its window the name of the counter. */
  readonly subject: string;
  readonly counts: 'tokens' | 'distinct_tokens';
  readonly windowSeconds: number;
  /** Allowed in one window. */
  readonly most: number;
}

/** What one call takes. */
export interface QuotaDebit {
  readonly tenantId: number;
  readonly limits: readonly QuotaLimit[];
  /** As they were asked for: one that stands there twice counts twice, and is one distinct token. */
  readonly tokens: readonly string[];
}

const minute = 60;
const hour = 3600;
const day = 86_400;

/** The limits that bind a caller for a purpose. Memoized: callers and purposes are few. */
export function quotaRules(rules: readonly QuotaRule[]): (spiffeId: string, tenant: string, purpose: Purpose) => readonly QuotaLimit[] {
  const memo = new Map<string, readonly QuotaLimit[]>();
  return (spiffeId, tenant, purpose) => {
    const key = `${spiffeId} ${purpose}`;
    let limits = memo.get(key);
    if (limits === undefined) {
      limits = rules
        .filter((rule) => (rule.caller === undefined || rule.caller === spiffeId) && (rule.tenant === undefined || rule.tenant === tenant) && (rule.purpose === undefined || rule.purpose === purpose))
        .flatMap(limitsOf);
      memo.set(key, limits);
    }
    return limits;
  };
}

function limitsOf(rule: QuotaRule): QuotaLimit[] {
  // The tenant of a counter is in its row: `*` is all callers of it.
  const whose = `${rule.caller ?? '*'} ${rule.purpose ?? '*'}`;
  const limit = (counts: QuotaLimit['counts'], windowSeconds: number, most: number | undefined): QuotaLimit[] => (most === undefined ? [] : [{ subject: `${counts} ${whose}`, counts, windowSeconds, most }]);
  return [...limit('tokens', minute, rule.per_minute), ...limit('tokens', hour, rule.per_hour), ...limit('tokens', day, rule.per_day), ...limit('distinct_tokens', day, rule.distinct_tokens_per_day)];
}

/** A counter in one window, as this transaction sees it. */
interface Counter {
  readonly tenantId: number;
  readonly limit: QuotaLimit;
  readonly beginsAt: Date;
  /** Added when its row was locked, before anybody knew what is granted. */
  added: number;
  /** What others used before us. */
  used: number;
  /** What we grant. */
  granted: number;
}

/** What the quotas cover of a group of calls. */
export interface Debited {
  /** In the order of the debits: null where the quota covers the call, else the seconds after which to come again, at least 1. */
  readonly refusals: readonly (number | null)[];
  /**
   * Puts the counters right where something was refused, and notes distinct tokens. To be awaited before COMMIT, beside other statements of the transaction: it needs no answer of theirs.
   * Does nothing, and asks the database nothing, in the usual case.
   */
  readonly settle: () => Promise<void>;
}

/**
 * Debits calls in their order and says which of them the quotas still cover: a call is granted where every limit that binds it has room for
 * all of it, and then it is counted by each; one that is refused is counted by none.
 *
 * Each transaction first adds all that is asked of it and so holds the counters' row locks until it ends; what lies below the limit is granted, so no two
 * transactions can grant the same unit, and what it then refuses it takes off again. Counters are locked in the order of their names: two transactions never wait for each other.
 */
export async function debitQuotas(tx: ClientBase, debits: readonly QuotaDebit[], now: Date): Promise<Debited> {
  const counters = new Map<string, Counter>();
  const ofDebit = debits.map(({ tenantId, limits, tokens }) =>
    limits.map((limit) => {
      const name = nameOf(tenantId, limit.subject, limit.windowSeconds);
      let counter = counters.get(name);
      if (counter === undefined) counters.set(name, (counter = { tenantId, limit, beginsAt: windowOf(now, limit.windowSeconds), added: 0, used: Number.POSITIVE_INFINITY, granted: 0 }));
      // Of distinct tokens it is not known yet how many are new: the row is only locked.
      if (limit.counts === 'tokens') counter.added += tokens.length;
      return counter;
    }),
  );
  const sorted = [...counters.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, counter]) => counter);
  const marks = new Map<string, Buffer>();
  const distinct = debits.map(({ limits, tokens }) => limits.map(({ counts, subject }) => (counts === 'tokens' ? [] : [...new Set(tokens)].map((token) => markOf(subject, token)))));
  for (const [at, ofLimits] of distinct.entries()) for (const list of ofLimits) for (const mark of list) marks.set(keyOf(debits[at]!.tenantId, mark), mark);

  const locked = tx.query<{ tenant_id: number; subject: string; window_seconds: number; used: string }>({
    name: 'debit-quotas',
    text: `INSERT INTO quota_counts AS c (tenant_id, subject, window_seconds, begins_at, used)
           SELECT q.tenant_id, q.subject, q.window_seconds, q.begins_at, q.used FROM unnest($1::int[], $2::text[], $3::int[], $4::timestamptz[], $5::int[]) AS q(tenant_id, subject, window_seconds, begins_at, used)
           ON CONFLICT (tenant_id, subject, window_seconds, begins_at) DO UPDATE SET used = c.used + EXCLUDED.used
           RETURNING tenant_id, subject, window_seconds, used`,
    values: [...namesOf(sorted), int4Array(sorted.map(({ added }) => added))],
  });
  // Behind it on the wire, so it sees what the holders of the locks before us have committed.
  const today = dayOf(now);
  const [{ rows }, noted] = await Promise.all([
    locked,
    marks.size === 0
      ? null
      : tx.query<{ tenant_id: number; mark: Buffer }>({
          name: 'find-quota-tokens',
          text: 'SELECT t.tenant_id, t.mark FROM unnest($1::int[], $2::bytea[]) AS q(tenant_id, mark) JOIN quota_tokens t ON t.tenant_id = q.tenant_id AND t.day = $3::date AND t.mark = q.mark',
          values: [int4Array([...marks.keys()].map(tenantOf)), byteaArray([...marks.values()]), today],
        }),
  ]);
  const known = new Set((noted?.rows ?? []).map((row) => keyOf(row.tenant_id, row.mark)));
  // A counter that was not told of, which cannot be, grants nothing.
  for (const row of rows) {
    const counter = counters.get(nameOf(row.tenant_id, row.subject, row.window_seconds));
    if (counter !== undefined) counter.used = Number(row.used) - counter.added;
  }

  const fresh = new Map<string, Buffer>();
  const refusals = debits.map((debit, index): number | null => {
    const asked = ofDebit[index]!.map((counter, at) => {
      const newTokens = distinct[index]![at]!.filter((mark) => !known.has(keyOf(debit.tenantId, mark)));
      return { counter, newTokens, amount: counter.limit.counts === 'tokens' ? debit.tokens.length : newTokens.length };
    });
    const short = asked.filter(({ counter, amount }) => amount > 0 && counter.used + counter.granted + amount > counter.limit.most);
    if (short.length > 0) return Math.max(...short.map(({ counter }) => secondsLeft(now, counter.limit.windowSeconds)));
    for (const { counter, newTokens, amount } of asked) {
      counter.granted += amount;
      for (const mark of newTokens) {
        const key = keyOf(debit.tenantId, mark);
        known.add(key);
        fresh.set(key, mark);
      }
    }
    return null;
  });
  return {
    refusals,
    async settle() {
      const wrong = sorted.filter(({ added, granted }) => added !== granted);
      await Promise.all([
        wrong.length === 0
          ? null
          : tx.query({
              name: 'correct-quotas',
              text: `UPDATE quota_counts c SET used = c.used + q.more FROM unnest($1::int[], $2::text[], $3::int[], $4::timestamptz[], $5::int[]) AS q(tenant_id, subject, window_seconds, begins_at, more)
                     WHERE c.tenant_id = q.tenant_id AND c.subject = q.subject AND c.window_seconds = q.window_seconds AND c.begins_at = q.begins_at`,
              values: [...namesOf(wrong), int4Array(wrong.map(({ added, granted }) => granted - added))],
            }),
        fresh.size === 0
          ? null
          : tx.query({
              name: 'note-quota-tokens',
              text: 'INSERT INTO quota_tokens (tenant_id, day, mark) SELECT q.tenant_id, $3::date, q.mark FROM unnest($1::int[], $2::bytea[]) AS q(tenant_id, mark)',
              values: [int4Array([...fresh.keys()].map(tenantOf)), byteaArray([...fresh.values()]), today],
            }),
      ]);
    },
  };
}

/** Removes counters and marks of windows that are over. */
export async function sweepQuotas(client: ClientBase, now: Date): Promise<void> {
  // An hour more than the window: no clock of ours is still in it.
  await client.query({ text: "DELETE FROM quota_counts WHERE begins_at < $1::timestamptz - (window_seconds + 3600) * interval '1 second'", values: [now] });
  await client.query({ text: 'DELETE FROM quota_tokens WHERE day < $1::date', values: [dayOf(new Date(now.getTime() - (day + hour) * 1000))] });
  await client.query({ text: "DELETE FROM quota_usage WHERE minute < $1::timestamptz - interval '1 hour'", values: [now] });
}

function namesOf(counters: readonly Counter[]): Buffer[] {
  return [
    int4Array(counters.map(({ tenantId }) => tenantId)),
    textArray(counters.map(({ limit }) => limit.subject)),
    int4Array(counters.map(({ limit }) => limit.windowSeconds)),
    timestampArray(counters.map(({ beginsAt }) => beginsAt)),
  ];
}

function nameOf(tenantId: number, subject: string, windowSeconds: number): string {
  return `${tenantId} ${subject} ${windowSeconds}`;
}

/** 16 bytes of SHA-256: two pairs that share them are not to be met. */
function markOf(subject: string, token: string): Buffer {
  return createHash('sha256').update(`${subject}\0${token}`).digest().subarray(0, 16);
}

function keyOf(tenantId: number, mark: Buffer): string {
  return `${tenantId} ${mark.toString('latin1')}`;
}

function tenantOf(key: string): number {
  return Number.parseInt(key, 10);
}

function windowOf(now: Date, seconds: number): Date {
  return new Date(Math.floor(now.getTime() / (seconds * 1000)) * seconds * 1000);
}

function secondsLeft(now: Date, windowSeconds: number): number {
  return Math.max(1, Math.ceil((windowOf(now, windowSeconds).getTime() + windowSeconds * 1000 - now.getTime()) / 1000));
}

/** A date of UTC, as PostgreSQL writes it. */
function dayOf(at: Date): string {
  return at.toISOString().slice(0, 10);
}
