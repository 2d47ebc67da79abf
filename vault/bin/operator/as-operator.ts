/** What the commands of an operator share: the certificate, the session that is kept between them, and a password that is not shown. */
import { readFileSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { callAdmin } from '../../../platform-adapters/client/admin-client.ts';
import { replaceFile } from '../../../platform-adapters/linux/durable-file.ts';
import { UsageError } from '../command-group.ts';
import type { Call } from '../command-group.ts';

export const operatorOptions: readonly string[] = ['as', 'url', 'cert', 'key', 'ca'];

export const operatorHelp = `  --as NAME     whose certificate in the home's pki folder: pki/NAME.pem, pki/NAME.key; the session is kept as session-NAME in the home
  --cert FILE   the operator's certificate, PEM, where it is elsewhere
  --key FILE    its key
  --url URL     admin listener of the vault; default https://127.0.0.1:8444
  --ca FILE     authority of the vault's certificate; default pki/ca.pem
  --home DIR    state of a vault on this machine; default COFRE_HOME, else .cofre beside the package
`;

/** A call as the operator of this command, with the session that is kept. @throws as callAdmin; Error of one line for a file that cannot be read. */
export async function asOperator(call: Call, method: 'GET' | 'POST', path: string, body?: unknown): Promise<Readonly<Record<string, unknown>>> {
  const one = (option: string): string | undefined => call.options[option]?.[0];
  const name = nameOf(call);
  const read = (option: string, file: string): Buffer => readOrExplain(resolve(one(option) ?? join(call.home, 'pki', file)), `--${option} names another`);
  return await callAdmin(
    {
      url: one('url') ?? `https://127.0.0.1:${call.env['COFRE_ADMIN_PORT'] || '8444'}`,
      cert: read('cert', `${name}.pem`),
      key: read('key', `${name}.key`),
      ca: read('ca', 'ca.pem'),
      session: readSession(call),
    },
    method,
    path,
    body,
  );
}

/** Kept readable for its owner alone; it ends by itself in hours, and is of use with the certificate only. */
export function keepSession(call: Call, session: string): void {
  replaceFile(sessionFile(call), session, 0o600);
}

export function forgetSession(call: Call): void {
  rmSync(sessionFile(call), { force: true });
}

function readSession(call: Call): string | null {
  try {
    return readFileSync(sessionFile(call), 'utf8').trim();
  } catch {
    return null;
  }
}

function sessionFile(call: Call): string {
  return join(call.home, `session-${nameOf(call)}`);
}

function nameOf({ options }: Call): string {
  const name = options['as']?.[0] ?? 'operator';
  if (!/^[a-z0-9-]{1,63}$/u.test(name)) throw new UsageError('--as is a name of lower-case letters, digits and hyphens');
  return name;
}

/** The password from `--password-file` (its first line), or as it is typed, without being shown. */
export async function readPassword(call: Call, prompt: string): Promise<string> {
  const file = call.options['password-file']?.[0];
  if (file !== undefined) return readOrExplain(resolve(file), '--password-file names another').toString('utf8').split('\n', 1)[0]!;
  return await ask(prompt, false);
}

/** What is typed, up to the end of the line. @throws UsageError where nobody can type. */
export async function ask(prompt: string, shown: boolean): Promise<string> {
  const { stdin } = process;
  if (!stdin.isTTY) throw new UsageError(`nobody can type ${prompt} here: give it by an option`);
  process.stderr.write(`${prompt}: `);
  stdin.setRawMode(!shown);
  stdin.setEncoding('utf8');
  const { promise, resolve: done, reject } = Promise.withResolvers<string>();
  let text = '';
  const hear = (chunk: string): void => {
    for (const character of chunk) {
      if (character === '\n' || character === '\r') return done(text);
      if (character === '\u0003') return reject(new UsageError('interrupted'));
      if (character === '\u007f' || character === '\b') text = text.slice(0, -1);
      else text += character;
    }
  };
  stdin.on('data', hear);
  stdin.resume();
  try {
    return await promise;
  } finally {
    stdin.off('data', hear);
    stdin.setRawMode(false);
    stdin.pause();
    if (!shown) process.stderr.write('\n');
  }
}

function readOrExplain(path: string, otherwise: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new Error(`${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'}): ${otherwise}`, { cause: error });
  }
}
