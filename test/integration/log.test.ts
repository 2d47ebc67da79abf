/** The log: each call in one entry that says who, what, why and how it ended, in chains that hold, and no card anywhere. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'pg';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import type { ApiClient, CallOptions, Reply } from '../support/api-client.ts';
import { tracesInFolder, tracesOf } from '../support/card-traces.ts';
import { readLog, type LoggedEntry, tokensOf } from '../support/log-reader.ts';
import { put, serialOf } from '../support/pki.ts';
import { isProblem } from '../support/problem.ts';
import { cardOfLength, cardText } from '../support/test-cards.ts';

// Its own PostgreSQL, whose files and WAL are searched.
const appliance = await startAppliance(t, { config: { quotas: [{ caller: 'spiffe://cofre.dev/tenant/acme/service/getnet', purpose: 'refund', per_minute: 0 }] } });
const superuser = new Client({ connectionString: appliance.databaseUrl });
await superuser.connect();
superuser.on('error', () => undefined);
t.teardown(() => superuser.end());

const pki = appliance.pki();
const twoUris = pki.issueCertificate({ commonName: 'two', names: [{ type: 'uri', value: 'spiffe://cofre.dev/tenant/acme/service/checkout' }, { type: 'uri', value: 'spiffe://cofre.dev/tenant/acme/service/getnet' }] });
const clients: Readonly<Record<string, ApiClient>> = {
  ...Object.fromEntries(['checkout', 'getnet', 'checkout-globex', 'intruder', 'auditor', 'operator-b'].map((name) => [name, appliance.client(name)])),
  'two-uris': appliance.client({ cert: twoUris.certificate, key: twoUris.key }),
  'auditor on admin': appliance.client('auditor', { admin: true }),
  'checkout on admin': appliance.client('checkout', { admin: true }),
};
const spiffe: Readonly<Record<string, string>> = {
  checkout: 'tenant/acme/service/checkout',
  getnet: 'tenant/acme/service/getnet',
  'checkout-globex': 'tenant/globex/service/checkout',
  intruder: 'tenant/acme/service/intruder',
  auditor: 'tenant/platform/service/auditor',
  'operator-b': 'tenant/platform/service/operator-b',
};
const serials = Object.fromEntries(Object.keys(spiffe).map((name) => [name, serialOf(appliance.credentials(name).cert)]));
const tokenizes = ['acme-checkout-tokenizes'];
const detokenizes = ['acme-getnet-detokenizes'];

/** What an entry must say, beyond who called, from where, when, and the request's id. */
type Said = Readonly<Record<string, unknown>>;
const expected = new Map<string, { caller: string | null; said: Said[] }>();

/** Makes a call and notes what the log must say of it. */
async function ask(who: string, method: string, path: string, options: CallOptions, ...said: Said[]): Promise<Reply> {
  const reply = await clients[who]!.call(method, path, options);
  const name = who.split(' ')[0]!;
  expected.set(reply.headers['x-request-id'] as string, { caller: name in spiffe ? name : null, said });
  return reply;
}
const tokenOf = (reply: Reply): string => reply.json()['token'] as string;

const cards = { visa: cardText(9), amex: cardOfLength(15, 3), short: cardOfLength(12, 4), long: cardOfLength(19, 5), odd: cardOfLength(13, 6), tampered: cardText(10), damaged: cardText(11) };
const names = ['ZULMIRA PINTASSILGO', 'ÂNGELA BREVÍSSIMA'];
const secrets = [...Object.values(cards), ...names];

