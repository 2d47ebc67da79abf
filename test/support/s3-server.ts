/** What a bucket does for this project: GET and PUT of whole objects, `If-None-Match: *`, and the errors that a client must tell apart. It checks no signatures. */
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface S3Server {
  readonly url: string;
  /** By `/bucket/key`. */
  readonly objects: Map<string, Buffer>;
  readonly requests: { readonly method: string; readonly path: string; readonly ifNoneMatch: string | undefined; readonly signed: boolean }[];
  /** Answers in place of the bucket, if it returns true; `apply` does what was asked for. */
  instead: ((request: IncomingMessage, response: ServerResponse, apply: () => void) => boolean) | null;
}

export function s3Error(response: ServerResponse, status: number, code: string): void {
  response.writeHead(status, { 'content-type': 'application/xml' }).end(`<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${code}</Code><Message>told</Message></Error>`);
}

export async function serveS3(t: { teardown(callback: () => unknown): unknown }): Promise<S3Server> {
  const state: { -readonly [name in keyof S3Server]: S3Server[name] } = { url: '', objects: new Map<string, Buffer>(), requests: [], instead: null };
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const path = decodeURIComponent(request.url!.replace(/\?.*/u, ''));
      const ifNoneMatch = request.headers['if-none-match'];
      state.requests.push({ method: request.method!, path, ifNoneMatch, signed: request.headers.authorization?.startsWith('AWS4-HMAC-SHA256 ') === true });
      const body = unchunked(Buffer.concat(chunks), request);
      if (state.instead?.(request, response, () => state.objects.set(path, body)) === true) return;
      const there = state.objects.get(path);
      if (request.method === 'PUT') {
        if (ifNoneMatch === '*' && there !== undefined) {
          s3Error(response, 412, 'PreconditionFailed');
          return;
        }
        state.objects.set(path, body);
        response.writeHead(200, { etag: `"${createHash('md5').update(body).digest('hex')}"` }).end();
      } else if (there === undefined) s3Error(response, 404, 'NoSuchKey');
      else response.writeHead(200, { 'content-length': String(there.length), 'content-type': 'application/octet-stream' }).end(there);
    });
  });
  server.listen(0, '127.0.0.1');
  await new Promise((done) => server.once('listening', done));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  state.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return state;
}

/** Bodies may come in chunks with a checksum behind them (`aws-chunked`). */
function unchunked(body: Buffer, request: IncomingMessage): Buffer {
  if (request.headers['content-encoding'] !== 'aws-chunked' && request.headers['x-amz-decoded-content-length'] === undefined) return body;
  const parts: Buffer[] = [];
  for (let at = 0; ; ) {
    const line = body.indexOf('\r\n', at);
    const length = Number.parseInt(body.toString('latin1', at, line), 16);
    if (!(length > 0)) return Buffer.concat(parts);
    parts.push(body.subarray(line + 2, line + 2 + length));
    at = line + 2 + length + 2;
  }
}
