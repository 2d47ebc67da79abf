// The only file that imports pkcs11js. It names the few C_* calls in use as an interface, so that a stricter fake can stand in for the native module,
// and shapes each call: exact lengths are checked before the token is asked, and exactly one object must answer to a label.
//
// Two traps of pkcs11js 2.1.7, read in its src/worker.cpp and src/pkcs11.cpp:
// - the asynchronous calls hand the bare pointer of the input Buffer to a worker thread and keep no reference to it. Every shaped call below therefore
//   copies its input into a Buffer of its own and touches that Buffer again after the await, so that it cannot be collected before the token has read it;
// - the mechanism struct is freed when C_EncryptInit returns, but the pointers inside it (pIv, pAAD) are those of our Buffers: they too are held until the end.
import { randomFillSync } from 'node:crypto';
import pkcs11js from 'pkcs11js';
import { HsmError } from './errors.ts';
import { secretBytes } from './secret-bytes.ts';

/** Return values, PKCS#11 v2.40 section 5.1 (names and numbers of pkcs11t.h). */
export const CKR = {
  OK: 0x0,
  HOST_MEMORY: 0x2,
  SLOT_ID_INVALID: 0x3,
  GENERAL_ERROR: 0x5,
  FUNCTION_FAILED: 0x6,
  ARGUMENTS_BAD: 0x7,
  ATTRIBUTE_READ_ONLY: 0x10,
  ATTRIBUTE_SENSITIVE: 0x11,
  ATTRIBUTE_TYPE_INVALID: 0x12,
  ATTRIBUTE_VALUE_INVALID: 0x13,
  DATA_INVALID: 0x20,
  DATA_LEN_RANGE: 0x21,
  DEVICE_ERROR: 0x30,
  DEVICE_MEMORY: 0x31,
  DEVICE_REMOVED: 0x32,
  ENCRYPTED_DATA_INVALID: 0x40,
  ENCRYPTED_DATA_LEN_RANGE: 0x41,
  KEY_HANDLE_INVALID: 0x60,
  KEY_SIZE_RANGE: 0x62,
  KEY_TYPE_INCONSISTENT: 0x63,
  KEY_FUNCTION_NOT_PERMITTED: 0x68,
  MECHANISM_INVALID: 0x70,
  MECHANISM_PARAM_INVALID: 0x71,
  OBJECT_HANDLE_INVALID: 0x82,
  OPERATION_ACTIVE: 0x90,
  OPERATION_NOT_INITIALIZED: 0x91,
  PIN_INCORRECT: 0xa0,
  PIN_INVALID: 0xa1,
  PIN_LEN_RANGE: 0xa2,
  PIN_EXPIRED: 0xa3,
  PIN_LOCKED: 0xa4,
  SESSION_CLOSED: 0xb0,
  SESSION_COUNT: 0xb1,
  SESSION_HANDLE_INVALID: 0xb3,
  SESSION_READ_ONLY: 0xb5,
  SIGNATURE_INVALID: 0xc0,
  TEMPLATE_INCOMPLETE: 0xd0,
  TEMPLATE_INCONSISTENT: 0xd1,
  TOKEN_NOT_PRESENT: 0xe0,
  TOKEN_NOT_RECOGNIZED: 0xe1,
  TOKEN_WRITE_PROTECTED: 0xe2,
  USER_ALREADY_LOGGED_IN: 0x100,
  USER_NOT_LOGGED_IN: 0x101,
  USER_PIN_NOT_INITIALIZED: 0x102,
  USER_TYPE_INVALID: 0x103,
  BUFFER_TOO_SMALL: 0x150,
  CRYPTOKI_NOT_INITIALIZED: 0x190,
  CRYPTOKI_ALREADY_INITIALIZED: 0x191,
} as const;

/** Mechanisms, PKCS#11 v2.40 and (the Edwards curve ones) v3.0. */
export const CKM = {
  EC_KEY_PAIR_GEN: 0x1040,
  ECDSA: 0x1041,
  EC_EDWARDS_KEY_PAIR_GEN: 0x1055,
  EDDSA: 0x1057,
  GENERIC_SECRET_KEY_GEN: 0x350,
  SHA256_HMAC: 0x251,
  AES_KEY_GEN: 0x1080,
  AES_GCM: 0x1087,
} as const;

