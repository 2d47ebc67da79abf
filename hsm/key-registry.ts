// The registry of data and fingerprint keys: its rows, what their MAC and their encryption cover, and the store that keeps them.
import { timingSafeEqual } from 'node:crypto';
import { HsmError } from './errors.ts';
import type { HsmLog } from './session-pool.ts';

export type KeyKind = 'data' | 'fingerprint';
/** `active` keys are in use or readable; a `retired` one only opens what it sealed; a `destroyed` one has lost its material. */
export type KeyState = 'active' | 'retired' | 'destroyed';

/** One key of one domain. `material` is a stored form (see `encodeEncrypted`, `encodeLabel`); `mac` is the control key's over everything else. */
export interface KeyRow {
  /** 1 to 2^32 - 1, unique for ever: it stands in every sealed value. */
  readonly keyId: number;
  readonly kind: KeyKind;
  readonly domain: string;
  /** From 1, without gaps for a (kind, domain); the highest is the current one. */
  readonly version: number;
  readonly state: KeyState;
  readonly material: Buffer;
  /** Millisecond precision. */
  readonly createdAt: Date;
  /** From 1; each change of the row raises it. */
  readonly rowVersion: number;
  /** 32 bytes. */
  readonly mac: Buffer;
}

/**
 * Where registry rows are kept. Declared by its consumer, the keyring; `platform-adapters/postgres/key-store.ts` is the one in use.
 *
 * Every promise that resolves speaks of something durable: a row that was inserted or seals that were leased survive any crash afterwards. A rejected call
 * may have done its work all the same; each is safe to repeat (a lost lease only wastes seals). All methods may be called at once, from many processes on one
 * store: `insertKey` and `leaseSeals` are atomic. Rows are returned as they are stored; the keyring checks their MAC, so a store need not be trusted.
 * Rejections are the store's own errors. They pass through the keyring as they are, at its opening and its upkeep; a cipher that needed the
 * store meanwhile throws HsmError `store`.
 */
export interface KeyStore {
  /** A key id that was never handed out before and never will be again. Gaps are fine. */
  reserveKeyId(): Promise<number>;
  /**
   * Inserts the row with no seals leased. False, and no change, where that (kind, domain, version) exists: a call for the same row again, or for another, waits for one that is still under way. So once
   * it was answered, a call for that version whose answer was lost cannot do its work any more.
   */
  insertKey(row: KeyRow): Promise<boolean>;
  /** The row of the highest version of that kind and domain, whatever its state, or null where there is none. */
  latestKey(kind: KeyKind, domain: string): Promise<KeyRow | null>;
  /** The row with that id, or null. */
  keyById(keyId: number): Promise<KeyRow | null>;
  /** Adds `count` to the seals leased of that data key and returns the new sum; null, and no change, where the sum would exceed `limit` or the key is not active. */
  leaseSeals(keyId: number, count: number, limit: number): Promise<number | null>;
}

/** The greatest key id: it must fit the four bytes that a sealed value has for it. */
export const MAX_KEY_ID = 0xffffffff;

const STORED_ENCRYPTED = 1;
const STORED_LABEL = 2;

/** What a row's material says about its key: encrypted key bytes under a version of the domain key, or the label of an object in the HSM. */
export type Material = { readonly form: 'encrypted'; readonly domainKeyVersion: number; readonly encrypted: Buffer } | { readonly form: 'label'; readonly label: string };

/** Stored form 1, envelope custody: 0x01 (1) || domain key version (2, big-endian) || iv (12) || ciphertext (32) || tag (16) = 63 bytes. */
export function encodeEncrypted(domainKeyVersion: number, encrypted: Buffer): Buffer {
  if (encrypted.length !== 60) throw new HsmError('refused', 'an encrypted key has the wrong length');
  const head = Buffer.alloc(3);
  head[0] = STORED_ENCRYPTED;
  head.writeUInt16BE(domainKeyVersion, 1);
  return Buffer.concat([head, encrypted]);
}

