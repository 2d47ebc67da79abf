/**
 * The process's own messages, as JSON lines on standard error. By allow-list: a message is a constant, and its fields are the ones
 * named here, so there is no way to log a body, a header or an error's own text, which could quote input.
 */
import { pino } from 'pino';

/** Every field that a message may carry. */
export interface LogFields {
  readonly role?: string;
  /** SPIFFE id of a certificate that was verified. */
  readonly caller?: string;
  readonly writer?: string;
  readonly request_id?: string;
  readonly kind?: string;
  /** Name and code of an error, never its message: see `describe`. */
  readonly error?: string;
  readonly reason?: string;
  readonly port?: number;
  readonly count?: number;
  readonly pid?: number;
  readonly ms?: number;
}

export interface Log {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
}

const allowed: readonly (keyof LogFields)[] = ['role', 'caller', 'writer', 'request_id', 'kind', 'error', 'reason', 'port', 'count', 'pid', 'ms'];

/** A log at `level` and above. Fields beyond the allow-list are dropped even where the types were got around. */
export function createLog(level: string, destination: { write(line: string): void } = process.stderr): Log {
  const logger = pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime, formatters: { level: (label) => ({ level: label }) } }, destination);
  const at = (kind: 'debug' | 'info' | 'warn' | 'error') => (message: string, fields: LogFields = {}): void => {
    const kept: Record<string, string | number> = {};
    for (const name of allowed) {
      const value = fields[name];
      if (value !== undefined) kept[name] = typeof value === 'string' ? value.slice(0, 300) : value;
    }
    logger[kind](kept, message);
  };
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

/**
 * An error as it may be logged: its class, its code (SQLSTATE, errno, PKCS#11 or ours) and where in our code it arose, for it and its
 * causes. Never a message: PostgreSQL quotes values in its own, and so may others.
 */
export function describe(error: unknown): string {
  const parts: string[] = [];
  for (let current = error; current instanceof Error && parts.length < 4; current = current.cause) {
    const code = 'code' in current && typeof current.code === 'string' ? `(${current.code})` : 'code' in current && typeof current.code === 'number' ? `(0x${current.code.toString(16)})` : '';
    const frame = /\n\s+at .*?((?:vault|hsm|audit|platform-adapters)\/[\w./-]+:\d+)/u.exec(framesOf(current))?.[1];
    parts.push(`${current.name}${code}${frame === undefined ? '' : ` at ${frame}`}`);
  }
  return parts.length === 0 ? typeof error : parts.join(' < ');
}

/** The stack behind the message, whose own lines may look like frames. */
function framesOf({ stack = '', message }: Error): string {
  const at = stack.indexOf(message);
  return at < 0 ? '' : stack.slice(at + message.length);
}
