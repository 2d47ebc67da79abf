/** What development takes for granted, made once and kept: secrets, HSM token and keys, certificates, policies. */
import { randomBytes } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runCeremony } from '../../hsm/ceremony.ts';
import { flushFolder, flushTree, replaceFile } from '../../platform-adapters/linux/durable-file.ts';
import { createDevelopmentPki } from '../../platform-adapters/pki/development.ts';
import type { DevelopmentPki } from '../../platform-adapters/pki/development.ts';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import { ConfigError } from '../config.ts';
import type { Config } from '../config.ts';
import { mendTokens } from './soft-token.ts';

/**
 * Completes the state of a development vault under `home`. Whatever exists is kept, whatever an earlier, killed run left half-made
 * is finished; so it may run at every start.
 *
 * @throws ConfigError with one clear line.
 */
export async function prepareDevelopment(home: string, config: Config): Promise<DevelopmentPki> {
  for (const folder of ['', 'hsm', 'hsm/tokens', 'secrets', 'writers']) mkdirSync(join(home, folder), { recursive: true, mode: 0o700 });
  flushFolder(home);
  const pki = createDevelopmentPki(join(home, 'pki'), { trustDomain: config.tls.trust_domain, now: () => new Date() });

  const policies = join(home, 'policies');
  if (!existsSync(policies)) {
    cpSync(fileURLToPath(new URL('../policies', import.meta.url)), `${policies}.new`, { recursive: true });
    renameSync(`${policies}.new`, policies);
  }

  // The ceremony precedes the first start of the database. A database without it has lost its HSM, and new keys would brick its cards.
  const done = join(home, 'hsm/ceremony.json');
  const bereft = (what: string): never => {
    throw new ConfigError(`${what} is missing, and cards in the database depend on it: restore it, or remove the whole of ${home} to begin anew`);
  };
  if (existsSync(join(home, 'postgres/cluster')) && !existsSync(done)) bereft(done);
  for (const name of ['secrets/hsm-pin', 'hsm/softhsm2.conf']) if (existsSync(done) && !existsSync(join(home, name))) bereft(join(home, name));

  const pin = secretOnce(join(home, 'secrets/hsm-pin'));
  const soPin = secretOnce(join(home, 'secrets/hsm-so-pin'));
  writeOnce(join(home, 'hsm/softhsm2.conf'), `directories.tokendir = ${join(home, 'hsm/tokens')}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n`);
  process.env['SOFTHSM2_CONF'] ??= join(home, 'hsm/softhsm2.conf');
  if (!existsSync(config.hsm.module)) throw new ConfigError(`hsm.module: ${config.hsm.module} is not there: install SoftHSM2 (Debian: apt-get install softhsm2)`);

  if (existsSync(done)) mendTokens(home);

  // The marker is written last: a run that was killed in the middle of the ceremony is resumed.
  const domains = keyDomains(config);
  const before = existsSync(done) ? domainsOf(done) : [];
  if (domains.some((domain) => !before.includes(domain))) {
    const report = await runCeremony(
      {
        ceremony: 'cofre/v1',
        purpose: 'development',
        token: { module: config.hsm.module, label: config.hsm.token_label, initialize: true },
        domains,
        keys: { domain: 'aes-256', control: 'hmac-sha-256', log_signing: 'ed25519', evidence_signing: 'ed25519' },
        witnesses: [],
      },
      { pin, soPin, resume: true, now: () => new Date() },
    );
    // SoftHSM2 does not flush what it writes. From here on cards depend on it, and on the PIN.
    flushTree(join(home, 'hsm/tokens'));
    mendTokens(home);
    replaceFile(done, `${JSON.stringify({ domains, ...report }, null, 2)}\n`, 0o600);
  }
  pin.fill(0);
  soPin.fill(0);
  return pki;
}

/**
 * A development authority renews its own list, every six hours; in production the real one does. A list lasts for a month: what keeps a new one away, a full
 * disk for instance, is told to the log, and the next time it is tried again.
 *
 * @returns how to end it.
 */
export function renewRevocationList(pki: Pick<DevelopmentPki, 'signCrl'>, log: Pick<Log, 'warn'>, everyMs = 6 * 3_600_000): () => void {
  const renewal = setInterval(() => {
    try {
      pki.signCrl([]);
    } catch (error) {
      log.warn('the revocation list was not renewed', { error: describe(error) });
    }
  }, everyMs).unref();
  return () => clearInterval(renewal);
}

function domainsOf(ceremonyFile: string): readonly string[] {
  try {
    const { domains } = JSON.parse(readFileSync(ceremonyFile, 'utf8')) as { domains?: unknown };
    if (Array.isArray(domains) && domains.every((domain) => typeof domain === 'string')) return domains;
  } catch {
    // Said below.
  }
  throw new ConfigError(`${ceremonyFile} is damaged: restore it`);
}

/** Every key domain that the configuration names. */
export function keyDomains(config: Config): string[] {
  return [...new Set(config.tenants.map((tenant) => tenant.key_domain ?? tenant.name))];
}

function secretOnce(path: string): Buffer {
  if (!existsSync(path)) writeOnce(path, `${randomBytes(16).toString('hex')}\n`);
  return readPin(path);
}

/** A secret of one line, without its newline. @throws ConfigError if the file cannot be read or is empty. */
export function readPin(path: string): Buffer {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    throw new ConfigError(`hsm.pin_file: ${path} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`);
  }
  let end = bytes.length;
  while (end > 0 && (bytes[end - 1] === 0x0a || bytes[end - 1] === 0x0d)) end -= 1;
  if (end === 0) throw new ConfigError(`hsm.pin_file: ${path} is empty`);
  return bytes.subarray(0, end);
}

function writeOnce(path: string, text: string): void {
  if (!existsSync(path)) replaceFile(path, text, 0o600);
}
