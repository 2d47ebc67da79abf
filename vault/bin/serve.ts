/** The appliance's composition root: reads the configuration, builds everything by plain calls in order, and serves. */
import { join, resolve } from 'node:path';
import { Client, Pool } from 'pg';
import type { ClientConfig } from 'pg';
import type { Entry } from '../../audit/entry.ts';
import { LastBatchFile } from '../../audit/last-batch-file.ts';
import { openKeyring } from '../../hsm/keyring.ts';
import { lockFolder } from '../../platform-adapters/linux/folder-lock.ts';
import { hardenProcess } from '../../platform-adapters/linux/hardening.ts';
import { adminConnection, assertDurable, connectionFor, databaseOf } from '../../platform-adapters/postgres/connect.ts';
import { postgresKeyStore } from '../../platform-adapters/postgres/key-store.ts';
import { migrate } from '../../platform-adapters/postgres/migrate.ts';
import { ensureRoles } from '../../platform-adapters/postgres/roles.ts';
import { superviseEmbedded } from '../../platform-adapters/postgres/supervisor.ts';
import { ensureTenants } from '../../platform-adapters/postgres/tenants.ts';
import { createWriterConnector } from '../../platform-adapters/postgres/writer-connector.ts';
import { createTelemetry } from '../../platform-adapters/telemetry/listener.ts';
import type { Readiness } from '../../platform-adapters/telemetry/listener.ts';
import { createLog, describe } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import { createMetrics } from '../../platform-adapters/telemetry/metrics.ts';
import type { Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import { GroupCommit } from '../commit.ts';
import type { Committed, Execute } from '../commit.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import { openFailure } from '../detokenize.ts';
import type { DetokenizeOutcome } from '../detokenize.ts';
import type { LifecycleOutcome, SweepOutcome } from '../lifecycle.ts';
import { loadPolicy } from '../policy.ts';
import { sweepQuotas } from '../quota.ts';
import { Refusals } from '../refusals.ts';
import { RevocationList } from '../revocation.ts';
import { addAdminRoutes } from '../admin.ts';
import { addDetokenizingRoutes, addOpenApi, addTokenizingRoutes } from '../routes.ts';
import { createServer } from '../server.ts';
import type { ServerOptions } from '../server.ts';
import { Tenants } from '../tenants.ts';
import { TlsListener } from '../tls.ts';
import { idempotencyWindowMs } from '../tokenize-store.ts';
import type { TokenizeOutcome } from '../tokenize-store.ts';
import { sweepIdempotencyKeys } from '../token-store.ts';
import { pooledRandom } from '../token.ts';
import type { LookUpOutcome } from '../validate.ts';
import { executeDetokenizing, executeTokenizing, failureEntry } from '../transaction.ts';
import type { DetokenizingOperation, DetokenizingOutcome, EntryOperation, TokenizingOperation, TokenizingOutcome } from '../transaction.ts';
import { assertKeysOfCards, assertLastBatch } from './continuity.ts';
import { prepareDevelopment, readPin } from './development.ts';
import { makeHome } from './home.ts';
import { drain, listen, listenSecure } from './listen.ts';
import { addGauges, readinessOf } from './readiness.ts';

export interface ServeOptions {
  /** Absolute path of COFRE_HOME. */
  readonly home: string;
  readonly config: Config;
  readonly env: NodeJS.ProcessEnv;
  /** Receives what a person reads: how to make the first call, and the ready line. */
  readonly print: (line: string) => void;
}

/** Events of the key layer that belong in the log: a key came to be, the HSM went or came, somebody turned a counter back. */
const auditedKeyEvents: ReadonlySet<string> = new Set(['data_key_made', 'fingerprint_key_made', 'data_key_lease_count_went_back', 'hsm_away', 'hsm_back']);

/** Tokens past their end that one transaction marks. */
const tokensASweep = 500;

/** The version that `/openapi.json` states. */
const apiVersion = '1.0.0';

/**
 * Starts the appliance; resolves when it has stopped, after SIGTERM or SIGINT.
 *
 * @throws an Error whose message is one line for the operator, after everything that was started has been stopped again.
 */
export async function serve({ home, config, env, print }: ServeOptions): Promise<void> {
  const log = createLog(config.log.level);
  const metrics = createMetrics();
  const now = (): Date => new Date();
  const stopSignal = untilSignal();

  // What is started is stopped in reverse order, however far the start came.
  await using stack = new AsyncDisposableStack();

  // Before any secret is read.
  const hardening = hardenProcess({ swap: config.hardening.swap, dumpable: config.hardening.dumpable });
  if (hardening.swap.length > 0) log.warn('this machine swaps, so card numbers could reach its disk');

  // One vault a home: two would make its keys twice and overwrite each other's notes.
  makeHome(home);
  stack.defer(await lockFolder(home, 10_000));

  const pki = config.profile === 'development' ? await prepareDevelopment(home, config) : null;
  const path = (relative: string): string => resolve(home, relative);

  // Identity and policy: files only, so their faults show before anything is started.
  const tlsFiles = { certificate: path(config.tls.certificate), key: path(config.tls.key), ca: path(config.tls.client_ca) };
  const revocation = await RevocationList.load({ crlFile: path(config.tls.revocation_list), caFile: tlsFiles.ca, maxAgeMs: milliseconds(config.tls.revocation_max_age), now });
  stack.defer(() => revocation.close());
  const policy = await loadPolicy(path(config.policies), { report: (finding) => log.error('a policy could not be evaluated', { reason: finding }) });

  // The database, and each role's own way into it.
  let adminUrl = env['DATABASE_URL'] ?? '';
  if (adminUrl === '') {
    const embedded = await superviseEmbedded({ folder: path('postgres'), database: 'cofre' }, (event) => log.warn(event));
    stack.defer(() => embedded.stop());
    adminUrl = embedded.adminUrl;
  }
  const roleFile = path('secrets/database-roles.json');
  const tenantRows = await prepareDatabase(adminUrl, roleFile, config.roles.map((role) => join(home, 'writers', `${role}.json`)), config);
  const roleConnection = (role: 'tokenize' | 'detokenize') => connectionFor(role, { adminUrl, file: roleFile });

  // Keys. What happens to them is an entry as well; before there is a writer, such entries wait for it.
  const keyEvents: Entry[] = [];
  let recordKeyEvent = (entry: Entry): void => void keyEvents.push(entry);
  const onKeyEvent = (level: 'info' | 'warn') => (event: string, fields: Readonly<Record<string, string | number | boolean>>) => {
    log[level](event, typeof fields['kind'] === 'string' ? { kind: fields['kind'] } : {});
    metrics.hsmEvent(event);
    if (auditedKeyEvents.has(event)) recordKeyEvent({ action: event.startsWith('hsm') ? 'hsm.state' : 'key.event', at: now(), outcome: level === 'info' ? 'allowed' : 'failed', detail: { event, ...(typeof fields['version'] === 'number' ? { version: fields['version'] } : {}) } });
  };
  const keyPool = new Pool({ ...roleConnection(config.roles.includes('tokenize') ? 'tokenize' : 'detokenize'), max: 2, application_name: 'cofre keys' });
  keyPool.on('error', () => undefined);
  stack.defer(() => keyPool.end());
  const keyring = await openKeyring({
    modulePath: config.hsm.module,
    tokenLabel: config.hsm.token_label,
    pin: () => readPin(path(config.hsm.pin_file)),
    custody: config.hsm.custody,
    tenants: new Map(tenantRows.map((tenant) => [tenant.name, tenant.keyDomain])),
    store: postgresKeyStore(keyPool),
    now,
    maxAwayMs: milliseconds(config.hsm.max_away),
    log: { info: onKeyEvent('info'), warn: onKeyEvent('warn') },
    uses: ['sign-log', ...(config.roles.includes('tokenize') ? (['seal'] as const) : []), ...(config.roles.includes('detokenize') ? (['open'] as const) : [])],
  });
  stack.defer(() => keyring.close());
  const tenants = new Tenants(tenantRows.map((tenant) => ({ id: tenant.id, name: tenant.name, keys: keyring.forTenant(tenant.name) })));

  // Writers: one a role, each with its own session, chain and queue.
  const openWriter = async <Operation extends TokenizingOperation | DetokenizingOperation, Outcome>(role: 'tokenize' | 'detokenize', execute: Execute<Operation, Outcome>) => {
    const file = new LastBatchFile(join(home, 'writers', `${role}.json`));
    const predecessor = await file.read();
    const writer = await GroupCommit.open<Operation, Outcome>({
      role,
      origin: config.log.origin,
      connector: createWriterConnector(roleConnection(role), { connectTimeoutMs: 5000, queryTimeoutMs: 15_000 }),
      signer: keyring.logSigner,
      execute,
      failureEntry,
      limits: { maxQueue: config.commit.max_queue, maxCalls: config.commit.max_calls, maxWeight: 2000, maxWaitMs: milliseconds(config.database.max_away), maxSettleMs: milliseconds(config.database.max_settle) },
      outbox: config.events.outbox,
      observer: observeWriter(role, metrics, log),
      now,
      startDetail: { policies: policy.digest, ...(predecessor === null ? {} : { predecessor: predecessor.writer, predecessor_closed: predecessor.closed ? 'yes' : 'no', predecessor_hash: predecessor.hash, predecessor_last: predecessor.number }) },
      onHead: (head, closed) => file.note(head, closed),
    });
    stack.defer(async () => {
      await writer.close(milliseconds(config.listeners.drain_timeout));
      await file.flush().catch((error: unknown) => log.error('the last batch could not be noted', { role, error: describe(error) }));
    });
    return writer;
  };
  const tokenizing = config.roles.includes('tokenize') ? await openWriter<TokenizingOperation, TokenizingOutcome>('tokenize', executeTokenizing) : null;
  const detokenizing = config.roles.includes('detokenize') ? await openWriter<DetokenizingOperation, DetokenizingOutcome>('detokenize', executeDetokenizing) : null;
  const record = async (operation: EntryOperation): Promise<void> => {
    // A detokenizing process writes its own refusals; the tokenizing writer takes the rest.
    const writer = tokenizing ?? detokenizing;
    await writer?.commit(operation);
  };

  recordKeyEvent = (entry) => void record({ kind: 'entry', entry }).catch((error: unknown) => log.error('a key event could not be recorded', { error: describe(error) }));
  for (const entry of keyEvents.splice(0)) recordKeyEvent(entry);

  // A log that was refused (disk full, …) is tried again without a caller: while readiness says so, none may come. The entry that succeeds says that it was.
  const resuming = setInterval(() => {
    for (const writer of [tokenizing, detokenizing]) {
      if (writer?.logRefused === true) void writer.commit({ kind: 'entry', entry: { action: 'log.resumed', at: now(), outcome: 'allowed' } }).catch(() => undefined);
    }
  }, 1000).unref();
  stack.defer(() => clearInterval(resuming));

  const refusals = new Refusals({ entriesPerMinute: config.refusals.entries_per_minute, now, write: (entry) => record({ kind: 'entry', entry }), summed: metrics.count('cofre_refusals_summed_total', 'Refused calls that got no entry of their own, only a count.') });
  stack.defer(() => refusals.close());

  // Listeners.
  const serverOptions = (tls: TlsListener): ServerOptions => ({
    tls,
    trustDomain: config.tls.trust_domain,
    revocation,
    now,
    observer: {
      answered: (action, outcome, seconds) => metrics.answered(action, outcome, seconds),
      failed: (requestId, error) => log.error('a request failed', { request_id: requestId, error: describe(error) }),
    },
    recordRefusal: async (call, action, refused) => await refusals.record(call, action, refused),
    maxRequestsPerCaller: config.listeners.max_requests_per_caller,
    requestTimeoutMs: milliseconds(config.listeners.request_timeout),
    keepAliveTimeoutMs: milliseconds(config.listeners.keep_alive_timeout),
  });
  const openTls = async (name: string): Promise<TlsListener> => {
    const tls = await TlsListener.open({
      name,
      files: tlsFiles,
      maxConnections: config.listeners.max_connections,
      maxConnectionsPerCertificate: config.listeners.max_connections_per_certificate,
      report(event) {
        metrics.connection(event.kind);
        if (event.kind === 'reload_refused') log.error('the certificates were not reloaded', { reason: event.reason });
        if (event.kind === 'reloaded') log.info('the certificates were reloaded');
      },
    });
    tls.watch(2000);
    stack.defer(() => tls.close());
    return tls;
  };
  const apiTls = await openTls('api');
  const adminTls = await openTls('admin');

  // An operation's outcome is of its own kind (vault/transaction.ts), which a writer of many kinds cannot say in its type.
  const api = createServer(serverOptions(apiTls));
  await addOpenApi(api, apiVersion);
  if (tokenizing !== null) {
    addTokenizingRoutes(api, {
      tokenize: {
        policy,
        tenants,
        now,
        stages: metrics,
        random: pooledRandom(),
        binDigits: config.cards.bin_digits,
        commit: (operation) => tokenizing.commit(operation, operation.items.length) as Promise<Committed<TokenizeOutcome>>,
        numericTokenTaken: metrics.count('cofre_numeric_token_taken_total', 'New numeric tokens that were in use already: their share of all is how full their space is.'),
      },
      lifecycle: { policy, tenants, now, commit: (operation) => tokenizing.commit(operation) as Promise<Committed<LifecycleOutcome>> },
      lookUp: { policy, tenants, now, commit: (operation) => tokenizing.commit(operation) as Promise<Committed<LookUpOutcome>> },
    });
  }
  if (detokenizing !== null) {
    const quotas = new Map(config.quotas.map((quota) => [`${quota.caller} ${quota.purpose}`, quota.per_minute]));
    addDetokenizingRoutes(api, {
      policy,
      tenants,
      now,
      stages: metrics,
      quotaOf: (spiffeId, purpose) => quotas.get(`${spiffeId} ${purpose}`) ?? null,
      commit: (operation) => detokenizing.commit(operation, operation.input.tokens.length) as Promise<Committed<DetokenizeOutcome>>,
      record: async (operation, failed) => void (await detokenizing.commit({ kind: 'entry', entry: openFailure(operation, failed) })),
    });
  }

  const readiness = (): Readiness => readinessOf(keyring, [tokenizing, detokenizing], revocation, config);
  const admin = createServer(serverOptions(adminTls));
  addAdminRoutes(admin, { policy, record, status: () => ({ readiness: readiness(), policies: policy.policyIds, policy_digest: policy.digest, revocation: { revoked: revocation.status().revoked, fresh_until: revocation.status().freshUntil.toISOString() } }) });
  addGauges(metrics, keyring, apiTls, tokenizing, detokenizing);

  const telemetry = createTelemetry(metrics, readiness);
  await listen(telemetry, config.listeners.telemetry_host, config.listeners.telemetry_port, 'telemetry', 'COFRE_TELEMETRY_PORT');
  stack.defer(() => new Promise<void>((done) => telemetry.close(() => done())));
  const adminPort = await listenSecure(admin, config.listeners.host, config.listeners.admin_port, 'admin', 'COFRE_ADMIN_PORT');
  stack.defer(() => drain(admin, milliseconds(config.listeners.drain_timeout)));
  const apiPort = await listenSecure(api, config.listeners.host, config.listeners.api_port, 'API', 'COFRE_API_PORT');
  stack.defer(() => drain(api, milliseconds(config.listeners.drain_timeout)));

  // What changes while it runs.
  revocation.watch(1000, ({ outcome, reason, newlyRevoked }) => {
    if (outcome === 'refused') log.error('the revocation list was not reloaded', { reason: reason ?? '' });
    const closed = apiTls.closeRevoked(newlyRevoked) + adminTls.closeRevoked(newlyRevoked);
    if (newlyRevoked.size > 0) log.warn('certificates were revoked', { count: newlyRevoked.size, kind: `${closed} connections closed` });
  });
  const reload = (): void => {
    void (async () => {
      const refused = await policy.reload();
      if (refused !== null) log.error('the policies were not reloaded', { reason: refused });
      else await record({ kind: 'entry', entry: { action: 'policy.reload', at: now(), outcome: 'allowed', detail: { policies: policy.digest } } }).catch(() => undefined);
      await Promise.all([revocation.reload().then(({ newlyRevoked }) => apiTls.closeRevoked(newlyRevoked) + adminTls.closeRevoked(newlyRevoked)), apiTls.reload(), adminTls.reload()]);
    })();
  };
  process.on('SIGHUP', reload);
  stack.defer(() => void process.off('SIGHUP', reload));
  const sweeper = setInterval(() => void sweep(roleConnection, config, now).catch((error: unknown) => log.warn('old rows were not swept', { error: describe(error) })), 60_000).unref();
  stack.defer(() => clearInterval(sweeper));
  if (tokenizing !== null) {
    let sweeping = false;
    const endTokens = async (): Promise<void> => {
      if (sweeping) return;
      sweeping = true;
      try {
        // A full round means that there may be more.
        while ((((await tokenizing.commit({ kind: 'sweep', tenants, limit: tokensASweep }, tokensASweep)) as Committed<SweepOutcome>).outcome.tokens ?? 0) >= tokensASweep);
      } catch (error) {
        log.warn('tokens past their end were not swept', { error: describe(error) });
      } finally {
        sweeping = false;
      }
    };
    const ending = setInterval(() => void endTokens(), milliseconds(config.tokens.sweep_interval)).unref();
    stack.defer(() => clearInterval(ending));
  }
  if (pki !== null) {
    // A development authority renews its own list; in production the real one does.
    const renewal = setInterval(() => void pki.signCrl([]), 6 * 3_600_000).unref();
    stack.defer(() => clearInterval(renewal));
  }

  if (config.profile === 'development') printFirstCall(print, home, apiPort, adminPort);
  print(`cofre ready https://${config.listeners.host}:${apiPort}`);
  log.info('ready', { port: apiPort, pid: process.pid });

  const signal = await stopSignal;
  log.info('stopping', { kind: signal });
}

async function prepareDatabase(adminUrl: string, roleFile: string, lastBatchFiles: readonly string[], config: Config): Promise<{ id: number; name: string; keyDomain: string }[]> {
  const client = new Client(adminConnection(adminUrl));
  client.on('error', () => undefined);
  await client.connect().catch((error: unknown) => {
    throw new Error(`the database does not answer (${(error as { code?: string }).code ?? 'unknown'}): check DATABASE_URL`, { cause: error });
  });
  try {
    await assertDurable(client);
    await ensureRoles(client, { database: databaseOf(adminUrl), file: roleFile });
    await migrate(client, { database: databaseOf(adminUrl) });
    await assertKeysOfCards(client);
    for (const file of lastBatchFiles) {
      const last = await new LastBatchFile(file).read();
      if (last !== null) await assertLastBatch(client, last, file);
    }
    return await ensureTenants(client, config.tenants.map((tenant) => ({ name: tenant.name, keyDomain: tenant.key_domain ?? tenant.name })));
  } finally {
    await client.end();
  }
}

function observeWriter(role: string, metrics: Metrics, log: Log) {
  return {
    queued: (depth: number) => metrics.queued(role, depth),
    waited: (ms: number) => metrics.waited(role, ms),
    committed: (calls: number, _weight: number, ms: number) => metrics.committed(role, calls, ms),
    disturbed(kind: string, error: unknown) {
      metrics.disturbed(role, kind);
      log.warn('a transaction did not commit', { role, kind, error: describe(error) });
    },
  };
}

/** Removes rows that ran out, each as the role that owns them. */
async function sweep(roleConnection: (role: 'tokenize' | 'detokenize') => ClientConfig, config: Config, now: () => Date): Promise<void> {
  const as = async (role: 'tokenize' | 'detokenize', work: (client: Client) => Promise<unknown>): Promise<void> => {
    if (!config.roles.includes(role)) return;
    const client = new Client(roleConnection(role));
    client.on('error', () => undefined);
    await client.connect();
    try {
      await work(client);
    } finally {
      await client.end();
    }
  };
  await as('tokenize', (client) => sweepIdempotencyKeys(client, new Date(now().getTime() - idempotencyWindowMs), 10_000));
  await as('detokenize', (client) => sweepQuotas(client, new Date(now().getTime() - 3_600_000)));
}

function untilSignal(): Promise<string> {
  return new Promise((done) => {
    process.on('SIGTERM', () => done('SIGTERM'));
    process.on('SIGINT', () => done('SIGINT'));
  });
}

function printFirstCall(print: (line: string) => void, home: string, apiPort: number, adminPort: number): void {
  const pki = join(home, 'pki');
  const curl = (name: string, url: string, body: string): string => `  curl --cacert ${pki}/ca.pem --cert ${pki}/${name}.pem --key ${pki}/${name}.key \\\n    -H 'content-type: application/json' -d '${body}' ${url}`;
  print('A card goes in:');
  print(curl('checkout', `https://127.0.0.1:${apiPort}/v1/tokenize`, '{"pan":"4111111111111111","expiry":"2029-12"}'));
  print('and comes out for an approved service and purpose (put the token in):');
  print(curl('getnet', `https://127.0.0.1:${apiPort}/v1/detokenize`, '{"token":"tok_...","purpose":"authorization"}'));
  print(`admin https://127.0.0.1:${adminPort}`);
  print('');
}

