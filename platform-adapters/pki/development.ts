import { createPrivateKey, createPublicKey, generateKeyPairSync, X509Certificate, type KeyObject } from 'node:crypto';
import { existsSync, linkSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { flushFolder, replaceFile, writeBeside } from '../linux/durable-file.ts';
import { inTurn } from '../linux/folder-lock.ts';
import { makeCertificate, makeCrl, type AlternativeName, type Issuer } from './certificate.ts';

/**
 * The certificates of a development vault: an authority whose key lies on disk, one server, a handful of clients, a revocation list.
 * Never for production: whoever reads the directory can be any caller.
 */

export interface DevelopmentPkiOptions {
  /** The host part of every SPIFFE ID, e.g. `cofre.dev`. A directory belongs to one trust domain for good. */
  readonly trustDomain: string;
  readonly now: () => Date;
}

/** What a certificate is to say; everything left out is as the development set has it. */
export interface CertificateRequest {
  readonly commonName: string;
  readonly names: readonly AlternativeName[];
  readonly usages?: readonly ('serverAuth' | 'clientAuth')[];
  readonly authority?: { readonly pathLength: number };
  readonly notBefore?: Date;
  readonly notAfter?: Date;
  /** Certifies this key instead of a new one. */
  readonly key?: KeyObject;
}

export interface IssuedCertificate {
  /** PEM. */
  readonly certificate: string;
  /** PEM, PKCS #8, not encrypted. */
  readonly key: string;
  /** Lower-case hex without leading zeros. */
  readonly serial: string;
}

export interface DevelopmentPki {
  readonly directory: string;
  readonly trustDomain: string;
  /** Makes a certificate and key without writing them anywhere. */
  issueCertificate(request: CertificateRequest): IssuedCertificate;
  /**
   * Adds these serials (hex) to those revoked before and replaces `crl.pem` by a list with a higher number. With no serials it renews the list.
   * The returned list is in PEM. A serial never leaves the list, of several processes that sign at once either.
   */
  signCrl(serials: readonly string[]): string;
  /** Revokes the certificate that `<name>.pem` holds; the file stays, so that one can see it refused. Returns the serial. */
  revoke(name: string): string;
  /** Replaces `<name>.key` and `<name>.pem` by a new pair of the same caller. Does not revoke the old one. */
  reissue(name: string): IssuedCertificate;
}

/** The clients of the development set: file name, tenant, service. Operators and auditors are of no customer's tenant but of `platform`. */
export const developmentClients = [
  { name: 'checkout', tenant: 'acme', service: 'checkout' },
  { name: 'getnet', tenant: 'acme', service: 'getnet' },
  { name: 'checkout-globex', tenant: 'globex', service: 'checkout' },
  { name: 'intruder', tenant: 'acme', service: 'intruder' },
  { name: 'auditor', tenant: 'platform', service: 'auditor' },
  { name: 'operator-a', tenant: 'platform', service: 'operator-a' },
  { name: 'operator-b', tenant: 'platform', service: 'operator-b' },
] as const;

const dayMs = 86_400_000;
const authorityDays = 5 * 365;
const leafDays = 90;
const renewBelowDays = 30;
const crlDays = 30;
/** Machines disagree about the time: what is made now is valid from a little earlier. */
const skewMs = 5 * 60_000;

/**
 * Makes what is missing of the development set in `directory` and renews what runs out in less than 30 days; everything else stays byte for byte.
 * Safe to interrupt, to repeat, and to run twice at once: a private key is made once, by a link that never replaces one, and a certificate is
 * made for the key on disk and renamed into place whole, so that the two always match. `.complete` is written last.
 *
 * Files: `ca.pem`, `server.pem`, `<client>.pem`, `crl.pem` (0644), their `.key` and `revoked.json`, the authority's memory (0600); directory 0700.
 *
 * @throws Error where the directory holds an authority without its key, one of another trust domain, or one that has expired: it is never replaced.
 */
export function createDevelopmentPki(directory: string, options: DevelopmentPkiOptions): DevelopmentPki {
  const { trustDomain, now } = options;
  const at = (name: string): string => join(directory, name);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  sweep(directory);

  const { issuer, authority } = openAuthority(directory, options);

  const issueCertificate = (request: CertificateRequest): IssuedCertificate => {
    const key = request.key ?? newKey();
    const moment = now().getTime();
    const certificate = makeCertificate(
      {
        subject: { organization: organizationOf(trustDomain), commonName: request.commonName },
        names: request.names,
        usages: request.usages ?? ['clientAuth'],
        ...(request.authority === undefined ? {} : { authority: request.authority }),
        notBefore: request.notBefore ?? new Date(moment - skewMs),
        notAfter: request.notAfter ?? new Date(Math.min(moment + leafDays * dayMs, authority.validToDate.getTime())),
      },
      createPublicKey(key),
      issuer,
    );
    return { certificate, key: exportKey(key), serial: serialOf(new X509Certificate(certificate)) };
  };

  const requestFor = (name: string): CertificateRequest => {
    if (name === 'server') {
      const names = [{ type: 'dns', value: 'localhost' }, { type: 'ip', value: '127.0.0.1' }, { type: 'ip', value: '::1' }] as const;
      return { commonName: 'localhost', names, usages: ['serverAuth'] };
    }
    const client = developmentClients.find((candidate) => candidate.name === name);
    if (client === undefined) throw new Error('the development set has no certificate of this name');
    return { commonName: name, names: [{ type: 'uri', value: `spiffe://${trustDomain}/tenant/${client.tenant}/service/${client.service}` }] };
  };

  // What is read is what the last one wrote, whichever process that was: of two at once one would forget whom the other revoked.
  const signCrl = (serials: readonly string[]): string => inTurn(directory, () => signCrlAlone(serials));
  const signCrlAlone = (serials: readonly string[]): string => {
    const moment = now();
    if (existsSync(at('crl.pem')) && !existsSync(at('revoked.json'))) throw new Error(`${at('revoked.json')} is missing, without which a new revocation list would forget who was revoked`);
    const register = readRegister(at('revoked.json'));
    const listed = new Set(register.revoked.map(({ serial }) => serial));
    const added = [...new Set(serials.map((serial) => serial.toLowerCase().replace(/^0+/, '')))].filter((serial) => !listed.has(serial));
    const revoked = [...register.revoked, ...added.map((serial) => ({ serial, at: moment.toISOString() }))];
    const number = Math.max(register.number + 1, Math.floor(moment.getTime() / 1000));
    // The register first: a crash here leaves an old list and a register that the next list is made from.
    replaceFile(at('revoked.json'), `${JSON.stringify({ number, revoked }, null, 1)}\n`, 0o600);
    const crl = makeCrl(
      { number: BigInt(number), thisUpdate: moment, nextUpdate: new Date(moment.getTime() + crlDays * dayMs), revoked: revoked.map((entry) => ({ serial: entry.serial, at: new Date(entry.at) })) },
      issuer,
    );
    replaceFile(at('crl.pem'), crl, 0o644);
    return crl;
  };

  for (const name of ['server', ...developmentClients.map((client) => client.name)]) {
    const key = keyOnDisk(at(`${name}.key`));
    const request = requestFor(name);
    const present = readIfThere(at(`${name}.pem`));
    if (present !== null && isGood(present, key, authority, request.names, now())) continue;
    replaceFile(at(`${name}.pem`), issueCertificate({ ...request, key }).certificate, 0o644);
  }
  // Renewed at each start: a development vault that was off for a month must not start with a stale list.
  signCrl([]);
  replaceFile(at('.complete'), `${trustDomain}\n`, 0o644);

  return {
    directory,
    trustDomain,
    issueCertificate,
    signCrl,
    revoke: (name) => {
      const serial = serialOf(new X509Certificate(readFileSync(at(`${name}.pem`))));
      signCrl([serial]);
      return serial;
    },
    reissue: (name) => {
      const issued = issueCertificate(requestFor(name));
      // Between these two the pair does not match; the next createDevelopmentPki repairs it by a certificate for the new key.
      replaceFile(at(`${name}.key`), issued.key, 0o600);
      replaceFile(at(`${name}.pem`), issued.certificate, 0o644);
      return issued;
    },
  };
}

function openAuthority(directory: string, { trustDomain, now }: DevelopmentPkiOptions): { issuer: Issuer; authority: X509Certificate } {
  const certificatePath = join(directory, 'ca.pem');
  const keyPath = join(directory, 'ca.key');
  const subject = { organization: organizationOf(trustDomain), commonName: `Cofre development CA of ${trustDomain}` };
  const present = readIfThere(certificatePath);
  if (present !== null && readIfThere(keyPath) === null) throw new Error(`${certificatePath} is there without ca.key: move the directory away to have a new authority made`);
  const key = keyOnDisk(keyPath);
  if (present === null) {
    const moment = now().getTime();
    const fields = { subject, names: [], usages: [], authority: { pathLength: 0 }, notBefore: new Date(moment - skewMs), notAfter: new Date(moment + authorityDays * dayMs) };
    createOnce(certificatePath, makeCertificate(fields, createPublicKey(key), { subject, key }), 0o644);
  }
  const authority = certificateIn(certificatePath);
  if (!authority.checkPrivateKey(key)) throw new Error(`${certificatePath} and ca.key do not belong together: move the directory away to have a new authority made`);
  if (authority.subject !== `O=${subject.organization}\nCN=${subject.commonName}`) throw new Error(`${certificatePath} is of another trust domain: move the directory away to have a new authority made`);
  if (authority.validToDate <= now()) throw new Error(`${certificatePath} has expired: move the directory away to have a new authority made`);
  return { issuer: { subject, key }, authority };
}

/** An authority that cannot be read is an error: it is never replaced. */
function certificateIn(path: string): X509Certificate {
  const pem = readIfThere(path) ?? '';
  try {
    return new X509Certificate(pem);
  } catch {
    throw new Error(`${path} does not hold a certificate: restore it, or move the directory away to have a new authority made`);
  }
}

/** Whether a certificate on disk can stay: of this authority, for this key and these names, and not about to run out. */
function isGood(pem: Buffer, key: KeyObject, authority: X509Certificate, names: readonly AlternativeName[], moment: Date): boolean {
  try {
    const certificate = new X509Certificate(pem);
    const wanted = names.map(({ type, value }) => (type === 'uri' ? `URI:${value}` : type === 'dns' ? `DNS:${value}` : `IP Address:${value === '::1' ? '0:0:0:0:0:0:0:1' : value}`)).join(', ');
    return (
      certificate.checkPrivateKey(key) &&
      certificate.checkIssued(authority) &&
      certificate.verify(authority.publicKey) &&
      certificate.subjectAltName === wanted &&
      certificate.validFromDate <= moment &&
      certificate.validToDate.getTime() - moment.getTime() >= renewBelowDays * dayMs
    );
  } catch {
    return false;
  }
}

function organizationOf(trustDomain: string): string {
  return `Cofre development (${trustDomain})`;
}

function newKey(): KeyObject {
  return generateKeyPairSync('ec', { namedCurve: 'prime256v1' }).privateKey;
}

function exportKey(key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' }).toString();
}

/** The private key at `path`, made first where there is none. A key that cannot be read is an error: it is never replaced. */
function keyOnDisk(path: string): KeyObject {
  if (readIfThere(path) === null) createOnce(path, exportKey(newKey()), 0o600);
  try {
    return createPrivateKey(readFileSync(path));
  } catch {
    // Without its cause: an error about a private key carries nothing of it.
    throw new Error(`${path} does not hold a private key`);
  }
}

function serialOf(certificate: X509Certificate): string {
  return certificate.serialNumber.toLowerCase().replace(/^0+/, '');
}

interface Register {
  readonly number: number;
  readonly revoked: readonly { readonly serial: string; readonly at: string }[];
}

function readRegister(path: string): Register {
  const text = readIfThere(path);
  if (text === null) return { number: 0, revoked: [] };
  try {
    const { number, revoked } = JSON.parse(text.toString('utf8')) as Partial<Register>;
    if (Number.isSafeInteger(number) && Array.isArray(revoked) && revoked.every((entry: Partial<Register['revoked'][number]>) => /^[0-9a-f]+$/.test(String(entry.serial)) && Number.isFinite(Date.parse(String(entry.at))))) return { number: number!, revoked };
  } catch {
    // The parser's own message quotes the file. Said below.
  }
  throw new Error(`${path} is damaged, and without it a new revocation list would forget who was revoked: restore it`);
}

function readIfThere(path: string): Buffer | null {
  try {
    return readFileSync(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return null;
    throw new Error(`${path} cannot be read (${code ?? 'unknown'})`, { cause: error });
  }
}

/** Writes `path` whole unless it exists; of two at once the first wins and the second leaves it alone. */
function createOnce(path: string, content: string, mode: number): void {
  const written = writeBeside(path, content, mode);
  try {
    linkSync(written, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    rmSync(written, { force: true });
  }
  flushFolder(dirname(path));
}

/** Removes what a process that died left half written; a living one's files carry its process id and stay. */
function sweep(directory: string): void {
  for (const name of readdirSync(directory)) {
    const pid = /\.(\d+)-[0-9a-f-]{36}\.tmp$/.exec(name)?.[1];
    if (pid === undefined || Number(pid) === process.pid || isAlive(Number(pid))) continue;
    rmSync(join(directory, name), { force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