/** Object classes. */
export const CKO = { PUBLIC_KEY: 2, PRIVATE_KEY: 3, SECRET_KEY: 4 } as const;

/** Key types. */
export const CKK = { EC: 0x3, GENERIC_SECRET: 0x10, AES: 0x1f, EC_EDWARDS: 0x40 } as const;

/** Attributes. */
export const CKA = {
  CLASS: 0x0,
  TOKEN: 0x1,
  PRIVATE: 0x2,
  LABEL: 0x3,
  KEY_TYPE: 0x100,
  ID: 0x102,
  SENSITIVE: 0x103,
  ENCRYPT: 0x104,
  DECRYPT: 0x105,
  WRAP: 0x106,
  UNWRAP: 0x107,
  SIGN: 0x108,
  VERIFY: 0x10a,
  DERIVE: 0x10c,
  VALUE_LEN: 0x161,
  EXTRACTABLE: 0x162,
  LOCAL: 0x163,
  NEVER_EXTRACTABLE: 0x164,
  ALWAYS_SENSITIVE: 0x165,
  MODIFIABLE: 0x170,
  EC_PARAMS: 0x180,
  EC_POINT: 0x181,
} as const;

/** Flags of sessions, tokens and C_Initialize; user types. */
export const CKF = { OS_LOCKING_OK: 0x2, RW_SESSION: 0x2, SERIAL_SESSION: 0x4, TOKEN_INITIALIZED: 0x400 } as const;
export const CKU = { SO: 0, USER: 1 } as const;

/** pkcs11js's number for "parameter is a CK_GCM_PARAMS with ulIvBits", the layout of PKCS#11 v2.40 errata 01, of SoftHSM2 and of CloudHSM. */
export const GCM_PARAMETER_TYPE: number = pkcs11js.CK_PARAMS_AES_GCM_v240;

/** A slot, session or object handle: the eight bytes of a CK_ULONG, as pkcs11js gives them. */
export type Handle = Buffer;

/** One attribute of a template, or of an answer (where a missing value means that the token has none). */
export interface Attribute {
  type: number;
  value?: Buffer | number | boolean | string;
}

/** CK_GCM_PARAMS. The token may write its own nonce into `iv` (CloudHSM does): read it back after C_Encrypt. */
export interface GcmParameter {
  readonly type: number;
  readonly iv: Buffer;
  readonly ivBits: number;
  readonly aad: Buffer;
  readonly tagBits: number;
}

export interface Mechanism {
  readonly mechanism: number;
  readonly parameter?: GcmParameter;
}

/**
 * The calls of a Cryptoki library that Cofre uses, in pkcs11js's shapes (PKCS#11 v2.40 section 5 for the meaning of each).
 *
 * A call either succeeds or throws an error whose `code` is the CKR number. A session carries one operation at a time: no second C_*Init before the first
 * operation ended. The synchronous calls block the event loop; the `Async` ones run on libuv's worker threads and may be in flight at once on different
 * sessions. Buffers given to an `Async` call must stay referenced and untouched by the caller until it settles. The output Buffer is the caller's.
 */
