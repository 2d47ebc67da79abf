import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as fc from 'fast-check';
import t from 'tap';
import { ConfigError, loadConfig, milliseconds, readConfig, type Config } from '../../vault/config.ts';

const read = (text: string, env: NodeJS.ProcessEnv = {}): Config => readConfig(text, 'cofre.config.yaml', env);

/** The one line that a configuration is refused with. */
function refusal(text: string, env: NodeJS.ProcessEnv = {}): string {
  try {
    read(text, env);
  } catch (error) {
    if (error instanceof ConfigError && !error.message.includes('\n')) return error.message;
    throw error;
  }
  return 'taken';
}

t.test('an empty file is the defaults of development', async (t) => {
  for (const text of ['', '# nothing\n', '{}']) t.match(read(text), { profile: 'development', listeners: { api_port: 8443, admin_port: 8444, telemetry_port: 9464, host: '127.0.0.1' }, hsm: { custody: 'envelope' }, roles: ['tokenize', 'detokenize'] });
  t.same(read('').tenants, [{ name: 'acme' }, { name: 'globex' }]);
  t.equal(read('commit: {max_queue: 7}').commit.max_queue, 7);
  t.equal(read('commit: {max_queue: 7}').commit.max_calls, 512, 'a section may be given in part');
});

t.test('what is wrong is one line that begins with the file and names the path of the key', async (t) => {
  const cases: readonly (readonly [text: string, message: RegExp])[] = [
    ['unheard_of: 1', /^cofre\.config\.yaml: unheard_of: is not a key that Cofre knows$/u],
    ['listeners: {api_prot: 1}', /^cofre\.config\.yaml: listeners\.api_prot: is not a key that Cofre knows$/u],
    ['tenants: [{name: acme, color: red}]', /^cofre\.config\.yaml: tenants\.0\.color: is not a key that Cofre knows$/u],
    ['log: {searchable_months: 2}', /^cofre\.config\.yaml: log\.searchable_months: must be >= 3$/u],
    ['log: {keep_months: 11}', /^cofre\.config\.yaml: log\.keep_months: must be >= 12$/u],
    ['log: {archive: s3:/bucket}', /^cofre\.config\.yaml: log\.archive: is not of the form s3:\/\/bucket\/prefix$/u],
    ['hsm: {max_away: 5}', /^cofre\.config\.yaml: hsm\.max_away: needs a whole number and a unit: ms, s, m, h or d, and at least 1$/u],
    ['listeners: {keep_alive_timeout: 0s}', /^cofre\.config\.yaml: listeners\.keep_alive_timeout: needs a whole number and a unit: ms, s, m, h or d, and at least 1$/u],
    ['hsm: {max_away: 5 minutes}', /hsm\.max_away: needs a whole number and a unit/u],
    ['database: {max_settle: 1.5s}', /database\.max_settle: needs a whole number and a unit/u],
    ['database: {max_settle: -1s}', /database\.max_settle: needs a whole number and a unit/u],
    ['tls: {revocation_max_age: 1w}', /tls\.revocation_max_age: needs a whole number and a unit/u],
    ['listeners: {api_port: 65536}', /listeners\.api_port: /u],
    ['listeners: {api_port: "8443"}', /listeners\.api_port: /u],
    ['listeners: 8443', /^cofre\.config\.yaml: listeners: /u],
    ['listeners:', /^cofre\.config\.yaml: listeners: /u],
    ['profile: staging', /^cofre\.config\.yaml: profile: /u],
    ['roles: []', /^cofre\.config\.yaml: roles: /u],
    ['roles: [relay]', /^cofre\.config\.yaml: roles\.0: /u],
    ['tenants: [{name: Acme}]', /tenants\.0\.name: /u],
    ['quotas: [{caller: getnet, purpose: capture, per_minute: 1}]', /quotas\.0\.caller: /u],
    ['quotas: [{caller: "spiffe://cofre.dev/tenant/acme/service/x", tenant: acme, per_day: 1}]', /quotas\.0: names either a caller or a tenant/u],
    ['quotas: [{per_day: 1}]', /quotas\.0: names either a caller or a tenant/u],
    ['quotas: [{tenant: acme, purpose: refund}]', /quotas\.0: limits nothing/u],
    ['quotas: [{tenant: other, per_day: 1}]', /quotas\.0: names a tenant that is not configured/u],
    ['quotas: [{caller: "spiffe://other.dev/tenant/acme/service/x", per_day: 1}]', /quotas\.0: names a caller that is not of tls\.trust_domain/u],
    ['quotas: [{tenant: acme, per_day: 1}, {tenant: acme, per_hour: 1}]', /quotas\.1: is of whom an earlier line is/u],
    ['references: {demands: [{purpose: refund, rule: twice}]}', /references\.demands\.0\.rule: /u],
    ['references: {demands: [{tenant: other, purpose: refund, rule: required}]}', /references\.demands\.0: names a tenant/u],
    ['references: {demands: [{purpose: refund, rule: required}, {purpose: refund, rule: single_use}]}', /references\.demands\.1: is of whom/u],
    ['hsm: {token_label: "this label is longer than PKCS#11 allows it"}', /hsm\.token_label: /u],
    ['log: {origin: "with space"}', /log\.origin: /u],
    ['commit: {max_calls: 0}', /commit\.max_calls: /u],
    ['- a list', /^cofre\.config\.yaml: /u],
    ['just text', /^cofre\.config\.yaml: /u],
    ['a: [', /^cofre\.config\.yaml: is not YAML: /u],
    ['profile: development\nprofile: production', /^cofre\.config\.yaml: is not YAML: /u],
  ];
  for (const [text, message] of cases) {
    t.match(refusal(text), message, JSON.stringify(text));
    t.match(refusal(text, { COFRE_API_PORT: '1' }), message, 'with a port from the environment as well');
  }
});

