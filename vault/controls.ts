/**
 * What binds callers and people beside the policies and outlives every process: who is suspended, which tokens are decoys, who the operators are, and what they
 * decided. Kept as a chain of rows that are only added; the last row of a subject says what is in force.
 *
 * A database administrator must not lift a suspension or approve a change. Each row's hash covers all rows before it, and the HSM's control key authenticates it: an edited,
 * added or removed row is not believed. A tail that is cut off is a valid chain; who has seen a later row (this process, or an earlier one of this home by
 * its note) refuses it.
 */
import { createHash, timingSafeEqual } from 'node:crypto';

export type ControlKind = 'suspension' | 'honey_token' | 'operator' | 'change' | 'approval';

export interface Control {
  readonly kind: ControlKind;
  /** A SPIFFE id, `honeyMark`, a change's id, or what was approved. */
  readonly subject: string;
  /** `on` and `off` of suspensions, decoys and approvals; others have their own. */
  readonly state: string;
  /** Who or what made it so. */
  readonly madeBy: string;
  readonly madeAt: Date;
  /** JSON, at most 65,536 bytes; '' where the rest says all. Also '' for a reader that may not see it. */
  readonly data: string;
}

export interface ControlRow extends Control {
  /** From 1, without gaps. */
  readonly number: number;
  /** SHA-256 of `data`: 32 bytes. */
  readonly dataHash: Buffer;
  /** 32 bytes: SHA-256 over the hash before it and this row. */
  readonly hash: Buffer;
  /** 32 bytes: HMAC-SHA-256 of the hash under the control key. */
  readonly mac: Buffer;
}

export interface ControlStore {
  /** Whether rows come with their `data`. */
  readonly readsData: boolean;
  /** Rows from `number` on, in their order, at most `most`. Throws what the database throws. */
  from(number: number, most: number): Promise<readonly ControlRow[]>;
  /** False where a row of that number is there. Throws what the database throws, and then it may be there or not. */
  insert(row: ControlRow): Promise<boolean>;
}

/** HMAC-SHA-256 under the control key, in the HSM: 32 bytes. */
export interface ControlMac {
  mac(message: Uint8Array): Promise<Buffer>;
}

/** How far the chain was when it was last looked at. */
export interface ControlHead {
  readonly number: number;
  readonly hash: Buffer;
}

/** The rows are not what was written: somebody changed them. The message is one line for the operator. */
export class ControlsError extends Error {
  override readonly name = 'ControlsError';
}

export const noControls: ControlHead = { number: 0, hash: Buffer.alloc(32) };
const rowsARead = 1000;
const table = 'the table of controls (suspensions, operators, changes)';

export class Controls {
  readonly #store: ControlStore;
  readonly #control: ControlMac;
  readonly #known: ControlHead;
  readonly #moved: (head: ControlHead) => void;
  #head: ControlHead = noControls;
  /** The last row of each subject, by kind. */
  readonly #last = new Map<ControlKind, Map<string, Control>>();
  readonly #suspended = new Set<string>();
  readonly #honey = new Set<string>();
  /** Callers that this process holds back although no row says so yet. */
  readonly #held = new Set<string>();
  #turn: Promise<unknown> = Promise.resolve();

  /** `known`: the last row that an earlier process of this home noted. `moved` is told of each later one. */
  constructor(store: ControlStore, control: ControlMac, known: ControlHead = noControls, moved: (head: ControlHead) => void = () => undefined) {
    this.#store = store;
    this.#control = control;
    this.#known = known;
    this.#moved = moved;
  }

  get head(): ControlHead {
    return this.#head;
  }

  /** O(1), for every request. */
  isSuspended(spiffeId: string): boolean {
    return this.#suspended.has(spiffeId) || this.#held.has(spiffeId);
  }

  isHoney(tenantId: number, token: string): boolean {
    return this.#honey.size > 0 && this.#honey.has(honeyMark(tenantId, token));
  }

  get suspended(): readonly Control[] {
    return this.all('suspension').filter(({ state }) => state === 'on');
  }

  get honeyCount(): number {
    return this.#honey.size;
  }

  /** What is in force of a subject, as this process knows it. */
  get(kind: ControlKind, subject: string): Control | null {
    return this.#last.get(kind)?.get(subject) ?? null;
  }