export interface Pkcs11Module {
  C_Initialize(options: { flags: number }): void;
  C_Finalize(): void;
  C_GetSlotList(tokenPresent: boolean): Handle[];
  C_GetTokenInfo(slot: Handle): { label: string; flags: number; model: string; manufacturerID: string; serialNumber: string };
  C_GetMechanismList(slot: Handle): number[];
  C_InitToken(slot: Handle, soPin: string, label: string): unknown;
  C_InitPIN(session: Handle, pin: string): void;
  C_OpenSession(slot: Handle, flags: number): Handle;
  C_CloseSession(session: Handle): void;
  C_CloseAllSessions(slot: Handle): void;
  C_Login(session: Handle, userType: number, pin: string): void;
  C_Logout(session: Handle): void;
  C_FindObjectsInit(session: Handle, template: Attribute[]): void;
  C_FindObjects(session: Handle, maxObjects: number): Handle[];
  C_FindObjectsFinal(session: Handle): void;
  C_GetAttributeValue(session: Handle, object: Handle, template: Attribute[]): Attribute[];
  C_DestroyObject(session: Handle, object: Handle): void;
  C_GenerateKey(session: Handle, mechanism: Mechanism, template: Attribute[]): Handle;
  C_GenerateKeyPair(session: Handle, mechanism: Mechanism, publicTemplate: Attribute[], privateTemplate: Attribute[]): { publicKey: Handle; privateKey: Handle };
  C_GenerateRandom(session: Handle, out: Buffer): Buffer;
  C_EncryptInit(session: Handle, mechanism: Mechanism, key: Handle): void;
  C_EncryptAsync(session: Handle, input: Buffer, output: Buffer): Promise<Buffer>;
  C_DecryptInit(session: Handle, mechanism: Mechanism, key: Handle): void;
  C_DecryptAsync(session: Handle, input: Buffer, output: Buffer): Promise<Buffer>;
  C_SignInit(session: Handle, mechanism: Mechanism, key: Handle): void;
  C_SignAsync(session: Handle, input: Buffer, output: Buffer): Promise<Buffer>;
}

const loaded = new Map<string, Pkcs11Module>();

/**
 * Loads the PKCS#11 library at `path` and returns its calls. The same path gives the same object: a Cryptoki library has one state per process, however
 * often it is loaded. Does not initialize it. Throws HsmError `not_found` where there is no such library or it exports no Cryptoki.
 */
export function loadPkcs11(path: string): Pkcs11Module {
  const known = loaded.get(path);
  if (known !== undefined) return known;
  const module = new pkcs11js.PKCS11();
  try {
    module.load(path);
  } catch (cause) {
    throw new HsmError('not_found', 'the PKCS#11 module cannot be loaded', { cause });
  }
  // pkcs11js types outputs and optional arguments more loosely than Pkcs11Module; the shapes were compared with its sources (2.1.7).
  const narrow = module as unknown as Pkcs11Module;
  loaded.set(path, narrow);
  return narrow;
}

/** The CKR number of an error that a Pkcs11Module threw, or null where the error is not one of Cryptoki's. */
export function returnValueOf(error: unknown): number | null {
  if (!(error instanceof Error) || !('code' in error) || typeof error.code !== 'number') return null;
  return error.code;
}

// Nothing on this session, or on no session, works any more until sessions are opened, the user is logged in and handles are looked up again.
const lostCodes: ReadonlySet<number> = new Set([
  CKR.SLOT_ID_INVALID,
  CKR.DEVICE_ERROR,
  CKR.DEVICE_REMOVED,
  CKR.KEY_HANDLE_INVALID, // the object was found again after a restart of the token under another number
  CKR.OBJECT_HANDLE_INVALID,
  CKR.SESSION_CLOSED,
  CKR.SESSION_HANDLE_INVALID,
  CKR.TOKEN_NOT_PRESENT,
  CKR.TOKEN_NOT_RECOGNIZED,
  CKR.USER_NOT_LOGGED_IN,
  CKR.CRYPTOKI_NOT_INITIALIZED,
]);

// Says only that something went wrong: SoftHSM2 answers a wrong GCM tag with CKR_GENERAL_ERROR, other modules a lost connection. A probe decides.
const doubtfulCodes: ReadonlySet<number> = new Set([CKR.GENERAL_ERROR, CKR.FUNCTION_FAILED, CKR.HOST_MEMORY]);

const wrongPinCodes: ReadonlySet<number> = new Set([CKR.PIN_INCORRECT, CKR.PIN_INVALID, CKR.PIN_LEN_RANGE, CKR.PIN_EXPIRED, CKR.PIN_LOCKED, CKR.USER_PIN_NOT_INITIALIZED]);

/** What a failed call says about the token: sessions `lost`, `doubtful`, `session` (this one is unusable), the `pin`, or the request itself (`call`). */
export function faultOf(error: unknown): 'lost' | 'doubtful' | 'session' | 'pin' | 'call' {
  const rv = returnValueOf(error);
  if (rv === null) return 'call';
  if (lostCodes.has(rv)) return 'lost';
  // CKR_VENDOR_DEFINED and above: a module's own code tells us nothing that we can rely on.
  if (doubtfulCodes.has(rv) || rv >= 0x80000000) return 'doubtful';
  if (rv === CKR.OPERATION_ACTIVE || rv === CKR.OPERATION_NOT_INITIALIZED || rv === CKR.SESSION_COUNT) return 'session';
  if (wrongPinCodes.has(rv)) return 'pin';
  return 'call';
}

