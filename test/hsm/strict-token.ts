// An HSM in memory that is stricter than any real one, with CloudHSM's manners: it makes the GCM nonce itself and writes it into pIV, has no read-only sessions,
// no Ed25519 and a bounded number of keys. It reads its inputs only when an asynchronous call completes, as a worker thread does, so a caller that wipes or
// reuses a Buffer too early gets wrong answers. What no caller may ever do is kept in `violations`: every test ends by looking there.
import { createCipheriv, createDecipheriv, createECDH, createHmac, randomBytes, randomFillSync } from 'node:crypto';
import { CKA, CKF, CKK, CKM, CKR, CKU, GCM_PARAMETER_TYPE, signingAlgorithms } from '../../hsm/pkcs11.ts';
import type { Attribute, Handle, Mechanism, Pkcs11Module } from '../../hsm/pkcs11.ts';

export interface StrictTokenOptions {
  readonly label?: string;
  readonly pin?: string;
  /** `overwrite`: any nonce is taken and ignored. `zeros-only`: anything but zeros in pIV is CKR_MECHANISM_PARAM_INVALID. */
  readonly iv?: 'overwrite' | 'zeros-only';
  readonly maxKeys?: number;
  readonly maxSessions?: number;
  /** The HSM that this token is a way to, with users of its own: the PIN is then `user:password`, and `pin` is not looked at. Without one it has an HSM to itself. */
  readonly hsm?: StrictHsm;
}

class StrictTokenError extends Error {
  readonly code: number;
  constructor(name: keyof typeof CKR) {
    super(`CKR_${name}`);
    this.name = 'Pkcs11Error';
    this.code = CKR[name];
  }
}

type Call = keyof Pkcs11Module;

interface StoredObject {
  readonly attributes: Map<number, Buffer>;
  readonly secret: Buffer | null;
  /** The crypto user that made it; null where there are none. */
  readonly owner: string | null;
  /** Other crypto users that may use it, and nothing else. */
  readonly sharedWith: Set<string>;
}

/**
 * An HSM with crypto users, as CloudHSM has them: an object is there for the user that made it and for those that it was shared with, who can use it
 * and neither destroy it nor share it on. To share is not PKCS#11's: it is done with the HSM's own tool, by the owner.
 */
export class StrictHsm {
  readonly objects = new Set<StoredObject>();
  /** Passwords by user. */
  readonly users: ReadonlyMap<string, string>;

  constructor(users: Readonly<Record<string, string>>) {
    this.users = new Map(Object.entries(users));
  }

  /** Shares all objects of a label (of a pair, both). */
  share(owner: string, label: string, user: string): void {
    const meant = [...this.objects].filter((object) => object.owner === owner && object.attributes.get(CKA.LABEL)?.toString('utf8') === label);
    if (meant.length === 0 || !this.users.has(user)) throw new Error(`there is nothing of ${owner}'s called ${label}, or nobody called ${user}`);
    for (const object of meant) object.sharedWith.add(user);
  }
}

interface Operation {
  readonly kind: 'encrypt' | 'decrypt' | 'sign' | 'find';
  readonly mechanism: Mechanism | null;
  readonly object: StoredObject | null;
  found: Handle[];
  running: boolean;
}

interface OpenSession {
  operation: Operation | null;
}

const P256_ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;

export class StrictToken implements Pkcs11Module {
  /** Every breach of the rules of PKCS#11 by a caller. Must stay empty. */
  readonly violations: string[] = [];
  /** How often each call was made. */
  readonly calls = new Map<Call, number>();
  readonly #options: Required<Omit<StrictTokenOptions, 'hsm'>>;
  readonly #hsm: StrictHsm;
  readonly #hasUsers: boolean;
  readonly #sessions = new Map<string, OpenSession>();
  /** Handles that were given out. */
  readonly #objects = new Map<string, StoredObject>();
  readonly #failures: { call: Call; rv: keyof typeof CKR; done: boolean }[] = [];
  readonly #hanging: { call: Call; release: (() => void) | null }[] = [];
  #initialized = false;
  /** Who is logged in; where there are no users, ''. */
  #user: string | null = null;
  #nextHandle = 1n;
  #wrongPins = 0;
  #inFlight = 0;
  #away = false;
  #usedIvs = new Set<string>();

