/** The API's contract, end to end over mutual TLS against the real appliance. */
import t from 'tap';
import { startAppliance } from '../support/appliance.ts';
import type { Reply } from '../support/api-client.ts';
import { freshDatabase } from '../support/database.ts';
import { isProblem } from '../support/problem.ts';
import { cardOfLength, cardText, publishedCards } from '../support/test-cards.ts';

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database });
const checkout = appliance.client('checkout');
const getnet = appliance.client('getnet');
const globex = appliance.client('checkout-globex');

const tokenForm = /^tok_[0-9A-Za-z]{32}$/u;
const cardIdForm = /^card_[0-9a-f]{32}$/u;
const timeForm = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$/u;

interface Tokenized {
  token: string;
  created: boolean;
  format: string;
  status: string;
  card_id: string;
  brand: string;
  bin?: string;
  last4: string;
  length: number;
  expiry: string | null;
  created_at: string;
  expires_at: string | null;
}

/** Cards are told apart by number, so that no test meets another's. */
let nextCard = 0;
const newCard = (): string => cardText(nextCard++);

/** @throws Error if the answer is not that of a token that was made or known. */
const tokenized = (reply: Reply): Tokenized => {
  if (reply.status !== 200 && reply.status !== 201) throw new Error(`tokenize answered ${reply.status} ${reply.body.toString('utf8')}`);
  return reply.json() as unknown as Tokenized;
};
const tokenize = async (client: typeof checkout, body: object, headers = {}): Promise<Tokenized> => tokenized(await client.post('/v1/tokenize', body, headers));
const open = async (token: string): Promise<Record<string, unknown>> => (await getnet.post('/v1/detokenize', { token, purpose: 'authorization' })).json();

await t.test('a new card is created, the same card is known, and both answers name the same token and card', async (t) => {
  const pan = newCard();
  const first = await checkout.post('/v1/tokenize', { pan, expiry: '2029-12' });
  t.equal(first.status, 201);
  t.match(first.headers['content-type'], /^application\/json/u);
  const made = tokenized(first);
  t.same(Object.keys(made).sort(), ['bin', 'brand', 'card_id', 'created', 'created_at', 'expires_at', 'expiry', 'format', 'last4', 'length', 'status', 'token']);
  t.match(made.token, tokenForm);
  t.match(made.card_id, cardIdForm);
  t.match(made.created_at, timeForm);
  const { token, card_id: cardId, created_at: createdAt } = made;
  t.same(made, { token, created: true, format: 'opaque', status: 'active', card_id: cardId, brand: 'visa', bin: pan.slice(0, 6), last4: pan.slice(-4), length: 16, expiry: '2029-12', created_at: createdAt, expires_at: null });

  const second = await checkout.post('/v1/tokenize', { pan, expiry: '2029-12' });
  t.equal(second.status, 200);
  t.same(tokenized(second), { ...made, created: false });
  t.notOk(token.includes(pan), 'the token says nothing of the number');
});

await t.test('every published test card comes back as it went in, with its brand, and no bin below 15 digits', async (t) => {
  const lengths = [12, 13, 14, 15, 16, 19].map((length) => ({ pan: cardOfLength(length, 77), brand: null }));
  for (const { pan, brand } of [...publishedCards, ...lengths]) {
    const made = await tokenize(checkout, { pan });
    const masked = `${pan.length} digits, ${brand ?? 'made'}`;
    if (brand !== null) t.equal(made.brand, brand, masked);
    t.equal(made.length, pan.length, masked);
    t.equal(made.bin, pan.length < 15 ? undefined : pan.slice(0, 6), masked);
    t.equal(made.last4, pan.slice(-4), masked);
    t.same(await open(made.token), { pan, expiry: null, cardholder: null }, masked);
  }
});

await t.test('what is no card number is invalid_pan, whoever is asked', async (t) => {
  for (const pan of ['', '4111111111111112', '41111111111', '41111111111111111111', '4111 1111 1111 1111', '4111-1111-1111-1111', '4111111111111111\n', 'tok_', '٤١١١١١١١١١١١١١١١']) {
    isProblem(t, await checkout.post('/v1/tokenize', { pan }), 'invalid_pan', JSON.stringify(pan));
  }
});

