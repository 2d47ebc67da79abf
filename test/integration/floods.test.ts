/** Callers that ask for more than their share: what it costs them, and that it costs the others nothing but time. */
import { connect as connectTcp, type Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { parseReplies, readToEnd } from '../support/api-client.ts';
import { readLog } from '../support/log-reader.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const maxPipelined = 64;
const maxRequests = 8;
const maxConnections = 40;
const maxBodyBytes = 1024 * 1024;
const entriesPerMinute = 10;
const maxFullHandshakes = 150;
const appliance = await startAppliance(t, {
  config: {
    // Requests that are held up to fill places must outlast a machine that stands still for a while.
    listeners: { max_requests_per_caller: maxRequests, max_body_bytes_per_caller: maxBodyBytes, max_connections_per_certificate: maxConnections, handshakes_per_second: 50, handshake_burst: 100, request_timeout: '2m', max_handshakes_waiting: 100, max_full_handshakes_per_certificate: maxFullHandshakes },
    refusals: { entries_per_minute: entriesPerMinute },
  },
});
/** How many connections a listener closed for this reason. */
async function refused(reason: string, listener = 'api'): Promise<number> {
  const metrics = await (await fetch(`${appliance.telemetryUrl}/metrics`)).text();
  return Number(new RegExp(`^cofre_connections_refused_total\\{listener="${listener}",reason="${reason}"\\} (\\d+)$`, 'mu').exec(metrics)?.[1] ?? 0);
}
/** How many requests, or connections with them, the API turned away for this reason. */
async function turnedAway(reason: string): Promise<number> {
  const metrics = await (await fetch(`${appliance.telemetryUrl}/metrics`)).text();
  return Number(new RegExp(`^cofre_requests_turned_away_total\\{listener="api",reason="${reason}"\\} (\\d+)$`, 'mu').exec(metrics)?.[1] ?? 0);
}
/** Keeps so many connections going, each made anew once it is closed, until it is told to stop. */
function flood(connections: number, make: () => Socket): { stop(): void } {
  let going = true;
  const open = new Set<Socket>();
  const again = (): void => {
    if (!going) return;
    const socket = make().on('error', () => undefined);
    open.add(socket);
    socket.resume().once('close', () => {
      open.delete(socket);
      setImmediate(again);
    });
  };
  for (let n = 0; n < connections; n += 1) again();
  return {
    stop() {
      going = false;
      for (const socket of open) socket.destroy();
    },
  };
}
/** Another machine than ours, as the vault sees it. */
const elsewhere = '127.0.0.2';
/** Resolves when the server has closed the connection, in order or not. */
const closeOf = (socket: TLSSocket): Promise<void> => new Promise((done) => socket.resume().once('close', () => done()));
const nothing = 'GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n';

await t.test('pipelined requests are answered in their order; one beyond the places of its caller is told so, and ends its connection', async (t) => {
  const socket = await appliance.client('auditor').connect();
  const received = readToEnd(socket);
  socket.write(nothing.repeat(maxPipelined));
  const replies = parseReplies(await received);
  t.same(replies.map(({ status }) => status), [...Array.from({ length: maxRequests }, () => 404), 503]);
  isProblem(t, replies.at(-1)!, 'overloaded');
  t.equal(replies.at(-1)!.headers['connection'], 'close');
});

await t.test('a connection with one more is closed, and others are served meanwhile', async (t) => {
  const checkout = appliance.client('checkout');
  const sockets = await Promise.all(Array.from({ length: 10 }, () => appliance.client('intruder').connect()));
  const closed = sockets.map(closeOf);
  for (const socket of sockets) socket.write(nothing.repeat(2000));
  const replies = await Promise.all(Array.from({ length: 4 }, (_, n) => checkout.post('/v1/tokenize', { pan: cardText(n) })));
  t.strictSame(replies.map(({ status }) => status), [201, 201, 201, 201]);
  t.equal((await Promise.all(closed)).length, 10);
  const counted = await turnedAway('too many requests on one connection');
  t.ok(counted >= 1 && counted <= 10, `${counted} times: each connection once, unless its caller had no place left first`);
});

await t.test('a caller with all its places taken is told that the vault is overloaded, others and its own next request are not', async (t) => {
  const slow = await Promise.all(Array.from({ length: maxRequests + 2 }, () => appliance.client('checkout').connect()));
  // Each has a place from its head on, and is in no hurry with its body.
  const body = `{"pan":"${cardText(9)}"}`;
  const answers = slow.map((socket) => readToEnd(socket));
  for (const socket of slow) socket.write(`POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body.slice(0, 5)}`);
  const checkout = appliance.client('checkout');
  await until(async () => (await checkout.get('/openapi.json')).status === 503, 'the refusal');
  isProblem(t, await checkout.post('/v1/tokenize', { pan: cardText(9) }), 'overloaded');
  t.equal((await appliance.client('checkout-globex').post('/v1/tokenize', { pan: cardText(9) })).status, 201);
  for (const socket of slow) socket.write(body.slice(5));
  const statuses = (await Promise.all(answers)).map((bytes) => parseReplies(bytes)[0]!.status);
  t.equal(statuses.filter((status) => status === 503).length, 2, 'those beyond were refused');
  t.ok((await turnedAway('too many requests of one caller')) >= 4, 'and all refusals counted');
  t.equal(statuses.filter((status) => status === 200 || status === 201).length, maxRequests, 'the others had their time');
  t.equal((await checkout.post('/v1/tokenize', { pan: cardText(9) })).status, 200);
});

await t.test('requests that were aborted, refused or answered give their places back', async (t) => {
  const checkout = appliance.client('checkout');
  for (let round = 0; round < 3; round += 1) {
    const sockets: TLSSocket[] = [];
    const takePlaces = async (count: number): Promise<void> => {
      const more = await Promise.all(Array.from({ length: count }, () => appliance.client('checkout').connect()));
      for (const socket of more) socket.write('POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"pan"');
      sockets.push(...more);
    };
    await takePlaces(maxRequests);
    await until(async () => {
      if ((await checkout.get('/openapi.json')).status === 503) return true;
      // A look takes a place as well, and may have been there when the last of them came.
      await takePlaces(1);
      return false;
    }, 'the places to be taken');
    for (const socket of sockets) socket.destroy();
    await until(async () => (await checkout.get('/openapi.json')).status === 200, 'the places');
  }
  const kinds = [() => checkout.get('/nothing'), () => checkout.post('/v1/tokenize', '{'), () => checkout.get(`/v1/tokens/${cardText(1)}`), () => checkout.call('GET', '/%'), () => checkout.post('/v1/validate', { token: 'x' })];
  const statuses = new Set<number>();
  for (let n = 0; n < maxRequests * 2; n += 1) for (const kind of kinds) statuses.add((await kind()).status);
  t.notOk(statuses.has(503), [...statuses].join());
  const getnet = appliance.client('getnet');
  const { token } = (await checkout.post('/v1/tokenize', { pan: cardText(2) })).json();
  for (let n = 0; n < maxRequests * 2; n += 1) t.equal((await getnet.post('/v1/detokenize', { token, purpose: 'refund' })).status, 200);
});

await t.test('a caller whose bodies take too much is told so before they are read, and others are not; however those end, it has room again', async (t) => {
  const batch = Buffer.from(JSON.stringify({ items: [{ pan: cardText(4) }] }).padEnd(maxBodyBytes * 0.75));
  const head = `POST /v1/tokenize/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${batch.length}\r\n\r\n`;
  const checkout = appliance.client('checkout');
  const taken = async (): Promise<boolean> => (await checkout.call('POST', '/v1/tokenize/batch', { body: batch })).status === 503;
  for (const end of ['answered', 'cut off', 'malformed'] as const) {
    const first = await appliance.client('checkout').connect();
    const answer = readToEnd(first);
    first.write(head + batch.toString('latin1', 0, 1000));
    await until(taken, 'the first to be begun');
    const unread = await appliance.client('checkout').connect();
    const refusal = readToEnd(unread);
    // The head alone: nothing of the body has to come.
    unread.write(head);
    const [reply] = parseReplies(await refusal);
    isProblem(t, reply!, 'overloaded');
    t.equal(reply!.headers['connection'], 'close');
    isProblem(t, await checkout.call('POST', '/v1/tokenize/batch', { body: batch, chunked: true }), 'overloaded', 'without a length too');
    t.match((await checkout.post('/v1/tokenize', { pan: cardText(4) })).status, /^20[01]$/u, 'there is room for a small one');
    t.equal((await appliance.client('checkout-globex').call('POST', '/v1/tokenize/batch', { body: batch })).status, 200, 'and for others');
    if (end === 'cut off') first.destroy();
    else first.write(end === 'answered' ? batch.subarray(1000) : Buffer.from('{'.repeat(batch.length - 1000)));
    if (end !== 'cut off') {
      await until(async () => !(await taken()), 'room');
      first.end();
      t.equal(parseReplies(await answer)[0]!.status, end === 'answered' ? 200 : 400);
    } else await until(async () => !(await taken()), 'room');
  }
});

await t.test('one certificate has its share of connections, another finds room', async (t) => {
  const client = appliance.client('intruder');
  const open = await Promise.all(Array.from({ length: maxConnections }, () => client.connect()));
  const oneMore = await client.connect();
  await closeOf(oneMore);
  t.equal((await appliance.client('checkout').get('/openapi.json')).status, 200);
  open[0]!.destroy();
  await until(async () => {
    const socket = await client.connect();
    const answer = readToEnd(socket);
    socket.write('GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    return (await answer).length > 0;
  }, 'room after one was closed');
  client.close();
});

await t.test('connections that come for a handshake and have no certificate, or say nothing, keep nobody from being served', async (t) => {
  const checkout = appliance.client('checkout');
  t.match((await checkout.post('/v1/tokenize', { pan: cardText(3) })).status, /^20[01]$/u);
  const nobody = appliance.client(null);
  const floods = [
    flood(60, () => nobody.open({ localAddress: elsewhere })),
    flood(60, () => connectTcp({ host: '127.0.0.1', port: appliance.apiPort, localAddress: elsewhere })),
    flood(60, () => {
      const socket = connectTcp({ host: '127.0.0.1', port: appliance.apiPort, localAddress: elsewhere }, () => socket.write('GET / HTTP/1.1\r\n\r\n'));
      return socket;
    }),
  ];
  await until(async () => (await refused('the handshake failed')) > 100 && (await refused('too many connections wait')) > 0, 'the limits');
  for (let n = 0; n < 10; n += 1) t.equal((await checkout.post('/v1/tokenize', { pan: cardText(3) })).status, 200, 'on a connection that is open');
  for (let n = 0; n < 5; n += 1) {
    const globex = appliance.client('checkout-globex');
    t.equal((await globex.get('/openapi.json')).status, 200, 'and on a new one');
    globex.close();
  }
  for (const each of floods) each.stop();
  nobody.close();
  await until(async () => /^cofre_handshakes_waiting 0$/mu.test(await (await fetch(`${appliance.telemetryUrl}/metrics`)).text()), 'room');
});

await t.test('a certificate that reconnects all the time is turned away in the end, and keeps nobody from being served', async (t) => {
  const checkout = appliance.client('checkout');
  const auditor = appliance.client('auditor');
  const reconnecting = flood(40, () => {
    const socket = auditor.open({ localAddress: elsewhere });
    // Given at the end of the server's part.
    return socket.once('session', () => socket.destroy());
  });
  const reason = 'too many full handshakes with one certificate';
  const statuses = new Set<number>();
  await until(async () => {
    statuses.add((await checkout.post('/v1/tokenize', { pan: cardText(3) })).status);
    return (await refused(reason)) > 0;
  }, 'the limit');
  t.strictSame([...statuses], [200]);
  t.equal((await appliance.client('checkout-globex').get('/openapi.json')).status, 200);
  reconnecting.stop();
  auditor.close();
});

await t.test('the admin listener has the same limits', async (t) => {
  const nobody = appliance.client(null, { admin: true });
  const reconnecting = flood(10, () => nobody.open({ localAddress: elsewhere }));
  await until(async () => (await refused('the handshake failed', 'admin')) > 0, 'the refusal');
  t.equal((await appliance.client('auditor', { admin: true }).get('/nothing')).status, 404);
  reconnecting.stop();
  nobody.close();
});

await t.test('the log holds the first refusals of a caller each, and the rest as one entry', async (t) => {
  const operator = appliance.client('operator-b');
  const times = 50;
  for (let n = 0; n < times; n += 1) isProblem(t, await operator.get('/nothing'), 'not_found');
  const { code } = await appliance.stop();
  t.equal(code, 0);
  await appliance.start();
  const entries = (await readLog(appliance)).filter(({ value }) => String(value['caller']).endsWith('/operator-b'));
  const single = entries.filter(({ value }) => value['action'] === 'unknown_route');
  const summed = entries.filter(({ value }) => value['action'] === 'refusals');
  // The calls may have fallen into two minutes of the vault's.
  t.ok(single.length >= entriesPerMinute && single.length <= 2 * entriesPerMinute, `${single.length} entries`);
  t.equal(single.length + summed.reduce((sum, { value }) => sum + (value['detail'] as { not_found: number }).not_found, 0), times, 'and none is lost');
  const metrics = await (await fetch(`${appliance.telemetryUrl}/metrics`)).text();
  t.match(metrics, /^cofre_refusals_summed_total \d+$/mu);
});
