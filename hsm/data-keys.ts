// The data keys of one domain: the current one with its leased seals, the next one made in time, and older ones for opening.
import { HsmError } from './errors.ts';
import type { DataKeySource } from './card-cipher.ts';
import type { KeyRegistry, KeyRow, KeyStore } from './key-registry.ts';
import type { HsmLog } from './session-pool.ts';

/** How long and how often a data key seals. The defaults are production's; tests use small ones. */
export interface SealLimits {
  /** Seals that a process leases at once. */
  readonly blockSeals: number;
  /** Seals after which a key retires: 2^32 random 96-bit nonces keep the odds of a collision under 2^-32 (SP 800-38D section 8.3). */
  readonly keySeals: number;
  /** Age in ms at which a key no longer seals. */
  readonly keyAgeMs: number;
  /** How long before that age, in ms, its successor is made: the HSM may be away just then. */
  readonly aheadMs: number;
}

const dayMs = 24 * 60 * 60 * 1000;

export const productionSealLimits: SealLimits = { blockSeals: 2 ** 22, keySeals: 2 ** 32, keyAgeMs: 30 * dayMs, aheadMs: dayMs };

/** How one custody makes and loads data keys. */
export interface DataKeyCustody<Key> {
  make(keyId: number, version: number): Promise<Buffer>;
  unmake(material: Buffer): Promise<void>;
  /** Throws HsmError `corrupt` where the material does not authenticate. */
  load(row: KeyRow): Promise<Key>;
}

interface Lease<Key> {
  readonly key: Key;
  readonly bornMs: number;
  left: number;
}

export interface DataKeysOptions<Key> {
  readonly domain: string;
  readonly registry: KeyRegistry;
  readonly store: KeyStore;
  readonly custody: DataKeyCustody<Key>;
  readonly limits: SealLimits;
  readonly now: () => Date;
  /** Throws where keys may not be used: the HSM has been away too long. */
  readonly gate: () => void;
  readonly log: HsmLog | null;
}

// Rounds in which a block is looked for: a table whose every new key is full or due at once (edited counts, a clock gone wrong) must not be filled with keys.
const MAX_ROUNDS = 8;

// After a failed refill, ms until a seal may start the next one: a store that is down is not asked a hundred thousand times a second.
const REFILL_PAUSE_MS = 500;

/** A source of data keys for ciphers; see `DataKeySource`. Leases only once something seals. */
export class DataKeys<Key extends { readonly keyId: number }> implements DataKeySource<Key> {
  readonly #options: DataKeysOptions<Key>;
  readonly #loaded = new Map<number, Key>();
  readonly #loading = new Map<number, Promise<Key>>();
  readonly #leasedSums = new Map<number, number>();
  #lease: Lease<Key> | null = null;
  #spare: Lease<Key> | null = null;
  #refill: Promise<void> | null = null;
  #seals = false; // somebody has asked for a seal: upkeep keeps a lease ready from then on
  #noRefillBefore = Number.NEGATIVE_INFINITY; // performance.now(), ms

  /** Throws HsmError `refused` for limits under which no key could ever seal. */
  constructor(options: DataKeysOptions<Key>) {
    const { blockSeals, keySeals, keyAgeMs, aheadMs } = options.limits;
    if (!Number.isInteger(blockSeals) || blockSeals < 1 || keySeals < blockSeals || keySeals > 2 ** 32 || aheadMs < 0 || keyAgeMs <= aheadMs)
      throw new HsmError('refused', 'the limits of data keys contradict each other');
    this.#options = options;
  }