/** A session and the module that it belongs to: what every shaped call needs. */
export interface SessionRef {
  readonly module: Pkcs11Module;
  readonly handle: Handle;
}

/** Initializes the library for use from several threads; one that is initialized already is left as it is. */
export function initialize(module: Pkcs11Module): void {
  try {
    module.C_Initialize({ flags: CKF.OS_LOCKING_OK });
  } catch (error) {
    if (returnValueOf(error) !== CKR.CRYPTOKI_ALREADY_INITIALIZED) throw error;
  }
}

/**
 * The slot of the one initialized token with that label. Throws HsmError `not_found` for none, `ambiguous` for several. A slot that does not tell what is in it does not matter where the token is found in
 * another; where it is not, it may be the one, and the module's error is thrown.
 */
export function findSlot(module: Pkcs11Module, tokenLabel: string): Handle {
  let silent: unknown = null;
  const slots = module.C_GetSlotList(true).filter((slot) => {
    try {
      const info = module.C_GetTokenInfo(slot);
      return (info.flags & CKF.TOKEN_INITIALIZED) !== 0 && info.label.trimEnd() === tokenLabel;
    } catch (error) {
      silent ??= error;
      return false;
    }
  });
  if (slots.length === 0 && silent !== null) throw silent as Error;
  if (slots.length === 0) throw new HsmError('not_found', 'no token has the configured label');
  if (slots.length > 1) throw new HsmError('ambiguous', 'more than one token has the configured label');
  return slots[0]!;
}

/** Opens a read-write session: CloudHSM refuses read-only ones (known issues of the PKCS#11 library, SDK 5). */
export function openSession(module: Pkcs11Module, slot: Handle): Handle {
  return module.C_OpenSession(slot, CKF.SERIAL_SESSION | CKF.RW_SESSION);
}

/**
 * Logs the application in as user; being logged in already counts as success. `pin` is UTF-8 and is only read.
 * pkcs11js takes the PIN as a string, which cannot be wiped: that copy lives until the garbage collector's next round.
 */
export function login(session: SessionRef, pin: Buffer): void {
  try {
    session.module.C_Login(session.handle, CKU.USER, pin.toString('utf8'));
  } catch (error) {
    if (returnValueOf(error) === CKR.USER_ALREADY_LOGGED_IN) return;
    throw error;
  }
}

/** Every object of that class and label, up to 8 (callers only tell none, one and more apart). */
export function findAll(session: SessionRef, objectClass: number, label: string): Handle[] {
  session.module.C_FindObjectsInit(session.handle, [
    { type: CKA.CLASS, value: objectClass },
    { type: CKA.LABEL, value: label },
  ]);
  try {
    return session.module.C_FindObjects(session.handle, 8);
  } finally {
    session.module.C_FindObjectsFinal(session.handle);
  }
}

/** The one object of that class and label. Throws HsmError `not_found` for none and `ambiguous` for more than one. */
export function findOne(session: SessionRef, objectClass: number, label: string): Handle {
  const found = findAll(session, objectClass, label);
  if (found.length === 0) throw new HsmError('not_found', 'the HSM holds no object with the expected label');
  if (found.length > 1) throw new HsmError('ambiguous', 'more than one object in the HSM has the expected label');
  return found[0]!;
}

function copyOfSecret(bytes: Uint8Array): Buffer {
  const copy = secretBytes(bytes.length);
  copy.set(bytes);
  return copy;
}

/** `bytes` random bytes from the HSM's generator (C_GenerateRandom, synchronous). The Buffer is the caller's to wipe. */
export function generateRandom(session: SessionRef, bytes: number): Buffer {
  const out = secretBytes(bytes);
  const filled = session.module.C_GenerateRandom(session.handle, out);
  // A generator that silently does nothing would hand out a key of zeros.
  if (filled.length !== bytes || out.every((byte) => byte === 0)) throw new HsmError('refused', 'the HSM returned no randomness');
  return out;
}

