/**
 * The one configuration file, `cofre.config.yaml`: its schema is its documentation (docs/configuration.md is made from it).
 * An unknown key, a wrong unit or a missing file is one clear line that names the path of the key. Secrets come from the environment
 * or from files, never from here.
 */
import { readFileSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { Type } from 'typebox';
import type { Static, TSchema } from 'typebox';
import { Value } from 'typebox/value';
import { YAMLParseError, parse as parseYaml } from 'yaml';
import { abuseKinds } from './abuse.ts';
import { largestBody } from './schemas.ts';

/** The file, or something that it names, cannot be used. The message is one line for the operator. */
export class ConfigError extends Error {}

const durationPattern = '^[1-9][0-9]{0,8}(ms|s|m|h|d)$';
const softHsm = 'libsofthsm2.so';
const closed = { additionalProperties: false } as const;
/** A time with its unit, as `250ms`, `30s`, `5m`, `24h` or `7d`. */
const Duration = (defaultValue: string, description: string) => Type.String({ pattern: durationPattern, default: defaultValue, description });
const Count = (defaultValue: number, minimum: number, maximum: number, description: string) => Type.Integer({ minimum, maximum, default: defaultValue, description });
const Port = (defaultValue: number, description: string) => Type.Integer({ minimum: 0, maximum: 65535, default: defaultValue, description });
const Path = (defaultValue: string, description: string) => Type.String({ minLength: 1, default: defaultValue, description });
const Section = <T extends Record<string, TSchema>>(members: T) => Type.Object(members, { ...closed, default: {} });
const Name = Type.String({ pattern: '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$' });
const PurposeName = Type.Enum(['authorization', 'capture', 'refund', 'chargeback'], { type: 'string' });
const QuotaAmount = Type.Integer({ minimum: 0, maximum: 1_000_000_000 });

export const ConfigSchema = Type.Object(
  {
    profile: Type.Enum(['development', 'production'], { type: 'string', default: 'development', description: 'production refuses every default that is for development only.' }),
    roles: Type.Array(Type.Enum(['tokenize', 'detokenize', 'sequencer', 'admin'], { type: 'string' }), { minItems: 1, uniqueItems: true, default: ['tokenize', 'detokenize', 'sequencer', 'admin'], description: 'What this process does. sequencer puts the log in order and has its checkpoints signed: one process of a vault at least. admin prepares the database and serves the admin listener; without it DATABASE_URL names a database that is prepared already.' }),
    workers: Count(1, 1, 64, 'Processes that share the listeners, each with the roles above: one a core.'),
    listeners: Section({
      host: Type.String({ default: '127.0.0.1', description: 'Address that API and admin listen on.' }),
      api_port: Port(8443, 'API, mutual TLS. COFRE_API_PORT overrides it.'),
      admin_port: Port(8444, 'Admin, mutual TLS. COFRE_ADMIN_PORT overrides it.'),
      telemetry_host: Type.String({ default: '127.0.0.1', description: 'Address that telemetry listens on, without TLS: never a public one.' }),
      telemetry_port: Port(9464, '/metrics, /healthz, /readyz. COFRE_TELEMETRY_PORT overrides it.'),
      max_connections: Count(2000, 1, 100_000, 'Connections open at once, a listener. One more takes the place of an idle one of the caller that has most.'),
      max_connections_per_certificate: Count(500, 1, 100_000, 'Of them with one certificate.'),
      handshakes_per_second: Count(100, 1, 100_000, 'TLS handshakes that may begin in a second in the long run, a listener and process; each costs 2.5 ms of processor time. Others wait, and their addresses (of IPv6: 64 bits) take turns: callers behind one NAT or mesh address share one turn.'),
      handshake_burst: Count(500, 1, 100_000, 'Handshakes that may begin after a calm before that rate binds: for a service that opens all its connections at once.'),
      max_handshakes_waiting: Count(1000, 1, 100_000, 'Connections that may wait for their handshake, a listener and process, beside those open. For one more the address that has most of them loses one.'),
      max_full_handshakes_per_certificate: Count(1200, 1, 1_000_000, 'Full handshakes of one certificate in a minute; one more connection is closed. Resumed sessions are not counted.'),
      handshake_timeout: Duration('10s', 'A connection may wait this long for its handshake, and then take this long for it.'),
      max_requests_per_caller: Count(512, 1, 100_000, 'Requests of one caller under way at once; one more is overloaded.'),
      max_body_bytes_per_caller: Count(16 * 1024 * 1024, largestBody, 2 ** 40, 'Bytes that the bodies of one caller\'s requests under way may take together, a listener and process; a body beyond it is overloaded before it is read. The largest body, a batch of 1000 cards, has 1 MiB at most, and 100 kB as a rule; once it is parsed, 64 bytes are added for each of its values. What is read of the log counts among them.'),
      max_body_bytes: Count(64 * 1024 * 1024, largestBody, 2 ** 40, 'Of all callers\' requests. Beside others a caller takes no more than it leaves.'),
      request_timeout: Duration('10s', 'A request must have arrived whole within this time.'),
      answer_timeout: Duration('30s', 'An answer must have been read whole within this time.'),
      keep_alive_timeout: Duration('75s', 'An idle connection is closed after this time.'),
      drain_timeout: Duration('15s', 'After SIGTERM, requests in flight get this long.'),
    }),
    tls: Section({
      trust_domain: Type.String({ pattern: '^[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?$', default: 'cofre.dev', description: 'SPIFFE trust domain of every caller.' }),
      certificate: Path('pki/server.pem', 'Server certificate chain, PEM. Reloaded when it changes.'),
      key: Path('pki/server.key', 'Its key, PEM.'),
      client_ca: Path('pki/ca.pem', 'Authorities of client certificates, PEM.'),
      revocation_list: Path('pki/crl.pem', 'Their revocation lists, PEM or DER. Reloaded when it changes.'),
      revocation_max_age: Duration('7d', 'A list older than this refuses every caller.'),
    }),
    database: Section({
      embedded: Type.Boolean({ default: true, description: 'Run the PostgreSQL that comes with the package; for development. DATABASE_URL in the environment turns it off.' }),
      max_away: Duration('5s', 'How long calls wait for a database that is away.'),
      max_settle: Duration('10s', 'How long callers wait for a COMMIT whose answer was lost, before outcome_unknown.'),
    }),
    commit: Section({
      max_queue: Count(10_000, 1, 1_000_000, 'Calls that may wait for a transaction; beyond it one of the tenant that has most is overloaded.'),
      max_queued_items: Count(20_000, 1, 10_000_000, 'Items of all calls that may wait, a writer; as above.'),
      max_calls: Count(512, 1, 10_000, 'Calls in one transaction.'),
    }),
    cards: Section({
      bin_digits: Count(6, 6, 8, 'Digits of a card number\'s head that are kept and shown: six, or up to eight of card numbers with 16 digits and more. Of 15 digits it is always six, below none.'),
    }),
    tokens: Section({
      sweep_interval: Duration('60s', 'How often tokens past their end are looked for: they are marked, and a card whose last token ended is destroyed.'),
    }),
    events: Section({
      outbox: Type.Boolean({ default: false, description: 'Store an event for each new token and updated card, in the transaction that makes it. Only with a relay that takes them away.' }),
    }),
    guessing: Section({
      distinct_per_day: Count(200, 1, 2000, 'Distinct card numbers with the same first six and last four digits that a caller may tokenize in a day of UTC; one more is quota_exceeded. Does not bind callers that may import.'),
      merge_interval: Duration('5s', 'How often processes share what they counted.'),
    }),
    abuse: Section({
      unknown_tokens_per_minute: Count(60, 1, 1_000_000, 'Tokens of a caller in a minute that are unknown, or no tokens at all: more are an alert. Counted by each process.'),
      sequential_tokens: Count(8, 3, 1000, 'Numeric tokens of a caller in a row, each a neighbour of the one before: so many are an alert.'),
      volume_factor: Count(5, 2, 1000, 'An hour in which a caller asks to open so many times more tokens than in the busiest hour of its last four weeks is an alert.'),
      volume_floor: Count(1000, 1, 1_000_000_000, 'An hour of at most so many tokens never is.'),
      volume_days: Count(7, 1, 27, 'A caller whose history is shorter is not judged by it.'),
      suspend: Type.Array(Type.Enum([...abuseKinds], { type: 'string' }), { uniqueItems: true, default: ['honey_token'], description: 'Of which alerts a caller is suspended at once: every call of it is refused until two operators resume it.' }),
    }),
    operators: Section({
      session_idle: Duration('15m', 'An operator\'s session ends when it is not used for so long.'),
      session_longest: Duration('8h', 'And in any case so long after the login.'),
      approve_policies: Type.Boolean({ default: false, description: 'Take only policies, and only quotas, references and limits of abuse, that two people approved by their digest (`cofre change`). Production must.' }),
    }),
    refusals: Section({
      entries_per_minute: Count(100, 1, 1_000_000, 'Refused calls of a caller that get an entry each in a minute; one entry a minute sums up the rest.'),
    }),
    hsm: Section({
      module: Path(`/usr/lib/softhsm/${softHsm}`, 'PKCS#11 module.'),
      token_label: Type.String({ minLength: 1, maxLength: 32, default: 'cofre-development', description: 'Label of the token.' }),
      pin_file: Path('secrets/hsm-pin', 'File with the user PIN.'),
      custody: Type.Enum(['envelope', 'direct'], { type: 'string', default: 'envelope', description: 'envelope: data keys are opened into memory. direct: every seal, open and HMAC happens inside the HSM.' }),
      max_away: Duration('5m', 'envelope: how long the HSM may be away before operations are refused.'),
    }),
    policies: Path('policies', 'Folder of Cedar policies. Reloaded on SIGHUP.'),
    log: Section({
      origin: Type.String({ pattern: '^[^\\s+]{1,200}$', default: 'cofre.dev/log', description: 'Name of the log, as which the HSM signs.' }),
      checkpoint_interval: Duration('1s', 'Least time between two signed checkpoints.'),
      max_unsigned: Duration('5m', 'How long calls go on while what they commit does not appear under a signed checkpoint; then audit_unavailable.'),
      max_clock_back: Duration('5s', 'How far the clock may be behind the log before readiness and an alert say so.'),
      archive: Type.String({ minLength: 1, maxLength: 400, default: 'none', description: 'Where the log is copied to, and where entries are that were taken out of the database: a folder or `s3://bucket/prefix`, the same for every process that sequences. With none, nothing is ever taken out.' }),
      archive_interval: Duration('1h', 'Least time between two copies of what is new.'),
      searchable_months: Count(3, 3, 120, 'Whole months, beside the one that runs, that stay in the database, where they are searched. Only what the archive was seen to hold is taken out.'),
      keep_months: Count(12, 12, 1200, 'How long the archive must hold every entry: once a day some of that time are read back, and an alert tells if one is gone or changed. Cofre deletes nothing there.'),
      level: Type.Enum(['debug', 'info', 'warn', 'error'], { type: 'string', default: 'info', description: 'Of the process\'s own messages, not of the audit log.' }),
    }),
    tenants: Type.Array(Type.Object({ name: Name, key_domain: Type.Optional(Name) }, closed), { minItems: 1, default: [{ name: 'acme' }, { name: 'globex' }], description: 'Owners of cards. A key domain is a tenant\'s own unless named.' }),
    quotas: Type.Array(
      Type.Object(
        {
          caller: Type.Optional(Type.String({ pattern: '^spiffe://' })),
          tenant: Type.Optional(Name),
          purpose: Type.Optional(PurposeName),
          per_minute: Type.Optional(QuotaAmount),
          per_hour: Type.Optional(QuotaAmount),
          per_day: Type.Optional(QuotaAmount),
          distinct_tokens_per_day: Type.Optional(QuotaAmount),
        },
        closed,
      ),
      {
        default: ['authorization', 'capture', 'refund'].map((purpose) => ({ caller: 'spiffe://cofre.dev/tenant/acme/service/getnet', purpose: purpose as 'authorization', per_minute: 100_000 })),
        description: 'How often cards may be taken out: by one `caller`, or by all callers of one `tenant` together; for one `purpose`, or for all together where none is named. `per_minute`, `per_hour` and `per_day` (of UTC) count tokens that are asked for, each one of a batch; `distinct_tokens_per_day` counts different ones. Every line that fits binds. A caller without a line has no limit but its policy.',
      },
    ),
    references: Section({
      demands: Type.Array(Type.Object({ tenant: Type.Optional(Name), purpose: PurposeName, rule: Type.Enum(['required', 'single_use'], { type: 'string' }) }, closed), {
        default: [],
        description: 'Purposes for which a detokenize must name a `reference`: `required`, or `single_use`, where none serves twice for the same token and purpose. Of a `tenant`, or of all that have no line of their own.',
      }),
      keep_days: Count(540, 1, 3650, 'How long a reference that served once is remembered.'),
    }),
    hardening: Section({
      swap: Type.Enum(['warn', 'refuse'], { type: 'string', default: 'warn', description: 'What to do where the machine swaps.' }),
      dumpable: Type.Boolean({ default: false, description: 'Lets a debugger of the same user read this process. For tests of what memory holds; production refuses it.' }),
    }),
  },
  closed,
);

export type Config = Static<typeof ConfigSchema>;

/** The file named, or `<home>/cofre.config.yaml` where there is one, or the defaults of development. Paths in it are relative to `home`. */
export function loadConfig(options: { readonly home: string; readonly file: string | null; readonly env: NodeJS.ProcessEnv }): Config {
  const file = options.file ?? resolve(options.home, 'cofre.config.yaml');
  let text: string | null = null;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if (options.file !== null || (error as NodeJS.ErrnoException).code !== 'ENOENT') throw new ConfigError(`${file}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`);
  }
  return readConfig(text ?? '', file, options.env);
}

