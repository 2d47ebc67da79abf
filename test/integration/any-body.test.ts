/** Whatever stands in a body: it is tokenized and comes back as it went in, or it is refused with a code. Never a 500, never a hang. */
import * as fc from 'fast-check';
import t from 'tap';
import { startAppliance } from '../support/appliance.ts';
import type { Reply } from '../support/api-client.ts';
import { tracesOf } from '../support/card-traces.ts';
import { freshDatabase } from '../support/database.ts';
import { faultOfProblem } from '../support/problem.ts';
import { cardText, publishedCards } from '../support/test-cards.ts';

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database });
const checkout = appliance.client('checkout', { connections: 8 });
const getnet = appliance.client('getnet', { connections: 8 });

/** Printed by fast-check where a property fails, so that the run can be repeated. */
const runs = (numRuns: number) => ({ numRuns, interruptAfterTimeLimit: 60_000, markInterruptAsFailure: true });

const refusals = ['invalid_request', 'invalid_pan', 'sad_refused', 'pan_in_other_field'];

/** @throws Error unless the answer is a token, or a refusal of the client's own doing. Returns the token, or null. */
function settled(reply: Reply): string | null {
  if (reply.status === 200 || reply.status === 201) return reply.json()['token'] as string;
  const code = reply.json()['code'] as string;
  const fault = faultOfProblem(reply, code);
  if (fault !== null) throw new Error(fault);
  if (!refusals.includes(code)) throw new Error(`the answer is ${code}`);
  return null;
}

const pan = fc.oneof(fc.constantFrom(...publishedCards.map((card) => card.pan)), fc.integer({ min: 0, max: 1_000_000 }).map(cardText));
const expiry = fc.tuple(fc.integer({ min: 0, max: 9999 }), fc.integer({ min: 1, max: 12 })).map(([year, month]) => `${String(year).padStart(4, '0')}-${String(month).padStart(2, '0')}`);
const text = (maxLength: number) => fc.oneof(fc.string({ maxLength, unit: 'grapheme' }), fc.string({ maxLength, unit: 'binary' }), fc.string({ maxLength }));
const metadataName = fc.stringMatching(/^[A-Za-z0-9_.-]{1,40}$/u);
const metadata = fc.dictionary(fc.oneof({ weight: 5, arbitrary: metadataName }, fc.constantFrom('__proto__', 'constructor', 'toString', 'hasOwnProperty', '-', '.')), fc.oneof(text(300), fc.maxSafeInteger(), fc.boolean()), { maxKeys: 17, noNullPrototype: true });
const body = fc.record({ pan, expiry, cardholder: text(101), metadata, format: fc.constant('opaque'), reuse: fc.constant(true) }, { requiredKeys: ['pan'], noNullPrototype: true });

await t.test('a body of the described form is tokenized and opens to what went in, or is refused with a code', async (t) => {
  let taken = 0;
  await fc.assert(
    fc.asyncProperty(body, async (sent) => {
      const token = settled(await checkout.post('/v1/tokenize', sent));
      if (token === null) return;
      taken += 1;
      const opened = (await getnet.post('/v1/detokenize', { token, purpose: 'capture' })).json();
      if (opened['pan'] !== sent.pan) throw new Error('another card number came back');
      if (sent.expiry !== undefined && opened['expiry'] !== sent.expiry) throw new Error('another expiry came back');
      if (sent.cardholder !== undefined && opened['cardholder'] !== sent.cardholder) throw new Error('another name came back');
    }),
    runs(400),
  );
  t.ok(taken > 100, 'many of them are taken');
});

