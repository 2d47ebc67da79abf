/** The watch over what callers do, of a serving process: its rows, its alerts, and whom it holds back. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Pool } from 'pg';
import type { ClientConfig } from 'pg';
import type { Entry } from '../../audit/entry.ts';
import type { Part } from '../../platform-adapters/telemetry/listener.ts';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import type { Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import { Abuse } from '../abuse.ts';
import type { AbuseKind, AbuseSubject, TokenWatch } from '../abuse.ts';
import { CallerHistory } from '../caller-history.ts';
import type { Config } from '../config.ts';
import { ControlsError } from '../controls.ts';
import type { Controls } from '../controls.ts';
import type { CallerEvent } from '../outbox.ts';
import { endInTime } from './database.ts';

export interface AbuseWatch {
  readonly watch: TokenWatch;
  /** What the cap on guessing saw. */
  readonly guessed: (caller: string, cards: number) => void;
  /** What readiness says. */
  state(): Part;
}

export interface AbuseWatchOptions {
  readonly config: Config;
  readonly controls: Controls;
  /** As the detokenizing role, where this process has it. */
  readonly historyConnection: ClientConfig | null;
  /** Commits an entry, with what the rest of the platform is to learn of it. @throws VaultError if it cannot. */
  readonly record: (entry: Entry, events: readonly CallerEvent[]) => Promise<void>;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly now: () => Date;
  /** Which of the processes of this home it is, from 0. */
  readonly index: number;
}

const everyMs = 1000;
/** How often what callers opened is added to their history. */
const shareEvery = 5;
/** How long the last sharing may take. */
const shareAtEndMs = 3000;
/** Of what could not be written yet. An alert beyond it is still counted and logged. */
const maxWaiting = 1000;

export function openAbuseWatch(stack: AsyncDisposableStack, options: AbuseWatchOptions): AbuseWatch {
  const { config, controls, log, metrics, now, record } = options;
  /** What is still to be written: tried again each second while the database is away. */
  const waiting: (() => Promise<void>)[] = [];
  const attempt = async (work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      log.debug('an alert waits to be written', { error: describe(error) });
      if (waiting.length < maxWaiting) waiting.push(work);
    }
  };
  const suspend = async (kind: AbuseKind, { spiffeId, tenant }: AbuseSubject): Promise<void> => {
    // Twice where the entry failed after the row was there: then it is told of again.
    const added = await controls.add({ kind: 'suspension', subject: spiffeId, state: 'on', madeBy: `abuse.${kind}`, madeAt: now(), data: '' });
    if (!added) return;
    log.warn('a caller is suspended', { caller: spiffeId, kind });
    await attempt(() => record({ action: 'caller.suspend', at: now(), caller: spiffeId, tenant, outcome: 'allowed', detail: { by: `abuse.${kind}` } }, [{ type: 'caller.suspended', caller: spiffeId, tenant, data: { by: `abuse.${kind}` } }]));
  };
  const alert = (kind: AbuseKind, subject: AbuseSubject, count: number): void => {
    const { spiffeId, tenant } = subject;
    const suspends = config.abuse.suspend.includes(kind);
    // Before anything is written: its next call is refused.
    if (suspends) controls.holdBack(spiffeId);
    metrics.abuse(kind);
    log.warn('a caller does what its service would not', { caller: spiffeId, kind, count });
    void attempt(() => record({ action: 'abuse.alert', at: now(), caller: spiffeId, tenant, outcome: 'failed', detail: { kind, count, suspended: suspends ? 'yes' : 'no' } }, [{ type: 'abuse.alert', caller: spiffeId, tenant, data: { kind, count, suspended: suspends } }]));
    if (suspends) void attempt(() => suspend(kind, subject));
  };
  const abuse = new Abuse({
    limits: { unknownPerMinute: config.abuse.unknown_tokens_per_minute, sequential: config.abuse.sequential_tokens },
    now,
    isHoney: (tenantId, token) => controls.isHoney(tenantId, token),
    alert,
  });
  const history = options.historyConnection === null
    ? null
    : new CallerHistory({
        limits: { factor: config.abuse.volume_factor, floor: config.abuse.volume_floor, days: config.abuse.volume_days },
        db: poolOf(stack, options.historyConnection),
        now,
        unusual: (subject, asked) => abuse.told('unusual_volume', subject, asked),
      });

  let fault: string | null = null;
  let rounds = 0;
  const look = async (): Promise<void> => {
    try {
      await controls.read();
      if (fault !== null) log.info('the table of controls is as it was written again');
      fault = null;
    } catch (error) {
      if (error instanceof ControlsError && fault === null) {
        fault = error.message;
        log.error('the table of controls is not what was written: what this process knew stays in force', { reason: fault });
        void attempt(() => record({ action: 'log.alert', at: now(), outcome: 'failed', detail: { kind: 'controls', reason: error.message } }, []));
      } else log.debug('suspensions could not be looked at', { error: describe(error) });
    }
    for (const work of waiting.splice(0)) await attempt(work);
    rounds += 1;
    if (rounds % shareEvery === 0) await share();
    if (rounds % 3600 === 0 && options.index === 0) await history?.sweep().catch((error: unknown) => log.warn('old rows were not swept', { error: describe(error) }));
  };
  const share = async (): Promise<void> => {
    await history?.share().catch((error: unknown) => log.debug('what callers opened could not be added to their history', { error: describe(error) }));
  };
  let looking: Promise<void> | null = null;
  const timer = setInterval(() => {
    looking ??= look().finally(() => (looking = null));
  }, everyMs).unref();
  stack.defer(async () => {
    clearInterval(timer);
    // A database that has fallen silent is not waited for.
    await Promise.race([(async () => (await looking, await look(), await share()))(), sleep(shareAtEndMs, undefined, { ref: false })]);
  });
  metrics.gauge('cofre_callers_suspended', 'Callers that are suspended.', () => controls.suspended.length, 'max');
  metrics.gauge('cofre_honey_tokens', 'Decoy tokens that raise an alert when they are named.', () => controls.honeyCount, 'max');
  metrics.gauge('cofre_controls_fault', 'Whether the table of controls (suspensions, operators, changes) is not what was written.', () => (fault === null ? 0 : 1), 'max');

  return {
    watch: {
      named: (subject, tenantId, tokens, missed) => abuse.named(subject, tenantId, tokens, missed),
      opened(subject, tenantId, tokens, missed) {
        abuse.named(subject, tenantId, tokens, missed);
        history?.add(subject, tokens.length);
      },
    },
    guessed: (caller, cards) => abuse.told('card_guessing', { spiffeId: caller, tenant: tenantOf(caller) }, cards),
    state: () => ({ ok: fault === null, detail: fault ?? 'as they were written' }),
  };
}

function poolOf(stack: AsyncDisposableStack, connection: ClientConfig): Pool {
  const pool = new Pool({ ...connection, max: 1, application_name: 'cofre abuse watch', query_timeout: 5000 });
  pool.on('error', () => undefined);
  stack.defer(() => endInTime(pool));
  return pool;
}

/** Of a caller's id, which was checked when it came (vault/caller.ts). */
function tenantOf(spiffeId: string): string {
  return spiffeId.split('/')[4] ?? '';
}
