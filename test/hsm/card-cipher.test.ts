import { createDecipheriv, createSecretKey, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { inspect } from 'node:util';
import * as fc from 'fast-check';
import t from 'tap';
import { envelopeCardCipher, keyIdOf, openPadded, pad, SEALED_PAN_BYTES, sealInto, unpad } from '../../hsm/card-cipher.ts';
import type { Binding, DataKeySource, MemoryDataKey, SealedKind } from '../../hsm/card-cipher.ts';
import { hsmError } from './hsm-error.ts';
import { receipt } from './receipt.ts';

interface GcmVector {
  readonly source: string;
  readonly key: string;
  readonly iv: string;
  readonly aad: string;
  readonly plaintext: string;
  readonly ciphertext: string;
  readonly tag: string;
}
const { vectors } = JSON.parse(readFileSync(new URL('../vectors/aes-256-gcm.json', import.meta.url), 'utf8')) as { vectors: GcmVector[] };

t.test('the AES-GCM under the cipher agrees with foreign vectors', (t) => {
  for (const vector of vectors) {
    const [key, iv, aad, plaintext, ciphertext, tag] = [vector.key, vector.iv, vector.aad, vector.plaintext, vector.ciphertext, vector.tag].map((hex) => Buffer.from(hex, 'hex'));
    const out = Buffer.alloc(17 + plaintext!.length + 16);
    iv!.copy(out, 5);
    const secret = createSecretKey(key!);
    sealInto(out, secret, plaintext!, aad!);
    t.equal(out.toString('hex', 17), Buffer.concat([ciphertext!, tag!]).toString('hex'), vector.source);
    t.equal(openPadded(out, secret, aad!).toString('hex'), vector.plaintext, vector.source);
    out[out.length - 1]! ^= 1;
    t.throws(() => openPadded(out, secret, aad!), hsmError('corrupt'));
  }
  t.end();
});

function keysOf(...keys: MemoryDataKey[]): DataKeySource<MemoryDataKey> {
  return {
    take: () => keys[0]!,
    takeSoon: () => Promise.resolve(keys[0]!),
    byId: (keyId) => keys.find((key) => key.keyId === keyId)!,
  };
}

const key: MemoryDataKey = { keyId: 0x01020304, key: createSecretKey(randomBytes(32)) };
const cipher = envelopeCardCipher('acme', keysOf(key));

const pans = fc.stringMatching(/^[0-9]{12,19}$/).map((digits) => Buffer.from(digits, 'ascii'));
const names = fc
  .string({ minLength: 1, maxLength: 60, unit: 'grapheme' })
  .map((name) => Buffer.from(name, 'utf8'))
  .filter((name) => name.length >= 1 && name.length <= 255);
const values = fc.oneof(fc.record({ kind: fc.constant<SealedKind>('pan'), plaintext: pans }), fc.record({ kind: fc.constant<SealedKind>('name'), plaintext: names }));
const cardIds = fc.uint8Array({ minLength: 16, maxLength: 16 });

function seal(kind: SealedKind, plaintext: Uint8Array, binding: Binding): Buffer {
  return cipher.seal(kind, plaintext, binding) as Buffer;
}

t.test('whatever is sealed opens again to the same bytes', (t) => {
  fc.assert(
    fc.property(values, cardIds, ({ kind, plaintext }, cardId) => {
      const binding = { tenant: 'acme', cardId };
      const sealed = seal(kind, plaintext, binding);
      const opened = cipher.open(receipt(), kind, sealed, binding) as Buffer;
      return opened.equals(plaintext) && keyIdOf(sealed) === key.keyId && sealed.length === (kind === 'pan' ? SEALED_PAN_BYTES : 33 + Math.ceil((plaintext.length + 2) / 32) * 32);
    }),
  );
  t.end();
});

t.test('a sealed PAN has 57 bytes whatever its length, with the format and the key id in front', (t) => {
  for (const digits of ['411111111111', '4111111111111111', '4111111111111111000']) {
    const sealed = seal('pan', Buffer.from(digits), { tenant: 'acme', cardId: randomBytes(16) });
    t.equal(sealed.length, 57);
    t.equal(sealed.toString('hex', 0, 5), '0101020304');
  }
  t.end();
});

t.test('what is sealed, and what is authenticated with it, are laid out as documented', (t) => {
  // By hand from the head of hsm/card-cipher.ts: a value that two versions of the vault seal must open in both.
  const raw = randomBytes(32);
  const cardId = randomBytes(16);
  const documented = envelopeCardCipher('acme', keysOf({ keyId: 0x0a0b0c0d, key: createSecretKey(raw) }));
  for (const [kind, plaintext, kindHex, padded] of [
    ['pan', '4111111111111111', '01', `10${Buffer.from('4111111111111111').toString('hex')}${'00'.repeat(7)}`],
    ['name', 'ANA SILVA', '02', `0009${Buffer.from('ANA SILVA').toString('hex')}${'00'.repeat(21)}`],
  ] as const) {
    const sealed = documented.seal(kind, Buffer.from(plaintext), { tenant: 'acme', cardId }) as Buffer;
    t.equal(sealed.toString('hex', 0, 5), '010a0b0c0d', 'version and key id');
    const decipher = createDecipheriv('aes-256-gcm', raw, sealed.subarray(5, 17));
    decipher.setAAD(Buffer.concat([Buffer.from(`01${kindHex}0a0b0c0d0004`, 'hex'), Buffer.from('acme'), cardId]));
    decipher.setAuthTag(sealed.subarray(-16));
    t.equal(Buffer.concat([decipher.update(sealed.subarray(17, -16)), decipher.final()]).toString('hex'), padded, kind);
  }
  t.end();
});

t.test('any flipped bit of a sealed value is refused', (t) => {
  const binding = { tenant: 'acme', cardId: randomBytes(16) };
  const sealed = seal('pan', Buffer.from('4111111111111111'), binding);
  const lookup = envelopeCardCipher('acme', { ...keysOf(key), byId: () => key });
  for (let bit = 0; bit < sealed.length * 8; bit++) {
    const altered = Buffer.from(sealed);
    altered[bit >> 3]! ^= 1 << (bit & 7);
    // A changed key id finds the same key here: the AAD has to notice.
    t.throws(() => lookup.open(receipt(), 'pan', altered, binding), hsmError('corrupt'));
  }
  t.end();
});

t.test('a truncated or extended value is refused', (t) => {
  const binding = { tenant: 'acme', cardId: randomBytes(16) };
  const sealed = seal('pan', Buffer.from('4111111111111111'), binding);
  for (let length = 0; length < sealed.length; length++) t.throws(() => cipher.open(receipt(), 'pan', sealed.subarray(0, length), binding), hsmError('corrupt'));
  t.throws(() => cipher.open(receipt(), 'pan', Buffer.concat([sealed, Buffer.alloc(1)]), binding), hsmError('corrupt'));
  t.end();
});

t.test('a value opens for its own tenant, card, kind and key only', (t) => {
  fc.assert(
    fc.property(cardIds, cardIds, (cardId, otherCardId) => {
      fc.pre(!Buffer.from(cardId).equals(Buffer.from(otherCardId)));
      const binding = { tenant: 'acme', cardId };
      const sealed = seal('pan', Buffer.from('5555555555554444'), binding);
      t.throws(() => cipher.open(receipt(), 'pan', sealed, { tenant: 'acme', cardId: otherCardId }), hsmError('corrupt'));
      t.throws(() => cipher.open(receipt(), 'name', sealed, binding), hsmError('corrupt'));
      t.throws(() => envelopeCardCipher('acme2', keysOf(key)).open(receipt(), 'pan', sealed, { tenant: 'acme2', cardId }), hsmError('corrupt'));
      t.throws(() => envelopeCardCipher('acme', keysOf({ keyId: key.keyId, key: createSecretKey(randomBytes(32)) })).open(receipt(), 'pan', sealed, binding), hsmError('corrupt'));
    }),
    { numRuns: 20 },
  );
  t.end();
});

t.test('a binding that names another tenant than the cipher is refused before anything is sealed', (t) => {
  t.throws(() => cipher.seal('pan', Buffer.from('4111111111111111'), { tenant: 'globex', cardId: randomBytes(16) }), hsmError('refused'));
  t.throws(() => cipher.seal('pan', Buffer.from('4111111111111111'), { tenant: 'acme', cardId: randomBytes(15) }), hsmError('refused'));
  t.end();
});

t.test('lengths that no PAN and no name has are refused', (t) => {
  for (const length of [0, 11, 20]) t.throws(() => pad('pan', Buffer.alloc(length, '4')), hsmError('refused'));
  for (const length of [0, 256]) t.throws(() => pad('name', Buffer.alloc(length, 'a')), hsmError('refused'));
  t.equal(pad('name', Buffer.alloc(30, 'a')).length, 32);
  t.equal(pad('name', Buffer.alloc(31, 'a')).length, 64);
  t.equal(pad('name', Buffer.alloc(255, 'a')).length, 288);
  t.end();
});

t.test('padding of any other form is corrupt and wiped', (t) => {
  for (const wrong of ['0b3431313131313131313131310000000000000000000000', '143431313131313131313131313131313131313131000000', '0c34313131313131313131313100000000000000000000ff', '0c3431']) {
    const padded = Buffer.from(wrong, 'hex');
    t.throws(() => unpad('pan', padded), hsmError('corrupt'));
    t.ok(padded.every((byte) => byte === 0));
  }
  t.throws(() => unpad('name', Buffer.alloc(32)), hsmError('corrupt'));
  t.throws(() => unpad('name', Buffer.alloc(1)), hsmError('corrupt'));
  t.end();
});

t.test('no nonce comes twice, across several refills of the pool', (t) => {
  const binding = { tenant: 'acme', cardId: randomBytes(16) };
  const seen = new Set<string>();
  for (let n = 0; n < 5_000; n++) seen.add(seal('pan', Buffer.from('4111111111111111'), binding).toString('hex', 5, 17));
  t.equal(seen.size, 5_000);
  t.end();
});

t.test('wiping what open returned wipes the digits', (t) => {
  const binding = { tenant: 'acme', cardId: randomBytes(16) };
  const opened = cipher.open(receipt(), 'pan', seal('pan', Buffer.from('4111111111111111'), binding), binding) as Buffer;
  const memory = Buffer.from(opened.buffer);
  t.ok(memory.includes('4111111111111111'));
  opened.fill(0);
  t.notOk(memory.includes('41111111'));
  t.end();
});

t.test('sealing leaves the plaintext to its owner as it was', (t) => {
  const digits = Buffer.from('4111111111111111');
  seal('pan', digits, { tenant: 'acme', cardId: randomBytes(16) });
  t.equal(digits.toString(), '4111111111111111');
  t.end();
});

t.test('without a receipt nothing is opened, and a receipt serves a value once', (t) => {
  const binding = { tenant: 'acme', cardId: randomBytes(16) };
  const sealed = seal('pan', Buffer.from('4111111111111111'), binding);
  const once = receipt();
  void cipher.open(once, 'pan', sealed, binding);
  t.throws(() => cipher.open(once, 'pan', sealed, binding), { message: 'redeemed twice' });
  t.throws(() => cipher.open(undefined as never, 'pan', sealed, binding));
  t.end();
});

t.test('neither errors nor inspection show a key or a plaintext', (t) => {
  const raw = Buffer.from('000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f', 'hex');
  const shown = envelopeCardCipher('acme', keysOf({ keyId: 1, key: createSecretKey(raw) }));
  const binding = { tenant: 'acme', cardId: Buffer.alloc(16) };
  const errors: unknown[] = [];
  for (const attempt of [
    () => shown.seal('pan', Buffer.from('41111111111'), binding),
    () => shown.open(receipt(), 'name', shown.seal('pan', Buffer.from('4111111111111111'), binding) as Buffer, binding),
  ]) {
    try {
      void attempt();
    } catch (error) {
      errors.push(error);
    }
  }
  t.equal(errors.length, 2);
  const text = [shown, key, ...errors].map((value) => inspect(value, { depth: 10, showHidden: true }) + JSON.stringify(value)).join('\n');
  for (const secret of ['41111111', '0001020304', '00 01 02 03 04', '"data":[0,1,2', '0x00, 0x01']) t.notOk(text.includes(secret));
  t.end();
});