await t.test('metadata that is taken comes back as it went in', async (t) => {
  let card = 2_000_000;
  let taken = 0;
  await fc.assert(
    fc.asyncProperty(metadata, async (kept) => {
      const token = settled(await checkout.post('/v1/tokenize', { pan: cardText(card++), metadata: kept }));
      if (token === null) return;
      taken += 1;
      const { metadata: shown } = (await checkout.get(`/v1/tokens/${token}`)).json() as { metadata: object };
      // As JSON: minus zero is zero there.
      const members = (value: object): unknown => JSON.parse(JSON.stringify(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))));
      t.same(members(shown), members(kept));
    }),
    runs(200),
  );
  t.ok(taken > 50, 'many of them are taken');
});

await t.test('arbitrary JSON is refused with a code', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.oneof(fc.json({ maxDepth: 6 }), fc.jsonValue({ maxDepth: 20, stringUnit: 'binary' }).map((value) => JSON.stringify(value))), async (sent) => {
      settled(await checkout.call('POST', '/v1/tokenize', { body: Buffer.from(sent, 'utf8') }));
    }),
    runs(300),
  );
  t.pass();
});

await t.test('a body of the described form with bytes changed, cut out or put in is tokenized or refused with a code', async (t) => {
  const change = fc.record({ at: fc.nat(), remove: fc.integer({ min: 0, max: 4 }), insert: fc.oneof(fc.uint8Array({ maxLength: 4 }), fc.constantFrom('"', '\\', '{', '}', '[', ']', ',', ':', '\\u0000', '0', 'null', '\n').map((piece) => Buffer.from(piece))) });
  await fc.assert(
    fc.asyncProperty(body, fc.array(change, { minLength: 1, maxLength: 3 }), async (sent, changes) => {
      let bytes = Buffer.from(JSON.stringify(sent), 'utf8');
      for (const { at, remove, insert } of changes) {
        const place = at % (bytes.length + 1);
        bytes = Buffer.concat([bytes.subarray(0, place), insert, bytes.subarray(place + remove)]);
      }
      settled(await checkout.call('POST', '/v1/tokenize', { body: bytes }));
    }),
    runs(500),
  );
  t.pass();
});

await t.test('arbitrary bytes are refused with a code, at every path that takes a body', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.constantFrom('/v1/tokenize', '/v1/detokenize', '/v1/validate', '/v1/nowhere'), fc.uint8Array({ minLength: 1, maxLength: 300 }), fc.boolean(), async (path, bytes, chunked) => {
      const reply = await getnet.call('POST', path, { body: Buffer.from(bytes), chunked });
      const code = reply.json()['code'] as string;
      if (faultOfProblem(reply, code) !== null || reply.status >= 500) throw new Error(`the answer is ${reply.status} ${code}`);
    }),
    runs(300),
  );
  t.pass();
});

await t.test('a token of any text is unknown, malformed or refused, and never a fault', async (t) => {
  await fc.assert(
    fc.asyncProperty(text(1100), async (token) => {
      const validated = await checkout.post('/v1/validate', { token });
      if (validated.status === 200) {
        if (validated.json()['valid'] !== false) throw new Error('a text is valid');
      } else settled(validated);
      const opened = await getnet.post('/v1/detokenize', { token, purpose: 'capture' });
      if (opened.status < 400 || opened.status >= 500) throw new Error(`the answer is ${opened.status}`);
      const shown = await checkout.get(`/v1/tokens/${encodeURIComponent(token.toWellFormed())}`);
      if (shown.status < 400 || shown.status >= 500) throw new Error(`the answer is ${shown.status}`);
    }),
    runs(150),
  );
  t.pass();
});

await t.test('no message of the vault speaks of a fault, and none holds a card number', async (t) => {
  // That somebody tries tokens which nobody has is what the last tests did.
  t.same(appliance.messages().filter((message) => (message['level'] === 'error' || message['level'] === 'warn') && message['kind'] !== 'unknown_tokens'), []);
  // But the one that the appliance itself shows as an example.
  t.same(await tracesOf(appliance, publishedCards.map((card) => card.pan).filter((number) => number !== '4111111111111111'), (call) => /^POST \/v1\/detokenize 200$/u.test(call)), []);
});
