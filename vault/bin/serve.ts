/**
 * The process that `cofre serve` starts: prepares what is made once (development's state, the database), then serves, itself or in
 * several worker processes that share its listeners. The log is sequenced in a process of its own beside what serves calls: each look at what was
 * committed would hold up the calls of its moment (docs/decisions/0049).
 */
import { join, resolve } from 'node:path';
import { lockFolder } from '../../platform-adapters/linux/folder-lock.ts';
import { hardenProcess } from '../../platform-adapters/linux/hardening.ts';
import { superviseEmbedded } from '../../platform-adapters/postgres/supervisor.ts';
import { createTelemetry } from '../../platform-adapters/telemetry/listener.ts';
import type { Readiness } from '../../platform-adapters/telemetry/listener.ts';
import { createLog } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import { createMetrics, textOfSeveral } from '../../platform-adapters/telemetry/metrics.ts';
import type { Config } from '../config.ts';
import { givenDatabase, prepareDatabase } from './database.ts';
import type { DatabaseAccess } from './database.ts';
import { prepareDevelopment, renewRevocationList } from './development.ts';
import { lastBatchFiles, makeHome } from './home.ts';
import { listen } from './listen.ts';
import { goOnWithoutReader } from './output.ts';
import type { Ports } from './process.ts';
import { startSequencer } from './sequencer.ts';
import { startWorker } from './worker.ts';
import { addParts, superviseWorkers } from './workers.ts';

export interface ServeOptions {
  /** Absolute path of COFRE_HOME. */
  readonly home: string;
  readonly config: Config;
  readonly env: NodeJS.ProcessEnv;
  /** Receives what a person reads: how to make the first call, and the ready line. */
  readonly print: (line: string) => void;
}

/**
 * Starts the appliance; resolves when it has stopped, after SIGTERM or SIGINT.
 *
 * @throws an Error whose message is one line for the operator, after everything that was started has been stopped again.
 */
export async function serve({ home, config, env, print }: ServeOptions): Promise<void> {
  const log = createLog(config.log.level);
  goOnWithoutReader();
  const stopSignal = untilSignal();
  const unwanted = new AbortController();
  void stopSignal.then(() => unwanted.abort());
  const orStopped: OrStopped = (work) => Promise.race([work, stopSignal.then((signal) => Promise.reject(new StoppedInStart(signal)))]);
  // By itself it would end the process, at any moment of the start, or where nothing is to be reloaded. Who has read something that it has read again listens as well.
  process.on('SIGHUP', () => undefined);

  // What is started is stopped in reverse order, however far the start came.
  await using stack = new AsyncDisposableStack();

  // Before any secret is read.
  const hardening = hardenProcess({ swap: config.hardening.swap, dumpable: config.hardening.dumpable });
  if (hardening.swap.length > 0) log.warn('this machine swaps, so card numbers could reach its disk');

  // One vault a home: two would make its keys twice and overwrite each other's notes.
  makeHome(home);
  stack.defer(await lockFolder(home, 10_000));
  if (config.profile === 'development') {
    stack.defer(renewRevocationList(await prepareDevelopment(home, config), log));
  }

  const alone = config.workers === 1 || config.roles.every((role) => role === 'sequencer');
  let ports: Ports;
  try {
    const access = await openDatabase(stack, home, config, env, log, orStopped, unwanted.signal);
    const serving = { home, config, access, log, orStopped };
    ports = alone ? await serveHere(stack, serving) : await serveInWorkers(stack, serving);
  } catch (error) {
    if (!(error instanceof StoppedInStart)) throw error;
    log.info('stopping', { kind: error.message });
    return;
  }

  if (config.profile === 'development') printFirstCall(print, home, ports);
  const port = ports.api ?? ports.admin;
  print(port === null ? 'cofre ready (no listener but telemetry)' : `cofre ready https://${config.listeners.host}:${port}`);
  log.info('ready', { port: port ?? 0, pid: process.pid });

  const signal = await stopSignal;
  log.info('stopping', { kind: signal });
}

/** The start was told to end while it waited for another process or the database, which may never answer. The message is the signal's name. */
class StoppedInStart extends Error {}

/** Waits for `work` until a signal comes. @throws StoppedInStart then. */
type OrStopped = <T>(work: Promise<T>) => Promise<T>;

interface Serving {
  readonly home: string;
  readonly config: Config;
  readonly access: DatabaseAccess;
  readonly log: Log;
  readonly orStopped: OrStopped;
}

