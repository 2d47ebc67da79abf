import { createSecretKey, hash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import t from 'tap';
import { directFingerprint, envelopeFingerprint } from '../../hsm/fingerprint.ts';

// HMAC by its definition (RFC 2104 section 2), so that the fingerprint is compared with something that shares no code with it.
function hmac(key: Buffer, message: Buffer): Buffer {
  const block = Buffer.alloc(64);
  (key.length > 64 ? hash('sha256', key, 'buffer') : key).copy(block);
  const inner = hash('sha256', Buffer.concat([block.map((byte) => byte ^ 0x36), message]), 'buffer');
  return hash('sha256', Buffer.concat([block.map((byte) => byte ^ 0x5c), inner]), 'buffer');
}

const { vectors } = JSON.parse(readFileSync(new URL('../vectors/hmac-sha-256.json', import.meta.url), 'utf8')) as { vectors: { case: number; key: string; data: string; mac: string }[] };

t.test('the definition that fingerprints are compared with agrees with RFC 4231', (t) => {
  for (const vector of vectors) t.equal(hmac(Buffer.from(vector.key, 'hex'), Buffer.from(vector.data, 'hex')).toString('hex'), vector.mac, `case ${vector.case}`);
  t.end();
});

t.test('a fingerprint is the HMAC of tenant, a zero byte and the digits', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 32, maxLength: 32 }), fc.stringMatching(/^[a-z0-9-]{1,63}$/), fc.stringMatching(/^[0-9]{12,19}$/), (raw, tenant, digits) => {
      const key = Buffer.from(raw);
      const computed = envelopeFingerprint(createSecretKey(key), () => undefined).compute(tenant, Buffer.from(digits)) as Buffer;
      return computed.equals(hmac(key, Buffer.from(`${tenant}\0${digits}`)));
    }),
  );
  t.end();
});

t.test('the HSM is given the same bytes, and the joined copy is wiped', async (t) => {
  const key = randomBytes(32);
  let given: Uint8Array | null = null;
  const direct = directFingerprint(async (message) => {
    given = message;
    return hmac(key, Buffer.from(message));
  });
  const digits = Buffer.from('4111111111111111');
  t.same(await direct.compute('acme', digits), envelopeFingerprint(createSecretKey(key), () => undefined).compute('acme', digits));
  t.ok(given!.every((byte: number) => byte === 0));
  t.equal(digits.toString(), '4111111111111111');
});

t.test('the same PAN of two tenants has two fingerprints', (t) => {
  const fingerprint = envelopeFingerprint(createSecretKey(randomBytes(32)), () => undefined);
  const digits = Buffer.from('4111111111111111');
  t.notSame(fingerprint.compute('acme', digits), fingerprint.compute('globex', digits));
  t.end();
});

t.test('no fingerprint is computed while keys may not be used', (t) => {
  const fingerprint = envelopeFingerprint(createSecretKey(randomBytes(32)), () => {
    throw new Error('closed');
  });
  t.throws(() => fingerprint.compute('acme', Buffer.from('4111111111111111')), { message: 'closed' });
  t.end();
});
