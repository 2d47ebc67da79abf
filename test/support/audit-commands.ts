/** `cofre audit …`, or of another group, for tests that run many commands: all of them in one process, as starting one for each takes longer than most of them do. */
import { fork } from 'node:child_process';
import { join } from 'node:path';

export interface AuditRun {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Runs commands in their order, as the launcher would. Ended with the test. */
export function auditCommands(t: { teardown(handler: () => void): void }, group: 'audit' | 'change' | 'keys' | 'operator' | 'policy' = 'audit'): (args: readonly string[], env?: Readonly<Record<string, string>>) => Promise<AuditRun> {
  const { NODE_OPTIONS: _, COFRE_HOME: __, COFRE_DEBUG: ___, COFRE_ADMIN_PORT: ____, DATABASE_URL: _____, ...inherited } = process.env;
  const child = fork(join(import.meta.dirname, 'audit-driver.ts'), { env: inherited, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  t.teardown(() => void child.kill());
  const waiting: { resolve(run: AuditRun): void; reject(error: Error): void }[] = [];
  child.on('message', (run: AuditRun) => waiting.shift()?.resolve(run));
  child.once('exit', () => {
    for (const one of waiting.splice(0)) one.reject(new Error('the process of the auditor\'s commands ended'));
  });
  return (args, env = {}) =>
    new Promise((resolve, reject) => {
      waiting.push({ resolve, reject });
      child.send({ group, args, env });
    });
}
