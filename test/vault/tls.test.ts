import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:https';
import { connect as connectTcp, createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net';
import { connect as connectTls, createServer as createTlsServer, type ConnectionOptions, type Server, type TLSSocket } from 'node:tls';

import t, { type Test } from 'tap';

import { makeCertificate, makeCrl } from '../../platform-adapters/pki/certificate.ts';
import { callerOf } from '../../vault/caller.ts';
import { VaultError } from '../../vault/errors.ts';
import { RevocationList } from '../../vault/revocation.ts';
import { TlsListener, type TlsEvent, type TlsListenerOptions } from '../../vault/tls.ts';
import { put, serialOf, sessionOf, strangeKey, testPki, type Credentials, type TestPki } from '../support/pki.ts';

const dayMs = 86_400_000;

interface Vault {
  readonly set: TestPki;
  readonly listener: TlsListener;
  readonly revocation: RevocationList;
  readonly events: TlsEvent[];
  readonly port: number;
  readonly server: Server;
  /** What `connect` made, in its order. */
  readonly opened: TLSSocket[];
  /** Of the server's connections, by the client's port: those on which somebody is owed an answer. */
  readonly owed: Set<number>;
  /** Moves the vault's clock, not OpenSSL's. */
  clock: () => Date;
  connect(who: string | Credentials | null, options?: ConnectionOptions): Promise<TLSSocket>;
}

/** A real HTTPS server behind a TlsListener, which answers every request with its caller or the reason of its refusal. */
async function vault(t: Test, options: Partial<TlsListenerOptions> = {}, set = testPki(t)): Promise<Vault> {
  const events: TlsEvent[] = [];
  const files = { certificate: set.path('server.pem'), key: set.path('server.key'), ca: set.path('ca.pem') };
  const listener = await TlsListener.open({ name: 'api', files, maxConnections: 50, maxConnectionsPerCertificate: 50, handshakesPerSecond: 1000, handshakeBurst: 1000, maxHandshakesWaiting: 50, maxFullHandshakesPerCertificate: 1000, handshakeTimeoutMs: 10_000, report: (event) => events.push(event), ...options });
  const revocation = await RevocationList.load({ crlFile: set.path('crl.pem'), caFile: files.ca, maxAgeMs: dayMs, now: () => new Date() });
  const server = createServer(listener.serverOptions(), (request, response) => {
    const socket = request.socket as TLSSocket;
    let answer: string;
    try {
      const caller = callerOf(socket, 'cofre.dev');
      const standing = revocation.check(caller, made.clock());
      answer = standing === 'good' ? `${caller.service} ${socket.isSessionReused() ? 'resumed' : 'full'}` : `403 ${standing}`;
    } catch (error) {
      if (!(error instanceof VaultError)) throw error;
      answer = `${error.status} ${(error.cause as Error).message}`;
    }
    response.end(answer);
  });
  const callerAt = (socket: TLSSocket): string => {
    try {
      return callerOf(socket, 'cofre.dev').spiffeId;
    } catch {
      return '';
    }
  };
  listener.attach(server, { callerOf: callerAt, isOwedNothing: (socket) => !made.owed.has(socket.remotePort!) });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    listener.close();
    server.close();
    server.closeAllConnections();
  });
  const port = (server.address() as AddressInfo).port;
  const made: Vault = {
    set,
    listener,
    revocation,
    events,
    port,
    server,
    opened: [],
    owed: new Set(),
    clock: () => new Date(),
    async connect(who, extra) {
      const socket = await set.connect(port, typeof who === 'string' ? set.credentials(who) : who, extra);
      made.opened.push(socket);
      return socket;
    },
  };
  return made;
}

/** One request on an open connection: the answer's body, or `closed` where the connection ends first. */
async function ask(socket: TLSSocket): Promise<string> {
  return new Promise((resolve) => {
    let text = '';
    const done = (answer: string): void => {
      socket.off('data', read).off('close', closed);
      resolve(answer);
    };
    const closed = (): void => done('closed');
    const read = (chunk: Buffer): void => {
      text += chunk.toString('latin1');
      const [head = '', body = ''] = text.split('\r\n\r\n');
      if (body !== '' && body.length === Number(/content-length: (\d+)/i.exec(head)?.[1])) done(body);
    };
    if (socket.destroyed) return closed();
    socket.on('data', read).once('close', closed);
    socket.write('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n');
  });
}

