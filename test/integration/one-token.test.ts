/** A new card from many connections at once is one card with one token. */
import t from 'tap';
import { startAppliance } from '../support/appliance.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { readLog, tokensOf } from '../support/log-reader.ts';
import { cardText } from '../support/test-cards.ts';

const connections = 64;
const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database });
const checkout = appliance.client('checkout', { connections });
const getnet = appliance.client('getnet');
// The handshakes first, so that the calls are at the same moment.
await Promise.all(Array.from({ length: connections }, () => checkout.get('/openapi.json')));

for (let round = 0; round < 5; round += 1) {
  await t.test(`one new card from ${connections} connections at once gives one token, and exactly one answer says created, round ${round}`, async (t) => {
    const pan = cardText(round);
    const replies = await Promise.all(Array.from({ length: connections }, () => checkout.post('/v1/tokenize', { pan, expiry: '2029-12' })));
    t.equal(replies.filter((reply) => reply.status === 201).length, 1);
    t.equal(replies.filter((reply) => reply.status === 200).length, connections - 1);
    const answers = replies.map((reply) => reply.json());
    t.equal(answers.filter((answer) => answer['created'] === true).length, 1);
    t.equal(answers.filter((answer) => answer['created'] === false).length, connections - 1);
    t.equal(new Set(answers.map(({ token, card_id: cardId, created_at: createdAt }) => JSON.stringify([token, cardId, createdAt]))).size, 1);
    const token = answers[0]!['token'] as string;
    t.equal((await getnet.post('/v1/detokenize', { token, purpose: 'capture' })).json()['pan'], pan);

    const entries = (await readLog(appliance)).flatMap(tokensOf).filter((named) => named.token === token);
    t.equal(entries.filter(({ outcome }) => outcome === 'created').length, 1, 'the log says so too');
    t.equal(entries.filter(({ outcome }) => outcome === 'known').length, connections - 1);
  });
}

await t.test('many new cards at once, each from several connections, are one card each', async (t) => {
  const cards = Array.from({ length: 32 }, (_, n) => cardText(1000 + n));
  const replies = await Promise.all(Array.from({ length: 256 }, async (_, n) => await checkout.post('/v1/tokenize', { pan: cards[n % cards.length] })));
  t.equal(replies.filter((reply) => reply.status === 201).length, cards.length);
  t.equal(replies.filter((reply) => reply.status === 200).length, 256 - cards.length);
  t.equal(new Set(replies.map((reply) => reply.json()['token'])).size, cards.length);
  await withClient({ connectionString: database.adminUrl }, async (client) => {
    const { rows } = await client.query<{ cards: number; further: number }>('SELECT (SELECT count(*)::int FROM cards) AS cards, (SELECT count(*)::int FROM tokens) AS further');
    t.same(rows, [{ cards: 5 + cards.length, further: 0 }]);
  });
});
