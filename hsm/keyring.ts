// The keys of one vault: opens the HSM, finds or makes each domain's keys, and hands every tenant the ciphers of its domain.
import { createHmac, createSecretKey, randomBytes } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { directCardCipher, envelopeCardCipher } from './card-cipher.ts';
import type { CardCipher, DataKeySource, HsmDataKey, HsmGcm, MemoryDataKey } from './card-cipher.ts';
import { DataKeys, productionSealLimits } from './data-keys.ts';
import type { DataKeyCustody, SealLimits } from './data-keys.ts';
import { HsmError } from './errors.ts';
import { directFingerprint, envelopeFingerprint, ROW_MAC_LABEL } from './fingerprint.ts';
import type { Fingerprint } from './fingerprint.ts';
import { decodeMaterial, encodeEncrypted, encodeLabel, keyAad, KeyRegistry } from './key-registry.ts';
import type { ControlKey, KeyKind, KeyRow, KeyStore } from './key-registry.ts';
import { CKO, decryptGcm, encryptGcm, findAll, generateAesKey, generateHmacKey, generateRandom, hmacSha256, loadPkcs11 } from './pkcs11.ts';
import type { Pkcs11Module } from './pkcs11.ts';
import { SessionPool } from './session-pool.ts';
import type { HsmCallObserver, HsmHealth, HsmLog, Pin } from './session-pool.ts';
import { openSigner } from './signer.ts';
import type { Signer } from './signer.ts';

/**
 * The labels of the objects in the HSM. Those of the ceremony first; the last two are the beginnings of what direct custody makes as needed: 16 random hex
 * digits follow, so that no label comes twice even where a database was restored and gives a key id again.
 */
export const labels = {
  control: 'cofre/control/v1',
  logSigning: 'cofre/sign/log/v1',
  evidenceSigning: 'cofre/sign/evidence/v1',
  domain: (domain: string): string => `cofre/domain/${domain}/v${DOMAIN_KEY_VERSION}`,
  data: (domain: string, version: number, keyId: number): string => `cofre/data/${domain}/v${version}/${keyId}/`,
  fingerprint: (domain: string, version: number, keyId: number): string => `cofre/fingerprint/${domain}/v${version}/${keyId}/`,
} as const;

const DOMAIN_KEY_VERSION = 1;
/** Pauses before a key object is looked for again, in ms: one that another process has just made reaches every HSM of a cluster only after a moment. */
const replicationMs = [100, 400, 1500] as const;
const CONTROL_PROBE = Buffer.from('cofre/probe/v1', 'utf8');

/**
 * `envelope`: data and fingerprint keys are stored encrypted under the domain key and used in this process's memory. `direct`: they are objects of the HSM, and
 * every seal, open and fingerprint is an operation there.
 */
export type Custody = 'envelope' | 'direct';

/** What a process may do with the keys. A process that only opens leases no seals; one without a signing use need not see those keys. */
export type KeyUse = 'seal' | 'open' | 'sign-log' | 'sign-evidence';

export interface KeyringOptions {
  /** Absolute path of the PKCS#11 library. SoftHSM2 reads SOFTHSM2_CONF from the environment when it is first initialized: set it before. */
  readonly modulePath: string;
  /** Stands in for the library at `modulePath` (a strict fake in tests). */
  readonly module?: Pkcs11Module;
  readonly tokenLabel: string;
  /** UTF-8. On CloudHSM `user:password`. Never logged. */
  readonly pin: Pin;
  readonly custody: Custody;
  /** Each tenant's key domain. */
  readonly tenants: ReadonlyMap<string, string>;
  readonly store: KeyStore;
  readonly now: () => Date;
  /** See SessionPoolOptions. */
  readonly monotonicMs?: () => number;
  /** How long envelope custody goes on while the HSM is away, in ms. */
  readonly maxAwayMs: number;
  /** Default: all. */
  readonly uses?: readonly KeyUse[];
  readonly limits?: SealLimits;
  /** Time between rounds of upkeep, in ms. Default one minute. */
  readonly upkeepMs?: number;
  /** Sessions and deadlines; see SessionPoolOptions. */
  readonly sessions?: { readonly size?: number; readonly waitMs?: number; readonly callMs?: number; readonly probeMs?: number; readonly recoveryPauseMs?: number };
  readonly log?: HsmLog;
  readonly observe?: HsmCallObserver;
}