await t.test('every answer says that it must not be stored, and carries its request id', async (t) => {
  const pan = newCard();
  const { token } = await tokenize(checkout, { pan });
  const replies = [
    await checkout.post('/v1/tokenize', { pan }),
    await checkout.post('/v1/validate', { token }),
    await checkout.get(`/v1/tokens/${token}`),
    await getnet.post('/v1/detokenize', { token, purpose: 'capture' }),
    await getnet.post('/v1/detokenize', { token, purpose: 'chargeback' }),
    await checkout.get('/v1/nowhere'),
  ];
  for (const reply of replies) {
    t.equal(reply.headers['cache-control'], 'no-store');
    t.match(reply.headers['x-request-id'], /^[0-9a-f-]{36}$/u);
    t.equal(reply.headers['server'], undefined);
  }
  t.equal(new Set(replies.map((reply) => reply.headers['x-request-id'])).size, replies.length, 'each its own');
  const refused = replies.at(-1)!;
  t.equal(refused.json()['request_id'], refused.headers['x-request-id']);
});

await t.test('validate tells active, unknown and malformed apart, and never fails for a token that is merely not good', async (t) => {
  const pan = newCard();
  const { token } = await tokenize(checkout, { pan, expiry: '2030-01' });
  const validate = async (text: string) => {
    const reply = await checkout.post('/v1/validate', { token: text });
    t.equal(reply.status, 200);
    return reply.json();
  };
  t.same(await validate(token), { valid: true, status: 'active', format: 'opaque', brand: 'visa', last4: pan.slice(-4), expiry: '2030-01', expires_at: null });
  // Of the other tenant, so it is well formed and not ours.
  const foreign = await tokenize(globex, { pan });
  t.same(await validate(foreign.token), { valid: false, status: 'unknown' });
  const swapped = token.at(-1) === 'a' ? 'b' : 'a';
  for (const text of ['', 'x', 'tok_', `${token.slice(0, -1)}${swapped}`, `${token}0`, token.toUpperCase(), ` ${token}`, `\u0000${token}`, 'é'.repeat(1024)]) {
    t.same(await validate(text), { valid: false, status: 'malformed' }, JSON.stringify(text.slice(0, 50)));
  }
  isProblem(t, await checkout.post('/v1/validate', { token: 'x'.repeat(1025) }), 'invalid_request');
});

await t.test('metadata shows what tokenize showed and what was kept with the token, masked', async (t) => {
  const pan = newCard();
  const kept = { order: 'A-1', attempt: 2, express: true, note: 'ação ✓', 'a.b_c-d': '' };
  const { created, ...view } = await tokenize(checkout, { pan, expiry: '2031-07', cardholder: 'ANA SILVA', metadata: kept });
  t.equal(created, true);
  const reply = await checkout.get(`/v1/tokens/${view.token}`);
  t.equal(reply.status, 200);
  t.same(reply.json(), { ...view, metadata: kept });
  t.notOk(reply.body.includes('ANA'), 'the name stays sealed');

  const known = await tokenize(checkout, { pan, metadata: { order: 'B-2' } });
  t.equal(known.token, view.token);
  t.same((await checkout.get(`/v1/tokens/${view.token}`)).json()['metadata'], { order: 'B-2' }, 'given again, it replaces what was kept');
  await tokenize(checkout, { pan });
  t.same((await checkout.get(`/v1/tokens/${view.token}`)).json()['metadata'], { order: 'B-2' }, 'not given, it stays');

  const further = await tokenize(checkout, { pan, reuse: false, metadata: { order: 'C-3' } }, { 'idempotency-key': 'metadata-1' });
  t.same((await checkout.get(`/v1/tokens/${further.token}`)).json()['metadata'], { order: 'C-3' });
  const bare = await tokenize(checkout, { pan: newCard() });
  t.equal((await checkout.get(`/v1/tokens/${bare.token}`)).json()['metadata'], null);

  isProblem(t, await checkout.get(`/v1/tokens/${(await tokenize(globex, { pan })).token}`), 'token_unknown');
  isProblem(t, await checkout.get('/v1/tokens/tok_nothing'), 'token_unknown');
  isProblem(t, await checkout.get(`/v1/tokens/${'x'.repeat(1000)}`), 'token_unknown');
});

await t.test('metadata beyond its bounds is refused', async (t) => {
  const pan = newCard();
  const many = (count: number): object => Object.fromEntries(Array.from({ length: count }, (_, n) => [`k${n}`, n]));
  t.equal((await checkout.post('/v1/tokenize', { pan, metadata: many(16) })).status, 201);
  for (const metadata of [many(17), { 'a b': 1 }, { '': 1 }, { ['k'.repeat(41)]: 1 }, { a: 'x'.repeat(257) }, { a: null }, { a: {} }, { a: [1] }, { a: 1.5 }, { a: 1e300 }, [], 'x', null]) {
    isProblem(t, await checkout.post('/v1/tokenize', { pan, metadata }), 'invalid_request', JSON.stringify(metadata).slice(0, 60));
  }
});

