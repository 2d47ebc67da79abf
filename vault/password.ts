/**
 * Passwords of people: Argon2id (RFC 9106), kept as a PHC string with the parameters that it was made with, so that they can grow. The function is OpenSSL's, by
 * `node:crypto` (docs/decisions/0055).
 */
import { argon2, randomBytes, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import { VaultError } from './errors.ts';

export interface Argon2Cost {
  /** KiB. */
  readonly memory: number;
  readonly passes: number;
  readonly lanes: number;
}

/** RFC 9106 section 4, the second recommended option: 64 MiB, three passes; with one lane, as a login is one thread's work here. */
export const presentCost: Argon2Cost = { memory: 65_536, passes: 3, lanes: 1 };
const saltBytes = 16;
const tagBytes = 32;
/** Each takes the memory of its cost: so many at once, and so many that wait. */
const atOnce = 2;
const mostWaiting = 16;

const derive = promisify(argon2);
let running = 0;
const waiting: (() => void)[] = [];

/** A PHC string: `$argon2id$v=19$m=65536,t=3,p=1$<salt>$<tag>`. `password` is only read. @throws VaultError `overloaded` where too many wait. */
export async function hashPassword(password: Buffer, cost: Argon2Cost = presentCost): Promise<string> {
  const salt = randomBytes(saltBytes);
  const tag = await tagOf(password, salt, cost, tagBytes);
  return `$argon2id$v=19$m=${cost.memory},t=${cost.passes},p=${cost.lanes}$${base64(salt)}$${base64(tag)}`;
}

/**
 * Whether it is the password, in the time of one hash either way. `weak` where it was kept under a lower cost than the present one: whoever has the password then keeps it anew.
 *
 * @throws VaultError `overloaded` where too many wait; Error for a text that is no PHC string of ours.
 */
export async function checkPassword(kept: string, password: Buffer, present: Argon2Cost = presentCost): Promise<{ readonly right: boolean; readonly weak: boolean }> {
  const match = /^\$argon2id\$v=19\$m=(\d{1,8}),t=(\d{1,4}),p=(\d{1,3})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{11,86})$/u.exec(kept);
  if (match === null) throw new Error('a kept password has an unknown form');
  const cost: Argon2Cost = { memory: Number(match[1]), passes: Number(match[2]), lanes: Number(match[3]) };
  const expected = Buffer.from(match[5]!, 'base64');
  const tag = await tagOf(password, Buffer.from(match[4]!, 'base64'), cost, expected.length);
  return { right: timingSafeEqual(tag, expected), weak: cost.memory < present.memory || cost.passes < present.passes };
}

async function tagOf(password: Buffer, salt: Buffer, { memory, passes, lanes }: Argon2Cost, bytes: number): Promise<Buffer> {
  if (running >= atOnce) {
    if (waiting.length >= mostWaiting) throw new VaultError('overloaded');
    // Whoever ends hands its place on.
    await new Promise<void>((go) => waiting.push(go));
  } else running += 1;
  try {
    return await derive('argon2id', { message: password, nonce: salt, parallelism: lanes, tagLength: bytes, memory, passes });
  } finally {
    const next = waiting.shift();
    if (next === undefined) running -= 1;
    else next();
  }
}

function base64(bytes: Buffer): string {
  return bytes.toString('base64').replaceAll('=', '');
}