/** What a file of YAML holds. @throws ConfigError, one line, that says what is wrong where, in none of the file's words. */
export function readYaml(text: string, file: string): unknown {
  try {
    // Its warnings would go to standard error past us, and they quote the file.
    return parseYaml(text, { strict: true, uniqueKeys: true, logLevel: 'error' });
  } catch (error) {
    const [at] = error instanceof YAMLParseError ? (error.linePos ?? []) : [];
    const why = error instanceof YAMLParseError ? error.code.toLowerCase().replaceAll('_', ' ') : 'an alias cannot be resolved';
    throw new ConfigError(`${file}: is not YAML: ${why}${at === undefined ? '' : ` at line ${at.line}, column ${at.col}`}`);
  }
}

/** @throws ConfigError, one line, naming the path of the key. */
export function readConfig(text: string, file: string, env: NodeJS.ProcessEnv): Config {
  const given = readYaml(text, file) ?? {};
  const stated = typeof given === 'object' && Object.hasOwn(given, 'quotas'); // before the defaults are written into it
  const config = Value.Default(ConfigSchema, given);
  if (!Value.Check(ConfigSchema, config)) {
    const [first] = Value.Errors(ConfigSchema, config);
    throw new ConfigError(`${file}: ${explain(first)}`);
  }
  for (const [variable, key] of [['COFRE_API_PORT', 'api_port'], ['COFRE_ADMIN_PORT', 'admin_port'], ['COFRE_TELEMETRY_PORT', 'telemetry_port']] as const) {
    const value = env[variable];
    if (value === undefined || value === '') continue;
    if (!/^[0-9]{1,5}$/u.test(value) || Number(value) > 65535) throw new ConfigError(`${variable}: is not a port`);
    config.listeners[key] = Number(value);
  }
  for (const path of durations) {
    if (milliseconds(textAt(config, path)) > maxDurationMs) throw new ConfigError(`${file}: ${path}: is longer than 24 days`);
  }
  if (config.log.archive.startsWith('s3:') && !/^s3:\/\/[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](\/[A-Za-z0-9!_.*()-]+)*$/u.test(config.log.archive)) throw new ConfigError(`${file}: log.archive: is not of the form s3://bucket/prefix`);
  checkQuotas(config, stated, file);
  const { api_port: api, admin_port: admin, telemetry_port: telemetry } = config.listeners;
  const ports = [api, admin, telemetry].filter((port) => port !== 0);
  if (new Set(ports).size < ports.length) throw new ConfigError(`${file}: listeners: two of them have the same port`);
  if (config.profile === 'production') refuseDevelopment(config, file);
  return config;
}

