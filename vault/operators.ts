/**
 * The people who run the vault: who they are, and that it is they. An operator is a SPIFFE id of a client certificate, with a password and a one-time code beside it; what each may do, the policies say.
 *
 * Who they are stands in the chain of controls (vault/controls.ts), so nobody makes an operator or gives one another password in the database. An operator begins with an invitation: a code that is shown once,
 * which the person turns into a password and the secret of an authenticator over a connection with the own certificate.
 */
import { createCipheriv, createDecipheriv, createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Pool } from 'pg';
import type { Caller } from './caller.ts';
import type { Control, ControlMac, Controls } from './controls.ts';
import { VaultError } from './errors.ts';
import { checkPassword, hashPassword, presentCost } from './password.ts';
import type { Argon2Cost } from './password.ts';
import { acceptedStep, base32, totpUri } from './totp.ts';

/** `invited`: may enrol. `enrolled`: has a password and a secret, and has not yet shown a code. */
export type OperatorState = 'invited' | 'enrolled' | 'active' | 'disabled';

export interface OperatorsOptions {
  readonly controls: Controls;
  readonly control: ControlMac;
  /** As the role `admin`. */
  readonly db: Pick<Pool, 'query'>;
  readonly now: () => Date;
  readonly cost?: Argon2Cost;
}

interface InvitedData {
  /** SHA-256 of the code, in hex. */
  readonly code: string;
  readonly expires: string;
}

interface EnrolledData {
  /** PHC string. */
  readonly password: string;
  /** The authenticator's secret under a key that the HSM derives: nonce, ciphertext, tag, in base64. */
  readonly seed: string;
}

const seedBytes = 20;
const invitationMs = 24 * 3_600_000;
/** Tries in a row that may fail. */
const mostFailures = 5;
/** The first lockout, in seconds; each further failure doubles it, up to a day. */
const lockSeconds = 900;
export const passwordBytes = { least: 12, most: 1024 } as const;

/** Why a login was refused, for the log: the answer is the same for all. */
type Why = 'not_an_operator' | 'locked' | 'password' | 'code';

export class Operators {
  readonly #options: OperatorsOptions;
  readonly #cost: Argon2Cost;

  constructor(options: OperatorsOptions) {
    this.#options = options;
    this.#cost = options.cost ?? presentCost;
  }

  get list(): readonly { readonly operator: string; readonly state: OperatorState; readonly since: Date }[] {
    return this.#options.controls.all('operator').map(({ subject, state, madeAt }) => ({ operator: subject, state: state as OperatorState, since: madeAt }));
  }

  stateOf(spiffeId: string): OperatorState | null {
    return (this.#options.controls.get('operator', spiffeId)?.state as OperatorState | undefined) ?? null;
  }

  /** Makes somebody an operator, or lets one enrol anew: the old password and secret serve no more. @returns the code, 26 characters, which is kept nowhere; it serves once, for a day. */
  async invite(operator: string, madeBy: string): Promise<{ readonly code: string; readonly expiresAt: Date }> {
    const { controls, now } = this.#options;
    const code = base32(randomBytes(16));
    const expiresAt = new Date(now().getTime() + invitationMs);
    const data: InvitedData = { code: hashOf(code), expires: expiresAt.toISOString() };
    await controls.append(() => ({ kind: 'operator', subject: operator, state: 'invited', madeBy, madeAt: now(), data: JSON.stringify(data) }));
    await this.#forgetTries(operator);
    return { code, expiresAt };
  }

  /** @throws VaultError `invalid_request` where there is no such operator, or fewer than two would be left: they could decide nothing any more. */
  async disable(operator: string, madeBy: string): Promise<void> {
    await this.#options.controls.append(() => {
      const state = this.stateOf(operator);
      if (state === null || this.list.filter((other) => other.state === 'active' && other.operator !== operator).length < 2) throw new VaultError('invalid_request');
      return state === 'disabled' ? null : { kind: 'operator', subject: operator, state: 'disabled', madeBy, madeAt: this.#options.now(), data: '' };
    });
  }

