/** A token as it may be shown: everything but the PAN, the cardholder and the fingerprint. Pure. */
import type { TokenFormat, TokenRow } from './card-store.ts';
import { isDead, tokenMacHolds } from './token-mac.ts';
import type { TokenStatus } from './token-mac.ts';
import type { Tenant } from './tenants.ts';

export type EffectiveStatus = TokenStatus;

export interface TokenView {
  readonly token: string;
  readonly format: TokenFormat;
  readonly status: EffectiveStatus;
  readonly card_id: string;
  readonly brand: string;
  /** Absent for card numbers below 15 digits (PCI SSC FAQ 1091). */
  readonly bin?: string;
  readonly last4: string;
  readonly length: number;
  /** YYYY-MM. */
  readonly expiry: string | null;
  readonly created_at: string;
  readonly expires_at: string | null;
}

/** Whether the row is as the vault wrote it: its MAC binds the token to its card, status and life. */
export function rowIsGenuine(tenant: Tenant, row: TokenRow): boolean {
  if (row.status === null || row.cardId.length !== 16 || (row.fingerprint.length !== 32 && !isDead(row.status))) return false;
  // What the vault never writes and no MAC can be made of: a negative version, a time at infinity (a number in node-postgres).
  if (row.rowVersion < 0 || (row.expiresAt !== null && !(row.expiresAt instanceof Date))) return false;
  return tokenMacHolds(tenant.keys.rowMacKey, { tenant: tenant.name, fingerprint: row.fingerprint, cardId: row.cardId, token: row.token, status: row.status, expiresAt: row.expiresAt, rowVersion: row.rowVersion }, row.tokenMac);
}

/** The status that holds at `now`: a token past its end is expired, whatever its row says. */
export function effectiveStatus(row: TokenRow, now: Date): EffectiveStatus {
  const status = row.status ?? 'revoked';
  return !isDead(status) && row.expiresAt !== null && row.expiresAt <= now ? 'expired' : status;
}

export function viewOf(row: TokenRow, now: Date): TokenView {
  return {
    token: row.token,
    format: row.format,
    status: effectiveStatus(row, now),
    card_id: cardIdText(row.cardId),
    brand: row.brand,
    ...(row.bin === null ? {} : { bin: row.bin }),
    last4: row.last4,
    length: row.panLength,
    expiry: expiryText(row.expiry),
    created_at: isoText(row.createdAt),
    expires_at: row.expiresAt === null ? null : isoText(row.expiresAt),
  };
}

let lastTime = Number.NaN;
let lastText = '';

/** The tokens of a batch were made in one moment. */
function isoText(moment: Date): string {
  const time = moment.getTime();
  if (time !== lastTime) {
    lastText = moment.toISOString();
    lastTime = time;
  }
  return lastText;
}

/** The public name of a card: `card_` and its 16 random bytes in hex. */
export function cardIdText(cardId: Uint8Array): string {
  return `card_${Buffer.from(cardId.buffer, cardId.byteOffset, cardId.byteLength).toString('hex')}`;
}

/** `YYYY-MM` of a stored YYYYMM. */
export function expiryText(expiry: number | null): string | null {
  return expiry === null ? null : `${String(Math.floor(expiry / 100)).padStart(4, '0')}-${String(expiry % 100).padStart(2, '0')}`;
}

/** YYYYMM of `YYYY-MM`, which the schema has checked. */
export function expiryNumber(text: string): number {
  return Number(text.slice(0, 4)) * 100 + Number(text.slice(5, 7));
}
