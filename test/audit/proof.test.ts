import { createHash, generateKeyPairSync, sign } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import t from 'tap';
import { signCheckpoint } from '../../audit/checkpoint.ts';
import { decodeBundle } from '../../audit/entry.ts';
import { inclusionProof } from '../../audit/merkle.ts';
import { encodeVkey, parseVkey, type NoteSigner } from '../../audit/note.ts';
import { checkProof, encodeProof, parseProof, type LogProof } from '../../audit/proof.ts';
import { NaiveTree, numberedEntries } from '../support/naive-tree.ts';

const sha256 = (text: string): Buffer => createHash('sha256').update(text).digest();

/** The example of https://c2sp.org/tlog-proof; the signatures are shortened there. */
const specification = `c2sp.org/tlog-proof@v1
extra YWdlLXYxLjIuMS1kYXJ3aW4tYXJtNjQudGFyLmd6kYXJ3aW4tYXJ
index 73894
gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=
EKNzoDWG8LGC0Yp9o+sv3qllpMP9uHQ9B20KNL+Q1zs=
RoopEkOdqkYqMB4MJXrbt/hMjOxsVn0IrWjpz1ZMMes=
AHCioX9nLjsrse6YhjRRmk1WUEirVOLLRoOQ6vfO5vk=

example.com/fancylog
109482
sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

— example.com/fancylog hI2DJw[...]1roloI=
— witness1.example mJirIklj[...]qY9v2B/5bg==
— witness2.example TnKKVHLX[...]xwYwrSjgow==
— witness3.example S4X82uH5[...]3oEcROGLFQ==
`;

const { privateKey, publicKey } = generateKeyPairSync('ed25519');
const signer: NoteSigner = { algorithm: 'ed25519', publicKeySpki: publicKey.export({ format: 'der', type: 'spki' }), sign: async (message) => sign(null, message, privateKey) };
const origin = 'vault.example/log';
const verifier = parseVkey(encodeVkey(origin, 'ed25519', signer.publicKeySpki));
const entries = numberedEntries(100);
const tree = new NaiveTree(entries);

async function proofOf(index: number, size: number): Promise<LogProof> {
  const checkpoint = await signCheckpoint({ origin, size, root: tree.root(0, size) }, signer);
  return { index, hashes: await inclusionProof(index, size, tree), checkpoint, extra: entries[index]! };
}

t.test('the example of the specification is read and written, and proves nothing with its shortened signatures', async (t) => {
  const proof = parseProof(specification);
  t.match(proof, { index: 73_894, hashes: { length: 5 }, checkpoint: /^example\.com\/fancylog\n109482\n/u });
  t.equal(proof!.extra!.toString('latin1', 0, 30), 'age-v1.2.1-darwin-arm64.tar.gz');
  t.equal(proof!.hashes[0]!.toString('base64'), 'gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=');
  t.equal(encodeProof(proof!), specification);
  t.type(checkProof(proof!, [verifier]), 'string');
});

t.test('the proofs of another implementation are written and read as there, and its malformed ones refused', async (t) => {
  // transparency-dev/formats, proof/tlog_proof_test.go.
  const [h1, h2] = [sha256('hash1'), sha256('hash2')];
  const proofs: [LogProof, string][] = [
    [{ index: 5, hashes: [h1, h2], checkpoint: 'test checkpoint\n', extra: null }, `c2sp.org/tlog-proof@v1\nindex 5\n${h1.toString('base64')}\n${h2.toString('base64')}\n\ntest checkpoint\n`],
    [{ index: 10, hashes: [h1], checkpoint: 'checkpoint data\n', extra: Buffer.from('extra information') }, `c2sp.org/tlog-proof@v1\nextra ${Buffer.from('extra information').toString('base64')}\nindex 10\n${h1.toString('base64')}\n\ncheckpoint data\n`],
    [{ index: 0, hashes: [], checkpoint: 'checkpoint\n', extra: null }, 'c2sp.org/tlog-proof@v1\nindex 0\n\ncheckpoint\n'],
  ];
  for (const [proof, text] of proofs) {
    t.equal(encodeProof(proof), text);
    t.same(parseProof(text), proof);
  }
  const wrong = [
    'wrong-header\nindex 0\n\ncheckpoint\n',
    'c2sp.org/tlog-proof@v1\nextra !!notbase64!!\nindex 0\n\ncheckpoint\n',
    'c2sp.org/tlog-proof@v1\n\n\ncheckpoint\n',
    'c2sp.org/tlog-proof@v1\nindex notanumber\n\ncheckpoint\n',
    'c2sp.org/tlog-proof@v1\nindex -5\n\ncheckpoint\n',
    'c2sp.org/tlog-proof@v1\nindex 0\n!!notbase64!!\n\ncheckpoint\n',
    `c2sp.org/tlog-proof@v1\nindex 0\n${Buffer.alloc(64).toString('base64')}\n\ncheckpoint\n`,
    `c2sp.org/tlog-proof@v1\nindex 0\n${'a'.repeat(65 * 1024)}\n`,
  ];
  for (const text of wrong) t.equal(parseProof(text), null, JSON.stringify(text.slice(0, 60)));
});

