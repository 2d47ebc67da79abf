// A key registry in memory, stricter than PostgreSQL: it fails the test on a reused id or a changed row, and each write can be made to fail before or after it is done.
import type { KeyKind, KeyRow, KeyStore } from '../../hsm/key-registry.ts';

type Write = 'reserveKeyId' | 'insertKey' | 'leaseSeals';
type Read = 'latestKey' | 'keyById';

class StoreFailure extends Error {
  override readonly name = 'StoreFailure';
}

/** What `t.rejects` compares an injected failure with. */
export const storeFailure = { name: 'StoreFailure' };

export class MemoryStore implements KeyStore {
  /** As they lie "on disk": a test may edit them as a database administrator could. */
  readonly rows: KeyRow[] = [];
  readonly leased = new Map<number, number>();
  readonly violations: string[] = [];
  readonly #failures: { call: Write | Read; persist: boolean }[] = [];
  #nextId = 0;

  /** The next such call rejects; with `persist` it does its work first. */
  failNext(call: Write | Read, persist = false): void {
    this.#failures.push({ call, persist });
  }

  reserveKeyId(): Promise<number> {
    return this.#do('reserveKeyId', () => {
      this.#nextId += 1;
      return this.#nextId;
    });
  }

  insertKey(row: KeyRow): Promise<boolean> {
    return this.#do('insertKey', () => {
      const same = this.rows.find((other) => other.keyId === row.keyId);
      // The very same row may come again, where the answer to it was lost.
      if (same !== undefined && !(same.mac.equals(row.mac) && same.material.equals(row.material))) this.violations.push('a key id came twice');
      if (row.keyId > this.#nextId || row.mac.length !== 32 || row.rowVersion !== 1 || row.state !== 'active') this.violations.push('a row of the wrong form was inserted');
      if (this.rows.some((other) => other.kind === row.kind && other.domain === row.domain && other.version === row.version)) return false;
      this.rows.push(copyOf(row));
      return true;
    });
  }

  latestKey(kind: KeyKind, domain: string): Promise<KeyRow | null> {
    return this.#do('latestKey', () => {
      const found = this.rows.filter((row) => row.kind === kind && row.domain === domain).sort((a, b) => b.version - a.version)[0];
      return found === undefined ? null : copyOf(found);
    });
  }

  keyById(keyId: number): Promise<KeyRow | null> {
    return this.#do('keyById', () => {
      const found = this.rows.find((row) => row.keyId === keyId);
      return found === undefined ? null : copyOf(found);
    });
  }

  leaseSeals(keyId: number, count: number, limit: number): Promise<number | null> {
    return this.#do('leaseSeals', () => {
      const row = this.rows.find((other) => other.keyId === keyId);
      if (row === undefined || row.kind !== 'data') this.violations.push('seals were leased of no data key');
      const sum = (this.leased.get(keyId) ?? 0) + count;
      if (row?.state !== 'active' || sum > limit) return null;
      this.leased.set(keyId, sum);
      return sum;
    });
  }

  /** Changes a stored row, as someone with write access to the table could. */
  edit(keyId: number, change: Partial<KeyRow>): void {
    const at = this.rows.findIndex((row) => row.keyId === keyId);
    this.rows[at] = { ...this.rows[at]!, ...change };
  }

  async #do<T>(call: Write | Read, work: () => T): Promise<T> {
    // A real store answers later: whatever races there are get their chance.
    await new Promise<void>((resolve) => {
      setImmediate(resolve);
    });
    const at = this.#failures.findIndex((failure) => failure.call === call);
    const failure = at < 0 ? null : this.#failures.splice(at, 1)[0]!;
    if (failure !== null && !failure.persist) throw new StoreFailure('the store is away');
    const result = work();
    if (failure !== null) throw new StoreFailure('the answer was lost');
    return result;
  }
}

function copyOf(row: KeyRow): KeyRow {
  return { ...row, material: Buffer.from(row.material), mac: Buffer.from(row.mac), createdAt: new Date(row.createdAt) };
}
