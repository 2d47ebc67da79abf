// Sessions of one token: one operation a session at a time, a bound on how many, deadlines, and recovery when the token loses us.
import { setTimeout as sleep } from 'node:timers/promises';
import { HsmError } from './errors.ts';
import { CKA, faultOf, findOne, findSlot, initialize, login, openSession, readFlag, CKO, returnValueOf } from './pkcs11.ts';
import type { Handle, Pkcs11Module, SessionRef } from './pkcs11.ts';

/**
 * Where the PIN comes from. One that the token refuses is not tried again in this process, lest the token lock it.
 * A Buffer stays the caller's, unwiped for the pool's life; a function is asked at each log-in, and the pool wipes its answer.
 */
export type Pin = Buffer | (() => Buffer | Promise<Buffer>);

/** What the pool tells of itself. `since` is when `ok` last changed, by the clock on the wall; `awayMs` is 0 while `ok`, and no clock that is set changes it. */
export interface HsmHealth {
  readonly ok: boolean;
  readonly since: Date;
  readonly awayMs: number;
}

/** One line for operators: an event's name and numbers or constant words, never labels, bytes or PINs. */
export interface HsmLog {
  info(event: string, fields: Readonly<Record<string, string | number | boolean>>): void;
  warn(event: string, fields: Readonly<Record<string, string | number | boolean>>): void;
}

/** What is asked of the HSM, as metrics name it. `find` is a look-up of a key alone; `log_in` blocks the event loop. */
export type HsmOperation = 'find' | 'encrypt' | 'decrypt' | 'hmac' | 'sign' | 'make' | 'destroy' | 'probe' | 'log_in';

/** Told how long each call took in the HSM, without the wait for a session, whatever came of it. Must not throw. */
export type HsmCallObserver = (operation: HsmOperation, durationMs: number) => void;

/** A session that is yours until your operation ends. Never use it for two operations at once, nor afterwards. */
export interface Session extends SessionRef {
  /** The handle of the one object with that label, remembered until sessions are lost. Refuses a secret or private key that could leave the token. */
  key(objectClass: number, label: string): Handle;
}

export interface SessionPoolOptions {
  readonly module: Pkcs11Module;
  readonly tokenLabel: string;
  readonly pin: Pin;
  /** A real operation with a real key, cheap: it decides whether the token works. Run at opening, after each recovery, and every `probeMs`. */
  readonly probe: (session: Session) => Promise<unknown>;
  readonly now: () => Date;
  /** Milliseconds of a clock that nobody sets, as `performance.now()`, the default: how long the token has been away is measured by it. */
  readonly monotonicMs?: () => number;
  /** Sessions for operations, besides the idle one that keeps the login alive. Each call takes one of libuv's threads: docker/find-node.js has room for the default and the probe, beside what else needs some. */
  readonly size?: number;
  /** How long a caller waits for a free session, in ms. */
  readonly waitMs?: number;
  /** How long one operation may take, in ms. */
  readonly callMs?: number;
  /** Time between probes, in ms. */
  readonly probeMs?: number;
  /** Least time between two attempts to recover, in ms: they block the event loop while they last. */
  readonly recoveryPauseMs?: number;
  readonly log?: HsmLog;
  readonly observe?: HsmCallObserver;
}

const defaults = { observe: noop, monotonicMs: () => performance.now(), size: 8, waitMs: 2_000, callMs: 5_000, probeMs: 5_000, recoveryPauseMs: 1_000 } as const;

// A Cryptoki library has one state per process: C_Finalize by one pool ends every pool's calls, and during a call it may crash the process.
interface ModuleUse {
  pools: number;
  calls: number;
}
const moduleUses = new WeakMap<Pkcs11Module, ModuleUse>();

function useOf(module: Pkcs11Module): ModuleUse {
  let use = moduleUses.get(module);
  if (use === undefined) {
    use = { pools: 0, calls: 0 };
    moduleUses.set(module, use);
  }
  return use;
}

/** Everything that a loss of the token invalidates, replaced as a whole at each recovery. */
class Generation {
  readonly slot: Handle;
  /** Stays open and unused: the last session to close would log the application out (PKCS#11 v2.40 section 5.6, C_CloseSession). */
  readonly anchor: Handle;
  readonly idle: Handle[] = [];
  readonly handles = new Map<string, Handle>();
  lost = false;