/** Sizes of AES-GCM as used everywhere here: 96-bit nonce and 128-bit tag (SP 800-38D sections 5.2.1.1 and 5.2.1.2). */
export const GCM_IV_BYTES = 12;
export const GCM_TAG_BYTES = 16;

// Which modules want pIv full of zeros and refuse anything else (CloudHSM SDK: the HSM makes the nonce). Learnt by the first refusal.
const wantsZeroIv = new WeakSet<Pkcs11Module>();

function gcm(iv: Buffer, aad: Buffer): Mechanism {
  return { mechanism: CKM.AES_GCM, parameter: { type: GCM_PARAMETER_TYPE, iv, ivBits: GCM_IV_BYTES * 8, aad, tagBits: GCM_TAG_BYTES * 8 } };
}

/**
 * AES-256-GCM inside the HSM. Returns iv (12) || ciphertext (as long as the plaintext) || tag (16), in a Buffer of the caller's.
 *
 * The nonce in the result is the one that the token used: it is read back from the mechanism parameter, because CloudHSM ignores the nonce that it is given
 * and writes its own there. `plaintext` and `aad` are read before this returns its promise; the copy of the plaintext is wiped.
 */
export async function encryptGcm(session: SessionRef, key: Handle, plaintext: Uint8Array, aad: Uint8Array): Promise<Buffer> {
  const input = copyOfSecret(plaintext);
  // A module may read it as late as in C_Encrypt.
  const bound = copyOfSecret(aad);
  // Written to by the token through their addresses: memory that stays in one place.
  const output = secretBytes(input.length + GCM_TAG_BYTES);
  const iv = secretBytes(GCM_IV_BYTES);
  let tookZeroIv = false;
  try {
    if (!wantsZeroIv.has(session.module)) {
      randomFillSync(iv);
      try {
        session.module.C_EncryptInit(session.handle, gcm(iv, bound), key);
      } catch (error) {
        const rv = returnValueOf(error);
        if (rv !== CKR.MECHANISM_PARAM_INVALID && rv !== CKR.ARGUMENTS_BAD) throw error;
        iv.fill(0);
        session.module.C_EncryptInit(session.handle, gcm(iv, bound), key);
        tookZeroIv = true;
      }
    } else {
      session.module.C_EncryptInit(session.handle, gcm(iv, bound), key);
    }
    const encrypted = await session.module.C_EncryptAsync(session.handle, input, output);
    if (encrypted.length !== input.length + GCM_TAG_BYTES) throw new HsmError('refused', 'the HSM returned a ciphertext of the wrong length');
    // A token that took the zeros as they were would use one nonce twice: nothing that it made may leave here.
    if (iv.every((byte) => byte === 0)) throw new HsmError('refused', 'the HSM did not report the nonce that it used');
    if (tookZeroIv) wantsZeroIv.add(session.module);
    return Buffer.concat([iv, encrypted]);
  } finally {
    input.fill(0);
    bound.fill(0);
  }
}

/**
 * Opens what `encryptGcm` made: `sealed` is iv (12) || ciphertext || tag (16). Returns the plaintext in a Buffer that the caller owns and wipes.
 * Throws HsmError `corrupt` where the value is too short or the token says that it does not authenticate; a token that only says CKR_GENERAL_ERROR
 * (SoftHSM2 2.6.1) throws that, and the session pool finds out what it meant.
 */