  /** The last row of every subject, in the order of their first ones. */
  all(kind: ControlKind): readonly Control[] {
    return [...(this.#last.get(kind)?.values() ?? [])];
  }

  /**
   * Takes over what others added. @returns the rows that are new to this process.
   *
   * @throws ControlsError where the rows are not the chain that was written, or end before what was seen: what is in force stays. Throws what the database or the HSM throws.
   */
  async read(): Promise<readonly ControlRow[]> {
    return await this.#inTurn(() => this.#read());
  }

  /** Adds a row unless its state is in force. Resolves once it is committed. @returns whether it was added by this call. @throws as `append`. */
  async add(control: Control): Promise<boolean> {
    const added = await this.append(() => ((this.get(control.kind, control.subject)?.state ?? 'off') === control.state ? null : control));
    if (added === null && control.kind === 'suspension') this.#held.delete(control.subject);
    return added !== null;
  }

  /**
   * Adds the row that `decide` makes of what is in force, or none for null. Resolves once it is committed. Whoever else adds meanwhile, `decide` is asked again: it sees every row before its own, so of two
   * processes that decide on one thing the second sees what the first one did.
   *
   * Where the insert gets no answer it may be there or not: the next read tells, and what stands there is not added twice as long as `decide` looks for it.
   *
   * @throws what `decide` throws; as `read`.
   */
  async append(decide: () => Control | null): Promise<Control | null> {
    return await this.#inTurn(async () => {
      for (;;) {
        await this.#read();
        const control = decide();
        if (control === null) return null;
        const number = this.#head.number + 1;
        const dataHash = sha256(control.data);
        const hash = hashOf(this.#head.hash, number, control, dataHash);
        const row: ControlRow = { ...control, number, dataHash, hash, mac: await this.#control.mac(macInput(hash)) };
        // False: another process was faster; what it added is read first.
        if (!(await this.#store.insert(row))) continue;
        this.#take(row);
        this.#moved(this.#head);
        return row;
      }
    });
  }

  /** Holds a caller back in this process at once, until the row of its suspension is there, and by it from then on. */
  holdBack(spiffeId: string): void {
    this.#held.add(spiffeId);
  }

  async #read(): Promise<readonly ControlRow[]> {
    const added: ControlRow[] = [];
    for (;;) {
      // The last row that is known is read again: one that is gone, or another, means that the chain was cut.
      const from = this.#head.number;
      const rows = await this.#store.from(Math.max(1, from), rowsARead);
      const fresh = from === 0 ? rows : rows.slice(1);
      if (from > 0 && rows[0]?.hash.equals(this.#head.hash) !== true) throw new ControlsError(`${table} was put back or edited`);
      let head = this.#head;
      for (const row of fresh) {
        const hash = hashOf(head.hash, head.number + 1, row, row.dataHash);
        const whole = !this.#store.readsData || sha256(row.data).equals(row.dataHash);
        if (row.number !== head.number + 1 || !hash.equals(row.hash) || !whole) throw new ControlsError(`${table} was edited at row ${head.number + 1}`);
        head = { number: row.number, hash };
        if (row.number === this.#known.number && !hash.equals(this.#known.hash)) throw new ControlsError(`${table} is another than the one that this vault saw, at row ${row.number}`);
      }
      const last = fresh.at(-1);
      if (last === undefined) break;
      // One call of the HSM vouches for all rows before it.
      const mac = await this.#control.mac(macInput(last.hash));
      if (last.mac.length !== mac.length || !timingSafeEqual(last.mac, mac)) throw new ControlsError(`${table} was edited at row ${last.number}`);
      for (const row of fresh) this.#take(row);
      added.push(...fresh);
      if (rows.length < rowsARead) break;
    }
    if (added.length > 0 && this.#head.number > this.#known.number) this.#moved(this.#head);
    if (this.#head.number < this.#known.number) throw new ControlsError(`${table} ends at row ${this.#head.number}, and this vault has seen row ${this.#known.number}`);
    return added;
  }

  #take(row: ControlRow): void {
    this.#head = { number: row.number, hash: row.hash };
    let last = this.#last.get(row.kind);
    if (last === undefined) this.#last.set(row.kind, (last = new Map<string, Control>()));
    last.set(row.subject, row);
    const inForce = row.kind === 'suspension' ? this.#suspended : row.kind === 'honey_token' ? this.#honey : null;
    if (row.kind === 'suspension') this.#held.delete(row.subject);
    if (row.state === 'on') inForce?.add(row.subject);
    else inForce?.delete(row.subject);
  }

  /** One after the other: each begins where the one before ended. */
  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work, work);
    this.#turn = turn.catch(() => undefined);
    return await turn;
  }
}

/** What a decoy is kept as, 64 hex digits: whoever reads the rows does not learn which token to leave alone. */
export function honeyMark(tenantId: number, token: string): string {
  return sha256(`cofre/honey/v1\0${tenantId}\0${token}`).toString('hex');
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text, 'utf8').digest();
}

function hashOf(previous: Buffer, number: number, { kind, subject, state, madeBy, madeAt }: Control, dataHash: Buffer): Buffer {
  return sha256(JSON.stringify(['cofre/control-row/v1', previous.toString('hex'), number, kind, subject, state, madeBy, madeAt.toISOString(), dataHash.toString('hex')]));
}

function macInput(hash: Buffer): Buffer {
  return Buffer.concat([Buffer.from('cofre/controls/v1\0', 'utf8'), hash]);
}