  constructor({ hsm, ...options }: StrictTokenOptions = {}) {
    this.#hsm = hsm ?? new StrictHsm({});
    this.#hasUsers = hsm !== undefined;
    this.#options = { label: 'cofre-test', pin: 'test-pin', iv: 'overwrite', maxKeys: 16_666, maxSessions: 64, ...options };
  }

  // ---- what a test can do to it

  /** Unreachable from now on: every call fails, sessions and login are gone. */
  goAway(): void {
    this.#away = true;
    this.loseSessions();
  }

  comeBack(): void {
    this.#away = false;
  }

  /** Forgets all sessions and the login, and gives every object a new handle, as a restarted client daemon does. */
  loseSessions(): void {
    this.#sessions.clear();
    this.#user = null;
    this.#objects.clear();
  }

  /** The next call of that name fails; with `done` it does its work first. */
  failNext(call: Call, rv: keyof typeof CKR, done = false): void {
    this.#failures.push({ call, rv, done });
  }

  /** The next call of that name does not settle until the returned function is called. */
  hangNext(call: 'C_EncryptAsync' | 'C_DecryptAsync' | 'C_SignAsync'): () => void {
    const hanging: { call: Call; release: (() => void) | null } = { call, release: null };
    this.#hanging.push(hanging);
    return () => hanging.release?.();
  }

  keyCount(): number {
    return this.#hsm.objects.size;
  }

  labels(): string[] {
    return [...this.#hsm.objects].map((object) => object.attributes.get(CKA.LABEL)?.toString('utf8') ?? '');
  }

  get initialized(): boolean {
    return this.#initialized;
  }

  get loggedIn(): boolean {
    return this.#user !== null;
  }

  get openSessions(): number {
    return this.#sessions.size;
  }

  get wrongPins(): number {
    return this.#wrongPins;
  }

  // ---- Cryptoki

  C_Initialize(options: { flags: number }): void {
    this.#enter('C_Initialize', () => {
      if (this.#initialized) throw new StrictTokenError('CRYPTOKI_ALREADY_INITIALIZED');
      if ((options.flags & CKF.OS_LOCKING_OK) === 0) this.violations.push('initialized without locking');
      this.#initialized = true;
    });
  }

