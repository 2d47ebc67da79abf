/**
 * The processes that a vault starts beside its first one: several that serve behind one set of listeners, on several cores, to which Node's cluster
 * gives connections in turn, and one that sequences the log. Each has its own writers, sessions and keys; they meet in the database only. One that
 * dies is started again.
 */
import cluster from 'node:cluster';
import type { Worker as Process } from 'node:cluster';
import { fileURLToPath } from 'node:url';
import { hardenProcess, overwriteFreedMemory } from '../../platform-adapters/linux/hardening.ts';
import type { Readiness } from '../../platform-adapters/telemetry/listener.ts';
import { createLog, describe } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import { createMetrics } from '../../platform-adapters/telemetry/metrics.ts';
import type { MetricValues, Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import { TicketSecret, makeSecret, ticketRotationMs } from '../ticket-secret.ts';
import type { DatabaseAccess } from './database.ts';
import { explain } from './explain.ts';
import { goOnWithoutReader } from './output.ts';
import type { Ports } from './process.ts';
import { startSequencer } from './sequencer.ts';
import { startWorker } from './worker.ts';

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

/** What the primary says: an answer, that the tickets' secret is another now, a question, or that it is time to end. */
type Order = { readonly kind: 'task'; readonly task: Task } | { readonly kind: 'tickets'; readonly tickets: string } | { readonly kind: 'metrics' | 'stop' };

type Message =
  | { readonly kind: 'ask' | 'rotate_tickets' }
  | { readonly kind: 'open'; readonly ports: Ports }
  | { readonly kind: 'failed'; readonly reason: string }
  | { readonly kind: 'readiness'; readonly readiness: Readiness }
  | { readonly kind: 'metrics'; readonly values: MetricValues };

/** Time between a process's end and its successor's start: the first, and the longest while none comes to serve. */
const restartPauseMs = 500;
const maxRestartPauseMs = 8000;
const readinessMs = 500;
/** How long a process may say nothing before it no longer counts as one that serves: it hangs. And how long the sequencer's may be away before readiness says so: calls go on meanwhile, up to `log.max_unsigned`. */
const patienceMs = 10_000;
/** How long one that served may say nothing before it is killed, and another started in its place: its event loop stands still, and nobody else ends it. */
const hungMs = 60_000;
/** How often that is looked at. */
const watchMs = 2000;
/** For the metrics of a process. */
const metricsMs = 4000;

/** One place for a process, kept through its successors. */
interface Seat {
  readonly config: Config;
  readonly index: number;
  process: Process;
  /** Whether its process has said its first word. Before, it hears nothing, and any signal ends it. */
  listens: boolean;
  ports: Ports | null;
  readiness: Readiness | null;
  /** When a process of it last said that it serves; before the first one did, when that was started. */
  heardMs: number;
  pauseMs: number;
  /** Who waits for its metrics: null tells that they do not come. */
  asked: ((values: MetricValues | null) => void)[];
}

export interface Workers {
  /** Resolves once the sequencer sequences, or at once if there is none here. Until then no writer may be opened: a log that was turned back refuses the start. */
  readonly sequenced: Promise<void>;
  /** Resolves once all of them serve. @throws Error of one line if one cannot start. */
  readonly ready: Promise<Ports>;
  readiness(): Readiness;
  /** Of all of them that answer in time, and how many do not: they hang, or are not there. Never rejects. */
  metrics(): Promise<{ readonly told: MetricValues[]; readonly missing: number }>;
  signal(name: NodeJS.Signals): void;
  /** Ends them in order, the sequencer last so that it signs what the others leave, and waits for it. */
  stop(): Promise<void>;
}

/**
 * Starts `serving` processes, each with the roles of `config` but for the sequencer's, and one more for this if it is among them.
 *
 * @param options.serving 0 where the first process serves itself.
 */
export function superviseWorkers(options: { readonly home: string; readonly config: Config; readonly access: DatabaseAccess; readonly log: Log; readonly serving: number }): Workers {
  const { home, config, access, log } = options;
  const { promise: ready, resolve, reject } = Promise.withResolvers<Ports>();
  const { promise: sequenced, resolve: goOn, reject: stay } = Promise.withResolvers<void>();
  // Whoever waits for one of them need not wait for the other.
  for (const promise of [ready, sequenced]) promise.catch(() => undefined);
  let stopping = false;
  let served = false;
  let tickets = makeSecret();
  const fail = (error: Error): void => {
    stay(error);
    reject(error);
  };

  const start = (seat: Seat | null, seatConfig: Config, index: number): Seat => {
    // Its arguments show in a list of processes what it is for.
    cluster.setupPrimary({ exec: fileURLToPath(new URL('cofre.ts', import.meta.url)), args: seatConfig.roles.includes('sequencer') ? ['worker', 'sequencer'] : ['worker'] });
    const process = cluster.fork(overwriteFreedMemory);
    const state: Seat = seat ?? { config: seatConfig, index, process, listens: false, ports: null, readiness: null, heardMs: performance.now(), pauseMs: restartPauseMs, asked: [] };
    state.process = process;
    state.listens = false;
    let over = false;
    process.on('message', (message: Message) => {
      // What it said last may be heard after its end.
      if (over && message.kind !== 'failed') return;
      switch (message.kind) {
        case 'ask': {
          state.listens = true;
          // The signal that was to end it came when it had just begun to pass over signals.
          if (stopping) return tellWorker(process, { kind: 'stop' });
          const give = (): void => tellWorker(process, { kind: 'task', task: { home, config: state.config, access, index, tickets: tickets.toString('base64') } });
          if (state === sequencer) give();
          else sequenced.then(give, () => undefined);
          return;
        }
        case 'rotate_tickets':
          return rotateTickets();
        case 'open':
          state.ports = message.ports;
          state.heardMs = performance.now();
          state.pauseMs = restartPauseMs;
          if (state === sequencer) goOn();
          if (!served && seats.every(({ ports }) => ports !== null)) {
            served = true;
            resolve(seats[0]!.ports!);
          }
          return;
        case 'readiness':
          state.readiness = message.readiness;
          state.heardMs = performance.now();
          return;
        case 'metrics':
          for (const told of state.asked.splice(0)) told(message.values);
          return;
        case 'failed':
          if (!served) fail(new Error(message.reason));
      }
    });
    const ended = (how: string): void => {
      over = true;
      state.ports = null;
      state.readiness = null;
      for (const told of state.asked.splice(0)) told(null);
      if (stopping) return;
      if (!served) return fail(new Error(`a worker process ended (${how}) before it served`));
      log.error('a worker process ended and is started again', { kind: how });
      setTimeout(() => {
        if (stopping) return;
        try {
          start(state, state.config, index);
        } catch (error) {
          // Most of what the system refuses one for, memory for instance, Node throws.
          ended(reasonOf(error as NodeJS.ErrnoException));
        }
      }, state.pauseMs).unref();
      state.pauseMs = Math.min(2 * state.pauseMs, maxRestartPauseMs);
    };
    process.once('exit', (code, signal) => ended(signal === '' || signal === null ? `exit ${code}` : signal));
    process.on('error', (error: NodeJS.ErrnoException) => {
      // There was no descriptor or process left for one: what never began does not exit.
      if (process.process.pid === undefined) ended(reasonOf(error));
    });
    return state;
  };
  const seats: Seat[] = [];
  const serving = { ...config, roles: config.roles.filter((role) => role !== 'sequencer') };
  let sequencer: Seat | null = null;
  for (let index = 0; index < options.serving; index += 1) seats.push(start(null, serving, index));
  if (config.roles.includes('sequencer')) seats.push((sequencer = start(null, { ...config, roles: ['sequencer'] }, 0)));
  else goOn();

  // One that has not asked yet gets what is then the secret. What crosses on its way a secret that a worker has just made for itself is replaced as soon as
  // its word is heard: until then a ticket is good that no longer should be, and each request on it is checked for revocation all the same.
  const rotateTickets = (): void => {
    tickets = makeSecret();
    for (const { process } of seats) tellWorker(process, { kind: 'tickets', tickets: tickets.toString('base64') });
  };
  setInterval(rotateTickets, ticketRotationMs).unref();

  const silentMs = ({ heardMs }: Seat): number => performance.now() - heardMs;
  // A primary that stood still itself has heard nobody meanwhile: what they said waits to be read.
  let watchedAt = performance.now();
  setInterval(() => {
    const stoodStill = performance.now() - watchedAt > 2 * watchMs;
    watchedAt = performance.now();
    for (const seat of seats) {
      if (stoodStill) seat.heardMs = watchedAt;
      if (stopping || seat.ports === null || silentMs(seat) < hungMs) continue;
      log.error('a worker process says nothing and is killed', { pid: seat.process.process.pid ?? 0, ms: Math.round(silentMs(seat)) });
      // What it had acknowledged is durable. Its successor is started when it has ended.
      seat.process.process.kill('SIGKILL');
    }
  }, watchMs).unref();

  const end = async ({ process, listens, ports }: Seat): Promise<void> => {
    if (process.isDead()) return;
    const exit = new Promise<void>((done) => process.once('exit', () => done()));
    if (listens) tellWorker(process, { kind: 'stop' });
    else process.process.kill('SIGTERM');
    // A worker has its own deadlines for calls in flight, the writers' included; one that outlives them hangs. One that has not come to serve has none in flight.
    const hung = setTimeout(() => process.process.kill('SIGKILL'), (ports === null ? 0 : 4 * milliseconds(config.listeners.drain_timeout)) + 10_000);
    await exit;
    clearTimeout(hung);
  };
  const others = (): Seat[] => seats.filter((seat) => seat !== sequencer);
  const serves = (seat: Seat): boolean => seat.ports !== null && silentMs(seat) < patienceMs;
  const metricsOf = async (seat: Seat): Promise<MetricValues | null> => {
    // Of one that is known to hang nothing is waited for, at every scrape anew.
    if (!serves(seat)) return null;
    const { promise, resolve: told } = Promise.withResolvers<MetricValues | null>();
    const late = setTimeout(() => told(null), metricsMs);
    seat.asked.push(told);
    tellWorker(seat.process, { kind: 'metrics' });
    const values = await promise;
    clearTimeout(late);
    seat.asked = seat.asked.filter((one) => one !== told);
    return values;
  };
  return {
    sequenced,
    ready,
    readiness() {
      const parts: Record<string, { ok: boolean; detail: string }> = {};
      if (options.serving > 0) {
        const open = others().filter(serves).length;
        parts['workers'] = { ok: open === options.serving, detail: `${open} of ${options.serving} serve` };
      }
      if (sequencer !== null && !serves(sequencer)) {
        const ms = silentMs(sequencer);
        parts['sequencer'] = { ok: ms < patienceMs, detail: `its process ${sequencer.ports === null ? 'is away' : 'says nothing'} for ${Math.round(ms / 1000)} s` };
      }
      // What one said last that hangs is not how it is now.
      for (const seat of seats) if (seat.readiness !== null && serves(seat)) addParts(parts, seat.readiness);
      return parts;
    },
    async metrics() {
      const answers = await Promise.all(seats.map(metricsOf));
      const told = answers.filter((values) => values !== null);
      return { told, missing: answers.length - told.length };
    },
    signal(name) {
      // Who does not listen yet reads everything afresh.
      for (const { process, listens } of others()) if (listens) process.process.kill(name);
    },
    async stop() {
      stopping = true;
      await Promise.all(others().map(end));
      if (sequencer !== null) await end(sequencer);
    },
  };
}

/** Adds the parts of another process: the worst of each stands for all. */
export function addParts(parts: Record<string, { ok: boolean; detail: string }>, more: Readiness): void {
  for (const [name, part] of Object.entries(more)) if (parts[name]?.ok !== false) parts[name] = part;
}

function reasonOf(error: NodeJS.ErrnoException): string {
  return error.code ?? error.name;
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
  goOnWithoutReader();
  // They may reach the whole group, from a terminal or from who runs it as a service. The primary decides who ends when: a sequencer that went with the first
  // would sign nothing of what the others leave. Who has something to reload listens as well.
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => undefined);
  // A primary that is gone, however it went, is not waited for: Node's cluster ends this process as soon as its channel is closed. Whoever starts the vault
  // again reads what its predecessor noted, so none may go on to write there.
  const { promise: stopped, resolve: stop } = Promise.withResolvers<void>();
  // It went while this process spoke to it, as one does to open a listener, which will now never be: nothing has been served, and nobody is left to be told.
  cluster.worker?.once('error', () => process.exit(1));
  const tell = (message: Message): void => {
    if (process.connected) process.send?.(message, undefined, undefined, () => undefined);
  };
  const { promise: given, resolve: take } = Promise.withResolvers<Task>();
  let secret: TicketSecret | null = null;
  let metrics: Metrics | null = null;
  process.on('message', (message: Order) => {
    if (message.kind === 'task') take(message.task);
    else if (message.kind === 'tickets') secret?.take(Buffer.from(message.tickets, 'base64'));
    else if (message.kind === 'stop') stop();
    else void metrics?.values().then((values) => tell({ kind: 'metrics', values }));
  });
  // What is said before somebody listens is lost, so it is asked for.
  tell({ kind: 'ask' });
  const task = await Promise.race([given, stopped]);
  if (task === undefined) {
    process.disconnect?.();
    return 0;
  }
  const { home, config, access, index } = task;
  const sequences = config.roles.length === 1 && config.roles[0] === 'sequencer';
  const tickets = new TicketSecret({ secret: Buffer.from(task.tickets, 'base64'), ask: () => tell({ kind: 'rotate_tickets' }) });
  secret = tickets;
  const log = createLog(config.log.level);
  metrics = createMetrics();
  try {
    await using stack = new AsyncDisposableStack();
    hardenProcess({ swap: config.hardening.swap, dumpable: config.hardening.dumpable });
    const worker = await (sequences ? startSequencer : startWorker)(stack, { home, config, access, log, metrics, index, tickets });
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
