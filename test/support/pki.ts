import { createPrivateKey, generateKeyPairSync, X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';

import { makeCrl, type CrlFields } from '../../platform-adapters/pki/certificate.ts';
import { createDevelopmentPki, type CertificateRequest, type DevelopmentPki } from '../../platform-adapters/pki/development.ts';

/** What a client brings to a handshake: PEM. */
export interface Credentials {
  readonly cert: string;
  readonly key: string;
}

export interface TestPki {
  readonly pki: DevelopmentPki;
  readonly directory: string;
  /** Path of a file of the set. */
  readonly path: (file: string) => string;
  /** What the files `<name>.pem` and `<name>.key` hold now. */
  readonly credentials: (name: string) => Credentials;
  /** A certificate of this authority, as odd as the request makes it; by default a client's with the URI name of acme's checkout. */
  readonly issue: (request?: Partial<CertificateRequest>) => Credentials;
  /** A revocation list of this authority, as odd as the fields make it: fresh and empty with a high number by default. PEM. */
  readonly crl: (fields?: Partial<CrlFields>) => string;
  /** Opens a TLS connection to the loopback port, trusting this authority; resolves when the handshake is done as the client sees it. */
  readonly connect: (port: number, credentials: Credentials | null, options?: ConnectionOptions) => Promise<TLSSocket>;
}

const sessions = new WeakMap<TLSSocket, Buffer>();

/** The ticket that the server gave on this connection. There is one once an answer was read, because tickets are sent before it. */
export function sessionOf(socket: TLSSocket): Buffer {
  const session = sessions.get(socket);
  if (session === undefined) throw new Error('the server gave no ticket on this connection');
  return session;
}

interface Cleanup {
  teardown(callback: () => unknown): unknown;
}

/** A development set in a directory of its own, removed with the test. */
export function testPki(t: Cleanup, options: { readonly trustDomain?: string; readonly now?: () => Date } = {}): TestPki {
  const directory = mkdtempSync(join(tmpdir(), 'cofre-pki-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const trustDomain = options.trustDomain ?? 'cofre.dev';
  const pki = createDevelopmentPki(directory, { trustDomain, now: options.now ?? (() => new Date()) });
  const path = (file: string): string => join(directory, file);
  const read = (file: string): string => readFileSync(path(file), 'utf8');
  return {
    pki,
    directory,
    path,
    credentials: (name) => ({ cert: read(`${name}.pem`), key: read(`${name}.key`) }),
    issue: (request = {}) => {
      const issued = pki.issueCertificate({ commonName: 'odd', names: [{ type: 'uri', value: `spiffe://${trustDomain}/tenant/acme/service/checkout` }], ...request });
      return { cert: issued.certificate, key: issued.key };
    },
    crl: (fields = {}) => {
      const [organization = '', commonName = ''] = new X509Certificate(read('ca.pem')).subject.split('\n').map((part) => part.slice(part.indexOf('=') + 1));
      const moment = Date.now();
      return makeCrl(
        { number: BigInt(moment), thisUpdate: new Date(moment), nextUpdate: new Date(moment + 86_400_000), revoked: [], ...fields },
        { subject: { organization, commonName }, key: createPrivateKey(read('ca.key')) },
      );
    },
    connect: (port, credentials, extra = {}) =>
      new Promise((resolve, reject) => {
        const socket = connect({ host: '127.0.0.1', servername: 'localhost', port, ca: read('ca.pem'), ...credentials, ...extra });
        t.teardown(() => socket.destroy());
        socket.on('session', (session) => sessions.set(socket, session));
        socket.once('secureConnect', () => {
          socket.off('error', reject);
          // A server that refuses a certificate under TLS 1.3 does so after this: whoever waits for it listens for 'close'.
          socket.on('error', () => {});
          resolve(socket);
        });
        socket.once('error', reject);
      }),
  };
}

/** The serial of a certificate in PEM, in the form that the vault compares. */
export function serialOf(pem: string): string {
  return new X509Certificate(pem).serialNumber.toLowerCase().replace(/^0+/, '');
}

/** A P-256 key that belongs to nothing. */
export function strangeKey(): string {
  return generateKeyPairSync('ec', { namedCurve: 'prime256v1' }).privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
}

/** Replaces a file at once, as a certificate manager does: whoever looks sees the old one or the new one. */
export function put(path: string, content: string | Uint8Array): void {
  writeFileSync(`${path}.put`, content);
  renameSync(`${path}.put`, path);
}
