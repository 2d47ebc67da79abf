/** Reads a request's raw bytes, and wipes every chunk of them on every way out: whole, too large, or cut off. */
import type { IncomingMessage } from 'node:http';
import { VaultError } from './errors.ts';
import { secretBytes } from '../hsm/secret-bytes.ts';

/** The client went away before its body was complete: there is nobody to answer. */
export class RequestAborted extends Error {}

/** Bytes of a refused body that are read and thrown away, so that the client can see the answer; beyond it the connection ends. */
const maxDrainBytes = 4 * 1024 * 1024;

const nothing = secretBytes(0);

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
 * The body, in memory of its own that the caller wipes. Each chunk that Node hands over is copied and zeroed as it comes, also of a refused body: to keep them would cost some 400
 * bytes for each, and a client may send a byte a chunk (of 100 KB on the wire 7 MB).
 *
 * @throws VaultError `payload_too_large` beyond `maxBytes`; RequestAborted if the stream ends early.
 */
export function readBody(request: IncomingMessage, maxBytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    let room = nothing;
    let size = 0;
    let refused = false;
    let ended = false;

    const refuse = (): void => {
      refused = true;
      room.fill(0);
      reject(new VaultError('payload_too_large'));
    };
    const onData = (chunk: Buffer): void => {
      const at = size;
      size += chunk.length;
      if (!refused && size > maxBytes) refuse();
      if (!refused) {
        if (size > room.length) {
          const larger = secretBytes(Math.max(size, Math.min(2 * room.length, maxBytes)));
          larger.set(room);
          room.fill(0);
          room = larger;
        }
        room.set(chunk, at);
      }
      chunk.fill(0);
      if (refused && size > maxDrainBytes) request.destroy();
    };
    const onEnd = (): void => {
      ended = true;
      if (refused) return;
      resolve(size === room.length ? room : room.subarray(0, size));
    };
    const onClose = (): void => {
      // Every request closes. Only one that was cut off is worth an error, whose stack alone would cost a twentieth of a tokenize.
      if (ended || refused) return;
      room.fill(0);
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