  C_Finalize(): void {
    this.#enter('C_Finalize', () => {
      this.#needInitialized();
      if (this.#inFlight > 0) this.violations.push('finalized during a call');
      this.#initialized = false;
      this.loseSessions();
    });
  }

  C_GetSlotList(): Handle[] {
    return this.#enter('C_GetSlotList', () => {
      this.#needInitialized();
      return this.#away ? [] : [SLOT];
    });
  }

  C_GetTokenInfo(): { label: string; flags: number; model: string; manufacturerID: string; serialNumber: string } {
    return this.#enter('C_GetTokenInfo', () => {
      this.#needToken();
      return { label: this.#options.label.padEnd(32), flags: CKF.TOKEN_INITIALIZED | 0x8, model: 'strict'.padEnd(16), manufacturerID: 'Cofre tests'.padEnd(32), serialNumber: '1'.padEnd(16) };
    });
  }

  C_GetMechanismList(): number[] {
    return this.#enter('C_GetMechanismList', () => {
      this.#needToken();
      return [CKM.AES_KEY_GEN, CKM.AES_GCM, CKM.GENERIC_SECRET_KEY_GEN, CKM.SHA256_HMAC, CKM.EC_KEY_PAIR_GEN, CKM.ECDSA];
    });
  }

  C_InitToken(): unknown {
    this.violations.push('tried to initialize a production token');
    throw new StrictTokenError('FUNCTION_FAILED');
  }

  C_InitPIN(): void {
    this.violations.push('tried to set a PIN');
    throw new StrictTokenError('FUNCTION_FAILED');
  }

  C_OpenSession(_slot: Handle, flags: number): Handle {
    return this.#enter('C_OpenSession', () => {
      this.#needToken();
      if ((flags & CKF.RW_SESSION) === 0 || (flags & CKF.SERIAL_SESSION) === 0) {
        this.violations.push('opened a read-only session');
        throw new StrictTokenError('SESSION_READ_ONLY');
      }
      if (this.#sessions.size >= this.#options.maxSessions) throw new StrictTokenError('SESSION_COUNT');
      const handle = this.#handle();
      this.#sessions.set(handle.toString('hex'), { operation: null });
      return handle;
    });
  }

  C_CloseSession(session: Handle): void {
    this.#enter('C_CloseSession', () => {
      const open = this.#session(session);
      if (open.operation?.running === true) this.violations.push('closed a session during its operation');
      this.#sessions.delete(session.toString('hex'));
      if (this.#sessions.size === 0) this.#user = null;
    });
  }

  C_CloseAllSessions(): void {
    this.#enter('C_CloseAllSessions', () => {
      this.#sessions.clear();
      this.#user = null;
    });
  }

  C_Login(session: Handle, userType: number, pin: string): void {
    this.#enter('C_Login', () => {
      this.#session(session);
      if (userType !== CKU.USER) throw new StrictTokenError('USER_TYPE_INVALID');
      if (this.#user !== null) throw new StrictTokenError('USER_ALREADY_LOGGED_IN');
      const user = this.#userOf(pin);
      if (user === null) {
        this.#wrongPins += 1;
        throw new StrictTokenError(this.#wrongPins >= 5 ? 'PIN_LOCKED' : 'PIN_INCORRECT');
      }
      this.#user = user;
    });
  }

  C_Logout(session: Handle): void {
    this.#enter('C_Logout', () => {
      this.#session(session);
      this.#user = null;
    });
  }

  C_FindObjectsInit(session: Handle, template: Attribute[]): void {
    this.#enter('C_FindObjectsInit', () => {
      const open = this.#idle(session, 'C_FindObjectsInit');
      const wanted = template.map(({ type, value }) => [type, bytesOf(value)] as const);
      const found = [...this.#hsm.objects]
        .filter((object) => this.#isVisible(object) && wanted.every(([type, value]) => object.attributes.get(type)?.equals(value) === true))
        .map((object) => this.#handleOf(object));
      open.operation = { kind: 'find', mechanism: null, object: null, found, running: false };
    });
  }

  C_FindObjects(session: Handle, maxObjects: number): Handle[] {
    return this.#enter('C_FindObjects', () => this.#operation(session, 'find').found.splice(0, maxObjects));
  }

  C_FindObjectsFinal(session: Handle): void {
    this.#enter('C_FindObjectsFinal', () => {
      this.#operation(session, 'find');
      this.#session(session).operation = null;
    });
  }

  C_GetAttributeValue(session: Handle, object: Handle, template: Attribute[]): Attribute[] {
    return this.#enter('C_GetAttributeValue', () => {
      this.#session(session);
      const stored = this.#object(object);
      return template.map(({ type }) => {
        const value = stored.attributes.get(type);
        if (value === undefined) throw new StrictTokenError('ATTRIBUTE_TYPE_INVALID');
        return { type, value: Buffer.from(value) };
      });
    });
  }

  C_DestroyObject(session: Handle, object: Handle): void {
    this.#enter('C_DestroyObject', () => {
      this.#session(session);
      const stored = this.#object(object);
      if (this.#hasUsers && stored.owner !== this.#user) throw new StrictTokenError('KEY_FUNCTION_NOT_PERMITTED');
      this.#hsm.objects.delete(stored);
    });
  }

  C_GenerateKey(session: Handle, mechanism: Mechanism, template: Attribute[]): Handle {
    return this.#enter('C_GenerateKey', () => {
      this.#idle(session, 'C_GenerateKey');
      this.#needLogin();
      const attributes = this.#template(template, SECRET_ATTRIBUTES);
      const aes = mechanism.mechanism === CKM.AES_KEY_GEN;
      if (!aes && mechanism.mechanism !== CKM.GENERIC_SECRET_KEY_GEN) throw new StrictTokenError('MECHANISM_INVALID');
      const wrong =
        attributes.get(CKA.KEY_TYPE)?.readUInt32LE() !== (aes ? CKK.AES : CKK.GENERIC_SECRET) ||
        attributes.get(CKA.VALUE_LEN)?.readUInt32LE() !== 32 ||
        !keptInside(attributes) ||
        // A key is for encryption or for signing, never for both, and never to carry another key out.
        truth(attributes, CKA.ENCRYPT) === truth(attributes, CKA.SIGN) ||
        truth(attributes, CKA.WRAP) ||
        truth(attributes, CKA.UNWRAP);
      if (wrong) throw new StrictTokenError('TEMPLATE_INCONSISTENT');
      return this.#store(attributes, randomBytes(32));
    });
  }

  C_GenerateKeyPair(session: Handle, mechanism: Mechanism, publicTemplate: Attribute[], privateTemplate: Attribute[]): { publicKey: Handle; privateKey: Handle } {
    return this.#enter('C_GenerateKeyPair', () => {
      this.#idle(session, 'C_GenerateKeyPair');
      this.#needLogin();
      if (mechanism.mechanism !== CKM.EC_KEY_PAIR_GEN) throw new StrictTokenError('MECHANISM_INVALID');
      const publicAttributes = this.#template(publicTemplate, PUBLIC_ATTRIBUTES);
      const privateAttributes = this.#template(privateTemplate, PRIVATE_ATTRIBUTES);
      if (publicAttributes.get(CKA.EC_PARAMS)?.equals(signingAlgorithms['ecdsa-p256'].params) !== true) throw new StrictTokenError('ATTRIBUTE_VALUE_INVALID');
      if (!keptInside(privateAttributes) || !truth(privateAttributes, CKA.SIGN)) throw new StrictTokenError('TEMPLATE_INCONSISTENT');
      const pair = createECDH('prime256v1');
      pair.generateKeys();
      // Bare, without the OCTET STRING around it, as some modules give it.
      publicAttributes.set(CKA.EC_POINT, pair.getPublicKey());
      return { publicKey: this.#store(publicAttributes, null), privateKey: this.#store(privateAttributes, pair.getPrivateKey()) };
    });
  }

  C_GenerateRandom(session: Handle, out: Buffer): Buffer {
    return this.#enter('C_GenerateRandom', () => {
      this.#session(session);
      return randomFillSync(out);
    });
  }

  C_EncryptInit(session: Handle, mechanism: Mechanism, key: Handle): void {
    this.#enter('C_EncryptInit', () => {
      const object = this.#begin(session, mechanism, key, 'encrypt', CKM.AES_GCM, CKA.ENCRYPT);
      if (this.#options.iv === 'zeros-only' && mechanism.parameter!.iv.some((byte) => byte !== 0)) throw new StrictTokenError('MECHANISM_PARAM_INVALID');
      this.#session(session).operation = object;
    });
  }

  C_EncryptAsync(session: Handle, input: Buffer, output: Buffer): Promise<Buffer> {
    return this.#later('C_EncryptAsync', session, 'encrypt', ({ mechanism, object }) => {
      const { iv, aad } = mechanism!.parameter!;
      randomFillSync(iv);
      const name = iv.toString('hex');
      if (this.#usedIvs.has(name)) this.violations.push('a nonce came twice');
      this.#usedIvs.add(name);
      if (output.length < input.length + 16) throw new StrictTokenError('BUFFER_TOO_SMALL');
      const cipher = createCipheriv('aes-256-gcm', object!.secret!, iv, { authTagLength: 16 });
      cipher.setAAD(aad);
      const length = Buffer.concat([cipher.update(input), cipher.final(), cipher.getAuthTag()]).copy(output);
      return output.subarray(0, length);
    });
  }

  C_DecryptInit(session: Handle, mechanism: Mechanism, key: Handle): void {
    this.#enter('C_DecryptInit', () => {
      this.#session(session).operation = this.#begin(session, mechanism, key, 'decrypt', CKM.AES_GCM, CKA.DECRYPT);
    });
  }

  C_DecryptAsync(session: Handle, input: Buffer, output: Buffer): Promise<Buffer> {
    return this.#later('C_DecryptAsync', session, 'decrypt', ({ mechanism, object }) => {
      const { iv, aad } = mechanism!.parameter!;
      if (input.length < 16) throw new StrictTokenError('ENCRYPTED_DATA_LEN_RANGE');
      const decipher = createDecipheriv('aes-256-gcm', object!.secret!, iv, { authTagLength: 16 });
      decipher.setAAD(aad);
      decipher.setAuthTag(input.subarray(input.length - 16));
      const plaintext = decipher.update(input.subarray(0, input.length - 16));
      try {
        decipher.final();
      } catch {
        throw new StrictTokenError('ENCRYPTED_DATA_INVALID');
      }
      return output.subarray(0, plaintext.copy(output));
    });
  }

  C_SignInit(session: Handle, mechanism: Mechanism, key: Handle): void {
    this.#enter('C_SignInit', () => {
      this.#session(session).operation = this.#begin(session, mechanism, key, 'sign', null, CKA.SIGN);
    });
  }

  C_SignAsync(session: Handle, input: Buffer, output: Buffer): Promise<Buffer> {
    return this.#later('C_SignAsync', session, 'sign', ({ mechanism, object }) => {
      const signature = mechanism!.mechanism === CKM.ECDSA ? signDigest(object!.secret!, input) : createHmac('sha256', object!.secret!).update(input).digest();
      if (output.length < signature.length) throw new StrictTokenError('BUFFER_TOO_SMALL');
      return output.subarray(0, signature.copy(output));
    });
  }

  // ---- rules

  #begin(session: Handle, mechanism: Mechanism, key: Handle, kind: Operation['kind'], only: number | null, permission: number): Operation {
    this.#idle(session, kind);
    this.#needLogin();
    const object = this.#object(key, 'KEY_HANDLE_INVALID');
    if (only !== null && mechanism.mechanism !== only) throw new StrictTokenError('MECHANISM_INVALID');
    if (mechanism.mechanism === CKM.AES_GCM) {
      const parameter = mechanism.parameter;
      if (parameter === undefined || parameter.type !== GCM_PARAMETER_TYPE || parameter.iv.length !== 12 || parameter.ivBits !== 96 || parameter.tagBits !== 128)
        throw new StrictTokenError('MECHANISM_PARAM_INVALID');
      if (object.attributes.get(CKA.KEY_TYPE)?.readUInt32LE() !== CKK.AES) throw new StrictTokenError('KEY_TYPE_INCONSISTENT');
    } else if (mechanism.mechanism === CKM.SHA256_HMAC) {
      if (object.attributes.get(CKA.KEY_TYPE)?.readUInt32LE() !== CKK.GENERIC_SECRET) throw new StrictTokenError('KEY_TYPE_INCONSISTENT');
    } else if (mechanism.mechanism === CKM.ECDSA) {
      if (object.attributes.get(CKA.KEY_TYPE)?.readUInt32LE() !== CKK.EC) throw new StrictTokenError('KEY_TYPE_INCONSISTENT');
    } else {
      throw new StrictTokenError('MECHANISM_INVALID');
    }
    if (!truth(object.attributes, permission)) throw new StrictTokenError('KEY_FUNCTION_NOT_PERMITTED');
    return { kind, mechanism, object, found: [], running: false };
  }

  async #later(call: Call, session: Handle, kind: Operation['kind'], work: (operation: Operation) => Buffer): Promise<Buffer> {
    this.#count(call);
    this.#needToken();
    const open = this.#session(session);
    const operation = this.#operation(session, kind);
    if (operation.running) {
      this.violations.push('two operations at once in a session');
      throw new StrictTokenError('OPERATION_ACTIVE');
    }
    operation.running = true;
    this.#inFlight += 1;
    try {
      const failure = this.#failureOf(call);
      const hanging = this.#hanging.findIndex((one) => one.call === call);
      if (hanging >= 0) {
        const [one] = this.#hanging.splice(hanging, 1);
        await new Promise<void>((resolve) => {
          one!.release = resolve;
        });
      } else {
        await new Promise<void>((resolve) => {
          setImmediate(resolve);
        });
      }
      if (failure !== null && !failure.done) throw new StrictTokenError(failure.rv);
      if (this.#sessions.get(session.toString('hex')) !== open) throw new StrictTokenError('SESSION_HANDLE_INVALID');
      const result = work(operation);
      if (failure !== null) throw new StrictTokenError(failure.rv);
      return result;
    } finally {
      this.#inFlight -= 1;
      operation.running = false;
      open.operation = null;
    }
  }

  #enter<T>(call: Call, work: () => T): T {
    this.#count(call);
    const failure = this.#failureOf(call);
    if (failure !== null && !failure.done) throw new StrictTokenError(failure.rv);
    if (this.#away && call !== 'C_Initialize' && call !== 'C_Finalize' && call !== 'C_GetSlotList') throw new StrictTokenError('DEVICE_REMOVED');
    const result = work();
    if (failure !== null) throw new StrictTokenError(failure.rv);
    return result;
  }

  #failureOf(call: Call): { rv: keyof typeof CKR; done: boolean } | null {
    const at = this.#failures.findIndex((failure) => failure.call === call);
    return at < 0 ? null : this.#failures.splice(at, 1)[0]!;
  }

  #count(call: Call): void {
    this.calls.set(call, (this.calls.get(call) ?? 0) + 1);
  }

  #needInitialized(): void {
    if (!this.#initialized) throw new StrictTokenError('CRYPTOKI_NOT_INITIALIZED');
  }

  #needToken(): void {
    this.#needInitialized();
    if (this.#away) throw new StrictTokenError('DEVICE_REMOVED');
  }

  #needLogin(): void {
    if (this.#user === null) throw new StrictTokenError('USER_NOT_LOGGED_IN');
  }

  #session(handle: Handle): OpenSession {
    this.#needToken();
    const open = this.#sessions.get(handle.toString('hex'));
    if (open === undefined) throw new StrictTokenError('SESSION_HANDLE_INVALID');
    return open;
  }

  #idle(handle: Handle, call: string): OpenSession {
    const open = this.#session(handle);
    if (open.operation !== null) {
      this.violations.push(`${call} while an operation is active`);
      throw new StrictTokenError('OPERATION_ACTIVE');
    }
    return open;
  }

  #operation(handle: Handle, kind: Operation['kind']): Operation {
    const { operation } = this.#session(handle);
    if (operation === null || operation.kind !== kind) {
      this.violations.push(`${kind} without its init`);
      throw new StrictTokenError('OPERATION_NOT_INITIALIZED');
    }
    return operation;
  }

  #object(handle: Handle, missing: 'OBJECT_HANDLE_INVALID' | 'KEY_HANDLE_INVALID' = 'OBJECT_HANDLE_INVALID'): StoredObject {
    const object = this.#objects.get(handle.toString('hex'));
    if (object === undefined || !this.#hsm.objects.has(object) || !this.#isVisible(object)) throw new StrictTokenError(missing);
    return object;
  }

  /** Who logs in with this PIN; null where it is wrong. */
  #userOf(pin: string): string | null {
    if (!this.#hasUsers) return pin === this.#options.pin ? '' : null;
    const at = pin.indexOf(':');
    const user = pin.slice(0, Math.max(0, at));
    return at > 0 && this.#hsm.users.get(user) === pin.slice(at + 1) ? user : null;
  }

  #isVisible({ attributes, owner, sharedWith }: StoredObject): boolean {
    if (!this.#hasUsers) return this.#user !== null || !truth(attributes, CKA.PRIVATE);
    return this.#user !== null && (owner === this.#user || sharedWith.has(this.#user));
  }

  #handleOf(object: StoredObject): Handle {
    for (const [handle, known] of this.#objects) if (known === object) return Buffer.from(handle, 'hex');
    const handle = this.#handle();
    this.#objects.set(handle.toString('hex'), object);
    return handle;
  }

  #template(template: Attribute[], known: ReadonlySet<number>): Map<number, Buffer> {
    const attributes = new Map<number, Buffer>();
    for (const { type, value } of template) {
      if (!known.has(type)) throw new StrictTokenError('ATTRIBUTE_TYPE_INVALID');
      if (attributes.has(type)) throw new StrictTokenError('TEMPLATE_INCONSISTENT');
      attributes.set(type, bytesOf(value));
    }
    for (const type of [CKA.CLASS, CKA.KEY_TYPE, CKA.TOKEN, CKA.LABEL]) if (!attributes.has(type)) throw new StrictTokenError('TEMPLATE_INCOMPLETE');
    if (attributes.get(CKA.LABEL)!.length === 0 || !truth(attributes, CKA.TOKEN)) throw new StrictTokenError('TEMPLATE_INCONSISTENT');
    return attributes;
  }

  #store(attributes: Map<number, Buffer>, secret: Buffer | null): Handle {
    if (this.#hsm.objects.size >= this.#options.maxKeys) throw new StrictTokenError('DEVICE_MEMORY');
    if (secret !== null) for (const type of [CKA.ALWAYS_SENSITIVE, CKA.NEVER_EXTRACTABLE, CKA.LOCAL]) attributes.set(type, Buffer.from([1]));
    const object: StoredObject = { attributes, secret, owner: this.#hasUsers ? this.#user : null, sharedWith: new Set() };
    this.#hsm.objects.add(object);
    return this.#handleOf(object);
  }

  #handle(): Handle {
    const handle = Buffer.alloc(8);
    handle.writeBigUInt64LE(this.#nextHandle);
    this.#nextHandle += 1n;
    return handle;
  }
}

