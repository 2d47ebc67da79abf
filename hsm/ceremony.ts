// The key ceremony: every key that lives in the HSM is made from one reviewed file, or nothing is.
import { createHash, createPublicKey } from 'node:crypto';
import { HsmError } from './errors.ts';
import { labels } from './keyring.ts';
import {
  CKA,
  CKF,
  CKK,
  CKM,
  CKO,
  CKU,
  decryptGcm,
  encryptGcm,
  findAll,
  findOne,
  findSlot,
  generateAesKey,
  generateHmacKey,
  generateSigningKeyPair,
  hmacSha256,
  initialize,
  loadPkcs11,
  login,
  openSession,
  readFlag,
  readNumber,
  signEcdsaP256,
  signEd25519,
  signingAlgorithms,
} from './pkcs11.ts';
import type { Handle, Pkcs11Module, SessionRef, SigningAlgorithm } from './pkcs11.ts';
import { derSignature, readPublicKey, verifySignature } from './signer.ts';

/**
 * What the reviewed file says, as YAML or JSON (the caller reads the file):
 *
 *   ceremony: cofre/v1
 *   purpose: production            # or development
 *   token: { module: /opt/cloudhsm/lib/libcloudhsm_pkcs11.so, label: cofre, initialize: false }
 *   domains: [acme, globex]        # one AES-256 domain key each
 *   keys: { domain: aes-256, control: hmac-sha-256, log_signing: ecdsa-p256, evidence_signing: ecdsa-p256 }
 *   witnesses: [Ana Souza, Rui Lima]
 *
 * `purpose: production` wants two different witnesses or more and refuses to initialize a token. Every field is required and no other is allowed: what happens
 * is what was reviewed.
 */
export interface CeremonyPlan {
  readonly ceremony: 'cofre/v1';
  readonly purpose: 'production' | 'development';
  readonly token: { readonly module: string; readonly label: string; readonly initialize: boolean };
  readonly domains: readonly string[];
  readonly keys: { readonly domain: 'aes-256'; readonly control: 'hmac-sha-256'; readonly log_signing: SigningAlgorithm; readonly evidence_signing: SigningAlgorithm };
  readonly witnesses: readonly string[];
}

/** A ceremony that cannot start or did not finish. The message names the file's key or the labels concerned; it never holds a PIN. */
export class CeremonyError extends Error {
  /** Labels of the plan that the token holds. */
  readonly existing: readonly string[];
  /** Labels of the plan that it does not hold. */
  readonly missing: readonly string[];

