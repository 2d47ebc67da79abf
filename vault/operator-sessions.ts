/**
 * Sessions of operators: short, bound to the certificate that logged in, revocable. A session's token carries a MAC by the HSM's control key, and a row says that it is
 * open: a row that somebody writes into the database opens nothing, and one that is taken out ends a session.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { Pool } from 'pg';
import type { Caller } from './caller.ts';
import type { ControlMac } from './controls.ts';

export interface SessionLimits {
  /** Since its last use. */
  readonly idleMs: number;
  /** Since it was opened. */
  readonly longestMs: number;
}

export interface OpenedSession {
  /** 75 characters of base64url: 16 bytes of id, 8 of its end in ms, 32 of MAC. */
  readonly token: string;
  readonly expiresAt: Date;
}

const idBytes = 16;
const bodyBytes = idBytes + 8;
const macBytes = 32;

export class OperatorSessions {
  readonly #db: Pick<Pool, 'query'>;
  readonly #control: ControlMac;
  readonly #limits: SessionLimits;
  readonly #now: () => Date;

  constructor(db: Pick<Pool, 'query'>, control: ControlMac, limits: SessionLimits, now: () => Date) {
    this.#db = db;
    this.#control = control;
    this.#limits = limits;
    this.#now = now;
  }

  async open(caller: Caller): Promise<OpenedSession> {
    const now = this.#now();
    const expiresAt = new Date(now.getTime() + this.#limits.longestMs);
    const body = Buffer.alloc(bodyBytes);
    randomBytes(idBytes).copy(body);
    body.writeBigInt64BE(BigInt(expiresAt.getTime()), idBytes);
    const mac = await this.#mac(body, caller);
    await this.#db.query({ text: 'INSERT INTO operator_sessions (id, operator, used_at, expires_at) VALUES ($1, $2, $3, $4)', values: [body.subarray(0, idBytes), caller.spiffeId, now, expiresAt] });
    // Those of anybody that are over: few, and looked for only here.
    await this.#db.query({ text: 'DELETE FROM operator_sessions WHERE expires_at < $1 OR used_at < $2', values: [now, new Date(now.getTime() - this.#limits.idleMs)] });
    return { token: Buffer.concat([body, mac]).toString('base64url'), expiresAt };
  }

  /** Whether the token is an open session of this caller's certificate; counts as a use of it. @throws what the database or the HSM throws. */
  async use(token: string, caller: Caller): Promise<boolean> {
    const body = await this.#bodyOf(token, caller);
    const now = this.#now();
    if (body === null || Number(body.readBigInt64BE(idBytes)) <= now.getTime()) return false;
    const { rowCount } = await this.#db.query({
      name: 'use-operator-session',
      text: 'UPDATE operator_sessions SET used_at = greatest(used_at, $3) WHERE id = $1 AND operator = $2 AND used_at >= $4',
      values: [body.subarray(0, idBytes), caller.spiffeId, now, new Date(now.getTime() - this.#limits.idleMs)],
    });
    return rowCount === 1;
  }

  /** Ends the session; another's or none is left alone. */
  async close(token: string, caller: Caller): Promise<void> {
    const body = await this.#bodyOf(token, caller);
    if (body !== null) await this.#db.query({ text: 'DELETE FROM operator_sessions WHERE id = $1 AND operator = $2', values: [body.subarray(0, idBytes), caller.spiffeId] });
  }

  /** Ends all of an operator. */
  async closeAll(operator: string): Promise<void> {
    await this.#db.query({ text: 'DELETE FROM operator_sessions WHERE operator = $1', values: [operator] });
  }

  async #bodyOf(token: string, caller: Caller): Promise<Buffer | null> {
    if (!/^[A-Za-z0-9_-]{75}$/u.test(token)) return null;
    const bytes = Buffer.from(token, 'base64url');
    // One text for a session, and no other that decodes to the same bytes.
    if (bytes.length !== bodyBytes + macBytes || bytes.toString('base64url') !== token) return null;
    const body = bytes.subarray(0, bodyBytes);
    return timingSafeEqual(bytes.subarray(bodyBytes), await this.#mac(body, caller)) ? body : null;
  }

  /** Covers whose it is and with which certificate. */
  async #mac(body: Buffer, { spiffeId, serial }: Caller): Promise<Buffer> {
    return await this.#control.mac(Buffer.concat([Buffer.from(`cofre/operator-session/v1\0${spiffeId}\0${serial}\0`, 'utf8'), body]));
  }
}
