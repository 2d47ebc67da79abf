/** What testssl.sh says of both listeners: TLS 1.3 and nothing older, no weak cipher, and none of the known attacks on TLS. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Appliance } from '../support/appliance.ts';
import { lastLines, runToEnd } from './program.ts';

interface Finding {
  readonly id: string;
  readonly severity: string;
  readonly finding: string;
}

const notOffered = ['SSLv2', 'SSLv3', 'TLS1', 'TLS1_1', 'TLS1_2', 'cipherlist_NULL', 'cipherlist_aNULL', 'cipherlist_EXPORT', 'cipherlist_LOW', 'cipherlist_3DES_IDEA'];
const attacks = ['heartbleed', 'CCS', 'ROBOT', 'secure_renego', 'secure_client_renego', 'CRIME_TLS', 'POODLE_SSL', 'fallback_SCSV', 'FREAK', 'DROWN', 'LOGJAM', 'BEAST', 'LUCKY13', 'RC4'];
/** What is no fault of the listener, and why. */
const excused: Readonly<Record<string, string>> = {
  cert_revocation: 'the development authority gives its list as a file, for nobody else would ask for it',
  engine_problem: 'speaks of the OpenSSL that testssl.sh itself uses',
  service: 'names no fault: without a name for what it finds there, testssl.sh leaves out its checks of HTTP',
  sessionresumption_ticket: 'could not be tried; test/vault/tls.test.ts looks at tickets',
};

/** An `openssl` that shows a client certificate, which testssl.sh cannot be told to: without one the listener ends each connection right behind the handshake, and whether that looks like a success is chance. */
function opensslAs(caller: string, pki: string, folder: string): string {
  const file = join(folder, 'openssl');
  writeFileSync(file, `#!/bin/sh\nif [ "$1" = s_client ]; then shift; exec openssl s_client -cert '${join(pki, `${caller}.pem`)}' -key '${join(pki, `${caller}.key`)}' "$@"; fi\nexec openssl "$@"\n`, { mode: 0o755 });
  return file;
}

async function scan(listener: string, port: number, authority: string, openssl: string, folder: string): Promise<string[]> {
  const report = join(folder, `${listener}.json`);
  const args = ['--quiet', '--color', '0', '--warnings', 'off', '--nodns', 'none', '--ip', '127.0.0.1', '--connect-timeout', '5', '--openssl-timeout', '10', '--openssl', openssl, '--add-ca', authority, '--jsonfile', report, '--protocols', '--std', '--fs', '--server-defaults', '--vulnerable', `https://localhost:${port}`];
  const { output } = await runToEnd('testssl', args, { timeoutMs: 300_000, cwd: folder });
  let findings: Finding[];
  try {
    findings = JSON.parse(readFileSync(report, 'utf8')) as Finding[];
  } catch {
    throw new Error(`testssl.sh left no whole report of the ${listener} listener:\n${lastLines(output)}`);
  }
  const of = (id: string): readonly Finding[] => {
    const found = findings.filter((finding) => finding.id === id);
    if (found.length === 0) throw new Error(`testssl.sh says nothing of ${id} on the ${listener} listener:\n${lastLines(output)}`);
    return found;
  };
  if (!of('TLS1_3').every(({ finding }) => finding.startsWith('offered'))) throw new Error(`the ${listener} listener does not offer TLS 1.3`);
  for (const id of notOffered) for (const { finding } of of(id)) if (!finding.startsWith('not offered')) throw new Error(`the ${listener} listener: ${id} is ${finding}`);
  for (const id of attacks) of(id);
  const grave = findings.filter(({ id, severity }) => !['OK', 'INFO'].includes(severity) && !Object.hasOwn(excused, id));
  if (grave.length > 0) throw new Error(`the ${listener} listener: ${grave.map(({ id, severity, finding }) => `${id} ${severity}: ${finding}`).join('; ')}`);
  return [`${listener}: TLS 1.3 alone, no weak cipher`, `${listener}: none of ${attacks.length} known attacks, and none of ${findings.length} findings above INFO`];
}

/** @throws what did not hold. */
export async function scanListeners(): Promise<string[]> {
  const folder = mkdtempSync(join(tmpdir(), 'cofre-testssl-'));
  const appliance = new Appliance({});
  try {
    await appliance.start();
    const pki = join(appliance.home, 'pki');
    const authority = join(pki, 'ca.pem');
    const openssl = opensslAs('checkout', pki, folder);
    return (await Promise.all([scan('API', appliance.apiPort, authority, openssl, folder), scan('admin', appliance.adminPort, authority, openssl, folder)])).flat();
  } finally {
    await appliance.destroy();
    rmSync(folder, { recursive: true, force: true });
  }
}
