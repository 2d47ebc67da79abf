/** `cofre operator init`: the first operators, on the machine of a vault that is stopped. Never a default password, and never again once there is an operator. */
import { join, resolve } from 'node:path';
import { Pool } from 'pg';
import { openKeyring } from '../../hsm/keyring.ts';
import { lockFolder } from '../../platform-adapters/linux/folder-lock.ts';
import { postgresKeyStore } from '../../platform-adapters/postgres/key-store.ts';
import { superviseEmbedded } from '../../platform-adapters/postgres/supervisor.ts';
import { createLog } from '../../platform-adapters/telemetry/log.ts';
import { createMetrics } from '../../platform-adapters/telemetry/metrics.ts';
import { digestOfLimits } from '../approvals.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import { Operators } from '../operators.ts';
import { callersNamedIn, loadPolicy } from '../policy.ts';
import { executeEntries } from '../transaction.ts';
import { openControls } from './controls.ts';
import { connectionOf, endInTime, prepareDatabase } from './database.ts';
import { prepareDevelopment, readPin } from './development.ts';
import { lastBatchFiles, makeHome } from './home.ts';
import { openWriter } from './writers.ts';

export interface Invitation {
  readonly operator: string;
  readonly code: string;
  readonly expiresAt: Date;
}

/**
 * Invites the first operators, or with `recover` some anew where too few are left, and approves the policies and limits that are in force, as the witnesses of the ceremony see them.
 *
 * @throws Error of one line where there is an operator already, fewer than two are named, or the policies let them not decide together. Nothing was made then. A crash in the middle leaves some of them invited, and the rest to be
 * added by a change; where there are fewer than two, `cofre operator init` goes on.
 */
export async function inviteFirstOperators(home: string, config: Config, env: NodeJS.ProcessEnv, named: readonly string[], recover: boolean): Promise<{ readonly invitations: readonly Invitation[]; readonly policies: string; readonly limits: string }> {
  await using stack = new AsyncDisposableStack();
  makeHome(home);
  stack.defer(await lockFolder(home, 2000));
  if (config.profile === 'development') await prepareDevelopment(home, config);
  const policy = await loadPolicy(resolve(home, config.policies));
  refuseLockedOut(named, config, policy);

  const roleFile = join(home, 'secrets/database-roles.json');
  let url = env['DATABASE_URL'] ?? '';
  if (url === '') {
    if (!config.database.embedded) throw new Error('DATABASE_URL is needed: the configuration has no database of its own');
    const embedded = await superviseEmbedded({ folder: join(home, 'postgres'), database: 'cofre' }, () => undefined);
    stack.defer(() => embedded.stop());
    url = embedded.adminUrl;
  }
  const access = await prepareDatabase(url, roleFile, lastBatchFiles(home), config);
  const connection = connectionOf(access, 'admin');
  const pool = new Pool({ ...connection, max: 2, application_name: 'cofre operator init' });
  pool.on('error', () => undefined);
  stack.defer(() => endInTime(pool));
  const now = (): Date => new Date();
  const keyring = await openKeyring({
    modulePath: config.hsm.module,
    tokenLabel: config.hsm.token_label,
    pin: () => readPin(resolve(home, config.hsm.pin_file)),
    custody: config.hsm.custody,
    tenants: new Map(),
    store: postgresKeyStore(pool),
    now,
    maxAwayMs: milliseconds(config.hsm.max_away),
    log: { info: () => undefined, warn: () => undefined },
    uses: ['sign-log'],
  });
  stack.defer(() => keyring.close());
  const controls = await openControls(stack, { home, connection, readsData: true, control: keyring.control, index: 0 });
  const earlier = controls.all('operator');
  // One that a crash left alone could do nothing by itself.
  const begun = earlier.length > 0 && earlier.every(({ state, madeBy }) => state === 'invited' && madeBy === 'ceremony') && earlier.every(({ subject }) => named.includes(subject));
  if (earlier.length > 0 && !begun && !recover) throw new Error('there are operators already: they add others (cofre change request operator.add); where too few are left for that, --recover invites anew');
  const by = earlier.length > 0 && !begun ? 'recovery' : 'ceremony';

  const operators = new Operators({ controls, control: keyring.control, db: pool, now });
  const writer = await openWriter(stack, { home, config, access, signer: keyring.logSigner, log: createLog('error'), metrics: createMetrics(), now, index: 0, policies: policy.digest }, 'ceremony', 'admin', executeEntries);
  stack.defer(() => writer.close(5000));
  const invitations: Invitation[] = [];
  for (const operator of named) {
    // The entry first: the log may name one who was not invited, and never lacks one who was.
    await writer.commit({ kind: 'entry', entry: { action: by === 'recovery' ? 'operator.recover' : 'operator.invite', at: now(), outcome: 'allowed', detail: { by, operator } } }, 1);
    invitations.push({ operator, ...(await operators.invite(operator, by)) });
  }
  const limits = digestOfLimits(config);
  for (const subject of [`policies ${policy.digest}`, `limits ${limits}`]) {
    await writer.commit({ kind: 'entry', entry: { action: 'change.run', at: now(), outcome: 'allowed', detail: { by: 'ceremony', approved: subject } } }, 1);
    await controls.add({ kind: 'approval', subject, state: 'on', madeBy: 'ceremony', madeAt: now(), data: '' });
  }
  return { invitations, policies: policy.digest, limits };
}

/** Two of them at least may approve, and one of those asks: or nothing could ever be decided. */
function refuseLockedOut(named: readonly string[], config: Config, policy: Awaited<ReturnType<typeof loadPolicy>>): void {
  if (new Set(named).size < 2) throw new Error('two people at least: what one asks for another approves');
  for (const operator of named) {
    if (!/^spiffe:\/\/[a-z0-9.-]{1,255}\/tenant\/[a-z0-9-]{1,63}\/service\/[a-z0-9-]{1,63}$/u.test(operator) || !operator.startsWith(`spiffe://${config.tls.trust_domain}/`)) {
      throw new Error(`an operator is named by the SPIFFE id of the certificate, as spiffe://${config.tls.trust_domain}/tenant/platform/service/operator-a`);
    }
  }
  const callers = named.flatMap((operator) => callersNamedIn(`"${operator}"`));
  const may = (action: 'administer' | 'approve'): readonly string[] => callers.filter((caller) => policy.decide(caller, action, null).allowed).map(({ spiffeId }) => spiffeId);
  const [ask, approve] = [may('administer'), may('approve')];
  if (!ask.some((one) => approve.some((other) => other !== one))) throw new Error('the policies let no two of them decide together: one needs the grant administer, and another one approve');
}
