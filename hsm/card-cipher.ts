// Seals and opens card numbers and cardholder names with AES-256-GCM (NIST SP 800-38D), each bound to its tenant, card, kind and key.
//
// A sealed value is  version (1) || key_id (4, big-endian) || nonce (12) || ciphertext || tag (16).
// Its AAD is         version (1) || kind (1) || key_id (4, big-endian) || tenant bytes (2, big-endian) || tenant (UTF-8) || card_id (16).
// Every field but the tenant has a fixed size and the tenant has its length before it: no two bindings give the same bytes.
//
// Plaintexts are padded, so that a stored length tells nothing: a PAN to 24 bytes (digits (1) || ASCII digits || zeros), a name to the next multiple of 32
// (bytes (2, big-endian) || UTF-8 || zeros).
import { createCipheriv, createDecipheriv, randomFillSync } from 'node:crypto';
import type { CipherGCMOptions, KeyObject } from 'node:crypto';
import type { Receipt } from '../audit/append.ts';
import { HsmError } from './errors.ts';
import { secretBytes } from './secret-bytes.ts';

export type SealedKind = 'pan' | 'name';

/** Whom a sealed value belongs to. `cardId` is 16 bytes. */
export interface Binding {
  readonly tenant: string;
  readonly cardId: Uint8Array;
}

/**
 * Seals and opens for one tenant. Both calls are synchronous in envelope custody while the key is in memory, promises otherwise: await them.
 *
 * `seal` returns a Buffer of the caller's: 57 bytes for a PAN (12 to 19 ASCII digits), 33 plus a multiple of 32 for a name (1 to 255 bytes of UTF-8). It only
 * reads the plaintext and wipes its own copies. Throws HsmError `refused` (wrong tenant or lengths), `exhausted` (no leased seal is left just now),
 * `store` (none could be leased) and `unavailable`.
 *
 * `open` redeems the receipt before it decrypts anything: no committed entry, no plaintext, and one entry opens a value once. It returns the plaintext without
 * padding in a Buffer that the caller owns and must wipe. Throws HsmError `corrupt` where the value is not exactly what was sealed for this kind, tenant and
 * card, `not_found` where its key is unknown or destroyed, `store` where its key could not be looked up, and `unavailable`; and what `receipt.redeem()` throws.
 */
export interface CardCipher {
  seal(kind: SealedKind, plaintext: Uint8Array, binding: Binding): Buffer | Promise<Buffer>;
  open(receipt: Receipt, kind: SealedKind, sealed: Uint8Array, binding: Binding): Buffer | Promise<Buffer>;
}

/** A data key in memory (envelope custody). */
export interface MemoryDataKey {
  readonly keyId: number;
  readonly key: KeyObject;
}

/** A data key in the HSM (direct custody). */
export interface HsmDataKey {
  readonly keyId: number;
  readonly label: string;
}

/** The data keys of one domain, as a cipher needs them. */
export interface DataKeySource<Key> {
  /** The current key, with one leased seal of it used up. Throws HsmError `exhausted` where none is left just now, `unavailable` where keys may not be used. */
  take(): Key;
  /** As `take`, but waits for a lease that is on its way. Throws `store` where it does not come. */
  takeSoon(): Promise<Key>;
  /** The key with that id, from memory or once it is loaded. Throws HsmError `not_found`, `corrupt`, `store` or `unavailable`. */
  byId(keyId: number): Key | Promise<Key>;
}

/** AES-GCM inside the HSM, as the direct cipher needs it. Sealed form there: nonce (12) || ciphertext || tag (16). */
export interface HsmGcm {
  encrypt(label: string, plaintext: Uint8Array, aad: Buffer): Promise<Buffer>;
  decrypt(label: string, sealed: Uint8Array, aad: Buffer): Promise<Buffer>;
}

const FORMAT = 1;
const KEY_ID_AT = 1;
const NONCE_AT = 5;
const NONCE_BYTES = 12;
const BODY_AT = 17;
const TAG_BYTES = 16;
const CARD_ID_BYTES = 16;
const PAN_PADDED_BYTES = 24;
const NAME_STEP_BYTES = 32;
const MAX_NAME_BYTES = 255;

const kindBytes = { pan: 1, name: 2 } as const satisfies Record<SealedKind, number>;

/** The length in bytes of every sealed PAN. */
export const SEALED_PAN_BYTES: number = BODY_AT + PAN_PADDED_BYTES + TAG_BYTES;

/** The id of the key that sealed this value. Throws HsmError `corrupt` where it is no sealed value. Says nothing about authenticity. */
export function keyIdOf(sealed: Uint8Array): number {
  if (sealed.length < BODY_AT + TAG_BYTES || sealed[0] !== FORMAT) throw new HsmError('corrupt', 'a sealed value has an unknown form');
  return ((sealed[KEY_ID_AT]! << 24) | (sealed[KEY_ID_AT + 1]! << 16) | (sealed[KEY_ID_AT + 2]! << 8) | sealed[KEY_ID_AT + 3]!) >>> 0;
}

