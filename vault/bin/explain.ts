/** What an operator reads of an error. */
import { describe } from '../../platform-adapters/telemetry/log.ts';

/** One line: the first of a message of ours. Of Node, OpenSSL and V8 the code and the place only: their words mean little, and quote what they choke on. */
export function explain(error: unknown): string {
  if (!(error instanceof Error)) return 'failed';
  const { code, path, syscall } = error as NodeJS.ErrnoException;
  if (syscall !== undefined && path !== undefined) return `${path}: cannot be used (${code ?? syscall})`;
  const theirs = syscall !== undefined || String(code).startsWith('ERR_') || error.message === '' || [TypeError, RangeError, SyntaxError, ReferenceError, URIError].some((kind) => error instanceof kind);
  return theirs ? `failed unexpectedly: ${describe(error)} (COFRE_DEBUG=1 tells more)` : (error.message.split('\n')[0] ?? '');
}
