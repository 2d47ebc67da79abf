/** The servers under measurement, each with its load clients and a reader of its database's counters. */
import { join } from 'node:path';
import { fillExistingCards } from './existing-cards.ts';
import { openCounters, type CounterReader } from './database-counters.ts';
import { startLoadClient, type LoadClient } from './load-client.ts';
import type { Configuration, Options } from './options.ts';
import { startBare, startReal, type PostgresOptions, type Target } from './target.ts';

export interface Running {
  readonly target: Target;
  readonly counters: CounterReader;
  readonly client: LoadClient;
  /** Sends batches beside the measured calls. */
  readonly beside: LoadClient;
  nextCard: number;
  nextBesideCard: number;
}

/** Cards of the batches beside single calls, far from all others. */
const besideFirstCard = 500_000_000;

/** Development's quota is met within half a minute of nothing but detokenize calls. Debited it is as ever. */
const wideQuota = { quotas: [{ caller: 'spiffe://cofre.dev/tenant/acme/service/getnet', purpose: 'authorization', per_minute: 1_000_000_000 }] };

/** Starts the vault or the bare server in a folder of its own, over a database as the configuration wants it. What is started is stopped with `stack`. */
export async function startTarget(name: 'real' | 'bare', folder: string, options: Options, configuration: Configuration, progress: (line: string) => void, stack: AsyncDisposableStack): Promise<{ target: Target; counters: CounterReader }> {
  const { workers, custody, existing } = configuration;
  progress(`starting ${name} …`);
  const home = join(folder, name);
  const postgres: PostgresOptions = {
    stack,
    settings: {
      ...(options.checkpointSeconds === null ? {} : { checkpoint_timeout: `${options.checkpointSeconds}s` }),
      ...(options.sharedBuffers === null ? {} : { shared_buffers: options.sharedBuffers }),
    },
    ...(existing === 0 ? {} : { prepare: (databaseUrl) => fillExistingCards(databaseUrl, name === 'real' ? 'cards' : 'bare_cards', existing, (line) => progress(`${name}: ${line}`)) }),
  };
  const target =
    name === 'real'
      ? await startReal(home, { workers, custody, postgres, ...(options.soak === null ? { config: wideQuota } : {}) })
      : await startBare(home, { pool: options.barePool, processes: options.bareProcesses ?? workers, postgres });
  stack.defer(() => target.stop());
  const counters = await openCounters(target.databaseUrl!);
  stack.defer(() => counters.close());
  return { target, counters };
}

/** A server with the clients that measure it. */
export async function startRunning(...args: Parameters<typeof startTarget>): Promise<Running> {
  const stack = args.at(-1) as AsyncDisposableStack;
  const { target, counters } = await startTarget(...args);
  const client = startLoadClient();
  stack.defer(() => client.close());
  const beside = startLoadClient();
  stack.defer(() => beside.close());
  return { target, counters, client, beside, nextCard: 0, nextBesideCard: besideFirstCard };
}
