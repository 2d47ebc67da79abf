/**
 * Who may do what under a set of policies: what an access review wants to see, and what a change of policies changes. Asks the set itself, as the vault does for each
 * call, and concludes nothing from its text but whom to ask about.
 */
import type { Caller } from './caller.ts';
import { actions, callersNamedIn, purposes } from './policy.ts';
import type { Action, Policy, PolicyFiles, Purpose } from './policy.ts';

/** One thing that one caller may do. */
export interface Grant {
  /** A SPIFFE id, or `service billing of tenant acme` where policies know it by these words alone, or `any other service of tenant acme`: one that no policy names. */
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
  /** Words that a condition may compare with a caller's service. */
  readonly services: readonly string[];
}

/** A string of a policy that can be the name of a tenant or a service, and is neither the id of an entity nor an annotation: what a condition compares with. */
const word = /(?<!::|@\w+\(\s*)"([a-z0-9-]{1,63})"/gu;

/**
 * Sorted. Which words are services and which are tenants is not concluded: each is asked about as both. A caller whom a policy describes by a pattern (`principal.service like "x*"`) is not among them: `others` of its tenant
 * stand for it where any service may.
 */
export function namedBy(files: PolicyFiles): Named {
  const callers = new Set<string>();
  const tenants = new Set<string>();
  const services = new Set<string>();
  for (const [file, text] of files) {
    // The schema names purposes, and no caller.
    if (!file.endsWith('.cedar')) continue;
    for (const { spiffeId, tenant } of callersNamedIn(text)) {
      callers.add(spiffeId);
      tenants.add(tenant);
    }
    for (const [, tenant] of text.matchAll(/Tenant::"([a-z0-9-]+)"/gu)) tenants.add(tenant!);
    for (const [, name] of text.matchAll(word)) {
      tenants.add(name!);
      services.add(name!);
    }
  }
  return { callers: [...callers].sort(), tenants: [...tenants].sort(), services: [...services].sort() };
}

/** What either of two sets speaks of. */
export function namedByBoth(one: Named, other: Named): Named {
  const union = (names: (named: Named) => readonly string[]): string[] => [...new Set([...names(one), ...names(other)])].sort();
  return { callers: union(({ callers }) => callers), tenants: union(({ tenants }) => tenants), services: union(({ services }) => services) };
}

/** Everything that anybody may do, sorted by caller, action, purpose and tenant. `named`: of this set, or of several that are to be compared. */
export function grantsOf(policy: Decides, { callers, tenants, services }: Named): readonly Grant[] {
  const asked = callers.map((id) => ({ label: id, caller: callerOf(id) }));
  const known = new Set(asked.map(({ caller }) => `${caller.tenant} ${caller.service}`));
  const grants = asked.flatMap(({ label, caller }) => grantsTo(policy, label, caller, tenants));
  for (const tenant of tenants) {
    const others = grantsTo(policy, `any other service of tenant ${tenant}`, strangerOf(tenant, 'nobody-has-this-service'), tenants);
    const open = new Set(others.map(keyOf));
    for (const service of services) {
      if (known.has(`${tenant} ${service}`)) continue;
      // What any service may is told once.
      grants.push(...grantsTo(policy, `service ${service} of tenant ${tenant}`, strangerOf(tenant, service), tenants).filter((grant) => !open.has(keyOf(grant))));
    }
    grants.push(...others);
  }
  return grants;
}

function grantsTo(policy: Decides, label: string, caller: Caller, tenants: readonly string[]): Grant[] {
  const grants: Grant[] = [];
  for (const action of actions) {
    for (const purpose of action === 'detokenize' || action === 'detokenize_batch' ? purposes : [null]) {
      for (const tenant of tenants) {
        const { allowed, policyIds } = policy.decide(caller, action, purpose, tenant);
        if (allowed) grants.push({ caller: label, action, purpose, tenant, policies: policyIds });
      }
    }
  }
  return grants;
}

function keyOf({ action, purpose, tenant }: Grant): string {
  return `${action}\0${purpose ?? ''}\0${tenant}`;
}

export interface Difference {
  readonly gained: readonly Grant[];
  readonly lost: readonly Grant[];
}

/** What anybody may do under `after` and might not under `before`, and the other way round. Policies that were only renamed make no difference. */
export function differenceOf(before: readonly Grant[], after: readonly Grant[]): Difference {
  const keyWith = (grant: Grant): string => `${grant.caller}\0${keyOf(grant)}`;
  const [had, has] = [new Set(before.map(keyWith)), new Set(after.map(keyWith))];
  return { gained: after.filter((grant) => !had.has(keyWith(grant))), lost: before.filter((grant) => !has.has(keyWith(grant))) };
}

/** By an id in the form that `namedBy` gives. */
function callerOf(id: string): Caller {
  return callersNamedIn(`"${id}"`)[0]!;
}

/** One of a trust domain that no policy names. */
function strangerOf(tenant: string, service: string): Caller {
  return callerOf(`spiffe://nobody.invalid/tenant/${tenant}/service/${service}`);
}
