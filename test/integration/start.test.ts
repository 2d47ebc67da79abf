/** Starts that are meant to fail, each in one clear line, and the command line. */
import { rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { plainLines, runCofre, startAppliance, unstartedAppliance } from '../support/appliance.ts';
import { freshDatabase } from '../support/database.ts';
import { cardText } from '../support/test-cards.ts';
import { ConfigError, readConfig } from '../../vault/config.ts';

const appliance = await startAppliance(t);
// It waits a while for the first to stop, so it is begun here and looked at last.
const second = runCofre(t, ['serve'], { COFRE_HOME: appliance.home, COFRE_API_PORT: '0', COFRE_ADMIN_PORT: '0', COFRE_TELEMETRY_PORT: '0' });

/** What is wrong with a configuration; null where nothing is. */
function faultOf(text: string, file: string): string | null {
  try {
    readConfig(text, file, {});
    return null;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return error.message;
  }
}

await t.test('a port in use is one clear line that says which and what to set, and what was started is stopped', async (t) => {
  const taken = createServer();
  await new Promise<void>((done) => taken.listen(0, '127.0.0.1', done));
  const { port } = taken.address() as AddressInfo;
  t.teardown(() => taken.close());
  const database = await freshDatabase(t, { migrated: false });
  const second = unstartedAppliance(t, { database });
  for (const [variable, name] of [['COFRE_API_PORT', 'API'], ['COFRE_ADMIN_PORT', 'admin'], ['COFRE_TELEMETRY_PORT', 'telemetry']] as const) {
    const mark = second.err.length;
    const ended = await second.launch({ [variable]: String(port) });
    t.same(ended, { code: 1, signal: null }, name);
    t.same(plainLines(second.err.slice(mark)), [`cofre: 127.0.0.1:${port} is in use by another process: the ${name} listener needs it; ${variable} chooses another`]);
    t.notMatch(second.out, /cofre ready/u);
  }
});

await t.test('a configuration that is not understood is one clear line with the path of the key, and exit code 2', async (t) => {
  const second = unstartedAppliance(t);
  const file = join(second.home, 'cofre.config.yaml');
  const cases: readonly (readonly [string, RegExp])[] = [
    ['lisners:\n  api_port: 1\n', /: lisners: is not a key that Cofre knows$/u],
    ['listeners:\n  api_prot: 1\n', /: listeners\.api_prot: is not a key that Cofre knows$/u],
    ['tenants:\n  - name: acme\n    colour: red\n', /: tenants\.0\.colour: is not a key that Cofre knows$/u],
    ['listeners:\n  request_timeout: 10\n', /: listeners\.request_timeout: needs a whole number and a unit: ms, s, m, h or d, and at least 1$/u],
    ['listeners:\n  request_timeout: 10 seconds\n', /: listeners\.request_timeout: needs a whole number and a unit/u],
    ['listeners:\n  api_port: "8443"\n', /: listeners\.api_port: /u],
    ['listeners:\n  api_port: 65536\n', /: listeners\.api_port: /u],
    ['commit:\n  max_queue: 0\n', /: commit\.max_queue: /u],
    ['hsm:\n  custody: paper\n', /: hsm\.custody: /u],
    ['quotas:\n  - caller: getnet\n    purpose: capture\n    per_minute: 1\n', /: quotas\.0\.caller: /u],
    ['tls:\n  trust_domain: Cofre.dev\n', /: tls\.trust_domain: /u],
    ['a: [', /: is not YAML: /u],
    ['profile: development\nprofile: production\n', /: is not YAML: /u],
    ['- a\n', /cofre\.config\.yaml: /u],
    ['profile: production\n', /: database\.embedded: /u],
  ];
  for (const [text, message] of cases) {
    const found = faultOf(text, file);
    t.match(found, message, JSON.stringify(text));
    t.ok(found?.startsWith(file), 'it names the file');
    t.equal(found?.split('\n').length, 1);
  }
  // The process says the same, and nothing else.
  for (const [text] of [cases[1]!, cases[3]!]) {
    writeFileSync(file, text);
    const mark = second.err.length;
    t.same(await second.launch(), { code: 2, signal: null }, JSON.stringify(text));
    t.same(plainLines(second.err.slice(mark)), [`cofre: ${faultOf(text, file)}`]);
  }
  rmSync(file);
  const mark = second.err.length;
  t.same(await second.launch({ COFRE_API_PORT: 'https' }), { code: 2, signal: null });
  t.same(plainLines(second.err.slice(mark)), ['cofre: COFRE_API_PORT: is not a port']);
});

await t.test('a database that does not answer is one clear line, without its password', async (t) => {
  const second = unstartedAppliance(t);
  const ended = await second.launch({ DATABASE_URL: `postgresql://cofre:hunter2secret@127.0.0.1:9/cofre` });
  t.same(ended, { code: 1, signal: null });
  t.equal(plainLines(second.err).length, 1);
  t.match(plainLines(second.err)[0], /^cofre: the database does not answer \(ECONNREFUSED\): check DATABASE_URL$/u);
  t.notMatch(second.err, /hunter2secret/u);
});

await t.test('the command line explains itself, and what it does not understand is exit code 2', async (t) => {
  for (const args of [['--help'], ['help']]) {
    const { code, out, err } = await runCofre(t, args);
    t.equal(code, 0, args.join(' '));
    t.match(out, /^cofre <command>/u);
    t.match(out, /^ {2}serve /mu);
    t.equal(err, '');
  }
  for (const command of ['serve', 'init']) {
    const { code, out } = await runCofre(t, [command, '--help']);
    t.equal(code, 0);
    t.match(out, new RegExp(`^cofre ${command} `, 'u'));
  }
  for (const args of [[], ['nonsense'], ['serve', '--nonsense'], ['serve', 'more'], ['init'], ['__proto__'], ['toString']]) {
    const { code, out, err } = await runCofre(t, args);
    t.equal(code, 2, JSON.stringify(args));
    // Without a command the usage is the answer; else one line says what is wrong.
    if (args.length > 0) t.match(err, /^cofre[^\n]*\n$/u);
    else t.match(out + err, /^cofre <command>/u);
  }
  const missing = await runCofre(t, ['serve', '--config', '/nonexistent/cofre.yaml']);
  t.equal(missing.code, 2);
  t.equal(missing.err, 'cofre: /nonexistent/cofre.yaml: cannot be read (ENOENT)\n');
});

await t.test('a second one in the same home is refused in one line and does not disturb the first', async (t) => {
  const result = await second;
  t.equal(result.code, 1);
  t.equal(plainLines(result.err).length, 1);
  t.match(plainLines(result.err)[0], /^cofre: another process already uses /u);
  t.equal((await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(1) })).status, 201);
});
