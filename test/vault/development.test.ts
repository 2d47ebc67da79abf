/** What development makes once and cards then depend on. */
import { mkdtempSync, readFileSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { createDevelopmentPki } from '../../platform-adapters/pki/development.ts';
import { prepareDevelopment, renewRevocationList } from '../../vault/bin/development.ts';
import { loadConfig } from '../../vault/config.ts';
import { until } from '../support/appliance.ts';
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

t.test('a revocation list that cannot be renewed is told of, and is renewed once it can be', async (t) => {
  const directory = t.testdir({});
  const pki = createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => new Date() });
  const [register, aside, list] = ['revoked.json', 'aside', 'crl.pem'].map((name) => join(directory, name)) as [string, string, string];
  const before = readFileSync(list, 'utf8');
  renameSync(register, aside);
  const warnings: string[] = [];
  const end = renewRevocationList(pki, { warn: (message, fields) => void warnings.push(`${message}: ${fields?.error}`) }, 20);
  await until(() => warnings.length > 1, 'a warning each time');
  t.match(warnings[0], /^the revocation list was not renewed: Error at platform-adapters\/pki\/development\.ts:\d+$/u);
  t.equal(readFileSync(list, 'utf8'), before);
  renameSync(aside, register);
  await until(() => readFileSync(list, 'utf8') !== before, 'the next list');
  end();
});