export async function decryptGcm(session: SessionRef, key: Handle, sealed: Uint8Array, aad: Uint8Array): Promise<Buffer> {
  if (sealed.length < GCM_IV_BYTES + GCM_TAG_BYTES) throw new HsmError('corrupt', 'an encrypted value is too short');
  const iv = Buffer.from(sealed.subarray(0, GCM_IV_BYTES));
  const input = Buffer.from(sealed.subarray(GCM_IV_BYTES));
  const bound = copyOfSecret(aad);
  // SoftHSM2 wants room for the tag too, although it writes only the plaintext.
  const output = secretBytes(input.length);
  try {
    session.module.C_DecryptInit(session.handle, gcm(iv, bound), key);
    const plaintext = await session.module.C_DecryptAsync(session.handle, input, output);
    if (plaintext.length !== input.length - GCM_TAG_BYTES) throw new HsmError('corrupt', 'the HSM returned a plaintext of the wrong length');
    return copyOfSecret(plaintext);
  } catch (error) {
    const rv = returnValueOf(error);
    if (rv === CKR.ENCRYPTED_DATA_INVALID || rv === CKR.ENCRYPTED_DATA_LEN_RANGE || rv === CKR.SIGNATURE_INVALID || rv === CKR.DATA_INVALID) {
      throw new HsmError('corrupt', 'an encrypted value does not authenticate', { cause: error });
    }
    throw error;
  } finally {
    output.fill(0);
    input.fill(0);
    iv.fill(0);
    bound.fill(0);
  }
}

async function sign(session: SessionRef, mechanism: number, key: Handle, message: Uint8Array, signatureBytes: number): Promise<Buffer> {
  const input = copyOfSecret(message);
  const output = secretBytes(signatureBytes);
  try {
    session.module.C_SignInit(session.handle, { mechanism }, key);
    const signature = await session.module.C_SignAsync(session.handle, input, output);
    if (signature.length !== signatureBytes) throw new HsmError('refused', 'the HSM returned a signature of the wrong length');
    return signature;
  } finally {
    input.fill(0);
  }
}

/** HMAC-SHA-256 inside the HSM (FIPS 198-1): 32 bytes, the caller's. The copy of the message is wiped. */
export function hmacSha256(session: SessionRef, key: Handle, message: Uint8Array): Promise<Buffer> {
  return sign(session, CKM.SHA256_HMAC, key, message, 32);
}

/** Ed25519 (RFC 8032, pure) over the message inside the HSM: 64 bytes R || S. */
export function signEd25519(session: SessionRef, key: Handle, message: Uint8Array): Promise<Buffer> {
  return sign(session, CKM.EDDSA, key, message, 64);
}

/** ECDSA P-256 over a SHA-256 digest of exactly 32 bytes: r (32) || s (32), raw as PKCS#11 gives it (v2.40 section 2.3.1). */
export function signEcdsaP256(session: SessionRef, key: Handle, digest: Uint8Array): Promise<Buffer> {
  // The token would sign a truncated or padded digest without a word.
  if (digest.length !== 32) throw new HsmError('refused', 'an ECDSA P-256 signature needs a digest of 32 bytes');
  return sign(session, CKM.ECDSA, key, digest, 64);
}

// What every key of ours has in common: kept on the token, visible after login only, value never readable, never leaving the HSM.
function secretTemplate(label: string): Attribute[] {
  return [
    { type: CKA.TOKEN, value: true },
    { type: CKA.PRIVATE, value: true },
    { type: CKA.SENSITIVE, value: true },
    { type: CKA.EXTRACTABLE, value: false },
    { type: CKA.LABEL, value: label },
    { type: CKA.ID, value: Buffer.from(label, 'utf8') },
  ];
}

function generateSecret(session: SessionRef, mechanism: number, template: Attribute[]): Handle {
  try {
    return session.module.C_GenerateKey(session.handle, { mechanism }, template);
  } catch (cause) {
    // CloudHSM holds 16,666 keys a cluster.
    if (returnValueOf(cause) === CKR.DEVICE_MEMORY) throw new HsmError('exhausted', 'the HSM has no room for another key', { cause });
    throw cause;
  }
}

/**
 * Makes an AES-256 key inside the HSM: token object, sensitive, never extractable, for encryption and decryption only.
 * Not safe to repeat blindly: a call that failed may have made the key (look for the label).
 */
export function generateAesKey(session: SessionRef, label: string): Handle {
  return generateSecret(session, CKM.AES_KEY_GEN, [
    { type: CKA.CLASS, value: CKO.SECRET_KEY },
    { type: CKA.KEY_TYPE, value: CKK.AES },
    { type: CKA.VALUE_LEN, value: 32 },
    ...secretTemplate(label),
    { type: CKA.ENCRYPT, value: true },
    { type: CKA.DECRYPT, value: true },
    { type: CKA.SIGN, value: false },
    { type: CKA.VERIFY, value: false },
    { type: CKA.WRAP, value: false },
    { type: CKA.UNWRAP, value: false },
  ]);
}

