import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { createDevelopmentPki } from '../../platform-adapters/pki/development.ts';
import { runLoad, type LoadOptions } from './load.ts';
import { makeScenario } from './scenario.ts';

const pki = mkdtempSync(join(tmpdir(), 'cofre-load-'));
t.teardown(() => rmSync(pki, { recursive: true }));
createDevelopmentPki(pki, { trustDomain: 'cofre.dev', now: () => new Date() });
const pem = (name: string): Buffer => readFileSync(join(pki, name));
const tls = { ca: pem('ca.pem'), cert: pem('checkout.pem'), key: pem('checkout.key') };

async function serve(t: Test, handler: (request: IncomingMessage, response: ServerResponse, body: string) => void): Promise<number> {
  const server = createServer({ key: pem('server.key'), cert: pem('server.pem'), ca: pem('ca.pem'), requestCert: true, rejectUnauthorized: true }, (request, response) => {
    const chunks: Buffer[] = [];
    request.on('error', () => {});
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => handler(request, response, Buffer.concat(chunks).toString('latin1')));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

function load(port: number, options: Partial<LoadOptions>): LoadOptions {
  return {
    port, tls, connections: 4, requests: 200,
    makeRequest: (sequence, into) => into.write(`GET /${sequence} HTTP/1.1\r\nHost: localhost\r\n\r\n`, 'latin1'),
    ...options,
  };
}

await t.test('every request is sent once over the given number of connections, and every answer counted', async (t) => {
  const paths = new Set<string>();
  const connections = new Set<unknown>();
  const port = await serve(t, (request, response) => {
    paths.add(request.url!);
    connections.add(request.socket);
    response.end('x'.repeat(3000));
  });
  const result = await runLoad(load(port, {}));
  t.equal(paths.size, 200);
  t.equal(connections.size, 4);
  t.match(result, { answered: 200, sent: 200, statuses: { 200: 200 } });
  t.same(result.failures, {});
  t.ok(result.latencyMs.p50 > 0 && result.latencyMs.p50 <= result.latencyMs.p99 && result.latencyMs.p99 <= result.latencyMs.max);
});

await t.test('a timed load counts what was answered after the warm-up only', async (t) => {
  const port = await serve(t, (_, response) => response.end('ok'));
  const marks: boolean[] = [];
  const { requests: _, ...timed } = load(port, { seconds: 0.3, warmupSeconds: 0.2, onMeasuring: (begins) => marks.push(begins) });
  const result = await runLoad(timed);
  t.same(marks, [true, false]);
  t.ok(result.answered > 0 && result.answered < result.sent);
  t.equal(result.statuses['200'], result.sent, 'what was in flight at the end is still answered');
});

await t.test('a load of so many requests a second takes its time, over however many connections', async (t) => {
  const port = await serve(t, (_, response) => response.end('ok'));
  const result = await runLoad(load(port, { requests: 60, perSecond: 100, connections: 8 }));
  t.equal(result.answered, 60);
  t.ok(result.seconds >= 0.55, 'the last of 60 is due after 590 ms');
});

await t.test('other answers than 2xx are failures, by status', async (t) => {
  const port = await serve(t, (request, response) => {
    response.statusCode = Number(request.url!.slice(1)) % 4 === 0 ? 503 : 200;
    response.end();
  });
  t.match(await runLoad(load(port, {})), { answered: 150, failures: { status_503: 50 }, statuses: { 200: 150, 503: 50 } });
});

await t.test('a connection that the server cuts is made anew, and the request on it is reported as lost', async (t) => {
  const port = await serve(t, (request, response) => {
    if (Number(request.url!.slice(1)) % 20 === 7) request.socket.destroy();
    else response.end();
  });
  const lost: number[] = [];
  const result = await runLoad(load(port, { onLost: (sequence) => lost.push(sequence) }));
  t.same(lost.sort((a, b) => a - b), Array.from({ length: 10 }, (_, i) => 7 + 20 * i));
  t.equal(Object.values(result.failures).reduce((a, b) => a + b, 0), 10);
  t.equal(result.answered, 190);
});

await t.test('a server that closes after each answer loses nothing', async (t) => {
  const port = await serve(t, (_, response) => response.writeHead(200, { connection: 'close' }).end('ok'));
  const result = await runLoad(load(port, { requests: 20 }));
  t.equal(result.answered, 20);
  t.same(result.failures, {});
});

await t.test('a request without an answer fails after the given time', async (t) => {
  const port = await serve(t, (request, response) => {
    if (request.url !== '/3') response.end();
  });
  const result = await runLoad(load(port, { requests: 10, timeoutMs: 100 }));
  t.match(result, { answered: 9, failures: { timeout: 1 } });
});

await t.test('a callback that throws ends the load', async (t) => {
  const port = await serve(t, (_, response) => response.end());
  const failing = (): never => {
    throw new Error('planted');
  };
  await t.rejects(runLoad(load(port, { makeRequest: failing })), new Error('planted'));
  await t.rejects(runLoad(load(port, { onResponse: failing })), new Error('planted'));
});

await t.test('a broken server does not look fast: wrong bodies are failures', async (t) => {
  const answersOf: Record<string, string> = {
    answer_without_token: '{"created":true,"last4":"1111"}',
    answer_of_another_card: `{"token":"tok_${'a'.repeat(32)}","created":true,"last4":"xxxx"}`,
    answer_not_created: `{"token":"tok_${'a'.repeat(32)}","created":false}`,
  };
  for (const [failure, body] of Object.entries(answersOf)) {
    const port = await serve(t, (_, response) => response.writeHead(201).end(body));
    const scenario = makeScenario({ name: 'tokenize', host: 'localhost', seed: 0, firstCard: 0, known: null, collect: Buffer.alloc(36 * 20) });
    const result = await runLoad(load(port, { ...scenario, requests: 20 }));
    t.same(result.failures, { [failure]: 20 });
    t.equal(result.answered, 0);
  }
});

await t.test('the tokenize scenario sends each new card once, as a request that a server understands', async (t) => {
  const cards = new Set<string>();
  const port = await serve(t, (request, response, body) => {
    const { pan } = JSON.parse(body) as { pan: string };
    if (request.url === '/v1/tokenize' && /^411111[0-9]{10}$/.test(pan)) cards.add(pan);
    response.writeHead(201).end(JSON.stringify({ token: `tok_${'B7'.repeat(16)}`, created: true, last4: pan.slice(-4) }));
  });
  const collect = Buffer.alloc(36 * 50);
  const scenario = makeScenario({ name: 'tokenize', host: 'localhost', seed: 3, firstCard: 10, known: null, collect });
  const result = await runLoad(load(port, { ...scenario, requests: 50 }));
  t.same(result.failures, {});
  t.equal(cards.size, 50);
  t.equal(collect.toString('latin1'), `tok_${'B7'.repeat(16)}`.repeat(50));
});
