/** Validate and metadata: what may be said of a token without ever touching what is sealed. */
import type { ClientBase } from 'pg';
import type { TokenWatch } from './abuse.ts';
import { entryOf } from './call.ts';
import type { Call } from './call.ts';
import { findTokens } from './card-store.ts';
import type { MadeIn, TokenFormat, TokenRow } from './card-store.ts';
import type { Committed, Settlement } from './commit.ts';
import { VaultError } from './errors.ts';
import type { ErrorCode } from './errors.ts';
import type { Decision, Policy } from './policy.ts';
import type { Tenant, Tenants } from './tenants.ts';
import { effectiveStatus, rowIsGenuine, viewOf } from './token-view.ts';
import type { EffectiveStatus, TokenView } from './token-view.ts';
import { parseToken } from './token.ts';

export interface LookUpDeps {
  readonly policy: Policy;
  readonly tenants: Tenants;
  readonly now: () => Date;
  /** Told what an authorized call asked for, once its entry is committed. */
  readonly watch: TokenWatch;
  /** Commits through a writer whose role may read token rows. */
  commit(operation: LookUpOperation): Promise<Committed<LookUpOutcome>>;
}

export interface LookUpOperation {
  readonly kind: 'look_up';
  readonly action: 'validate' | 'metadata';
  readonly call: Call;
  readonly decision: Decision;
  readonly tenant: Tenant;
  readonly token: string;
  /** Whether the token is well formed; any other text is never looked up and never named in the log. */
  readonly wellFormed: boolean;
}

export type LookUpOutcome =
  | { readonly kind: 'found'; readonly row: TokenRow }
  | { readonly kind: 'absent' }
  | { readonly kind: 'refused'; readonly code: ErrorCode };

export interface ValidateAnswer {
  readonly valid: boolean;
  readonly status: EffectiveStatus | 'unknown' | 'malformed';
  readonly format?: TokenFormat;
  readonly brand?: string;
  readonly last4?: string;
  readonly expiry?: string | null;
  readonly expires_at?: string | null;
}

export type MetadataAnswer = TokenView & { readonly metadata: Readonly<Record<string, string | number | boolean>> | null };

/**
 * Whether a token would open, and if not, why not. Never a PAN, never an error for a token that is merely not good.
 *
 * @throws VaultError `not_authorized`, `internal` for a row that was tampered with, and what `commit` throws.
 */
export async function validate(deps: LookUpDeps, call: Call, token: string): Promise<ValidateAnswer> {
  const wellFormed = parseToken(token) !== null;
  const row = await lookUp(deps, call, 'validate', token, wellFormed);
  if (!wellFormed) return { valid: false, status: 'malformed' };
  if (row === null) return { valid: false, status: 'unknown' };
  const view = viewOf(row, deps.now());
  return { valid: view.status === 'active', status: view.status, format: view.format, brand: view.brand, last4: view.last4, expiry: view.expiry, expires_at: view.expires_at };
}

/**
 * What is kept about a token, masked.
 *
 * @throws VaultError `not_authorized`, `token_unknown`, `internal` for a row that was tampered with, and what `commit` throws.
 */
export async function metadata(deps: LookUpDeps, call: Call, token: string): Promise<MetadataAnswer> {
  const row = await lookUp(deps, call, 'metadata', token, parseToken(token) !== null);
  if (row === null) {
    const unknown = new VaultError('token_unknown');
    unknown.recorded = true;
    throw unknown;
  }
  return { ...viewOf(row, deps.now()), metadata: row.metadata === null ? null : (JSON.parse(row.metadata) as Record<string, string | number | boolean>) };
}

async function lookUp(deps: LookUpDeps, call: Call, action: 'validate' | 'metadata', token: string, wellFormed: boolean): Promise<TokenRow | null> {
  const { caller } = call;
  if (caller === null) throw new VaultError('not_authorized');
  const decision = deps.policy.decide(caller, action, null);
  if (!decision.allowed) throw new VaultError('not_authorized', { facts: { decision, ...(wellFormed ? { tokens: { not_authorized: [token] } } : {}) } });
  const tenant = deps.tenants.get(caller.tenant);
  const { outcome } = await deps.commit({ kind: 'look_up', action, call, decision, tenant, token, wellFormed });
  if (outcome.kind === 'refused') {
    const refusal = new VaultError(outcome.code);
    refusal.recorded = true;
    throw refusal;
  }
  deps.watch.named(caller, tenant.id, [token], outcome.kind === 'found' ? [] : [token]);
  return outcome.kind === 'found' ? outcome.row : null;
}

/** The transaction's part, for all look-ups of a group at once. */
export async function storeLookUps(tx: ClientBase, operations: readonly LookUpOperation[], made: MadeIn): Promise<Settlement<LookUpOutcome>[]> {
  const asked = operations.filter((operation) => operation.wellFormed);
  const found = new Map<string, TokenRow>();
  if (asked.length > 0) {
    const rows = await findTokens(tx, asked.map((operation) => operation.tenant.id), asked.map((operation) => operation.token));
    for (const row of rows) found.set(`${row.tenantId} ${row.token}`, row);
  }
  return operations.map((operation) => {
    const row = found.get(`${operation.tenant.id} ${operation.token}`);
    if (row !== undefined && !rowIsGenuine(operation.tenant, row)) {
      return { outcome: { kind: 'refused', code: 'internal' }, entry: lookUpEntry(operation, 'internal', 'internal') };
    }
    if (row !== undefined) return { outcome: { kind: 'found', row }, entry: lookUpEntry(operation, effectiveStatus(row, made.at), undefined) };
    // Validate answers an unknown token; metadata refuses it.
    return { outcome: { kind: 'absent' }, entry: lookUpEntry(operation, 'unknown', operation.action === 'metadata' ? 'token_unknown' : undefined) };
  });
}

function lookUpEntry(operation: LookUpOperation, outcome: string, code: ErrorCode | undefined): NonNullable<Settlement<LookUpOutcome>['entry']> {
  const { call, action, decision, token, wellFormed } = operation;
  return entryOf(call, { action, decision, ...(wellFormed ? { tokens: { [outcome]: [token] } } : {}), ...(code === undefined ? {} : { code }) });
}