const SLOT = Buffer.from('0700000000000000', 'hex');
const SECRET_ATTRIBUTES: ReadonlySet<number> = new Set([
  CKA.CLASS,
  CKA.KEY_TYPE,
  CKA.VALUE_LEN,
  CKA.TOKEN,
  CKA.PRIVATE,
  CKA.SENSITIVE,
  CKA.EXTRACTABLE,
  CKA.LABEL,
  CKA.ID,
  CKA.ENCRYPT,
  CKA.DECRYPT,
  CKA.SIGN,
  CKA.VERIFY,
  CKA.WRAP,
  CKA.UNWRAP,
]);
const PRIVATE_ATTRIBUTES: ReadonlySet<number> = new Set([CKA.CLASS, CKA.KEY_TYPE, CKA.TOKEN, CKA.PRIVATE, CKA.SENSITIVE, CKA.EXTRACTABLE, CKA.LABEL, CKA.ID, CKA.SIGN, CKA.DECRYPT, CKA.UNWRAP]);
const PUBLIC_ATTRIBUTES: ReadonlySet<number> = new Set([CKA.CLASS, CKA.KEY_TYPE, CKA.TOKEN, CKA.PRIVATE, CKA.LABEL, CKA.ID, CKA.EC_PARAMS, CKA.VERIFY]);

