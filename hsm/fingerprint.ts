// Fingerprints: HMAC-SHA-256 (FIPS 198-1, RFC 2104) of the whole PAN under a key of its own, so that the same card is found again. They never leave the vault.
import type { KeyObject } from 'node:crypto';
import { hmacOf } from './hmac-sha256.ts';
import { secretBytes } from './secret-bytes.ts';

/**
 * Computes fingerprints for the tenants of one key domain: 32 bytes, the caller's, = HMAC-SHA-256(fingerprint key, UTF-8(tenant) || 0x00 || digits).
 * A tenant name holds no zero byte, so the parts cannot be shifted against each other. `digits` are ASCII and only read. Synchronous in envelope custody, a
 * promise in direct custody: await it. Throws HsmError `unavailable`.
 */
export interface Fingerprint {
  compute(tenant: string, digits: Uint8Array): Buffer | Promise<Buffer>;
}

/** What is fed to the fingerprint key to derive the key that authenticates token rows. It has no zero byte, as every fingerprint input has: the two never meet. */
export const ROW_MAC_LABEL: Buffer = Buffer.from('cofre/token-row/v1', 'utf8');

function prefixes(): (tenant: string) => Buffer {
  const known = new Map<string, Buffer>();
  return (tenant) => {
    let prefix = known.get(tenant);
    if (prefix === undefined) {
      prefix = Buffer.from(`${tenant}\0`, 'utf8');
      known.set(tenant, prefix);
    }
    return prefix;
  };
}

/** Fingerprints with the key in memory. `gate` throws where keys may not be used just now. */
export function envelopeFingerprint(key: KeyObject, gate: () => void): Fingerprint {
  const prefixOf = prefixes();
  const hmac = hmacOf(key);
  return {
    compute(tenant, digits) {
      gate();
      return hmac.digest(prefixOf(tenant), digits);
    },
  };
}

/** Fingerprints inside the HSM: `hmac` is HMAC-SHA-256 under the domain's fingerprint key there. The joined input is wiped. */
export function directFingerprint(hmac: (message: Uint8Array) => Promise<Buffer>): Fingerprint {
  const prefixOf = prefixes();
  return {
    async compute(tenant, digits) {
      const prefix = prefixOf(tenant);
      const message = secretBytes(prefix.length + digits.length);
      message.set(prefix);
      message.set(digits, prefix.length);
      try {
        return await hmac(message);
      } finally {
        message.fill(0);
      }
    },
  };
}
