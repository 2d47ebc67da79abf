/** Batches, end to end over mutual TLS against the real appliance: each item on its own, the call as one, and one entry for it. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import type { ApiClient, Reply } from '../support/api-client.ts';
import { tracesIn, tracesOf } from '../support/card-traces.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { readLog, tokensOf, type LoggedEntry } from '../support/log-reader.ts';
import { TEST_RANGES, madeCandidate } from '../support/made-cards.ts';
import { isProblem } from '../support/problem.ts';
import { cardOfLength, cardText } from '../support/test-cards.ts';

const perMinute = 100;
const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database, config: { quotas: [{ caller: 'spiffe://cofre.dev/tenant/acme/service/getnet', purpose: 'refund', per_minute: perMinute }] } });
const checkout = appliance.client('checkout');
const getnet = appliance.client('getnet');
const globex = appliance.client('checkout-globex');

interface Made {
  readonly token: string;
  readonly created: boolean;
  readonly format: string;
  readonly status: string;
  readonly card_id: string;
  readonly last4: string;
  readonly expiry: string | null;
}
interface Refused {
  readonly error: { readonly code: string; readonly title: string; readonly status: number; readonly retryable: boolean };
}
interface Opened {
  readonly pan: string;
  readonly expiry: string | null;
  readonly cardholder: string | null;
}
type Item = Made | Refused;

let nextCard = 0;
/** Every number and name that was sent, to be looked for afterwards. */
const secrets = new Set<string>();
const secret = (text: string): string => {
  secrets.add(text);
  return text;
};
const newCard = (): string => secret(cardText(nextCard++));
let nextKey = 0;
const newKey = (): { 'idempotency-key': string } => ({ 'idempotency-key': `batch-${nextKey++}` });

/** Sends items. @throws Error unless each is answered. */
async function batch(items: readonly unknown[], headers: Record<string, string> = {}, client: ApiClient = checkout): Promise<Item[]> {
  const reply = await client.post('/v1/tokenize/batch', { items }, headers);
  return itemsOf<Item>(reply, items.length);
}
function itemsOf<Each>(reply: Reply, count: number): Each[] {
  const { items } = reply.json() as { items?: Each[] };
  if (reply.status !== 200 || items?.length !== count) throw new Error(`a batch of ${count} was answered ${reply.status} with ${items === undefined ? String(reply.json()['code']) : items.length}`);
  return items;
}
const made = (items: readonly Item[]): Made[] =>
  items.map((item) => {
    if (!('token' in item)) throw new Error(`an item was refused as ${item.error.code}`);
    return item;
  });
const codes = (items: readonly (Item | Opened)[]): (string | null)[] => items.map((item) => ('error' in item ? item.error.code : null));
const open = async (tokens: readonly string[], purpose = 'capture'): Promise<(Opened | Refused)[]> => itemsOf(await getnet.post('/v1/detokenize/batch', { tokens, purpose }), tokens.length);
const entryOf = async (reply: Reply): Promise<LoggedEntry[]> => (await readLog(appliance)).filter(({ value }) => value['request'] === reply.headers['x-request-id']);
/** What one entry of a call says, beside who and when. */
const said = async (t: Test, reply: Reply): Promise<Record<string, unknown>> => {
  const entries = await entryOf(reply);
  t.equal(entries.length, 1, 'one entry');
  const { action, outcome, code, tokens, items } = entries[0]!.value;
  return Object.fromEntries(Object.entries({ action, outcome, code, tokens, items }).filter(([, value]) => value !== undefined));
};

