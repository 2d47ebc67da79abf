/**
 * Detokenize: a token in, the card number out, for an approved service and a stated purpose. Steps as in docs/MONEY-PATH.md.
 *
 * Nothing sealed is opened before the entry that says so is durably committed: opening takes the receipt, and only the committed
 * entry gives one.
 */
import { HsmError } from '../hsm/errors.ts';
import type { ClientBase } from 'pg';
import { entryOf } from './call.ts';
import type { Call } from './call.ts';
import { findSealed } from './card-store.ts';
import type { MadeIn, SealedRow } from './card-store.ts';
import type { Committed, Settlement } from './commit.ts';
import { VaultError } from './errors.ts';
import type { ErrorCode } from './errors.ts';
import type { Policy, Purpose } from './policy.ts';
import type { Decision } from './policy.ts';
import { debitQuotas, secondsToNextMinute } from './quota.ts';
import type { Tenant, Tenants } from './tenants.ts';
import type { StageObserver } from './tokenize.ts';
import { effectiveStatus, expiryText, rowIsGenuine } from './token-view.ts';
import { parseToken } from './token.ts';
import { secretBytes } from '../hsm/secret-bytes.ts';

export interface DetokenizeInput {
  readonly token: string;
  readonly purpose: Purpose;
  readonly reference?: string;
}

export interface DetokenizeDeps {
  readonly policy: Policy;
  readonly tenants: Tenants;
  readonly now: () => Date;
  readonly stages: StageObserver;
  /** Detokenize calls that `subject` may make in a minute; null for no limit. */
  quotaOf(spiffeId: string, purpose: Purpose): number | null;
  /** Commits through a writer whose role may detokenize. */
  commit(operation: DetokenizeOperation): Promise<Committed<DetokenizeOutcome>>;
  /** Writes an entry of its own, for an open that failed after it was authorized. */
  record(operation: DetokenizeOperation, code: ErrorCode): Promise<void>;
}

export interface DetokenizeOperation {
  readonly kind: 'detokenize';
  readonly call: Call;
  readonly decision: Decision;
  readonly tenant: Tenant;
  readonly input: DetokenizeInput;
  readonly quota: number | null;
  /** Whether the token is well formed; any other text is never looked up and never named in the log. */
  readonly wellFormed: boolean;
}

export type DetokenizeOutcome =
  | { readonly kind: 'sealed'; readonly row: SealedRow }
  | { readonly kind: 'refused'; readonly code: ErrorCode; readonly retryAfterSeconds?: number };

/** What one call may open, once its entry is committed. */
interface OpenedCard {
  readonly digits: Buffer;
  readonly name: Buffer | null;
  readonly expiry: string | null;
}

/**
 * The answer's JSON body, `{"pan":…,"expiry":…,"cardholder":…}`, as one Buffer that the caller owns and must wipe.
 * The digits go from the cipher into that Buffer and are never a string.
 *
 * @throws VaultError `not_authorized`, `token_unknown`, `token_revoked`, `token_expired`, `token_suspended`, `quota_exceeded`,
 *   `hsm_unavailable`, `internal`, and what `commit` throws.
 */
export async function detokenize(deps: DetokenizeDeps, call: Call, input: DetokenizeInput): Promise<Buffer> {
  const { caller } = call;
  if (caller === null) throw new VaultError('not_authorized');

  // 3. Authorize: this caller, this tenant, this purpose.
  const decision = deps.policy.decide(caller, 'detokenize', input.purpose);
  const wellFormed = parseToken(input.token) !== null;
  if (!decision.allowed) {
    const tokens = wellFormed ? { tokens: [{ outcome: 'not_authorized', token: input.token }] } : {};
    throw new VaultError('not_authorized', { facts: { decision, purpose: input.purpose, reference: input.reference, ...tokens } });
  }
  const tenant = deps.tenants.get(caller.tenant);
  const operation: DetokenizeOperation = { kind: 'detokenize', call, decision, tenant, input, quota: deps.quotaOf(caller.spiffeId, input.purpose), wellFormed };

  // 5. The entry is committed in the same transaction that reads the sealed card and debits the quota.
  // A crash after it leaves an entry that says "authorized" for a card that nobody got: the safe side.
  const { outcome, receipt } = await deps.commit(operation);
  if (outcome.kind === 'refused') {
    const refusal = new VaultError(outcome.code, outcome.retryAfterSeconds === undefined ? undefined : { retryAfterSeconds: outcome.retryAfterSeconds });
    refusal.recorded = true;
    throw refusal;
  }
  if (receipt === null) throw new Error('a detokenize was committed without an entry');

  // 6. Only now act: open. A failure from here on is a second entry.
  const { row } = outcome;
  const binding = { tenant: tenant.name, cardId: row.cardId };
  let digits: Buffer | null = null;
  const openingSince = performance.now();
  try {
    const { cipher } = tenant.keys;
    const opened = await cipher.open(receipt, 'pan', row.sealedPan, binding);
    digits = opened;
    const name = row.sealedName === null ? null : await cipher.open(receipt, 'name', row.sealedName, binding);
    deps.stages.keyWork('open', performance.now() - openingSince);
    return answerBody({ digits: opened, name, expiry: expiryText(row.expiry) });
  } catch (error) {
    const code: ErrorCode = error instanceof HsmError && error.retryable ? 'hsm_unavailable' : 'internal';
    await deps.record(operation, code);
    const failure = new VaultError(code, { cause: error });
    failure.recorded = true;
    throw failure;
  } finally {
    digits?.fill(0);
  }
}