await t.test('calls of every kind are made', async (t) => {
  const visa = await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa, expiry: '2029-12', cardholder: names[0] } });
  const token = tokenOf(visa);
  expected.get(visa.headers['x-request-id'] as string)!.said.push({ action: 'tokenize', outcome: 'allowed', policies: tokenizes, tokens: { created: [token] } });
  const known = { action: 'tokenize', outcome: 'allowed', policies: tokenizes, tokens: { known: [token] } };
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa } }, known);
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa, cardholder: names[1] } }, known);
  for (const pan of [cards.amex, cards.short, cards.long, cards.odd]) {
    const made = await ask('checkout', 'POST', '/v1/tokenize', { body: { pan } });
    expected.get(made.headers['x-request-id'] as string)!.said.push({ action: 'tokenize', outcome: 'allowed', policies: tokenizes, tokens: { created: [tokenOf(made)] } });
  }
  const foreign = await ask('checkout-globex', 'POST', '/v1/tokenize', { body: { pan: cards.visa, cardholder: names[0] } });
  expected.get(foreign.headers['x-request-id'] as string)!.said.push({ action: 'tokenize', outcome: 'allowed', policies: ['globex-checkout-tokenizes'], tokens: { created: [tokenOf(foreign)] } });

  // Tokenize, refused on the way and by the operation.
  const refusedTokenize = (code: string, more: Said = {}): Said => ({ action: 'tokenize', outcome: 'refused', code, ...more });
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: '4111111111111112' } }, refusedTokenize('invalid_pan', { policies: tokenizes }));
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa, reuse: false } }, refusedTokenize('invalid_request', { policies: tokenizes }));
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa, more: 1 } }, refusedTokenize('invalid_request'));
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa, cvv: '123' } }, refusedTokenize('sad_refused'));
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa, cardholder: cards.amex } }, refusedTokenize('pan_in_other_field'));
  await ask('checkout', 'POST', '/v1/tokenize', { body: Buffer.alloc(20_000, 0x20) }, refusedTokenize('payload_too_large'));
  await ask('checkout', 'POST', '/v1/tokenize', { body: Buffer.from('{') }, refusedTokenize('invalid_request'));
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa }, headers: { 'x-card': cards.visa } }, refusedTokenize('pan_in_other_field'));
  await ask('intruder', 'POST', '/v1/tokenize', { body: { pan: cards.visa } }, refusedTokenize('not_authorized', { policies: [] }));
  await ask('getnet', 'POST', '/v1/tokenize', { body: { pan: cards.visa } }, refusedTokenize('not_authorized', { policies: [] }));
  await ask('two-uris', 'POST', '/v1/tokenize', { body: { pan: cards.visa } }, refusedTokenize('not_authorized'));
  const key = { 'idempotency-key': 'log-1' };
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa }, headers: key }, known);
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.visa }, headers: key }, { ...known, tokens: { replayed: [token] } });
  await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.amex }, headers: key }, refusedTokenize('idempotency_conflict', { policies: tokenizes }));

  // Validate and metadata.
  await ask('checkout', 'POST', '/v1/validate', { body: { token } }, { action: 'validate', outcome: 'allowed', policies: tokenizes, tokens: { active: [token] } });
  await ask('checkout', 'POST', '/v1/validate', { body: { token: tokenOf(foreign) } }, { action: 'validate', outcome: 'allowed', policies: tokenizes, tokens: { unknown: [tokenOf(foreign)] } });
  await ask('checkout', 'POST', '/v1/validate', { body: { token: 'free text, ação' } }, { action: 'validate', outcome: 'allowed', policies: tokenizes });
  await ask('auditor', 'POST', '/v1/validate', { body: { token } }, { action: 'validate', outcome: 'refused', code: 'not_authorized', policies: [], tokens: { not_authorized: [token] } });
  await ask('checkout', 'GET', `/v1/tokens/${token}`, {}, { action: 'metadata', outcome: 'allowed', policies: tokenizes, tokens: { active: [token] } });
  await ask('checkout', 'GET', `/v1/tokens/${tokenOf(foreign)}`, {}, { action: 'metadata', outcome: 'refused', code: 'token_unknown', policies: tokenizes, tokens: { unknown: [tokenOf(foreign)] } });
  await ask('operator-b', 'GET', '/v1/tokens/x', {}, { action: 'metadata', outcome: 'refused', code: 'not_authorized', policies: [] });

  // Detokenize.
  const opened = { action: 'detokenize', outcome: 'allowed', policies: detokenizes, tokens: { authorized: [token] } };
  await ask('getnet', 'POST', '/v1/detokenize', { body: { token, purpose: 'authorization', reference: 'order/2026-1:a' } }, { ...opened, purpose: 'authorization', reference: 'order/2026-1:a' });
  await ask('getnet', 'POST', '/v1/detokenize', { body: { token, purpose: 'capture' } }, { ...opened, purpose: 'capture' });
  const refusedDetokenize = (code: string, more: Said = {}): Said => ({ action: 'detokenize', outcome: 'refused', code, ...more });
  await ask('getnet', 'POST', '/v1/detokenize', { body: { token, purpose: 'refund', reference: 'r-1' } }, refusedDetokenize('quota_exceeded', { policies: detokenizes, purpose: 'refund', reference: 'r-1', tokens: { quota_exceeded: [token] } }));
  await ask('getnet', 'POST', '/v1/detokenize', { body: { token, purpose: 'chargeback', reference: 'c-1' } }, refusedDetokenize('not_authorized', { policies: [], purpose: 'chargeback', reference: 'c-1', tokens: { not_authorized: [token] } }));
  await ask('checkout', 'POST', '/v1/detokenize', { body: { token, purpose: 'capture' } }, refusedDetokenize('not_authorized', { policies: [], purpose: 'capture', tokens: { not_authorized: [token] } }));
  await ask('getnet', 'POST', '/v1/detokenize', { body: { token: tokenOf(foreign), purpose: 'capture' } }, refusedDetokenize('token_unknown', { policies: detokenizes, purpose: 'capture', tokens: { token_unknown: [tokenOf(foreign)] } }));
  await ask('getnet', 'POST', '/v1/detokenize', { body: { token: 'my own words', purpose: 'capture' } }, refusedDetokenize('token_unknown', { policies: detokenizes, purpose: 'capture', items: { malformed: 1 } }));
  await ask('getnet', 'POST', '/v1/detokenize', { body: { token, purpose: 'fun' } }, refusedDetokenize('invalid_request'));
  await ask('getnet', 'POST', '/v1/detokenize', { body: { token: cards.visa, purpose: 'capture' } }, refusedDetokenize('pan_in_other_field'));

  // Elsewhere.
  await ask('checkout', 'GET', '/v1/nowhere', {}, { action: 'unknown_route', outcome: 'refused', code: 'not_found' });
  await ask('checkout', 'DELETE', '/v1/tokenize', { body: { a: 1 } }, { action: 'unknown_route', outcome: 'refused', code: 'not_found' });
  await ask('checkout', 'GET', '/v1/%zz', {}, { action: 'unknown_route', outcome: 'refused', code: 'invalid_request' });
  await ask('checkout', 'GET', `/v1/tokens/${cards.visa}`, {}, { action: 'metadata', outcome: 'refused', code: 'pan_in_other_field' });
  await ask('auditor on admin', 'GET', '/v1/status', {}, { action: 'status', outcome: 'allowed', policies: ['auditor-reads-the-log'] });
  await ask('checkout on admin', 'GET', '/v1/status', {}, { action: 'status', outcome: 'refused', code: 'not_authorized', policies: [] });
  await ask('checkout', 'GET', '/openapi.json', {});
  t.pass();
});