await t.test('one card, and a thousand, are answered in their order, and open to their own', { timeout: 120_000 }, async (t) => {
  for (const count of [1, 2, 99, 1000]) {
    const pans = Array.from({ length: count }, newCard);
    const reply = await checkout.post('/v1/tokenize/batch', { items: pans.map((pan, n) => ({ pan, expiry: `20${30 + (n % 9)}-01` })) });
    t.match(reply.headers['content-type'], /^application\/json/u);
    const answers = made(itemsOf<Item>(reply, count));
    t.same(answers.map(({ last4, expiry, created, status, format }) => [last4, expiry, created, status, format]), pans.map((pan, n) => [pan.slice(-4), `20${30 + (n % 9)}-01`, true, 'active', 'opaque']));
    t.equal(new Set(answers.map(({ token }) => token)).size, count);
    const some = answers.map((answer, n) => ({ answer, pan: pans[n]! })).filter((_, n) => count <= 100 || n % 11 === 0);
    t.same((await open(some.map(({ answer }) => answer.token))).map((item) => ('pan' in item ? item.pan : item.error.code)), some.map(({ pan }) => pan));
    t.same(await said(t, reply), { action: 'tokenize_batch', outcome: 'allowed', tokens: { created: answers.map(({ token }) => token) } });
    const again = made(await batch(pans.map((pan) => ({ pan }))));
    t.same(again.map(({ token, created }) => [token, created]), answers.map(({ token }) => [token, false]), 'known now');
  }
});

await t.test('two cards that show the same are told apart', async (t) => {
  const twins = [7, 8, 9].map((serial) => secret(madeCandidate(TEST_RANGES[0], '4821', serial)));
  const tokens = made(await batch(twins.map((pan) => ({ pan })))).map(({ token }) => token);
  t.same((await open(tokens)).map((item) => ('pan' in item ? item.pan : item.error.code)), twins);
});

await t.test('a single answer and an item are the same', async (t) => {
  const pan = newCard();
  const single = (await checkout.post('/v1/tokenize', { pan, expiry: '2030-01', metadata: { a: 1 } })).json();
  t.same(await batch([{ pan }]), [{ ...single, created: false }]);
});

await t.test('an item is refused alone, with the answer that it would have had alone', async (t) => {
  const pan = newCard();
  const bad: readonly (readonly [code: string, item: unknown])[] = [
    ['invalid_pan', { pan: '4111111111111112' }],
    ['invalid_pan', { pan: '' }],
    ['invalid_pan', { pan: 'tok_' }],
    ['invalid_request', {}],
    ['invalid_request', null],
    ['invalid_request', 7],
    ['invalid_request', 'x'],
    ['invalid_request', []],
    ['invalid_request', { pan: null }],
    ['invalid_request', { pan: 7 }],
    ['invalid_request', { pan: newCard(), more: 1 }],
    ['invalid_request', { pan: newCard(), expiry: '2030-13' }],
    ['invalid_request', { pan: newCard(), reuse: false }],
    ['invalid_request', { pan: newCard(), cardholder: '漢'.repeat(86) }],
    ['invalid_request', { pan: newCard(), ttl_seconds: 0 }],
    ['invalid_request', { pan: newCard(), format: 'random' }],
    ['invalid_request', { pan: secret(cardOfLength(14, 3)), format: 'numeric' }],
    ['sad_refused', { pan: newCard(), cvv: '123' }],
    ['sad_refused', { pan: newCard(), metadata: { pin: '1' } }],
    ['pan_in_other_field', { pan: newCard(), cardholder: newCard() }],
    ['pan_in_other_field', { pan: newCard(), metadata: { note: newCard() } }],
    ['pan_in_other_field', { number: newCard() }],
    ['pan_in_other_field', newCard()],
    ['pan_in_other_field', [newCard()]],
  ];
  for (const [code, item] of bad) {
    const [before, after] = [newCard(), newCard()];
    const reply = await checkout.post('/v1/tokenize/batch', { items: [{ pan: before }, item, { pan: after }] });
    const items = itemsOf<Item>(reply, 3);
    const message = JSON.stringify(item).replaceAll(/\d{4,}/gu, '…').slice(0, 60);
    t.same(codes(items), [null, code, null], message);
    const problem = (items[1] as Refused).error;
    t.same(Object.keys(items[1]!), ['error'], message);
    const alone = (await checkout.post('/v1/tokenize', item)).json();
    if (code !== 'pan_in_other_field' || !(typeof item === 'string' || Array.isArray(item))) t.same(problem, { code: alone['code'], title: alone['title'], status: alone['status'], retryable: alone['retryable'] }, message);
    const tokens = [items[0] as Made, items[2] as Made];
    t.same(tokens.map(({ last4, created }) => [last4, created]), [before, after].map((text) => [text.slice(-4), true]), message);
    t.same(await said(t, reply), { action: 'tokenize_batch', outcome: 'allowed', tokens: { created: tokens.map(({ token }) => token) }, items: { [code]: 1 } }, message);
  }
  // All at once, in the midst of good ones.
  const mixed = bad.flatMap(([, item]) => [item, { pan }]);
  const reply = await checkout.post('/v1/tokenize/batch', { items: mixed });
  const items = itemsOf<Item>(reply, mixed.length);
  t.same(codes(items), bad.flatMap(([code]) => [code, null]));
  const { token } = items[1] as Made;
  const counts: Record<string, number> = {};
  for (const [code] of bad) counts[code] = (counts[code] ?? 0) + 1;
  t.same(await said(t, reply), { action: 'tokenize_batch', outcome: 'allowed', tokens: { created: [token], known: bad.slice(1).map(() => token) }, items: counts });
});

