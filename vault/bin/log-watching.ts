/** A process's watch over its own batches: whether the log holds them, how long calls may go on while it does not say so, and whether the clock stands behind it. */
import { Pool } from 'pg';
import type { ClientConfig } from 'pg';
import type { Entry } from '../../audit/entry.ts';
import { LogWatch } from '../../audit/log-watch.ts';
import type { NoteSigner } from '../../audit/note.ts';
import { postgresLogView } from '../../audit/tree-store.ts';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import type { Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import type { EntryOperation, EntryOutcome } from '../transaction.ts';
import type { GroupCommit } from '../commit.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import { VaultError } from '../errors.ts';
import { endInTime } from './database.ts';

export interface WatchedLog {
  /** What readiness says. */
  state(): { readonly ok: boolean; readonly detail: string };
  /** Rejects with `audit_unavailable` while no call may be added to the log; null otherwise, which costs nothing. */
  refusal(): Promise<never> | null;
}

export interface WatchOptions {
  readonly config: Config;
  readonly connection: ClientConfig;
  readonly signer: Pick<NoteSigner, 'algorithm' | 'publicKeySpki'>;
  readonly writers: readonly GroupCommit<EntryOperation, EntryOutcome>[];
  readonly record: (entry: Entry) => Promise<void>;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly now: () => Date;
}

const everyMs = 1000;

export function watchLog(stack: AsyncDisposableStack, { config, connection, signer, writers, record, log, metrics, now }: WatchOptions): WatchedLog {
  const pool = new Pool({ ...connection, max: 1, application_name: 'cofre log watch', query_timeout: 5000 });
  pool.on('error', () => undefined);
  const watch = new LogWatch(postgresLogView(pool), signer, writers);
  const maxUnsignedMs = milliseconds(config.log.max_unsigned);
  const maxBackMs = milliseconds(config.log.max_clock_back);
  const clockBehindMs = (): number => Math.max(0, ...writers.map((writer) => writer.clockBehindMs()));
  /** What has been told of, so that it is told once. */
  let told: string | null = null;
  let logged: string | null = null;

  const tell = (kind: string, detail: Entry['detail']): void => {
    if (told === kind) return;
    told = kind;
    if (logged !== kind) log.error('the log is not as it must be', { kind });
    logged = kind;
    record({ action: 'log.alert', at: now(), outcome: 'failed', detail: { kind, ...detail } }).catch(() => {
      // The database is away, or refuses: it is told of once it takes entries again.
      if (told === kind) told = null;
    });
  };
  let ended = false;
  let timer: NodeJS.Timeout | undefined;
  let checking: Promise<void> = Promise.resolve();
  const check = async (): Promise<void> => {
    try {
      await watch.check();
    } catch (error) {
      log.debug('the log could not be looked at', { error: describe(error) });
    }
    if (watch.fault !== null) tell('not_as_signed', { reason: watch.fault });
    else if (watch.lagMs() > maxUnsignedMs) tell('unsigned', { seconds: Math.round(watch.lagMs() / 1000) });
    else if (clockBehindMs() > maxBackMs) tell('clock_back', { seconds: Math.round(clockBehindMs() / 1000) });
    else told = logged = null;
    if (!ended) schedule();
  };
  const schedule = (): void => {
    timer = setTimeout(() => {
      checking = check();
    }, everyMs).unref();
  };
  schedule();
  stack.defer(async () => {
    ended = true;
    clearTimeout(timer);
    await checking;
    await endInTime(pool);
  });

  metrics.gauge('cofre_log_awaited_seconds', 'How long the oldest batch of this process has been waiting for a signed checkpoint.', () => watch.lagMs() / 1000, 'max');
  metrics.gauge('cofre_log_fault', 'Whether the log in the database is not the one that was signed.', () => (watch.fault === null ? 0 : 1), 'max');
  metrics.gauge('cofre_clock_behind_seconds', 'How far the clock is behind the log.', () => clockBehindMs() / 1000, 'max');

  const refused = (): boolean => watch.fault !== null || watch.lagMs() > maxUnsignedMs;
  return {
    state() {
      if (watch.fault !== null) return { ok: false, detail: watch.fault };
      const seconds = Math.round(watch.lagMs() / 1000);
      if (refused()) return { ok: false, detail: `no signed checkpoint over what was committed for ${seconds} s` };
      if (clockBehindMs() > maxBackMs) return { ok: false, detail: `the clock is ${Math.round(clockBehindMs() / 1000)} s behind the log` };
      return { ok: true, detail: seconds < 10 ? 'batches come under signed checkpoints' : `no signed checkpoint for ${seconds} s` };
    },
    refusal: () => (refused() ? Promise.reject(new VaultError('audit_unavailable')) : null),
  };
}