await t.test('a card number comes out for each purpose that is granted, and for no other', async (t) => {
  const pan = newCard();
  const { token } = await tokenize(checkout, { pan, expiry: '2028-02', cardholder: 'José da Conceição' });
  for (const purpose of ['authorization', 'capture', 'refund']) {
    const reply = await getnet.post('/v1/detokenize', { token, purpose, reference: 'order-1/a:b.c_d' });
    t.equal(reply.status, 200);
    t.match(reply.headers['content-type'], /^application\/json/u);
    t.equal(Number(reply.headers['content-length']), reply.body.length);
    t.same(reply.json(), { pan, expiry: '2028-02', cardholder: 'José da Conceição' });
  }
  isProblem(t, await getnet.post('/v1/detokenize', { token, purpose: 'chargeback' }), 'not_authorized');
  for (const body of [{ token }, { token, purpose: 'marketing' }, { token, purpose: '' }, { token, purpose: null }, { purpose: 'capture' }, { token: 7, purpose: 'capture' }, { token, purpose: 'capture', reference: 'a b' }, { token, purpose: 'capture', reference: 'x'.repeat(65) }, { token, purpose: 'capture', more: 1 }]) {
    isProblem(t, await getnet.post('/v1/detokenize', body), 'invalid_request', JSON.stringify(body));
  }
  const foreign = await tokenize(globex, { pan });
  for (const text of [foreign.token, 'tok_nothing', '', pan.replace(/^4/u, 'x')]) isProblem(t, await getnet.post('/v1/detokenize', { token: text, purpose: 'capture' }), 'token_unknown');
});

await t.test('two tenants with the same card get tokens and cards of their own, and each is unknown to the other', async (t) => {
  const pan = newCard();
  const [acme, other] = [await tokenize(checkout, { pan }), await tokenize(globex, { pan })];
  t.equal(other.created, true);
  t.not(other.token, acme.token);
  t.not(other.card_id, acme.card_id);
  t.same((await globex.post('/v1/validate', { token: acme.token })).json(), { valid: false, status: 'unknown' });
  t.same((await checkout.post('/v1/validate', { token: other.token })).json(), { valid: false, status: 'unknown' });
  isProblem(t, await globex.get(`/v1/tokens/${acme.token}`), 'token_unknown');
  isProblem(t, await getnet.post('/v1/detokenize', { token: other.token, purpose: 'capture' }), 'token_unknown');
  t.same(await open(acme.token), { pan, expiry: null, cardholder: null });
});

await t.test('each caller of the development set may do what section 6 says, and nothing else', async (t) => {
  const pan = newCard();
  const { token } = await tokenize(checkout, { pan });
  await tokenize(globex, { pan });
  const calls = {
    tokenize: (client: typeof checkout) => client.post('/v1/tokenize', { pan }),
    validate: (client: typeof checkout) => client.post('/v1/validate', { token }),
    metadata: (client: typeof checkout) => client.get(`/v1/tokens/${token}`),
    authorization: (client: typeof checkout) => client.post('/v1/detokenize', { token, purpose: 'authorization' }),
    capture: (client: typeof checkout) => client.post('/v1/detokenize', { token, purpose: 'capture' }),
    refund: (client: typeof checkout) => client.post('/v1/detokenize', { token, purpose: 'refund' }),
    chargeback: (client: typeof checkout) => client.post('/v1/detokenize', { token, purpose: 'chargeback' }),
  };
  const grants: Readonly<Record<string, Readonly<Partial<Record<keyof typeof calls, number>>>>> = {
    checkout: { tokenize: 200, validate: 200, metadata: 200 },
    getnet: { authorization: 200, capture: 200, refund: 200 },
    // Its own tenant's card is known; acme's token is not.
    'checkout-globex': { tokenize: 200, validate: 200, metadata: 404 },
    intruder: {},
    auditor: {},
    'operator-a': {},
    'operator-b': {},
  };
  for (const [name, granted] of Object.entries(grants)) {
    const client = appliance.client(name);
    for (const [call, ask] of Object.entries(calls)) {
      const reply = await ask(client);
      const status = granted[call as keyof typeof calls];
      if (status === undefined) isProblem(t, reply, 'not_authorized', `${name} ${call}`);
      else t.equal(reply.status, status, `${name} ${call}`);
    }
    t.equal((await client.get('/openapi.json')).status, 200, `${name} reads the description`);
    const admin = appliance.client(name, { admin: true });
    const status = await admin.get('/v1/status');
    if (['auditor', 'operator-a', 'operator-b'].includes(name)) t.equal(status.status, 200, `${name} status`);
    else isProblem(t, status, 'not_authorized', `${name} status`);
    for (const path of ['/v1/tokenize', '/v1/detokenize']) isProblem(t, await admin.post(path, { pan }), 'pan_in_other_field', `${name}: the admin listener takes no card`);
    isProblem(t, await admin.post('/v1/validate', { token }), 'not_found');
    isProblem(t, await client.get('/v1/status'), 'not_found');
  }
});

