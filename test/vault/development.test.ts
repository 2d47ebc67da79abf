/** What development makes once and cards then depend on. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { prepareDevelopment } from '../../vault/bin/development.ts';
import { loadConfig } from '../../vault/config.ts';
import { watchFlushes } from '../support/flushes.ts';

t.test('PIN, keys and the ceremony are on disk before anything can depend on them', async (t) => {
  const home = mkdtempSync(join(tmpdir(), 'cofre-home-'));
  t.teardown(() => rmSync(home, { recursive: true, force: true }));
  const flushes = watchFlushes();
  t.teardown(() => flushes.stop());
  await prepareDevelopment(home, loadConfig({ home, file: null, env: {} }));

  const [token] = readdirSync(join(home, 'hsm/tokens'));
  const files = readdirSync(join(home, 'hsm/tokens', token!)).map((name) => join(home, 'hsm/tokens', token!, name));
  t.ok(files.length > 6, 'the token has its keys');
  const at = (path: string): number => flushes.paths.findLastIndex((flushed) => flushed === path || flushed.startsWith(`${path}.`));
  const ceremony = at(join(home, 'hsm/ceremony.json'));
  for (const path of [...files, join(home, 'hsm/tokens', token!), join(home, 'hsm/tokens'), join(home, 'secrets/hsm-pin'), join(home, 'hsm/softhsm2.conf'), home])
    t.ok(at(path) >= 0 && at(path) < ceremony, `${path.slice(home.length)} is flushed before the ceremony is noted`);
  t.equal(at(join(home, 'hsm')), flushes.paths.length - 1, 'and then the note itself');
});
