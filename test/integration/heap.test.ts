/** What a caller can make of the process's heap, which is bounded: a body of a few bytes a value is sixty bytes a value once it is parsed. */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { startAppliance } from '../support/appliance.ts';
import { parseReplies, readToEnd } from '../support/api-client.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const appliance = await startAppliance(t);
const peakMiB = (): number => Number(/^VmHWM:\s+(\d+) kB$/mu.exec(readFileSync(`/proc/${appliance.pid}/status`, 'utf8'))![1]) / 1024;
/** A body of that many bytes, of arrays in arrays. */
const brackets = (name: string, bytes: number): Buffer => {
  const one = '['.repeat(13) + ']'.repeat(13);
  return Buffer.from(`{"${name}":[${Array.from({ length: Math.floor((bytes - 20) / (one.length + 1)) }, () => one).join()}]}`);
};

/** Sends a body on many connections, each all but its last byte, and then the last bytes at once. @returns the statuses, with how often each came. */
async function atOnce(who: string, path: string, body: Buffer, connections: number): Promise<Record<number, number>> {
  const sockets = await Promise.all(Array.from({ length: connections }, () => appliance.client(who).connect()));
  const answers = sockets.map((socket) => readToEnd(socket));
  for (const socket of sockets) {
    socket.write(`POST ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n`);
    socket.write(body.subarray(0, -1));
  }
  await Promise.all(sockets.map((socket) => new Promise<void>((done) => (socket.writableLength === 0 ? done() : socket.once('drain', done)))));
  for (const socket of sockets) socket.write(body.subarray(-1));
  const statuses: Record<number, number> = {};
  for (const answer of answers) for (const { status } of parseReplies(await answer)) statuses[status] = (statuses[status] ?? 0) + 1;
  return statuses;
}

t.test('bodies of nothing but brackets, from a caller without any grant and from one that tokenizes, leave the process where it was', async (t) => {
  const before = peakMiB();
  // All that one caller's bodies may take: 430 MiB once they were parsed.
  t.same(await atOnce('intruder', '/v1/detokenize/batch', brackets('tokens', 128 * 1024), 120), { 400: 120 });
  t.same(await atOnce('checkout', '/v1/tokenize/batch', brackets('items', 1024 * 1024), 15), { 422: 15 });
  const peak = peakMiB();
  t.ok(peak < before + 150, `${before} MiB before, ${peak} at the peak`);
  t.equal((await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(1) })).status, 201);
});

t.test('a body with more values than any call has is refused, and what its values take counts as its caller\'s', async (t) => {
  const checkout = appliance.client('checkout');
  isProblem(t, await checkout.post('/v1/tokenize', { items: [] }), 'invalid_request');
  const metadata = Object.fromEntries(Array.from({ length: 16 }, (_, n) => [`m${n}`, n]));
  const full = Buffer.from(JSON.stringify({ items: Array.from({ length: 1000 }, (_, n) => ({ pan: cardText(n), expiry: '2031-02', metadata })) }));
  t.equal((await checkout.call('POST', '/v1/tokenize/batch', { body: full })).status, 200, 'a thousand cards with all the metadata that they may have');
  const statuses = await atOnce('checkout', '/v1/tokenize/batch', full, 40);
  t.same(Object.keys(statuses), ['200', '503'], JSON.stringify(statuses));
});