  constructor(slot: Handle, anchor: Handle) {
    this.slot = slot;
    this.anchor = anchor;
  }
}

/** Tries at opening, and the pause between them, in ms; the second one comes at once. */
const triesAtOpening = 8;
const openingPauseMs = 150;

interface Waiter {
  resolve(): void;
  reject(error: HsmError): void;
  readonly timer: NodeJS.Timeout;
}

/**
 * A bounded set of logged-in sessions of one token.
 *
 * `run` is safe to call at any time and any number of times at once. Whatever the token does, each call of it settles within `waitMs` + twice `callMs`, plus the
 * synchronous part of one recovery (PKCS#11 has no asynchronous C_OpenSession or C_Login: a module that blocks in them blocks the event loop).
 */
export class SessionPool {
  readonly #module: Pkcs11Module;
  readonly #use: ModuleUse;
  readonly #options: Required<Omit<SessionPoolOptions, 'log'>> & { readonly log: HsmLog | null };
  readonly #waiters: Waiter[] = [];
  #generation: Generation | null = null;
  #busy = 0; // operations that hold a place, those that hang included
  #hung = 0; // calls that outlived their deadline and have not ended
  #recovery: Promise<void> | null = null;
  #lastFailedRecovery = Number.NEGATIVE_INFINITY; // performance.now(), ms
  #lastRecoveryError: HsmError | null = null;
  #wrongPin = false;
  /** Since when the token does not answer, by `monotonicMs`; null while it does. */
  #awaySince: number | null;
  #since: Date;
  #probeTimer: NodeJS.Timeout | null = null;
  #probing = false;
  #closed = false;

  private constructor(options: SessionPoolOptions) {
    this.#module = options.module;
    this.#use = useOf(options.module);
    this.#options = { ...defaults, ...options, log: options.log ?? null };
    this.#since = options.now();
    this.#awaySince = this.#options.monotonicMs();
  }

  /**
   * Initializes the library, finds the token, logs in and probes it. Throws HsmError: `not_found` or `ambiguous` (token or probe key), `refused` (PIN),
   * `unavailable`; nothing stays open then.
   */
  static async open(options: SessionPoolOptions): Promise<SessionPool> {
    const pool = new SessionPool(options);
    pool.#use.pools += 1;
    try {
      await pool.#recover(null);
    } catch (error) {
      await pool.close();
      throw error;
    }
    pool.#probeTimer = setInterval(() => void pool.#probe(), pool.#options.probeMs);
    pool.#probeTimer.unref();
    return pool;
  }

  /** For how long the token has not answered, 0 while it does. Cheap enough for a hot path. */
  get awayMs(): number {
    return this.#awaySince === null ? 0 : this.#options.monotonicMs() - this.#awaySince;
  }

