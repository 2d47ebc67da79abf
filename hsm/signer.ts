// Signatures with keys that never leave the HSM: log checkpoints and evidence.
import { createHash, createPublicKey, verify } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { HsmError } from './errors.ts';
import { CKA, CKK, CKO, readAttribute, readNumber, signEcdsaP256, signEd25519, signingAlgorithms } from './pkcs11.ts';
import type { SigningAlgorithm } from './pkcs11.ts';
import type { Session, SessionPool } from './session-pool.ts';

/**
 * Signs with one key of the HSM. `ed25519`: 64 raw bytes over the message (RFC 8032). `ecdsa-p256`: ASN.1 DER over SHA-256(message) (FIPS 186-5; X9.62
 * Ecdsa-Sig-Value). `publicKeySpki` is the DER SubjectPublicKeyInfo. The message is only read. Throws HsmError `unavailable` or `refused`.
 */
export interface Signer {
  readonly algorithm: SigningAlgorithm;
  readonly publicKeySpki: Buffer;
  sign(message: Uint8Array): Promise<Buffer>;
}

/**
 * The signer of the key pair with that label. Before it is returned, a signature of its own is verified with the public key: the two halves belong together.
 * Throws HsmError `not_found`, `ambiguous`, `refused` (key type, extractable) or `corrupt` (the halves do not match).
 */
export async function openSigner(pool: SessionPool, label: string): Promise<Signer> {
  const { algorithm, publicKeySpki } = await pool.run('find', async (session) => readPublicKey(session, label));
  const signer: Signer = {
    algorithm,
    publicKeySpki,
    sign(message) {
      if (algorithm === 'ed25519') return pool.run('sign', (session) => signEd25519(session, session.key(CKO.PRIVATE_KEY, label), message));
      const digest = createHash('sha256').update(message).digest();
      return pool.run('sign', async (session) => derSignature(await signEcdsaP256(session, session.key(CKO.PRIVATE_KEY, label), digest)));
    },
  };
  const trial = Buffer.from('cofre/signer-check/v1', 'utf8');
  const key = createPublicKey({ key: publicKeySpki, format: 'der', type: 'spki' });
  if (!verifySignature(algorithm, key, trial, await signer.sign(trial))) throw new HsmError('corrupt', 'a signing key and its public key do not belong together');
  return signer;
}

/** Whether a `Signer`'s signature over the message is good. Never throws for a malformed signature. */
export function verifySignature(algorithm: SigningAlgorithm, publicKey: KeyObject, message: Uint8Array, signature: Uint8Array): boolean {
  return algorithm === 'ed25519' ? verify(null, message, publicKey, signature) : verify('sha256', message, { key: publicKey, dsaEncoding: 'der' }, signature);
}

/** Reads a public key object: its algorithm, and its SubjectPublicKeyInfo in DER. Throws HsmError `refused` for any other kind of key. */
export function readPublicKey(session: Session, label: string): { algorithm: SigningAlgorithm; publicKeySpki: Buffer } {
  const object = session.key(CKO.PUBLIC_KEY, label);
  const keyType = readNumber(session, object, CKA.KEY_TYPE);
  const point = readAttribute(session, object, CKA.EC_POINT);
  if (point === null) throw new HsmError('refused', 'a signing key has no public point');
  if (keyType === CKK.EC_EDWARDS) return { algorithm: 'ed25519', publicKeySpki: spkiOfPoint('ed25519', point) };
  const params = readAttribute(session, object, CKA.EC_PARAMS);
  if (keyType === CKK.EC && params?.equals(signingAlgorithms['ecdsa-p256'].params) === true) return { algorithm: 'ecdsa-p256', publicKeySpki: spkiOfPoint('ecdsa-p256', point) };
  throw new HsmError('refused', 'a signing key is neither Ed25519 nor ECDSA P-256');
}

const spkiHeads = {
  // SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING (32 bytes follow) }: RFC 8410 section 4
  ed25519: { head: Buffer.from('302a300506032b6570032100', 'hex'), pointBytes: 32 },
  // SEQUENCE { SEQUENCE { OID ecPublicKey, OID prime256v1 }, BIT STRING (0x04 || x || y follow) }: RFC 5480 section 2
  'ecdsa-p256': { head: Buffer.from('3059301306072a8648ce3d020106082a8648ce3d030107034200', 'hex'), pointBytes: 65 },
} as const satisfies Record<SigningAlgorithm, unknown>;

/**
 * SubjectPublicKeyInfo of a CKA_EC_POINT. PKCS#11 v2.40 says that the point is wrapped in a DER OCTET STRING; some modules give it bare: both are read.
 * Throws HsmError `refused` where it is neither, or not a point of P-256. Of Ed25519 any 32 bytes pass here; `openSigner` finds those that are no point, as nothing verifies with them.
 */
export function spkiOfPoint(algorithm: SigningAlgorithm, point: Uint8Array): Buffer {
  const { head, pointBytes } = spkiHeads[algorithm];
  let bare = point;
  if (point.length === pointBytes + 2 && point[0] === 0x04 && point[1] === pointBytes) bare = point.subarray(2);
  if (bare.length !== pointBytes) throw new HsmError('refused', 'the public point of a signing key has the wrong length');
  const spki = Buffer.concat([head, bare]);
  try {
    createPublicKey({ key: spki, format: 'der', type: 'spki' });
  } catch (cause) {
    throw new HsmError('refused', 'the public point of a signing key is not on its curve', { cause });
  }
  return spki;
}

/** r (32) || s (32), as PKCS#11 gives an ECDSA P-256 signature, to DER SEQUENCE { INTEGER r, INTEGER s } (RFC 3279 section 2.2.3): 8 to 72 bytes. */
export function derSignature(raw: Uint8Array): Buffer {
  if (raw.length !== 64) throw new HsmError('refused', 'a raw ECDSA P-256 signature has 64 bytes');
  const body = Buffer.concat([derInteger(raw.subarray(0, 32)), derInteger(raw.subarray(32))]);
  return Buffer.concat([Buffer.from([0x30, body.length]), body]);
}

// Shortest form, and a zero byte in front where the first bit would make it negative (X.690 section 8.3).
function derInteger(bigEndian: Uint8Array): Buffer {
  let from = 0;
  while (from < bigEndian.length - 1 && bigEndian[from] === 0) from += 1;
  const digits = bigEndian.subarray(from);
  const sign = digits[0]! >= 0x80 ? [0] : [];
  return Buffer.from([0x02, digits.length + sign.length, ...sign, ...digits]);
}
