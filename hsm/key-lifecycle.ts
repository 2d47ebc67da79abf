// What operators see and decide of data and fingerprint keys: which there are, how old, and that one is to seal no more.
import { timingSafeEqual } from 'node:crypto';
import { HsmError } from './errors.ts';
import { macInput } from './key-registry.ts';
import type { ControlKey, KeyRow } from './key-registry.ts';

/** A key of the registry, and how many seals of it were leased so far: of a data key. */
export interface ListedKey extends KeyRow {
  /** Not under the row's MAC: see `macInput`. */
  readonly leasedSeals: number;
}

/** As a role that may change states. Rejects with the store's own errors; a rejected call may have done its work. */
export interface KeyLifecycleStore {
  /** Every key, by domain, kind and version. */
  listKeys(): Promise<readonly ListedKey[]>;
  /** Puts `row` in the place of the one with its id and the row version before it; false, and no change, where that is another by now. */
  replaceKey(row: KeyRow): Promise<boolean>;
}

/** What a period is counted from, in ms: SP 800-57 part 1 section 5.3.6, and section 4 of the design. */
const dayMs = 86_400_000;
export const cryptoperiodMs = { data: 30 * dayMs, fingerprint: 730 * dayMs } as const;

export class KeyLifecycle {
  readonly #store: KeyLifecycleStore;
  readonly #control: ControlKey;

  constructor(store: KeyLifecycleStore, control: ControlKey) {
    this.#store = store;
    this.#control = control;
  }

  /** Every key, verified: one call of the HSM each. Throws HsmError `corrupt` for a row that somebody edited. */
  async list(): Promise<readonly ListedKey[]> {
    const rows = await this.#store.listKeys();
    for (const row of rows) await this.#verify(row);
    return rows;
  }

  /**
   * Has a data key seal no more; what it sealed it still opens. Processes that seal make its successor by themselves, each at its next lease or within a minute, so no call fails for it. Of a key that
   * seals no more already nothing is changed. @returns whether this call retired it.
   *
   * Throws HsmError `not_found` for a key that there is not, `corrupt` for an edited row.
   */
  async retire(domain: string, version: number): Promise<boolean> {
    for (;;) {
      const row = (await this.#store.listKeys()).find((key) => key.kind === 'data' && key.domain === domain && key.version === version);
      if (row === undefined) throw new HsmError('not_found', 'there is no such key');
      await this.#verify(row);
      if (row.state !== 'active') return false;
      const { leasedSeals: _, ...key } = row;
      const retired: KeyRow = { ...key, state: 'retired', rowVersion: row.rowVersion + 1 };
      // False: somebody else changed it meanwhile. It is looked at again.
      if (await this.#store.replaceKey({ ...retired, mac: await this.#control.mac(macInput(retired)) })) return true;
    }
  }

  async #verify(row: KeyRow): Promise<void> {
    const mac = await this.#control.mac(macInput(row));
    if (row.mac.length !== mac.length || !timingSafeEqual(row.mac, mac)) throw new HsmError('corrupt', 'a key registry row was edited');
  }
}