/** Makes a 32-byte generic secret for HMAC-SHA-256 inside the HSM: token object, sensitive, never extractable, for signing only. As `generateAesKey` otherwise. */
export function generateHmacKey(session: SessionRef, label: string): Handle {
  return generateSecret(session, CKM.GENERIC_SECRET_KEY_GEN, [
    { type: CKA.CLASS, value: CKO.SECRET_KEY },
    { type: CKA.KEY_TYPE, value: CKK.GENERIC_SECRET },
    { type: CKA.VALUE_LEN, value: 32 },
    ...secretTemplate(label),
    { type: CKA.SIGN, value: true },
    { type: CKA.VERIFY, value: true },
    { type: CKA.ENCRYPT, value: false },
    { type: CKA.DECRYPT, value: false },
    { type: CKA.WRAP, value: false },
    { type: CKA.UNWRAP, value: false },
  ]);
}

/** The signing algorithms in use, each with its curve as CKA_EC_PARAMS (DER object identifier) and its mechanisms. */
export const signingAlgorithms = {
  // 1.3.101.112 id-Ed25519 (RFC 8410 section 3)
  ed25519: { params: Buffer.from('06032b6570', 'hex'), keyType: CKK.EC_EDWARDS, generate: CKM.EC_EDWARDS_KEY_PAIR_GEN, sign: CKM.EDDSA },
  // 1.2.840.10045.3.1.7 prime256v1 (RFC 5480 section 2.1.1.1)
  'ecdsa-p256': { params: Buffer.from('06082a8648ce3d030107', 'hex'), keyType: CKK.EC, generate: CKM.EC_KEY_PAIR_GEN, sign: CKM.ECDSA },
} as const;

export type SigningAlgorithm = keyof typeof signingAlgorithms;

/** Makes a signing key pair inside the HSM; both halves carry the label. The private half is sensitive and never extractable. As `generateAesKey` otherwise. */
export function generateSigningKeyPair(session: SessionRef, algorithm: SigningAlgorithm, label: string): { publicKey: Handle; privateKey: Handle } {
  const { params, keyType, generate } = signingAlgorithms[algorithm];
  return session.module.C_GenerateKeyPair(
    session.handle,
    { mechanism: generate },
    [
      { type: CKA.CLASS, value: CKO.PUBLIC_KEY },
      { type: CKA.KEY_TYPE, value: keyType },
      { type: CKA.TOKEN, value: true },
      { type: CKA.PRIVATE, value: false },
      { type: CKA.LABEL, value: label },
      { type: CKA.ID, value: Buffer.from(label, 'utf8') },
      { type: CKA.EC_PARAMS, value: params },
      { type: CKA.VERIFY, value: true },
    ],
    [
      { type: CKA.CLASS, value: CKO.PRIVATE_KEY },
      { type: CKA.KEY_TYPE, value: keyType },
      ...secretTemplate(label),
      { type: CKA.SIGN, value: true },
      { type: CKA.DECRYPT, value: false },
      { type: CKA.UNWRAP, value: false },
    ],
  );
}

/** The bytes of one attribute, or null where the object has none. */
export function readAttribute(session: SessionRef, object: Handle, type: number): Buffer | null {
  let answer: Attribute[];
  try {
    answer = session.module.C_GetAttributeValue(session.handle, object, [{ type }]);
  } catch (error) {
    if (returnValueOf(error) === CKR.ATTRIBUTE_TYPE_INVALID) return null;
    throw error;
  }
  const value = answer[0]?.value;
  return Buffer.isBuffer(value) ? value : null;
}

/** A CK_BBOOL attribute: true, false, or null where the object has none. */
export function readFlag(session: SessionRef, object: Handle, type: number): boolean | null {
  const value = readAttribute(session, object, type);
  return value === null || value.length !== 1 ? null : value[0] !== 0;
}

/** A CK_ULONG attribute as a number, or null where the object has none. */
export function readNumber(session: SessionRef, object: Handle, type: number): number | null {
  const value = readAttribute(session, object, type);
  return value === null || value.length !== 8 ? null : Number(value.readBigUInt64LE());
}
