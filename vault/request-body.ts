/** Reads a request's raw bytes, and wipes every chunk of them on every way out: whole, too large, or cut off. */
import type { IncomingMessage } from 'node:http';
import { VaultError } from './errors.ts';
import { secretBytes } from '../hsm/secret-bytes.ts';

/** The client went away before its body was complete: there is nobody to answer. */
export class RequestAborted extends Error {}

/** Bytes of a refused body that are read and thrown away, so that the client can see the answer; beyond it the connection ends. */
const maxDrainBytes = 4 * 1024 * 1024;

/** Wipes what is still to come of a body that nobody reads: its call was refused before, and Node would throw it away as it is. */
export function discardBody(request: IncomingMessage): void {
  if (request.readableEnded || request.destroyed) return;
  let size = 0;
  request.on('data', (chunk: Buffer) => {
    chunk.fill(0);
    size += chunk.length;
    if (size > maxDrainBytes) request.destroy();
  });
}

/**
 * The body, in memory of its own that the caller wipes. All chunks that Node handed over are zeroed when this settles; of a
 * refused body, also those that arrive afterwards.
 *
 * @throws VaultError `payload_too_large` beyond `maxBytes`; RequestAborted if the stream ends early.
 */
export function readBody(request: IncomingMessage, maxBytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    let refused = false;
    let ended = false;

    const stop = (): void => {
      for (const chunk of chunks) chunk.fill(0);
      chunks.length = 0;
    };
    const refuse = (): void => {
      refused = true;
      stop();
      reject(new VaultError('payload_too_large'));
    };
    const onData = (chunk: Buffer): void => {
      size += chunk.length;
      if (refused) {
        chunk.fill(0);
        if (size > maxDrainBytes) request.destroy();
        return;
      }
      chunks.push(chunk);
      if (size > maxBytes) refuse();
    };
    const onEnd = (): void => {
      ended = true;
      if (refused) return;
      const body = secretBytes(size);
      let at = 0;
      for (const chunk of chunks) {
        body.set(chunk, at);
        at += chunk.length;
      }
      stop();
      resolve(body);
    };
    const onClose = (): void => {
      // Every request closes. Only one that was cut off is worth an error, whose stack alone would cost a twentieth of a tokenize.
      if (ended || refused) return;
      stop();
      reject(new RequestAborted('the request was cut off'));
    };
    request.on('data', onData);
    request.once('end', onEnd);
    request.once('error', onClose);
    request.once('close', onClose);
    const declared = Number(request.headers['content-length'] ?? 0);
    if (declared > maxBytes) refuse();
  });
}
