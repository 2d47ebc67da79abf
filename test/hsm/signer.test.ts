import { createPublicKey, sign, generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import t from 'tap';
import { derSignature, spkiOfPoint, verifySignature } from '../../hsm/signer.ts';
import { hsmError } from './hsm-error.ts';

interface Vectors {
  readonly ed25519: { readonly source: string; readonly point: string; readonly message: string; readonly signature: string };
  readonly ecdsaP256: { readonly source: string; readonly point: string; readonly signatures: readonly { readonly message: string; readonly raw: string }[] };
}
const vectors = JSON.parse(readFileSync(new URL('../vectors/signatures.json', import.meta.url), 'utf8')) as Vectors;

t.test('a foreign ECDSA signature verifies once its raw form is turned into DER', (t) => {
  const key = createPublicKey({ key: spkiOfPoint('ecdsa-p256', Buffer.from(vectors.ecdsaP256.point, 'hex')), format: 'der', type: 'spki' });
  for (const { message, raw } of vectors.ecdsaP256.signatures) {
    const der = derSignature(Buffer.from(raw, 'hex'));
    t.equal(verifySignature('ecdsa-p256', key, Buffer.from(message), der), true);
    t.equal(verifySignature('ecdsa-p256', key, Buffer.from(`${message}.`), der), false);
  }
  t.end();
});

t.test('a foreign Ed25519 signature verifies with the public key of its point', (t) => {
  const { point, message, signature } = vectors.ed25519;
  const key = createPublicKey({ key: spkiOfPoint('ed25519', Buffer.from(point, 'hex')), format: 'der', type: 'spki' });
  t.equal(verifySignature('ed25519', key, Buffer.from(message), Buffer.from(signature, 'hex')), true);
  t.equal(verifySignature('ed25519', key, Buffer.from('x'), Buffer.from(signature, 'hex')), false);
  t.end();
});

t.test('a point is read bare and inside an OCTET STRING', (t) => {
  const ed = Buffer.from(vectors.ed25519.point, 'hex');
  t.same(spkiOfPoint('ed25519', Buffer.concat([Buffer.from('0420', 'hex'), ed])), spkiOfPoint('ed25519', ed));
  const ec = Buffer.from(vectors.ecdsaP256.point, 'hex');
  t.same(spkiOfPoint('ecdsa-p256', Buffer.concat([Buffer.from('0441', 'hex'), ec])), spkiOfPoint('ecdsa-p256', ec));
  t.end();
});

t.test('a point of the wrong length or off the curve is refused', (t) => {
  t.throws(() => spkiOfPoint('ed25519', Buffer.alloc(31)), hsmError('refused'));
  t.throws(() => spkiOfPoint('ecdsa-p256', Buffer.alloc(65, 4)), hsmError('refused'));
  // y = 2 has no x on the curve (RFC 8032 section 5.1.3): taken as a key, but nothing verifies with it.
  const off = Buffer.alloc(32);
  off[0] = 2;
  const key = createPublicKey({ key: spkiOfPoint('ed25519', off), format: 'der', type: 'spki' });
  t.equal(verifySignature('ed25519', key, Buffer.from('x'), Buffer.from(vectors.ed25519.signature, 'hex')), false);
  t.end();
});

t.test('DER is the shortest form for small, large and zero-padded integers', (t) => {
  const raw = Buffer.alloc(64);
  raw[31] = 1;
  raw[32] = 0x80;
  t.equal(derSignature(raw).toString('hex'), `3026020101022100${'80'.padEnd(64, '0')}`);
  t.equal(derSignature(Buffer.alloc(64)).toString('hex'), '3006020100020100');
  t.throws(() => derSignature(Buffer.alloc(63)), hsmError('refused'));
  t.end();
});

t.test('raw signatures of any value become the DER that OpenSSL accepts', (t) => {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  for (let n = 0; n < 300; n++) {
    const message = Buffer.from(String(n));
    const raw = sign('sha256', message, { key: privateKey, dsaEncoding: 'ieee-p1363' });
    if (!verifySignature('ecdsa-p256', publicKey, message, derSignature(raw))) t.fail(raw.toString('hex'));
  }
  t.end();
});