const openSockets = (server: Server): Promise<number> => new Promise((resolve, reject) => server.getConnections((error, count) => (error === null ? resolve(count) : reject(error))));

/** What a client says first. */
async function helloOf(t: Test): Promise<Buffer> {
  const server = createTcpServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = connectTls({ host: '127.0.0.1', servername: 'localhost', port: (server.address() as AddressInfo).port });
  client.on('error', () => {});
  const [socket] = (await once(server, 'connection')) as [Socket];
  t.teardown(() => {
    client.destroy();
    socket.destroy();
    server.close();
  });
  const [hello] = (await once(socket, 'data')) as [Buffer];
  return hello;
}

const askAs = async (made: Vault, who: string | Credentials | null, options?: ConnectionOptions): Promise<string> => ask(await made.connect(who, options));

t.test('a client with a certificate of ours speaks TLS 1.3 and HTTP/1.1 and is known by its name', async (t) => {
  const made = await vault(t);
  const socket = await made.connect('checkout', { ALPNProtocols: ['h2', 'http/1.1'] });
  t.equal(socket.getProtocol(), 'TLSv1.3');
  t.equal(socket.alpnProtocol, 'http/1.1');
  t.equal(await ask(socket), 'checkout full');
  t.equal(await ask(socket), 'checkout full', 'again on the same connection');
  t.equal(made.listener.connections, 1);
});