/** What the schema cannot say of quotas and demands: a line that binds nobody, or says nothing, or says what another says, is a mistake. */
function checkQuotas({ quotas, references, tenants, tls }: Config, stated: boolean, file: string): void {
  const known = new Set(tenants.map(({ name }) => name));
  const seen = new Set<string>();
  for (const [at, { caller, tenant, purpose, ...amounts }] of quotas.entries()) {
    const refuse = (why: string): never => {
      throw new ConfigError(`${file}: quotas.${at}: ${why}`);
    };
    if ((caller === undefined) === (tenant === undefined)) refuse('names either a caller or a tenant');
    if (Object.keys(amounts).length === 0) refuse('limits nothing');
    if (tenant !== undefined && !known.has(tenant)) refuse('names a tenant that is not configured');
    // Development's own lines stay where nothing is said of quotas, and bind nobody in another trust domain.
    if (stated && caller !== undefined && !caller.startsWith(`spiffe://${tls.trust_domain}/tenant/`)) refuse('names a caller that is not of tls.trust_domain');
    const key = `${caller ?? tenant} ${purpose ?? ''}`;
    if (seen.has(key)) refuse('is of whom an earlier line is, for the same purpose');
    seen.add(key);
  }
  const demanded = new Set<string>();
  for (const [at, { tenant, purpose }] of references.demands.entries()) {
    if (tenant !== undefined && !known.has(tenant)) throw new ConfigError(`${file}: references.demands.${at}: names a tenant that is not configured`);
    if (demanded.has(`${tenant ?? ''} ${purpose}`)) throw new ConfigError(`${file}: references.demands.${at}: is of whom an earlier line is, for the same purpose`);
    demanded.add(`${tenant ?? ''} ${purpose}`);
  }
}

