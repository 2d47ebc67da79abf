/** Calls of the admin listener, as an operator makes them: JSON over mutual TLS, with a session where there is one. */
import { request } from 'node:https';

export interface AdminClientOptions {
  /** `https://host:port`. */
  readonly url: string;
  /** PEM: the operator's certificate and key, and the authority of the vault's certificate. */
  readonly cert: string | Buffer;
  readonly key: string | Buffer;
  readonly ca: string | Buffer;
  readonly session: string | null;
  /** How long an answer may take, in ms; 30,000 by default. */
  readonly timeoutMs?: number;
}

/** What the vault refused, by its code. The message is one line for a person. */
export class AdminRefusal extends Error {
  readonly code: string;
  readonly status: number;

  constructor(code: string, status: number, title: string, requestId: string) {
    super(`${title} (${code}, request ${requestId})`);
    this.code = code;
    this.status = status;
  }
}

const maxAnswerBytes = 8 * 1024 * 1024;

/** @throws AdminRefusal for a refusal, Error of one line where the vault cannot be reached or does not speak as it should. */
export async function callAdmin(options: AdminClientOptions, method: 'GET' | 'POST', path: string, body?: unknown): Promise<Readonly<Record<string, unknown>>> {
  const base = URL.canParse(options.url) ? new URL(options.url) : null;
  if (base?.protocol !== 'https:' || base.pathname !== '/' || base.search !== '' || base.username !== '') throw new Error('the URL of the vault is to look like https://127.0.0.1:8444');
  const { promise, resolve, reject } = Promise.withResolvers<{ status: number; text: string }>();
  const bytes = body === undefined ? null : Buffer.from(JSON.stringify(body), 'utf8');
  const call = request(
    new URL(path, base),
    {
      method,
      cert: options.cert,
      key: options.key,
      ca: options.ca,
      minVersion: 'TLSv1.3',
      agent: false,
      timeout: options.timeoutMs ?? 30_000,
      headers: { ...(bytes === null ? {} : { 'content-type': 'application/json', 'content-length': bytes.length }), ...(options.session === null ? {} : { authorization: `Bearer ${options.session}` }) },
    },
    (answer) => {
      const chunks: Buffer[] = [];
      let length = 0;
      answer.on('data', (chunk: Buffer) => {
        length += chunk.length;
        if (length > maxAnswerBytes) call.destroy(new Error('the answer is larger than it can be'));
        else chunks.push(chunk);
      });
      answer.on('end', () => resolve({ status: answer.statusCode ?? 0, text: Buffer.concat(chunks).toString('utf8') }));
      answer.on('error', reject);
    },
  );
  call.on('timeout', () => call.destroy(Object.assign(new Error('silent'), { code: 'ETIMEDOUT' })));
  call.on('error', (error: NodeJS.ErrnoException) => reject(new Error(`${base.origin}: cannot be reached, or does not trust this certificate (${error.code ?? 'unknown'})`, { cause: error })));
  call.end(bytes ?? undefined);
  const { status, text: received } = await promise.finally(() => bytes?.fill(0));
  let answer: Readonly<Record<string, unknown>>;
  try {
    answer = JSON.parse(received) as Readonly<Record<string, unknown>>;
  } catch (error) {
    throw new Error(`${base.origin}: the answer is not JSON (${status})`, { cause: error });
  }
  const text = (name: string): string => (typeof answer[name] === 'string' ? answer[name] : 'unknown');
  if (status >= 400) throw new AdminRefusal(text('code'), status, text('title'), text('request_id'));
  return answer;
}