t.test('every other spelling of a proof is refused', async (t) => {
  const text = encodeProof(await proofOf(3, 7));
  t.not(parseProof(text), null);
  const [first = '', extra = '', index = '', hash = ''] = text.split('\n');
  const hashes = text.slice(text.indexOf('index'), text.indexOf('\n\n')).split('\n').slice(1);
  const head = (...lines: string[]): string => [...lines, '', text.slice(text.indexOf('\n\n') + 2)].join('\n');
  t.equal(head(first, extra, index, ...hashes), text);
  const wrong = [
    ['', '\n', '\n\n', first, `${first}\n`, head(first), head(first, extra), head(extra, index, ...hashes), head(first, index, extra, ...hashes), head(first, extra, extra, index, ...hashes), head(first, extra, index, index, ...hashes)],
    ['', ' ', '=', 'Zg', 'Zh==', 'Zg==\t', ' Zg==', '!!!!'].map((bytes) => head(first, `extra ${bytes}`, index, ...hashes)),
    ['extra', 'Extra Zg==', 'extra\tZg=='].map((line) => head(first, line, index, ...hashes)),
    ['', '01', '00', '+3', '-0', '3.0', '3e0', ' 3', '3 ', '0x3', '٣', '9007199254740992', '99999999999999999999'].map((number) => head(first, extra, `index ${number}`, ...hashes)),
    ['index', 'Index 3', 'index\t3', 'index: 3', ''].map((line) => head(first, extra, line, ...hashes)),
    [hash.slice(0, -1), `${hash}=`, ` ${hash}`, `${hash} `, `${hash}\r`, Buffer.alloc(31).toString('base64'), Buffer.alloc(33).toString('base64'), Buffer.alloc(32).toString('hex'), `${'A'.repeat(42)}B=`].map((line) => head(first, extra, index, line, ...hashes.slice(1))),
    [text.replaceAll('\n', '\r\n'), `\n${text}`, ` ${text}`, `\uFEFF${text}`, text.replace('@v1', '@v2'), text.replace('@v1', '@v1 '), text.slice(0, text.indexOf('\n\n') + 1), text.slice(0, text.indexOf('\n\n') + 2)],
  ].flat();
  for (const wrongText of wrong) t.equal(parseProof(wrongText), null, JSON.stringify(wrongText.slice(0, 120)));
});

t.test('what is no proof is not written', async (t) => {
  const proof = await proofOf(3, 7);
  for (const index of [-1, 0.5, 2 ** 53, Number.NaN]) t.throws(() => encodeProof({ ...proof, index }), RangeError);
  for (const bytes of [0, 31, 33]) t.throws(() => encodeProof({ ...proof, hashes: [Buffer.alloc(bytes)] }), RangeError);
  t.throws(() => encodeProof({ ...proof, extra: Buffer.alloc(0) }), RangeError);
});

t.test('what is written is read back as the same', async (t) => {
  const hash = fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes));
  const extra = fc.option(fc.uint8Array({ minLength: 1 }).map((bytes) => Buffer.from(bytes)));
  const proof = fc.record({ index: fc.maxSafeNat(), hashes: fc.array(hash), checkpoint: fc.string({ minLength: 1 }), extra });
  fc.assert(fc.property(proof, (proof) => t.same(parseProof(encodeProof(proof)), proof)));
});