  /**
   * Turns an invitation into a password and a secret, which is answered this once. Both serve from the first login on that shows a code; until then the invitation may be used again, should the answer be lost. `password` is only read.
   *
   * @throws VaultError `not_authorized` for a code that does not serve, `invalid_request` for a password that is too short or long.
   */
  async enrol({ spiffeId }: Caller, code: string, password: Buffer): Promise<{ readonly secret: string; readonly uri: string }> {
    const { controls, now } = this.#options;
    if (password.length < passwordBytes.least || password.length > passwordBytes.most) throw new VaultError('invalid_request');
    const invited = (): void => {
      if (!invitationServes(controls.get('operator', spiffeId), code, now())) throw new VaultError('not_authorized', { facts: { detail: { why: 'invitation' } } });
    };
    await controls.read();
    invited();
    const seed = randomBytes(seedBytes);
    try {
      const kept = await hashPassword(password, this.#cost);
      const sealed = await this.#sealSeed(spiffeId, seed);
      await controls.append(() => {
        // Another enrolment, or a new invitation, may have come meanwhile.
        invited();
        const before = dataOf(controls.get('operator', spiffeId)!) as InvitedData;
        return { kind: 'operator', subject: spiffeId, state: 'enrolled', madeBy: spiffeId, madeAt: now(), data: JSON.stringify({ password: kept, seed: sealed, code: before.code, expires: before.expires } satisfies EnrolledData & InvitedData) };
      });
      await this.#forgetTries(spiffeId);
      return { secret: base32(seed), uri: totpUri(seed, spiffeId) };
    } finally {
      seed.fill(0);
    }
  }

  /**
   * Whether these are the operator's password and a code that has not served. `password` is only read.
   *
   * The caller is who the certificate says: that one is no operator, or is locked out, is refused before anything is hashed, or any client of the listener could keep the few hashes busy that may run at once.
   * A try is counted before it is looked at, so that many at once are no more tries than the limit. A crash in between leaves it counted.
   * @throws VaultError `not_authorized`, with the reason for the log alone; `overloaded`.
   */
  async logIn({ spiffeId }: Caller, password: Buffer, code: string): Promise<void> {
    const { controls, now } = this.#options;
    await controls.read();
    const control = controls.get('operator', spiffeId);
    if (control === null || (control.state !== 'active' && control.state !== 'enrolled')) throw refused('not_an_operator');
    const lastStep = await this.#countTry(spiffeId);
    if (lastStep === null) throw refused('locked');
    const kept = dataOf(control) as EnrolledData;
    const { right, weak } = await checkPassword(kept.password, password, this.#cost);
    const seed = await this.#openSeed(spiffeId, kept.seed);
    const step = acceptedStep(seed, code, now(), lastStep);
    seed.fill(0);
    if (!right) throw refused('password');
    // Of two logins with one code the second finds its step taken.
    if (step === null || !(await this.#acceptStep(spiffeId, step))) throw refused('code');
    if (control.state === 'active' && !weak) return;
    const keptAnew = weak ? await hashPassword(password, this.#cost) : kept.password;
    await controls.append(() => {
      // What somebody else made of the operator meanwhile stands: a login does not undo it.
      if (controls.get('operator', spiffeId) !== control) throw refused('not_an_operator');
      return { kind: 'operator', subject: spiffeId, state: 'active', madeBy: spiffeId, madeAt: now(), data: JSON.stringify({ password: keptAnew, seed: kept.seed } satisfies EnrolledData) };
    });
  }

  /** @returns the step of the last code that was accepted; null where the operator is locked out. */
  async #countTry(operator: string): Promise<number | null> {
    const { rows } = await this.#options.db.query<{ last_step: string }>({
      name: 'count-operator-try',
      text: `INSERT INTO operator_logins AS l (operator, failures) VALUES ($1, 1)
             ON CONFLICT (operator) DO UPDATE SET failures = l.failures + 1,
               locked_until = CASE WHEN l.failures + 1 < $3 THEN NULL ELSE $2::timestamptz + least(86400, $4 * 2 ^ least(10, l.failures + 1 - $3)) * interval '1 second' END
             WHERE l.locked_until IS NULL OR l.locked_until <= $2
             RETURNING last_step`,
      values: [operator, this.#options.now(), mostFailures, lockSeconds],
    });
    return rows[0] === undefined ? null : Number(rows[0].last_step);
  }

  async #acceptStep(operator: string, step: number): Promise<boolean> {
    const { rowCount } = await this.#options.db.query({ name: 'accept-operator-step', text: 'UPDATE operator_logins SET last_step = $2, failures = 0, locked_until = NULL WHERE operator = $1 AND last_step < $2', values: [operator, step] });
    return rowCount === 1;
  }

  /** A new secret has codes of its own, and a new person no failures. */
  async #forgetTries(operator: string): Promise<void> {
    await this.#options.db.query({ text: 'DELETE FROM operator_logins WHERE operator = $1', values: [operator] });
  }

  /** 32 bytes that only the HSM can make, for one operator. */
  async #seedKey(operator: string): Promise<Buffer> {
    return await this.#options.control.mac(Buffer.from(`cofre/operator-seed/v1\0${operator}`, 'utf8'));
  }

  async #sealSeed(operator: string, seed: Buffer): Promise<string> {
    const key = await this.#seedKey(operator);
    const nonce = randomBytes(12);
    const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(Buffer.from(operator, 'utf8'));
    const sealed = Buffer.concat([nonce, cipher.update(seed), cipher.final(), cipher.getAuthTag()]);
    key.fill(0);
    return sealed.toString('base64');
  }

  async #openSeed(operator: string, text: string): Promise<Buffer> {
    const sealed = Buffer.from(text, 'base64');
    const key = await this.#seedKey(operator);
    const decipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(0, 12), { authTagLength: 16 }).setAAD(Buffer.from(operator, 'utf8')).setAuthTag(sealed.subarray(-16));
    key.fill(0);
    return Buffer.concat([decipher.update(sealed.subarray(12, -16)), decipher.final()]);
  }
}

function invitationServes(control: Control | null, code: string, now: Date): boolean {
  if (control === null || (control.state !== 'invited' && control.state !== 'enrolled')) return false;
  const invited = dataOf(control) as InvitedData;
  return new Date(invited.expires) > now && timingSafeEqual(Buffer.from(hashOf(code), 'latin1'), Buffer.from(invited.code, 'latin1'));
}

/** Our own JSON, under the chain's hash. */
function dataOf({ data }: Control): unknown {
  return JSON.parse(data);
}

function hashOf(code: string): string {
  return createHash('sha256').update(`cofre/operator-invitation/v1\0${code}`, 'utf8').digest('hex');
}

function refused(why: Why): VaultError {
  return new VaultError('not_authorized', { facts: { detail: { why } } });
}
