import { createHmac, createSecretKey } from 'node:crypto';
import * as fc from 'fast-check';
import t from 'tap';
import { isDead, statusCode, statusOf, tokenMac, tokenMacHolds, type TokenBinding, type TokenStatus } from '../../vault/token-mac.ts';

const keyBytes = Buffer.alloc(32, 0x0b);
const key = createSecretKey(keyBytes);
const binding: TokenBinding = {
  tenant: 'acme',
  fingerprint: Buffer.alloc(32, 1),
  cardId: Buffer.alloc(16, 2),
  token: 'tok_0000000000000000000000000000abcd',
  status: 'suspended',
  expiresAt: new Date(1_800_000_000_123),
  rowVersion: 7,
};

t.test('the MAC is HMAC-SHA-256 over the documented bytes, cut to 16', async (t) => {
  // Laid out by hand from the comment in vault/token-mac.ts.
  const message = Buffer.concat([
    Buffer.from('cofre/token-row/v1\0'),
    Buffer.from('acme\0tok_0000000000000000000000000000abcd\0'),
    Buffer.alloc(32, 1),
    Buffer.alloc(16, 2),
    Buffer.from('01', 'hex'),
    Buffer.from('00000007', 'hex'),
    Buffer.from((1_800_000_000_123).toString(16).padStart(16, '0'), 'hex'),
  ]);
  t.equal(tokenMac(key, binding).toString('hex'), createHmac('sha256', keyBytes).update(message).digest('hex').slice(0, 32));
  const forever = Buffer.concat([message.subarray(0, -8), Buffer.alloc(8, 0xff)]);
  t.equal(tokenMac(key, { ...binding, expiresAt: null }).toString('hex'), createHmac('sha256', keyBytes).update(forever).digest('hex').slice(0, 32), 'a token that lives for ever');
  // The same two by Python's hmac module.
  t.equal(tokenMac(key, binding).toString('hex'), '16937ec6ce1d39c9e6e684ffba1a0cbf');
  t.equal(tokenMac(key, { ...binding, expiresAt: null }).toString('hex'), '9452ffdeced071c38a9d7de6e18b938b');
});

const bytes = (length: number): fc.Arbitrary<Buffer> => fc.uint8Array({ minLength: length, maxLength: length }).map((value) => Buffer.from(value));
const bindings: fc.Arbitrary<TokenBinding> = fc.record({
  tenant: fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?$/u),
  fingerprint: bytes(32),
  cardId: bytes(16),
  token: fc.stringMatching(/^tok_[0-9A-Za-z]{32}$/u),
  status: fc.constantFrom<TokenStatus>('active', 'suspended', 'revoked', 'expired'),
  expiresAt: fc.option(fc.date({ min: new Date(0), max: new Date('9999-12-31'), noInvalidDate: true })),
  rowVersion: fc.integer({ min: 1, max: 2 ** 31 - 1 }),
});
/** The fingerprint of a dead token is of no account: its card may have been destroyed. */
const counted = (row: TokenBinding): TokenBinding => (isDead(row.status) ? { ...row, fingerprint: Buffer.alloc(32) } : row);
const same = (a: TokenBinding, b: TokenBinding): boolean => JSON.stringify(counted(a)) === JSON.stringify(counted(b));

t.test('a MAC belongs to its row', async (t) => {
  fc.assert(fc.property(bindings, (row) => tokenMacHolds(key, row, tokenMac(key, row)) && tokenMac(key, row).length === 16));
  t.pass('100 rows');
});

t.test('any other value of any one field is caught', async (t) => {
  const fields = ['tenant', 'fingerprint', 'cardId', 'token', 'status', 'expiresAt', 'rowVersion'] as const;
  fc.assert(
    fc.property(bindings, bindings, (row, other) => {
      const mac = tokenMac(key, row);
      return fields.every((field) => {
        const changed = { ...row, [field]: other[field] };
        return same(row, changed) || !tokenMacHolds(key, changed, mac);
      });
    }),
    { numRuns: 200 },
  );
  t.pass('200 rows, each field');
});

t.test('two different rows never share the bytes that are authenticated', async (t) => {
  // The boundary between tenant and token cannot be moved.
  const shift = (tenant: string, token: string): string => tokenMac(key, { ...binding, tenant, token }).toString('hex');
  t.not(shift('acme', 'tok_a'), shift('acmet', 'ok_a'));
  t.not(shift('a', 'b'), shift('ab', ''));
  fc.assert(fc.property(bindings, bindings, (a, b) => same(a, b) || !tokenMac(key, a).equals(tokenMac(key, b))), { numRuns: 200 });
});

t.test('a flip of any bit of the MAC, another length and another key are caught', async (t) => {
  const mac = tokenMac(key, binding);
  for (let bit = 0; bit < 128; bit += 1) {
    const flipped = Buffer.from(mac);
    flipped[bit >> 3]! ^= 1 << (bit & 7);
    if (tokenMacHolds(key, binding, flipped)) t.fail(`bit ${bit}`);
  }
  for (const wrong of [Buffer.alloc(0), mac.subarray(0, 15), Buffer.concat([mac, Buffer.alloc(1)]), Buffer.alloc(16)]) t.notOk(tokenMacHolds(key, binding, wrong));
  t.notOk(tokenMacHolds(createSecretKey(Buffer.alloc(32, 0x0c)), binding, mac));
});

t.test('stored codes stand for what they stood for, and an unknown one for nothing', async (t) => {
  // These are in databases: they never change.
  t.same(statusCode, { active: 0, suspended: 1, revoked: 2, expired: 3 });
  t.same([0, 1, 2, 3].map(statusOf), ['active', 'suspended', 'revoked', 'expired']);
  t.same([-1, 4, 0.5, Number.NaN].map(statusOf), [null, null, null, null]);
});