/** One tenant's keys. All of them are those of its domain; tenants of one domain share them and are kept apart by AAD and input. */
export interface TenantKeys {
  readonly domain: string;
  /** The version of the fingerprint key that `fingerprint` uses. */
  readonly fingerprintVersion: number;
  readonly cipher: CardCipher;
  readonly fingerprint: Fingerprint;
  /** 32-byte HMAC-SHA-256 key in memory, in both custodies: HMAC(fingerprint key, "cofre/token-row/v1"). It authenticates token rows, and requests under an Idempotency-Key; keys of groups of cards (guessing) come from it. Each use has a label of its own. */
  readonly rowMacKey: KeyObject;
}

export interface Keyring {
  readonly custody: Custody;
  /** Throws HsmError `not_found` for a tenant that was not configured. */
  forTenant(tenant: string): TenantKeys;
  readonly control: ControlKey;
  /** Throws HsmError `refused` where the keyring was opened without that use. */
  readonly logSigner: Signer;
  readonly evidenceSigner: Signer;
  health(): HsmHealth;
  /** One round of upkeep now: rotation of keys that are due, notice of retired and edited ones. Runs by itself every `upkeepMs`. Throws the first thing that went wrong. */
  upkeep(): Promise<void>;
  /** Ends the upkeep, waits for HSM operations in flight and closes the sessions. Sealing in memory is refused from then on too. */
  close(): Promise<void>;
}

/**
 * Opens the HSM and every configured domain, making the data and fingerprint keys that a domain does not have yet; several processes may do so at once on one
 * store and end with the same keys. The keys in the HSM must exist: `cofre init` (ceremony.ts) makes them.
 *
 * Throws HsmError: `not_found` (no such token, or a key is missing), `ambiguous` (a label twice), `refused` (wrong PIN, a key that could leave the HSM, the
 * other custody's keys), `corrupt` (an edited registry row, a key that does not decrypt), `sealed` (from the PIN provider), `unavailable`; and the store's own
 * errors. Nothing stays open after a failure.
 */
export async function openKeyring(options: KeyringOptions): Promise<Keyring> {
  const module = options.module ?? loadPkcs11(options.modulePath);
  const uses = new Set<KeyUse>(options.uses ?? ['seal', 'open', 'sign-log', 'sign-evidence']);
  const log = options.log ?? null;
  const macWith = (message: Uint8Array): Promise<Buffer> => pool.run('hmac', (session) => hmacSha256(session, session.key(CKO.SECRET_KEY, labels.control), message));
  const pool = await SessionPool.open({
    module,
    tokenLabel: options.tokenLabel,
    pin: options.pin,
    now: options.now,
    ...(options.monotonicMs === undefined ? {} : { monotonicMs: options.monotonicMs }),
    // The control key, because every deployment has it whatever its custody and uses.
    probe: (session) => hmacSha256(session, session.key(CKO.SECRET_KEY, labels.control), CONTROL_PROBE),
    ...options.sessions,
    ...(options.log === undefined ? {} : { log: options.log }),
    ...(options.observe === undefined ? {} : { observe: options.observe }),
  });

  let closed = false;
  const gate = (): void => {
    if (closed) throw new HsmError('unavailable', 'the keyring is closed');
    if (pool.awayMs > options.maxAwayMs) throw new HsmError('unavailable', 'the HSM has been away for too long');
  };

  try {
    const registry = new KeyRegistry(options.store, { mac: macWith }, options.now, log);
    const deps: DomainDeps = { pool, registry, store: options.store, limits: options.limits ?? productionSealLimits, now: options.now, gate, log, seals: uses.has('seal') };
    const openDomain = options.custody === 'envelope' ? openEnvelopeDomain : openDirectDomain;
    const domains = new Map<string, Domain>();
    for (const domain of new Set(options.tenants.values())) domains.set(domain, await openDomain(deps, domain));
    const tenants = new Map<string, TenantKeys>();
    for (const [tenant, name] of options.tenants) {
      const domain = domains.get(name)!;
      const { fingerprint, fingerprintVersion, rowMacKey } = domain;
      tenants.set(tenant, { domain: name, fingerprint, fingerprintVersion, rowMacKey, cipher: permitted(domain.cipherFor(tenant), uses) });
    }
    const logSigner = uses.has('sign-log') ? await openSigner(pool, labels.logSigning) : null;
    const evidenceSigner = uses.has('sign-evidence') ? await openSigner(pool, labels.evidenceSigning) : null;

    const upkeep = async (): Promise<void> => {
      let first: unknown = null;
      for (const part of [() => registry.settle(), ...Array.from(domains.values(), (domain) => () => domain.upkeep())]) {
        try {
          await part();
        } catch (error) {
          log?.warn('key_upkeep_failed', { kind: error instanceof HsmError ? error.kind : 'store' });
          first ??= error;
        }
      }
      if (first !== null) throw first as Error;
    };
    const timer = setInterval(() => {
      upkeep().catch(() => {
        // Logged above, and tried again in the next round.
      });
    }, options.upkeepMs ?? 60_000);
    timer.unref();

    return {
      custody: options.custody,
      forTenant(tenant) {
        const keys = tenants.get(tenant);
        if (keys === undefined) throw new HsmError('not_found', 'no keys are configured for this tenant');
        return keys;
      },
      control: { mac: macWith },
      get logSigner() {
        return logSigner ?? refuseUse();
      },
      get evidenceSigner() {
        return evidenceSigner ?? refuseUse();
      },
      health: () => pool.health(),
      upkeep,
      async close() {
        closed = true;
        clearInterval(timer);
        await pool.close();
      },
    };
  } catch (error) {
    await pool.close();
    throw error;
  }
}