/** Stored form 2, direct custody: 0x02 (1) || the label of the HSM object, UTF-8. */
export function encodeLabel(label: string): Buffer {
  return Buffer.concat([Buffer.from([STORED_LABEL]), Buffer.from(label, 'utf8')]);
}

/** Reads either stored form. Throws HsmError `corrupt` for any other. */
export function decodeMaterial(material: Buffer): Material {
  if (material[0] === STORED_ENCRYPTED && material.length === 63) {
    return { form: 'encrypted', domainKeyVersion: material.readUInt16BE(1), encrypted: Buffer.from(material.subarray(3)) };
  }
  if (material[0] === STORED_LABEL && material.length > 1) return { form: 'label', label: material.toString('utf8', 1) };
  throw new HsmError('corrupt', 'a key registry row has material of an unknown form');
}

// Each field with its length before it: no two different lists of fields give the same bytes.
function fields(...parts: readonly (string | number | Buffer)[]): Buffer {
  const out: Buffer[] = [];
  for (const part of parts) {
    let bytes: Buffer;
    if (typeof part === 'number') {
      bytes = Buffer.alloc(8);
      bytes.writeBigUInt64BE(BigInt(part));
    } else {
      bytes = typeof part === 'string' ? Buffer.from(part, 'utf8') : part;
    }
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    out.push(length, bytes);
  }
  return Buffer.concat(out);
}

/**
 * What authenticates a key's bytes when they are encrypted under the domain key: (stored form, kind, id, domain, version). A ciphertext that is moved to
 * another row does not open.
 */
export function keyAad(key: Pick<KeyRow, 'kind' | 'keyId' | 'domain' | 'version'>): Buffer {
  return fields('cofre/key/v1', STORED_ENCRYPTED, key.kind, key.keyId, key.domain, key.version);
}

/**
 * The bytes whose HMAC under the control key is the row's `mac`: everything but the count of leased seals.
 *
 * That count stays outside: a MAC could not keep a database administrator from putting back an earlier count together with its earlier MAC, so covering it
 * would only look like protection. What a rewound count can do is bounded otherwise: a process that meets a count below the last one it saw retires the key, the
 * key's age is under the MAC and ends its use after 30 days, and seals beyond 2^32 weaken the odds of a nonce collision gradually (SP 800-38D section 8.3),
 * they do not open anything. A raised count only makes the next key come sooner.
 */
export function macInput(row: Omit<KeyRow, 'mac'>): Buffer {
  return fields('cofre/key-row/v1', row.keyId, row.kind, row.domain, row.version, row.state, row.material, row.createdAt.getTime(), row.rowVersion);
}

/** HMAC-SHA-256 under the control key, in the HSM: 32 bytes. */
export interface ControlKey {
  mac(message: Uint8Array): Promise<Buffer>;
}

/** A row whose insert got no answer: it may be there, or may come to be there yet. */
interface Unsettled {
  readonly row: KeyRow;
  readonly unmake: (material: Buffer) => Promise<void>;
  /** Under way. Upkeep and whoever needs a key may want it at once: one finds out, and takes the material back once. */
  settling: Promise<boolean> | null;
}

/**
 * Reads and writes registry rows, and lets none pass whose MAC is not the control key's. A process that has seen a row in one version refuses an earlier one;
 * that no row was put back across restarts is for the log to show, which holds each row's latest version.
 */
export class KeyRegistry {
  readonly #store: KeyStore;
  readonly #control: ControlKey;
  readonly #now: () => Date;
  readonly #log: HsmLog | null;
  readonly #seenVersions = new Map<number, number>();
  /** By kind and domain. A key is made there only once it is known what became of the last one. */
  readonly #unsettled = new Map<string, Unsettled>();

  constructor(store: KeyStore, control: ControlKey, now: () => Date, log: HsmLog | null = null) {
    this.#store = store;
    this.#control = control;
    this.#now = now;
    this.#log = log;
  }

  /** The verified row of the highest version, or null. Throws HsmError `corrupt` for an edited row. */
  async latest(kind: KeyKind, domain: string): Promise<KeyRow | null> {
    const row = await this.#store.latestKey(kind, domain);
    if (row === null) return null;
    if (row.kind !== kind || row.domain !== domain) throw new HsmError('corrupt', 'the key registry returned another row than asked for');
    return this.#verified(row);
  }

