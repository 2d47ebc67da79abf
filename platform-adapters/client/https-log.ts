/** The files of a log, as the admin listener of a vault serves them to an auditor: over mutual TLS, some at once, on connections that stay open. */
import { Agent, request } from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';
import type { LogFiles } from '../../audit/log-source.ts';

export interface HttpsLogOptions {
  /** `https://host:port`; the log is below `/audit/`. */
  readonly url: string;
  /** PEM: the auditor's certificate and key, and the authority of the vault's certificate. */
  readonly cert: string | Buffer;
  readonly key: string | Buffer;
  readonly ca: string | Buffer;
  /** How long an answer may take to begin or to go on, in ms; 30,000 by default. */
  readonly timeoutMs?: number;
  /** Connections; 16 by default. */
  readonly connections?: number;
}

/** Waits before an attempt is repeated, in ms: a file that is asked for twice is the same file. */
const waits = [200, 1000, 3000];

/** `close` ends the connections. @throws Error if the URL is none, or the certificate and its key do not belong together. */
export function httpsFiles(options: HttpsLogOptions): LogFiles & { close(): void } {
  const { timeoutMs = 30_000, connections = 16 } = options;
  const base = URL.canParse(options.url) ? new URL(options.url) : null;
  if (base?.protocol !== 'https:' || base.pathname !== '/' || base.search !== '' || base.username !== '') throw new Error('the URL of the vault is to look like https://127.0.0.1:8444');
  const agent = new Agent({ keepAlive: true, maxSockets: connections, cert: options.cert, key: options.key, ca: options.ca, minVersion: 'TLSv1.3' });

  function get(path: string, maxBytes: number): Promise<{ readonly status: number; readonly body: Buffer }> {
    const { promise, resolve, reject } = Promise.withResolvers<{ status: number; body: Buffer }>();
    const call = request(new URL(`/audit/${path}`, base!), { agent, timeout: timeoutMs }, (answer) => {
      const chunks: Buffer[] = [];
      let length = 0;
      answer.on('data', (chunk: Buffer) => {
        length += chunk.length;
        if (length <= maxBytes) chunks.push(chunk);
        else {
          reject(new TooLarge());
          call.destroy();
        }
      });
      answer.on('end', () => resolve({ status: answer.statusCode ?? 0, body: Buffer.concat(chunks) }));
      answer.on('error', reject);
      answer.on('close', () => reject(new Error('cut off')));
    });
    call.on('timeout', () => {
      reject(Object.assign(new Error('silent'), { code: 'ETIMEDOUT' }));
      call.destroy();
    });
    call.on('error', reject);
    call.end();
    return promise;
  }

  return {
    async read(path, maxBytes) {
      // Not what was asked for: somebody may look for a token by a card number.
      const where = `${base.origin}/audit/${path.split('?', 1)[0]!}`;
      for (let attempt = 0; ; attempt++) {
        let failure: string;
        try {
          const { status, body } = await get(path, maxBytes);
          if (status === 200) return body;
          if (status === 404) return null;
          if (status !== 503 && status !== 429) throw new Refused(status === 403 ? `${where}: the vault does not let this certificate read the log (403)` : `${where}: the vault answered ${status}`);
          failure = `the vault answered ${status}`;
        } catch (error) {
          if (error instanceof Refused) throw error;
          if (error instanceof TooLarge) throw new Error(`${where}: is larger than it can be`, { cause: error });
          const { code = 'cut off' } = error as NodeJS.ErrnoException;
          // A certificate that is not accepted, on either side, stays so.
          if (!/^(?:E[A-Z]+|cut off)$/u.test(code) || code === 'EPROTO') throw new Error(`${base.origin}: no connection that both sides trust (${code}): are these the vault's authority and an auditor's certificate?`, { cause: error });
          // Who does not take a certificate often just hangs up.
          failure = code === 'ECONNRESET' || code === 'cut off' ? 'hangs up: it may not take this certificate' : `cannot be reached (${code})`;
          if (code === 'ECONNREFUSED' || code === 'ENOTFOUND') attempt = waits.length;
        }
        if (attempt >= waits.length) throw new Error(`${failure.startsWith('the vault') ? where : base.origin}: ${failure}`);
        await sleep(waits[attempt]);
      }
    },
    close: () => agent.destroy(),
  };
}

class TooLarge extends Error {}
class Refused extends Error {}
