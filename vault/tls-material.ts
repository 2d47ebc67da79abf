/** What a TLS listener is made of: its certificate, its key and the authorities of its clients, read from files and checked together. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import { authoritiesOf } from './revocation.ts';

export interface TlsFiles {
  /** The server's certificate, followed by its intermediates if any. PEM. */
  readonly certificate: string;
  /** PEM, not encrypted. */
  readonly key: string;
  /** The authorities whose client certificates are accepted: issuing authorities, each with the chain above it. PEM. */
  readonly ca: string;
}

export interface TlsMaterial {
  readonly certificate: Buffer;
  readonly key: Buffer;
  readonly ca: Buffer;
  readonly authorities: readonly X509Certificate[];
  /** Of the three files as they were before they were read. */
  readonly files: string;
}

/** Whether one of these authorities has issued the certificate itself, and not one below it. */
export function isIssuedBy(certificate: X509Certificate, authorities: readonly X509Certificate[]): boolean {
  return authorities.some((authority) => certificate.checkIssued(authority) && certificate.verify(authority.publicKey));
}

/** Reads the three files. @throws Error naming the file at fault, and nothing of what it holds: also of a key that is not the certificate's, and of one that is not valid now. */
export async function readMaterial(files: TlsFiles): Promise<TlsMaterial> {
  const signature = await signatureOf(files).catch((error: NodeJS.ErrnoException) => {
    throw new Error(`${error.path ?? files.certificate}: cannot be read (${error.code ?? 'unknown'})`);
  });
  const read = (file: string): Promise<Buffer> =>
    readFile(file).catch((error: NodeJS.ErrnoException) => {
      throw new Error(`${file}: cannot be read (${error.code ?? 'unknown'})`);
    });
  const [certificate, key, ca] = await Promise.all([read(files.certificate), read(files.key), read(files.ca)]);
  const authorities = attempt(() => authoritiesOf(ca), `${files.ca}: does not hold certificates of authorities`).map((authority) => authority.certificate);
  const leaf = attempt(() => new X509Certificate(certificate), `${files.certificate}: does not hold a certificate`);
  const secret = attempt(() => createPrivateKey(key), `${files.key}: does not hold a private key`);
  if (!leaf.checkPrivateKey(secret)) throw new Error(`${files.key}: is not the key of ${files.certificate}`);
  const now = new Date();
  if (leaf.validFromDate > now || leaf.validToDate < now) throw new Error(`${files.certificate}: is not valid at this time`);
  // What OpenSSL minds, a key that is too small for instance, must show here and not when the server takes it.
  attempt(() => createSecureContext({ cert: certificate, key, ca }), `${files.certificate}: OpenSSL does not accept the pair`);
  return { certificate, key, ca, authorities, files: signature };
}

/** Without the inner error: OpenSSL's words about a key are not for a log. */
function attempt<T>(parse: () => T, message: string): T {
  try {
    return parse();
  } catch {
    throw new Error(message);
  }
}

/** Tells one state of the files from another without reading them. @throws what stat throws. */
export async function signatureOf(files: TlsFiles): Promise<string> {
  const stats = await Promise.all([files.certificate, files.key, files.ca].map((file) => stat(file, { bigint: true })));
  return stats.map(({ mtimeNs, size, ino }) => `${mtimeNs}:${size}:${ino}`).join(' ');
}
