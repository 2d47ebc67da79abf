import { hkdfSync, randomBytes } from 'node:crypto';

/** How long tickets are made under one secret. */
export const ticketRotationMs = 3_600_000;

/** Of a secret that a primary process shares among its workers: what it is now, and how to have another made for all of them. */
export interface SharedSecret {
  readonly secret: Buffer;
  readonly ask: () => void;
}

/**
 * What the keys of session tickets are made from: random, in memory only. A process has its own, or that of its primary, so that a session is
 * resumed by whichever worker the client comes to next.
 */
export class TicketSecret {
  #secret: Buffer;
  readonly #ask: (() => void) | null;
  readonly #users: (() => void)[] = [];

  constructor(shared: SharedSecret | null = null) {
    this.#secret = shared?.secret ?? makeSecret();
    this.#ask = shared?.ask ?? null;
  }

  /** The 48 bytes that Node wants, for one listener: a ticket of one is good at no other. */
  keysOf(listener: string): Buffer {
    return Buffer.from(hkdfSync('sha256', this.#secret, '', `cofre/ticket-keys/v1/${listener}`, 48));
  }

  /** Calls `then` whenever the keys have changed. */
  onChange(then: () => void): void {
    this.#users.push(then);
  }

  /** Makes every ticket given out so far worthless: here at once, in other workers as soon as the primary has told them. */
  rotate(): void {
    this.take(makeSecret());
    this.#ask?.();
  }

  /** Uses this secret from now on, which then is no longer the giver's. */
  take(secret: Buffer): void {
    this.#secret.fill(0);
    this.#secret = secret;
    for (const then of this.#users) then();
  }
}

export function makeSecret(): Buffer {
  return randomBytes(32);
}