/** Builds the body in memory of its own (never Node's shared pool), so that wiping it leaves nothing behind. */
function answerBody({ digits, name, expiry }: OpenedCard): Buffer {
  const rest = Buffer.from(`","expiry":${JSON.stringify(expiry)},"cardholder":${JSON.stringify(name?.toString('utf8') ?? null)}}`, 'utf8');
  const body = secretBytes(8 + digits.length + rest.length);
  body.write('{"pan":"', 0, 'latin1');
  body.set(digits, 8);
  body.set(rest, 8 + digits.length);
  name?.fill(0);
  return body;
}

/** The transaction's part of detokenize, for all operations of a group at once. */
export async function storeDetokenize(tx: ClientBase, operations: readonly DetokenizeOperation[], made: MadeIn): Promise<Settlement<DetokenizeOutcome>[]> {
  const outcomes: (DetokenizeOutcome | null)[] = operations.map(() => null);

  // a. Quotas: a call that is not covered is refused here, alone, and its tokens are not looked at.
  const metered = operations.flatMap((operation, index) => (operation.quota === null ? [] : [{ operation, index, quota: operation.quota }]));
  if (metered.length > 0) {
    const granted = await debitQuotas(
      tx,
      metered.map(({ operation, quota }) => ({ tenantId: operation.tenant.id, subject: `${operation.call.caller?.spiffeId ?? ''} ${operation.input.purpose}`, amount: 1, limit: quota })),
      made.at,
    );
    for (const [at, { index }] of metered.entries()) {
      if (granted[at] !== true) outcomes[index] = { kind: 'refused', code: 'quota_exceeded', retryAfterSeconds: secondsToNextMinute(made.at) };
    }
  }

  // b. One look-up for all tokens, by (tenant, token): another tenant's token is unknown by the same statement and branch.
  const asked = operations.filter((operation, index) => operation.wellFormed && outcomes[index] === null);
  const found = new Map<string, SealedRow>();
  if (asked.length > 0) {
    const rows = await findSealed(tx, asked.map((operation) => operation.tenant.id), asked.map((operation) => operation.input.token));
    for (const row of rows) found.set(`${row.tenantId} ${row.token}`, row);
  }
  return operations.map((operation, index) => {
    const outcome = outcomes[index] ?? outcomeOf(operation, found.get(`${operation.tenant.id} ${operation.input.token}`), made.at);
    return { outcome, entry: detokenizeEntry(operation, outcome.kind === 'refused' ? outcome.code : undefined) };
  });
}

function outcomeOf(operation: DetokenizeOperation, row: SealedRow | undefined, now: Date): DetokenizeOutcome {
  if (row === undefined) return { kind: 'refused', code: 'token_unknown' };
  if (!rowIsGenuine(operation.tenant, row)) return { kind: 'refused', code: 'internal' };
  const status = effectiveStatus(row, now);
  if (status !== 'active') return { kind: 'refused', code: `token_${status}` };
  return { kind: 'sealed', row };
}

/** The entry of a detokenize; `code` where it was refused or failed. */
export function detokenizeEntry(operation: DetokenizeOperation, code: ErrorCode | undefined): NonNullable<Settlement<DetokenizeOutcome>['entry']> {
  const { call, decision, input } = operation;
  return entryOf(call, {
    action: 'detokenize',
    decision,
    purpose: input.purpose,
    reference: input.reference,
    ...(operation.wellFormed ? { tokens: [{ outcome: code ?? 'authorized', token: input.token }] } : {}),
    ...(code === undefined ? {} : { code }),
  });
}
