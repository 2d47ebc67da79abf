/**
 * Changes that two people decide on: one asks for it and says why, another approves exactly what was asked, and then it is done. Each step is a row of the chain of
 * controls (vault/controls.ts), so that nobody approves in the database, and an entry of the log.
 *
 * If the process dies between the approval and the end of its work, the change stands as `approved`: either of the two runs it again, which every kind must bear.
 */
import { createHash, randomUUID } from 'node:crypto';
import type { Control, Controls } from './controls.ts';
import { VaultError } from './errors.ts';

/** What a change did, for its entry and whoever looks at it later: our own words and numbers. */
export type ChangeResult = Readonly<Record<string, string | number>>;

/** A kind of change. */
export interface ChangeKind<Params = unknown> {
  readonly kind: string;
  /** What a person reads of it. */
  readonly title: string;
  /** The parameters as they are kept and shown to the second person. @throws VaultError `invalid_request` for what cannot be meant. */
  parse(params: unknown): Params;
  /**
   * Does it. May be called again after a crash or a failure, and then does what is left. `once` is answered to whoever had it run, and kept nowhere.
   *
   * @throws VaultError; the change then stands as failed and may be run again.
   */
  run(params: Params, change: Change): Promise<{ readonly result: ChangeResult; readonly once?: Readonly<Record<string, string>> }>;
}

export type ChangeState = 'pending' | 'approved' | 'done' | 'failed' | 'refused' | 'expired';

export interface Change {
  readonly id: string;
  readonly kind: string;
  readonly params: unknown;
  readonly reason: string;
  readonly requestedBy: string;
  readonly requestedAt: string;
  readonly expiresAt: string;
  /** SHA-256 in hex of all that the second person decides on. */
  readonly digest: string;
  readonly state: ChangeState;
  readonly decidedBy?: string;
  readonly result?: ChangeResult;
}

type Kept = Omit<Change, 'id' | 'state'>;

export interface ChangesOptions {
  readonly controls: Controls;
  readonly kinds: readonly ChangeKind[];
  /** Whether somebody is an operator in good standing. */
  isActive(spiffeId: string): boolean;
  readonly now: () => Date;
}

const pendingMs = 24 * 3_600_000;
/** Of one person, that wait. */
const mostPending = 20;

export class Changes {
  readonly #options: ChangesOptions;
  readonly #kinds: ReadonlyMap<string, ChangeKind>;

  constructor(options: ChangesOptions) {
    this.#options = options;
    this.#kinds = new Map(options.kinds.map((kind) => [kind.kind, kind]));
  }

  get kinds(): readonly Pick<ChangeKind, 'kind' | 'title'>[] {
    return this.#options.kinds.map(({ kind, title }) => ({ kind, title }));
  }

  /** Newest first. */
  async list(): Promise<readonly Change[]> {
    await this.#options.controls.read();
    return this.#options.controls.all('change').map((control) => this.#changeOf(control)).toReversed();
  }

  async get(id: string): Promise<Change> {
    await this.#options.controls.read();
    const control = this.#options.controls.get('change', id);
    if (control === null) throw new VaultError('not_found');
    return this.#changeOf(control);
  }

  /** @throws VaultError `invalid_request` for an unknown kind or wrong parameters, `overloaded` where too many of this person wait. */
  async request(kind: string, params: unknown, reason: string, by: string): Promise<Change> {
    const known = this.#kinds.get(kind);
    if (known === undefined) throw new VaultError('invalid_request');
    const { controls, now } = this.#options;
    const at = now();
    const asked = { kind, params: known.parse(params), reason, requestedBy: by, requestedAt: at.toISOString(), expiresAt: new Date(at.getTime() + pendingMs).toISOString() };
    const id = randomUUID();
    const kept: Kept = { ...asked, digest: digestOf(id, asked) };
    const control = await controls.append(() => {
      const waiting = controls.all('change').map((other) => this.#changeOf(other)).filter((other) => other.state === 'pending' && other.requestedBy === by);
      if (waiting.length >= mostPending) throw new VaultError('overloaded');
      return { kind: 'change', subject: id, state: 'pending', madeBy: by, madeAt: at, data: JSON.stringify(kept) };
    });
    return this.#changeOf(control!);
  }

  /**
   * The second person's yes to what stands under this digest. It is not done yet: `run` does it.
   *
   * @throws VaultError `not_authorized` for the person who asked, and where that one is no operator any more; `invalid_request` for another digest; `change_decided` where it was decided or is too old; `not_found`.
   */
  async approve(id: string, digest: string, by: string): Promise<Change> {
    return await this.#decide(id, 'approved', by, (change) => {
      // A person who is not an operator any more has no say, not even an earlier one.
      if (change.requestedBy === by) throw refused('same_person');
      if (!this.#options.isActive(change.requestedBy)) throw refused('requester_inactive');
      if (change.digest !== digest) throw new VaultError('invalid_request', { facts: { detail: { why: 'digest' } } });
    });
  }