/** Milliseconds of a duration that the schema has checked. */
export function milliseconds(duration: string): number {
  const match = /^([0-9]+)(ms|s|m|h|d)$/u.exec(duration);
  if (match === null) throw new Error('not a duration');
  const unit = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }[match[2] as 'ms'];
  return Number(match[1]) * unit;
}

/** What development takes for granted and production must state. */
function refuseDevelopment(config: Config, file: string): void {
  const refuse = (key: string, why: string): never => {
    throw new ConfigError(`${file}: ${key}: ${why} (profile production)`);
  };
  if (config.database.embedded) refuse('database.embedded', 'the embedded PostgreSQL is for development; set it to false and give DATABASE_URL');
  if (config.tls.trust_domain === 'cofre.dev') refuse('tls.trust_domain', 'is the development default');
  if (config.hsm.token_label === 'cofre-development') refuse('hsm.token_label', 'is the development default');
  // Wherever it lies.
  if (basename(config.hsm.module) === softHsm) refuse('hsm.module', 'SoftHSM2, which keeps its keys in files, is for development; name the module of your HSM');
  if (config.log.origin === 'cofre.dev/log') refuse('log.origin', 'is the development default');
  if (!config.operators.approve_policies) refuse('operators.approve_policies', 'must be true: one person alone changes nothing that guards cards');
  if (config.hardening.dumpable) refuse('hardening.dumpable', 'must be false');
  if (config.hardening.swap !== 'refuse') refuse('hardening.swap', 'must be refuse');
}

