import { createHash, generateKeyPairSync, sign, verify, type KeyObject } from 'node:crypto';
import * as fc from 'fast-check';
import t from 'tap';
import { batchHeader, checkChain, headerHash, noPredecessor, readWriterCertificate, writerCertificateText, writerName, type Batch, type BatchKind } from '../../audit/chain.ts';
import { decodeBundle, encodeBundle } from '../../audit/entry.ts';

const count = (bundle: Buffer): number => decodeBundle(bundle).length;

interface Chain {
  readonly batches: readonly Batch[];
  readonly publicKey: KeyObject;
  readonly privateKey: KeyObject;
}

/** A chain signed by hand, apart from the product's writer. A 0 in `sizes` is a tombstone. */
function makeChain(sizes: readonly number[], writer = 0x0123456789abcdefn): Chain {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  const batches: Batch[] = [];
  let previous = Buffer.alloc(32);
  for (const [index, size] of sizes.entries()) {
    const kind: BatchKind = size === 0 ? 'tombstone' : 'entries';
    const bundle = encodeBundle(Array.from({ length: size }, (_, i) => Buffer.from(`entry ${index}.${i}`)));
    const unsigned = { writer, number: BigInt(index), kind, formedAt: new Date(1_790_000_000_000 + index), entryCount: size, previous, bundle };
    const header = headerByHand(unsigned);
    batches.push({ ...unsigned, signature: sign(null, header, privateKey) });
    previous = createHash('sha256').update(header).digest();
  }
  return { batches, publicKey, privateKey };
}

/** The layout as audit/chain.ts documents it, written out a second time. */
function headerByHand(batch: Omit<Batch, 'signature'>): Buffer {
  const uint = (value: bigint, bytes: number): Buffer => Buffer.from(value.toString(16).padStart(bytes * 2, '0'), 'hex');
  return Buffer.concat([
    Buffer.from('cofre/batch/v1\n'),
    uint(batch.writer, 8),
    uint(batch.number, 8),
    uint(batch.kind === 'entries' ? 0n : 1n, 1),
    uint(BigInt(batch.formedAt.getTime()), 8),
    uint(BigInt(batch.entryCount), 4),
    batch.previous,
    createHash('sha256').update(batch.bundle).digest(),
  ]);
}

t.test('the header of a batch is laid out as documented, in 108 bytes', async (t) => {
  for (const batch of makeChain([1, 3, 0]).batches) {
    t.equal(batchHeader(batch).length, 108);
    t.equal(batchHeader(batch).toString('hex'), headerByHand(batch).toString('hex'));
    t.equal(headerHash(batchHeader(batch)).toString('hex'), createHash('sha256').update(headerByHand(batch)).digest('hex'));
  }
  t.ok(noPredecessor.equals(Buffer.alloc(32)));
});

t.test('a whole chain checks, tombstones and an empty one included', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.nat(4), { maxLength: 8 }), (sizes) => {
      const { batches, publicKey } = makeChain(sizes);
      return checkChain(batches, publicKey, count) === null;
    }),
    { numRuns: 40 },
  );
  t.equal(checkChain([], makeChain([]).publicKey, count), null);
});

const { batches, publicKey, privateKey } = makeChain([1, 2, 0, 3]);
const altered = (index: number, change: Partial<Batch>): Batch[] => batches.map((batch, i) => (i === index ? { ...batch, ...change } : batch));

t.test('a flip of any bit of any bytes of a batch is caught', async (t) => {
  const missed: string[] = [];
  for (const [index, batch] of batches.entries()) {
    for (const field of ['previous', 'bundle', 'signature'] as const) {
      for (let at = 0; at < batch[field].length; at++) {
        for (let bit = 0; bit < 8; bit++) {
          const bytes = Buffer.from(batch[field]);
          bytes[at]! ^= 1 << bit;
          if (checkChain(altered(index, { [field]: bytes }), publicKey, count) === null) missed.push(`${field} of batch ${index}, byte ${at}, bit ${bit}`);
        }
      }
    }
  }
  t.same(missed, []);
});

t.test('any other value of any other field is caught', async (t) => {
  const field = fc.oneof(
    fc.bigInt({ min: 0n, max: 2n ** 63n - 1n }).map((writer): Partial<Batch> => ({ writer })),
    fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map((number): Partial<Batch> => ({ number })),
    fc.date().map((formedAt): Partial<Batch> => ({ formedAt })),
    fc.integer({ min: -5, max: 2 ** 33 }).map((entryCount): Partial<Batch> => ({ entryCount })),
    fc.constantFrom<BatchKind>('entries', 'tombstone').map((kind): Partial<Batch> => ({ kind })),
    fc.uint8Array({ maxLength: 70 }).map((bytes): Partial<Batch> => ({ previous: Buffer.from(bytes) })),
    fc.uint8Array({ maxLength: 70 }).map((bytes): Partial<Batch> => ({ bundle: Buffer.from(bytes) })),
    fc.uint8Array({ maxLength: 70 }).map((bytes): Partial<Batch> => ({ signature: Buffer.from(bytes) })),
  );
  fc.assert(
    fc.property(fc.nat(batches.length - 1), field, (index, change) => {
      const [[name, value]] = Object.entries(change) as [[keyof Batch, unknown]];
      const old = batches[index]![name];
      fc.pre(Buffer.isBuffer(old) ? !old.equals(value as Buffer) : old instanceof Date ? old.getTime() !== (value as Date).getTime() : old !== value);
      return checkChain(altered(index, change), publicKey, count) !== null;
    }),
    { numRuns: 1000 },
  );
  t.pass('1000 changes');
});

