/**
 * The MAC that every token row carries, over what decides which card the token opens and whether it may. Pure.
 *
 * A database administrator who points a token at another card, revives a deleted one or extends its life changes one of these
 * fields, and cannot make the MAC that belongs to them: it is keyed by a subkey of the fingerprint key, in memory only.
 * It is checked whenever a row is used, before anything is opened.
 */
import { timingSafeEqual } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { hmacOf } from '../hsm/hmac-sha256.ts';

/** `expired` is what the sweeper writes; until it comes by, a token past its end says so by its time alone. */
export type TokenStatus = 'active' | 'suspended' | 'revoked' | 'expired';

export interface TokenBinding {
  readonly tenant: string;
  /** 32 bytes; of no account for a revoked or expired token, whose card may have been destroyed. */
  readonly fingerprint: Uint8Array;
  /** 16 bytes. */
  readonly cardId: Uint8Array;
  readonly token: string;
  readonly status: TokenStatus;
  readonly expiresAt: Date | null;
  readonly rowVersion: number;
}

export const statusCode: Readonly<Record<TokenStatus, number>> = { active: 0, suspended: 1, revoked: 2, expired: 3 };

/** The status of a stored code; null for a code that this version does not know. */
export function statusOf(code: number): TokenStatus | null {
  return statuses[code] ?? null;
}

/** Whether a token of this status is no more, for good. */
export function isDead(status: TokenStatus): boolean {
  return status === 'revoked' || status === 'expired';
}

const statuses: readonly TokenStatus[] = ['active', 'suspended', 'revoked', 'expired'];
const noFingerprint = Buffer.alloc(32);

const label = Buffer.from('cofre/token-row/v1\0', 'ascii');
/** Written anew for each MAC. */
const tail = Buffer.alloc(13);

/**
 * HMAC-SHA-256 truncated to 16 bytes (SP 800-107, section 5.3.3), over
 *   label || tenant || 0x00 || token || 0x00 || fingerprint (32, zeros for a dead token) || card id (16) || status (1) || row version (4) || expires at, ms (8, -1 for never)
 * Tenant and token are ASCII without zero bytes, so the encoding is unambiguous.
 */
export function tokenMac(key: KeyObject, binding: TokenBinding): Buffer {
  tail[0] = statusCode[binding.status];
  tail.writeUInt32BE(binding.rowVersion, 1);
  // Most live for ever; a BigInt for each would be a tenth of the whole.
  if (binding.expiresAt === null) tail.fill(0xff, 5);
  else tail.writeBigInt64BE(BigInt(binding.expiresAt.getTime()), 5);
  return hmacOf(key)
    .digest(label, `${binding.tenant}\0${binding.token}\0`, isDead(binding.status) ? noFingerprint : binding.fingerprint, binding.cardId, tail)
    .subarray(0, 16);
}

/** Whether `mac` belongs to the row; in constant time. */
export function tokenMacHolds(key: KeyObject, binding: TokenBinding, mac: Uint8Array): boolean {
  return mac.length === 16 && timingSafeEqual(tokenMac(key, binding), mac);
}
