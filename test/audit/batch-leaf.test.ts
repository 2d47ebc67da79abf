import { createHash, generateKeyPairSync, sign, verify } from 'node:crypto';
import * as fc from 'fast-check';
import t from 'tap';
import { decodeBatchLeaf, encodeBatchLeaf } from '../../audit/batch-leaf.ts';
import { batchHeader, type Batch, type BatchKind } from '../../audit/chain.ts';
import { encodeBundle, encodeEntry } from '../../audit/entry.ts';

const batch: Batch = {
  writer: 0x0123_4567_89ab_cdefn,
  number: 7n,
  kind: 'entries',
  formedAt: new Date('2026-11-25T22:30:00.123Z'),
  entryCount: 3,
  previous: Buffer.alloc(32, 0xab),
  bundle: encodeBundle([Buffer.from('a'), Buffer.from('b'), Buffer.from('c')]),
  signature: Buffer.alloc(64, 0xcd),
};
const certificate = 'cofre/writer/v1\n…\n\n— vault.example/log Az3grg==\n';

/** The leaf of `batch`, by hand. */
const text = `{"action":"log.batch","at":"2026-11-25T22:30:00.123Z","detail":{"count":3,"kind":"entries","number":7,"previous":"${'ab'.repeat(32)}","signature":"${'cd'.repeat(64)}","writer":"0123456789abcdef"},"outcome":"allowed","v":1}`;
const firstText = text.replace('"detail":{', `"detail":{"certificate":${JSON.stringify(certificate)},`).replace('"number":7', '"number":0');

const parse = (text: string): unknown => JSON.parse(text);

t.test('the bytes of a leaf are canonical, with the certificate in batch 0', async (t) => {
  t.equal(encodeBatchLeaf(batch, null).toString('utf8'), text);
  t.equal(encodeBatchLeaf({ ...batch, number: 0n }, certificate).toString('utf8'), firstText);
  t.equal(encodeBatchLeaf({ ...batch, kind: 'tombstone', entryCount: 0 }, null).toString('utf8'), text.replace('"count":3,"kind":"entries"', '"count":0,"kind":"tombstone"'));
});

t.test('a leaf is read back as the batch without its bundle', async (t) => {
  const { bundle: _, ...header } = batch;
  t.strictSame(decodeBatchLeaf(parse(text)), { ...header, certificate: null });
  t.strictSame(decodeBatchLeaf(parse(firstText)), { ...header, number: 0n, certificate });
  const kinds = fc.constantFrom<BatchKind>('entries', 'tombstone');
  const any = fc.record({
    writer: fc.bigInt({ min: 0n, max: 2n ** 63n - 1n }),
    number: fc.oneof(fc.constant(0), fc.maxSafeNat()).map(BigInt),
    kind: kinds,
    formedAt: fc.date({ min: new Date(0), max: new Date('9999-12-31T23:59:59.999Z'), noInvalidDate: true }),
    entryCount: fc.integer({ min: 1, max: 0xffff_ffff }),
    previous: fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes)),
    signature: fc.uint8Array({ minLength: 64, maxLength: 64 }).map((bytes) => Buffer.from(bytes)),
  });
  fc.assert(
    fc.property(any, fc.string({ unit: 'binary' }).filter((text) => text.isWellFormed()), (batch, note) => {
      const header = { ...batch, entryCount: batch.kind === 'tombstone' ? 0 : batch.entryCount };
      const certificate = batch.number === 0n ? note : null;
      t.strictSame(decodeBatchLeaf(parse(encodeBatchLeaf(header, certificate).toString('utf8'))), { ...header, certificate });
    }),
  );
});

t.test('the leaf and the entries that follow it make the signed header again', async (t) => {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  const entries = [1, 2, 3].map((n) => encodeEntry({ action: 'tokenize', at: batch.formedAt, outcome: 'allowed', request: String(n) }));
  const unsigned = { ...batch, bundle: encodeBundle(entries) };
  const signed = { ...unsigned, signature: sign(null, batchHeader(unsigned), privateKey) };
  const leaf = decodeBatchLeaf(parse(encodeBatchLeaf(signed, null).toString('utf8')))!;
  t.ok(verify(null, batchHeader({ ...leaf, bundle: encodeBundle(entries) }), publicKey, leaf.signature));
  t.notOk(verify(null, batchHeader({ ...leaf, bundle: encodeBundle(entries.toReversed()) }), publicKey, leaf.signature));
  t.equal(createHash('sha256').update(batchHeader({ ...leaf, bundle: signed.bundle })).digest('hex'), createHash('sha256').update(batchHeader(signed)).digest('hex'));
});

