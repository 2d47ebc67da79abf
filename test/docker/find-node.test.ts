/** What every process of the vault is started with. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { hardened } from '../../docker/find-node.js';

t.test('files, names and randomness are there while as many calls of the HSM hang as a session pool lets go at once', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'cofre-threads-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const fifo = join(folder, 'fifo');
  execFileSync('mkfifo', [fifo]);
  // Opening a pipe for reading holds a thread until somebody opens it for writing. Eight sessions and a probe.
  const source = `
    const fs = require('node:fs');
    for (let n = 0; n < 9; n += 1) fs.open(${JSON.stringify(fifo)}, 'r', () => undefined);
    Promise.all([fs.promises.readFile('/proc/self/comm'), require('node:dns/promises').lookup('localhost'), require('node:util').promisify(require('node:crypto').randomBytes)(8)])
      .then(() => process.stdout.write('done', () => fs.openSync(${JSON.stringify(fifo)}, 'r+')));`;
  // Of the environment nothing that would do it by itself.
  const { UV_THREADPOOL_SIZE: _threads, ...env } = process.env;
  const [program, ...args] = hardened(process.execPath, ['-e', source]) as [string, ...string[]];
  const { stdout, signal } = spawnSync(program, args, { env, encoding: 'utf8', timeout: 20_000, killSignal: 'SIGKILL' });
  t.same([stdout, signal], ['done', null]);
  t.end();
});
