import { createHmac, createSecretKey, randomBytes } from 'node:crypto';
import * as fc from 'fast-check';
import t from 'tap';
import { HmacSha256, hmacOf } from '../../hsm/hmac-sha256.ts';

const hex = (text: string): Buffer => Buffer.from(text, 'hex');

/** RFC 4231, sections 4.2 to 4.5 and 4.8's data with a key that fits a block: key, data, HMAC-SHA-256. */
const vectors: readonly (readonly [Buffer, Buffer, string])[] = [
  [Buffer.alloc(20, 0x0b), Buffer.from('Hi There'), 'b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7'],
  [Buffer.from('Jefe'), Buffer.from('what do ya want for nothing?'), '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843'],
  [Buffer.alloc(20, 0xaa), Buffer.alloc(50, 0xdd), '773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe'],
  [hex('0102030405060708090a0b0c0d0e0f10111213141516171819'), Buffer.alloc(50, 0xcd), '82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b'],
];

t.test('the vectors of RFC 4231', async (t) => {
  for (const [key, data, mac] of vectors) {
    t.equal(new HmacSha256(key).digest(data).toString('hex'), mac);
    t.equal(hmacOf(createSecretKey(key)).digest(data).toString('hex'), mac);
  }
});

t.test('it agrees with OpenSSL on any key, any message and however it is cut, one call after another', async () => {
  const hmacs = new Map<string, HmacSha256>();
  const keys = Array.from({ length: 5 }, (_, index) => randomBytes(index === 0 ? 64 : 1 + index * 13));
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 4 }), fc.array(fc.oneof(fc.uint8Array({ maxLength: 600 }), fc.string({ maxLength: 80, unit: 'binary-ascii' })), { maxLength: 5 }), (which, parts) => {
      const key = keys[which]!;
      const hmac = hmacs.get(String(which)) ?? new HmacSha256(key);
      hmacs.set(String(which), hmac);
      const expected = createHmac('sha256', key);
      for (const part of parts) expected.update(typeof part === 'string' ? Buffer.from(part, 'latin1') : part);
      return hmac.digest(...parts).equals(expected.digest());
    }),
    { numRuns: 2000 },
  );
});

t.test('a key longer than a block is refused, and each digest is the caller\'s own', async (t) => {
  t.throws(() => new HmacSha256(Buffer.alloc(65)), RangeError);
  const hmac = new HmacSha256(Buffer.alloc(32, 1));
  const first = hmac.digest('a');
  const copy = Buffer.from(first);
  hmac.digest('b');
  t.ok(first.equals(copy));
  first.fill(0);
  t.ok(hmac.digest('a').equals(copy));
});

t.test('one KeyObject has one, whose parts are not mixed with another\'s', async (t) => {
  const a = createSecretKey(Buffer.alloc(32, 1));
  const b = createSecretKey(Buffer.alloc(32, 2));
  t.equal(hmacOf(a), hmacOf(a));
  t.not(hmacOf(a), hmacOf(b));
  t.notOk(hmacOf(a).digest('x').equals(hmacOf(b).digest('x')));
});