await t.test('a batch of which nothing can be taken is answered item by item, has an entry, and leaves its Idempotency-Key free', async (t) => {
  const key = newKey();
  const bad = [{ pan: '4111111111111112' }, { pan: newCard(), cvc: '1' }, {}];
  for (let round = 0; round < 2; round += 1) {
    const reply = await checkout.post('/v1/tokenize/batch', { items: bad }, key);
    t.same(codes(itemsOf<Item>(reply, 3)), ['invalid_pan', 'sad_refused', 'invalid_request']);
    t.same(await said(t, reply), { action: 'tokenize_batch', outcome: 'allowed', items: { invalid_pan: 1, sad_refused: 1, invalid_request: 1 } });
  }
  const many = appliance.client('checkout', { connections: 16 });
  const replies = await Promise.all(Array.from({ length: 16 }, () => many.post('/v1/tokenize/batch', { items: bad }, key)));
  t.same([...new Set(replies.map(({ status }) => status))], [200], 'also many at once');
  t.same(made(await batch([{ pan: newCard() }], key)).map(({ created }) => created), [true]);
});

await t.test('an empty batch, one of 1001, and one that is too large are refused as a whole', async (t) => {
  for (const body of [{ items: [] }, {}, { items: null }, { items: {} }, { items: 'x' }, { items: [{ pan: newCard() }], more: 1 }]) isProblem(t, await checkout.post('/v1/tokenize/batch', body), 'invalid_request', JSON.stringify(body).replaceAll(/\d{4,}/gu, '…'));
  const pan = newCard();
  const tooMany = await checkout.post('/v1/tokenize/batch', { items: Array.from({ length: 1001 }, () => ({ pan })) });
  isProblem(t, tooMany, 'too_many_items');
  t.same(await said(t, tooMany), { action: 'tokenize_batch', outcome: 'refused', code: 'too_many_items' });
  isProblem(t, await checkout.post('/v1/tokenize/batch', { items: Array.from({ length: 5000 }, () => ({})) }), 'too_many_items', 'whatever they are');
  const padded = (bytes: number): Buffer => {
    const body = JSON.stringify({ items: [{ pan }] });
    return Buffer.from(body.replace('[', `[${' '.repeat(bytes - body.length)}`), 'utf8');
  };
  for (const chunked of [false, true]) isProblem(t, await checkout.call('POST', '/v1/tokenize/batch', { body: padded(1024 * 1024 + 1), chunked }), 'payload_too_large', chunked ? 'chunked' : 'with its length');
  isProblem(t, await checkout.post('/v1/tokenize', { items: [{ pan }] }), 'pan_in_other_field', 'nor does the single call take one');
  t.same(made(itemsOf<Item>(await checkout.call('POST', '/v1/tokenize/batch', { body: padded(1024 * 1024) }), 1)).map(({ created }) => created), [true], 'what just fits is taken, and nothing of the others stood');
  isProblem(t, await checkout.post('/v1/tokenize/batch', { items: [{ pan }], cvv: '1' }), 'sad_refused', 'beside the items');
  isProblem(t, await checkout.post('/v1/tokenize/batch', { items: [{ pan }], note: pan }), 'pan_in_other_field', 'beside the items');
  for (const client of ['intruder', 'getnet', 'auditor']) isProblem(t, await appliance.client(client).post('/v1/tokenize/batch', { items: [{ pan }] }), 'not_authorized', client);
});

