/** What two people may decide on: suspended callers, operators, and which policies and limits may be in force. */
import { Type } from 'typebox';
import type { Static, TSchema } from 'typebox';
import { Value } from 'typebox/value';
import type { Change, ChangeKind } from './changes.ts';
import type { Controls } from './controls.ts';
import type { KeyLifecycle } from '../hsm/key-lifecycle.ts';
import { HsmError } from '../hsm/errors.ts';
import { VaultError } from './errors.ts';
import type { Operators } from './operators.ts';
import type { OperatorSessions } from './operator-sessions.ts';

export interface ChangeKindDeps {
  readonly controls: Controls;
  readonly operators: Operators;
  readonly sessions: OperatorSessions;
  readonly keys: KeyLifecycle;
  readonly trustDomain: string;
  readonly now: () => Date;
}

const closed = { additionalProperties: false } as const;
const SpiffeId = Type.String({ pattern: '^spiffe://[a-z0-9.-]{1,255}/tenant/[a-z0-9-]{1,63}/service/[a-z0-9-]{1,63}$' });
const CallerParams = Type.Object({ caller: SpiffeId }, closed);
const OperatorParams = Type.Object({ operator: SpiffeId }, closed);
const KeyParams = Type.Object({ domain: Type.String({ pattern: '^[a-z0-9-]{1,63}$' }), version: Type.Union([Type.Integer({ minimum: 1 }), Type.String({ pattern: '^[1-9][0-9]{0,8}$' })]) }, closed);
const DigestParams = Type.Object({ digest: Type.String({ pattern: '^[0-9a-f]{64}$' }) }, closed);

export function changeKinds({ controls, operators, sessions, keys, trustDomain, now }: ChangeKindDeps): readonly ChangeKind[] {
  const ours = (spiffeId: string): void => {
    if (!spiffeId.startsWith(`spiffe://${trustDomain}/`)) throw new VaultError('invalid_request');
  };
  const approval = (kind: string, title: string, what: string): ChangeKind =>
    kindOf(kind, title, DigestParams, () => undefined, async ({ digest }, { decidedBy = '' }) => {
      await controls.add({ kind: 'approval', subject: `${what} ${digest}`, state: 'on', madeBy: decidedBy, madeAt: now(), data: '' });
      return { result: { digest } };
    });
  return [
    kindOf('suspension.resume', 'Let a suspended caller call again', CallerParams, ({ caller }) => ours(caller), async ({ caller }, { decidedBy = '' }) => {
      const resumed = await controls.add({ kind: 'suspension', subject: caller, state: 'off', madeBy: decidedBy, madeAt: now(), data: '' });
      return { result: { caller, resumed: resumed ? 'yes' : 'was not suspended' } };
    }),
    kindOf('operator.add', 'Make somebody an operator, or let one enrol anew', OperatorParams, ({ operator }) => ours(operator), async ({ operator }, { decidedBy = '' }) => {
      await sessions.closeAll(operator);
      const { code, expiresAt } = await operators.invite(operator, decidedBy);
      return { result: { operator, invitation_ends: expiresAt.toISOString() }, once: { code } };
    }),
    kindOf('operator.disable', 'Take an operator\'s rights away', OperatorParams, ({ operator }) => ours(operator), async ({ operator }, { decidedBy = '' }) => {
      await operators.disable(operator, decidedBy);
      await sessions.closeAll(operator);
      return { result: { operator } };
    }),
    kindOf('key.rotate', 'Have a data key seal no more: its successor seals within a minute', KeyParams, () => undefined, async ({ domain, version }) => {
      try {
        const retired = await keys.retire(domain, Number(version));
        return { result: { domain, version: Number(version), retired: retired ? 'yes' : 'sealed no more already' } };
      } catch (error) {
        if (error instanceof HsmError && error.kind === 'not_found') throw new VaultError('invalid_request', { cause: error });
        throw error;
      }
    }),
    approval('policies.approve', 'Let a set of policies be in force, by its digest', 'policies'),
    approval('limits.approve', 'Let quotas, references and limits of abuse be in force, by their digest', 'limits'),
  ];
}

function kindOf<T extends TSchema>(kind: string, title: string, schema: T, check: (params: Static<T>) => void, run: (params: Static<T>, change: Change) => ReturnType<ChangeKind['run']>): ChangeKind {
  return {
    kind,
    title,
    parse(params) {
      if (!Value.Check(schema, params)) throw new VaultError('invalid_request');
      check(params);
      return params;
    },
    run: (params, change) => run(params as Static<T>, change),
  };
}
