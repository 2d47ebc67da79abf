/** Real sockets over the loopback, whose addresses 127.0.0.x stand for so many machines; the clock is the test's. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { Handshakes, networkOf, type HandshakeLimits, type HandshakeRefusal } from '../../vault/handshakes.ts';
import { until } from '../support/appliance.ts';

interface Door {
  readonly handshakes: Handshakes;
  /** Sockets of the server whose handshake has begun, in their order. */
  readonly begun: Socket[];
  readonly refused: HandshakeRefusal[];
  now: number;
  /** Resolves once the server has it. */
  client(host?: string): Promise<Socket>;
  /** One that has said its hello, once that is heard. */
  caller(host?: string): Promise<Socket>;
}

const ample: HandshakeLimits = { perSecond: 1000, burst: 1000, maxWaiting: 100, timeoutMs: 60_000 };
/** So few that, with the clock standing still, one begins and no more. */
const one: Partial<HandshakeLimits> = { perSecond: 20, burst: 1 };

async function door(t: Test, limits: Partial<HandshakeLimits> = {}): Promise<Door> {
  const begun: Socket[] = [];
  const refused: HandshakeRefusal[] = [];
  const made = { begun, refused, now: 0 } as unknown as Door & { handshakes: Handshakes };
  const handshakes = new Handshakes({ ...ample, ...limits }, (socket) => begun.push(socket), (reason) => refused.push(reason), () => made.now);
  const accepted: Socket[] = [];
  const server = createServer((socket) => {
    accepted.push(socket);
    handshakes.connected(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    handshakes.close();
    for (const socket of accepted) socket.destroy();
    server.close();
  });
  const client = async (host = '127.0.0.1'): Promise<Socket> => {
    const before = accepted.length;
    const socket = connect({ host: '127.0.0.1', localAddress: host, port: (server.address() as AddressInfo).port });
    socket.on('error', () => undefined).resume();
    t.teardown(() => socket.destroy());
    await once(socket, 'connect');
    await until(() => accepted.length > before, 'the connection');
    return socket;
  };
  const caller = async (host?: string): Promise<Socket> => {
    const socket = await client(host);
    const mine = accepted.at(-1)!;
    socket.write('hello');
    await until(() => mine.readableLength > 0 || mine.destroyed, 'the hello');
    return socket;
  };
  return Object.assign(made, { handshakes, client, caller });
}

/** The last byte of each one's address. */
const hosts = (sockets: readonly Socket[]): number[] => sockets.map(({ remoteAddress }) => Number(remoteAddress?.split('.')[3]));
const closed = (socket: Socket): Promise<unknown> => (socket.destroyed ? Promise.resolve() : once(socket, 'close'));
/** Lets the clock go on, as long as it takes for what waits to notice. */
async function pass(made: Door, ms: number, condition: () => boolean): Promise<void> {
  made.now += ms;
  await until(condition, 'what time brings');
}

await t.test('a handshake begins once its client has said something, and with all that it said', async (t) => {
  const made = await door(t);
  const socket = await made.client();
  t.equal(made.handshakes.waiting, 1);
  socket.write('hello');
  await until(() => made.begun.length === 1, 'the handshake');
  t.equal(String(made.begun[0]!.read()), 'hello');
  t.equal(made.handshakes.waiting, 0);
  t.equal(made.handshakes.underWay, 1);
  t.equal(made.begun[0]!.listenerCount('readable'), 0, 'nobody of ours reads along');
  made.handshakes.done(made.begun[0]!);
  t.equal(made.handshakes.underWay, 0);
  t.same(made.refused, []);
});

await t.test('as many begin as may, the others wait and begin as time passes, addresses in turn', async (t) => {
  const made = await door(t, one);
  for (let n = 0; n < 4; n += 1) await made.caller('127.0.0.2');
  for (let n = 0; n < 2; n += 1) await made.caller('127.0.0.3');
  await made.caller('127.0.0.4');
  t.same(hosts(made.begun), [2]);
  t.equal(made.handshakes.waiting, 6);
  for (let n = 2; n <= 7; n += 1) {
    await pass(made, 50, () => made.begun.length === n);
    made.handshakes.done(made.begun.at(-1)!);
  }
  t.same(hosts(made.begun), [2, 2, 3, 4, 2, 3, 2]);
  t.same(made.refused, []);
});

await t.test('a burst begins at once, one in each turn of the event loop', async (t) => {
  const made = await door(t, { perSecond: 100, burst: 5 });
  const clients = await Promise.all(Array.from({ length: 8 }, () => made.client()));
  let turns = 0;
  let counting = setImmediate(function count(): void {
    turns += 1;
    counting = setImmediate(count);
  });
  for (const client of clients) client.write('hello');
  await until(() => made.begun.length === 5, 'the burst');
  clearImmediate(counting);
  t.ok(turns >= 4, `${turns} turns`);
  await until(() => made.handshakes.waiting === 3, 'the others');
  await pass(made, 20, () => made.begun.length === 7);
  await pass(made, 1000, () => made.begun.length === 8);
});

await t.test('when too many wait, the address with most of them makes room: first what is silent, the oldest first', async (t) => {
  const made = await door(t, { ...one, maxWaiting: 3 });
  await made.caller('127.0.0.9');
  const silent = await made.client('127.0.0.2');
  const ready = await made.caller('127.0.0.2');
  const younger = await made.client('127.0.0.2');
  const own = await made.client('127.0.0.2');
  await closed(silent);
  const other = await made.client('127.0.0.3');
  await closed(younger);
  t.equal(made.handshakes.waiting, 3);
  await made.client('127.0.0.4');
  await closed(own);
  t.notOk(ready.destroyed, 'the others have one each, and so has it');
  const again = await made.client('127.0.0.4');
  t.equal(made.handshakes.waiting, 3);
  t.equal(made.refused.length, 4);
  t.same(new Set(made.refused), new Set(['too many connections wait']));
  t.notOk(other.destroyed && again.destroyed);
});

await t.test('who fills the room is refused its next, and loses one to another', async (t) => {
  const made = await door(t, { ...one, maxWaiting: 3 });
  await made.caller('127.0.0.9');
  const flood = [await made.caller('127.0.0.2'), await made.caller('127.0.0.2'), await made.caller('127.0.0.2')];
  await closed(await made.client('127.0.0.2'));
  t.same(flood.map(({ destroyed }) => destroyed), [false, false, false]);
  const honest = await made.caller('127.0.0.3');
  await closed(flood[0]!);
  await pass(made, 50, () => made.begun.length === 2);
  await pass(made, 50, () => made.begun.length === 3);
  t.same(hosts(made.begun), [9, 2, 3], 'and has the next turn but one');
  t.notOk(honest.destroyed);
});

await t.test('a handshake that stands still makes room for one that waits, but has its time', async (t) => {
  const made = await door(t, { perSecond: 2, burst: 4 });
  const first = await made.caller();
  await made.caller();
  await until(() => made.begun.length === 2, 'both');
  const third = await made.caller();
  made.now = 4999;
  made.handshakes.done(made.begun[1]!);
  await until(() => made.begun.length === 3, 'the place of one that is done');
  t.notOk(first.destroyed);
  await made.caller();
  await pass(made, 0, () => made.handshakes.waiting === 1);
  t.notOk(first.destroyed || third.destroyed);
  await pass(made, 1, () => made.begun.length === 4);
  await closed(first);
  t.notOk(third.destroyed);
  t.equal(made.handshakes.underWay, 2);
  t.same(made.refused, ['slower than the handshakes that wait']);
});

await t.test('where one address has all that are under way standing still, another begins all the same', async (t) => {
  const made = await door(t, { perSecond: 2, burst: 10 });
  const still = [await made.caller('127.0.0.2'), await made.caller('127.0.0.2'), await made.caller('127.0.0.2')];
  await until(() => made.begun.length === 2, 'as many as may be under way');
  await made.caller('127.0.0.3');
  await until(() => made.begun.length === 3, 'the other');
  await made.caller('127.0.0.3');
  await made.caller('127.0.0.4');
  await until(() => made.begun.length === 4, 'one more');
  await made.caller('127.0.0.5');
  await until(() => made.handshakes.waiting === 3, 'twice as many are the most');
  t.same(hosts(made.begun), [2, 2, 3, 4]);
  made.handshakes.done(made.begun[2]!);
  await until(() => made.begun.length === 5, 'the next');
  made.handshakes.done(made.begun[4]!);
  await until(() => made.begun.length === 6, 'and the next');
  t.same(hosts(made.begun), [2, 2, 3, 4, 3, 5]);
  t.notOk(still.some(({ destroyed }) => destroyed));
  await pass(made, 5000, () => made.begun.length === 7);
  await closed(still[0]!);
  t.same(made.refused, ['slower than the handshakes that wait']);
});

await t.test('what dies gives back what it held, whatever it was about', async (t) => {
  const made = await door(t, { perSecond: 40, burst: 2 });
  const silent = await made.client();
  silent.destroy();
  await until(() => made.handshakes.waiting === 0, 'the end of a silent one');
  const finished = await made.client();
  finished.end();
  await until(() => made.handshakes.waiting === 0, 'the end of one that closed its side');
  const inHandshake = await made.caller();
  const open = await made.caller();
  await until(() => made.begun.length === 2, 'both');
  made.handshakes.done(made.begun[1]!);
  inHandshake.resetAndDestroy();
  open.resetAndDestroy();
  for (const socket of made.begun) socket.resume();
  await until(() => made.handshakes.underWay === 0, 'the end of the handshake');
  t.same(made.refused, ['gone while it waited', 'gone while it waited', 'the handshake failed']);
  const late = await made.caller();
  t.equal(made.handshakes.waiting, 1, 'places do not bring back time');
  late.resetAndDestroy();
  await until(() => made.handshakes.waiting === 0, 'the end of one that waited');
  await made.caller();
  await pass(made, 100, () => made.begun.length === 3);
});

await t.test('who waits too long, or talks before it is asked, is closed', async (t) => {
  const made = await door(t, { timeoutMs: 20 });
  await closed(await made.client());
  t.same(made.refused, ['waited too long']);
  const patient = await door(t, one);
  await patient.caller();
  const talker = await patient.client();
  talker.write(Buffer.alloc(20_000));
  await closed(talker);
  t.same(patient.refused, ['said too much before its handshake']);
  t.equal(patient.handshakes.waiting, 0);
});

await t.test('a vault that goes closes what has no handshake, and nothing else', async (t) => {
  const made = await door(t, { perSecond: 20, burst: 2 });
  const open = await made.caller();
  await until(() => made.begun.length === 1, 'the handshake');
  made.handshakes.done(made.begun[0]!);
  const others = [await made.caller(), await made.caller(), await made.client()];
  await until(() => made.handshakes.underWay === 1, 'one of them');
  t.equal(made.handshakes.waiting, 2);
  made.handshakes.close();
  await Promise.all(others.map(closed));
  t.equal(made.handshakes.waiting + made.handshakes.underWay, 0);
  await closed(await made.client());
  t.notOk(open.destroyed);
  t.same(made.refused, []);
});

void t.test('one machine is an address of IPv4, or 64 bits of IPv6', (t) => {
  t.equal(networkOf('192.0.2.1'), '192.0.2.1');
  t.equal(networkOf('::ffff:192.0.2.1'), '::ffff:192.0.2.1');
  t.equal(networkOf(''), '');
  for (const address of ['2001:db8:0:7::1', '2001:db8:0:7:1:2:3:4', '2001:db8:0:7:1::', '2001:db8:0:7::%eth0']) t.equal(networkOf(address), '2001:db8:0:7', address);
  t.equal(networkOf('2001:db8::7'), '2001:db8:0:0');
  t.equal(networkOf('::1'), '0:0:0:0');
  t.equal(networkOf('fe80::1%eth0'), 'fe80:0:0:0');
  t.end();
});
