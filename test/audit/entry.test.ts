import { createHash } from 'node:crypto';
import * as fc from 'fast-check';
import t from 'tap';
import { decodeBundle, encodeBundle, encodeEntry, maxEntryBytes, readEntry, type Entry } from '../../audit/entry.ts';

/** RFC 8785 as its text has it: members by the UTF-16 code units of their names, numbers and strings as ECMAScript prints them (sections 3.2.2 and 3.2.3). */
function canonical(value: unknown): string {
  if (value === null || typeof value === 'boolean' || typeof value === 'number' || typeof value === 'string') return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  const members = Object.entries(value as Record<string, unknown>).filter(([, member]) => member !== undefined);
  members.sort(([a], [b]) => {
    for (let i = 0; i < Math.min(a.length, b.length); i++) if (a.charCodeAt(i) !== b.charCodeAt(i)) return a.charCodeAt(i) - b.charCodeAt(i);
    return a.length - b.length;
  });
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonical(member)}`).join(',')}}`;
}

const full: Entry = {
  action: 'detokenize',
  at: new Date('2026-11-24T00:00:00.123Z'),
  caller: 'spiffe://cofre.dev/tenant/acme/service/getnet',
  code: 'token_unknown',
  detail: { writer: '00ff', role: 'tokenize', count: 3, predecessor_last: '17', predecessor: 'aa' },
  from: '127.0.0.1',
  outcome: 'refused',
  policies: ['b', 'a'],
  purpose: 'refund',
  reference: 'order-1',
  request: '6f1ed002-ab56-4f0e-9c1a-6d1c0a7c0f11',
  serial: '1f',
  tenant: 'acme',
  items: { malformed: 2, invalid_pan: 1 },
  tokens: { token_unknown: ['tok_x', 'tok_a'], authorized: ['tok_b'] },
};

t.test('the canonicalizer of this test is that of RFC 8785', async (t) => {
  // The example of RFC 8785, section 3.2.3: names sort by code units, not by bytes or code points.
  const names = { '\u20ac': 'Euro Sign', '\r': 'Carriage Return', '\ufb33': 'Hebrew Letter Dalet With Dagesh', '1': 'One', '\ud83d\ude00': 'Emoji: Grinning Face', '\u0080': 'Control', '\u00f6': 'Latin Small Letter O With Diaeresis' };
  const order = [...canonical(names).matchAll(/"([^"]*)":/gu)].map((match) => JSON.parse(`"${match[1]}"`) as string);
  t.same(order, ['\r', '1', '\u0080', '\u00f6', '\u20ac', '\ud83d\ude00', '\ufb33']);
});

t.test('an entry with every member is canonical, and says what it was given', async (t) => {
  const bytes = encodeEntry(full);
  const read = JSON.parse(bytes.toString('utf8')) as Record<string, unknown>;
  t.equal(bytes.toString('utf8'), canonical(read));
  t.same(read, { ...full, at: '2026-11-24T00:00:00.123Z', v: 1 });
});

t.test('any entry is canonical: the literal in the product sorts as RFC 8785 does', async (t) => {
  const text = fc.string({ unit: 'grapheme', maxLength: 30 });
  const name = fc.stringMatching(/^[a-z][a-z_]{0,12}$/u);
  const optional = fc.record(
    {
      caller: text,
      code: text,
      detail: fc.dictionary(name, fc.oneof(text, fc.integer(), fc.double({ noNaN: true, noDefaultInfinity: true }))),
      from: text,
      policies: fc.array(text, { maxLength: 4 }),
      purpose: text,
      reference: text,
      request: text,
      serial: text,
      tenant: text,
      items: fc.dictionary(name, fc.nat()),
      tokens: fc.dictionary(name, fc.array(text, { maxLength: 4 })),
    },
    { requiredKeys: [] },
  );
  const at = fc.date({ min: new Date(0), max: new Date('9999-12-31T23:59:59.999Z'), noInvalidDate: true });
  fc.assert(
    fc.property(text, at, fc.constantFrom('allowed' as const, 'refused' as const, 'failed' as const), optional, (action, at, outcome, rest) => {
      const bytes = encodeEntry({ action, at, outcome, ...rest });
      return bytes.toString('utf8') === canonical(JSON.parse(bytes.toString('utf8')));
    }),
    { numRuns: 300 },
  );
  t.pass('300 entries');
});

t.test('an entry of the largest size is taken, and a byte more is a defect that is told', async (t) => {
  const empty = encodeEntry({ action: '', at: full.at, outcome: 'allowed' }).length;
  const largest = encodeEntry({ action: 'a'.repeat(maxEntryBytes - empty), at: full.at, outcome: 'allowed' });
  t.equal(largest.length, 65_535);
  t.throws(() => encodeEntry({ action: 'a'.repeat(maxEntryBytes - empty + 1), at: full.at, outcome: 'allowed' }), RangeError);
  const [back] = decodeBundle(encodeBundle([largest]));
  t.ok(largest.equals(back!), 'it fits the bundle');
});

t.test('a bundle is laid out as C2SP tlog-tiles says: length as uint16 big-endian, then the bytes', async (t) => {
  // https://c2sp.org/tlog-tiles, "Entry bundles"; laid out by hand.
  t.equal(encodeBundle([Buffer.from('a'), Buffer.alloc(0), Buffer.from('bcd')]).toString('hex'), '00016100000003626364');
  t.equal(encodeBundle([Buffer.alloc(258, 1)]).subarray(0, 3).toString('hex'), '010201');
  t.equal(encodeBundle([]).length, 0);
});

t.test('bundles come back as they went in, as views', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 400 }), { maxLength: 20 }), (entries) => {
      const bundle = encodeBundle(entries);
      const back = decodeBundle(bundle);
      return back.length === entries.length && back.every((entry, i) => Buffer.compare(entry, entries[i]!) === 0 && entry.buffer === bundle.buffer);
    }),
  );
  t.pass('100 bundles');
});

t.test('a bundle that is cut anywhere inside an entry is refused', async (t) => {
  const entries = [Buffer.from('first'), Buffer.from('second'), createHash('sha256').digest()];
  const bundle = encodeBundle(entries);
  const whole = new Set([0, 7, 15, bundle.length]);
  for (let cut = 0; cut < bundle.length; cut++) {
    if (whole.has(cut)) t.equal(decodeBundle(bundle.subarray(0, cut)).length, [...whole].indexOf(cut), `cut at ${cut}, between entries`);
    else t.throws(() => decodeBundle(bundle.subarray(0, cut)), RangeError, `cut at ${cut}`);
  }
});

t.test('what lies too deep to be read everywhere is no entry', async (t) => {
  const nested = (depth: number): Buffer => Buffer.from(`{"action":"x","d":${'['.repeat(depth - 1)}${']'.repeat(depth - 1)},"v":1}`);
  t.ok(readEntry(nested(16)));
  for (const depth of [17, 4000, 30_000]) t.equal(readEntry(nested(depth)), null, `${depth}`);
});
