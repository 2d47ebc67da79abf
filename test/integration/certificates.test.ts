/** Certificates against the real appliance: who gets in, who is put out, and how certificates change while it serves. */
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { parseReplies, type Reply } from '../support/api-client.ts';
import { freshDatabase } from '../support/database.ts';
import { readLog } from '../support/log-reader.ts';
import { put, serialOf, testPki, type Credentials } from '../support/pki.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database });
const pki = appliance.pki();
const checkoutName = { type: 'uri', value: 'spiffe://cofre.dev/tenant/acme/service/checkout' } as const;
const issue = (request: Partial<Parameters<typeof pki.issueCertificate>[0]> = {}): Credentials => {
  const issued = pki.issueCertificate({ commonName: 'odd', names: [checkoutName], ...request });
  return { cert: issued.certificate, key: issued.key };
};
const checkout = appliance.client('checkout');
const card = { pan: cardText(1) };

/** What a client with these credentials gets: a reply, or the end of its connection. */
async function outcome(credentials: Credentials | null, admin = false): Promise<Reply | 'connection refused'> {
  const client = appliance.client(credentials, { admin });
  try {
    return await client.call('POST', '/v1/tokenize', { body: card });
  } catch (error) {
    // Anything but an end of the connection is a fault of the test.
    const { code = '' } = error as NodeJS.ErrnoException;
    if (code === 'ECONNRESET' || code === 'EPIPE' || code.startsWith('ERR_SSL_')) return 'connection refused';
    throw error;
  } finally {
    client.close();
  }
}

