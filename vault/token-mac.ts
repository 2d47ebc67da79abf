/**
 * The MAC that every token row carries, over what decides which card the token opens and whether it may. Pure.
 *
 * A database administrator who points a token at another card, revives a deleted one or extends its life changes one of these
 * fields, and cannot make the MAC that belongs to them: it is keyed by a subkey of the fingerprint key, in memory only.
 * It is checked whenever a row is used, before anything is opened.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import type { KeyObject } from 'node:crypto';

export type TokenStatus = 'active' | 'suspended' | 'revoked';

export interface TokenBinding {
  readonly tenant: string;
  /** 32 bytes. */
  readonly fingerprint: Uint8Array;
  /** 16 bytes. */
  readonly cardId: Uint8Array;
  readonly token: string;
  readonly status: TokenStatus;
  readonly expiresAt: Date | null;
  readonly rowVersion: number;
}

export const statusCode: Readonly<Record<TokenStatus, number>> = { active: 0, suspended: 1, revoked: 2 };

/** The status of a stored code; null for a code that this version does not know. */
export function statusOf(code: number): TokenStatus | null {
  return code === 0 ? 'active' : code === 1 ? 'suspended' : code === 2 ? 'revoked' : null;
}

const label = Buffer.from('cofre/token-row/v1\0', 'ascii');

/**
 * HMAC-SHA-256 truncated to 16 bytes (SP 800-107, section 5.3.3), over
 *   label || tenant || 0x00 || token || 0x00 || fingerprint (32) || card id (16) || status (1) || row version (4) || expires at, ms (8, -1 for never)
 * Tenant and token are ASCII without zero bytes, so the encoding is unambiguous.
 */
export function tokenMac(key: KeyObject, binding: TokenBinding): Buffer {
  const tail = Buffer.allocUnsafe(13);
  tail.writeUInt8(statusCode[binding.status], 0);
  tail.writeUInt32BE(binding.rowVersion, 1);
  tail.writeBigInt64BE(BigInt(binding.expiresAt?.getTime() ?? -1), 5);
  return createHmac('sha256', key)
    .update(label)
    .update(`${binding.tenant}\0${binding.token}\0`, 'latin1')
    .update(binding.fingerprint)
    .update(binding.cardId)
    .update(tail)
    .digest()
    .subarray(0, 16);
}

/** Whether `mac` belongs to the row; in constant time. */
export function tokenMacHolds(key: KeyObject, binding: TokenBinding, mac: Uint8Array): boolean {
  return mac.length === 16 && timingSafeEqual(tokenMac(key, binding), mac);
}
