/** Whether the Node that we run on forgets a connection once it is closed: a release that kept each client's certificate took 40 to 70 MiB an hour (docs/decisions/0001). */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect } from 'node:tls';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { isFit } from '../../docker/find-node.js';
import { createDevelopmentPki } from '../../platform-adapters/pki/development.ts';

const perRound = 1500;
const rounds = 4;
/** The leak was 5.1 KB a connection, in every round. Without one a round may take as much until the heap has found its size, but not each of them. */
const bearableBytes = 2500;

await t.test('a TLS server that asks for certificates keeps nothing of closed connections', { timeout: 120_000 }, async (t) => {
  const folder = join(t.testdir(), 'pki');
  createDevelopmentPki(folder, { trustDomain: 'cofre.dev', now: () => new Date() });
  const file = (name: string): string => join(folder, name);
  const server = fork(fileURLToPath(new URL('tls-server.ts', import.meta.url)), [file('ca.pem'), file('server.pem'), file('server.key')], { execArgv: ['--expose-gc', '--max-semi-space-size=1'], env: { ...process.env, MALLOC_ARENA_MAX: '1' } });
  t.teardown(() => server.disconnect());
  const [port] = (await once(server, 'message')) as [number];
  const [ca, cert, key] = [readFileSync(file('ca.pem')), readFileSync(file('checkout.pem')), readFileSync(file('checkout.key'))];

  const one = async (): Promise<void> => {
    const socket = connect({ port, host: '127.0.0.1', servername: 'localhost', ca, cert, key, minVersion: 'TLSv1.3' });
    socket.write('x');
    socket.resume();
    await once(socket, 'close');
  };
  const connections = async (count: number): Promise<number> => {
    for (let done = 0; done < count; done += 4) await Promise.all([one(), one(), one(), one()]);
    server.send('collect');
    return ((await once(server, 'message')) as [number])[0];
  };
  const resident: number[] = [];
  for (let round = 0; round <= rounds; round += 1) resident.push(await connections(perRound));
  const growth = resident.slice(1).map((bytes, round) => (bytes - resident[round]!) / perRound);
  t.ok(Math.min(...growth) < bearableBytes, `${growth.map((bytes) => bytes.toFixed(0)).join(', ')} bytes a connection`);
});

t.test('releases of Node that the vault runs on', (t) => {
  t.same(['24.12.0', '24.20.0', '24.22.0', '26.12.1', '25.0.0'].filter((version) => !isFit(version)), []);
  t.same(['20.20.2', '22.1.0', '24.11.1', '24.21.0'].filter((version) => isFit(version)), []);
  t.end();
});
