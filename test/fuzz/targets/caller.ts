/**
 * Names in client certificates. Where the first byte is even, the others are the names of a certificate that is then made and signed: one a line, its first letter the type. Where it is odd, they are changes to the bytes of a certificate.
 */
import { X509Certificate, createPublicKey, generateKeyPairSync } from 'node:crypto';
import { makeCertificate, type AlternativeName } from '../../../platform-adapters/pki/certificate.ts';
import { parseCaller } from '../../../vault/caller.ts';
import { VaultError } from '../../../vault/errors.ts';
import type { Target } from '../target.ts';

const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
const publicKey = createPublicKey(privateKey);
const issuer = { subject: { organization: 'Fuzz', commonName: 'Fuzz CA' }, key: privateKey };
const good = 'spiffe://cofre.dev/tenant/acme/service/checkout';
const types = { u: 'uri', d: 'dns', e: 'email', i: 'ip' } as const;

function certificateWith(names: readonly AlternativeName[]): X509Certificate {
  const now = 1_800_000_000_000;
  return new X509Certificate(makeCertificate({ subject: { organization: 'Fuzz', commonName: 'fuzz' }, names, usages: ['clientAuth'], notBefore: new Date(now), notAfter: new Date(now + 86_400_000), serial: Buffer.of(1, 2, 3) }, publicKey, issuer));
}
const whole = Buffer.from(certificateWith([{ type: 'uri', value: good }]).raw);

const isLabel = (text: string | undefined): boolean => text !== undefined && text.length > 0 && text.length <= 63 && Array.from(text).every((letter) => '0123456789abcdefghijklmnopqrstuvwxyz-'.includes(letter)) && !text.startsWith('-') && !text.endsWith('-');
const isCallerName = (uri: string): boolean => {
  const [scheme, empty, domain, tenantWord, tenant, serviceWord, service, ...more] = uri.split('/');
  return scheme === 'spiffe:' && empty === '' && domain === 'cofre.dev' && tenantWord === 'tenant' && isLabel(tenant) && serviceWord === 'service' && isLabel(service) && more.length === 0;
};

/** The name of the caller, or why it is refused. @throws whatever is no refusal. */
function nameIn(certificate: X509Certificate): { readonly name: string } | { readonly refused: string } {
  try {
    const { spiffeId, tenant, service, serial } = parseCaller(certificate, 'cofre.dev');
    if (spiffeId !== `spiffe://cofre.dev/tenant/${tenant}/service/${service}` || !/^[1-9a-f][0-9a-f]*$/u.test(serial)) throw new Error('a caller is inconsistent');
    return { name: spiffeId };
  } catch (error) {
    if (error instanceof VaultError && error.code === 'not_authorized') return { refused: (error.cause as Error).message };
    throw error;
  }
}

export const target: Target = {
  parallel: 1,
  maxBytes: 200,
  words: [`u${good}`, `\nu${good}`, 'URI:', ', URI:', ', ', '"', '\0', '/../', '%2e', 'spiffe://', 'cofre.dev', '/tenant/', '/service/', '\ndacme.example', '\nea@example.com', '\ni127.0.0.1', '-', '\u00e9', '\r', ':443', '@', '?', '#', 'A'.repeat(64)],
  run(input) {
    if (((input[0] ?? 0) & 1) === 1) {
      const bytes = Buffer.from(whole);
      for (let at = 1; at + 2 < input.length; at += 3) bytes[input.readUInt16BE(at) % bytes.length] = input[at + 2]!;
      let certificate;
      try {
        certificate = new X509Certificate(bytes);
      } catch {
        return undefined;
      }
      const found = nameIn(certificate);
      if ('name' in found && !isCallerName(found.name)) throw new Error('a name of another form is let in');
      return 'refused' in found ? `changed: ${found.refused}` : 'changed';
    }
    const lines = input.subarray(1).toString('utf8').split('\n').slice(0, 8);
    const names = lines.flatMap((line): AlternativeName[] => {
      const type = types[line[0] as keyof typeof types];
      if (type === undefined) return [];
      return [{ type, value: type === 'ip' ? '127.0.0.1' : line.slice(1) }];
    });
    const found = nameIn(certificateWith(names));
    const uris = names.filter(({ type }) => type === 'uri');
    const [only] = uris;
    const right = uris.length === 1 && only !== undefined && isCallerName(only.value);
    if ('name' in found && !(right && found.name === only.value)) throw new Error('a certificate is let in that does not say who calls');
    // Odd names of other types may make a certificate ambiguous.
    if ('refused' in found && right && names.every(({ type, value }) => type === 'uri' || /^[a-z0-9.@-]*$/u.test(value))) throw new Error('a good certificate is refused');
    return `${[...new Set(names.map(({ type }) => type))].sort().join()} ${Math.min(2, uris.length)}: ${'refused' in found ? found.refused : 'let in'}`;
  },
};
