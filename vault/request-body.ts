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
 * `hold` is told how many bytes the body takes: its declared length before the first is read, and more as it needs more. Where it says no, the rest is thrown away as it comes.
 *
 * @throws VaultError `payload_too_large` beyond `maxBytes`, `overloaded` where `hold` says no; RequestAborted if the stream ends early.
 */
export function readBody(request: IncomingMessage, maxBytes: number, hold: (bytes: number) => boolean): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    let room = nothing;
    let size = 0;
    let refused = false;
    let ended = false;

    const refuse = (code: 'payload_too_large' | 'overloaded'): void => {
      refused = true;
      room.fill(0);
      room = nothing;
      hold(0);
      reject(new VaultError(code));
    };
    const declared = Number(request.headers['content-length'] ?? 0);
    const most = declared > 0 ? Math.min(declared, maxBytes) : maxBytes;
    let held = 0;
    const holds = (bytes: number): boolean => {
      if (bytes <= held) return true;
      held = bytes;
      return hold(bytes);
    };
    const onData = (chunk: Buffer): void => {
      const at = size;
      size += chunk.length;
      if (!refused && size > maxBytes) refuse('payload_too_large');
      const larger = Math.max(size, Math.min(2 * room.length, most));
      if (!refused && size > room.length && !holds(larger)) refuse('overloaded');
      if (!refused) {
        if (size > room.length) {
          const grown = secretBytes(larger);
          grown.set(room);
          room.fill(0);
          room = grown;
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
    if (declared > maxBytes) refuse('payload_too_large');
    else if (!holds(declared)) refuse('overloaded');
  });
}