function refuseUse(): never {
  throw new HsmError('refused', 'the keyring was opened without this use');
}

// A process opened only for sealing keeps no way to open, whatever else its code may come to ask for.
function permitted(cipher: CardCipher, uses: ReadonlySet<KeyUse>): CardCipher {
  return {
    seal: uses.has('seal') ? cipher.seal.bind(cipher) : refuseUse,
    open: uses.has('open') ? cipher.open.bind(cipher) : refuseUse,
  };
}

interface DomainDeps {
  readonly pool: SessionPool;
  readonly registry: KeyRegistry;
  readonly store: KeyStore;
  readonly limits: SealLimits;
  readonly now: () => Date;
  readonly gate: () => void;
  readonly log: HsmLog | null;
  readonly seals: boolean;
}

interface Domain {
  readonly fingerprint: Fingerprint;
  readonly fingerprintVersion: number;
  readonly rowMacKey: KeyObject;
  cipherFor(tenant: string): CardCipher;
  upkeep(): Promise<void>;
}

/**
 * Makes the material of a new key, takes it back, and loads one: what the two custodies do differently for either kind of key. A `make` that throws has left nothing, and `unmake` does not throw: what could not be
 * taken back is told to the log.
 */
interface KeyCustody<Key> {
  make(kind: KeyKind, keyId: number, version: number): Promise<Buffer>;
  unmake(material: Buffer): Promise<void>;
  load(row: KeyRow): Promise<Key>;
}

async function openEnvelopeDomain(deps: DomainDeps, domain: string): Promise<Domain> {
  const { pool } = deps;
  const domainLabel = labels.domain(domain);
  await pool.run('find', async (session) => session.key(CKO.SECRET_KEY, domainLabel));

  const custody: KeyCustody<MemoryDataKey> = {
    make: (kind, keyId, version) =>
      pool.run('make', async (session) => {
        const raw = generateRandom(session, 32);
        try {
          return encodeEncrypted(DOMAIN_KEY_VERSION, await encryptGcm(session, session.key(CKO.SECRET_KEY, domainLabel), raw, keyAad({ kind, keyId, domain, version })));
        } finally {
          raw.fill(0);
        }
      }),
    async unmake() {
      // Encrypted bytes that no row holds are nothing.
    },
    async load(row) {
      const material = decodeMaterial(row.material);
      if (material.form !== 'encrypted') throw new HsmError('refused', 'a key of this domain is in direct custody');
      if (material.domainKeyVersion !== DOMAIN_KEY_VERSION) throw new HsmError('not_found', 'a key is encrypted under an unknown version of the domain key');
      const raw = await pool.run('decrypt', (session) => decryptGcm(session, session.key(CKO.SECRET_KEY, domainLabel), material.encrypted, keyAad(row)), { authenticates: true });
      try {
        if (raw.length !== 32) throw new HsmError('corrupt', 'a decrypted key has the wrong length');
        // The KeyObject holds a copy of its own outside the heap; ours is wiped.
        return { keyId: row.keyId, key: createSecretKey(raw) };
      } finally {
        raw.fill(0);
      }
    },
  };

  const fingerprintRow = await fingerprintKeyRow(deps, domain, custody);
  const { key } = await custody.load(fingerprintRow);
  const dataKeys = await openDataKeys(deps, domain, custody);
  return {
    fingerprint: envelopeFingerprint(key, deps.gate),
    fingerprintVersion: fingerprintRow.version,
    rowMacKey: wipedSecretKey(createHmac('sha256', key).update(ROW_MAC_LABEL).digest()),
    cipherFor: (tenant) => envelopeCardCipher(tenant, dataKeys),
    upkeep: () => dataKeys.upkeep(),
  };
}