async function openDatabase(stack: AsyncDisposableStack, home: string, config: Config, env: NodeJS.ProcessEnv, log: Log, orStopped: OrStopped, unwanted: AbortSignal): Promise<DatabaseAccess> {
  const roleFile = join(home, 'secrets/database-roles.json');
  let url = env['DATABASE_URL'] ?? '';
  if (url === '') {
    if (!config.roles.includes('admin')) throw new Error('a process without the admin role needs DATABASE_URL: it may not make a database');
    const starting = superviseEmbedded({ folder: join(home, 'postgres'), database: 'cofre', unwanted }, (event, reason) => log.warn(event, reason === undefined ? {} : { reason }));
    // It ends by itself, and is waited for.
    const embedded = await starting.catch((error: unknown) => (unwanted.aborted ? orStopped(starting) : Promise.reject(error as Error)));
    stack.defer(() => embedded.stop());
    url = embedded.adminUrl;
  }
  if (!config.roles.includes('admin')) return givenDatabase(url, roleFile, config);
  return await orStopped(prepareDatabase(url, roleFile, lastBatchFiles(home), config));
}

async function serveHere(stack: AsyncDisposableStack, serving: Serving): Promise<Ports> {
  const { config, log } = serving;
  const metrics = createMetrics();
  const sequences = config.roles.includes('sequencer');
  if (!sequences || config.roles.length === 1) {
    const worker = await (sequences ? startSequencer : startWorker)(stack, { ...serving, metrics, index: 0, tickets: null });
    await openTelemetry(stack, config, () => metrics.text(), () => worker.readiness());
    return await worker.open();
  }
  const sequencing = superviseWorkers({ ...serving, serving: 0 });
  stack.defer(() => sequencing.stop());
  const here = { ...config, roles: config.roles.filter((role) => role !== 'sequencer') };
  const sequenced = serving.orStopped(sequencing.sequenced);
  // Waited for after much else.
  sequenced.catch(() => undefined);
  const worker = await startWorker(stack, { home: serving.home, config: here, access: serving.access, log, metrics, index: 0, tickets: null, sequenced });
  const readiness = (): Readiness => {
    const parts = { ...worker.readiness() };
    addParts(parts, sequencing.readiness());
    return parts;
  };
  const text = async (): Promise<string> => {
    const [own, { told, missing }] = await Promise.all([metrics.values(), sequencing.metrics()]);
    return await textOfSeveral([own, ...told], missing);
  };
  await openTelemetry(stack, config, text, readiness);
  return await worker.open();
}

async function serveInWorkers(stack: AsyncDisposableStack, serving: Serving): Promise<Ports> {
  const text = async (): Promise<string> => {
    const { told, missing } = await workers.metrics();
    return await textOfSeveral(told, missing);
  };
  // Before them: it tells of them until they have ended, and a port that is taken is found before anything runs that would have to be ended.
  await openTelemetry(stack, serving.config, text, () => workers.readiness());
  // Nobody is answered in between: this turn of the event loop goes on.
  const workers = superviseWorkers({ ...serving, serving: serving.config.workers });
  stack.defer(() => workers.stop());
  const reload = (): void => workers.signal('SIGHUP');
  process.on('SIGHUP', reload);
  stack.defer(() => void process.off('SIGHUP', reload));
  return await serving.orStopped(workers.ready);
}

async function openTelemetry(stack: AsyncDisposableStack, { listeners }: Config, metrics: () => Promise<string>, readiness: () => Readiness): Promise<void> {
  const telemetry = createTelemetry(metrics, readiness);
  await listen(telemetry, listeners.telemetry_host, listeners.telemetry_port, 'telemetry', 'COFRE_TELEMETRY_PORT');
  stack.defer(() => new Promise<void>((done) => telemetry.close(() => done())));
}

function untilSignal(): Promise<string> {
  return new Promise((done) => {
    process.on('SIGTERM', () => done('SIGTERM'));
    process.on('SIGINT', () => done('SIGINT'));
  });
}

function printFirstCall(print: (line: string) => void, home: string, { api, admin }: Ports): void {
  const pki = resolve(home, 'pki');
  const curl = (name: string, url: string, body: string): string => `  curl --cacert ${pki}/ca.pem --cert ${pki}/${name}.pem --key ${pki}/${name}.key \\\n    -H 'content-type: application/json' -d '${body}' ${url}`;
  if (api !== null) {
    print('A card goes in:');
    print(curl('checkout', `https://127.0.0.1:${api}/v1/tokenize`, '{"pan":"4111111111111111","expiry":"2029-12"}'));
    print('and comes out for an approved service and purpose (put the token in):');
    print(curl('getnet', `https://127.0.0.1:${api}/v1/detokenize`, '{"token":"tok_...","purpose":"authorization"}'));
  }
  if (admin !== null) print(`admin https://127.0.0.1:${admin}`);
  print('');
}