function bytesOf(value: Attribute['value']): Buffer {
  if (Buffer.isBuffer(value)) return value;
  if (typeof value === 'string') return Buffer.from(value, 'utf8');
  if (typeof value === 'boolean') return Buffer.from([value ? 1 : 0]);
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value ?? 0));
  return bytes;
}

function truth(attributes: ReadonlyMap<number, Buffer>, type: number): boolean {
  return attributes.get(type)?.[0] === 1;
}

function keptInside(attributes: ReadonlyMap<number, Buffer>): boolean {
  return truth(attributes, CKA.PRIVATE) && truth(attributes, CKA.SENSITIVE) && attributes.get(CKA.EXTRACTABLE)?.[0] === 0;
}

// ECDSA over a given digest (FIPS 186-5 section 6.4.1): node:crypto signs messages only. k times G is what ECDH calls the public key of k.
function signDigest(privateKey: Buffer, digest: Buffer): Buffer {
  if (digest.length !== 32) throw new StrictTokenError('DATA_LEN_RANGE');
  const point = createECDH('prime256v1');
  point.generateKeys();
  const k = BigInt(`0x${point.getPrivateKey('hex')}`);
  const r = BigInt(`0x${point.getPublicKey('hex').slice(2, 66)}`) % P256_ORDER;
  const s = (inverse(k) * (BigInt(`0x${digest.toString('hex')}`) + r * BigInt(`0x${privateKey.toString('hex')}`))) % P256_ORDER;
  return Buffer.from(r.toString(16).padStart(64, '0') + s.toString(16).padStart(64, '0'), 'hex');
}

function inverse(value: bigint): bigint {
  let result = 1n;
  let base = value;
  for (let exponent = P256_ORDER - 2n; exponent > 0n; exponent >>= 1n) {
    if ((exponent & 1n) === 1n) result = (result * base) % P256_ORDER;
    base = (base * base) % P256_ORDER;
  }
  return result;
}
