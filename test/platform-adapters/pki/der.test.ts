import t from 'tap';

import * as der from '../../../platform-adapters/pki/der.ts';

const hex = (bytes: Buffer): string => bytes.toString('hex');

t.test('object identifiers are encoded as in X.690 8.19 and RFC 8017', (t) => {
  t.equal(hex(der.oid('2.999.3')), '0603883703', 'the example of X.690 8.19.5');
  t.equal(hex(der.oid('1.2.840.113549')), '06062a864886f70d', 'the rsadsi arc of RFC 8017');
  t.equal(hex(der.oid('1.2.840.10045.4.3.2')), '06082a8648ce3d040302', 'ecdsa-with-SHA256 as in RFC 5758');
  t.end();
});

t.test('integers are minimal and never look negative', (t) => {
  t.equal(hex(der.integerOf(0n)), '020100');
  t.equal(hex(der.integerOf(127n)), '02017f');
  t.equal(hex(der.integerOf(128n)), '02020080');
  t.equal(hex(der.integerOf(256n)), '02020100');
  t.equal(hex(der.integer(Buffer.from('000080', 'hex'))), '02020080');
  t.equal(hex(der.integer(Buffer.alloc(0))), '020100');
  t.end();
});

t.test('lengths take the short form to 127 and the fewest bytes beyond', (t) => {
  t.equal(hex(der.octets(Buffer.alloc(127))).slice(0, 4), '047f');
  t.equal(hex(der.octets(Buffer.alloc(128))).slice(0, 6), '048180');
  t.equal(hex(der.octets(Buffer.alloc(256))).slice(0, 8), '04820100');
  t.equal(hex(der.octets(Buffer.alloc(65_536))).slice(0, 10), '0483010000');
  t.end();
});

t.test('named bits leave trailing zeros out', (t) => {
  t.equal(hex(der.namedBits(0)), '03020780', 'digitalSignature');
  t.equal(hex(der.namedBits(5, 6)), '03020106', 'keyCertSign and cRLSign');
  t.equal(hex(der.namedBits(8)), '0303070080', 'decipherOnly takes a second byte');
  t.end();
});

t.test('times change form in 2050, as RFC 5280 4.1.2.5 wants', (t) => {
  t.equal(der.time(new Date('2049-12-31T23:59:59.999Z')).toString('latin1'), '\x17\x0d491231235959Z');
  t.equal(der.time(new Date('2050-01-01T00:00:00Z')).toString('latin1'), '\x18\x0f20500101000000Z');
  t.end();
});
