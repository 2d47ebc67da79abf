/**
 * What body.ts and card-scan.ts decode into stays allocated, as code points and digit values, which test/memory does not look for. So every
 * array that could hold them is listened for as it is made, and looked at after every call.
 */
import t from 'tap';
import type { Where } from '../../vault/body.ts';

const VISA = '4111111111111111';
const made: { readonly name: string; readonly bytes: Uint8Array }[] = [];
const { ArrayBuffer: OriginalBuffer, Uint32Array: OriginalArray } = globalThis;

/** Runs `work` and keeps hold of the memory that it makes: code points are in Uint32Arrays, secretBytes() makes ArrayBuffers. */
async function listening<T>(work: () => T | Promise<T>): Promise<T> {
  globalThis.ArrayBuffer = class ArrayBuffer extends OriginalBuffer {
    constructor(size: number) {
      super(size);
      made.push({ name: `ArrayBuffer of ${size}`, bytes: new Uint8Array(this) });
    }
  } as typeof OriginalBuffer;
  globalThis.Uint32Array = class Uint32Array extends OriginalArray {
    constructor(length: number) {
      super(length);
      made.push({ name: `Uint32Array of ${length}`, bytes: new Uint8Array(this.buffer) });
    }
  } as unknown as typeof OriginalArray;
  try {
    return await work();
  } finally {
    globalThis.ArrayBuffer = OriginalBuffer;
    globalThis.Uint32Array = OriginalArray;
  }
}

const { takeCards, holdsCardNumber } = await listening(() => import('../../vault/body.ts'));
const kept = made.length;
const left = (): string[] => made.filter(({ bytes }) => bytes.some((byte) => byte !== 0)).map(({ name }) => name);

t.test('it listens: code points, digits and the ring of the scan are there, and empty', async (t) => {
  t.match(made.map(({ name }) => name).toSorted(), ['ArrayBuffer of 19', 'ArrayBuffer of 32', 'ArrayBuffer of 32', 'ArrayBuffer of 32', 'Uint32Array of 1024']);
  t.same(left(), []);
});

t.test('nothing of a body is left in them, whatever came of it', async (t) => {
  const escaped = Array.from(VISA).map((digit) => String.raw`\u003${digit}`).join('');
  const bodies: readonly (readonly [where: Where, body: string])[] = [
    ['single', `{"pan":"${VISA}","expiry":"2027-12"}`],
    ['single', `{"pan":"${escaped}"}`],
    ['single', `{"pan":"${escaped.slice(0, -1)}2"}`],
    ['single', String.raw`{"pan":"4111 1111 1111 1111 \n"}`],
    ['single', `{"pan":"${VISA}=2712101"}`],
    ['single', `{"pan":null,"note":"4111 1111 1111 1111"}`],
    ['single', `{"note":"1234567890123"}`],
    ['single', `{"note":"${escaped}"}`],
    ['single', `{"note":"${'a'.repeat(2000)} ${VISA}"}`],
    ['single', `{"note":"${'a'.repeat(2000)} 123456789012"}`],
    ['single', `{"${VISA}":1}`],
    ['single', `{"${escaped}":1}`],
    ['single', `{"a":${VISA}}`],
    ['single', `{"a":4.111111111111111e15}`],
    ['single', `{"a":4.111111111111112e15}`],
    ['single', `{"a":${VISA}.5}`],
    ['none', `{"token":"tok_x","note":"%B${VISA}^DOE/JOHN^27121010000000000000?"}`],
    ['batch', `{"items":[{"pan":"${VISA}"},{"pan":"${escaped}"},{"note":"${VISA}"},{"a":${VISA}}]}`],
    ['batch', `{"items":[{"pan":"${VISA}"}],"note":"${VISA}"}`],
    ['batch', `{"items":[{"pan":"${VISA}"}`],
  ];
  for (const [where, body] of bodies) {
    await listening(() => {
      using taken = takeCards(Buffer.from(body), where);
      return taken.ok;
    });
    t.same(left(), [], body.slice(0, 60));
  }
  t.ok(made.length > kept, 'cards and long texts had memory of their own');
});

t.test('nothing of a text is left in them', async (t) => {
  const escaped = Array.from(VISA).map((digit) => `%3${digit}`).join('');
  for (const text of [VISA, `/v1/tokens/${VISA}`, '/v1/1234567890123', escaped, escaped.replaceAll('%', '%25'), '４１１１１１１１１１１１１１１１', `;${VISA}=2712101?`]) {
    await listening(() => holdsCardNumber(text));
    t.same(left(), [], text);
  }
});