  /** Either person's no, or anybody else's who may approve. @throws as `approve`. */
  async refuse(id: string, by: string): Promise<Change> {
    return await this.#decide(id, 'refused', by, () => undefined);
  }

  /** Does what was approved, or what is left of it. Whoever approved or asked may have it run, for a day longer than it might wait. @throws VaultError `change_decided` where it is not approved, is done or is too old; `not_authorized` where one of both is no operator any more; what the kind throws. */
  async run(id: string, by: string): Promise<{ readonly change: Change; readonly once: Readonly<Record<string, string>> }> {
    const { controls, now } = this.#options;
    const change = await this.get(id);
    if (change.state !== 'approved' && change.state !== 'failed') throw new VaultError('change_decided');
    if (by !== change.decidedBy && by !== change.requestedBy) throw refused('neither_of_both');
    // What two people wanted is not done long afterwards, nor on the word of one who is no operator any more.
    if (new Date(change.expiresAt).getTime() + pendingMs < now().getTime()) throw new VaultError('change_decided');
    if (![change.requestedBy, change.decidedBy ?? ''].every((person) => this.#options.isActive(person))) throw refused('one_inactive');
    const kind = this.#kinds.get(change.kind);
    // Approved under another version of the vault.
    if (kind === undefined) throw new VaultError('invalid_request');
    let ran;
    try {
      ran = await kind.run(kind.parse(change.params), change);
    } catch (error) {
      const code = error instanceof VaultError ? error.code : 'internal';
      await this.#end(change, 'failed', by, { code });
      throw error;
    }
    const { result, once = {} } = ran;
    const control = await this.#end(change, 'done', by, result);
    return { change: this.#changeOf(control ?? controls.get('change', id) ?? { kind: 'change', subject: id, state: 'done', madeBy: by, madeAt: now(), data: JSON.stringify({ ...keptOf(change), result }) }), once };
  }

  async #end(change: Change, state: 'done' | 'failed', by: string, result: ChangeResult): Promise<Control | null> {
    const { controls, now } = this.#options;
    return await controls.append(() => {
      const current = controls.get('change', change.id);
      // Run twice at once: whoever is done first has said so.
      if (current === null || current.state === 'done') return null;
      return { kind: 'change', subject: change.id, state, madeBy: by, madeAt: now(), data: JSON.stringify({ ...keptOf(change), result }) };
    });
  }

  async #decide(id: string, state: 'approved' | 'refused', by: string, check: (change: Change) => void): Promise<Change> {
    const { controls, now } = this.#options;
    const control = await controls.append(() => {
      const current = controls.get('change', id);
      if (current === null) throw new VaultError('not_found');
      const change = this.#changeOf(current);
      check(change);
      if (change.state !== 'pending') throw new VaultError('change_decided');
      return { kind: 'change', subject: id, state, madeBy: by, madeAt: now(), data: JSON.stringify({ ...keptOf(change), decidedBy: by }) };
    });
    return this.#changeOf(control!);
  }

  #changeOf({ subject, state, data }: Control): Change {
    const kept = JSON.parse(data) as Kept;
    const expired = state === 'pending' && new Date(kept.expiresAt) <= this.#options.now();
    return { id: subject, ...kept, state: expired ? 'expired' : (state as ChangeState) };
  }
}

function keptOf({ id: _id, state: _state, ...kept }: Change): Kept {
  return kept;
}

function digestOf(id: string, asked: Omit<Kept, 'digest'>): string {
  return createHash('sha256').update(JSON.stringify(['cofre/change/v1', id, asked.kind, canonical(asked.params), asked.reason, asked.requestedBy, asked.requestedAt]), 'utf8').digest('hex');
}

/** With the members of every object in the order of their names: RFC 8785, for the plain values that parameters are. */
function canonical(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(canonical);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, member]) => [name, canonical(member)]));
}

function refused(why: string): VaultError {
  return new VaultError('not_authorized', { facts: { detail: { why } } });
}