  take(): Key {
    this.#options.gate();
    let lease = this.#lease;
    if (lease === null || lease.left === 0) {
      lease = this.#lease = this.#spare;
      this.#spare = null;
      if (lease === null) {
        this.#seals = true;
        this.#refillLater();
        throw new HsmError('exhausted', 'no leased seal is left');
      }
    }
    lease.left -= 1;
    // Half a block ahead: at 50,000 seals a second that is 40 seconds for the store to answer.
    if (this.#spare === null && lease.left * 2 <= this.#options.limits.blockSeals) this.#refillLater();
    return lease.key;
  }

  async takeSoon(): Promise<Key> {
    for (;;) {
      try {
        return this.take();
      } catch (error) {
        if (!(error instanceof HsmError) || error.kind !== 'exhausted') throw error;
        await answered(this.prepare());
      }
    }
  }

  byId(keyId: number): Key | Promise<Key> {
    this.#options.gate();
    return this.#loaded.get(keyId) ?? this.#loadById(keyId);
  }

  /** Resolves when a seal is leased, making the domain's first key where it has none. Throws what the store, the registry or the HSM throws. */
  async prepare(): Promise<void> {
    this.#seals = true;
    if (this.#lease !== null && this.#lease.left > 0) return;
    if (this.#spare !== null) return;
    this.#refill ??= this.#startRefill();
    await this.#refill;
  }

  /**
   * One round of upkeep: replaces a key that is due or that an operator retired, stops sealing with one that someone edited, forgets destroyed ones. The keyring
   * runs it every minute. Throws what went wrong after doing what could be done.
   */
  async upkeep(): Promise<void> {
    const { keyAgeMs } = this.#options.limits;
    const nowMs = this.#options.now().getTime();
    const failures: unknown[] = [];
    this.#keepLeases((lease) => nowMs - lease.bornMs < keyAgeMs);
    const retired = new Set<number>();

    for (const keyId of Array.from(this.#loaded.keys())) {
      try {
        const row = await this.#options.registry.byId(keyId);
        if (row === null || row.state === 'destroyed') this.#forget(keyId);
        else if (row.state !== 'active') retired.add(keyId);
      } catch (error) {
        failures.push(error);
        // A store or an HSM that is away says nothing about the key; an edited row does.
        if (error instanceof HsmError && error.kind === 'corrupt') this.#forget(keyId);
      }
    }

    // Who seals only now and then is left with nothing of a retired key at once.
    if (!this.#seals) this.#keepLeases((lease) => !retired.has(lease.key.keyId));
    const isOver = (lease: Lease<Key>): boolean => retired.has(lease.key.keyId) || this.#isDue(lease.bornMs);
    // Twice where a block of the old key was on its way already.
    for (let round = 0; round < 2 && this.#seals; round += 1) {
      const lease = this.#lease ?? this.#spare;
      if (lease !== null && !isOver(lease)) break;
      // The next lease comes from a new key, because the latest one is due or retired. Until it is there the old one goes on, so that no seal fails for it; where none can be had, until its last day.
      this.#spare = null;
      try {
        this.#refill ??= this.#startRefill();
        await this.#refill;
        const next: Lease<Key> | null = this.#spare;
        if (next !== null) {
          this.#lease = next;
          this.#spare = null;
        }
      } catch (error) {
        failures.push(error);
        break;
      }
    }
    if (failures.length > 0) throw failures[0] as Error;
  }

  /**
   * Whether a key is to have a successor: it is old, or it was made by a clock that was ahead, and nobody knows how old it is. The clocks of machines differ
   * a little: a key that is younger than it says by no more than its successor comes early still ends in time.
   */
  #isDue(bornMs: number): boolean {
    const { keyAgeMs, aheadMs } = this.#options.limits;
    const ageMs = this.#options.now().getTime() - bornMs;
    return ageMs >= keyAgeMs - aheadMs || ageMs < -aheadMs;
  }

  #keepLeases(keep: (lease: Lease<Key>) => boolean): void {
    if (this.#lease !== null && !keep(this.#lease)) this.#lease = null;
    if (this.#spare !== null && !keep(this.#spare)) this.#spare = null;
  }

  #forget(keyId: number): void {
    this.#loaded.delete(keyId);
    this.#keepLeases((lease) => lease.key.keyId !== keyId);
  }

  #refillLater(): void {
    if (this.#refill !== null || performance.now() < this.#noRefillBefore) return;
    this.#refill = this.#startRefill();
    this.#refill.catch(() => {
      // Logged where it failed; the next seal starts another.
    });
  }

  async #startRefill(): Promise<void> {
    try {
      const lease = await this.#leaseBlock();
      if (this.#lease === null || this.#lease.left === 0) this.#lease = lease;
      else this.#spare = lease;
    } catch (error) {
      this.#noRefillBefore = performance.now() + REFILL_PAUSE_MS;
      this.#options.log?.warn('data_key_lease_failed', { kind: error instanceof HsmError ? error.kind : 'store' });
      throw error;
    } finally {
      this.#refill = null;
    }
  }

  async #leaseBlock(): Promise<Lease<Key>> {
    const { registry, store, custody, domain, limits } = this.#options;
    let full = 0;
    for (let round = 0; round < MAX_ROUNDS; round++) {
      const row = await registry.latest('data', domain);
      if (row === null || row.state !== 'active' || row.version <= full || this.#isDue(row.createdAt.getTime())) {
        // Another process may do the same at this moment: the store lets one through, and both read it in the next round.
        const version = (row?.version ?? 0) + 1;
        const made = await registry.create(
          'data',
          domain,
          version,
          (keyId) => custody.make(keyId, version),
          (material) => custody.unmake(material),
        );
        if (made) this.#options.log?.info('data_key_made', { version });
        continue;
      }
      const sum = await store.leaseSeals(row.keyId, limits.blockSeals, limits.keySeals);
      if (sum === null) {
        full = row.version;
        continue;
      }
      // The sum is not under the row's MAC (see macInput): where it went back nobody knows how often the key has sealed, so it seals no more.
      if (!Number.isInteger(sum) || sum < (this.#leasedSums.get(row.keyId) ?? 0) + limits.blockSeals) {
        this.#options.log?.warn('data_key_lease_count_went_back', { version: row.version });
        full = row.version;
        continue;
      }
      this.#leasedSums.set(row.keyId, sum);
      return { key: await this.#load(row), bornMs: row.createdAt.getTime(), left: limits.blockSeals };
    }
    throw new HsmError('exhausted', 'no data key with seals left could be found or made');
  }

  async #loadById(keyId: number): Promise<Key> {
    const pending = this.#loading.get(keyId);
    if (pending !== undefined) return pending;
    const key = answered(this.#options.registry.byId(keyId)).then((found) => {
      if (found === null) throw new HsmError('not_found', 'a sealed value names an unknown key');
      return this.#loadRow(found);
    });
    return this.#remember(keyId, key);
  }

  #load(row: KeyRow): Promise<Key> {
    const known = this.#loaded.get(row.keyId);
    if (known !== undefined) return Promise.resolve(known);
    return this.#loading.get(row.keyId) ?? this.#remember(row.keyId, this.#loadRow(row));
  }

  async #loadRow(row: KeyRow): Promise<Key> {
    // A data key of another domain must not open anything here, whatever a sealed value says.
    if (row.kind !== 'data' || row.domain !== this.#options.domain) throw new HsmError('corrupt', 'a sealed value names a key of another domain');
    if (row.state === 'destroyed') throw new HsmError('not_found', 'a sealed value names a destroyed key');
    return this.#options.custody.load(row);
  }

  #remember(keyId: number, loading: Promise<Key>): Promise<Key> {
    const kept = loading.then(
      (key) => {
        this.#loading.delete(keyId);
        this.#loaded.set(keyId, key);
        return key;
      },
      (error: unknown) => {
        this.#loading.delete(keyId);
        throw error;
      },
    );
    this.#loading.set(keyId, kept);
    return kept;
  }
}

/** What a cipher waits for: a failure of the store's own becomes one that its caller can tell from a defect. */
async function answered<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (cause) {
    if (cause instanceof HsmError) throw cause;
    throw new HsmError('store', 'the key registry does not answer', { cause });
  }
}