/**
 * The padded plaintext, the caller's to wipe: in the first bytes of `room`, which is zeroed and long enough, or in a Buffer of its own. Throws HsmError
 * `refused` where the length is not one that its kind may have.
 */
export function pad(kind: SealedKind, plaintext: Uint8Array, room?: Buffer): Buffer {
  if (kind === 'pan') {
    if (plaintext.length < 12 || plaintext.length > 19) throw new HsmError('refused', 'a PAN to seal has 12 to 19 digits');
    const padded = room?.subarray(0, PAN_PADDED_BYTES) ?? secretBytes(PAN_PADDED_BYTES);
    padded[0] = plaintext.length;
    padded.set(plaintext, 1);
    return padded;
  }
  if (plaintext.length < 1 || plaintext.length > MAX_NAME_BYTES) throw new HsmError('refused', 'a name to seal has 1 to 255 bytes');
  const bytes = Math.ceil((2 + plaintext.length) / NAME_STEP_BYTES) * NAME_STEP_BYTES;
  const padded = room?.subarray(0, bytes) ?? secretBytes(bytes);
  padded.writeUInt16BE(plaintext.length);
  padded.set(plaintext, 2);
  return padded;
}

// Where envelope custody pads: one place for all seals, which are synchronous, wiped after each. A small Buffer of its own for each would lie in V8's heap.
const sealingRoom = secretBytes(Math.ceil((2 + MAX_NAME_BYTES) / NAME_STEP_BYTES) * NAME_STEP_BYTES);

/**
 * The plaintext inside a padded one: a view of the same memory, so wiping it wipes all there is to wipe. Throws HsmError `corrupt` where the padding is not
 * what `pad` writes; the padded bytes are wiped then.
 */
export function unpad(kind: SealedKind, padded: Buffer): Buffer {
  const head = kind === 'pan' ? 1 : 2;
  const length = padded.length < head ? 0 : kind === 'pan' ? padded[0]! : padded.readUInt16BE();
  const sized =
    kind === 'pan'
      ? padded.length === PAN_PADDED_BYTES && length >= 12 && length <= 19
      : length >= 1 && length <= MAX_NAME_BYTES && padded.length === Math.ceil((2 + length) / NAME_STEP_BYTES) * NAME_STEP_BYTES;
  let rest = 0;
  for (let at = head + length; at < padded.length; at++) rest |= padded[at]!;
  if (!sized || rest !== 0) {
    padded.fill(0);
    throw new HsmError('corrupt', 'a sealed value has wrong padding');
  }
  return padded.subarray(head, head + length);
}

// The AAD of one tenant, in one Buffer that is filled in anew for each call: setAAD and C_EncryptInit have read it when they return.
class Aad {
  readonly #tenant: string;
  readonly #bytes: Buffer;
  readonly #cardAt: number;