await t.test('a row that somebody changed fails the call and not the vault, and what was authorized but did not open is told twice', async (t) => {
  const tampered = tokenOf(await clients['checkout']!.post('/v1/tokenize', { pan: cards.tampered }));
  const damaged = tokenOf(await clients['checkout']!.post('/v1/tokenize', { pan: cards.damaged }));
  await superuser.query("UPDATE cards SET status = 1, row_version = 2 WHERE token = $1", [tampered]);
  await superuser.query('UPDATE cards SET sealed_pan = (SELECT sealed_pan FROM cards WHERE token = $2) WHERE token = $1', [damaged, tampered]);
  const failed = { outcome: 'failed', code: 'internal' };
  const named = (token: string): Said => ({ tokens: { internal: [token] } });
  isProblem(t, await ask('checkout', 'POST', '/v1/tokenize', { body: { pan: cards.tampered } }, { action: 'tokenize', policies: tokenizes, ...failed }), 'internal');
  isProblem(t, await ask('checkout', 'POST', '/v1/validate', { body: { token: tampered } }, { action: 'validate', policies: tokenizes, ...failed, ...named(tampered) }), 'internal');
  isProblem(t, await ask('checkout', 'GET', `/v1/tokens/${tampered}`, {}, { action: 'metadata', policies: tokenizes, ...failed, ...named(tampered) }), 'internal');
  isProblem(t, await ask('getnet', 'POST', '/v1/detokenize', { body: { token: tampered, purpose: 'capture' } }, { action: 'detokenize', policies: detokenizes, purpose: 'capture', ...failed, ...named(tampered) }), 'internal');
  const authorized = { action: 'detokenize', policies: detokenizes, purpose: 'capture' };
  isProblem(t, await ask('getnet', 'POST', '/v1/detokenize', { body: { token: damaged, purpose: 'capture' } }, { ...authorized, outcome: 'allowed', tokens: { authorized: [damaged] } }, { ...authorized, ...failed, ...named(damaged) }), 'internal');
});

await t.test('a call that its client cut off is an entry, though nobody was answered', async (t) => {
  const cutOff = async (): Promise<number> => (await readLog(appliance)).filter(({ value }) => value['action'] === 'tokenize' && value['code'] === 'invalid_request' && !expected.has(value['request'] as string)).length;
  t.equal(await cutOff(), 0);
  const socket = await clients['checkout']!.connect();
  socket.write(`POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"pan":"${cards.visa}"`);
  await new Promise((resolve) => setTimeout(resolve, 200));
  socket.destroy();
  await until(async () => (await cutOff()) === 1, 'the entry');
});

await t.test('a revoked caller is named in the entry of its refusal', async (t) => {
  const operator = clients['operator-b']!;
  t.equal(pki.revoke('operator-b'), serials['operator-b']);
  // Its open connections are closed as the list comes into force.
  await until(async () => (await operator.get('/openapi.json').catch(() => null))?.status === 403, 'the revocation');
  // Without policies: it is refused before anybody asks what it may do.
  isProblem(t, await ask('operator-b', 'POST', '/v1/validate', { body: { token: 'x' } }, { action: 'validate', outcome: 'refused', code: 'not_authorized' }), 'not_authorized');
});

