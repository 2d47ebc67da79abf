// The one error vocabulary of hsm/. A caller may tell these kinds apart; everything else that is thrown here "cannot happen".

/** What went wrong, by what the caller can do about it. */
export type HsmErrorKind =
  | 'unavailable' // the HSM does not answer, or has been away for longer than allowed
  | 'sealed' // the PIN is not unlocked yet
  | 'store' // the key registry's store does not answer, and a key was needed from it
  | 'not_found' // no object, key or tenant of that name
  | 'ambiguous' // more than one object has the label: nobody knows which one is meant
  | 'refused' // the HSM or this code declines: wrong PIN, wrong template, wrong length, not permitted
  | 'corrupt' // authentication of stored bytes failed: an edited row, a moved or altered value
  | 'exhausted'; // no leased seal, session or key space is left right now

const retryableKinds = {
  unavailable: true,
  sealed: true,
  store: true,
  not_found: false,
  ambiguous: false,
  refused: false,
  corrupt: false,
  exhausted: true,
} as const satisfies Record<HsmErrorKind, boolean>;

/**
 * A failure of key handling. `message` is constant text: it never holds input, key bytes, a label's content or a PIN.
 * `retryable` says whether the same call may succeed later without anybody changing anything. `cause` is kept for operators.
 */
export class HsmError extends Error {
  readonly kind: HsmErrorKind;
  readonly retryable: boolean;

  constructor(kind: HsmErrorKind, message: string, options?: { readonly cause?: unknown }) {
    super(message, options);
    this.name = 'HsmError';
    this.kind = kind;
    this.retryable = retryableKinds[kind];
  }
}
