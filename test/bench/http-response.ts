/** One answer. The object and its body are lent for the duration of a callback and used again for the next answer. */
export interface Response {
  status: number;
  /** Decoded from chunks, without the head. */
  body: Buffer;
  /** False if the server closes the connection after it. */
  keepAlive: boolean;
}

const headEnd = Buffer.from('\r\n\r\n', 'latin1');
const cr = 0x0d;
const colon = 0x3a;
const space = 0x20;

/** An answer that this reader does not understand. `message` is constant. */
export class ResponseError extends Error {
  override readonly name = 'ResponseError';
}

/**
 * Cuts the bytes of one HTTP/1.1 connection (RFC 9112) into answers: Content-Length and chunked bodies, 1xx skipped, no pipelining. It makes
 * no string and, when an answer comes in one piece, no copy: a load generator shares its cores with what it measures.
 */
export class ResponseReader {
  readonly #response: Response = { status: 0, body: Buffer.alloc(0), keepAlive: true };
  readonly #onResponse: (response: Response) => void;
  #held = Buffer.alloc(0);
  #heldLength = 0;
  #needed = 0;

  constructor(onResponse: (response: Response) => void) {
    this.#onResponse = onResponse;
  }

  /** Takes the next bytes, borrowed during the call. Throws ResponseError for what is no HTTP answer, or one that only the end of the connection would end. */
  feed(chunk: Buffer): void {
    let data = chunk;
    if (this.#heldLength > 0) {
      this.#hold(chunk);
      if (this.#heldLength < this.#needed) return;
      data = this.#held.subarray(0, this.#heldLength);
    }
    const used = this.#parse(data);
    if (used === 0) {
      if (this.#heldLength === 0) this.#hold(chunk);
      return;
    }
    this.#heldLength = 0;
    this.#needed = 0;
    if (used < data.length) this.feed(Buffer.from(data.subarray(used)));
  }

  #hold(chunk: Buffer): void {
    const length = this.#heldLength + chunk.length;
    if (length > this.#held.length || this.#needed > this.#held.length) {
      const grown = Buffer.allocUnsafe(Math.max(length * 2, this.#needed, 4096));
      this.#held.copy(grown, 0, 0, this.#heldLength);
      this.#held = grown;
    }
    chunk.copy(this.#held, this.#heldLength);
    this.#heldLength = length;
  }

  /** Bytes of `data` that one answer took, 0 if it is not complete. */
  #parse(data: Buffer): number {
    const end = data.indexOf(headEnd);
    if (end === -1) return 0;
    if (end < 12 || data[0] !== 0x48 || data[4] !== 0x2f || data[8] !== space) throw new ResponseError('not an HTTP answer');
    const status = (data[9]! - 0x30) * 100 + (data[10]! - 0x30) * 10 + (data[11]! - 0x30);
    const bodyStart = end + headEnd.length;
    if (status < 200) return bodyStart;

    let length = -1;
    let chunked = false;
    let keepAlive = true;
    for (let line = data.indexOf(cr) + 2; line < end; ) {
      const next = data.indexOf(cr, line);
      if (isField(data, line, 'content-length')) length = decimal(data, line + 15, next);
      else if (isField(data, line, 'transfer-encoding')) chunked = true;
      else if (isField(data, line, 'connection')) keepAlive = !/close/i.test(data.toString('latin1', line, next));
      line = next + 2;
    }
    const response = this.#response;
    response.status = status;
    response.keepAlive = keepAlive;
    if (chunked) {
      const bodyEnd = this.#parseChunks(data, bodyStart);
      if (bodyEnd === 0) return 0;
      this.#onResponse(response);
      return bodyEnd;
    }
    if (status === 204 || status === 304) length = 0;
    if (length === -1) throw new ResponseError('an answer without a length');
    const bodyEnd = bodyStart + length;
    if (data.length < bodyEnd) {
      this.#needed = bodyEnd;
      return 0;
    }
    response.body = data.subarray(bodyStart, bodyEnd);
    this.#onResponse(response);
    return bodyEnd;
  }

  /** RFC 9112 7.1; trailers are skipped. 0 if not complete. */
  #parseChunks(data: Buffer, start: number): number {
    const parts: Buffer[] = [];
    for (let at = start; ; ) {
      const lineEnd = data.indexOf(cr, at);
      if (lineEnd === -1 || lineEnd + 2 > data.length) return 0;
      const size = Number.parseInt(data.toString('latin1', at, lineEnd), 16);
      if (Number.isNaN(size)) throw new ResponseError('a chunk without a size');
      at = lineEnd + 2;
      if (size === 0) {
        for (;;) {
          const trailerEnd = data.indexOf(cr, at);
          if (trailerEnd === -1 || trailerEnd + 2 > data.length) return 0;
          const empty = trailerEnd === at;
          at = trailerEnd + 2;
          if (empty) break;
        }
        this.#response.body = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
        return at;
      }
      if (at + size + 2 > data.length) return 0;
      parts.push(data.subarray(at, at + size));
      at += size + 2;
    }
  }
}

/** Whether the field line at `at` has this name, given in lower case. */
function isField(data: Buffer, at: number, name: string): boolean {
  if (data[at + name.length] !== colon) return false;
  for (let i = 0; i < name.length; i++) if ((data[at + i]! | 0x20) !== name.charCodeAt(i)) return false;
  return true;
}

function decimal(data: Buffer, from: number, to: number): number {
  let value = -1;
  for (let i = from; i < to; i++) {
    const digit = data[i]! - 0x30;
    if (digit >= 0 && digit <= 9) value = (value === -1 ? 0 : value) * 10 + digit;
    else if (data[i] !== space) throw new ResponseError('a length that is no number');
  }
  return value;
}
