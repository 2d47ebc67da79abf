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
    ['hsm: {max_away: 5}', /^cofre\.config\.yaml: hsm\.max_away: needs a whole number and a unit: ms, s, m, h or d$/u],
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
    ['log.origin', 'log', { origin: 'vault.example/log' }],
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
