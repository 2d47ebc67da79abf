import t from 'tap';
import { sipHash, sipKey } from '../../vault/siphash.ts';

/** Key, message and result in hex, little-endian as SipHash prints them. */
const vectors = [
  // vectors_sip64[8] of the authors' reference implementation, github.com/veorq/SipHash vectors.h.
  ['000102030405060708090a0b0c0d0e0f', '0001020304050607', '6224939a79f5f593'],
  // OpenSSL 3.0.19: openssl mac -macopt hexkey:KEY -macopt size:8 -in MESSAGE SIPHASH
  ['00112233445566778899aabbccddeeff', 'ffffffffffffffff', 'ceb3d5d75edf54f2'],
  ['ffffffffffffffffffffffffffffffff', '0000000000000000', '000ae713f1a1e993'],
] as const;

t.test('gives what others give', async (t) => {
  for (const [key, message, expected] of vectors) {
    const bytes = Buffer.from(message, 'hex');
    const result = { low: 0, high: 0 };
    sipHash(sipKey(Buffer.from(key, 'hex')), bytes.readUInt32LE(0), bytes.readUInt32LE(4), result);
    const out = Buffer.alloc(8);
    out.writeUInt32LE(result.low, 0);
    out.writeUInt32LE(result.high, 4);
    t.equal(out.toString('hex'), expected, `${key} ${message}`);
  }
});

t.test('refuses a key that is too short', async (t) => {
  t.throws(() => sipKey(Buffer.alloc(15)), RangeError);
});
