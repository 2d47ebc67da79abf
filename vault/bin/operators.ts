/** Operators and their changes, on a process's admin listener. */
import type { FastifyInstance } from 'fastify';
import { Pool } from 'pg';
import type { ClientConfig } from 'pg';
import { KeyLifecycle } from '../../hsm/key-lifecycle.ts';
import type { ControlKey } from '../../hsm/key-registry.ts';
import { postgresKeyLifecycleStore } from '../../platform-adapters/postgres/key-store.ts';
import { changeKinds } from '../change-kinds.ts';
import { Changes } from '../changes.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import type { Controls } from '../controls.ts';
import { addKeyRoutes } from '../key-routes.ts';
import { addOperatorRoutes } from '../operator-routes.ts';
import { OperatorSessions } from '../operator-sessions.ts';
import { Operators } from '../operators.ts';
import type { Policy } from '../policy.ts';
import type { EntryOperation } from '../transaction.ts';
import { endInTime } from './database.ts';

export interface OperatorsOfProcess {
  readonly config: Config;
  /** As the role `admin`. */
  readonly connection: ClientConfig;
  readonly policy: Policy;
  readonly controls: Controls;
  readonly control: ControlKey;
  readonly now: () => Date;
  readonly record: (operation: EntryOperation) => Promise<void>;
}

export function addOperators(stack: AsyncDisposableStack, admin: FastifyInstance, { config, connection, policy, controls, control, now, record }: OperatorsOfProcess): void {
  const pool = new Pool({ ...connection, max: 2, application_name: 'cofre operators', query_timeout: 5000 });
  pool.on('error', () => undefined);
  stack.defer(() => endInTime(pool));
  const operators = new Operators({ controls, control, db: pool, now });
  const sessions = new OperatorSessions(pool, control, { idleMs: milliseconds(config.operators.session_idle), longestMs: milliseconds(config.operators.session_longest) }, now);
  const keys = new KeyLifecycle(postgresKeyLifecycleStore(pool), control);
  addKeyRoutes(admin, { policy, keys, now, record });
  const kinds = changeKinds({ controls, operators, sessions, keys, trustDomain: config.tls.trust_domain, now });
  const changes = new Changes({ controls, kinds, isActive: (spiffeId) => operators.stateOf(spiffeId) === 'active', now });
  addOperatorRoutes(admin, { policy, operators, sessions, changes, record });
}