/** Sends one request over an open connection and resolves to its answer; null if the connection ends instead. */
async function ask(socket: TLSSocket): Promise<Reply | null> {
  if (socket.destroyed) return null;
  const { promise, resolve } = Promise.withResolvers<Reply | null>();
  const chunks: Buffer[] = [];
  const onClose = (): void => resolve(null);
  const onData = (chunk: Buffer): void => {
    chunks.push(chunk);
    const all = Buffer.concat(chunks);
    const head = all.indexOf('\r\n\r\n');
    const length = Number(/content-length: (\d+)/iu.exec(all.toString('latin1'))?.[1]);
    if (head >= 0 && all.length >= head + 4 + length) resolve(parseReplies(all)[0]!);
  };
  socket.on('data', onData).once('close', onClose);
  const body = JSON.stringify(card);
  socket.write(`POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
  const reply = await promise;
  socket.off('data', onData).off('close', onClose);
  return reply;
}

t.equal((await checkout.post('/v1/tokenize', card)).status, 201);

await t.test('without a certificate, or with one that is not ours, the connection is refused and no request is read', async (t) => {
  t.equal(await outcome(null), 'connection refused', 'none');
  const foreign = testPki(t);
  t.equal(await outcome(foreign.credentials('checkout')), 'connection refused', 'of another authority with the same name');
  t.equal(await outcome(foreign.issue()), 'connection refused');
  t.equal(await outcome(issue({ notBefore: new Date(Date.now() - 7_200_000), notAfter: new Date(Date.now() - 3_600_000) })), 'connection refused', 'expired');
  t.equal(await outcome(issue({ notBefore: new Date(Date.now() + 3_600_000) })), 'connection refused', 'not yet valid');
  t.equal(await outcome(issue({ usages: ['serverAuth'] })), 'connection refused', 'a server\'s');
  t.equal(await outcome(null, true), 'connection refused', 'the admin listener asks for one as well');
  t.equal((await checkout.post('/v1/tokenize', card)).status, 200, 'the server serves on');
});

await t.test('a certificate of ours that does not name exactly one caller is not_authorized', async (t) => {
  const uri = (value: string) => ({ type: 'uri', value }) as const;
  const odd = {
    'two names': [checkoutName, uri('spiffe://cofre.dev/tenant/acme/service/getnet')],
    'the same name twice': [checkoutName, checkoutName],
    'no URI name': [{ type: 'dns', value: 'checkout.acme' } as const],
    'no name at all': [],
    'another trust domain': [uri('spiffe://cofre.example/tenant/acme/service/checkout')],
    'a trust domain that ours begins': [uri('spiffe://cofre.dev.example/tenant/acme/service/checkout')],
    'another scheme': [uri('https://cofre.dev/tenant/acme/service/checkout')],
    'upper case': [uri('spiffe://cofre.dev/tenant/Acme/service/checkout')],
    'a longer path': [uri('spiffe://cofre.dev/tenant/acme/service/checkout/x')],
    'a shorter path': [uri('spiffe://cofre.dev/tenant/acme')],
    'a query': [uri('spiffe://cofre.dev/tenant/acme/service/checkout?x')],
    'a comma': [uri('spiffe://cofre.dev/tenant/acme/service/checkout, URI:x')],
  };
  for (const [name, names] of Object.entries(odd)) {
    const reply = await outcome(issue({ names }));
    t.ok(typeof reply !== 'string', name);
    isProblem(t, reply as Reply, 'not_authorized', name);
  }
  const beside = await outcome(issue({ names: [{ type: 'dns', value: 'checkout.acme' }, checkoutName, { type: 'email', value: 'a@b.example' }] }));
  t.equal(typeof beside === 'string' ? beside : beside.status, 200, 'names of other types do not matter');
});

await t.test('a caller of a tenant that is not there is refused, and not a fault', async (t) => {
  const reply = await outcome(issue({ names: [{ type: 'uri', value: 'spiffe://cofre.dev/tenant/nobody/service/checkout' }] }));
  isProblem(t, reply as Reply, 'not_authorized');
});

await t.test('a revocation ends the open connection, and neither a resumed nor a new one is served', async (t) => {
  const revoked = issue();
  const client = appliance.client(revoked);
  const open = await client.connect();
  let session: Buffer | null = null;
  open.on('session', (ticket: Buffer) => {
    session = ticket;
  });
  t.equal((await ask(open))?.status, 200);
  t.ok(session !== null, 'there is a ticket');
  const resumed = await client.connect({ session: session! });
  t.equal((await ask(resumed))?.status, 200);
  t.equal(resumed.isSessionReused(), true, 'which is taken while the certificate is good');

  pki.signCrl([serialOf(revoked.cert)]);
  await until(() => open.destroyed && resumed.destroyed, 'the end of the connections');

  // With the old ticket, if it were still good, the handshake would not look at anything.
  const again = await client.connect({ session: session! });
  t.equal(again.isSessionReused(), false);
  isProblem(t, (await ask(again))!, 'not_authorized');
  const fresh = await outcome(revoked);
  isProblem(t, fresh as Reply, 'not_authorized');
  t.equal((fresh as Reply).headers['connection'], 'close');

  t.equal((await checkout.post('/v1/tokenize', card)).status, 200, 'others are served on');
  const refusals = (await readLog(appliance)).filter(({ value }) => value['serial'] === serialOf(revoked.cert) && value['outcome'] === 'refused');
  t.equal(refusals.length, 2, 'the log names the certificate');
});

await t.test('a broken revocation list leaves the one in force, says so once, and a good one is taken again', async (t) => {
  const file = join(appliance.home, 'pki/crl.pem');
  const good = readFileSync(file);
  const mark = appliance.messages().length;
  const since = () => appliance.messages().slice(mark);
  put(file, good.subarray(0, good.length / 2));
  await until(() => since().some((message) => message['msg'] === 'the revocation list was not reloaded'), 'the message');
  t.equal((await checkout.post('/v1/tokenize', card)).status, 200);
  const late = issue();
  t.equal(((await outcome(late)) as Reply).status, 200);
  pki.signCrl([serialOf(late.cert)]);
  await until(async () => ((await outcome(late)) as Reply).status === 403, 'the new list');
  t.equal(since().filter((message) => message['msg'] === 'the revocation list was not reloaded').length, 1);
});

await t.test('a new server certificate is used for new connections, and an open one goes on', async (t) => {
  const client = appliance.client('checkout');
  const open = await client.connect();
  t.equal((await ask(open))?.status, 200);
  const server = pki.issueCertificate({ commonName: 'localhost', names: [{ type: 'dns', value: 'localhost' }, { type: 'ip', value: '127.0.0.1' }], usages: ['serverAuth'] });
  // The pair is written in two steps, as certificate managers do; between them it does not match, and the old one serves.
  put(join(appliance.home, 'pki/server.key'), server.key);
  t.equal((await checkout.post('/v1/tokenize', card)).status, 200);
  put(join(appliance.home, 'pki/server.pem'), server.certificate);
  const wanted = new X509Certificate(server.certificate).serialNumber;
  await until(async () => {
    const socket = await client.connect();
    const { serialNumber } = socket.getPeerX509Certificate()!;
    socket.destroy();
    return serialNumber === wanted;
  }, 'the new certificate');
  t.equal((await ask(open))?.status, 200, 'the open connection is served on');
});

await t.test('SIGHUP reloads the certificates at once and leaves an open connection alone', async (t) => {
  const client = appliance.client('checkout');
  const open = await client.connect();
  t.equal((await ask(open))?.status, 200);
  const mark = appliance.messages().length;
  appliance.signal('SIGHUP');
  await until(() => appliance.messages().slice(mark).filter((message) => message['msg'] === 'the certificates were reloaded').length >= 2, 'both listeners');
  t.equal((await ask(open))?.status, 200);
});

await t.test('only TLS 1.3 is spoken, and no other protocol than HTTP/1.1', async (t) => {
  const client = appliance.client('checkout');
  await t.rejects(client.connect({ maxVersion: 'TLSv1.2' }));
  const socket = await client.connect({ ALPNProtocols: ['http/1.1'] });
  t.equal(socket.getProtocol(), 'TLSv1.3');
  t.equal(socket.alpnProtocol, 'http/1.1');
  await t.rejects(client.connect({ ALPNProtocols: ['h2'] }));
});