await t.test('who may not tokenize learns nothing of a card number, not even whether it is one', async (t) => {
  const intruder = appliance.client('intruder');
  for (const pan of [newCard(), '4111111111111112', '']) isProblem(t, await intruder.post('/v1/tokenize', { pan }), 'not_authorized');
});

await t.test('a newer expiry or cardholder updates the card for all its tokens, and an absent one leaves it', async (t) => {
  const pan = newCard();
  const { token } = await tokenize(checkout, { pan });
  const further = await tokenize(checkout, { pan, reuse: false }, { 'idempotency-key': 'update-1' });
  const steps = [
    [{ expiry: '2027-01' }, { expiry: '2027-01', cardholder: null }],
    [{ cardholder: 'MARIA SOUZA' }, { expiry: '2027-01', cardholder: 'MARIA SOUZA' }],
    [{ expiry: '2032-12' }, { expiry: '2032-12', cardholder: 'MARIA SOUZA' }],
    [{ expiry: '2026-11', cardholder: '張 偉' }, { expiry: '2026-11', cardholder: '張 偉' }],
    [{}, { expiry: '2026-11', cardholder: '張 偉' }],
  ] as const;
  for (const [given, standing] of steps) {
    const answer = await tokenize(checkout, { pan, ...given });
    t.equal(answer.created, false);
    t.equal(answer.token, token);
    t.equal(answer.expiry, standing.expiry);
    t.same(await open(token), { pan, ...standing });
    t.same(await open(further.token), { pan, ...standing });
    t.equal((await checkout.get(`/v1/tokens/${further.token}`)).json()['expiry'], standing.expiry);
  }
});

await t.test('many cardholders for one card at the same moment all get its token, and one of the names stands', async (t) => {
  const pan = newCard();
  const many = appliance.client('checkout', { connections: 16 });
  const names = Array.from({ length: 32 }, (_, n) => `NAME ${n}`);
  const answers = await Promise.all(names.map((cardholder) => tokenize(many, { pan, cardholder })));
  t.equal(new Set(answers.map((answer) => answer.token)).size, 1);
  t.equal(answers.filter((answer) => answer.created).length, 1);
  const opened = await open(answers[0]!.token);
  t.ok(names.includes(opened['cardholder'] as string));
});

await t.test('a cardholder may have 255 bytes and 100 characters, and no control character', async (t) => {
  const pan = newCard();
  for (const cardholder of ['x'.repeat(100), 'é'.repeat(100), '漢'.repeat(85), 'O\'Brien "Q" \\ / – ½']) {
    const { token } = await tokenize(checkout, { pan, cardholder });
    t.equal((await open(token))['cardholder'], cardholder);
  }
  for (const cardholder of ['', 'x'.repeat(101), '漢'.repeat(86), 'a\u0000b', 'a\nb', 'a\u007fb', '\ud800', 7, null, {}]) {
    isProblem(t, await checkout.post('/v1/tokenize', { pan, cardholder }), 'invalid_request', JSON.stringify(cardholder).slice(0, 40));
  }
});

await t.test('an expiry is a year and a month, and nothing else', async (t) => {
  const pan = newCard();
  for (const expiry of ['2029-13', '2029-00', '2029-1', '29-01', '2029/01', '2029-01-01', '12/29', '', 202901, null]) {
    isProblem(t, await checkout.post('/v1/tokenize', { pan, expiry }), 'invalid_request', JSON.stringify(expiry));
  }
});

await t.test('a token of its own each time needs an Idempotency-Key', async (t) => {
  const pan = newCard();
  isProblem(t, await checkout.post('/v1/tokenize', { pan, reuse: false }), 'invalid_request');
  const first = await tokenize(checkout, { pan, reuse: false }, { 'idempotency-key': 'own-1' });
  const second = await tokenize(checkout, { pan, reuse: false }, { 'idempotency-key': 'own-2' });
  t.equal(first.created && second.created, true);
  t.not(first.token, second.token);
  t.equal(first.card_id, second.card_id);
  for (const { token } of [first, second]) t.equal((await open(token))['pan'], pan);
});

