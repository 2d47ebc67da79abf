import t from 'tap';
import { cardDigits, cardNumber } from '../support/cards.ts';
import type { Response } from './http-response.ts';
import { tokenBytes, type KnownCards } from './scenario.ts';
import { detokenizeBatches, intrusions, tokenLives, wrongRequests } from './soak-scenarios.ts';

const host = 'localhost';
const answer = (status: number, body: string): Response => ({ status, body: Buffer.from(body, 'latin1'), keepAlive: true });
const firstLine = (into: Buffer, bytes: number): string => into.toString('latin1', 0, bytes).split(' HTTP/1.1')[0]!;
const token = `tok_${'B7'.repeat(16)}`;

await t.test('a token lives from its making to its deletion, and then another one does', async (t) => {
  const lives = tokenLives(host, 1, 100);
  const into = Buffer.alloc(lives.maxRequestBytes);
  const replies = [
    answer(201, `{"token":"${token}"}`), answer(200, '{"valid":true,"status":"active"}'), answer(200, '{"status":"suspended"}'), answer(200, '{"valid":false,"status":"suspended"}'), answer(200, '{"status":"active"}'),
    answer(200, '{"status":"active"}'), answer(200, '{"status":"revoked","card_destroyed":true}'), answer(200, '{"valid":false,"status":"revoked"}'),
  ];
  const lines = replies.map((reply, sequence) => {
    const line = firstLine(into, lives.makeRequest(sequence, into));
    t.equal(lives.onResponse(reply, sequence), null);
    return line;
  });
  t.same(lines, ['POST /v1/tokenize', 'POST /v1/validate', `POST /v1/tokens/${token}/suspend`, 'POST /v1/validate', `POST /v1/tokens/${token}/resume`, `GET /v1/tokens/${token}`, `DELETE /v1/tokens/${token}`, 'POST /v1/validate']);
  t.equal(firstLine(into, lives.makeRequest(8, into)), 'POST /v1/tokenize');
  t.equal(lives.cards, 2);
});

await t.test('a token that is not what it should be is a failure, and its life is over', async (t) => {
  const lives = tokenLives(host, 1, 0);
  const into = Buffer.alloc(lives.maxRequestBytes);
  lives.makeRequest(0, into);
  lives.onResponse(answer(201, `{"token":"${token}"}`), 0);
  lives.makeRequest(1, into);
  t.equal(lives.onResponse(answer(200, '{"valid":false,"status":"revoked"}'), 1), 'life_step_1_status_200');
  t.equal(firstLine(into, lives.makeRequest(2, into)), 'POST /v1/tokenize');
  lives.onLost?.(2);
  t.equal(firstLine(into, lives.makeRequest(3, into)), 'POST /v1/tokenize', 'so is that of one whose call was lost');
  t.equal(lives.onResponse(answer(503, '{"code":"overloaded"}'), 3), 'life_status_503_overloaded');
});

await t.test('a wrong request must be refused as it deserves', async (t) => {
  const wrong = wrongRequests(host, 1);
  const into = Buffer.alloc(wrong.maxRequestBytes);
  wrong.makeRequest(0, into);
  t.equal(wrong.onResponse(answer(422, '{"code":"invalid_pan"}'), 0), null);
  wrong.makeRequest(1, into);
  t.equal(wrong.onResponse(answer(422, '{"code":"invalid_pan"}'), 1), 'wanted_422_sad_refused_got_status_422_invalid_pan');
  t.equal(wrong.onResponse(answer(201, '{"token":"x"}'), 0), 'wanted_422_invalid_pan_got_status_201');
  const intruder = intrusions(host, 1);
  t.equal(intruder.onResponse(answer(403, '{"code":"not_authorized"}'), 0), null);
  t.equal(intruder.onResponse(answer(201, '{"token":"x"}'), 0), 'intruder_status_201');
});

await t.test('every card of a batch must be the one of its token', async (t) => {
  const known: KnownCards = { first: 50, count: 100, tokens: Buffer.from(Array.from({ length: 100 }, (_, i) => `tok_${String(i).padStart(32, 'x')}`).join(''), 'latin1') };
  const batches = detokenizeBatches(host, 3, known);
  const into = Buffer.alloc(batches.maxRequestBytes);
  const asked = JSON.parse(into.toString('latin1', 0, batches.makeRequest(2, into)).split('\r\n\r\n')[1]!) as { tokens: string[] };
  t.equal(asked.tokens.length, 100);
  t.ok(asked.tokens.every((one) => one.length === tokenBytes && one.startsWith('tok_')));
  const cardsOf = (tokens: readonly string[]): Response =>
    answer(200, `{"items":[${tokens.map((one) => {
      const digits = Buffer.alloc(cardDigits);
      cardNumber(50 + Number(one.slice(-2).replace('x', '')), digits, 0, 3);
      return `{"pan":"${digits.toString('latin1')}"}`;
    }).join(',')}]}`);
  t.equal(batches.onResponse(cardsOf(asked.tokens), 2), null);
  t.equal(batches.onResponse(cardsOf(asked.tokens.toReversed()), 2), 'answer_of_another_card');
  t.equal(batches.onResponse(cardsOf(asked.tokens.slice(1)), 2), 'answer_of_another_card');
  t.equal(batches.onResponse(cardsOf(asked.tokens.slice(0, 99)), 2), 'answer_with_failed_items');
});
