/** Over a real HTTP server: what counts as under way, and until when. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { connect, type AddressInfo, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { Admission, type Refusal } from '../../vault/admission.ts';
import { until } from '../support/appliance.ts';

const maxPerCaller = 3;
const get = (name: string): string => `GET /${encodeURIComponent(name)} HTTP/1.1\r\nHost: x\r\n\r\n`;

interface Server {
  readonly admission: Admission;
  /** Why requests were turned away or connections closed, in order. */
  readonly refusals: Refusal[];
  /** Requests that were let in, by their path; nobody answers them but the test. */
  readonly admitted: Map<string, { request: IncomingMessage; response: ServerResponse }>;
  connect(): Promise<Socket>;
  /** Resolves once a request of that path was let in. */
  until(name: string): Promise<{ request: IncomingMessage; response: ServerResponse }>;
}

const bodies = { maxBodyBytesPerCaller: 100, maxBodyBytes: 300 };

/** Each connection is its own caller's where `callerOf` says so. */
async function serve(t: Test, places = maxPerCaller, callerOf: (socket: Socket) => string = () => 'caller'): Promise<Server> {
  const refusals: Refusal[] = [];
  const admission = new Admission({ maxRequestsPerCaller: places, ...bodies }, callerOf, (reason) => refusals.push(reason));
  const admitted = new Map<string, { request: IncomingMessage; response: ServerResponse }>();
  let told = (): void => undefined;
  const server = createServer((request, response) => {
    if (!admission.admit(request, response)) return;
    admitted.set(decodeURIComponent(request.url!.slice(1)), { request, response });
    told();
  });
  server.on('connection', (socket) => admission.connected(socket));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const sockets: Socket[] = [];
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return {
    admission,
    refusals,
    admitted,
    async connect() {
      const socket = connect((server.address() as AddressInfo).port, '127.0.0.1').on('error', () => undefined);
      sockets.push(socket);
      await once(socket, 'connect');
      return socket;
    },
    async until(name) {
      while (!admitted.has(name)) await new Promise<void>((done) => (told = done));
      return admitted.get(name)!;
    },
  };
}

/** The status of the next answer on a connection. */
async function status(socket: Socket): Promise<string> {
  const [chunk] = (await once(socket, 'data')) as [Buffer];
  return /^HTTP\/1\.1 (\d{3})/u.exec(chunk.toString('latin1'))?.[1] ?? 'none';
}

/** Asks on a connection of its own whether there is a place, and gives it back. */
async function hasPlace(server: Server, name: string): Promise<boolean> {
  const socket = await server.connect();
  socket.write(get(name));
  const refused = await Promise.race([status(socket).then((code) => code === '503'), server.until(name).then(() => false)]);
  if (!refused) {
    const { request, response } = server.admitted.get(name)!;
    server.admission.dealtWith(request);
    response.end();
    await once(response, 'close');
  }
  socket.destroy();
  return !refused;
}

t.test('a place is taken from the head of a request until it is dealt with and its answer has left', async (t) => {
  const server = await serve(t);
  const held = [];
  for (const name of ['a', 'b', 'c']) {
    (await server.connect()).write(get(name));
    held.push(await server.until(name));
  }
  t.notOk(await hasPlace(server, 'no place'));
  const [first] = held;
  server.admission.dealtWith(first!.request);
  t.notOk(await hasPlace(server, 'made, not sent'), 'an answer that has not left holds its place');
  first!.response.end();
  await once(first!.response, 'close');
  t.ok(await hasPlace(server, 'sent'));
  server.admission.dealtWith(first!.request);
  server.admission.dealtWith(first!.request);
  (await server.connect()).write(get('d'));
  await server.until('d');
  t.notOk(await hasPlace(server, 'still three'), 'to be told twice gives nothing twice');
});