function explain(error: { instancePath: string; keyword: string; message: string } | undefined): string {
  if (error === undefined) return 'does not have the form of a configuration';
  // A key can be any text, several lines too.
  const path = error.instancePath.split('/').slice(1).join('.').replaceAll(/\p{Cc}/gu, '?').slice(0, 200);
  const at = path === '' ? '' : `${path}: `;
  // Only the schema `false`, which closes an object, refuses whatever is there.
  if (error.keyword === 'boolean') return `${at}is not a key that Cofre knows`;
  if (durations.has(path)) return `${at}needs a whole number and a unit: ms, s, m, h or d, and at least 1`;
  return `${at}${error.message}`;
}

/** What a timer of Node can hold: 2^31 ms and a little less. */
const maxDurationMs = 24 * 86_400_000;

function textAt(config: Config, path: string): string {
  let current: unknown = config;
  for (const part of path.split('.')) current = (current as Record<string, unknown>)[part];
  return current as string;
}

/** Paths of the keys that hold a time with a unit. */
const durations: ReadonlySet<string> = new Set(durationPaths(ConfigSchema, ''));

function durationPaths(schema: TSchema, at: string): string[] {
  const { properties, pattern } = schema as { properties?: Record<string, TSchema>; pattern?: unknown };
  if (pattern === durationPattern) return [at];
  return Object.entries(properties ?? {}).flatMap(([key, member]) => durationPaths(member, at === '' ? key : `${at}.${key}`));
}