t.test('a file that is not YAML is refused with the place and in none of its words, and nothing else is printed', async (t) => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error): void => void warnings.push(warning);
  process.on('warning', onWarning);
  const cases: readonly (readonly [text: string, why: string])[] = [
    ['hsm: ["hunter2', 'missing char at line 1, column 15'],
    ['hsm:\n\tpin: hunter2', 'tab as indent at line 2, column 1'],
    ['hunter2: 1\nhunter2: 2', 'duplicate key at line 2, column 1'],
    ['profile: }hunter2', 'unexpected token at line 1, column 10'],
    ['hunter2: 1\n---\nhunter2: 2', 'multiple docs at line 2, column 1'],
    ['profile: *hunter2', 'an alias cannot be resolved'],
    [`${'hunter2'.repeat(200)}: [`, 'key over 1024 chars at line 1, column 1'],
  ];
  for (const [text, why] of cases) t.equal(refusal(text), `cofre.config.yaml: is not YAML: ${why}`, JSON.stringify(text.slice(0, 40)));
  // The parser takes these two, with a warning of several lines that quotes them.
  t.equal(refusal('%YAML 9.9\n---\nhunter2'), 'cofre.config.yaml: must be object');
  t.equal(refusal('? [a]\n: 1'), 'cofre.config.yaml: [ a ]: is not a key that Cofre knows');
  t.equal(refusal('"one\\ntwo": 1'), 'cofre.config.yaml: one?two: is not a key that Cofre knows', 'a key of two lines is one line');
  t.ok(refusal(`${'k'.repeat(1000)}: 1`).length < 300, 'and a long one is cut');
  // Warnings are told in a later turn.
  await new Promise((done) => setImmediate(done));
  process.off('warning', onWarning);
  t.same(warnings, []);
});

t.test('any YAML at all is taken or refused in one line', async (t) => {
  const keys = fc.constantFrom('profile', 'roles', 'listeners', 'tls', 'database', 'hsm', 'log', 'tenants', 'quotas', 'hardening', 'other', '__proto__', 'api_port');
  const { tree } = fc.letrec((tie) => ({
    tree: fc.oneof({ depthSize: 'small', withCrossShrink: true }, fc.constant(null), fc.integer(), fc.boolean(), fc.string({ maxLength: 12 }), fc.array(tie('tree'), { maxLength: 3 }), fc.dictionary(keys, tie('tree'), { maxKeys: 4 })),
  }));
  fc.assert(fc.property(tree, (value) => refusal(JSON.stringify(value), { COFRE_ADMIN_PORT: '9' }) !== ''), { numRuns: 300 });
  t.pass('300 documents');
});

t.test('ports come from the environment before the file, and what is no port is refused by the name of the variable', async (t) => {
  const config = read('listeners: {api_port: 1, admin_port: 2}', { COFRE_API_PORT: '10', COFRE_TELEMETRY_PORT: '0', COFRE_ADMIN_PORT: '' });
  t.match(config.listeners, { api_port: 10, admin_port: 2, telemetry_port: 0 });
  for (const port of ['65536', '-1', '1.5', 'https', '0x1f', '123456']) t.equal(refusal('', { COFRE_ADMIN_PORT: port }), 'COFRE_ADMIN_PORT: is not a port', port);
});

t.test('a file that was named must be there; the default one need not', async (t) => {
  const home = t.testdir({});
  const missing = join(home, 'missing.yaml');
  t.throws(() => loadConfig({ home, file: missing, env: {} }), { message: `${missing}: cannot be read (ENOENT)` });
  t.equal(loadConfig({ home, file: null, env: {} }).profile, 'development');
  writeFileSync(join(home, 'cofre.config.yaml'), 'unheard_of: 1');
  t.throws(() => loadConfig({ home, file: null, env: {} }), { message: `${join(home, 'cofre.config.yaml')}: unheard_of: is not a key that Cofre knows` });
  t.throws(() => loadConfig({ home: join(home, 'cofre.config.yaml'), file: null, env: {} }), { message: /cannot be read \(ENOTDIR\)$/u });
});

