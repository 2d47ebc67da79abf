/**
 * Who may do what under a set of policies: what an access review wants to see, and what a change of policies changes. Asks the set itself, as the vault does for each
 * call, and concludes nothing from its text but whom to ask about.
 */
import type { Caller } from './caller.ts';
import { actions, callersNamedIn, purposes } from './policy.ts';
import type { Action, Policy, PolicyFiles, Purpose } from './policy.ts';

/** One thing that one caller may do. */
export interface Grant {
  /** A SPIFFE id, or `any other service of tenant acme`: one that no policy names. */
  readonly caller: string;
  readonly action: Action;
  /** Of detokenize and detokenize_batch. */
  readonly purpose: Purpose | null;
  /** Whose cards. */
  readonly tenant: string;
  /** The policies that permit it, by their @id. */
  readonly policies: readonly string[];
}

type Decides = Pick<Policy, 'decide'>;

/** Callers and tenants that a set speaks of. */
export interface Named {
  readonly callers: readonly string[];
  readonly tenants: readonly string[];
}

/** Sorted. A caller whom a policy describes without naming (`principal.service like "x*"`) is not among them: `others` of its tenant stand for it where any service may. */
export function namedBy(files: PolicyFiles): Named {
  const callers = new Set<string>();
  const tenants = new Set<string>();
  for (const text of files.values()) {
    for (const { spiffeId, tenant } of callersNamedIn(text)) {
      callers.add(spiffeId);
      tenants.add(tenant);
    }
    for (const [, tenant] of text.matchAll(/Tenant::"([a-z0-9-]+)"/gu)) tenants.add(tenant!);
  }
  return { callers: [...callers].sort(), tenants: [...tenants].sort() };
}

/** Everything that anybody may do, sorted by caller, action, purpose and tenant. `named`: of this set, or of several that are to be compared. */
export function grantsOf(policy: Decides, { callers, tenants }: Named): readonly Grant[] {
  const asked: readonly (readonly [label: string, Caller])[] = [
    ...callers.map((id) => [id, callerOf(id)] as const),
    ...tenants.map((tenant) => [`any other service of tenant ${tenant}`, callerOf(`spiffe://nobody.invalid/tenant/${tenant}/service/nobody-has-this-service`)] as const),
  ];
  const grants: Grant[] = [];
  for (const [label, caller] of asked) {
    for (const action of actions) {
      for (const purpose of action === 'detokenize' || action === 'detokenize_batch' ? purposes : [null]) {
        for (const tenant of tenants) {
          const { allowed, policyIds } = policy.decide(caller, action, purpose, tenant);
          if (allowed) grants.push({ caller: label, action, purpose, tenant, policies: policyIds });
        }
      }
    }
  }
  return grants;
}

export interface Difference {
  readonly gained: readonly Grant[];
  readonly lost: readonly Grant[];
}

/** What anybody may do under `after` and might not under `before`, and the other way round. Policies that were only renamed make no difference. */
export function differenceOf(before: readonly Grant[], after: readonly Grant[]): Difference {
  const keyOf = ({ caller, action, purpose, tenant }: Grant): string => `${caller}\0${action}\0${purpose ?? ''}\0${tenant}`;
  const [had, has] = [new Set(before.map(keyOf)), new Set(after.map(keyOf))];
  return { gained: after.filter((grant) => !had.has(keyOf(grant))), lost: before.filter((grant) => !has.has(keyOf(grant))) };
}

/** By an id in the form that `namedBy` gives. */
function callerOf(id: string): Caller {
  return callersNamedIn(`"${id}"`)[0]!;
}
