/** What serves calls: policies, keys, writers and listeners of one process, built by plain calls in order. What sequences the log is bin/sequencer.ts. */
import { resolve } from 'node:path';
import type { Client } from 'pg';
import type { Entry } from '../../audit/entry.ts';
import { NetworkBuffers } from '../../platform-adapters/node/network-buffers.ts';
import type { ProcessRole } from '../../platform-adapters/postgres/roles.ts';
import type { Readiness } from '../../platform-adapters/telemetry/listener.ts';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import type { Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import { addAdminRoutes } from '../admin.ts';
import { digestOfLimits, refusalOf } from '../approvals.ts';
import { addAuditRoutes } from '../audit-routes.ts';
import type { Committed, GroupCommit } from '../commit.ts';
import { milliseconds } from '../config.ts';
import { openFailure } from '../detokenize.ts';
import type { DetokenizeOutcome } from '../detokenize.ts';
import { addControlRoutes } from '../control-routes.ts';
import { dateOf } from '../guessing.ts';
import { sweepGroups } from '../guessing-store.ts';
import type { LifecycleOutcome, SweepOutcome } from '../lifecycle.ts';
import { Lane } from '../lane.ts';
import { LogReads } from '../log-reads.ts';
import { NumericSpace } from '../numeric-space.ts';
import { loadPolicy } from '../policy.ts';
import type { Policy, PolicyFiles } from '../policy.ts';
import { keepPolicySet } from '../policy-store.ts';
import { quotaRules, sweepQuotas } from '../quota.ts';
import { referenceRules, sweepReferences } from '../references.ts';
import { Refusals } from '../refusals.ts';
import { RevocationList } from '../revocation.ts';
import { addDetokenizingRoutes, addOpenApi, addTokenizingRoutes } from '../routes.ts';
import { createServer } from '../server.ts';
import type { ServerOptions } from '../server.ts';
import { Tenants } from '../tenants.ts';
import { TlsListener } from '../tls.ts';
import type { TokenizeOutcome } from '../tokenize-operation.ts';
import { idempotencyWindowMs } from '../tokenize-replay.ts';
import { sweepIdempotencyKeys } from '../token-store.ts';
import { pooledRandom } from '../token.ts';
import { executeDetokenizing, executeEntries, executeTokenizing } from '../transaction.ts';
import type { DetokenizingOperation, DetokenizingOutcome, EntryOperation, EntryOutcome, TokenizingOperation, TokenizingOutcome } from '../transaction.ts';
import type { LookUpOutcome } from '../validate.ts';
import { openAbuseWatch } from './abuse.ts';
import { openControls } from './controls.ts';
import { addOperators } from './operators.ts';
import { asClient, connectionOf, tenantsInDatabase } from './database.ts';
import { openGuessing } from './guessing.ts';
import { drain, listenSecure } from './listen.ts';
import { KeyEvents, openKeys } from './keys.ts';
import { addConnectionGauges, addGauges, freshnessOf, readinessOf } from './readiness.ts';
import type { ProcessOptions, VaultProcess } from './process.ts';
import { serveLog } from './serving-log.ts';
import { watchLog } from './log-watching.ts';
import { PolicyTelling } from './policy-telling.ts';
import { openWriter, tryAgain } from './writers.ts';

/** Tokens past their end that one transaction marks. */
const tokensASweep = 500;

/** Batch calls whose cards wait to be sealed: a second's work. */
const batchesInWait = 64;

/** The version that `/openapi.json` states. */
const apiVersion = '1.0.0';

/**
 * Builds all that serves. What it starts is stopped with the stack, in reverse order.
 *
 * @throws Error of one line for the operator.
 */
export async function startWorker(stack: AsyncDisposableStack, options: ProcessOptions): Promise<VaultProcess> {
  const { home, config, access, log, metrics, index, tickets } = options;
  const now = (): Date => new Date();
  const path = (relative: string): string => resolve(home, relative);
  const has = (role: ProcessRole): boolean => (config.roles as readonly string[]).includes(role);
  const firstRole = (['tokenize', 'detokenize', 'admin'] as const).find(has)!;

  // From before anything is read that it has read again.
  const hangUps = new HangUps();
  stack.defer(() => hangUps.end());

  // Identity and policy: files only, so their faults show before anything is started.
  const tlsFiles = { certificate: path(config.tls.certificate), key: path(config.tls.key), ca: path(config.tls.client_ca) };
  const revocation = await RevocationList.load({ crlFile: path(config.tls.revocation_list), caFile: tlsFiles.ca, maxAgeMs: milliseconds(config.tls.revocation_max_age), now });
  stack.defer(() => revocation.close());
  let approved = (_digest: string): Promise<string | null> => Promise.resolve(null);
  const policy = await loadPolicy(path(config.policies), { report: (finding) => log.error('a policy could not be evaluated', { reason: finding }), refusal: (digest) => approved(digest) });

  // Keys. What happens to them is an entry as well; before there is a writer, such entries wait for it.
  const keyEvents = new KeyEvents(now, log, metrics);
  const tenantRows = await tenantsInDatabase(connectionOf(access, firstRole), config);
  const keyring = await openKeys(stack, options, firstRole, tenantRows, keyEvents);
  const tenants = new Tenants(has('tokenize') || has('detokenize') ? tenantRows.map((tenant) => ({ id: tenant.id, name: tenant.name, keys: keyring.forTenant(tenant.name) })) : []);

  // Who is suspended, who the operators are, what they approved: before anything is in force.
  const controls = await openControls(stack, { home, connection: connectionOf(access, has('admin') ? 'admin' : firstRole), readsData: has('admin'), control: keyring.control, index });
  if (config.operators.approve_policies) {
    approved = async (digest) => {
      try {
        await controls.read();
      } catch {
        return 'whether they were approved cannot be read: the database or the HSM does not answer, or the table of controls was edited';
      }
      return refusalOf(controls, 'policies', digest);
    };
    const refused = (await approved(policy.digest)) ?? refusalOf(controls, 'limits', digestOfLimits(config));
    if (refused !== null) throw new Error(refused);
  }

  await options.sequenced;

  // Before the log names them: whoever reads there who could do what finds them by their digest.
  const keepPolicies = (digest: string, files: PolicyFiles): Promise<void> => asClient(connectionOf(access, firstRole), 'DATABASE_URL', (client) => keepPolicySet(client, digest, files, now()));
  await keepPolicies(policy.digest, policy.files);

  // Writers. Batches have one of their own, so that single calls do not wait for a thousand cards to be written.
  const context = { home, config, access, signer: keyring.logSigner, log, metrics, now, index, policies: policy.digest };
  const tokenizing = has('tokenize') ? await openWriter<TokenizingOperation, TokenizingOutcome>(stack, context, 'tokenize', 'tokenize', executeTokenizing) : null;
  const batching = has('tokenize') ? await openWriter<TokenizingOperation, TokenizingOutcome>(stack, context, 'tokenize-batch', 'tokenize', executeTokenizing) : null;
  const detokenizing = has('detokenize') ? await openWriter<DetokenizingOperation, DetokenizingOutcome>(stack, context, 'detokenize', 'detokenize', executeDetokenizing) : null;
  const administering = has('admin') && tokenizing === null && detokenizing === null ? await openWriter<EntryOperation, EntryOutcome>(stack, context, 'admin', 'admin', executeEntries) : null;
  const writers = [tokenizing, batching, detokenizing, administering].filter((writer) => writer !== null) as readonly GroupCommit<EntryOperation, EntryOutcome>[];
  // Side by side: each may have to wait for a database that is away.
  stack.defer(async () => {
    await Promise.all(writers.map((writer) => writer.close(milliseconds(config.listeners.drain_timeout))));
  });
  const record = async (entry: Entry, share?: string): Promise<void> => {
    await writers[0]!.commit({ kind: 'entry', entry }, 1, share);
  };
  keyEvents.recordWith((entry) => void record(entry).catch((error: unknown) => log.error('a key event could not be recorded', { error: describe(error) })));

  const abuse = openAbuseWatch(stack, {
    config,
    controls,
    historyConnection: has('detokenize') ? connectionOf(access, 'detokenize') : null,
    record: async (entry, events) => void (await writers[0]!.commit({ kind: 'entry', entry, events }, 1, entry.tenant)),
    log,
    metrics,
    now,
    index,
  });

  const watched = watchLog(stack, { config, connection: connectionOf(access, firstRole), signer: keyring.logSigner, writers, record, log, metrics, now });

  tryAgain(stack, writers, now);
  const refusals = new Refusals({
    entriesPerMinute: config.refusals.entries_per_minute,
    now,
    write: (entry) => record(entry, entry.tenant),
    summed: metrics.count('cofre_refusals_summed_total', 'Refused calls that got no entry of their own, only a count.'),
  });
  stack.defer(() => refusals.close());

  // Listeners.
  const serverOptions = (tls: TlsListener, name: string): ServerOptions => ({
    tls,
    trustDomain: config.tls.trust_domain,
    revocation,
    // People are not held back by what services do, and lift what was held back.
    isSuspended: (spiffeId) => name === 'api' && controls.isSuspended(spiffeId),
    now,
    observer: {
      answered: (action, outcome, seconds) => metrics.answered(action, outcome, seconds),
      failed: (requestId, error) => log.error('a request failed', { request_id: requestId, error: describe(error) }),
      turnedAway: (reason) => metrics.turnedAway(name, reason),
    },
    recordRefusal: async (call, action, refused) => await refusals.record(call, action, refused),
    bodyPassed: () => buffers.used(),
    admission: { maxRequestsPerCaller: config.listeners.max_requests_per_caller, maxBodyBytesPerCaller: config.listeners.max_body_bytes_per_caller, maxBodyBytes: config.listeners.max_body_bytes },
    requestTimeoutMs: milliseconds(config.listeners.request_timeout),
    answerTimeoutMs: milliseconds(config.listeners.answer_timeout),
    keepAliveTimeoutMs: milliseconds(config.listeners.keep_alive_timeout),
  });
  const listeners: TlsListener[] = [];
  const openTls = async (name: string): Promise<TlsListener> => {
    const tls = await TlsListener.open({
      name,
      files: tlsFiles,
      maxConnections: config.listeners.max_connections,
      maxConnectionsPerCertificate: config.listeners.max_connections_per_certificate,
      handshakesPerSecond: config.listeners.handshakes_per_second,
      handshakeBurst: config.listeners.handshake_burst,
      maxHandshakesWaiting: config.listeners.max_handshakes_waiting,
      maxFullHandshakesPerCertificate: config.listeners.max_full_handshakes_per_certificate,
      handshakeTimeoutMs: milliseconds(config.listeners.handshake_timeout),
      ...(tickets === null ? {} : { tickets }),
      report(event) {
        metrics.connection(event.kind);
        if (event.kind === 'connection_refused') metrics.connectionRefused(name, event.reason);
        if (event.kind === 'reload_refused') log.error('the certificates were not reloaded', { reason: event.reason });
        if (event.kind === 'reloaded') log.info('the certificates were reloaded');
      },
    });
    tls.watch(2000);
    stack.defer(() => tls.close());
    listeners.push(tls);
    return tls;
  };
  const readiness = (): Readiness => ({ ...readinessOf(keyring, writers, config), revocation: freshnessOf(revocation), checkpoints: watched.state(), controls: abuse.state() });

  const apiTls = tokenizing === null && detokenizing === null ? null : await openTls('api');
  const api = apiTls === null ? null : createServer(serverOptions(apiTls, 'api'));
  if (api !== null) await addOpenApi(api, apiVersion);
  if (api !== null && tokenizing !== null && batching !== null) {
    // An operation's outcome is of its own kind (vault/transaction.ts), which a writer of many kinds cannot say in its type.
    addTokenizingRoutes(api, {
      tokenize: {
        policy,
        tenants,
        now,
        stages: metrics,
        guessing: await openGuessing(stack, { config, connection: connectionOf(access, 'tokenize'), log, metrics, now, told: abuse.guessed }),
        random: pooledRandom(),
        binDigits: config.cards.bin_digits,
        batchLane: new Lane(batchesInWait),
        commit: (operation) => watched.refusal() ?? ((operation.action === 'tokenize' ? tokenizing : batching).commit(operation, operation.items.length, operation.tenant.name) as Promise<Committed<TokenizeOutcome>>),
        numericSpace: numericSpaceOf(metrics, log, now),
      },
      lookUp: { policy, tenants, now, watch: abuse.watch, commit: (operation) => watched.refusal() ?? (tokenizing.commit(operation, 1, operation.tenant.name) as Promise<Committed<LookUpOutcome>>) },
      lifecycle: { policy, tenants, now, watch: abuse.watch, commit: (operation) => watched.refusal() ?? (tokenizing.commit(operation, 1, operation.tenant.name) as Promise<Committed<LifecycleOutcome>>) },
    });
  }
  if (api !== null && detokenizing !== null) {
    addDetokenizingRoutes(api, {
      policy,
      tenants,
      now,
      stages: metrics,
      watch: abuse.watch,
      quotasOf: quotaRules(config.quotas),
      referenceRuleOf: referenceRules(config.references.demands),
      // Single calls and batches take turns.
      commit: (operation) => watched.refusal() ?? (detokenizing.commit(operation, operation.input.tokens.length, `${operation.action} ${operation.tenant.name}`) as Promise<Committed<DetokenizeOutcome>>),
      record: async (operation, failed) => void (await detokenizing.commit({ kind: 'entry', entry: openFailure(operation, failed) }, 1, operation.tenant.name)),
    });
  }
  const admin = has('admin') ? createServer(serverOptions(await openTls('admin'), 'admin')) : null;
  if (admin !== null) {
    const status = (): object => {
      const { revoked, freshUntil } = revocation.status();
      return { readiness: readiness(), policies: policy.policyIds, policy_digest: policy.digest, limits_digest: digestOfLimits(config), revocation: { revoked, fresh_until: freshUntil.toISOString() } };
    };
    // With its events: what operators do to callers, the rest of the platform is to learn as well.
    const recordOperation = async (operation: EntryOperation): Promise<void> => void (await writers[0]!.commit(operation, 1));
    await addOpenApi(admin, apiVersion);
    addAdminRoutes(admin, { policy, status, record: recordOperation });
    addControlRoutes(admin, { policy, controls, tenants: new Map(tenantRows.map(({ name, id }) => [name, id])), trustDomain: config.tls.trust_domain, now, random: pooledRandom(), record: recordOperation });
    addOperators(stack, admin, { config, connection: connectionOf(access, 'admin'), policy, controls, control: keyring.control, now, record: recordOperation });
    const reads = new LogReads({ now, write: record });
    stack.defer(() => reads.close());
    addAuditRoutes(admin, { policy, log: serveLog(stack, connectionOf(access, 'admin'), keyring.logSigner), reads, refusal: () => watched.refusal(), record: recordOperation });
  }
  addGauges(metrics, keyring, writers);
  if (apiTls !== null) addConnectionGauges(metrics, apiTls);
  const buffers = await NetworkBuffers.open({
    ...tlsFiles,
    overwritten: metrics.count('cofre_network_buffers_overwritten_total', 'Times that the buffers which requests came through were overwritten.'),
  });
  stack.defer(() => buffers.close());

  return {
    readiness,
    async open() {
      const { host, admin_port: adminPort, api_port: apiPort, drain_timeout: drainTimeout } = config.listeners;
      const ports: { api: number | null; admin: number | null } = { api: null, admin: null };
      if (admin !== null) {
        ports.admin = await listenSecure(admin, host, adminPort, 'admin', 'COFRE_ADMIN_PORT');
        stack.defer(() => drain(admin, milliseconds(drainTimeout)));
      }
      if (api !== null) {
        ports.api = await listenSecure(api, host, apiPort, 'API', 'COFRE_API_PORT');
        stack.defer(() => drain(api, milliseconds(drainTimeout)));
      }
      const telling = new PolicyTelling({ keep: keepPolicies, record, failed: (error) => log.error('the policies in force are not in the log yet', { error: describe(error) }), now, retryMs: 1000 });
      stack.defer(() => telling.close());
      watchFiles(hangUps, { revocation, policy, telling, listeners, log });
      sweep(stack, options, tenants, batching, now);
      return ports;
    },
  };
}

interface Watched {
  readonly revocation: RevocationList;
  readonly policy: Policy;
  readonly telling: PolicyTelling;
  readonly listeners: readonly TlsListener[];
  readonly log: Log;
}

/** What changes while it runs: the revocation list and the certificates when their files do, all of them and the policies on SIGHUP. */
function watchFiles(hangUps: HangUps, { revocation, policy, telling, listeners, log }: Watched): void {
  const closeRevoked = (serials: ReadonlySet<string>): number => listeners.reduce((closed, tls) => closed + tls.closeRevoked(serials), 0);
  revocation.watch(1000, ({ outcome, reason, newlyRevoked }) => {
    if (outcome === 'refused') log.error('the revocation list was not reloaded', { reason: reason ?? '' });
    const closed = closeRevoked(newlyRevoked);
    if (newlyRevoked.size > 0) log.warn('certificates were revoked', { count: newlyRevoked.size, kind: `${closed} connections closed` });
  });
  const reload = (): void => {
    void (async () => {
      const refused = await policy.reload();
      if (refused !== null) log.error('the policies were not reloaded', { reason: refused });
      else telling.tell(policy);
      await Promise.all([revocation.reload().then(({ newlyRevoked }) => closeRevoked(newlyRevoked)), ...listeners.map((tls) => tls.reload())]);
    })();
  };
  hangUps.each(reload);
}

/** SIGHUPs to this process, also those that come before somebody can do what they ask for. */
class HangUps {
  #came = false;
  #then: (() => void) | null = null;
  readonly #heard = (): void => {
    if (this.#then === null) this.#came = true;
    else this.#then();
  };

  constructor() {
    process.on('SIGHUP', this.#heard);
  }

  /** Calls `then` at each from now on, and now if one came before. */
  each(then: () => void): void {
    this.#then = then;
    if (this.#came) then();
  }

  end(): void {
    process.off('SIGHUP', this.#heard);
  }
}

/** Removes rows that ran out, each as the role that owns them, and ends tokens that are past their end. One process of a home does it. */
function sweep(stack: AsyncDisposableStack, { config, access, log, index }: ProcessOptions, tenants: Tenants, batching: GroupCommit<TokenizingOperation, TokenizingOutcome> | null, now: () => Date): void {
  if (index > 0) return;
  const as = async (role: 'tokenize' | 'detokenize', work: (client: Client) => Promise<unknown>): Promise<void> => {
    if (config.roles.includes(role)) await asClient(connectionOf(access, role), 'DATABASE_URL', work);
  };
  const sweepRows = async (): Promise<void> => {
    await as('tokenize', (client) => sweepIdempotencyKeys(client, new Date(now().getTime() - idempotencyWindowMs)));
    // Two days back, so that no clock of ours is still in it.
    await as('tokenize', (client) => sweepGroups(client, dateOf(Math.floor(now().getTime() / 86_400_000) - 1)));
    await as('detokenize', (client) => sweepQuotas(client, now()));
    await as('detokenize', (client) => sweepReferences(client, new Date(now().getTime() - config.references.keep_days * 86_400_000)));
  };
  let rows: Promise<void> | null = null;
  every(stack, 60_000, () => {
    // Many rows may take longer than a minute.
    rows ??= sweepRows()
      .catch((error: unknown) => log.warn('old rows were not swept', { error: describe(error) }))
      .finally(() => (rows = null));
  });
  if (batching === null) return;
  let sweeping = false;
  const endTokens = async (): Promise<void> => {
    if (sweeping) return;
    sweeping = true;
    try {
      for (let ended = tokensASweep; ended >= tokensASweep; ) {
        const { outcome } = (await batching.commit({ kind: 'sweep', tenants, limit: tokensASweep }, tokensASweep)) as Committed<SweepOutcome>;
        // As many as were asked for: there may be more.
        ended = outcome.tokens;
      }
    } catch (error) {
      log.warn('tokens past their end were not swept', { error: describe(error) });
    } finally {
      sweeping = false;
    }
  };
  every(stack, milliseconds(config.tokens.sweep_interval), () => void endTokens());
}

/** How full the space of numeric tokens is: its metrics and its alarm. */
function numericSpaceOf(metrics: Metrics, log: Log, now: () => Date): { drawn(): void; taken(): void } {
  const space = new NumericSpace({ now, alarm: (percent) => log.warn('the space of numeric tokens fills: the share in use, in percent', { count: percent }) });
  const drawn = metrics.count('cofre_numeric_token_drawn_total', 'Numeric tokens that were drawn.');
  const taken = metrics.count('cofre_numeric_token_taken_total', 'Of these, the ones that were in use already: their share is how full the space is.');
  return {
    drawn() {
      space.drawn();
      drawn();
    },
    taken() {
      space.taken();
      taken();
    },
  };
}

function every(stack: AsyncDisposableStack, ms: number, work: () => void): void {
  const timer = setInterval(work, ms).unref();
  stack.defer(() => clearInterval(timer));
}
