import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { createServer, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const ROOT = resolve(import.meta.dirname, '../..');
const SET_UP_TIMEOUT_MS = 15 * 60_000;
const STOP_TIMEOUT_MS = 60_000;

/**
 * Clones the repository into an empty folder and runs `npm start` there as somebody without rights: as `nobody` if we are root, else as ourselves. Returns a line for each thing that held: it got ready, its port answers, SIGTERM ends all of it,
 * it starts again, and after a `kill -9` of every process once more.
 *
 * @throws at the first thing that did not hold, with the end of the output.
 */
export async function startInCleanClone(): Promise<string[]> {
  const held: string[] = [];
  const folder = mkdtempSync(join(tmpdir(), 'cofre-clean-'));
  chmodSync(folder, 0o755);
  const root = process.getuid!() === 0;
  const user = root ? { uid: 65_534, gid: 65_534 } : {};
  const clone = join(folder, 'clone');
  try {
    // What is committed, and nothing else. No ownership question: the clone is made by whoever owns the origin.
    execFileSync('git', ['clone', '--quiet', '--no-hardlinks', ROOT, clone], { stdio: ['ignore', 'ignore', 'inherit'] });
    if (root) execFileSync('chown', ['-R', '65534:65534', folder]);

    const ports = { COFRE_API_PORT: await freePort(), COFRE_ADMIN_PORT: await freePort(), COFRE_TELEMETRY_PORT: await freePort() };
    // Only what a fresh login has: nothing of the npm that runs us.
    const env: NodeJS.ProcessEnv = { PATH: plainPath(), HOME: folder, LANG: 'C.UTF-8', ...Object.fromEntries(Object.entries(ports).map(([name, port]) => [name, String(port)])) };
    for (const name of ['NODE_EXTRA_CA_CERTS', 'HTTPS_PROXY', 'HTTP_PROXY', 'NO_PROXY', 'https_proxy', 'http_proxy', 'no_proxy', 'npm_config_registry', 'npm_config_cafile'])
      if (process.env[name] !== undefined) env[name] = process.env[name];
    const appliance = (): Promise<{ npm: ChildProcess; seconds: string }> => start(clone, { env, ...user }, ports.COFRE_API_PORT);

    const first = await appliance();
    held.push(`npm start in a clean clone prints the ready line (${first.seconds} s)`);
    if (!(await answers(ports.COFRE_API_PORT))) throw new Error('the API port does not answer after the ready line');
    held.push('the API port answers');
    await stop(first.npm, 'SIGTERM');
    await nothingLeft(clone);
    held.push('SIGTERM ends everything that it started');

    const second = await appliance();
    held.push(`it starts again (${second.seconds} s)`);
    for (const pid of processesOf(clone)) process.kill(pid, 'SIGKILL');
    await sleep(500);
    const third = await appliance();
    held.push(`it starts after a kill -9 of every process (${third.seconds} s)`);
    await stop(third.npm, 'SIGINT');
    await nothingLeft(clone);
    held.push('Ctrl-C ends everything that it started');
    return held;
  } finally {
    for (const pid of processesOf(clone)) process.kill(pid, 'SIGKILL');
    rmSync(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }
}

async function start(clone: string, options: { env: NodeJS.ProcessEnv; uid?: number; gid?: number }, apiPort: number): Promise<{ npm: ChildProcess; seconds: string }> {
  const began = performance.now();
  // The kernel ends it with us, so a killed test leaves nothing.
  const npm = spawn('setpriv', ['--pdeathsig', 'TERM', '--', 'npm', 'start'], { cwd: clone, stdio: ['ignore', 'pipe', 'pipe'], ...options });
  let output = '';
  for (const stream of [npm.stdout, npm.stderr]) stream.on('data', (chunk: Buffer) => (output += chunk.toString('utf8')));
  const ready = `cofre ready https://127.0.0.1:${apiPort}`;
  while (!output.split('\n').some((line) => line.trim() === ready)) {
    const failure = npm.exitCode !== null || npm.signalCode !== null ? 'ended before it was ready' : performance.now() - began > SET_UP_TIMEOUT_MS ? 'was not ready in time' : null;
    if (failure !== null) {
      npm.kill('SIGTERM');
      throw new Error(`npm start ${failure}:\n${output.trim().split('\n').slice(-20).join('\n')}`);
    }
    await sleep(50);
  }
  return { npm, seconds: ((performance.now() - began) / 1000).toFixed(1) };
}

async function stop(npm: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  const exited = once(npm, 'exit');
  npm.kill(signal);
  await Promise.race([exited, sleep(STOP_TIMEOUT_MS, undefined, { ref: false })]);
  if (npm.exitCode === null && npm.signalCode === null) throw new Error(`npm start did not end within ${STOP_TIMEOUT_MS / 1000} s after ${signal}`);
}

/** Every process whose command line names the clone: all that npm start begins do, but for npm itself and its shell, which end with their child. */
function processesOf(clone: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(clone);
      } catch {
        return false;
      }
    })
    .map(Number);
}

async function nothingLeft(clone: string): Promise<void> {
  for (const deadline = Date.now() + 10_000; Date.now() < deadline; await sleep(100)) if (processesOf(clone).length === 0) return;
  throw new Error(
    `processes are left: ${processesOf(clone)
      .map((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').slice(0, 80))
      .join('; ')}`,
  );
}

async function answers(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1');
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  return port;
}

/** Our PATH without what npm put before it, so that the clone starts with the machine's own Node. */
function plainPath(): string {
  return (process.env['PATH'] ?? '')
    .split(':')
    .filter((entry) => !entry.includes('node_modules') && !entry.includes('node-gyp-bin'))
    .join(':');
}