let entries: LoggedEntry[] = [];

await t.test('each call is in exactly one entry, which says all that the call was', async (t) => {
  entries = await readLog(appliance);
  for (const [request, { caller, said }] of expected) {
    const found = entries.filter(({ value }) => value['request'] === request).map(({ value }) => value);
    const wanted = said.map((facts) => ({
      ...facts,
      from: '127.0.0.1',
      request,
      ...(caller === null ? {} : { caller: `spiffe://cofre.dev/${spiffe[caller]}`, serial: serials[caller], tenant: spiffe[caller]!.split('/')[1] }),
      v: 1,
    }));
    t.same(found.map(({ at: _at, ...rest }) => rest), wanted, JSON.stringify(said));
    for (const { at } of found) t.match(at, /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$/u);
  }
});

await t.test('the chain of each role begins with its start and holds against the certificate that the HSM signed', async (t) => {
  // readLog has checked signatures, numbers and certificates, and throws at a fault.
  t.same([...new Set(entries.map(({ role }) => role))].sort(), ['detokenize', 'sequencer', 'tokenize']);
  for (const role of ['tokenize', 'detokenize', 'sequencer']) {
    const [first] = entries.filter((entry) => entry.role === role);
    t.equal(first?.batch, 0n);
    t.equal(first?.value['action'], 'writer.start');
    const detail = first?.value['detail'] as Record<string, unknown>;
    t.equal(detail['role'], role);
    t.equal(detail['writer'], first?.writer);
    if (role === 'sequencer') t.notOk('policies' in detail, 'it decides no call');
    else t.match(detail['policies'], /^[0-9a-f]{64}$/u);
  }
  t.ok(entries.filter(({ value }) => value['action'] === 'detokenize' && value['outcome'] === 'allowed').every(({ role }) => role === 'detokenize'), 'what opens a card is in the chain of who may');
});

await t.test('after a clean stop the chains are closed, and their successors name them', async (t) => {
  clients['checkout']?.close();
  const ended = await appliance.stop();
  t.same(ended, { code: 0, signal: null });
  const names = ['tokenize', 'tokenize-batch', 'detokenize', 'sequencer'];
  const notes = Object.fromEntries(names.map((role) => [role, JSON.parse(readFileSync(join(appliance.home, 'writers', `${role}.json`), 'utf8')) as Record<string, unknown>]));
  await appliance.start();
  entries = await readLog(appliance);
  for (const role of names) {
    const [earlier, later] = entries.filter(({ value }) => value['action'] === 'writer.start' && (value['detail'] as Record<string, unknown>)['name'] === role).map(({ writer }) => writer);
    const ofRole = entries.filter(({ writer }) => writer === earlier || writer === later);
    const last = ofRole.findLast(({ writer }) => writer === earlier)!;
    t.equal(last.value['action'], 'writer.stop');
    t.same(notes[role], { ...notes[role], writer: earlier, number: String(last.batch), closed: true });
    const start = ofRole.find(({ writer }) => writer === later)!.value['detail'] as Record<string, unknown>;
    t.same([start['predecessor'], start['predecessor_last'], start['predecessor_closed'], start['predecessor_hash']], [earlier, String(last.batch), 'yes', notes[role]!['hash']]);
  }
});

await t.test('a note of the last batch is never taken at its word where it is damaged', async (t) => {
  await appliance.stop();
  const file = join(appliance.home, 'writers/tokenize.json');
  const good = readFileSync(file);
  put(file, '{"writer":"0');
  const ended = await appliance.launch();
  t.equal(ended?.code, 1);
  t.match(appliance.err.trim().split('\n').at(-1), /^cofre: .*last batch/u);
  put(file, good);
  await appliance.start();
});

await t.test('no card number and no cardholder is in an entry, a table, a message or a file of the vault, WAL included', async (t) => {
  const client = new Client({ connectionString: appliance.databaseUrl });
  await client.connect();
  // Everything in memory goes to the files.
  await client.query('CHECKPOINT');
  await client.end();
  const [{ token }] = entries.flatMap(tokensOf) as unknown as [{ token: string }];
  t.ok(tracesInFolder(join(appliance.home, 'postgres'), [token]).some((trace) => trace.includes('/pg_wal/')), 'the search finds in the WAL what is there');
  t.ok(tracesInFolder(join(appliance.home, 'postgres'), [token]).some((trace) => trace.includes('/base/')), 'and in the tables');
  t.same(tracesInFolder(appliance.home, secrets), []);
  const mayHold = (call: string): boolean => /^POST \/v1\/detokenize 200$/u.test(call);
  t.same(await tracesOf(appliance, secrets, mayHold), []);
  t.same(entries.filter(({ text }) => secrets.some((secret) => text.includes(secret))), []);
  for (const { text } of entries) t.ok(text.length < 4096);
});
