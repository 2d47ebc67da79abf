/** The log as it is served, behind a real TLS listener and without a database: what its answers may take of the vault's memory. */
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import type { TLSSocket } from 'node:tls';
import t from 'tap';
import { addAuditRoutes } from '../../vault/audit-routes.ts';
import { createServer } from '../../vault/server.ts';
import { TlsListener } from '../../vault/tls.ts';
import { parseReplies } from '../support/api-client.ts';
import { until } from '../support/appliance.ts';
import { testPki } from '../support/pki.ts';

const mebi = 1024 * 1024;
/** More than the buffers of a loopback connection take. */
const bundle = Buffer.alloc(24 * mebi, 'x');

t.test('who asks for entries and does not read them holds one answer beyond its share, and is told overloaded for the next', async (t) => {
  const set = testPki(t);
  const tls = await TlsListener.open({ name: 'admin', files: { certificate: set.path('server.pem'), key: set.path('server.key'), ca: set.path('ca.pem') }, maxConnections: 50, maxConnectionsPerCertificate: 50, handshakesPerSecond: 1000, handshakeBurst: 1000, maxHandshakesWaiting: 50, maxFullHandshakesPerCertificate: 1000, handshakeTimeoutMs: 10_000 });
  t.teardown(() => tls.close());
  const noted: unknown[] = [];
  const app = createServer({
    tls,
    trustDomain: 'cofre.dev',
    isSuspended: () => false,
    revocation: { check: () => 'good' },
    observer: { answered: () => undefined, failed: () => undefined, turnedAway: () => undefined },
    now: () => new Date(),
    recordRefusal: () => Promise.resolve(),
    bodyPassed: () => undefined,
    admission: { maxRequestsPerCaller: 100, maxBodyBytesPerCaller: 16 * mebi, maxBodyBytes: 64 * mebi },
    requestTimeoutMs: 60_000,
    answerTimeoutMs: 60_000,
    keepAliveTimeoutMs: 60_000,
  });
  let resources = 0;
  addAuditRoutes(app, {
    policy: { decide: () => ({ allowed: true, policyIds: [] }) } as never,
    log: {
      checkpoint: () => Promise.resolve(null),
      vkey: () => Promise.resolve(null),
      policySet: () => Promise.resolve(null),
      resource: () => {
        resources += 1;
        return Promise.resolve({ bytes: bundle, entries: { from: 0, to: 256 } });
      },
      search: () => Promise.resolve({ items: [], next: null, searchable_from: { index: 0, time: null }, filler: bundle.toString('latin1') } as never),
    },
    reads: { note: (_call: unknown, _policies: unknown, what: unknown) => noted.push(what) } as never,
    refusal: () => null,
    record: () => Promise.resolve(),
  });
  await app.listen({ host: '127.0.0.1', port: 0 });
  t.teardown(() => app.close());
  const { port } = app.server.address() as AddressInfo;

  const asked = async (who: string, path: string): Promise<TLSSocket> => {
    const socket = await set.connect(port, set.credentials(who));
    socket.write(`GET /audit/${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`);
    return socket;
  };
  const answer = async (socket: TLSSocket): Promise<{ status: number; length: number }> => {
    const chunks: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    await once(socket, 'close');
    const whole = Buffer.concat(chunks);
    const [reply] = parseReplies(whole);
    return { status: reply!.status, length: whole.length };
  };

  const deaf = await asked('auditor', 'tile/entries/000');
  await until(() => noted.length === 1, 'the answer that nobody reads');
  for (const path of ['tile/entries/000', 'tile/entries/001', 'search?action=detokenize']) t.match(await answer(await asked('auditor', path)), { status: 503 }, path);
  t.equal(noted.length, 1, 'what was not given was not read');
  t.equal(resources, 3);
  const other = await answer(await asked('operator-a', 'tile/entries/000'));
  t.equal(other.status, 200, 'another reads meanwhile');
  t.ok(other.length > bundle.length);

  t.equal((await answer(deaf)).status, 200, 'and the first once it reads');
  t.equal((await answer(await asked('auditor', 'search?action=detokenize'))).status, 200, 'then it has its share again');
});