t.test('a client that went away holds its place until its request is dealt with', async (t) => {
  const server = await serve(t);
  const sockets = [];
  for (const name of ['a', 'b', 'c']) {
    const socket = await server.connect();
    socket.write(get(name));
    await server.until(name);
    sockets.push(socket);
  }
  const { request, response } = server.admitted.get('a')!;
  sockets[0]!.destroy();
  await once(response, 'close');
  t.notOk(await hasPlace(server, 'gone, at work'));
  server.admission.dealtWith(request);
  t.ok(await hasPlace(server, 'dealt with'));
});

t.test('answers that wait behind another are gone with their connection', async (t) => {
  const server = await serve(t);
  const socket = await server.connect();
  socket.write(get('a') + get('b') + get('c'));
  await server.until('c');
  for (const { request } of server.admitted.values()) server.admission.dealtWith(request);
  t.notOk(await hasPlace(server, 'all taken'));
  socket.destroy();
  await once(server.admitted.get('a')!.response, 'close');
  for (let n = 0; n < maxPerCaller; n += 1) {
    (await server.connect()).write(get(`again ${n}`));
    await server.until(`again ${n}`).catch(() => undefined);
  }
  t.equal([...server.admitted.keys()].filter((name) => name.startsWith('again')).length, maxPerCaller, 'all three places');
});

t.test('who waits for each answer may go on after a refusal, who pipelines is cut off', async (t) => {
  const server = await serve(t);
  for (const name of ['a', 'b']) {
    (await server.connect()).write(get(name));
    await server.until(name);
  }
  const pipelining = await server.connect();
  pipelining.write(get('c') + get('refused') + get('unheard'));
  const { request, response } = await server.until('c');
  const polite = await server.connect();
  polite.write(get('refused too'));
  t.equal(await status(polite), '503');
  server.admission.dealtWith(request);
  const received: Buffer[] = [];
  pipelining.on('data', (chunk: Buffer) => received.push(chunk));
  const closed = once(pipelining, 'close');
  response.end('answer of c');
  await closed;
  const text = Buffer.concat(received).toString('latin1');
  t.match(text, /^HTTP\/1\.1 200 [\s\S]*HTTP\/1\.1 503 [\s\S]*connection: close[\s\S]*"code":"overloaded"/iu);
  t.equal(text.match(/HTTP\/1\.1/gu)?.length, 2, 'what came behind is not answered');
  t.notOk(server.admitted.has('unheard'));
  t.same([...new Set(server.refusals)], ['too many requests of one caller']);
  polite.write(get('polite'));
  await server.until('polite');
  t.pass('the other goes on');
});

t.test('a connection has 64 requests under way at most: one more closes it, and its places come back', async (t) => {
  const server = await serve(t, 100);
  const names = Array.from({ length: 64 }, (_, n) => `${n}`);
  const socket = await server.connect();
  socket.write(names.map(get).join(''));
  await server.until('63');
  t.equal(server.admitted.size, 64);
  const { response: first } = server.admitted.get('0')!;
  const closed = once(first, 'close');
  socket.write(get('one too many') + get('another'));
  await closed;
  t.same(server.refusals, ['too many requests on one connection'], 'a connection is counted once');
  t.same([...server.admitted.keys()], names);
  for (const { request } of server.admitted.values()) server.admission.dealtWith(request);
  const others = await Promise.all([server.connect(), server.connect()]);
  for (const [n, other] of others.entries()) other.write(names.slice(0, 50).map((name) => get(`${n} ${name}`)).join(''));
  for (const name of ['0 49', '1 49']) await server.until(name);
  t.notOk(await hasPlace(server, 'the hundred and first'), 'a hundred places, no fewer and no more');
});

t.test('at the end connections that the vault owes nothing are closed, and those with a request that has not come whole if asked', async (t) => {
  const server = await serve(t);
  const [idle, half, asking, waiting] = await Promise.all([server.connect(), server.connect(), server.connect(), server.connect()]);
  half.write('GET /half HTTP');
  asking.write('POST /asking HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc');
  waiting.write(get('waiting'));
  await server.until('asking');
  await server.until('waiting');
  await until(() => server.admitted.get('waiting')!.request.complete, 'the end of a request');
  t.same(['asking', 'waiting'].map((name) => server.admission.isOwedNothing(server.admitted.get(name)!.request.socket)), [true, false]);
  const closed = [once(idle.resume(), 'close'), once(half.resume(), 'close')];
  server.admission.closeWaiting(false);
  await Promise.all(closed);
  t.notOk(asking.destroyed || waiting.destroyed);
  const third = once(asking.resume(), 'close');
  server.admission.closeWaiting(true);
  await third;
  const { request, response } = server.admitted.get('waiting')!;
  server.admission.dealtWith(request);
  const answered = status(waiting);
  response.end();
  t.equal(await answered, '200', 'who is owed an answer gets it');
});

