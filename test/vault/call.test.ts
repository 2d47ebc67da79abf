import t from 'tap';
import { encodeEntry } from '../../audit/entry.ts';
import { entryOf, type Call } from '../../vault/call.ts';
import { errorCodes } from '../../vault/errors.ts';

const call: Call = {
  requestId: '6f1ed002-ab56-4f0e-9c1a-6d1c0a7c0f11',
  at: new Date('2026-11-24T00:00:00.000Z'),
  caller: { spiffeId: 'spiffe://cofre.dev/tenant/acme/service/getnet', tenant: 'acme', service: 'getnet', serial: '1f', notAfter: new Date('2027-01-01T00:00:00.000Z') },
  from: '127.0.0.1',
};

t.test('an entry says who, what, when and from where, and nothing that it was not given', async (t) => {
  t.strictSame(entryOf(call, { action: 'validate' }), {
    action: 'validate',
    at: call.at,
    from: '127.0.0.1',
    request: call.requestId,
    outcome: 'allowed',
    caller: 'spiffe://cofre.dev/tenant/acme/service/getnet',
    serial: '1f',
    tenant: 'acme',
  });
  t.strictSame(entryOf({ ...call, caller: null }, { action: 'unknown', code: 'not_authorized' }), { action: 'unknown', at: call.at, from: '127.0.0.1', request: call.requestId, outcome: 'refused', code: 'not_authorized' });
});

t.test('every fact that is given is in the entry, and in its bytes', async (t) => {
  const entry = entryOf(call, { action: 'detokenize', decision: { allowed: true, policyIds: ['acme.capture'] }, purpose: 'capture', reference: 'order-1', tokens: { authorized: ['tok_x'] } });
  t.match(entry, { policies: ['acme.capture'], purpose: 'capture', reference: 'order-1', tokens: { authorized: ['tok_x'] } });
  t.match(JSON.parse(encodeEntry(entry).toString('utf8')), { action: 'detokenize', caller: call.caller!.spiffeId, purpose: 'capture', reference: 'order-1', policies: ['acme.capture'], v: 1 });
  t.notOk('reference' in entryOf(call, { action: 'detokenize', reference: undefined }));
});

t.test('a call that the vault failed is told from one that it refused', async (t) => {
  const failed = errorCodes.filter((code) => entryOf(call, { action: 'tokenize', code }).outcome === 'failed');
  t.same(failed.sort(), ['audit_unavailable', 'hsm_unavailable', 'internal', 'outcome_unknown', 'overloaded', 'sealed', 'store_unavailable']);
  t.ok(errorCodes.every((code) => entryOf(call, { action: 'tokenize', code }).outcome !== 'allowed'));
});