t.test('a proof of every entry in every tree up to 100 gives the entry and the checkpoint', async (t) => {
  const wrong: string[] = [];
  for (let size = 1; size <= 100; size++) {
    for (let index = size % 7; index < size; index += 7) {
      const proof = parseProof(encodeProof(await proofOf(index, size)));
      const checked = proof === null ? 'not read' : checkProof(proof, [verifier]);
      if (typeof checked === 'string') wrong.push(`${index} of ${size}: ${checked}`);
      else if (!checked.entry.equals(entries[index]!) || checked.checkpoint.size !== size || checked.checkpoint.origin !== origin) wrong.push(`${index} of ${size} proves something else`);
    }
  }
  t.same(wrong, []);
});

t.test('a proof that is not one says what is wrong', async (t) => {
  const proof = await proofOf(41, 100);
  const other = await proofOf(42, 100);
  const older = await proofOf(30, 41);
  const inLog = 'the entry is not in the log at this index';
  t.equal(checkProof({ ...proof, extra: null }, [verifier]), 'the proof does not hold the entry');
  t.equal(checkProof({ ...proof, extra: Buffer.from('forged') }, [verifier]), inLog);
  t.equal(checkProof({ ...proof, extra: other.extra }, [verifier]), inLog);
  t.equal(checkProof({ ...proof, index: 42 }, [verifier]), inLog);
  t.equal(checkProof({ ...proof, index: 100 }, [verifier]), 'the checkpoint is older than the entry');
  t.equal(checkProof({ ...proof, checkpoint: older.checkpoint }, [verifier]), 'the checkpoint is older than the entry');
  t.equal(checkProof({ ...proof, hashes: other.hashes }, [verifier]), inLog);
  t.equal(checkProof({ ...proof, hashes: proof.hashes.slice(1) }, [verifier]), inLog);
  t.equal(checkProof({ ...proof, hashes: [...proof.hashes, proof.hashes[0]!] }, [verifier]), inLog);
  const unsigned = 'the checkpoint is not signed by a known key in the name of its log';
  t.equal(checkProof({ ...proof, checkpoint: proof.checkpoint.replace('\n100\n', '\n101\n') }, [verifier]), unsigned);
  t.equal(checkProof({ ...proof, checkpoint: '' }, [verifier]), unsigned);
  t.equal(checkProof(proof, []), unsigned);
  t.equal(checkProof(proof, [parseVkey(encodeVkey(`${origin}/2`, 'ed25519', signer.publicKeySpki))]), unsigned);
});

t.test('no single character of a proof can be exchanged: it is refused, or proves nothing', async (t) => {
  const text = encodeProof(await proofOf(5, 11));
  const wrong: string[] = [];
  for (let at = 0; at < text.length; at++) {
    for (const other of ['A', 'B', '0', '7', '\n', ' ']) {
      if (other === text[at]) continue;
      const proof = parseProof(text.slice(0, at) + other + text.slice(at + 1));
      if (proof !== null && typeof checkProof(proof, [verifier]) !== 'string') wrong.push(`${JSON.stringify(other)} at ${at}`);
    }
  }
  t.same(wrong, []);
});

t.test('an entry of a log that another implementation made is proven by its checkpoint and key', async (t) => {
  const log = JSON.parse(readFileSync(new URL('../vectors/tessera-log.json', import.meta.url), 'utf8')) as { vkey: string; bundle: string; checkpoints: string[] };
  const entries = decodeBundle(Buffer.from(log.bundle, 'hex'));
  const tree = new NaiveTree(entries);
  for (const [index, entry] of entries.entries()) {
    const proof = { index, hashes: await inclusionProof(index, 15, tree), checkpoint: log.checkpoints[15]!, extra: Buffer.from(entry) };
    t.match(checkProof(proof, [parseVkey(log.vkey)]), { entry: Buffer.from(entry), checkpoint: { size: 15 } });
  }
});