t.test('a connection whose client does not read its answer is closed in time, and one that waits for its answer is not', async (t) => {
  const server = await serve(t);
  const [deaf, patient, idle] = [await server.connect(), await server.connect(), await server.connect()];
  deaf.pause();
  deaf.write(get('deaf'));
  patient.write(get('first') + get('second'));
  const { request, response } = await server.until('deaf');
  response.end(Buffer.alloc(32 * 1024 * 1024));
  server.admission.dealtWith(request);
  // The second answer is made and waits for the first one, which is not.
  const { request: second, response: secondResponse } = await server.until('second');
  secondResponse.end();
  server.admission.dealtWith(second);
  const ended = once(response, 'close');
  server.admission.closeUnread(1000, 5000);
  server.admission.closeUnread(1000, 5999);
  t.notOk(request.socket.destroyed);
  server.admission.closeUnread(1000, 6000);
  t.ok(request.socket.destroyed);
  await ended;
  t.notOk(second.socket.destroyed);
  server.admission.closeUnread(1000, 60_000);
  t.notOk(second.socket.destroyed, 'nobody kept it waiting but the vault');
  t.notOk(idle.destroyed);
  const { request: first, response: firstResponse } = server.admitted.get('first')!;
  firstResponse.end();
  server.admission.dealtWith(first);
  t.equal(await status(patient), '200');
  t.ok(await hasPlace(server, 'after'), 'the place is free again');
  t.same(server.refusals, ['an answer was not read']);
});

t.test('neither does a client keep its connection by not reading that it was turned away', async (t) => {
  const server = await serve(t, 1);
  const deaf = await server.connect();
  deaf.write(get('before'));
  const { request, response } = await server.until('before');
  response.end();
  server.admission.dealtWith(request);
  await status(deaf);
  deaf.pause();
  // What it has not read of earlier answers.
  request.socket.write(Buffer.alloc(32 * 1024 * 1024));
  (await server.connect()).write(get('elsewhere'));
  await server.until('elsewhere');
  deaf.write(get('one too many'));
  await until(() => server.refusals.length === 1, 'the refusal');
  server.admission.closeUnread(1000, 5000);
  t.notOk(request.socket.destroyed);
  server.admission.closeUnread(1000, 6000);
  t.ok(request.socket.destroyed);
  t.same(server.refusals, ['too many requests of one caller', 'an answer was not read']);
  await once(request.socket, 'close');
  const held = server.admitted.get('elsewhere')!;
  t.notOk(held.request.socket.destroyed);
  t.notOk(await hasPlace(server, 'still one'), 'and no place is free for it');
  server.admission.dealtWith(held.request);
  held.response.end();
  await once(held.response, 'close');
  t.ok(await hasPlace(server, 'after'));
});