await t.test('twins in a batch are one card: each with its own expiry in the answer, the last of names and expiries stands', async (t) => {
  const pan = newCard();
  const [first, second] = [secret('AMÉLIA DE TAL'), secret('BENTO DE TAL')];
  for (const created of [true, false]) {
    const items = made(await batch([{ pan }, { pan, expiry: '2030-01', cardholder: first }, { pan: newCard() }, { pan, cardholder: second }, { pan, expiry: '2031-02' }]));
    const twins = [items[0]!, items[1]!, items[3]!, items[4]!];
    t.equal(new Set(twins.map(({ token, card_id: card }) => `${token} ${card}`)).size, 1);
    t.same(twins.map((twin) => twin.created), [created, false, false, false]);
    t.same(twins.slice(1).map(({ expiry }) => expiry), ['2030-01', '2030-01', '2031-02']);
    t.same(await open([twins[0]!.token]), [{ pan, expiry: '2031-02', cardholder: second }]);
  }
});

await t.test('formats, reuse and ends are mixed in one batch, and 1000 tokens of either format fit one entry', { timeout: 60_000 }, async (t) => {
  const pan = newCard();
  const items = [{ pan }, { pan, format: 'numeric' }, { pan, format: 'numeric' }, { pan, reuse: false }, { pan, ttl_seconds: 60 }, { pan, ttl_seconds: 60 }, { pan, format: 'numeric', reuse: false }, { pan }];
  const answers = made(await batch(items, newKey()));
  t.same(answers.map(({ created }) => created), [true, true, false, true, true, true, true, false]);
  t.same([answers[2]!.token, answers[7]!.token], [answers[1]!.token, answers[0]!.token]);
  t.equal(new Set(answers.map(({ token }) => token)).size, 6);
  t.equal(new Set(answers.map(({ card_id: card }) => card)).size, 1);
  for (const { format, token, last4 } of answers) if (format === 'numeric') t.match(token, new RegExp(`^99[0-9]{10}${last4}$`, 'u'));
  t.same(await open(answers.map(({ token }) => token)), answers.map(() => ({ pan, expiry: null, cardholder: null })));

  // The longest tokens that there are: of 1000 opaque ones, and of 1000 numeric ones of 19 digits, each once as made, once as known and once as replayed.
  const opaque = Array.from({ length: 1000 }, newCard).map((text) => ({ pan: text, reuse: false }));
  const numeric = Array.from({ length: 1000 }, (_, n) => ({ pan: secret(cardOfLength(19, 10_000 + n)), format: 'numeric' }));
  for (const whole of [opaque, numeric]) {
    const key = newKey();
    for (const outcome of ['created', 'replayed']) {
      const reply = await checkout.post('/v1/tokenize/batch', { items: whole }, key);
      const tokens = made(itemsOf<Item>(reply, 1000)).map(({ token }) => token);
      const [entry] = await entryOf(reply);
      t.same(tokensOf(entry!), tokens.map((token) => ({ token, outcome })));
      t.ok(Buffer.byteLength(entry!.text) < 65_536, `${Buffer.byteLength(entry!.text)} bytes`);
    }
  }
});