t.test('TLS 1.2, and HTTP/2 alone, are refused in the handshake', async (t) => {
  const made = await vault(t);
  await t.rejects(made.connect('checkout', { maxVersion: 'TLSv1.2' }), { code: 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION' });
  await t.rejects(made.connect('checkout', { ALPNProtocols: ['h2'] }), { code: 'ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL' });
  t.equal(made.listener.connections, 0);
});

t.test('no certificate, or one that does not hold, gets no answer at all', async (t) => {
  const made = await vault(t);
  const { set } = made;
  const foreign = testPki(t);
  const now = Date.now();
  const table: readonly (readonly [string, Credentials | null])[] = [
    ['missing', null],
    ['of a foreign authority with the same name', foreign.credentials('checkout')],
    ['expired', set.issue({ notBefore: new Date(now - 2 * dayMs), notAfter: new Date(now - dayMs) })],
    ['not yet valid', set.issue({ notBefore: new Date(now + dayMs), notAfter: new Date(now + 2 * dayMs) })],
    ['for servers', set.credentials('server')],
  ];
  for (const [what, credentials] of table) t.equal(await askAs(made, credentials), 'closed', what);
  t.equal(made.listener.connections, 0);
  t.equal(await askAs(made, 'checkout'), 'checkout full');
});

t.test('a certificate of ours that names no caller is refused at every request', async (t) => {
  const made = await vault(t);
  const { set } = made;
  const id = { type: 'uri', value: 'spiffe://cofre.dev/tenant/acme/service/checkout' } as const;
  const two = await made.connect(set.issue({ names: [id, { type: 'uri', value: 'spiffe://cofre.dev/tenant/globex/service/checkout' }] }));
  t.equal(await ask(two), '403 the certificate does not have exactly one URI name');
  t.equal(await ask(two), '403 the certificate does not have exactly one URI name');
  t.equal(await askAs(made, set.issue({ names: [{ type: 'uri', value: 'spiffe://other.dev/tenant/acme/service/checkout' }] })), '403 the URI name is of another trust domain');
  t.equal(await askAs(made, set.issue({ names: [{ type: 'dns', value: 'localhost' }] })), '403 the certificate does not have exactly one URI name');
});

t.test('a resumed session has the caller of its first handshake', async (t) => {
  const made = await vault(t);
  const first = await made.connect('getnet');
  t.equal(await ask(first), 'getnet full');
  // The ticket decides, whatever certificate the client brings along.
  const second = await made.connect('checkout', { session: sessionOf(first) });
  t.ok(second.isSessionReused());
  t.equal(await ask(second), 'getnet resumed');
  t.equal(made.listener.connections, 2);
});

t.test('a session is not resumed at another listener', async (t) => {
  const api = await vault(t);
  const admin = await vault(t, { name: 'admin' }, api.set);
  const socket = await api.connect('checkout');
  await ask(socket);
  t.equal(await askAs(admin, 'checkout', { session: sessionOf(socket) }), 'checkout full');
});

t.test('a session without a certificate is refused even where its ticket is good', async (t) => {
  const made = await vault(t);
  // No such ticket leaves our server, which hangs up first: here a lax one with the same keys makes it.
  const lax = createTlsServer({ ...made.listener.serverOptions(), rejectUnauthorized: false }, (socket) => {
    socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'));
  });
  lax.listen(0, '127.0.0.1');
  await once(lax, 'listening');
  t.teardown(() => lax.close());
  const first = await made.set.connect((lax.address() as AddressInfo).port, null);
  t.equal(await ask(first), 'ok');
  const second = await made.connect(null, { session: sessionOf(first) });
  t.ok(second.isSessionReused(), 'OpenSSL resumes it');
  t.equal(await ask(second), 'closed');
});

t.test('a connection that Node calls authorized without a certificate is refused', async (t) => {
  const made = await vault(t);
  const server = Object.assign(new EventEmitter(), { setTicketKeys: () => {} });
  made.listener.attach(server as unknown as Server, { callerOf: () => '', isOwedNothing: () => true });
  let destroyed = false;
  server.emit('secureConnection', { authorized: true, getPeerCertificate: () => ({}), destroy: () => (destroyed = true) });
  t.ok(destroyed);
  t.same(made.events, [{ kind: 'connection_refused', reason: 'no client certificate' }]);
});

t.test('a revocation reaches the next request of an open connection, then ends the connection', async (t) => {
  const made = await vault(t);
  const open = await made.connect('checkout');
  const other = await made.connect('getnet');
  t.equal(await ask(open), 'checkout full');
  t.equal(await ask(other), 'getnet full');
  const serial = made.set.pki.revoke('checkout');
  const { newlyRevoked } = await made.revocation.reload();
  t.same(newlyRevoked, new Set([serial]));
  t.equal(await ask(open), '403 revoked');
  t.equal(made.listener.closeRevoked(newlyRevoked), 1);
  t.equal(await ask(open), 'closed');
  t.equal(await ask(other), 'getnet full', 'others go on');
  t.equal(made.listener.connections, 1);
  t.same(made.events, [{ kind: 'connections_closed', count: 1 }]);
  t.equal(await askAs(made, 'checkout'), '403 revoked', 'and a new connection gets no further');
});

t.test('a revocation reaches a resumed session, and after the keys were rotated there is none', async (t) => {
  const made = await vault(t);
  const checkout = await made.connect('checkout');
  const getnet = await made.connect('getnet');
  await ask(checkout);
  await ask(getnet);
  made.set.pki.revoke('checkout');
  const { newlyRevoked } = await made.revocation.reload();
  const resumed = await made.connect('checkout', { session: sessionOf(checkout) });
  t.ok(resumed.isSessionReused(), 'the handshake alone does not know');
  t.equal(await ask(resumed), '403 revoked');
  t.equal(made.listener.closeRevoked(newlyRevoked), 2);
  const again = await made.connect('checkout', { session: sessionOf(checkout) });
  t.notOk(again.isSessionReused());
  t.equal(await ask(again), '403 revoked');
  t.equal(await askAs(made, 'getnet', { session: sessionOf(getnet) }), 'getnet full', 'a good client does one full handshake more');
});

t.test('closing nobody rotates nothing', async (t) => {
  const made = await vault(t);
  const socket = await made.connect('checkout');
  await ask(socket);
  t.equal(made.listener.closeRevoked(new Set()), 0);
  t.equal(await askAs(made, 'checkout', { session: sessionOf(socket) }), 'checkout resumed');
});

t.test('ticket keys are rotated from time to time', async (t) => {
  const made = await vault(t, { ticketRotationMs: 5 });
  const socket = await made.connect('checkout');
  await ask(socket);
  // Timers fire in the order of their times: the rotation's comes before this one.
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.equal(await askAs(made, 'checkout', { session: sessionOf(socket) }), 'checkout full');
});

t.test('a certificate that expires and a list that goes stale are noticed on an open connection', async (t) => {
  const made = await vault(t);
  const socket = await made.connect(made.set.issue({ notAfter: new Date(Date.now() + 3_600_000) }));
  t.equal(await ask(socket), 'checkout full');
  made.clock = () => new Date(Date.now() + 2 * 3_600_000);
  t.equal(await ask(socket), '403 expired');
  const long = await made.connect('getnet');
  t.equal(await ask(long), 'getnet full');
  made.clock = () => new Date(Date.now() + 2 * dayMs);
  t.equal(await ask(long), '403 stale');
});

t.test('a new server certificate is used for new connections and drops no open one', async (t) => {
  const made = await vault(t);
  const open = await made.connect('checkout');
  await ask(open);
  const before = open.getPeerX509Certificate()?.serialNumber;
  const { certificate } = made.set.pki.reissue('server');
  t.equal(await made.listener.reload(), null);
  t.equal(await ask(open), 'checkout full');
  const next = await made.connect('checkout');
  t.equal(next.getPeerX509Certificate()?.serialNumber, new X509Certificate(certificate).serialNumber);
  t.not(next.getPeerX509Certificate()?.serialNumber, before);
  t.equal(await askAs(made, 'checkout', { session: sessionOf(open) }), 'checkout resumed', 'tickets stay good');
  await t.rejects(made.connect('checkout', { maxVersion: 'TLSv1.2' }), 'and so does every limit of the handshake');
  t.equal(await askAs(made, null), 'closed');
  const failed = { kind: 'connection_refused', reason: 'the handshake failed' };
  t.same(made.events, [{ kind: 'reloaded' }, failed, failed]);
});

t.test('a half-written pair, or anything else that does not fit, is refused without a byte of it, and the old one stays', async (t) => {
  const made = await vault(t);
  const { set } = made;
  const before = set.credentials('server');
  const serial = serialOf(before.cert);
  const key = strangeKey();
  const table: readonly (readonly [string, string, RegExp])[] = [
    ['server.key', key, /server\.key: is not the key of .*server\.pem$/],
    ['server.key', key.slice(0, 120), /server\.key: does not hold a private key$/],
    ['server.key', '', /server\.key: does not hold a private key$/],
    ['server.pem', before.cert.slice(0, 200), /server\.pem: does not hold a certificate$/],
    ['ca.pem', 'rubbish', /ca\.pem: does not hold certificates of authorities$/],
    ['ca.pem', set.credentials('checkout').cert, /ca\.pem: does not hold certificates of authorities$/],
  ];
  const trusted = readFileSync(set.path('ca.pem'), 'utf8');
  for (const [file, content, reason] of table) {
    const good = readFileSync(set.path(file), 'utf8');
    put(set.path(file), content);
    const said = await made.listener.reload();
    t.match(said, reason);
    if (file.endsWith('.key')) for (const line of content.split('\n').slice(1, -2)) t.notOk(said?.includes(line));
    t.equal(await made.listener.reload(), said, 'as often as one asks');
    put(set.path(file), good);
    t.equal(await made.listener.reload(), null, 'and once whole again it is taken');
  }
  rmSync(set.path('server.pem'));
  t.match(await made.listener.reload(), /server\.pem: cannot be read \(ENOENT\)$/);
  t.equal(made.events.filter(({ kind }) => kind === 'reload_refused').length, table.length + 1, 'each told of once');
  const socket = await made.connect('checkout', { ca: trusted });
  t.equal(serialOf(socket.getPeerX509Certificate()?.toString() ?? ''), serial);
});

t.test('a server certificate outside its time is refused, and the old one stays', async (t) => {
  const made = await vault(t);
  const before = serialOf(made.set.credentials('server').cert);
  const now = Date.now();
  for (const [notBefore, notAfter] of [[now - 2 * dayMs, now - dayMs], [now + dayMs, now + 2 * dayMs]] as const) {
    const odd = made.set.issue({ commonName: 'localhost', names: [{ type: 'dns', value: 'localhost' }], usages: ['serverAuth'], notBefore: new Date(notBefore), notAfter: new Date(notAfter) });
    put(made.set.path('server.key'), odd.key);
    put(made.set.path('server.pem'), odd.cert);
    t.match(await made.listener.reload(), /server\.pem: is not valid at this time$/);
  }
  const socket = await made.connect('checkout');
  t.equal(serialOf(socket.getPeerX509Certificate()?.toString() ?? ''), before);
});

t.test('a key that OpenSSL finds too small is refused before it is used', async (t) => {
  const made = await vault(t);
  const weak = generateKeyPairSync('rsa', { modulusLength: 1024 });
  const key = weak.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
  const { cert } = made.set.issue({ commonName: 'localhost', names: [{ type: 'dns', value: 'localhost' }], usages: ['serverAuth'], key: weak.privateKey });
  put(made.set.path('server.key'), key);
  put(made.set.path('server.pem'), cert);
  t.match(await made.listener.reload(), /server\.pem: OpenSSL does not accept the pair$/);
  t.equal(await askAs(made, 'checkout'), 'checkout full');
});

t.test('a listener does not open on a pair that does not match', async (t) => {
  const set = testPki(t);
  put(set.path('server.key'), strangeKey());
  await t.rejects(vault(t, {}, set), /server\.key: is not the key of/);
});

t.test('files that change are taken by themselves', async (t) => {
  const made = await vault(t);
  made.listener.watch(5);
  const told = async (kind: TlsEvent['kind']): Promise<void> => {
    while (!made.events.some((event) => event.kind === kind)) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  const key = strangeKey();
  put(made.set.path('server.key'), key);
  await told('reload_refused');
  // Looked at again and again while it is wrong, told of once.
  await new Promise((resolve) => setTimeout(resolve, 30));
  t.equal(made.events.length, 1);
  const issued = made.set.pki.reissue('server');
  await told('reloaded');
  const socket = await made.connect('checkout');
  t.equal(serialOf(socket.getPeerX509Certificate()?.toString() ?? ''), issued.serial);
});

t.test('an authority that is taken out takes its connections and sessions along', async (t) => {
  const made = await vault(t);
  const trusted = readFileSync(made.set.path('ca.pem'), 'utf8');
  const next = testPki(t);
  const old = await made.connect('checkout');
  t.equal(await ask(old), 'checkout full');
  put(made.set.path('ca.pem'), trusted + readFileSync(next.path('ca.pem'), 'utf8'));
  t.equal(await made.listener.reload(), null);
  t.equal(await ask(old), 'checkout full', 'an authority added drops nothing');
  const young = await made.connect(next.credentials('getnet'), { ca: trusted });
  t.equal(await ask(young), 'getnet full');
  put(made.set.path('ca.pem'), readFileSync(next.path('ca.pem'), 'utf8'));
  t.equal(await made.listener.reload(), null);
  t.equal(await ask(old), 'closed');
  t.equal(await ask(young), 'getnet full');
  t.equal(await askAs(made, 'checkout', { ca: trusted, session: sessionOf(old) }), 'closed');
});

t.test('a client certificate under an intermediate has no revocation list here and is refused', async (t) => {
  const set = testPki(t);
  const made = await vault(t, {}, set);
  const trusted = readFileSync(set.path('ca.pem'), 'utf8');
  const pair = () => generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  const root = pair();
  const middle = pair();
  const leaf = pair();
  const named = (commonName: string) => ({ organization: 'Elsewhere', commonName });
  const span = { notBefore: new Date(Date.now() - dayMs), notAfter: new Date(Date.now() + dayMs) };
  const ofRoot = makeCertificate({ subject: named('root'), names: [], usages: [], authority: { pathLength: 1 }, ...span }, root.publicKey, { subject: named('root'), key: root.privateKey });
  const ofMiddle = makeCertificate({ subject: named('middle'), names: [], usages: [], authority: { pathLength: 0 }, ...span }, middle.publicKey, { subject: named('root'), key: root.privateKey });
  const id = { type: 'uri', value: 'spiffe://cofre.dev/tenant/acme/service/checkout' } as const;
  const ofLeaf = makeCertificate({ subject: named('leaf'), names: [id], usages: ['clientAuth'], ...span }, leaf.publicKey, { subject: named('middle'), key: middle.privateKey });
  const client = { cert: ofLeaf + ofMiddle, key: leaf.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString() };
  put(set.path('ca.pem'), ofRoot);
  await made.listener.reload();
  t.equal(await askAs(made, client, { ca: trusted }), 'closed');
  t.match(made.events, [{ kind: 'reloaded' }, { kind: 'connection_refused', reason: 'not issued by an authority of ours' }]);
  put(set.path('ca.pem'), ofRoot + ofMiddle);
  await made.listener.reload();
  t.equal(await askAs(made, client, { ca: trusted }), '403 stale', 'with the issuing authority in the file it still lacks a list');
  const list = { number: 1n, thisUpdate: new Date(), nextUpdate: new Date(Date.now() + dayMs), revoked: [] };
  put(set.path('crl.pem'), makeCrl(list, { subject: named('root'), key: root.privateKey }) + makeCrl(list, { subject: named('middle'), key: middle.privateKey }));
  t.equal((await made.revocation.reload()).outcome, 'loaded');
  t.equal(await askAs(made, client, { ca: trusted }), 'checkout full', 'and with it is welcome');
});

t.test('a full listener has room for whoever has less of it than another', async (t) => {
  const made = await vault(t, { maxConnections: 4 });
  const renewed = made.set.issue({ names: [{ type: 'uri', value: 'spiffe://cofre.dev/tenant/acme/service/checkout' }, { type: 'dns', value: 'checkout-2.example' }] });
  const [busy, oldest, second, third] = [await made.connect('checkout'), await made.connect('checkout'), await made.connect(renewed), await made.connect(renewed)];
  for (const socket of [busy, oldest, second, third]) t.equal(await ask(socket), 'checkout full', 'nobody else wants any');
  made.owed.add(busy.localPort!);
  t.equal(await askAs(made, 'checkout'), 'closed', 'nobody makes room for himself');
  const [getnet, intruder] = [await made.connect('getnet'), await made.connect('intruder')];
  t.equal(await ask(getnet), 'getnet full');
  t.equal(await ask(intruder), 'intruder full');
  t.equal(await ask(oldest), 'closed', 'in place of the oldest that is owed nothing');
  t.equal(await ask(second), 'closed', 'whatever certificate of the caller it came with, and whatever else that names');
  t.equal(await ask(busy), 'checkout full');
  t.equal(await askAs(made, 'getnet'), 'closed', 'two would be as many as checkout has');
  t.equal(await askAs(made, renewed), 'closed');
  made.owed.add(third.localPort!);
  t.equal(await askAs(made, 'checkout-globex'), 'closed', 'what is owed an answer stays');
  made.owed.delete(busy.localPort!);
  t.equal(await askAs(made, 'checkout-globex'), 'checkout full');
  t.equal(await ask(busy), 'closed');
  t.equal(await ask(third), 'checkout full');
  t.equal(made.listener.connections, 4);
  const counts = Map.groupBy(made.events, (event) => (event.kind === 'connection_refused' ? event.reason : event.kind));
  t.same(Object.fromEntries([...counts].map(([reason, { length }]) => [reason, length])), { 'too many connections': 4, 'gave way to a caller with fewer': 3 });
});

t.test('more connections than the limit are closed unanswered, and a silent one is closed by itself', async (t) => {
  const few = await vault(t, { maxConnections: 1 });
  const first = await few.connect('checkout');
  t.equal(await askAs(few, 'getnet'), 'closed');
  t.equal(await ask(first), 'checkout full');
  const impatient = await vault(t, { handshakeTimeoutMs: 20 });
  const silent = connectTcp(impatient.port, '127.0.0.1');
  silent.on('error', () => {});
  await once(silent, 'close');
  t.same(impatient.events, [{ kind: 'connection_refused', reason: 'waited too long' }], 'a client that never begins the handshake does not stay');
});

t.test('a connection that dies gives its place back, whatever its handshake was about', async (t) => {
  const hello = await helloOf(t);
  const made = await vault(t, { maxConnections: 2, handshakesPerSecond: 4, maxHandshakesWaiting: 2 });
  const tcp = async (): Promise<Socket> => {
    const socket = connectTcp(made.port, '127.0.0.1');
    t.teardown(() => socket.destroy());
    socket.on('error', () => {}).resume();
    await once(socket, 'connect');
    return socket;
  };
  const served = async (): Promise<string> => {
    for (;;) {
      const answer = await askAs(made, 'checkout').catch(() => 'closed');
      if (answer !== 'closed') return answer;
    }
  };
  const empty = async (): Promise<void> => {
    for (const socket of made.opened.splice(0)) socket.destroy();
    while ((await openSockets(made.server)) > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  for (const end of ['end', 'destroy', 'resetAndDestroy'] as const) {
    // Nothing said; half a hello; a hello, answered by the server's half of the handshake; a hello that is none.
    for (const said of [Buffer.alloc(0), hello.subarray(0, 20), hello, Buffer.from('GET / HTTP/1.1\r\n\r\n')]) {
      const sockets = [await tcp(), await tcp()];
      for (const socket of sockets) socket.write(said);
      if (said === hello) await Promise.all(sockets.map((socket) => once(socket, 'data')));
      for (const socket of sockets) socket[end]();
      t.equal(await served(), 'checkout full', `${said.length} bytes, then ${end}`);
      await empty();
    }
    const whole = [await made.connect('getnet'), await made.connect('getnet')];
    await Promise.all(whole.map(ask));
    t.equal(made.listener.connections, 2);
    for (const socket of whole) socket[end === 'end' ? 'end' : 'destroy']();
    while (made.listener.connections > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    t.equal(await served(), 'checkout full', `whole, then ${end}`);
    await empty();
  }
  t.equal(made.listener.connections + made.listener.handshakesWaiting, 0);
});

t.test('a handshake that stands still is closed by one that waits, and nothing of it stays', async (t) => {
  const hello = await helloOf(t);
  const made = await vault(t, { handshakesPerSecond: 1 });
  const still = connectTcp(made.port, '127.0.0.1', () => still.write(hello));
  still.on('error', () => {}).resume();
  const gone = once(still, 'close');
  await once(still, 'data');
  t.equal(await askAs(made, 'checkout'), 'checkout full');
  await gone;
  t.same(made.events, [{ kind: 'connection_refused', reason: 'slower than the handshakes that wait' }]);
  while ((await openSockets(made.server)) > 1) await new Promise((resolve) => setTimeout(resolve, 5));
  t.equal(made.listener.connections, 1);
});

t.test('a certificate has so many full handshakes in a minute; its resumed sessions and other certificates are not among them', async (t) => {
  const made = await vault(t, { maxFullHandshakesPerCertificate: 2 });
  const first = await made.connect('checkout');
  t.equal(await ask(first), 'checkout full');
  t.equal(await askAs(made, 'checkout'), 'checkout full');
  t.equal(await askAs(made, 'checkout'), 'closed');
  t.same(made.events, [{ kind: 'connection_refused', reason: 'too many full handshakes with one certificate' }]);
  for (let n = 0; n < 5; n += 1) t.equal(await askAs(made, 'checkout', { session: sessionOf(first) }), 'checkout resumed');
  t.equal(await askAs(made, 'getnet'), 'getnet full');
  t.equal(await ask(first), 'checkout full', 'what is open goes on');
  made.set.pki.revoke('checkout');
  const { newlyRevoked } = await made.revocation.reload();
  t.equal(await askAs(made, 'checkout', { session: sessionOf(first) }), '403 revoked', 'a resumed session opens nothing to a revoked certificate');
  made.listener.closeRevoked(newlyRevoked);
  t.equal(await askAs(made, 'checkout', { session: sessionOf(first) }), 'closed', 'and without its ticket it has no more handshakes');
});