t.test('a gap, another order, a double, a cut head and a foreign batch are each named', async (t) => {
  const [zero, one, two, three] = batches as [Batch, Batch, Batch, Batch];
  t.equal(checkChain([zero, one, three], publicKey, count), 'batch 2 is missing');
  t.equal(checkChain([zero, two, one, three], publicKey, count), 'batch 1 is missing');
  t.equal(checkChain([zero, one, one, two], publicKey, count), 'batch 2 is missing');
  t.equal(checkChain([one, two, three], publicKey, count), 'batch 0 is missing');
  t.equal(checkChain([{ ...one, number: 0n }], publicKey, count), 'batch 0 does not follow its predecessor');
  t.equal(checkChain(makeChain([1]).batches, publicKey, count), 'batch 0 has a wrong signature');
});

t.test('a forged successor of a true batch is caught, and a batch made anew with the true key by what follows it', async (t) => {
  const forger = makeChain([1]);
  const last = batches.at(-1)!;
  const unsigned = { writer: last.writer, number: last.number + 1n, kind: 'entries' as const, formedAt: last.formedAt, entryCount: 1, previous: headerHash(batchHeader(last)), bundle: encodeBundle([Buffer.from('forged')]) };
  t.equal(checkChain([...batches, { ...unsigned, signature: sign(null, batchHeader(unsigned), forger.privateKey) }], publicKey, count), 'batch 4 has a wrong signature');
  const anew = { ...batches[1]!, entryCount: 1, bundle: encodeBundle([Buffer.from('another story')]) };
  const [zero, , two, three] = batches as [Batch, Batch, Batch, Batch];
  const signed = { ...anew, signature: sign(null, batchHeader(anew), privateKey) };
  t.equal(checkChain([zero, signed], publicKey, count), null, 'by itself it holds');
  t.equal(checkChain([zero, signed, two, three], publicKey, count), 'batch 2 does not follow its predecessor');
});

t.test('a signed batch that counts other entries than it holds is caught, and so is a bundle that is none', async (t) => {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  const signed = (change: Partial<Batch>): Batch => {
    const unsigned = { writer: 1n, number: 0n, kind: 'entries' as const, formedAt: new Date(0), entryCount: 1, previous: noPredecessor, bundle: encodeBundle([Buffer.from('a')]), ...change };
    return { ...unsigned, signature: sign(null, batchHeader(unsigned), privateKey) };
  };
  t.equal(checkChain([signed({})], publicKey, count), null);
  t.equal(checkChain([signed({ entryCount: 2 })], publicKey, count), 'batch 0 does not hold the entries that it counts');
  t.equal(checkChain([signed({ bundle: Buffer.from([0, 9, 1]) })], publicKey, count), 'batch 0 is not a batch');
  t.equal(checkChain([{ ...signed({}), formedAt: Number.POSITIVE_INFINITY as unknown as Date }], publicKey, count), 'batch 0 is not a batch', 'a time at infinity, as PostgreSQL can hold');
});

t.test('a certificate text is read back, and any other text is not one', async (t) => {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  const at = new Date('2026-11-24T00:00:00.000Z');
  const text = writerCertificateText(0xabcn, 'tokenize', publicKey.export({ format: 'der', type: 'spki' }), at);
  t.equal(text.split('\n')[1], '0000000000000abc');
  const read = readWriterCertificate(text)!;
  t.match(read, { writer: 0xabcn, role: 'tokenize', startedAt: at });
  t.ok(verify(null, Buffer.from('x'), read.publicKey, sign(null, Buffer.from('x'), privateKey)));
  for (const wrong of ['', text.slice(0, -1), `${text}more\n`, text.replace('v1', 'v2'), text.replace('0000000000000abc', 'abc'), text.replace('0000000000000abc', 'ffffffffffffffff'), text.replace(/\n[A-Za-z0-9+/=]{20,}\n/u, '\nAAAA\n'), text.replace('2026', 'soon')]) t.equal(readWriterCertificate(wrong), null, JSON.stringify(wrong));
  t.equal(writerName(2n ** 63n - 1n), '7fffffffffffffff');
});
