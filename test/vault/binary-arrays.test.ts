import { Client } from 'pg';
import * as fc from 'fast-check';
import t from 'tap';
import { byteaArray, int2Array, int4Array, textArray } from '../../vault/binary-arrays.ts';
import { freshDatabase } from '../support/database.ts';

const database = await freshDatabase(t, { migrated: false });
const client = new Client({ connectionString: database.adminUrl });
await client.connect();
t.teardown(() => client.end());

async function roundTrip(type: string, array: Buffer): Promise<unknown[]> {
  const { rows } = await client.query<{ value: unknown[] }>(`SELECT $1::${type}[] AS value`, [array]);
  return rows[0]!.value;
}

const nullable = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<(T | null)[]> => fc.array(fc.option(arbitrary, { freq: 4 }), { maxLength: 40 });

await t.test('an array is laid out as PostgreSQL sends one', async (t) => {
  // What `SELECT ARRAY[1, NULL]::int4[]` answers in binary format: dimensions, has nulls, element oid, length, lower bound, elements.
  t.equal(int4Array([1, null]).toString('hex'), '00000001000000010000001700000002000000010000000400000001ffffffff');
  for (const [sql, ours] of [
    ["ARRAY['a','',NULL,'ü€😀']::text[]", textArray(['a', '', null, 'ü€😀'])],
    ["ARRAY['\\x00ff','\\x']::bytea[]", byteaArray([Buffer.from([0, 255]), Buffer.alloc(0)])],
    ['ARRAY[-32768,32767]::int2[]', int2Array([-32_768, 32_767])],
    ['ARRAY[-2147483648,2147483647,NULL]::int4[]', int4Array([-(2 ** 31), 2 ** 31 - 1, null])],
  ] as const) {
    const { rows } = await client.query<{ theirs: Buffer }>(`SELECT array_send(${sql}) AS theirs`);
    t.equal(ours.toString('hex'), rows[0]!.theirs.toString('hex'), sql);
  }
});

await t.test('bytes of any content and length come back as they went in', async (t) => {
  await fc.assert(
    fc.asyncProperty(nullable(fc.uint8Array({ maxLength: 300 })), async (values) => {
      const back = (await roundTrip('bytea', byteaArray(values))) as (Buffer | null)[];
      return back.length === values.length && back.every((value, i) => (value === null ? values[i] === null : values[i] !== null && Buffer.compare(value, values[i]!) === 0));
    }),
    { numRuns: 100 },
  );
  t.pass('100 arrays');
});

await t.test('text of any script comes back as it went in', async (t) => {
  // PostgreSQL's text cannot hold the character zero.
  const text = fc.string({ unit: 'grapheme', maxLength: 60 }).filter((value) => !value.includes('\0'));
  await fc.assert(fc.asyncProperty(nullable(text), async (values) => JSON.stringify(await roundTrip('text', textArray(values))) === JSON.stringify(values)), { numRuns: 100 });
  t.same(await roundTrip('text', textArray(['NULL', '{}', '","', '\\', ' '])), ['NULL', '{}', '","', '\\', ' '], 'and nothing in it is syntax');
});

await t.test('integers of their whole range come back as they went in', async (t) => {
  await fc.assert(fc.asyncProperty(nullable(fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 })), async (values) => JSON.stringify(await roundTrip('int4', int4Array(values))) === JSON.stringify(values)), { numRuns: 100 });
  await fc.assert(fc.asyncProperty(nullable(fc.integer({ min: -32_768, max: 32_767 })), async (values) => JSON.stringify(await roundTrip('int2', int2Array(values))) === JSON.stringify(values)), { numRuns: 100 });
  t.throws(() => int4Array([2 ** 31]), RangeError);
  t.throws(() => int2Array([32_768]), RangeError);
});

await t.test('an empty array is one without elements, and ten thousand elements are in their order', async (t) => {
  for (const [type, array] of [['bytea', byteaArray([])], ['text', textArray([])], ['int4', int4Array([])], ['int2', int2Array([])]] as const) {
    const { rows } = await client.query<{ n: number }>(`SELECT count(*)::int AS n FROM unnest($1::${type}[])`, [array]);
    t.equal(rows[0]!.n, 0, type);
  }
  const many = Array.from({ length: 10_000 }, (_, i) => i);
  t.strictSame(await roundTrip('int4', int4Array(many)), many);
});

await t.test('what is encoded is a copy', async (t) => {
  const source = Buffer.from('secret');
  const array = byteaArray([source]);
  source.fill(0);
  t.equal(array.subarray(-6).toString(), 'secret');
});
