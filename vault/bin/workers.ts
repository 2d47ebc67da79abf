/**
 * Several serving processes behind one set of listeners, on several cores: Node's cluster gives connections to them in turn. Each has its
 * own writers, sessions and keys; they meet in the database only. One that dies is started again.
 */
import cluster from 'node:cluster';
import type { Worker as Process } from 'node:cluster';
import { fileURLToPath } from 'node:url';
import { hardenProcess, overwriteFreedMemory } from '../../platform-adapters/linux/hardening.ts';
import type { Readiness } from '../../platform-adapters/telemetry/listener.ts';
import { createLog, describe } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import { answerMetrics, collectMetrics } from '../../platform-adapters/telemetry/cluster.ts';
import { createMetrics } from '../../platform-adapters/telemetry/metrics.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import type { DatabaseAccess } from './database.ts';
import { explain } from './explain.ts';
import { startWorker } from './worker.ts';

interface Ports {
  readonly api: number | null;
  readonly admin: number | null;
}

/** What a worker process is told at its start, in its environment: not a secret that its files do not hold. */
interface Task {
  readonly home: string;
  readonly config: Config;
  readonly access: DatabaseAccess;
  readonly index: number;
}

type Message = { readonly kind: 'open'; readonly ports: Ports } | { readonly kind: 'failed'; readonly reason: string } | { readonly kind: 'readiness'; readonly readiness: Readiness };

const taskVariable = 'COFRE_WORKER_TASK';
/** Time between a worker's end and its successor's start. */
const restartPauseMs = 500;
const readinessMs = 500;

export interface Workers {
  /** Resolves once all of them serve. @throws Error of one line if one cannot start. */
  readonly ready: Promise<Ports>;
  readiness(): Readiness;
  /** Prometheus text of all workers together. */
  metrics(): Promise<string>;
  signal(name: NodeJS.Signals): void;
  /** Ends them in order and waits for it. */
  stop(): Promise<void>;
}

export function superviseWorkers(options: { readonly home: string; readonly config: Config; readonly access: DatabaseAccess; readonly log: Log }): Workers {
  const { home, config, access, log } = options;
  cluster.setupPrimary({ exec: fileURLToPath(new URL('cofre.ts', import.meta.url)), args: ['worker'] });
  const states = new Map<number, { process: Process; ports: Ports | null; readiness: Readiness | null }>();
  const { promise: ready, resolve, reject } = Promise.withResolvers<Ports>();
  let stopping = false;
  let served = false;

  const start = (index: number): void => {
    const task: Task = { home, config, access, index };
    const process = cluster.fork({ ...overwriteFreedMemory, [taskVariable]: JSON.stringify(task) });
    const state: { process: Process; ports: Ports | null; readiness: Readiness | null } = { process, ports: null, readiness: null };
    states.set(index, state);
    process.on('error', () => undefined);
    process.on('message', (message: Message) => {
      if (message.kind === 'open') state.ports = message.ports;
      else if (message.kind === 'readiness') state.readiness = message.readiness;
      else if (message.kind === 'failed' && !served) reject(new Error(message.reason));
      if (!served && states.size === config.workers && [...states.values()].every(({ ports }) => ports !== null)) {
        served = true;
        resolve(state.ports!);
      }
    });
    process.once('exit', (code, signal) => {
      state.ports = null;
      state.readiness = null;
      if (stopping) return;
      if (!served) return reject(new Error(`a worker process ended (${signal === '' || signal === null ? code : signal}) before it served`));
      log.error('a worker process ended and is started again', { kind: signal === '' || signal === null ? `exit ${code}` : signal });
      setTimeout(() => {
        if (!stopping) start(index);
      }, restartPauseMs).unref();
    });
  };
  for (let index = 0; index < config.workers; index += 1) start(index);

  return {
    ready,
    readiness() {
      const all = [...states.values()];
      const serving = all.filter(({ ports }) => ports !== null).length;
      const parts: Record<string, { ok: boolean; detail: string }> = { workers: { ok: serving === config.workers, detail: `${serving} of ${config.workers} serve` } };
      // The worst of each part stands for all.
      for (const { readiness } of all) for (const [name, part] of Object.entries(readiness ?? {})) if (parts[name]?.ok !== false) parts[name] = part;
      return parts;
    },
    metrics: collectMetrics,
    signal(name) {
      for (const { process } of states.values()) process.process.kill(name);
    },
    async stop() {
      stopping = true;
      const ended = [...states.values()].map(async ({ process }) => {
        if (process.isDead()) return;
        const exit = new Promise<void>((done) => process.once('exit', () => done()));
        process.process.kill('SIGTERM');
        // A worker has its own deadlines for calls in flight, the writers' included; one that outlives them hangs.
        const hung = setTimeout(() => process.process.kill('SIGKILL'), 4 * milliseconds(config.listeners.drain_timeout) + 10_000);
        await exit;
        clearTimeout(hung);
      });
      await Promise.all(ended);
    },
  };
}

/** The whole life of a worker process. @returns its exit code. */
export async function runWorkerProcess(env: NodeJS.ProcessEnv): Promise<number> {
  const text = env[taskVariable];
  if (text === undefined || !cluster.isWorker) {
    process.stderr.write('cofre worker: is for cofre serve to start\n');
    return 2;
  }
  delete process.env[taskVariable];
  const { home, config, access, index } = JSON.parse(text) as Task;
  const log = createLog(config.log.level);
  const metrics = createMetrics();
  const stopped = new Promise<void>((done) => {
    process.once('SIGTERM', () => done());
    // From a terminal Ctrl-C may reach the whole group; the primary decides.
    process.on('SIGINT', () => undefined);
    // The primary is gone, however it went.
    process.once('disconnect', () => done());
  });
  // It went while this process spoke to it, as one does to open a listener, which will now never be: nothing has been served, and nobody is left to be told.
  cluster.worker?.once('error', () => process.exit(1));
  const tell = (message: Message): void => {
    if (process.connected) process.send?.(message, undefined, undefined, () => undefined);
  };
  try {
    await using stack = new AsyncDisposableStack();
    hardenProcess({ swap: config.hardening.swap, dumpable: config.hardening.dumpable });
    answerMetrics(metrics.registry);
    const worker = await startWorker(stack, { home, config, access, log, metrics, index });
    tell({ kind: 'open', ports: await worker.open() });
    const telling = setInterval(() => tell({ kind: 'readiness', readiness: worker.readiness() }), readinessMs);
    stack.defer(() => clearInterval(telling));
    await stopped;
  } catch (error) {
    log.error('a worker process failed', { error: describe(error) });
    tell({ kind: 'failed', reason: explain(error) });
    process.disconnect?.();
    return 1;
  }
  process.disconnect?.();
  return 0;
}
