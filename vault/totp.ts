/** One-time passwords by time: RFC 6238 over RFC 4226, with HMAC-SHA-1, 30 seconds and 6 digits, which every authenticator knows. Pure. */
import { createHmac, timingSafeEqual } from 'node:crypto';

export const stepSeconds = 30;
const digits = 6;
/** Steps before and after the present one whose codes are taken, for clocks that differ (RFC 6238 section 5.2). */
const drift = 1;

/** RFC 4226 section 5.3. `secret` is only read; RFC 4226 section 4 asks for 20 bytes. */
export function hotp(secret: Uint8Array, counter: number, length = digits): string {
  const message = Buffer.alloc(8);
  message.writeBigUInt64BE(BigInt(counter));
  const mac = createHmac('sha1', secret).update(message).digest();
  const offset = mac[19]! & 0xf;
  const value = mac.readUInt32BE(offset) & 0x7f_ff_ff_ff;
  return String(value % 10 ** length).padStart(length, '0');
}

/** The step of a moment: RFC 6238 section 4.2. */
export function stepAt(at: Date): number {
  return Math.floor(at.getTime() / 1000 / stepSeconds);
}

/**
 * The step whose code this is, or null. Only steps after `lastStep` count, so that no code serves twice (RFC 6238 section 5.2); whoever accepts one keeps it as the last.
 * Takes the same time for every code of six digits.
 */
export function acceptedStep(secret: Uint8Array, code: string, at: Date, lastStep: number): number | null {
  if (!/^[0-9]{6}$/u.test(code)) return null;
  const given = Buffer.from(code, 'latin1');
  const now = stepAt(at);
  let accepted: number | null = null;
  for (let step = now - drift; step <= now + drift; step += 1) {
    const fits = timingSafeEqual(given, Buffer.from(hotp(secret, step), 'latin1'));
    if (fits && step > lastStep && accepted === null) accepted = step;
  }
  return accepted;
}

const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';

/** Base32 without padding (RFC 4648 section 6), as authenticators take a secret. */
export function base32(bytes: Uint8Array): string {
  let text = '';
  let bits = 0;
  let value = 0;
  for (const byte of bytes) {
    value = (value << 8) | byte;
    bits += 8;
    while (bits >= 5) {
      bits -= 5;
      text += alphabet[(value >>> bits) & 31];
    }
    value &= (1 << bits) - 1;
  }
  return bits > 0 ? text + alphabet[(value << (5 - bits)) & 31] : text;
}

/** `otpauth://totp/…`, which authenticators read as a picture. */
export function totpUri(secret: Uint8Array, account: string): string {
  return `otpauth://totp/Cofre:${encodeURIComponent(account)}?secret=${base32(secret)}&issuer=Cofre&algorithm=SHA1&digits=${digits}&period=${stepSeconds}`;
}