  constructor(tenant: string) {
    const name = Buffer.from(tenant, 'utf8');
    this.#tenant = tenant;
    this.#cardAt = 8 + name.length;
    this.#bytes = Buffer.alloc(this.#cardAt + CARD_ID_BYTES);
    this.#bytes[0] = FORMAT;
    this.#bytes.writeUInt16BE(name.length, 6);
    name.copy(this.#bytes, 8);
  }

  check(binding: Binding): void {
    if (binding.tenant !== this.#tenant) throw new HsmError('refused', 'a binding names another tenant than its cipher');
    if (binding.cardId.length !== CARD_ID_BYTES) throw new HsmError('refused', 'a card id has 16 bytes');
  }

  /** Borrowed until the next call. */
  of(kind: SealedKind, keyId: number, cardId: Uint8Array): Buffer {
    this.#bytes[1] = kindBytes[kind];
    this.#bytes.writeUInt32BE(keyId, 2);
    this.#bytes.set(cardId, this.#cardAt);
    return this.#bytes;
  }
}

// What a receipt is redeemed for. Neither part is secret.
function opening(kind: SealedKind, binding: Binding): string {
  return `${kind}/${Buffer.from(binding.cardId).toString('hex')}`;
}

// Random 96-bit nonces (SP 800-38D section 8.2.2), drawn a thousand at a time: 235k seals/s against 157k/s with a randomBytes call for each (2 cores, Node 24.21).
// A nonce is zeroed here the moment it is handed out; a process that is forked or snapshotted would share the rest, and Node processes are neither.
const noncePool = Buffer.alloc(NONCE_BYTES * 1024);
let nonceAt = noncePool.length;

function takeNonce(into: Buffer, at: number): void {
  if (nonceAt === noncePool.length) {
    randomFillSync(noncePool);
    nonceAt = 0;
  }
  noncePool.copy(into, at, nonceAt, nonceAt + NONCE_BYTES);
  noncePool.fill(0, nonceAt, nonceAt + NONCE_BYTES);
  nonceAt += NONCE_BYTES;
}

const gcmOptions: CipherGCMOptions = { authTagLength: TAG_BYTES };

/** AES-256-GCM with a key in memory. `out` holds the head with the nonce; ciphertext and tag are written behind it. Exported for the NIST vectors only. */
export function sealInto(out: Buffer, key: KeyObject, padded: Uint8Array, aad: Uint8Array): void {
  // A KeyObject: with the raw bytes of a key Node 24 makes 61k seals/s where this makes 235k/s, and the bytes would lie in the heap.
  const cipher = createCipheriv('aes-256-gcm', key, out.subarray(NONCE_AT, BODY_AT), gcmOptions);
  cipher.setAAD(aad);
  cipher.update(padded).copy(out, BODY_AT);
  cipher.final();
  cipher.getAuthTag().copy(out, BODY_AT + padded.length);
}

/** The counterpart of `sealInto`: the padded plaintext, the caller's to wipe. Throws HsmError `corrupt`. Exported for the NIST vectors only. */
export function openPadded(sealed: Uint8Array, key: KeyObject, aad: Uint8Array): Buffer {
  const decipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(NONCE_AT, BODY_AT), gcmOptions);
  decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
  decipher.setAAD(aad);
  const padded = decipher.update(sealed.subarray(BODY_AT, sealed.length - TAG_BYTES));
  try {
    decipher.final();
  } catch (cause) {
    // GCM in Node gives plaintext before it has checked the tag.
    padded.fill(0);
    throw new HsmError('corrupt', 'a sealed value does not authenticate', { cause });
  }
  return padded;
}

/** The cipher of envelope custody, for one tenant: AES in this process with keys of `keys`. */
export function envelopeCardCipher(tenant: string, keys: DataKeySource<MemoryDataKey>): CardCipher {
  const aad = new Aad(tenant);
  // The AAD has the key id that stands in the value, not the one that the key was found under: they only agree if nothing was altered.
  const openWith = ({ key }: MemoryDataKey, kind: SealedKind, sealed: Uint8Array, cardId: Uint8Array): Buffer => unpad(kind, openPadded(sealed, key, aad.of(kind, keyIdOf(sealed), cardId)));
  return {
    seal(kind, plaintext, binding) {
      aad.check(binding);
      const padded = pad(kind, plaintext, sealingRoom);
      try {
        const { keyId, key } = keys.take();
        // From the pool of small Buffers: what is in it is sealed.
        const out = Buffer.allocUnsafe(BODY_AT + padded.length + TAG_BYTES);
        out[0] = FORMAT;
        out.writeUInt32BE(keyId, KEY_ID_AT);
        takeNonce(out, NONCE_AT);
        sealInto(out, key, padded, aad.of(kind, keyId, binding.cardId));
        return out;
      } finally {
        padded.fill(0);
      }
    },
    open(receipt, kind, sealed, binding) {
      receipt.redeem(opening(kind, binding));
      aad.check(binding);
      const key = keys.byId(keyIdOf(sealed));
      return key instanceof Promise ? key.then((loaded) => openWith(loaded, kind, sealed, binding.cardId)) : openWith(key, kind, sealed, binding.cardId);
    },
  };
}

/** The cipher of direct custody, for one tenant: every seal and open is one operation in the HSM, and the nonce is the one that the HSM reports. */
export function directCardCipher(tenant: string, keys: DataKeySource<HsmDataKey>, hsm: HsmGcm): CardCipher {
  const aad = new Aad(tenant);
  return {
    async seal(kind, plaintext, binding) {
      aad.check(binding);
      // Both copied before the first await: the caller may wipe its own while this waits for a session.
      const cardId = Buffer.from(binding.cardId);
      const padded = pad(kind, plaintext);
      try {
        const { keyId, label } = await keys.takeSoon();
        const encrypted = await hsm.encrypt(label, padded, Buffer.from(aad.of(kind, keyId, cardId)));
        const head = Buffer.alloc(NONCE_AT);
        head[0] = FORMAT;
        head.writeUInt32BE(keyId, KEY_ID_AT);
        return Buffer.concat([head, encrypted]);
      } finally {
        padded.fill(0);
      }
    },
    async open(receipt, kind, sealed, binding) {
      receipt.redeem(opening(kind, binding));
      aad.check(binding);
      const copy = Buffer.from(sealed);
      const cardId = Buffer.from(binding.cardId);
      const keyId = keyIdOf(copy);
      const { label } = await keys.byId(keyId);
      return unpad(kind, await hsm.decrypt(label, copy.subarray(NONCE_AT), Buffer.from(aad.of(kind, keyId, cardId))));
    },
  };
}
