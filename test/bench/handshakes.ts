/**
 * What handshakes cost, and what a flood of them costs a caller with 64 kept connections: alone, with the limits out of reach (`unlimited`), and
 * with them. Each attacker is a process of its own, on the same cores. `[ROUNDS=4] node test/bench/handshakes.ts [rates …]`; not part of `npm run bench`.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, chmodSync } from 'node:fs';
import { connect as connectTcp, createServer, type AddressInfo, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { connect, type ConnectionOptions } from 'node:tls';
import { startLoadClient } from './load-client.ts';
import { startReal, type Target } from './target.ts';

/** `hello`: a recorded ClientHello, which costs the attacker nothing. `certificate`: a whole handshake with a valid one. Each again as soon as it is over. */
interface Attack {
  readonly kind: 'hello' | 'certificate';
  readonly port: number;
  readonly tlsFiles: { readonly ca: string; readonly cert: string; readonly key: string };
  readonly connections: number;
  readonly localAddress: string;
}

const seconds = 5;
const warmupSeconds = 4;
const self = fileURLToPath(import.meta.url);

function credentials({ ca, cert, key }: Attack['tlsFiles']): ConnectionOptions {
  return { ca: readFileSync(ca), cert: readFileSync(cert), key: readFileSync(key), host: '127.0.0.1', servername: 'localhost' };
}

/** What a client says first. */
async function recordHello(options: ConnectionOptions): Promise<Buffer> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = connect({ ...options, port: (server.address() as AddressInfo).port }).on('error', () => undefined);
  const [socket] = (await once(server, 'connection')) as [Socket];
  const [hello] = (await once(socket, 'data')) as [Buffer];
  client.destroy();
  socket.destroy();
  server.close();
  return hello;
}

async function attack(job: Attack): Promise<void> {
  const options = credentials(job.tlsFiles);
  const hello = await recordHello(options);
  let done = 0;
  const again = (): void => {
    const socket = job.kind === 'hello' ? connectTcp({ host: '127.0.0.1', port: job.port, localAddress: job.localAddress }, () => socket.write(hello)) : connect({ ...options, port: job.port, localAddress: job.localAddress } as ConnectionOptions);
    socket.once(job.kind === 'hello' ? 'data' : 'secureConnect', () => {
      done += 1;
      socket.destroy();
    });
    socket.on('error', () => undefined);
    socket.once('close', () => setImmediate(again));
  };
  for (let n = 0; n < job.connections; n += 1) again();
  setInterval(() => process.send?.(done), 200);
}