  /** The verified row with that id, or null. Throws HsmError `corrupt` for an edited row. */
  async byId(keyId: number): Promise<KeyRow | null> {
    const row = await this.#store.keyById(keyId);
    if (row === null) return null;
    if (row.keyId !== keyId) throw new HsmError('corrupt', 'the key registry returned another row than asked for');
    return this.#verified(row);
  }

  /**
   * Makes the key of that version unless it exists by now; read the latest row afterwards, it may be another process's. `make` gives the material for a key id, and leaves nothing where it throws;
   * `unmake` takes material back, and is called only where it is certain that no row names it, nor ever will.
   *
   * An insert without an answer is settled before another key of that kind and domain is made: the same row is inserted again, at once and, where that fails too, at the next call or by `settle`. Only that tells: a row that is not there
   * may still be committed. A crash, or an end of the process before that, leaves at most one key that no row may name; for an object of the HSM the log has the event `key_object_unsettled`.
   */
  async create(kind: KeyKind, domain: string, version: number, make: (keyId: number) => Promise<Buffer>, unmake: (material: Buffer) => Promise<void>): Promise<boolean> {
    const name = `${kind} ${domain}`;
    if (this.#unsettled.has(name)) return this.#settleOf(name);
    const keyId = await this.#store.reserveKeyId();
    if (!Number.isInteger(keyId) || keyId < 1 || keyId > MAX_KEY_ID) throw new HsmError('exhausted', 'the key registry has no key ids left');
    const material = await make(keyId);
    const fields: Omit<KeyRow, 'mac'> = { keyId, kind, domain, version, state: 'active', material, createdAt: this.#now(), rowVersion: 1 };
    let mac: Buffer;
    try {
      mac = await this.#control.mac(macInput(fields));
    } catch (error) {
      await unmake(material);
      throw error;
    }
    const unsettled: Unsettled = { row: { ...fields, mac }, unmake, settling: null };
    let inserted: boolean;
    try {
      inserted = await this.#store.insertKey(unsettled.row);
    } catch (error) {
      try {
        return await this.#settle(unsettled);
      } catch {
        this.#unsettled.set(name, unsettled);
        if (decodeMaterial(material).form === 'label') this.#log?.warn('key_object_unsettled', { kind, version });
        throw error;
      }
    }
    if (!inserted) await unmake(material);
    return inserted;
  }

  /** Settles what `create` could not. Throws what the store throws; the rest waits for the next call. */
  async settle(): Promise<void> {
    for (const name of this.#unsettled.keys()) await this.#settleOf(name);
  }

  async #settleOf(name: string): Promise<boolean> {
    const unsettled = this.#unsettled.get(name)!;
    unsettled.settling ??= this.#settle(unsettled).finally(() => (unsettled.settling = null));
    const inserted = await unsettled.settling;
    // Another may have come to be unsettled before this goes on.
    if (this.#unsettled.get(name) === unsettled) this.#unsettled.delete(name);
    return inserted;
  }

  /** Whether the row is in the registry, now and for good; where it is not, its material is taken back. Throws what the store throws: nothing is known then. */
  async #settle({ row, unmake }: Unsettled): Promise<boolean> {
    if (await this.#store.insertKey(row)) return true;
    // Its version is taken, by itself or by another. It cannot come any more.
    if ((await this.#store.keyById(row.keyId)) !== null) return true;
    await unmake(row.material);
    return false;
  }

  async #verified(row: KeyRow): Promise<KeyRow> {
    const mac = await this.#control.mac(macInput(row));
    if (row.mac.length !== mac.length || !timingSafeEqual(row.mac, mac)) throw new HsmError('corrupt', 'a key registry row was edited');
    if (row.rowVersion < (this.#seenVersions.get(row.keyId) ?? 0)) throw new HsmError('corrupt', 'a key registry row was put back to an earlier version');
    this.#seenVersions.set(row.keyId, row.rowVersion);
    return row;
  }
}
