import { createSecretKey } from 'node:crypto';
import * as fc from 'fast-check';
import t from 'tap';
import type { TokenRow } from '../../vault/card-store.ts';
import type { Tenant } from '../../vault/tenants.ts';
import { tokenMac } from '../../vault/token-mac.ts';
import { cardIdText, effectiveStatus, expiryNumber, expiryText, rowIsGenuine, viewOf } from '../../vault/token-view.ts';

const now = new Date('2026-11-24T00:00:00.000Z');
const rowMacKey = createSecretKey(Buffer.alloc(32, 5));
/** Of a tenant's keys, a view needs the one for MACs. */
const tenant = { id: 1, name: 'acme', keys: { rowMacKey } } as unknown as Tenant;

function rowWith(change: Partial<TokenRow> = {}): TokenRow {
  const row: TokenRow = {
    tenantId: 1, token: 'tok_a', cardToken: 'tok_a', fingerprint: Buffer.alloc(32, 1), cardId: Buffer.alloc(16, 2), expiry: 202_912, brand: 'visa', bin: '411111', last4: '1111',
    panLength: 16, format: 'opaque', status: 'active', rowVersion: 1, expiresAt: null, tokenMac: Buffer.alloc(16), metadata: '{"a":1}', createdAt: now, ...change,
  };
  return { ...row, tokenMac: tokenMac(rowMacKey, { tenant: 'acme', fingerprint: row.fingerprint, cardId: row.cardId, token: row.token, status: row.status ?? 'active', expiresAt: row.expiresAt, rowVersion: row.rowVersion }) };
}

t.test('a view shows what may be shown, and neither fingerprint, MAC nor internal key', async (t) => {
  t.strictSame(viewOf(rowWith(), now), {
    token: 'tok_a', format: 'opaque', status: 'active', card_id: `card_${'02'.repeat(16)}`, brand: 'visa', bin: '411111', last4: '1111', length: 16, expiry: '2029-12',
    created_at: '2026-11-24T00:00:00.000Z', expires_at: null,
  });
  t.notOk('bin' in viewOf(rowWith({ bin: null, panLength: 14 }), now), 'a short card number has no bin');
  t.match(viewOf(rowWith({ expiry: null, expiresAt: now }), now), { expiry: null, status: 'expired', expires_at: '2026-11-24T00:00:00.000Z' });
});

t.test('a token past its end is expired whatever its row says, unless it was revoked', async (t) => {
  const later = new Date(now.getTime() + 1);
  t.equal(effectiveStatus(rowWith({ expiresAt: later }), now), 'active');
  t.equal(effectiveStatus(rowWith({ expiresAt: now }), now), 'expired', 'at its end it is');
  t.equal(effectiveStatus(rowWith({ expiresAt: now, status: 'suspended' }), now), 'expired');
  t.equal(effectiveStatus(rowWith({ expiresAt: now, status: 'revoked' }), now), 'revoked');
  t.equal(effectiveStatus(rowWith({ status: 'suspended', expiresAt: later }), now), 'suspended');
  t.equal(effectiveStatus(rowWith({ status: null }), now), 'revoked', 'a status that this version does not know opens nothing');
});

t.test('a row is genuine as it was written, and with any field changed it is not', async (t) => {
  const row = rowWith();
  t.ok(rowIsGenuine(tenant, row));
  const changes: Readonly<Record<string, Partial<TokenRow>>> = {
    'another fingerprint': { fingerprint: Buffer.alloc(32, 9) },
    'a fingerprint cut short': { fingerprint: Buffer.alloc(31, 1) },
    'another card': { cardId: Buffer.alloc(16, 9) },
    'a card id too long': { cardId: Buffer.alloc(17, 2) },
    'another token': { token: 'tok_b' },
    'another status': { status: 'suspended' },
    'an unknown status': { status: null },
    'an end': { expiresAt: now },
    'another version': { rowVersion: 2 },
    'another MAC': { tokenMac: Buffer.alloc(16, 9) },
    'a negative version': { rowVersion: -1 },
    'a time at infinity': { expiresAt: Number.POSITIVE_INFINITY as unknown as Date },
    'no MAC': { tokenMac: Buffer.alloc(0) },
  };
  for (const [what, change] of Object.entries(changes)) t.notOk(rowIsGenuine(tenant, { ...row, ...change }), what);
  t.notOk(rowIsGenuine({ ...tenant, name: 'globex' }, row), 'another tenant');
});

t.test('a row without its fingerprint is genuine only as a dead one, whose card may have been destroyed', async (t) => {
  for (const length of [0, 31, 33]) {
    const fingerprint = Buffer.alloc(length);
    for (const status of ['active', 'suspended'] as const) t.notOk(rowIsGenuine(tenant, rowWith({ status, fingerprint })), `${status}, though its MAC is right`);
    for (const status of ['revoked', 'expired'] as const) t.ok(rowIsGenuine(tenant, rowWith({ status, fingerprint })), status);
  }
});

t.test('bytes and fields moved between fingerprint and card are caught', async (t) => {
  // 48 bytes in a row are the same however they are divided: the lengths are checked.
  const row = rowWith();
  const both = Buffer.concat([row.fingerprint, row.cardId]);
  for (let cut = 0; cut <= 48; cut += 1) t.equal(rowIsGenuine(tenant, { ...row, fingerprint: both.subarray(0, cut), cardId: both.subarray(cut) }), cut === 32, `${cut}`);
});

t.test('an expiry comes back as it went in', async (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 9999 }), fc.integer({ min: 1, max: 12 }), (year, month) => {
      const text = `${String(year).padStart(4, '0')}-${String(month).padStart(2, '0')}`;
      return expiryText(expiryNumber(text)) === text;
    }),
  );
  t.equal(expiryText(null), null);
  t.equal(expiryNumber('2029-12'), 202_912);
});

t.test('a card is named by its own bytes, also where they are a view into others', async (t) => {
  const pool = Buffer.alloc(64, 0xee);
  pool.fill(0x11, 8, 24);
  t.equal(cardIdText(pool.subarray(8, 24)), `card_${'11'.repeat(16)}`);
});
