/** One authenticated request: what every operation knows of it, and what the log says of it. */
import type { Entry } from '../audit/entry.ts';
import type { Caller } from './caller.ts';
import type { ErrorCode } from './errors.ts';
import type { Decision } from './policy.ts';

export interface Call {
  /** UUID that we made; in the answer and in the entry. */
  readonly requestId: string;
  readonly at: Date;
  /** Null only for a call that is refused because its caller cannot be told. */
  readonly caller: Caller | null;
  /** IP address of the peer. */
  readonly from: string;
}

/** What an entry says beyond the call itself. */
export interface EntryFacts {
  readonly action: string;
  readonly decision?: Decision;
  readonly purpose?: string;
  readonly reference?: string | undefined;
  readonly tokens?: NonNullable<Entry['tokens']>;
  readonly items?: NonNullable<Entry['items']>;
  readonly detail?: NonNullable<Entry['detail']>;
  /** Absent for an allowed call. */
  readonly code?: ErrorCode;
}

/** Codes with which the vault failed the caller, as opposed to having refused it. */
const failures: ReadonlySet<ErrorCode> = new Set(['internal', 'hsm_unavailable', 'store_unavailable', 'audit_unavailable', 'outcome_unknown', 'overloaded', 'sealed']);

/** The entry of a call. Everything in it is ours, or was checked against a narrow schema. */
export function entryOf(call: Call, facts: EntryFacts): Entry {
  const { caller } = call;
  return {
    action: facts.action,
    at: call.at,
    from: call.from,
    request: call.requestId,
    outcome: facts.code === undefined ? 'allowed' : failures.has(facts.code) ? 'failed' : 'refused',
    ...(facts.code === undefined ? {} : { code: facts.code }),
    ...(caller === null ? {} : { caller: caller.spiffeId, serial: caller.serial, tenant: caller.tenant }),
    ...(facts.decision === undefined ? {} : { policies: facts.decision.policyIds }),
    ...(facts.purpose === undefined ? {} : { purpose: facts.purpose }),
    ...(facts.reference === undefined ? {} : { reference: facts.reference }),
    ...(facts.tokens === undefined ? {} : { tokens: facts.tokens }),
    ...(facts.items === undefined ? {} : { items: facts.items }),
    ...(facts.detail === undefined ? {} : { detail: facts.detail }),
  };
}
