import { spawn } from 'node:child_process';

/** How a program ended, and all that it said. */
export interface Ended {
  readonly code: number | null;
  readonly output: string;
}

/**
 * Runs a program to its end, without input. It ends with this process, however that one ends.
 *
 * @throws Error if it cannot be started, or with the end of its output if it takes longer: then it is killed, and all that it started.
 */
export async function runToEnd(program: string, args: readonly string[], options: { readonly timeoutMs: number; readonly env?: NodeJS.ProcessEnv; readonly cwd?: string }): Promise<Ended> {
  const { promise, resolve, reject } = Promise.withResolvers<Ended>();
  const child = spawn('setpriv', ['--pdeathsig', 'TERM', '--', program, ...args], { stdio: ['ignore', 'pipe', 'pipe'], detached: true, env: options.env ?? process.env, ...(options.cwd === undefined ? {} : { cwd: options.cwd }) });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  const late = setTimeout(() => {
    // The group that it leads.
    process.kill(-child.pid!, 'SIGKILL');
    reject(new Error(`${program} did not end within ${options.timeoutMs / 1000} s:\n${lastLines(output)}`));
  }, options.timeoutMs);
  child.once('error', reject);
  child.once('close', (code) => resolve({ code, output }));
  try {
    return await promise;
  } finally {
    clearTimeout(late);
  }
}

export function lastLines(text: string, count = 60): string {
  return text.trim().split('\n').slice(-count).join('\n');
}
