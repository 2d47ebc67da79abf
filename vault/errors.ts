/**
 * The one vocabulary of refusals and failures, and the one renderer (RFC 9457).
 *
 * Every message here is constant text: nothing that a client sent, and nothing of an inner error, is ever part of an answer.
 * Whoever needs a new code adds a row to the table; nobody writes a status anywhere else.
 */
import type { HsmError } from '../hsm/errors.ts';
import type { EntryFacts } from './call.ts';

interface ErrorRow {
  readonly status: number;
  /** Whether the very same request may succeed later without the caller changing anything. */
  readonly retryable: boolean;
  readonly title: string;
  /** Seconds for the `Retry-After` header, where the client should wait before it tries again. */
  readonly retryAfterSeconds?: number;
}

const table = {
  invalid_request: { status: 400, retryable: false, title: 'The request is not well formed, or a field is missing, unknown or out of range.' },
  invalid_pan: { status: 422, retryable: false, title: 'The card number does not have 12 to 19 digits that pass the Luhn check.' },
  sad_refused: { status: 422, retryable: false, title: 'The request holds sensitive authentication data, which this vault never takes.' },
  pan_in_other_field: { status: 422, retryable: false, title: 'A card number stands in a field other than the one made for it.' },
  not_authorized: { status: 403, retryable: false, title: 'This caller may not do this.' },
  not_found: { status: 404, retryable: false, title: 'There is no such path or method here.' },
  token_unknown: { status: 404, retryable: false, title: 'This tenant has no such token.' },
  token_revoked: { status: 410, retryable: false, title: 'The token was deleted.' },
  token_expired: { status: 410, retryable: false, title: 'The token has expired.' },
  token_suspended: { status: 409, retryable: false, title: 'The token is suspended.' },
  idempotency_conflict: { status: 409, retryable: false, title: 'The Idempotency-Key was used before with another request.' },
  reference_required: { status: 422, retryable: false, title: 'A call for this purpose names a reference.' },
  reference_used: { status: 409, retryable: false, title: 'The reference has served for this token and purpose before.' },
  change_decided: { status: 409, retryable: false, title: 'The change was decided, was done, or waited for too long.' },
  payload_too_large: { status: 413, retryable: false, title: 'The request body is larger than this call takes.' },
  too_many_items: { status: 422, retryable: false, title: 'The batch has more items than one call takes.' },
  quota_exceeded: { status: 429, retryable: true, title: 'The quota of this caller is used up.', retryAfterSeconds: 60 },
  sealed: { status: 503, retryable: true, title: 'The vault is sealed.', retryAfterSeconds: 30 },
  hsm_unavailable: { status: 503, retryable: true, title: 'The HSM is not available.', retryAfterSeconds: 5 },
  store_unavailable: { status: 503, retryable: true, title: 'The database is not available.', retryAfterSeconds: 2 },
  audit_unavailable: { status: 503, retryable: true, title: 'The log cannot be written.', retryAfterSeconds: 5 },
  overloaded: { status: 503, retryable: true, title: 'More calls wait than the vault takes at once.', retryAfterSeconds: 1 },
  outcome_unknown: { status: 503, retryable: true, title: 'The database went away while it committed this call; to repeat it is safe.', retryAfterSeconds: 5 },
  internal: { status: 500, retryable: false, title: 'The vault failed; the request id names the case.' },
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof table;

/** Whose decision, for what: all of it ours or checked against a narrow schema. */
export type RefusalFacts = Pick<EntryFacts, 'decision' | 'purpose' | 'reference' | 'tokens' | 'items' | 'detail'>;

export const errorCodes = Object.keys(table) as readonly ErrorCode[];

/** A refusal or failure that a caller may be told of. Its message is the constant title of its code; `cause` is for our eyes only. */
export class VaultError extends Error {
  readonly code: ErrorCode;
  /** Overrides the table's `Retry-After`, in seconds. */
  readonly retryAfterSeconds: number | undefined;
  /** Whether the log already holds the entry of the call that this error ends. */
  recorded = false;
  /** What the entry of the refused call says beyond its code, where the operation knew more than its route. */
  readonly facts: RefusalFacts;

  constructor(code: ErrorCode, options?: { cause?: unknown; retryAfterSeconds?: number; facts?: RefusalFacts }) {
    super(table[code].title, options?.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'VaultError';
    this.code = code;
    this.retryAfterSeconds = options?.retryAfterSeconds;
    this.facts = options?.facts ?? {};
  }

  get status(): number {
    return table[this.code].status;
  }

  get retryable(): boolean {
    return table[this.code].retryable;
  }
}

/** What trouble with keys is to the caller. */
export function codeOfHsm({ kind, retryable }: HsmError): ErrorCode {
  if (kind === 'sealed') return 'sealed';
  if (kind === 'store') return 'store_unavailable';
  return retryable ? 'hsm_unavailable' : 'internal';
}

/** RFC 9457 problem details, with the three members that the contract adds. */
export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly code: ErrorCode;
  readonly retryable: boolean;
  readonly request_id: string;
}

/**
 * Turns anything thrown into the answer that a client gets. Default deny: what is not a VaultError is `internal`, with an id
 * and nothing else, because the text of an unknown error may hold anything.
 */
export function renderProblem(error: unknown, requestId: string): { problem: Problem; retryAfterSeconds: number | undefined } {
  const code = error instanceof VaultError ? error.code : 'internal';
  const row: ErrorRow = table[code];
  const retryAfterSeconds = (error instanceof VaultError ? error.retryAfterSeconds : undefined) ?? row.retryAfterSeconds;
  return {
    problem: { type: `urn:cofre:error:${code}`, title: row.title, status: row.status, code, retryable: row.retryable, request_id: requestId },
    retryAfterSeconds,
  };
}

/** The problem of one item of a batch: the same members without a status line of its own to carry them. */
export function problemOfItem(code: ErrorCode): { code: ErrorCode; title: string; status: number; retryable: boolean } {
  const row: ErrorRow = table[code];
  return { code, title: row.title, status: row.status, retryable: row.retryable };
}
