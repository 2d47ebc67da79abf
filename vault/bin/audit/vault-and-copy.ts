/** The two places that a command reads a log from: a vault by its admin listener, and a copy in a folder or a bucket. */
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { directoryFiles } from '../../../audit/directory-log.ts';
import type { LogFiles, WritableLogFiles } from '../../../audit/log-source.ts';
import { httpsFiles } from '../../../platform-adapters/client/https-log.ts';
import { UsageError } from '../command-group.ts';
import type { Call } from '../command-group.ts';

/** Options of every command that speaks to a vault. */
export const vaultOptions: readonly string[] = ['url', 'cert', 'key', 'ca'];

/** What their help says of them. */
export const vaultHelp = `  --url URL     admin listener of the vault; default https://127.0.0.1:8444
  --cert FILE   certificate of an auditor, PEM; default pki/auditor.pem in the home
  --key FILE    its key; default pki/auditor.key
  --ca FILE     authority of the vault's certificate; default pki/ca.pem
  --home DIR    state of a vault on this machine; default COFRE_HOME, else .cofre beside the package
`;

/** The log as a vault serves it. The caller closes it. @throws Error of one line if a file that it needs cannot be read. */
export function vaultFiles({ options, home, env }: Call): LogFiles & { close(): void } {
  const one = (option: string): string | undefined => options[option]?.[0];
  const read = (option: string, file: string): Buffer => {
    const path = resolve(one(option) ?? join(home, 'pki', file));
    try {
      return readFileSync(path);
    } catch (error) {
      throw new Error(`${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'}): --${option} names another`, { cause: error });
    }
  };
  return httpsFiles({ url: one('url') ?? `https://127.0.0.1:${env['COFRE_ADMIN_PORT'] || '8444'}`, cert: read('cert', 'auditor.pem'), key: read('key', 'auditor.key'), ca: read('ca', 'ca.pem') });
}

/** The copy at an address that somebody gave. The caller closes it. @throws UsageError if it is no address of a copy. */
export async function copyFiles(address: string, env: NodeJS.ProcessEnv): Promise<WritableLogFiles & { close(): void }> {
  if (/^[a-z][a-z0-9+.-]*:\/\//iu.test(address) && !address.startsWith('s3://')) throw new UsageError('a copy is in a folder, or in a bucket as s3://bucket/prefix');
  if (!address.startsWith('s3://')) return { ...directoryFiles(address), close: () => undefined };
  // Only who names a bucket loads the client.
  const { s3Files } = await import('../../../platform-adapters/aws/s3-log.ts');
  return s3Files(address, env);
}