/** Full and resumed handshakes one after the other: milliseconds of the server's processor time for each, request and answer none. */
async function costs(target: Target): Promise<void> {
  const cpuMs = (): number => {
    const fields = readFileSync(`/proc/${target.pid}/stat`, 'latin1').split(') ')[1]!.split(' ');
    return (Number(fields[11]) + Number(fields[12])) * 10;
  };
  const options = { ...credentials(target.tlsFiles('checkout')), port: target.port };
  let session: Buffer | undefined;
  for (const kind of ['full', 'resumed', 'full', 'resumed'] as const) {
    const before = cpuMs();
    const count = 400;
    let resumed = 0;
    for (let n = 0; n < count; n += 1) {
      const socket = connect({ ...options, ...(kind === 'resumed' && session !== undefined ? { session } : {}) });
      socket.on('session', (given) => (session = given)).on('error', () => undefined);
      socket.once('secureConnect', () => {
        if (socket.isSessionReused()) resumed += 1;
        socket.write('GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
      });
      await once(socket.resume(), 'close');
    }
    console.log(`${kind}: ${((cpuMs() - before) / count).toFixed(2)} ms of the server each, a request included; ${resumed} of ${count} were resumed`);
  }
}

/** A service that opens 500 connections at once: seconds until the last is served. */
async function startOfService(target: Target): Promise<string> {
  const options = { ...credentials(target.tlsFiles('checkout')), port: target.port };
  const began = performance.now();
  let lost = 0;
  const sockets = Array.from({ length: 500 }, () => connect(options));
  await Promise.all(
    sockets.map(
      (socket) =>
        new Promise<void>((done) => {
          socket.on('error', () => undefined).once('secureConnect', () => socket.write('GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n'));
          socket.once('data', () => done()).once('close', () => ((lost += 1), done()));
        }),
    ),
  );
  const took = (performance.now() - began) / 1000;
  for (const socket of sockets) socket.removeAllListeners('close').destroy();
  const metrics = await (await fetch(`http://127.0.0.1:${target.telemetryPort}/metrics`)).text();
  // Its end is to be noticed before it starts again.
  await sleep(1000);
  return `${took.toFixed(1)} s, ${lost} lost ${metrics.split('\n').filter((line) => line.startsWith('cofre_connections_refused_total{')).join(' ')}`;
}

interface Row {
  readonly perSecond: number;
  readonly p50: number;
  readonly p99: number;
  /** Of the attacker, a second. */
  readonly handshakes: number;
  /** Milliseconds until a new connection is served. */
  readonly newP50: number;
  readonly newMax: number;
}

function text({ perSecond, p50, p99, handshakes, newP50, newMax }: Row): string {
  return `${perSecond.toFixed(0).padStart(6)}/s, p50 ${p50.toFixed(1)}, p99 ${p99.toFixed(1)} ms; attacker ${handshakes.toFixed(0)} handshakes/s; a new connection p50 ${newP50.toFixed(0)}, max ${newMax.toFixed(0)} ms`;
}

function middle(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

async function main(rates: readonly number[], rounds: number): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'cofre-handshakes-'));
  chmodSync(folder, 0o711);
  const settings = [['unlimited', 50_000] as const, ...rates.map((rate) => [`${rate}/s`, rate] as const)];
  const targets: Target[] = [];
  const client = startLoadClient();
  try {
    for (const [name, rate] of settings)
      targets.push(await startReal(join(folder, String(rate)), { config: { listeners: { handshakes_per_second: rate, ...(name === 'unlimited' ? { handshake_burst: 50_000, max_handshakes_waiting: 100_000, max_full_handshakes_per_certificate: 1_000_000 } : {}) } } }));
    await costs(targets[0]!);
    for (const [index, [name]] of settings.entries()) console.log(`500 connections at once, ${name}: ${await startOfService(targets[index]!)}; at once again: ${await startOfService(targets[index]!)}`);
    let firstCard = 0;
    const kinds = ['none', 'hello', 'certificate'] as const;
    const rows = new Map<string, Row[]>();
    for (const kind of Array.from({ length: rounds }, () => kinds).flat()) {
      for (const [index, [name]] of settings.entries()) {
        const target = targets[index]!;
        let attacker: ChildProcess | null = null;
        let handshakes = 0;
        const late: number[] = [];
        let going = true;
        const start = async (): Promise<void> => {
          if (kind === 'none') return;
          attacker = fork(self, [JSON.stringify({ kind, port: target.port, tlsFiles: target.tlsFiles('getnet'), connections: 256, localAddress: '127.0.0.2' } satisfies Attack)]);
          attacker.on('message', (count: number) => (handshakes = count));
          await once(attacker, 'message');
        };
        // New connections of an honest caller, from another address: how long until they are served.
        const newcomers = async (): Promise<void> => {
          const options = credentials(target.tlsFiles('checkout'));
          while (going) {
            const began = performance.now();
            const socket = connect({ ...options, port: target.port }).on('error', () => undefined);
            socket.once('secureConnect', () => socket.write('GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'));
            socket.once('data', () => late.push(performance.now() - began));
            await once(socket.resume(), 'close').catch(() => undefined);
            await sleep(100);
          }
        };
        let measured = 0;
        await start();
        const others = newcomers();
        const result = await client.run({ scenario: 'tokenize', port: target.port, tlsFiles: target.tlsFiles('checkout'), connections: 64, seconds, warmupSeconds, seed: 7, firstCard }, (begins) => (measured = handshakes - (begins ? 0 : measured)));
        going = false;
        await others;
        (attacker as ChildProcess | null)?.kill('SIGKILL');
        firstCard += result.cards;
        const row: Row = { perSecond: result.perSecond, p50: result.latencyMs.p50, p99: result.latencyMs.p99, handshakes: measured / seconds, newP50: middle(late), newMax: Math.max(...late) };
        const key = `${kind.padEnd(11)} ${name.padEnd(9)}`;
        rows.set(key, [...(rows.get(key) ?? []), row]);
        console.log(key, text(row), JSON.stringify(result.failures));
        await sleep(1500);
      }
    }
    console.log('medians');
    for (const [key, list] of rows) console.log(key, text(Object.fromEntries(Object.keys(list[0]!).map((name) => [name, middle(list.map((row) => row[name as keyof Row]))])) as unknown as Row));
  } finally {
    client.close();
    for (const target of targets) await target.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

const [first] = process.argv.slice(2);
if (first?.startsWith('{') === true) await attack(JSON.parse(first) as Attack);
else await main(process.argv.slice(2).map(Number), Number(process.env['ROUNDS'] ?? 4));
