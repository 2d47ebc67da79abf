/** The cap on guessing of a serving process: its connection, its metrics and its alarm. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Pool } from 'pg';
import type { ClientConfig } from 'pg';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import type { Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import { Guessing } from '../guessing.ts';
import { endInTime } from './database.ts';

/** How long the last sharing may take. */
const shareAtEndMs = 3000;

/** Resolves once the counts of the day are taken over, as far as the database answers. They are shared for the last time when the stack is unwound. */
export async function openGuessing(stack: AsyncDisposableStack, options: { readonly config: Config; readonly connection: ClientConfig; readonly log: Log; readonly metrics: Metrics; readonly now: () => Date; readonly told: (caller: string, cards: number) => void }): Promise<Guessing> {
  const { config, connection, log, metrics, now, told } = options;
  const pool = new Pool({ ...connection, max: 1, application_name: 'cofre guessing' });
  pool.on('error', () => undefined);
  stack.defer(() => endInTime(pool));
  const guessing = new Guessing({
    distinctPerDay: config.guessing.distinct_per_day,
    mergeIntervalMs: milliseconds(config.guessing.merge_interval),
    now,
    db: pool,
    observer: {
      refused: metrics.count('cofre_guessing_refused_total', 'Cards refused because their caller brought too many distinct ones with the same first six and last four digits in a day: an alarm.'),
      exceeded: metrics.count('cofre_guessing_exempt_total', 'Cards that would have been refused so, of callers that may import.'),
      alarm(caller, cards) {
        log.warn('a caller brings more card numbers of the same first six and last four digits than the cap allows: it may be guessing', { caller, count: cards });
        told(caller, cards);
      },
      sharing(failure) {
        if (failure === null) log.info('the counts of the cap on guessing are shared again');
        else log.warn('the counts of the cap on guessing are not shared', { error: describe(failure) });
      },
    },
  });
  // A database that has fallen silent is not waited for: what it was not told is counted anew.
  stack.defer(async () => {
    await Promise.race([guessing.close(), sleep(shareAtEndMs, undefined, { ref: false })]);
  });
  metrics.gauge('cofre_guessing_exempt_most', 'Distinct cards with the same first six and last four digits of which a caller that may import brought most today, as far as a process saw.', () => guessing.exemptMost, 'max');
  metrics.gauge('cofre_guessing_shared_ago_seconds', 'How long ago a process shared its counts of the cap on guessing.', () => guessing.sharedAgoMs() / 1000, 'max');
  await guessing.merge();
  return guessing;
}
