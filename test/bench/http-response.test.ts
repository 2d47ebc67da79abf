import t from 'tap';
import { ResponseError, ResponseReader } from './http-response.ts';

interface Seen {
  status: number;
  body: string;
  keepAlive: boolean;
}

/** What a reader makes of these bytes when they arrive in pieces of one size. */
function read(bytes: string, pieceBytes: number): Seen[] {
  const seen: Seen[] = [];
  const reader = new ResponseReader(({ status, body, keepAlive }) => seen.push({ status, body: body.toString('latin1'), keepAlive }));
  const data = Buffer.from(bytes, 'latin1');
  // One buffer for all pieces, as a connection has it: what the reader keeps must be its own.
  const piece = Buffer.alloc(pieceBytes);
  for (let at = 0; at < data.length; at += pieceBytes) {
    const length = data.copy(piece, 0, at, at + pieceBytes);
    reader.feed(piece.subarray(0, length));
    piece.fill(0);
  }
  return seen;
}

const answers: [name: string, bytes: string, expected: Seen[]][] = [
  ['with a length', 'HTTP/1.1 201 Created\r\ncontent-length: 5\r\nX: y\r\n\r\nhello', [{ status: 201, body: 'hello', keepAlive: true }]],
  ['without a body', 'HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n', [{ status: 204, body: '', keepAlive: true }]],
  ['with a length in other case, closing', 'HTTP/1.1 503 No\r\nConnection: Close\r\nCONTENT-LENGTH:  2\r\n\r\nno', [{ status: 503, body: 'no', keepAlive: false }]],
  ['in chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n', [{ status: 200, body: 'abc0123456789', keepAlive: true }]],
  ['in chunks with a trailer', 'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nT: v\r\n\r\n', [{ status: 200, body: 'a', keepAlive: true }]],
  ['after an interim one', 'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx', [{ status: 200, body: 'x', keepAlive: true }]],
  ['one after another', 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 201 OK\r\nContent-Length: 2\r\n\r\nyz', [{ status: 200, body: 'x', keepAlive: true }, { status: 201, body: 'yz', keepAlive: true }]],
  ['of many kilobytes', `HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n${'q'.repeat(20_000)}`, [{ status: 200, body: 'q'.repeat(20_000), keepAlive: true }]],
];

for (const [name, bytes, expected] of answers) {
  await t.test(`an answer ${name} is read, wherever it is cut`, async (t) => {
    for (const pieceBytes of [1, 2, 3, 7, 16, 100, 8192, 65_536]) t.same(read(bytes, pieceBytes), expected);
  });
}

await t.test('what is no answer is refused', async (t) => {
  for (const bytes of ['SSH-2.0-OpenSSH\r\n\r\n', 'HTTP/1.1 200 OK\r\n\r\n', 'HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n']) {
    t.throws(() => read(bytes, 1000), ResponseError);
  }
});