await t.test('a batch with an Idempotency-Key is answered again with what it made, as that is now', async (t) => {
  const pans = Array.from({ length: 4 }, newCard);
  const items: readonly object[] = [{ pan: pans[0], reuse: false }, { pan: '4111111111111112' }, { pan: pans[1], expiry: '2030-01' }, { pan: pans[2], format: 'numeric', metadata: { b: 1, a: 2 } }, { pan: pans[3], cardholder: secret('CARLOTA DE TAL') }];
  const key = newKey();
  const first = await batch(items, key);
  t.same(await batch(items.map((item) => Object.fromEntries(Object.entries(item).toReversed())), key), first, 'in whatever order the members stand');
  const replayed = await checkout.post('/v1/tokenize/batch', { items }, key);
  const tokens = first.flatMap((item) => ('token' in item ? [item.token] : []));
  t.same(await said(t, replayed), { action: 'tokenize_batch', outcome: 'allowed', tokens: { replayed: tokens }, items: { invalid_pan: 1 } });

  await checkout.call('DELETE', `/v1/tokens/${tokens[0]}`);
  await checkout.call('POST', `/v1/tokens/${tokens[1]}/suspend`);
  await checkout.post('/v1/tokenize', { pan: pans[2], expiry: '2031-02' });
  const now = await batch(items, key);
  t.same(now, [{ ...first[0], status: 'revoked' }, first[1], { ...first[2], status: 'suspended' }, { ...first[3], expiry: '2031-02' }, first[4]], 'also after one was deleted with its card, one suspended and one updated');
  t.same(made([(await batch([{ pan: pans[0] }]))[0]!]).map(({ created, card_id: card }) => [created, card === (first[0] as Made).card_id]), [[true, false]], 'the deleted card is made anew by others');
  t.same(await batch(items, key), now, 'and not by the key');

  const others = [items.slice(1), [...items, { pan: newCard() }], items.toReversed(), items.with(0, { pan: pans[0]! }), items.with(2, { pan: pans[1]!, expiry: '2030-02' }), items.with(3, { pan: pans[2]!, metadata: { a: 2, b: 2 } }), items.with(4, { pan: newCard(), cardholder: 'CARLOTA DE TAL' }), items.with(1, { pan: newCard() })];
  for (const [n, other] of others.entries()) {
    const reply = await checkout.post('/v1/tokenize/batch', { items: other }, key);
    isProblem(t, reply, 'idempotency_conflict', `${n}`);
    t.same(await said(t, reply), { action: 'tokenize_batch', outcome: 'refused', code: 'idempotency_conflict' });
  }
  t.equal((await checkout.post('/v1/tokenize', { pan: newCard() }, key)).status, 201, 'the single call has keys of its own');
  t.same(made(await batch([{ pan: newCard(), reuse: false }], key, globex)).map(({ created }) => created), [true], 'and so has another caller');
});

await t.test('one Idempotency-Key at the same moment, from many connections, makes each token once', async (t) => {
  const many = appliance.client('checkout', { connections: 24 });
  await Promise.all(Array.from({ length: 24 }, () => many.get('/openapi.json')));
  const known = newCard();
  await checkout.post('/v1/tokenize', { pan: known });
  for (const items of [[{ pan: newCard(), reuse: false }, { pan: newCard(), format: 'numeric' }, { pan: newCard() }], [{ pan: known, cardholder: secret('DALVA DE TAL') }, { pan: known, reuse: false }, { pan: newCard(), cardholder: secret('ELZA DE TAL') }]]) {
    const key = newKey();
    const replies = await Promise.all(Array.from({ length: 24 }, () => many.post('/v1/tokenize/batch', { items }, key)));
    t.same([...new Set(replies.map(({ status }) => status))], [200]);
    t.equal(new Set(replies.map(({ body }) => body.toString('utf8'))).size, 1, 'all get the one answer');
    const tokens = made(itemsOf<Item>(replies[0]!, 3)).map(({ token }) => token);
    const log = await readLog(appliance);
    const outcomes = log.filter(({ value }) => replies.some((reply) => reply.headers['x-request-id'] === value['request'])).map((entry) => tokensOf(entry).every(({ outcome }) => outcome === 'replayed'));
    t.equal(outcomes.length, 24);
    t.equal(outcomes.filter((isReplay) => !isReplay).length, 1, 'one of them did it');
    t.equal(log.flatMap(tokensOf).filter(({ token, outcome }) => tokens.includes(token) && outcome === 'created').length, 3, 'and each token was made once');
  }
});

await t.test('the same new cards in many batches at once are one card each', async (t) => {
  const many = appliance.client('checkout', { connections: 8 });
  const pans = Array.from({ length: 60 }, newCard);
  const answers = await Promise.all(Array.from({ length: 8 }, async (_, n) => await batch((n % 2 === 0 ? pans : pans.toReversed()).map((pan) => ({ pan, format: n % 4 < 2 ? 'opaque' : 'numeric' })), {}, many)));
  const all = answers.flatMap(made);
  t.equal(new Set(all.map(({ card_id: card }) => card)).size, 60);
  t.equal(new Set(all.map(({ token }) => token)).size, 120, 'and each format one token');
  t.equal(all.filter(({ created }) => created).length, 120);
});