for (const reuse of [true, false]) {
  await t.test(`a retry with its Idempotency-Key gets the same answer again, reuse ${reuse}`, async (t) => {
    const pan = newCard();
    const key = { 'idempotency-key': `retry-${reuse}` };
    const body = { pan, reuse, expiry: '2029-05', cardholder: 'RUI', metadata: { b: 1, a: 2 } };
    const first = await checkout.post('/v1/tokenize', body, key);
    t.equal(first.status, 201);
    for (const again of [body, { metadata: { a: 2, b: 1 }, cardholder: 'RUI', expiry: '2029-05', reuse, pan }, { ...body, format: 'opaque' }]) {
      const reply = await checkout.post('/v1/tokenize', again, key);
      t.equal(reply.status, 201, 'as it was');
      t.same(reply.json(), first.json());
    }
  });

  await t.test(`one Idempotency-Key at the same moment from many connections makes one token, reuse ${reuse}`, async (t) => {
    const pan = newCard();
    const many = appliance.client('checkout', { connections: 48 });
    // Connections first, so that the calls are at the same moment.
    await Promise.all(Array.from({ length: 48 }, () => many.get('/openapi.json')));
    const replies = await Promise.all(Array.from({ length: 48 }, () => many.post('/v1/tokenize', { pan, reuse }, { 'idempotency-key': `moment-${reuse}` })));
    t.same([...new Set(replies.map((reply) => reply.status))], [201], 'all get the one answer');
    t.equal(new Set(replies.map((reply) => reply.body.toString('utf8'))).size, 1);
  });
}

await t.test('one Idempotency-Key at the same moment with a name for a known card gets one answer', async (t) => {
  const pan = newCard();
  const { token } = await tokenize(checkout, { pan });
  const many = appliance.client('checkout', { connections: 48 });
  await Promise.all(Array.from({ length: 48 }, () => many.get('/openapi.json')));
  const replies = await Promise.all(Array.from({ length: 48 }, () => many.post('/v1/tokenize', { pan, cardholder: 'RITA' }, { 'idempotency-key': 'moment-name' })));
  t.same([...new Set(replies.map((reply) => `${reply.status} ${String(reply.json()['token'])}`))], [`200 ${token}`]);
  t.equal((await open(token))['cardholder'], 'RITA');
});

await t.test('an Idempotency-Key with another request is a conflict, whatever differs', async (t) => {
  const pan = newCard();
  const key = { 'idempotency-key': 'conflict-1' };
  const body = { pan, expiry: '2029-05', cardholder: 'RUI', metadata: { a: 1 } };
  await tokenize(checkout, body, key);
  for (const other of [{ ...body, pan: newCard() }, { ...body, expiry: '2029-06' }, { ...body, cardholder: 'ANA' }, { ...body, metadata: { a: 2 } }, { ...body, reuse: false }, { pan }]) {
    isProblem(t, await checkout.post('/v1/tokenize', other, key), 'idempotency_conflict');
  }
  t.equal((await checkout.post('/v1/tokenize', body, key)).status, 201, 'the first stands');
});

await t.test('the same Idempotency-Key of another caller is another key', async (t) => {
  const pan = newCard();
  const key = { 'idempotency-key': 'shared-1' };
  const [ours, theirs] = [await tokenize(checkout, { pan, reuse: false }, key), await tokenize(globex, { pan: newCard(), reuse: false }, key)];
  t.equal(ours.created && theirs.created, true);
  t.not(ours.token, theirs.token);
});

await t.test('an Idempotency-Key has 1 to 255 visible characters', async (t) => {
  const pan = newCard();
  t.equal((await checkout.post('/v1/tokenize', { pan }, { 'idempotency-key': '!'.repeat(255) })).status, 201);
  for (const key of ['', 'a b', 'x'.repeat(256), 'é']) isProblem(t, await checkout.post('/v1/tokenize', { pan }, { 'idempotency-key': Buffer.from(key, 'utf8').toString('latin1') }), 'invalid_request', JSON.stringify(key).slice(0, 20));
  isProblem(t, await checkout.post('/v1/tokenize', { pan }, { 'idempotency-key': ['a', 'b'] }), 'invalid_request', 'two keys');
});

await t.test('a refused call leaves its Idempotency-Key free', async (t) => {
  const pan = newCard();
  const key = { 'idempotency-key': 'free-1' };
  isProblem(t, await checkout.post('/v1/tokenize', { pan: '4111111111111112' }, key), 'invalid_pan');
  isProblem(t, await checkout.post('/v1/tokenize', { pan, cvv: '1' }, key), 'sad_refused');
  t.equal((await checkout.post('/v1/tokenize', { pan }, key)).status, 201);
});
