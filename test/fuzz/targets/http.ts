/**
 * Raw HTTP against a running appliance: the input is what a client with a certificate writes on a connection of its own. Whatever it is, it is answered or the connection is closed, no answer is a fault, and the appliance lives on.
 *
 * Guided by how it went: the statuses and codes of the answers, and how the connection ended.
 */
import { existsSync } from 'node:fs';
import type { TLSSocket } from 'node:tls';
import { Appliance } from '../../support/appliance.ts';
import type { ApiClient } from '../../support/api-client.ts';
import type { Target } from '../target.ts';

let appliance: Appliance | null = null;
let client: ApiClient | null = null;
let session: Buffer | undefined;
/** How many executions there were: every sixteenth waits for the server to close by itself. */
let turn = 0;

/** The server's limit for a request to arrive. */
const requestTimeout = '1s';
/** Half of the inputs are no whole request: they are given up this long after the last byte that came. */
const quietMs = 60;
const closeMs = 10_000;

/** All that came back, and how the connection ended. */
function exchange(socket: TLSSocket, bytes: Buffer, patient: boolean): Promise<{ answer: string; end: string }> {
  const { promise, resolve } = Promise.withResolvers<{ answer: string; end: string }>();
  const chunks: Buffer[] = [];
  let end = 'closed';
  const late = setTimeout(() => {
    end = 'neither answered nor closed';
    socket.destroy();
  }, closeMs);
  const giveUp = (): void => {
    end = chunks.length === 0 ? 'given up' : 'left open';
    socket.end();
  };
  let quiet = setTimeout(giveUp, patient ? closeMs * 2 : quietMs * 3);
  socket.on('data', (chunk: Buffer) => {
    chunks.push(chunk);
    clearTimeout(quiet);
    quiet = setTimeout(giveUp, quietMs);
  });
  socket.once('close', () => {
    clearTimeout(late);
    clearTimeout(quiet);
    resolve({ answer: Buffer.concat(chunks).toString('latin1'), end });
  });
  socket.write(bytes);
  return promise;
}

export const target: Target = {
  parallel: 24,
  maxBytes: 4096,
  words: ['\r\n', '\r\n\r\n', '\n', '\r', '\0', ' ', '\t', ':', 'Host: localhost\r\n', 'Transfer-Encoding: chunked\r\n', 'transfer-encoding: identity\r\n', 'Content-Length: 2\r\n', 'Content-Length: -1\r\n', 'Content-Length: 99999999999999999999\r\n', 'Expect: 100-continue\r\n', 'Expect: x\r\n', 'Connection: close\r\n', 'Connection: upgrade\r\nUpgrade: h2c\r\n', 'Trailer: x\r\n', 'Content-Type: application/json\r\n', 'Idempotency-Key: k\r\n', '0\r\n\r\n', '1\r\nx\r\n', 'ffffffffffffffff\r\n', 'GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n', 'HEAD', 'POST', 'DELETE', 'OPTIONS', 'CONNECT', 'TRACE', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'HTTP/1.0', 'HTTP/2.0', '/v1/tokens/', '%00', '%zz', '%ff', '//', '/../', '?', '#', '*', 'http://localhost/', '\u00e9', '{}', '4111111111111111', 'x'.repeat(1000), 'a: b\r\n'.repeat(50)],
  async open(database) {
    appliance = new Appliance({ ...(database === undefined ? {} : { database }), config: { listeners: { request_timeout: requestTimeout, keep_alive_timeout: '2s' } } });
    await appliance.start();
    client = appliance.client('checkout');
  },
  async run(input) {
    const patient = turn++ % 16 === 0;
    const socket = await client!.connect(session === undefined ? {} : { session });
    socket.on('session', (ticket: Buffer) => (session = ticket));
    const { answer, end } = await exchange(socket, input, patient);
    if (end === 'neither answered nor closed') throw new Error(`a connection is ${end}`);
    const statuses = [...answer.matchAll(/(?:^|[}\]\r\n])HTTP\/1\.1 ([0-9]{3}) /gu)].map(([, status]) => Number(status));
    if (answer.length > 0 && !answer.startsWith('HTTP/1.1 ')) throw new Error('an answer is no HTTP');
    if (statuses.some((status) => status >= 500)) throw new Error(`an answer is ${statuses.find((status) => status >= 500)}`);
    if (!existsSync(`/proc/${appliance!.pid}`)) throw new Error('the appliance is no more');
    const codes = [...answer.matchAll(/"code":"([a-z_]+)"/gu)].map(([, code]) => code);
    return `${statuses.slice(0, 4).join()} ${codes.slice(0, 4).join()} ${end}`;
  },
  async close() {
    const faults = appliance?.messages().filter((message) => message['level'] === 'error') ?? [];
    await appliance?.destroy();
    if (faults.length > 0) throw new Error(`the appliance speaks of a fault: ${JSON.stringify(faults[0])}`);
  },
};