async function openDirectDomain(deps: DomainDeps, domain: string): Promise<Domain> {
  const { pool } = deps;
  /** Of an object that no row names. A second try finds nothing left to do. */
  const destroy = async (label: string): Promise<void> => {
    try {
      await pool.run('destroy', async (session) => {
        for (const object of findAll(session, CKO.SECRET_KEY, label)) session.module.C_DestroyObject(session.handle, object);
      });
    } catch {
      // Nothing uses it, but it takes one of the places that the HSM has for keys.
      deps.log?.warn('key_object_left', { kind: label.startsWith('cofre/data/') ? 'data' : 'fingerprint' });
    }
  };
  const custody: KeyCustody<HsmDataKey> = {
    async make(kind, keyId, version) {
      // Two processes that make a key at once never make two objects of one label.
      const label = labels[kind](domain, version, keyId) + randomBytes(8).toString('hex');
      try {
        await pool.run('make', async (session) => (kind === 'data' ? generateAesKey(session, label) : generateHmacKey(session, label)), { once: true });
      } catch (error) {
        // The call may have made it all the same.
        await destroy(label);
        throw error;
      }
      return encodeLabel(label);
    },
    unmake: (material) => destroy(labelOf(material).label),
    async load(row) {
      const { label } = labelOf(row.material);
      // The row's MAC covers the label; that it is the one for this row keeps two rows from naming one object.
      if (!label.startsWith(labels[row.kind](row.domain, row.version, row.keyId))) throw new HsmError('corrupt', 'a key registry row names the wrong object');
      for (const pauseMs of [...replicationMs, null]) {
        try {
          await pool.run('find', async (session) => session.key(CKO.SECRET_KEY, label));
          break;
        } catch (error) {
          if (pauseMs === null || !(error instanceof HsmError && error.kind === 'not_found')) throw error;
          await sleep(pauseMs);
        }
      }
      return { keyId: row.keyId, label };
    },
  };
  const hsm: HsmGcm = {
    encrypt: (label, plaintext, aad) => pool.run('encrypt', (session) => encryptGcm(session, session.key(CKO.SECRET_KEY, label), plaintext, aad)),
    decrypt: (label, sealed, aad) => pool.run('decrypt', (session) => decryptGcm(session, session.key(CKO.SECRET_KEY, label), sealed, aad), { authenticates: true }),
  };

  const fingerprintRow = await fingerprintKeyRow(deps, domain, custody);
  const { label } = await custody.load(fingerprintRow);
  const hmac = (message: Uint8Array): Promise<Buffer> => pool.run('hmac', (session) => hmacSha256(session, session.key(CKO.SECRET_KEY, label), message));
  const dataKeys = await openDataKeys(deps, domain, custody);
  return {
    fingerprint: directFingerprint(hmac),
    fingerprintVersion: fingerprintRow.version,
    rowMacKey: wipedSecretKey(await hmac(ROW_MAC_LABEL)),
    cipherFor: (tenant) => directCardCipher(tenant, dataKeys, hsm),
    upkeep: () => dataKeys.upkeep(),
  };
}

async function fingerprintKeyRow<Key>(deps: DomainDeps, domain: string, custody: KeyCustody<Key>): Promise<KeyRow> {
  for (;;) {
    const row = await deps.registry.latest('fingerprint', domain);
    if (row?.state === 'active') return row;
    // Another one would not find the cards again: a domain without its fingerprint key is for an operator.
    if (row !== null) throw new HsmError('refused', 'the fingerprint key of a domain is not active');
    const made = await deps.registry.create(
      'fingerprint',
      domain,
      1,
      (keyId) => custody.make('fingerprint', keyId, 1),
      (material) => custody.unmake(material),
    );
    if (made) deps.log?.info('fingerprint_key_made', { version: 1 });
  }
}

async function openDataKeys<Key extends { readonly keyId: number }>(deps: DomainDeps, domain: string, custody: KeyCustody<Key>): Promise<DataKeySource<Key> & { upkeep(): Promise<void> }> {
  const forData: DataKeyCustody<Key> = {
    make: (keyId, version) => custody.make('data', keyId, version),
    unmake: (material) => custody.unmake(material),
    load: (row) => custody.load(row),
  };
  const keys = new DataKeys<Key>({ ...deps, domain, custody: forData });
  // Sealing is synchronous in envelope custody: the first lease has to be there before the first call.
  if (deps.seals) await keys.prepare();
  return keys;
}

function labelOf(material: Buffer): { label: string } {
  const decoded = decodeMaterial(material);
  if (decoded.form !== 'label') throw new HsmError('refused', 'a key of this domain is in envelope custody');
  return decoded;
}

function wipedSecretKey(raw: Buffer): KeyObject {
  try {
    return createSecretKey(raw);
  } finally {
    raw.fill(0);
  }
}