t.test('bodies of one caller take so many bytes together, until their requests are gone, however they go', async (t) => {
  let callers = 0;
  const nameOf = new WeakMap<Socket, string>();
  const server = await serve(t, 100, (socket) => {
    if (!nameOf.has(socket)) nameOf.set(socket, callers++ < 4 ? 'one' : 'another');
    return nameOf.get(socket)!;
  });
  const { admission } = server;
  const sockets: Socket[] = [];
  const begun = async (name: string): Promise<{ request: IncomingMessage; response: ServerResponse }> => {
    const socket = await server.connect();
    sockets.push(socket);
    socket.write(get(name));
    return await server.until(name);
  };
  const [answered, aborted, refused, waiting] = [await begun('answered'), await begun('aborted'), await begun('refused'), await begun('waiting')];
  t.ok(admission.holdBody(answered.request, 60));
  t.ok(admission.holdBody(aborted.request, 40));
  t.notOk(admission.holdBody(refused.request, 1), 'the hundred are taken');
  t.notOk(admission.holdBody(aborted.request, 41), 'nor does one of them get more');
  const other = await begun('other');
  t.ok(admission.holdBody(other.request, 50), 'another has its own');

  t.ok(admission.holdBody(answered.request, 20), 'less is always taken');
  t.ok(admission.holdBody(refused.request, 40));
  t.ok(admission.holdBody(refused.request, 0), 'a refused one gives all of it back');
  t.ok(admission.holdBody(waiting.request, 40));
  t.notOk(admission.holdBody(refused.request, 1));

  admission.dealtWith(answered.request);
  t.notOk(admission.holdBody(refused.request, 20), 'its answer has not left');
  answered.response.end();
  await once(answered.response, 'close');
  t.ok(admission.holdBody(refused.request, 20));
  t.notOk(admission.holdBody(answered.request, 0), 'what is gone takes nothing more');

  sockets[1]!.destroy();
  await once(aborted.response, 'close');
  t.notOk(admission.holdBody(refused.request, 60), 'the client is gone, the work goes on');
  admission.dealtWith(aborted.request);
  t.ok(admission.holdBody(refused.request, 60));
  for (const { request, response } of [refused, waiting, other]) {
    admission.dealtWith(request);
    const closed = once(response, 'close');
    response.end();
    await closed;
  }
  t.ok(admission.holdBody((await begun('last')).request, 100), 'all of it is there again');
});

t.test('callers whose bodies take all they can leave room for another, half as much as each of them has', async (t) => {
  let callers = 0;
  const nameOf = new WeakMap<Socket, string>();
  const server = await serve(t, 100, (socket) => {
    if (!nameOf.has(socket)) nameOf.set(socket, `caller ${callers++}`);
    return nameOf.get(socket)!;
  });
  const { admission } = server;
  const requests: IncomingMessage[] = [];
  const takes = (n: number, bytes: number): boolean => admission.holdBody(requests[n]!, bytes);
  for (let n = 0; n < 6; n += 1) {
    (await server.connect()).write(get(`${n}`));
    requests.push((await server.until(`${n}`)).request);
  }
  t.ok(takes(0, 100), 'all that one may have');
  t.ok(takes(1, 100), 'and a second');
  t.notOk(takes(2, 51), 'of what is left a third takes half');
  t.ok(takes(2, 50));
  t.ok(takes(3, 25));
  t.notOk(takes(4, 13));
  t.ok(takes(4, 12));
  t.ok(takes(5, 6), 'and there is room for one more');
  t.same([...new Set(server.refusals)], ['too many bytes of bodies']);
});

t.test('large answers count among a caller\'s bodies until they have left; where it has nothing else, any may be given', async (t) => {
  const server = await serve(t, 100);
  const { admission } = server;
  const begun = async (name: string): Promise<{ request: IncomingMessage; response: ServerResponse }> => {
    (await server.connect()).write(get(name));
    return await server.until(name);
  };
  const [first, second, body] = [await begun('first'), await begun('second'), await begun('body')];
  t.ok(admission.holdAnswer(first.request, 250), 'more than a caller may have, and alone');
  t.notOk(admission.holdAnswer(second.request, 1), 'beside it nothing');
  t.notOk(admission.holdBody(body.request, 1), 'nor a body');
  admission.dealtWith(first.request);
  first.response.end();
  await once(first.response, 'close');
  t.ok(admission.holdBody(body.request, 40));
  t.notOk(admission.holdAnswer(second.request, 61));
  t.ok(admission.holdAnswer(second.request, 60), 'no more together than bodies alone');
  t.ok(admission.holdBody(body.request, 0));
  t.notOk(admission.holdBody(body.request, 41), 'and it counts on');
  t.notOk(admission.holdAnswer(first.request, 1), 'what is gone takes nothing more');
  t.same([...new Set(server.refusals)], ['too many bytes of bodies']);
});