  health(): HsmHealth {
    return { ok: this.#awaySince === null, since: this.#since, awayMs: this.awayMs };
  }

  /**
   * Runs one operation on a session of its own and returns what it returns. Where the token has lost the session, the login or the handles, they are made
   * anew (once for all callers) and the operation runs a second time; `once: true` is for operations that must not run twice, such as making a key.
   *
   * `authenticates: true` says that the operation checks a tag: where the token only answers "general error" and a probe then finds it in good order, the
   * error is `corrupt` instead of `refused`.
   *
   * Bytes that come after the deadline are wiped, as nobody is left to do so.
   *
   * Throws HsmError `unavailable` (away, no session in time, no answer in time), `refused`, `corrupt`, and whatever HsmError the operation itself throws.
   */
  async run<T>(name: HsmOperation, operation: (session: Session) => Promise<T>, how: { readonly once?: boolean; readonly authenticates?: boolean } = {}): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      await this.#enter();
      let generation: Generation | null = null;
      let session: Handle | null = null;
      let failure: unknown;
      // Set once the deadline has passed: session and place are then given back when the call really ends, not here.
      let overdue = false;
      let calling = false;
      try {
        generation = await this.#ready();
        this.#use.calls += 1;
        calling = true;
        const handle = this.#take(generation);
        session = handle;
        const sessionOfIts = this.#sessionOf(generation, handle);
        const result = await this.#withDeadline(name, () => operation(sessionOfIts), () => {
          overdue = true;
          return () => {
            this.#use.calls -= 1;
            this.#closeSession(handle);
            this.#leave();
          };
        });
        this.#giveBack(generation, handle);
        return result;
      } catch (error) {
        failure = error;
        // After a failure the session may still hold half an operation: it is not used again.
        if (!overdue && session !== null) this.#closeSession(session);
      } finally {
        if (!overdue) {
          if (calling) this.#use.calls -= 1;
          this.#leave();
        }
      }

      if (overdue || generation === null) throw failure;
      const verdict = await this.#judge(generation, failure);
      if (verdict === 'lost' || verdict === 'session') {
        if (verdict === 'lost') generation.lost = true;
        if (attempt === 1 && how.once !== true) {
          this.#options.log?.warn('hsm_operation_retried', { rv: returnValueOf(failure) ?? 0, verdict });
          continue;
        }
        if (verdict === 'lost') this.#markAway();
        throw new HsmError('unavailable', 'the HSM lost the session', { cause: failure });
      }
      if (failure instanceof HsmError) throw failure;
      // The token is well and said nothing useful: once more, in case it was a passing fault, before anything is called corrupt.
      if (verdict === 'doubtful' && attempt === 1 && how.once !== true) continue;
      if (verdict === 'doubtful' && how.authenticates === true) throw new HsmError('corrupt', 'an encrypted value does not authenticate', { cause: failure });
      throw new HsmError('refused', 'the HSM refused the operation', { cause: failure });
    }
  }

  /**
   * Waits (at most `callMs`) for operations in flight and for a recovery, closes the sessions, and finalizes the library if this was its last pool. Further calls are refused. A recovery that lasts longer, for the PIN
   * perhaps, does the rest itself once it ends: before that the library is in its hands.
   */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#probeTimer !== null) clearInterval(this.#probeTimer);
    for (const waiter of this.#waiters.splice(0)) {
      clearTimeout(waiter.timer);
      waiter.reject(closedError());
    }
    const deadline = performance.now() + this.#options.callMs;
    while ((this.#busy > this.#hung || this.#recovery !== null) && performance.now() < deadline) await sleep(5);
    if (this.#recovery === null) this.#end();
    else void this.#recovery.catch(noop).then(() => this.#end());
  }

  #end(): void {
    this.#drop(this.#generation);
    this.#generation = null;
    this.#use.pools -= 1;
    if (this.#use.pools === 0 && this.#use.calls === 0) {
      try {
        this.#module.C_Finalize();
      } catch {
        // Nothing depends on it any more.
      }
    }
  }

  // ---- places and sessions

  async #ready(): Promise<Generation> {
    this.#refuseClosed();
    const generation = this.#generation;
    if (generation === null || generation.lost) await this.#recover(generation);
    if (this.#generation === null) throw new HsmError('unavailable', 'the HSM does not answer');
    return this.#generation;
  }

  // Each call that hangs holds one of libuv's few worker threads, which files and name look-ups need as well: no more are started.
  #stuck(): boolean {
    return this.#hung >= Math.max(1, Math.floor(this.#options.size / 2));
  }

  async #enter(): Promise<void> {
    const { size, waitMs } = this.#options;
    if (this.#stuck()) throw new HsmError('unavailable', 'the HSM does not answer: its calls hang');
    if (this.#busy >= size) {
      // The place is handed over by #leave, which keeps #busy as it is.
      await new Promise<void>((resolve, reject) => {
        const waiter: Waiter = {
          resolve,
          reject,
          timer: setTimeout(() => {
            this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
            reject(new HsmError('unavailable', 'no HSM session became free in time'));
          }, waitMs),
        };
        this.#waiters.push(waiter);
      });
    } else {
      this.#busy += 1;
    }
  }

  #leave(): void {
    const next = this.#waiters.shift();
    if (next === undefined) {
      this.#busy -= 1;
    } else {
      clearTimeout(next.timer);
      next.resolve();
    }
  }

  #take(generation: Generation): Handle {
    return generation.idle.pop() ?? openSession(this.#module, generation.slot);
  }

  #giveBack(generation: Generation, session: Handle): void {
    if (generation === this.#generation && !generation.lost && !this.#closed) generation.idle.push(session);
    else this.#closeSession(session);
  }

  #closeSession(session: Handle): void {
    try {
      this.#module.C_CloseSession(session);
    } catch {
      // It was gone already.
    }
  }

  #drop(generation: Generation | null): void {
    if (generation === null) return;
    generation.lost = true;
    for (const session of generation.idle.splice(0)) this.#closeSession(session);
    this.#closeSession(generation.anchor);
  }

  #sessionOf(generation: Generation, handle: Handle): Session {
    const module = this.#module;
    const session: Session = {
      module,
      handle,
      key(objectClass, label) {
        const name = `${objectClass}:${label}`;
        const known = generation.handles.get(name);
        if (known !== undefined) return known;
        const found = findOne(session, objectClass, label);
        if (objectClass !== CKO.PUBLIC_KEY && (readFlag(session, found, CKA.SENSITIVE) !== true || readFlag(session, found, CKA.EXTRACTABLE) !== false)) {
          throw new HsmError('refused', 'a key in the HSM could be read out of it');
        }
        generation.handles.set(name, found);
        return found;
      },
    };
    return session;
  }

  /** Makes the call and awaits it for at most `callMs`. Past that, `onOverdue` is asked for what is left to do when the call ends after all, if ever. */
  async #withDeadline<T>(name: HsmOperation, operation: () => Promise<T>, onOverdue: () => () => void): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const began = performance.now();
    try {
      const call = operation();
      const deadline = new Promise<never>((_resolve, reject) => {
        timer = setTimeout(() => {
          this.#hung += 1;
          const finish = onOverdue();
          void this.#whenSettled(call, finish);
          this.#markAway();
          this.#options.log?.warn('hsm_call_overdue', { hung: this.#hung });
          reject(new HsmError('unavailable', 'the HSM did not answer in time'));
        }, this.#options.callMs);
      });
      return await Promise.race([call, deadline]);
    } finally {
      clearTimeout(timer);
      this.#options.observe(name, performance.now() - began);
    }
  }

  async #whenSettled(call: Promise<unknown>, finish: () => void): Promise<void> {
    try {
      const late = await call;
      // A key or a card, perhaps, which nobody is left to wipe.
      if (late instanceof Uint8Array) late.fill(0);
    } catch {
      // Whoever waited for it was told long ago.
    }
    this.#hung -= 1;
    finish();
  }

  // ---- what a failure means

  async #judge(generation: Generation, failure: unknown): Promise<'lost' | 'session' | 'doubtful' | 'call'> {
    // SoftHSM2 whose token directory is gone finds no objects and reports no error.
    const doubtful = failure instanceof HsmError ? failure.kind === 'not_found' : faultOf(failure) === 'doubtful';
    if (!doubtful) {
      if (failure instanceof HsmError) return 'call';
      const fault = faultOf(failure);
      return fault === 'lost' || fault === 'session' ? fault : 'call';
    }
    if (generation !== this.#generation || generation.lost) return 'lost';
    try {
      await this.#probeOn(generation);
      return 'doubtful';
    } catch (error) {
      this.#options.log?.warn('hsm_probe_failed', { rv: returnValueOf(error) ?? 0 });
      return 'lost';
    }
  }

  async #probeOn(generation: Generation): Promise<void> {
    const handle = openSession(this.#module, generation.slot);
    let overdue = false;
    const finish = (): void => {
      this.#use.calls -= 1;
      this.#closeSession(handle);
    };
    this.#use.calls += 1;
    try {
      await this.#withDeadline('probe', () => this.#options.probe(this.#sessionOf(generation, handle)), () => {
        overdue = true;
        return finish;
      });
    } finally {
      if (!overdue) finish();
    }
  }

  // ---- health

  async #probe(): Promise<void> {
    if (this.#closed || this.#probing || this.#stuck()) return;
    this.#probing = true;
    try {
      const generation = this.#generation;
      if (generation === null || generation.lost) {
        await this.#recover(generation);
      } else {
        await this.#probeOn(generation);
        this.#markBack();
      }
    } catch (error) {
      if (this.#generation !== null) this.#generation.lost = true;
      // The next try recovers at once where the loss is new; a token that is away is tried again at each probe.
      await this.#recover(this.#generation).catch(noop);
      if (this.#awaySince === null && this.#generation?.lost !== false) this.#markAway();
      this.#options.log?.warn('hsm_probe_failed', { rv: returnValueOf(error) ?? 0 });
    } finally {
      this.#probing = false;
    }
  }

  #markAway(): void {
    if (this.#awaySince !== null) return;
    this.#awaySince = this.#options.monotonicMs();
    this.#since = this.#options.now();
    this.#options.log?.warn('hsm_away', {});
  }

  #markBack(): void {
    if (this.#awaySince === null) return;
    this.#awaySince = null;
    this.#since = this.#options.now();
    this.#options.log?.info('hsm_back', {});
  }

  // ---- recovery

  /** Makes a new generation in place of `seen`. Concurrent calls share one attempt; a failed one is not repeated within `recoveryPauseMs`. */
  #recover(seen: Generation | null): Promise<void> {
    if (this.#closed) return Promise.reject(closedError());
    if (this.#generation !== seen && this.#generation !== null && !this.#generation.lost) return Promise.resolve();
    if (this.#recovery !== null) return this.#recovery;
    if (this.#wrongPin) return Promise.reject(new HsmError('refused', 'the HSM refused the PIN: not tried again, lest it be locked'));
    if (performance.now() - this.#lastFailedRecovery < this.#options.recoveryPauseMs) {
      return Promise.reject(this.#lastRecoveryError ?? new HsmError('unavailable', 'the HSM does not answer'));
    }
    this.#recovery = this.#reopen().finally(() => {
      this.#recovery = null;
    });
    return this.#recovery;
  }

  async #reopen(): Promise<void> {
    const first = this.#generation === null && this.#lastRecoveryError === null;
    this.#drop(this.#generation);
    this.#generation = null;
    try {
      await this.#beginAnew(first);
      this.#lastRecoveryError = null;
      this.#options.log?.info(first ? 'hsm_opened' : 'hsm_recovered', {});
      this.#markBack();
    } catch (cause) {
      this.#markAway();
      this.#lastFailedRecovery = performance.now();
      const error = this.#recoveryError(cause, first);
      this.#lastRecoveryError = error;
      throw error;
    }
  }

  /**
   * A library that lost its token altogether (SoftHSM2 whose directory went and came back, a restarted client daemon) sees it again only after it was
   * finalized. That ends every session in the process, and during a call it may crash it: it waits until no call is under way anywhere.
   *
   * At opening there are some more tries: SoftHSM2 empties a token's file before it writes it anew, which it does at each login of any process, and who reads it in that
   * moment sees no such token, or cannot log in. Later on the probe tries again by itself.
   */
  async #beginAnew(first: boolean): Promise<void> {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#begin();
      } catch (error) {
        if (this.#wrongPin || (error instanceof HsmError && error.kind === 'sealed')) throw error;
        if (tries >= (first && !(error instanceof HsmError && error.kind === 'ambiguous') ? triesAtOpening : 2)) throw error;
        if (this.#closed || (first && this.#use.pools > 1)) throw error;
        if (tries > 1) await sleep(openingPauseMs);
        const deadline = performance.now() + this.#options.callMs;
        while (this.#use.calls > 0 && performance.now() < deadline) await sleep(2);
        if (this.#closed || this.#use.calls > 0) throw error;
        try {
          this.#module.C_Finalize();
        } catch {
          // It was not initialized: that may have been all.
        }
      }
    }
  }

  // At opening the reason matters to whoever configures it; later on every reason is the HSM being away.
  #recoveryError(cause: unknown, first: boolean): HsmError {
    if (this.#wrongPin) return new HsmError('refused', 'the HSM refused the PIN', { cause });
    if (cause instanceof HsmError && (first || cause.kind === 'sealed')) return cause;
    return new HsmError('unavailable', 'the HSM does not answer', { cause });
  }

  async #begin(): Promise<void> {
    initialize(this.#module);
    const slot = findSlot(this.#module, this.#options.tokenLabel);
    const anchor = openSession(this.#module, slot);
    const generation = new Generation(slot, anchor);
    try {
      const { pin } = this.#options;
      const value = typeof pin === 'function' ? await pin() : pin;
      const began = performance.now();
      try {
        this.#refuseClosed();
        login({ module: this.#module, handle: anchor }, value);
      } catch (error) {
        if (faultOf(error) === 'pin') this.#wrongPin = true;
        throw error;
      } finally {
        this.#options.observe('log_in', performance.now() - began);
        if (typeof pin === 'function') value.fill(0);
      }
      await this.#probeOn(generation);
      // Whoever closed has waited for this or will be waited for; nobody wants these sessions.
      this.#refuseClosed();
    } catch (error) {
      this.#drop(generation);
      throw error;
    }
    this.#generation = generation;
  }

  #refuseClosed(): void {
    if (this.#closed) throw closedError();
  }
}

function closedError(): HsmError {
  return new HsmError('unavailable', 'the HSM sessions are closed');
}

function noop(): void {}