t.test('what is no leaf of a batch is not written', async (t) => {
  t.throws(() => encodeBatchLeaf(batch, certificate), RangeError, 'a certificate too many');
  t.throws(() => encodeBatchLeaf({ ...batch, number: 0n }, null), RangeError, 'a certificate that is missing');
  t.throws(() => encodeBatchLeaf({ ...batch, number: -1n }, null), RangeError);
  t.throws(() => encodeBatchLeaf({ ...batch, number: 2n ** 53n }, null), RangeError);
  t.throws(() => encodeBatchLeaf({ ...batch, formedAt: new Date(Number.NaN) }, null), RangeError);
  t.throws(() => encodeBatchLeaf({ ...batch, number: 0n }, 'x'.repeat(65_536)), RangeError, 'more than an entry bundle can hold');
});

t.test('whatever else is in a leaf, or missing, or spelled in another way, it is refused', async (t) => {
  const replaced: [string, string][] = [
    ...['log.batches', 'LOG.BATCH', 'tokenize', ''].map((action): [string, string] => ['"log.batch"', JSON.stringify(action)]),
    ...['"2026-11-25T22:30:00.123+00:00"', '"2026-11-25T22:30:00Z"', '"2026-11-25"', '"2026-11-31T22:30:00.123Z"', '"now"', '""', '1', 'null', '"2026-11-25T22:30:00.1230Z"', '"+002026-11-25T22:30:00.123Z"'].map((at): [string, string] => ['"2026-11-25T22:30:00.123Z"', at]),
    ...['0', '-1', '1.5', '4294967296', '1e400', '"3"', 'null', '[3]'].map((count): [string, string] => ['"count":3', `"count":${count}`]),
    ...['"tombstone"', '"entry"', '0', 'null', '["entries"]'].map((kind): [string, string] => ['"entries"', kind]),
    ...['0', '-7', '7.5', '9007199254740992', '1e400', '"7"', 'null'].map((number): [string, string] => ['"number":7', `"number":${number}`]),
    ...['AB'.repeat(32), 'ab'.repeat(31), 'ab'.repeat(33), `${'ab'.repeat(31)}a `, `${'ab'.repeat(31)}ag`, `${'ab'.repeat(32)}\\n`, ''].map((previous): [string, string] => ['ab'.repeat(32), previous]),
    ...['CD'.repeat(64), 'cd'.repeat(63), 'cd'.repeat(65), `${'cd'.repeat(64)}\\n`, ''].map((signature): [string, string] => ['cd'.repeat(64), signature]),
    ...['0123456789ABCDEF', '123456789abcdef', '00123456789abcdef', '8123456789abcdef', '', '0123456789abcdef\\n'].map((writer): [string, string] => ['0123456789abcdef', writer]),
    ...['"refused"', '"failed"', 'null', 'true'].map((outcome): [string, string] => ['"allowed"', outcome]),
    ...['2', '0', '"1"', 'null', '1.5'].map((version): [string, string] => ['"v":1', `"v":${version}`]),
    ...['action', 'at', 'detail', 'outcome', 'v', 'count', 'kind', 'number', 'previous', 'signature', 'writer'].map((name): [string, string] => [`"${name}":`, `"x${name}":`]),
    // More members, and members in another order.
    ['"outcome"', '"caller":"spiffe://x","outcome"'],
    ['"v":1}', '"v":1,"x":1}'],
    ['"writer"', '"w":1,"writer"'],
    ['"count"', '"certificate":"x","count"'],
    ['"count"', '"certificate":null,"count"'],
    ['"count"', '"__proto__":{},"count"'],
    ['"action":"log.batch","at":"2026-11-25T22:30:00.123Z"', '"at":"2026-11-25T22:30:00.123Z","action":"log.batch"'],
    ['"count":3,"kind":"entries"', '"kind":"entries","count":3'],
  ];
  for (const [from, to] of replaced) {
    const wrong = text.replace(from, to);
    if (!t.not(wrong, text)) continue;
    t.equal(decodeBatchLeaf(parse(wrong)), null, `${from.slice(0, 20)} → ${to.slice(0, 60)}`);
  }
  for (const certificate of ['null', '1', '""', '["x"]', '{}']) {
    const wrong = firstText.replace(/"certificate":"(?:[^"\\]|\\.)*"/u, () => `"certificate":${certificate}`);
    // An empty certificate is text; that it is no note, the verifier says.
    t.equal(decodeBatchLeaf(parse(wrong)) === null, certificate !== '""', `certificate ${certificate}`);
  }
  t.equal(decodeBatchLeaf(parse(firstText.replace('"number":0', '"number":7'))), null, 'a certificate in batch 7');
  t.equal(decodeBatchLeaf(parse(text.replace('"count":3', '"count":0'))), null, 'a batch without entries that is no tombstone');
  for (const value of [null, undefined, 1, 'x', [], {}, { detail: null }, { detail: [] }, [parse(text)]]) t.equal(decodeBatchLeaf(value), null);
});

t.test('reading never throws', async (t) => {
  const reads = fc.property(fc.anything(), (value) => decodeBatchLeaf(value) === null && decodeBatchLeaf({ ...(parse(text) as object), detail: value }) === null);
  t.doesNotThrow(() => fc.assert(reads, { numRuns: 2000 }));
});