await t.test('tokens are opened in their order, each refused alone, and one entry says what became of each', async (t) => {
  const name = secret('FLORA DE TAL');
  const pans = Array.from({ length: 6 }, newCard);
  const [one, two, suspended, gone, ending, sibling] = made(await batch([{ pan: pans[0], expiry: '2030-01', cardholder: name }, { pan: pans[1] }, { pan: pans[2] }, { pan: pans[3] }, { pan: pans[4], ttl_seconds: 1 }, { pan: pans[0], format: 'numeric' }]));
  await checkout.call('POST', `/v1/tokens/${suspended!.token}/suspend`);
  await checkout.call('DELETE', `/v1/tokens/${gone!.token}`);
  const foreign = made(await batch([{ pan: pans[0] }, { pan: pans[0], format: 'numeric' }], {}, globex));
  await until(async () => (await checkout.post('/v1/validate', { token: ending!.token })).json()['status'] === 'expired', 'its end');
  const tokens = [two!.token, 'tok_nothing', one!.token, suspended!.token, foreign[0]!.token, sibling!.token, gone!.token, '', ending!.token, one!.token, foreign[1]!.token];
  const reply = await getnet.post('/v1/detokenize/batch', { tokens, purpose: 'capture', reference: 'order/1' });
  t.equal(reply.headers['cache-control'], 'no-store');
  t.equal(Number(reply.headers['content-length']), reply.body.length);
  const card = { pan: pans[0], expiry: '2030-01', cardholder: name };
  const items = itemsOf<Opened | Refused>(reply, tokens.length);
  t.same(items.map((item) => ('error' in item ? item.error.code : item)), [{ pan: pans[1], expiry: null, cardholder: null }, 'token_unknown', card, 'token_suspended', 'token_unknown', card, 'token_revoked', 'token_unknown', 'token_expired', card, 'token_unknown']);
  const alone = (await getnet.post('/v1/detokenize', { token: gone!.token, purpose: 'capture' })).json();
  t.same((items[6] as Refused).error, { code: alone['code'], title: alone['title'], status: alone['status'], retryable: alone['retryable'] });
  t.same(await said(t, reply), {
    action: 'detokenize_batch',
    outcome: 'allowed',
    tokens: { authorized: [two!.token, one!.token, sibling!.token, one!.token], token_suspended: [suspended!.token], token_unknown: [foreign[0]!.token, foreign[1]!.token], token_revoked: [gone!.token], token_expired: [ending!.token] },
    items: { malformed: 2 },
  });
  t.same((await entryOf(reply)).map(({ value }) => [value['purpose'], value['reference']]), [['capture', 'order/1']]);
  t.same(codes(await open(['tok_nothing', foreign[0]!.token])), ['token_unknown', 'token_unknown'], 'all bad');
});

await t.test('a batch of tokens has 1 to 100 of them, and a purpose that is granted', async (t) => {
  const pans = Array.from({ length: 100 }, newCard);
  const tokens = made(await batch(pans.map((pan) => ({ pan })))).map(({ token }) => token);
  t.same((await open(tokens.toReversed())).map((item) => ('pan' in item ? item.pan : null)), pans.toReversed());
  isProblem(t, await getnet.post('/v1/detokenize/batch', { tokens: [...tokens, tokens[0]], purpose: 'capture' }), 'too_many_items');
  for (const body of [{ tokens: [], purpose: 'capture' }, { tokens: tokens[0], purpose: 'capture' }, { tokens: [7], purpose: 'capture' }, { tokens: [null], purpose: 'capture' }, { tokens }, { tokens, purpose: 'marketing' }, { tokens, purpose: 'capture', reference: 'a b' }, { token: tokens[0], purpose: 'capture' }, { tokens: ['x'.repeat(1025)], purpose: 'capture' }]) {
    isProblem(t, await getnet.post('/v1/detokenize/batch', body), 'invalid_request', JSON.stringify(body).slice(0, 60));
  }
  isProblem(t, await getnet.post('/v1/detokenize/batch', { tokens: [tokens[0], pans[0]], purpose: 'capture' }), 'pan_in_other_field');
  const refused = await getnet.post('/v1/detokenize/batch', { tokens: [tokens[0], 'x', tokens[1]], purpose: 'chargeback' });
  isProblem(t, refused, 'not_authorized');
  t.same((await said(t, refused))['tokens'], { not_authorized: [tokens[0], tokens[1]] });
  for (const client of ['checkout', 'checkout-globex', 'intruder']) isProblem(t, await appliance.client(client).post('/v1/detokenize/batch', { tokens: [tokens[0]], purpose: 'capture' }), 'not_authorized', client);
});