  constructor(message: string, options: { readonly existing?: readonly string[]; readonly missing?: readonly string[]; readonly cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.name = 'CeremonyError';
    this.existing = options.existing ?? [];
    this.missing = options.missing ?? [];
  }
}

/** One key as it was read back from the token. `neverExtractable` and `alwaysSensitive` are null where the token does not tell. */
export interface CeremonyKey {
  readonly label: string;
  readonly type: 'aes-256' | 'hmac-sha-256' | SigningAlgorithm;
  readonly made: 'now' | 'before';
  readonly sensitive: true;
  readonly extractable: false;
  readonly alwaysSensitive: boolean | null;
  readonly neverExtractable: boolean | null;
  /** Made inside the token. */
  readonly local: boolean | null;
  /** DER SubjectPublicKeyInfo in base64, and SHA-256 of it in hex: signing keys only. */
  readonly publicKey?: { readonly spki: string; readonly sha256: string };
}

export interface CeremonyReport {
  readonly purpose: CeremonyPlan['purpose'];
  /** SHA-256 in hex of the plan as JSON with the fields in the order of CeremonyPlan: two people can compare it by voice. */
  readonly planSha256: string;
  readonly at: string;
  readonly witnesses: readonly string[];
  readonly token: { readonly label: string; readonly serial: string; readonly model: string; readonly manufacturer: string; readonly initialized: boolean };
  readonly keys: readonly CeremonyKey[];
}

export interface CeremonyOptions {
  /** User PIN, UTF-8 (`user:password` on CloudHSM). Only read. */
  readonly pin: Buffer;
  /** The security officer's PIN; only where the plan says to initialize a token. */
  readonly soPin?: Buffer;
  /** Complete a half-finished ceremony: keys that exist are verified and kept. Development plans only. */
  readonly resume?: boolean;
  readonly now: () => Date;
  /** Stands in for the library that the plan names (a strict fake in tests). */
  readonly module?: Pkcs11Module;
}

interface PlannedKey {
  readonly label: string;
  readonly type: CeremonyKey['type'];
}

/** Every key that a plan makes, in the order in which it makes them. */
export function plannedKeys(plan: CeremonyPlan): readonly PlannedKey[] {
  return [
    { label: labels.control, type: plan.keys.control },
    ...plan.domains.map((domain): PlannedKey => ({ label: labels.domain(domain), type: plan.keys.domain })),
    { label: labels.logSigning, type: plan.keys.log_signing },
    { label: labels.evidenceSigning, type: plan.keys.evidence_signing },
  ];
}

/**
 * Makes every key of the plan inside the HSM, reads back and tries each one, and returns what was made.
 *
 * Before anything is made it checks that the token has every mechanism and none of the labels, in any object class. A ceremony that dies halfway leaves the
 * keys that it made: the next run refuses and says which labels exist and which are missing. Either an operator deletes those and starts again (production), or
 * `resume` completes them (development). Nothing is ever overwritten.
 *
 * Throws CeremonyError for what the plan or the token's content forbids, HsmError for what the token itself refuses.
 */
export async function runCeremony(plan: CeremonyPlan, options: CeremonyOptions): Promise<CeremonyReport> {
  // A plan that was built by hand instead of parsed is held to the same rules.
  parseCeremonyPlan(plan);
  if (options.resume === true && plan.purpose !== 'development')
    throw new CeremonyError('resume is for development plans: in production delete the keys of the failed ceremony and start again, with witnesses');
  const module = options.module ?? loadPkcs11(plan.token.module);
  initialize(module);
  const initialized = plan.token.initialize ? initializeToken(module, plan, options) : false;

  // Step 1: log in.
  const slot = findSlot(module, plan.token.label);
  const session: SessionRef = { module, handle: openSession(module, slot) };
  try {
    login(session, options.pin);

    // Step 2: refuse what cannot end well.
    const planned = plannedKeys(plan);
    requireMechanisms(module, slot, planned);
    const existing = planned.filter(({ label }) => objectsOf(session, label) > 0);
    const missing = planned.filter((key) => !existing.includes(key));
    const found = { existing: existing.map(({ label }) => label), missing: missing.map(({ label }) => label) };
    if (existing.length > 0 && options.resume !== true) throw refusal(plan, found);
    for (const key of existing) dropLonePublicHalf(session, key);

    // Step 3: make each key. If this process dies here, the token holds some of the keys and no others: step 2 of the next run names them.
    const keys: CeremonyKey[] = [];
    for (const key of planned) {
      const before = objectsOf(session, key.label) > 0;
      try {
        if (!before) makeKey(session, key);
        // Step 4: read back and try, one by one, so that a wrong key stops the ceremony at once.
        keys.push(await verifyKey(session, key, before ? 'before' : 'now'));
      } catch (cause) {
        const made = planned.filter(({ label }) => objectsOf(session, label) > 0).map(({ label }) => label);
        throw new CeremonyError(
          `the ceremony stopped at ${key.label}: ${cause instanceof HsmError ? cause.message : 'the HSM refused'}; the token now holds ${made.join(', ') || 'none of its keys'}`,
          {
            existing: made,
            missing: planned.map(({ label }) => label).filter((label) => !made.includes(label)),
            cause,
          },
        );
      }
    }

    const token = module.C_GetTokenInfo(slot);
    return {
      purpose: plan.purpose,
      planSha256: planSha256(plan),
      at: options.now().toISOString(),
      witnesses: plan.witnesses,
      token: { label: plan.token.label, serial: token.serialNumber.trim(), model: token.model.trim(), manufacturer: token.manufacturerID.trim(), initialized },
      keys,
    };
  } finally {
    // The last session to close logs out as well.
    try {
      module.C_CloseSession(session.handle);
    } catch {
      // It was lost; there is nothing to close.
    }
  }
}

function refusal(plan: CeremonyPlan, found: { existing: readonly string[]; missing: readonly string[] }): CeremonyError {
  const all = found.missing.length === 0;
  const state = all ? 'the token holds every key of this plan already' : `a ceremony was left half-finished: the token holds ${found.existing.join(', ')} and lacks ${found.missing.join(', ')}`;
  const next = all ? 'there is nothing to do' : plan.purpose === 'development' ? 'resume it, or delete those keys' : 'delete those keys under witness and start again';
  return new CeremonyError(`${state}: ${next}`, found);
}

// CKF_USER_PIN_INITIALIZED, PKCS#11 v2.40 section 3.2 (CK_TOKEN_INFO flags).
const USER_PIN_INITIALIZED = 0x8;

function initializeToken(module: Pkcs11Module, plan: CeremonyPlan, options: CeremonyOptions): boolean {
  if (options.soPin === undefined) throw new CeremonyError('token.initialize needs the security officer PIN');
  const soPin = options.soPin.toString('utf8');
  const slots = module.C_GetSlotList(true).map((slot) => ({ slot, info: module.C_GetTokenInfo(slot) }));
  let present = slots.find(({ info }) => (info.flags & CKF.TOKEN_INITIALIZED) !== 0 && info.label.trimEnd() === plan.token.label);
  if (present === undefined) {
    const free = slots.find(({ info }) => (info.flags & CKF.TOKEN_INITIALIZED) === 0 && info.manufacturerID.startsWith('SoftHSM'));
    // C_InitToken erases: only SoftHSM2's empty slot is ever offered to it.
    if (free === undefined) throw new CeremonyError('token.initialize found no free SoftHSM2 slot');
    // Exactly 32 bytes, blank-padded: pkcs11js passes the bare pointer and the library reads 32 (PKCS#11 v2.40 section 5.5).
    module.C_InitToken(free.slot, soPin, plan.token.label.padEnd(32));
    const slot = findSlot(module, plan.token.label);
    present = { slot, info: module.C_GetTokenInfo(slot) };
  }
  // Died between the two calls: the token is there without a user PIN.
  if ((present.info.flags & USER_PIN_INITIALIZED) !== 0) return false;
  const session = openSession(module, present.slot);
  try {
    module.C_Login(session, CKU.SO, soPin);
    module.C_InitPIN(session, options.pin.toString('utf8'));
    module.C_Logout(session);
  } finally {
    module.C_CloseSession(session);
  }
  return true;
}

function requireMechanisms(module: Pkcs11Module, slot: Handle, planned: readonly PlannedKey[]): void {
  const offered = new Set(module.C_GetMechanismList(slot));
  for (const { label, type } of planned) {
    const needed =
      type === 'aes-256' ? [CKM.AES_KEY_GEN, CKM.AES_GCM] : type === 'hmac-sha-256' ? [CKM.GENERIC_SECRET_KEY_GEN, CKM.SHA256_HMAC] : [signingAlgorithms[type].generate, signingAlgorithms[type].sign];
    if (!needed.every((mechanism) => offered.has(mechanism))) throw new CeremonyError(`the token cannot make ${label} as ${type}: it lacks the mechanism`);
  }
}

function objectsOf(session: SessionRef, label: string): number {
  return [CKO.SECRET_KEY, CKO.PRIVATE_KEY, CKO.PUBLIC_KEY].reduce<number>((count, objectClass) => count + findAll(session, objectClass, label).length, 0);
}

// C_GenerateKeyPair that died between its two objects leaves a public key that nobody can sign for.
function dropLonePublicHalf(session: SessionRef, { label, type }: PlannedKey): void {
  if (type !== 'ed25519' && type !== 'ecdsa-p256') return;
  const halves = findAll(session, CKO.PUBLIC_KEY, label);
  if (findAll(session, CKO.PRIVATE_KEY, label).length === 0) for (const half of halves) session.module.C_DestroyObject(session.handle, half);
}

function makeKey(session: SessionRef, { label, type }: PlannedKey): void {
  if (type === 'aes-256') generateAesKey(session, label);
  else if (type === 'hmac-sha-256') generateHmacKey(session, label);
  else generateSigningKeyPair(session, type, label);
}

const TRIAL = Buffer.from('cofre/ceremony-trial/v1', 'utf8');

async function verifyKey(session: SessionRef, { label, type }: PlannedKey, made: CeremonyKey['made']): Promise<CeremonyKey> {
  const signs = type === 'ed25519' || type === 'ecdsa-p256';
  const key = findOne(session, signs ? CKO.PRIVATE_KEY : CKO.SECRET_KEY, label);
  const expected = type === 'aes-256' ? CKK.AES : type === 'hmac-sha-256' ? CKK.GENERIC_SECRET : signingAlgorithms[type].keyType;
  const bytes = signs ? null : readNumber(session, key, CKA.VALUE_LEN);
  if (readNumber(session, key, CKA.KEY_TYPE) !== expected || (!signs && bytes !== null && bytes !== 32)) throw new HsmError('refused', 'a key has the wrong type or size');
  const neverExtractable = readFlag(session, key, CKA.NEVER_EXTRACTABLE);
  const alwaysSensitive = readFlag(session, key, CKA.ALWAYS_SENSITIVE);
  const local = readFlag(session, key, CKA.LOCAL);
  if (readFlag(session, key, CKA.TOKEN) !== true || readFlag(session, key, CKA.SENSITIVE) !== true || readFlag(session, key, CKA.EXTRACTABLE) !== false)
    throw new HsmError('refused', 'a key is not kept on the token, or could be read out of it');
  if (neverExtractable === false || alwaysSensitive === false || local === false) throw new HsmError('refused', 'a key has not always been inside the token');
  const checked = { label, type, made, sensitive: true, extractable: false, alwaysSensitive, neverExtractable, local } as const;

  if (type === 'aes-256') {
    const sealed = await encryptGcm(session, key, TRIAL, TRIAL);
    if (!(await decryptGcm(session, key, sealed, TRIAL)).equals(TRIAL)) throw new HsmError('refused', 'a domain key does not open what it sealed');
    return checked;
  }
  if (type === 'hmac-sha-256') {
    if (!(await hmacSha256(session, key, TRIAL)).equals(await hmacSha256(session, key, TRIAL))) throw new HsmError('refused', 'the control key gives two answers');
    return checked;
  }
  const { algorithm, publicKeySpki } = readPublicKey({ ...session, key: (objectClass, name) => findOne(session, objectClass, name) }, label);
  const signature = type === 'ed25519' ? await signEd25519(session, key, TRIAL) : derSignature(await signEcdsaP256(session, key, createHash('sha256').update(TRIAL).digest()));
  const publicKey = createPublicKey({ key: publicKeySpki, format: 'der', type: 'spki' });
  if (algorithm !== type || !verifySignature(algorithm, publicKey, TRIAL, signature)) throw new HsmError('refused', 'a signing key and its public key do not belong together');
  return { ...checked, publicKey: { spki: publicKeySpki.toString('base64'), sha256: createHash('sha256').update(publicKeySpki).digest('hex') } };
}

function planSha256(plan: CeremonyPlan): string {
  const { ceremony, purpose, token, domains, keys, witnesses } = plan;
  const ordered = {
    ceremony,
    purpose,
    token: { module: token.module, label: token.label, initialize: token.initialize },
    domains,
    keys: { domain: keys.domain, control: keys.control, log_signing: keys.log_signing, evidence_signing: keys.evidence_signing },
    witnesses,
  };
  return createHash('sha256').update(JSON.stringify(ordered)).digest('hex');
}

/** Names of domains: they stand in labels. */
const DOMAIN = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

/** Checks a parsed file and returns it as a plan. Throws CeremonyError that names the first wrong key by its path, never its value. */
export function parseCeremonyPlan(value: unknown): CeremonyPlan {
  const top = record(value, 'the file', ['ceremony', 'purpose', 'token', 'domains', 'keys', 'witnesses']);
  const token = record(top['token'], 'token', ['module', 'label', 'initialize']);
  const keys = record(top['keys'], 'keys', ['domain', 'control', 'log_signing', 'evidence_signing']);
  const plan: CeremonyPlan = {
    ceremony: oneOf(top['ceremony'], 'ceremony', ['cofre/v1'] as const),
    purpose: oneOf(top['purpose'], 'purpose', ['production', 'development'] as const),
    token: {
      module: text(token['module'], 'token.module', /^\/.+/),
      label: text(token['label'], 'token.label', /^[\x21-\x7e]([\x20-\x7e]{0,30}[\x21-\x7e])?$/),
      initialize: flag(token['initialize'], 'token.initialize'),
    },
    domains: list(top['domains'], 'domains').map((domain, at) => text(domain, `domains[${at}]`, DOMAIN)),
    keys: {
      domain: oneOf(keys['domain'], 'keys.domain', ['aes-256'] as const),
      control: oneOf(keys['control'], 'keys.control', ['hmac-sha-256'] as const),
      log_signing: oneOf(keys['log_signing'], 'keys.log_signing', ['ed25519', 'ecdsa-p256'] as const),
      evidence_signing: oneOf(keys['evidence_signing'], 'keys.evidence_signing', ['ed25519', 'ecdsa-p256'] as const),
    },
    witnesses: list(top['witnesses'], 'witnesses').map((witness, at) => text(witness, `witnesses[${at}]`, /\S/)),
  };
  if (plan.domains.length === 0) throw new CeremonyError('domains: name at least one');
  if (new Set(plan.domains).size !== plan.domains.length) throw new CeremonyError('domains: one stands there twice');
  if (plan.purpose === 'production') {
    if (new Set(plan.witnesses.map((witness) => witness.trim().toLowerCase())).size < 2) throw new CeremonyError('witnesses: a production ceremony has two different ones or more');
    if (plan.token.initialize) throw new CeremonyError('token.initialize: only a development plan may initialize a token');
  }
  return plan;
}

function record(value: unknown, path: string, known: readonly string[]): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new CeremonyError(`${path}: must be a mapping`);
  const unknown = Object.keys(value).find((key) => !known.includes(key));
  if (unknown !== undefined) throw new CeremonyError(`${path}: has an unknown key, ${JSON.stringify(unknown.slice(0, 40))}`);
  const absent = known.find((key) => !Object.hasOwn(value, key));
  if (absent !== undefined) throw new CeremonyError(`${path}: lacks the key ${absent}`);
  return value as Record<string, unknown>;
}

function text(value: unknown, path: string, pattern: RegExp): string {
  if (typeof value !== 'string' || !pattern.test(value)) throw new CeremonyError(`${path}: is not a valid text`);
  return value;
}

function flag(value: unknown, path: string): boolean {
  if (typeof value !== 'boolean') throw new CeremonyError(`${path}: must be true or false`);
  return value;
}

function list(value: unknown, path: string): readonly unknown[] {
  if (!Array.isArray(value)) throw new CeremonyError(`${path}: must be a list`);
  return value as readonly unknown[];
}

function oneOf<const Values extends readonly string[]>(value: unknown, path: string, values: Values): Values[number] {
  if (typeof value !== 'string' || !values.includes(value)) throw new CeremonyError(`${path}: must be ${values.join(' or ')}`);
  return value;
}