t.test('the production profile refuses every default of development by the path of its key', async (t) => {
  // In the order in which they are refused; each is set right before the next.
  const steps: readonly (readonly [key: string, section: string, value: unknown])[] = [
    ['database.embedded', 'database', { embedded: false }],
    ['tls.trust_domain', 'tls', { trust_domain: 'vault.example' }],
    ['hsm.token_label', 'hsm', { token_label: 'cofre' }],
    ['hsm.module', 'hsm', { token_label: 'cofre', module: '/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so' }],
    ['hsm.module', 'hsm', { token_label: 'cofre', module: '/opt/cloudhsm/lib/libcloudhsm_pkcs11.so' }],
    ['log.origin', 'log', { origin: 'vault.example/log' }],
    ['operators.approve_policies', 'operators', { approve_policies: true }],
    ['hardening.swap', 'hardening', { swap: 'refuse' }],
  ];
  const config: Record<string, unknown> = { profile: 'production' };
  for (const [key, section, value] of steps) {
    const message = refusal(JSON.stringify(config));
    t.ok(message.startsWith(`cofre.config.yaml: ${key}: `) && message.endsWith(' (profile production)'), message);
    config[section] = value;
  }
  t.equal(refusal(JSON.stringify({ ...config, hardening: { swap: 'refuse', dumpable: true } })), 'cofre.config.yaml: hardening.dumpable: must be false (profile production)');
  t.equal(refusal(JSON.stringify(config)), 'taken');
});

t.test('a duration is what its unit says', async (t) => {
  t.same(['250ms', '30s', '5m', '24h', '7d', '0s'].map(milliseconds), [250, 30_000, 300_000, 86_400_000, 604_800_000, 0]);
  for (const wrong of ['', '5', 's', '5 s', '1.5s', '-1s', '5S', '5w']) t.throws(() => milliseconds(wrong), { message: 'not a duration' }, wrong);
});

/** The path of every key whose default is a time. */
function durationKeys(value: unknown, path: readonly string[] = []): (readonly string[])[] {
  if (typeof value === 'string') return /^[0-9]+(ms|s|m|h|d)$/u.test(value) ? [path] : [];
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? Object.entries(value).flatMap(([key, member]) => durationKeys(member, [...path, key])) : [];
}

t.test('every duration is at least 1 of its unit and at most 24 days, which is what a timer holds', async (t) => {
  const keys = durationKeys(read(''));
  t.ok(keys.length >= 7 && keys.some((path) => path.join('.') === 'tls.revocation_max_age'), `${keys.length} keys`);
  const day = 86_400_000;
  const over = 24 * day + 1;
  t.ok(over <= 2 ** 31 - 1 && 25 * day > 2 ** 31 - 1, 'a day more would be more than Node waits');
  for (const path of keys) {
    const key = path.join('.');
    const given = (duration: string): string => refusal(JSON.stringify(path.reduceRight<unknown>((inner, name) => ({ [name]: inner }), duration)));
    for (const duration of ['0s', '0ms', '0d', '00s', '01s', '-0s']) t.equal(given(duration), `cofre.config.yaml: ${key}: needs a whole number and a unit: ms, s, m, h or d, and at least 1`, `${key}: ${duration}`);
    for (const duration of ['25d', '577h', '34561m', '2073601s', '999999999d']) t.equal(given(duration), `cofre.config.yaml: ${key}: is longer than 24 days`, `${key}: ${duration}`);
    for (const duration of ['24d', '576h', '34560m', '2073600s', '1ms']) t.equal(given(duration), 'taken', `${key}: ${duration}`);
  }
});

t.test('two listeners with one port are refused, wherever the ports come from; 0 is any free one', async (t) => {
  const refused = 'cofre.config.yaml: listeners: two of them have the same port';
  for (const [one, other] of [['api', 'admin'], ['api', 'telemetry'], ['admin', 'telemetry']] as const) {
    t.equal(refusal(`listeners: {${one}_port: 7000, ${other}_port: 7000}`), refused, `${one} and ${other}`);
    t.equal(refusal(`listeners: {${one}_port: 0, ${other}_port: 0}`), 'taken');
    t.equal(refusal('', { [`COFRE_${one.toUpperCase()}_PORT`]: '7000', [`COFRE_${other.toUpperCase()}_PORT`]: '7000' }), refused, 'from the environment');
    t.equal(refusal(`listeners: {${one}_port: 7000}`, { [`COFRE_${other.toUpperCase()}_PORT`]: '7000' }), refused, 'from both');
  }
  t.equal(refusal('listeners: {api_port: 9464}'), refused, 'a default counts');
  t.equal(refusal('listeners: {api_port: 9464, telemetry_port: 9465}'), 'taken');
  t.equal(refusal('listeners: {api_port: 7000, admin_port: 7000}', { COFRE_ADMIN_PORT: '7001' }), 'taken', 'what the environment overrides does not');
});
