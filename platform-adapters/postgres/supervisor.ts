/** Keeps the embedded PostgreSQL running: one that dies by itself, or is killed, is started again. */
import { setTimeout as sleep } from 'node:timers/promises';
import { startEmbedded, type EmbeddedOptions, type EmbeddedPostgres } from './embedded.ts';
import { endAtOnce, isStranded } from './server-process.ts';

/** A PostgreSQL that comes back. Its address stays the same over every restart. */
export interface SupervisedPostgres {
  readonly adminUrl: string;
  /** Ends the supervision and the server. May be called again. */
  stop(): Promise<void>;
}

/** Time between attempts to start a server that ended. */
const RESTART_PAUSE_MS = 500;
/** How often it is looked whether the server stands still, and how long it must. */
const LOOK_MS = 1000;
const STRANDED_LOOKS = 8;

/**
 * Starts PostgreSQL as {@link startEmbedded} does, and again whenever it ends without `stop` having been called, until it runs; one that stands still for good ({@link isStranded}) is ended first. Recovery from its WAL is PostgreSQL's own: what was committed is there.
 *
 * `report` is told of each end and each restart in constant words, and with the reason why one failed: the one line of {@link startEmbedded}'s error, which holds no value of the database.
 *
 * @throws what startEmbedded throws, at the first start only.
 */
export async function superviseEmbedded(given: EmbeddedOptions, report: (event: 'postgres_ended' | 'postgres_restarted' | 'postgres_not_restarted' | 'postgres_stranded', reason?: string) => void): Promise<SupervisedPostgres> {
  const stop = new AbortController();
  const options: EmbeddedOptions = { ...given, unwanted: given.unwanted === undefined ? stop.signal : AbortSignal.any([given.unwanted, stop.signal]) };
  let current: EmbeddedPostgres = await startEmbedded(options);
  let stopping = false;
  const { adminUrl } = current;

  // Between its end and the next start the pid is nobody's, and may be another's.
  let runs = true;
  let looks = 0;
  const looking = setInterval(() => {
    looks = runs && isStranded(current.pid) ? looks + 1 : 0;
    if (looks < STRANDED_LOOKS || stopping) return;
    looks = 0;
    report('postgres_stranded');
    endAtOnce(current.pid);
  }, LOOK_MS).unref();

  const watched = (async () => {
    for (;;) {
      await current.exited;
      runs = false;
      if (stopping) return;
      report('postgres_ended');
      for (;;) {
        try {
          current = await startEmbedded(options);
          break;
        } catch (error) {
          if (stopping) return;
          report('postgres_not_restarted', error instanceof Error ? error.message : 'unknown');
          await sleep(RESTART_PAUSE_MS);
          if (stopping) return;
        }
      }
      runs = true;
      report('postgres_restarted');
      if (stopping) await current.stop();
    }
  })();

  return {
    adminUrl,
    async stop() {
      stopping = true;
      clearInterval(looking);
      stop.abort();
      await current.stop();
      await watched;
    },
  };
}
