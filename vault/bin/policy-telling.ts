/**
 * Tells the log of each set of policies that comes into force: kept first, so that whoever reads its digest there finds it, and then named in an entry. A set is in force at
 * once, as it may take something away. Where the database is away the telling is tried again until it is done, or a review of a past day would be shown the set of before.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Entry } from '../../audit/entry.ts';
import type { Policy } from '../policy.ts';

export interface PolicyTellingOptions {
  /** Keeps a set under its digest. */
  readonly keep: (digest: string, files: Policy['files']) => Promise<void>;
  /** Commits an entry. */
  readonly record: (entry: Entry) => Promise<void>;
  /** Told of the first failure for a set. Must not throw. */
  readonly failed: (error: unknown) => void;
  readonly now: () => Date;
  readonly retryMs: number;
}

export class PolicyTelling {
  readonly #options: PolicyTellingOptions;
  readonly #closing = new AbortController();
  /** In the order in which the sets came into force: the last entry names the one that is. */
  #telling: Promise<void> = Promise.resolve();

  constructor(options: PolicyTellingOptions) {
    this.#options = options;
  }

  /** To be called in the turn in which the set came into force. */
  tell({ digest, files }: Pick<Policy, 'digest' | 'files'>): void {
    const at = this.#options.now();
    this.#telling = this.#telling.then(() => this.#tell(digest, files, at));
  }

  /** Resolves once all was told, or tried for the last time. Never throws: the next start names its set in any case. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#telling;
  }

  async #tell(digest: string, files: Policy['files'], at: Date): Promise<void> {
    const { keep, record, failed, retryMs } = this.#options;
    const { signal } = this.#closing;
    for (let tries = 1; ; tries += 1) {
      const isLast = signal.aborted;
      try {
        await keep(digest, files);
        await record({ action: 'policy.reload', at, outcome: 'allowed', detail: { policies: digest } });
        return;
      } catch (error) {
        if (tries === 1) failed(error);
        if (isLast) return;
      }
      await sleep(retryMs, undefined, { ref: false, signal }).catch(() => undefined);
    }
  }
}
