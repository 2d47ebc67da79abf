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
import { TicketSecret, makeSecret, ticketRotationMs } from '../ticket-secret.ts';
import type { DatabaseAccess } from './database.ts';
import { explain } from './explain.ts';
import { startWorker } from './worker.ts';

interface Ports {
  readonly api: number | null;
  readonly admin: number | null;
}

/**
 * What a worker process is told when it asks: over its channel, as an environment is bounded (128 KiB a variable) and anybody of the same user
 * can read it.
 */
interface Task {
  readonly home: string;
  readonly config: Config;
  readonly access: DatabaseAccess;
  readonly index: number;
  /** Of session tickets, base64; see `TicketSecret`. */
  readonly tickets: string;
}

/** What the primary says: an answer, or that the tickets' secret is another now. */
type Order = { readonly kind: 'task'; readonly task: Task } | { readonly kind: 'tickets'; readonly tickets: string };

type Message = { readonly kind: 'ask' | 'rotate_tickets' } | { readonly kind: 'open'; readonly ports: Ports } | { readonly kind: 'failed'; readonly reason: string } | { readonly kind: 'readiness'; readonly readiness: Readiness };

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
  let tickets = makeSecret();
  // One that has not asked yet gets what is then the secret. What crosses on its way a secret that a worker has just made for itself is replaced as soon as
  // its word is heard: until then a ticket is good that no longer should be, and each request on it is checked for revocation all the same.
  const rotateTickets = (): void => {
    tickets = makeSecret();
    for (const { process } of states.values()) tellWorker(process, { kind: 'tickets', tickets: tickets.toString('base64') });
  };
  setInterval(rotateTickets, ticketRotationMs).unref();

  const start = (index: number): void => {
    const process = cluster.fork(overwriteFreedMemory);
    const state: { process: Process; ports: Ports | null; readiness: Readiness | null } = { process, ports: null, readiness: null };
    states.set(index, state);
    process.on('error', () => undefined);
    process.on('message', (message: Message) => {
      if (message.kind === 'ask') tellWorker(process, { kind: 'task', task: { home, config, access, index, tickets: tickets.toString('base64') } });
      else if (message.kind === 'rotate_tickets') rotateTickets();
      else if (message.kind === 'open') state.ports = message.ports;
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

/** To one that has just ended it comes to nothing. */
function tellWorker(process: Process, order: Order): void {
  if (process.isConnected()) process.send(order, undefined, undefined, () => undefined);
}

/** The whole life of a worker process. @returns its exit code. */
export async function runWorkerProcess(): Promise<number> {
  if (!cluster.isWorker) {
    process.stderr.write('cofre worker: is for cofre serve to start\n');
    return 2;
  }
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
  const { promise: given, resolve: take } = Promise.withResolvers<Task>();
  let secret: TicketSecret | null = null;
  process.on('message', (message: Order) => {
    if (message.kind === 'task') take(message.task);
    else if (message.kind === 'tickets') secret?.take(Buffer.from(message.tickets, 'base64'));
  });
  // What is said before somebody listens is lost, so it is asked for.
  tell({ kind: 'ask' });
  const task = await Promise.race([given, stopped]);
  if (task === undefined) {
    process.disconnect?.();
    return 0;
  }
  const { home, config, access, index } = task;
  const tickets = new TicketSecret({ secret: Buffer.from(task.tickets, 'base64'), ask: () => tell({ kind: 'rotate_tickets' }) });
  secret = tickets;
  const log = createLog(config.log.level);
  const metrics = createMetrics();
  try {
    await using stack = new AsyncDisposableStack();
    hardenProcess({ swap: config.hardening.swap, dumpable: config.hardening.dumpable });
    answerMetrics(metrics.registry);
    const worker = await startWorker(stack, { home, config, access, log, metrics, index, tickets });
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
