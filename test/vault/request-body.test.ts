/** How a body is read: whole however it comes, wiped where it passed, and never more memory than its bytes. */
import { EventEmitter } from 'node:events';
import type { IncomingMessage } from 'node:http';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import * as fc from 'fast-check';
import t from 'tap';
import { readBody, RequestAborted } from '../../vault/request-body.ts';

const maxBytes = 1000;
const always = (): boolean => true;

/** A request whose chunks come when the test says so. */
function requestOf(headers: Record<string, string> = {}): IncomingMessage & EventEmitter {
  return Object.assign(new EventEmitter(), { headers, destroy: () => undefined }) as unknown as IncomingMessage & EventEmitter;
}

t.test('a body is what was sent, wherever it is cut, and every chunk is zeroed as it comes', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.uint8Array({ maxLength: 120 }), { maxLength: 12 }), async (parts) => {
      const request = requestOf();
      const read = readBody(request, maxBytes, always);
      const chunks = parts.map((part) => Buffer.from(part));
      const whole = Buffer.concat(chunks);
      for (const chunk of chunks) {
        request.emit('data', chunk);
        if (!chunk.equals(Buffer.alloc(chunk.length))) return false;
      }
      request.emit('end');
      if (whole.length > maxBytes) return await read.then(() => false, (error: { code?: string }) => error.code === 'payload_too_large');
      return (await read).equals(whole);
    }),
  );
});

t.test('what comes after the limit is zeroed as well, and a body of the limit itself is taken', async (t) => {
  const request = requestOf();
  const read = readBody(request, 4, always);
  const chunks = ['1234', '5678', '9'].map((text) => Buffer.from(text));
  for (const chunk of chunks) request.emit('data', chunk);
  await t.rejects(read, { code: 'payload_too_large' });
  t.same(Buffer.concat(chunks), Buffer.alloc(9));
  const exact = requestOf();
  const taken = readBody(exact, 4, always);
  for (const text of ['12', '34']) exact.emit('data', Buffer.from(text));
  exact.emit('end');
  t.same(await taken, Buffer.from('1234'));
  await t.rejects(readBody(requestOf({ 'content-length': '5' }), 4, always), { code: 'payload_too_large' });
});

t.test('a request that is cut off says so', async (t) => {
  const request = requestOf();
  const read = readBody(request, maxBytes, always);
  request.emit('data', Buffer.from('1234'));
  request.emit('close');
  t.ok((await read.catch((error: unknown) => error)) instanceof RequestAborted);
});

t.test('a body says what it takes before it takes it: at once where its length is declared, as it grows where it is not', async (t) => {
  for (const [headers, told] of [[{ 'content-length': '300' }, [300]], [{}, [100, 200, 400]]] as const) {
    const asked: number[] = [];
    const request = requestOf(headers);
    const read = readBody(request, maxBytes, (bytes) => asked.push(bytes) > 0);
    for (let n = 0; n < 3; n += 1) request.emit('data', Buffer.alloc(100, 0x31));
    request.emit('end');
    t.equal((await read).length, 300);
    t.same(asked, told);
  }
});

t.test('a body that may not be held is overloaded before it is read, gives back what it had, and is zeroed as it comes', async (t) => {
  for (const [headers, room] of [[{ 'content-length': '300' }, 299], [{}, 199]] as const) {
    const asked: number[] = [];
    const request = requestOf(headers);
    const read = readBody(request, maxBytes, (bytes) => asked.push(bytes) > 0 && bytes <= room);
    const refusal = t.rejects(read, { code: 'overloaded' });
    if (room === 299) await refusal;
    const chunks = Array.from({ length: 3 }, () => Buffer.alloc(100, 0x31));
    for (const chunk of chunks) request.emit('data', chunk);
    await refusal;
    t.same(Buffer.concat(chunks), Buffer.alloc(300));
    t.equal(asked.at(-1), 0);
  }
});

t.test('a million chunks of a byte cost no more memory than the million bytes', async (t) => {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;
  const used = (): number => {
    gc();
    const { heapUsed, external } = process.memoryUsage();
    return heapUsed + external;
  };
  const request = requestOf();
  const before = used();
  const read = readBody(request, 1024 * 1024, always);
  for (let at = 0; at < 1_000_000; at += 1) request.emit('data', Buffer.from(new ArrayBuffer(1)));
  t.ok(used() - before < 8_000_000, `${used() - before} bytes`);
  request.emit('end');
  t.equal((await read).length, 1_000_000);
});
