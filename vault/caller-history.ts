/**
 * How many tokens each caller asks to open in an hour, against its own history: an hour far above the busiest one of the last four weeks is told of. All processes of a vault add to
 * the same rows, every few seconds and off the path of a call; what a kill takes before that is not counted.
 */
import type { Pool } from 'pg';
import type { AbuseSubject } from './abuse.ts';

export interface HistoryLimits {
  /** How many times the busiest hour is unusual. */
  readonly factor: number;
  /** An hour of at most so many tokens never is. */
  readonly floor: number;
  /** A caller whose history is shorter is not judged. */
  readonly days: number;
}

export interface HistoryOptions {
  readonly limits: HistoryLimits;
  /** As a role that may write `caller_hours`. */
  readonly db: Pick<Pool, 'query'>;
  readonly now: () => Date;
  /** Must not throw. */
  readonly unusual: (subject: AbuseSubject, asked: number) => void;
}

const hourMs = 3_600_000;
const dayMs = 24 * hourMs;
/** How far back the busiest hour is looked for. */
const lookBackMs = 28 * dayMs;

interface Pending {
  readonly subject: AbuseSubject;
  asked: number;
}

export class CallerHistory {
  readonly #options: HistoryOptions;
  #pending = new Map<string, Pending>();
  /** The busiest hour of a caller before the one that runs, by caller; null: its history is too short. Read once an hour. */
  #busiest = new Map<string, number | null>();
  #busiestOf = 0;

  constructor(options: HistoryOptions) {
    this.#options = options;
  }

  /** Never waits. */
  add(subject: AbuseSubject, tokens: number): void {
    const pending = this.#pending.get(subject.spiffeId);
    if (pending === undefined) this.#pending.set(subject.spiffeId, { subject, asked: tokens });
    else pending.asked += tokens;
  }

  /** Adds what came since the last time to the rows, and judges the hour. One at a time. @throws what the database throws; callers that were not come to wait for the next time. */
  async share(): Promise<void> {
    const time = this.#options.now().getTime();
    const hour = new Date(Math.floor(time / hourMs) * hourMs);
    if (hour.getTime() !== this.#busiestOf) {
      this.#busiest = new Map();
      this.#busiestOf = hour.getTime();
    }
    // What comes meanwhile is added the next time.
    const taken = this.#pending;
    this.#pending = new Map();
    try {
      for (const [caller, { subject, asked }] of taken) {
        // Where this gets no answer it was added or not. Counted twice it would accuse somebody, so it is let go of.
        taken.delete(caller);
        await this.#judge(subject, hour, asked);
      }
    } catch (error) {
      for (const { subject, asked } of taken.values()) this.add(subject, asked);
      throw error;
    }
  }

  async #judge(subject: AbuseSubject, hour: Date, asked: number): Promise<void> {
    const { db, limits, unusual } = this.#options;
    const { rows } = await db.query<{ asked: string }>({
      name: 'add-caller-hour',
      text: 'INSERT INTO caller_hours AS h (caller, hour, asked) VALUES ($1, $2, $3) ON CONFLICT (caller, hour) DO UPDATE SET asked = h.asked + EXCLUDED.asked RETURNING asked',
      values: [subject.spiffeId, hour, asked],
    });
    const total = Number(rows[0]!.asked);
    if (total <= limits.floor) return;
    let busiest = this.#busiest.get(subject.spiffeId);
    if (busiest === undefined) this.#busiest.set(subject.spiffeId, (busiest = await this.#readBusiest(subject.spiffeId, hour)));
    if (busiest !== null && total > busiest * limits.factor) unusual(subject, total);
  }

  /** Removes hours that nobody looks back to. */
  async sweep(): Promise<void> {
    await this.#options.db.query({ text: 'DELETE FROM caller_hours WHERE hour < $1', values: [new Date(this.#options.now().getTime() - lookBackMs - dayMs)] });
  }

  async #readBusiest(caller: string, hour: Date): Promise<number | null> {
    const { rows } = await this.#options.db.query<{ most: string | null; first: Date | null }>({
      name: 'busiest-caller-hour',
      text: 'SELECT max(asked) AS most, min(hour) AS first FROM caller_hours WHERE caller = $1 AND hour < $2 AND hour >= $3',
      values: [caller, hour, new Date(hour.getTime() - lookBackMs)],
    });
    const { most, first } = rows[0]!;
    return most === null || first === null || hour.getTime() - first.getTime() < this.#options.limits.days * dayMs ? null : Number(most);
  }
}