await t.test('a quota counts tokens, good and bad, and a call that it does not cover is refused as a whole', async (t) => {
  const used = (tokens: number): Promise<void> => withClient({ connectionString: database.adminUrl }, async (client) => void (await client.query('UPDATE quota_counts SET used = $1', [tokens])));
  const [token] = made(await batch([{ pan: newCard() }]));
  const refund = (count: number): Promise<Reply> => getnet.post('/v1/detokenize/batch', { tokens: Array.from({ length: count }, (_, n) => (n % 3 === 2 ? 'tok_nothing' : token!.token)), purpose: 'refund' });
  // The calls of this test fall into one minute of the vault.
  while (new Date().getUTCSeconds() > 40) await sleep(250);
  t.equal((await refund(60)).status, 200);
  t.equal((await refund(30)).status, 200);
  const refused = await refund(11);
  isProblem(t, refused, 'quota_exceeded');
  t.match(await said(t, refused), { action: 'detokenize_batch', outcome: 'refused', code: 'quota_exceeded', tokens: { quota_exceeded: Array.from({ length: 8 }, () => token!.token) }, items: { malformed: 3 } });
  t.equal((await refund(10)).status, 200, 'what is left is enough for a smaller one');
  isProblem(t, await getnet.post('/v1/detokenize', { token: token!.token, purpose: 'refund' }), 'quota_exceeded', 'the single call shares it');
  await used(0);
  const many = appliance.client('getnet', { connections: 8 });
  const replies = await Promise.all(Array.from({ length: 8 }, () => many.post('/v1/detokenize/batch', { tokens: Array.from({ length: 30 }, () => token!.token), purpose: 'refund' })));
  t.ok(replies.filter(({ status }) => status === 200).length <= 3, 'at the same moment too');
  t.ok(replies.some(({ status }) => status === 200));
});

await t.test('who may take cards out one by one may not do so by the hundred without a grant for that', async (t) => {
  const [{ token }] = made(await batch([{ pan: newCard() }])) as [Made];
  const file = join(appliance.home, 'policies/acme.cedar');
  const before = readFileSync(file, 'utf8');
  const without = before.replace(/\/\/ Taking cards out by the hundred[\s\S]*?\n\};?\n/u, '');
  t.notMatch(without, /detokenize_batch/u);
  const whole = (): Promise<Reply> => getnet.post('/v1/detokenize/batch', { tokens: [token], purpose: 'capture' });
  const put = async (text: string, status: number): Promise<void> => {
    writeFileSync(file, text);
    appliance.signal('SIGHUP');
    await until(async () => (await whole()).status === status, 'the reload');
  };
  await put(without, 403);
  isProblem(t, await whole(), 'not_authorized');
  t.equal((await getnet.post('/v1/detokenize', { token, purpose: 'capture' })).status, 200);
  await put(before, 200);
});

await t.test('no number and no name of all that stands in the log, in the metrics, in a message, in a table, or in any answer that is not to hold it', { timeout: 60_000 }, async (t) => {
  const all = [...secrets];
  t.ok(all.length > 2500, `${all.length} secrets`);
  // Few enough to be looked for in every form, everywhere.
  const some = all.filter((text, n) => n % 37 === 0 || !/^\d+$/u.test(text));
  t.same(await tracesOf(appliance, some, (call) => call.includes('/v1/detokenize')), []);
  const log = (await readLog(appliance)).map(({ text }) => text).join('\n');
  const metrics = await (await fetch(`${appliance.telemetryUrl}/metrics`)).text();
  t.match(metrics, /operation="tokenize_batch"/u);
  t.same(all.filter((text) => log.includes(text) || metrics.includes(text)).length, 0);
  t.same(tracesIn(metrics, some), []);
  t.notMatch(metrics, /tok_/u);
});
