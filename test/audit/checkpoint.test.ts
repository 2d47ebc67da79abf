import { generateKeyPairSync, sign } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import t from 'tap';
import { checkpointText, openCheckpoint, parseCheckpoint, signCheckpoint, type Checkpoint } from '../../audit/checkpoint.ts';
import { emptyRoot, leafHash } from '../../audit/merkle.ts';
import { encodeVkey, openNote, parseVkey, signNote, type NoteAlgorithm, type NoteSigner } from '../../audit/note.ts';

/** The example of https://c2sp.org/tlog-checkpoint. Its signature is the one of `goSumDatabase`, under another name and text. */
const specification = 'example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n';
/** A checkpoint of sum.golang.org, and its key as cmd/go/internal/modfetch/key.go of the Go toolchain has it. */
const goSumDatabase = {
  vkey: 'sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8',
  note: 'go.sum database tree\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— sum.golang.org Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n',
};
const example: Checkpoint = { origin: 'example.com/behind-the-sofa', size: 20_852_163, root: Buffer.from('CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=', 'base64') };

function freshSigner(algorithm: NoteAlgorithm): NoteSigner {
  const { privateKey, publicKey } = algorithm === 'ed25519' ? generateKeyPairSync('ed25519') : generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  return { algorithm, publicKeySpki: publicKey.export({ format: 'der', type: 'spki' }), sign: async (message) => sign(algorithm === 'ed25519' ? null : 'sha256', message, privateKey) };
}

const verifierOf = (name: string, signer: NoteSigner) => parseVkey(encodeVkey(name, signer.algorithm, signer.publicKeySpki));

t.test('the example of the specification is read and written', async (t) => {
  const text = specification.slice(0, specification.indexOf('\n\n') + 1);
  t.same(parseCheckpoint(text), example);
  t.equal(checkpointText(example), text);
});

t.test('the checkpoint of a public log opens as a note by its published key, but not as a checkpoint: its key is not named like its origin', async (t) => {
  const verifier = parseVkey(goSumDatabase.vkey);
  const text = openNote(goSumDatabase.note, [verifier]);
  t.same(parseCheckpoint(text ?? ''), { ...example, origin: 'go.sum database tree' });
  t.equal(openCheckpoint(goSumDatabase.note, [verifier]), null);
});

t.test('the tree heads of the Go package are read, and its malformed ones refused', async (t) => {
  // golang.org/x/mod, sumdb/tlog/note_test.go.
  const tree = 'go.sum database tree\n123456789012\nTszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=\n';
  const read = { origin: 'go.sum database tree', size: 123_456_789_012, root: leafHash(Buffer.from('hello world')) };
  t.equal(checkpointText(read), tree);
  for (const good of [tree, `${tree}JOE\n`, tree + 'JOE\n'.repeat(1000)]) t.same(parseCheckpoint(good), read);
  t.equal(parseCheckpoint('go.sum database tree\n0xabcdef\nTszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=\n'), null);
  t.equal(parseCheckpoint('go.sum database tree\n123456789012\nTszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBTOOBIG=\n'), null);
  // A note text ends in a newline, so this one, which Go reads, is none.
  t.equal(parseCheckpoint(`${tree}JOE`), null);
});

t.test('a checkpoint that another implementation signed opens by its key', async (t) => {
  const log = JSON.parse(readFileSync(new URL('../vectors/tessera-log.json', import.meta.url), 'utf8')) as { vkey: string; checkpoints: string[] };
  for (const [size, note] of log.checkpoints.entries()) t.match(openCheckpoint(note, [parseVkey(log.vkey)]), { origin: 'example.com/log/testdata', size });
  t.ok(openCheckpoint(log.checkpoints[0]!, [parseVkey(log.vkey)])?.root.equals(emptyRoot));
});

t.test('every text but the one of a checkpoint is refused', async (t) => {
  const root = example.root.toString('base64');
  const wrong = [
    // transparency-dev/formats, log/checkpoint_test.go, with a root of 32 bytes.
    ['Head\n9944\n', `\n9944\n${root}\n`, `Log\n123\n${root}`, `Log\nbananas\n${root}\n`, `Log\n-34\n${root}\n`, `Log\n3438945738945739845734895735\n${root}\n`, "Log\n123\nThisIsn'tBase64\n"],
    // Its roots, which are not of SHA-256.
    ['Log\n123\nYmFuYW5hcw==\n', 'Banana\n9944\ndGhlIHZpZXcgZnJvbSB0aGUgdHJlZSB0b3BzIGlzIGdyZWF0IQ==\n'],
    ['', '\n', '\n\n\n', 'o', `o\n1\n${root}\n\n`, `o\n1\n${root}\n\nextension\n`, `o\n1\n${root}\nextension\n\n`, `o\n1\n${root}\nextension`, `\no\n1\n${root}\n`, `o\n\n1\n${root}\n`],
    ['01', '00', '+1', '-0', '1.0', '1e3', ' 1', '1 ', '0x1', '', '٣', '9007199254740992', '1\r'].map((size) => `o\n${size}\n${root}\n`),
    [root.slice(0, -1), `${root}=`, ` ${root}`, root.replace('I=', 'J='), root.replaceAll('+', '-').replaceAll('/', '_'), emptyRoot.toString('hex'), Buffer.alloc(31).toString('base64'), Buffer.alloc(33).toString('base64'), ''].map((root) => `o\n1\n${root}\n`),
    [`o\r\n1\r\n${root}\r\n`, `o\r\n1\n${root}\n`, `o\n1\n${root}\next\r\n`],
  ].flat();
  for (const text of wrong) t.equal(parseCheckpoint(text), null, JSON.stringify(text));
  t.same(parseCheckpoint(`o\n9007199254740991\n${root}\nan extension\nand another\n`), { origin: 'o', size: Number.MAX_SAFE_INTEGER, root: example.root });
  t.not(parseCheckpoint(`o\n1\n${root}\n${'a\n'.repeat(490_000)}`), null, 'as many extension lines as a note can hold');
});

t.test('what is no checkpoint is not written', async (t) => {
  for (const origin of ['', 'two\nlines', 'a\r']) t.throws(() => checkpointText({ ...example, origin }), RangeError);
  for (const size of [-1, 0.5, 2 ** 53, Number.NaN]) t.throws(() => checkpointText({ ...example, size }), RangeError);
  for (const bytes of [0, 31, 33]) t.throws(() => checkpointText({ ...example, root: Buffer.alloc(bytes) }), RangeError);
  await t.rejects(signCheckpoint({ ...example, origin: 'with a space' }, freshSigner('ed25519')), /key name/u);
  await t.rejects(signCheckpoint({ ...example, size: -1 }, freshSigner('ed25519')), RangeError);
});

t.test('what is written is read back as the same', async (t) => {
  const checkpoint = fc.record({ origin: fc.stringMatching(/^[^\r\n]+$/u), size: fc.maxSafeNat(), root: fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes)) });
  fc.assert(fc.property(checkpoint, (checkpoint) => t.same(parseCheckpoint(checkpointText(checkpoint)), checkpoint)));
});

t.test('a signed checkpoint opens by the key of its origin only, with both algorithms', async (t) => {
  for (const algorithm of ['ed25519', 'ecdsa-p256'] as const) {
    const signer = freshSigner(algorithm);
    const checkpoint = { ...example, origin: 'vault.example/log/2' };
    const note = await signCheckpoint(checkpoint, signer);
    t.same(openCheckpoint(note, [verifierOf('vault.example/log/2', signer)]), checkpoint);
    t.same(openCheckpoint(note, [verifierOf('vault.example/log', signer), verifierOf('vault.example/log/2', signer)]), checkpoint);
    t.equal(openCheckpoint(note, [verifierOf('vault.example/log', signer)]), null, 'the same key under the name of the log before');
    t.equal(openCheckpoint(note, [verifierOf('vault.example/log/2', freshSigner(algorithm))]), null, 'another key of the name');
    t.equal(openCheckpoint(note, []), null);
    t.equal(openCheckpoint(note.replace('20852163', '20852164'), [verifierOf('vault.example/log/2', signer)]), null, 'another size');
    t.equal(openCheckpoint(note.replace('log/2\n', 'log/3\n'), [verifierOf('vault.example/log/2', signer), verifierOf('vault.example/log/3', signer)]), null, 'another origin');
  }
});

t.test('a checkpoint is not vouched for by a key of another name, even with a good signature', async (t) => {
  const [log, witness] = [freshSigner('ed25519'), freshSigner('ed25519')];
  const verifiers = [verifierOf('log.example', log), verifierOf('witness.example', witness)];
  const byWitness = await signNote(checkpointText({ ...example, origin: 'log.example' }), 'witness.example', witness);
  t.equal(openCheckpoint(byWitness, verifiers), null);
  const byLog = await signCheckpoint({ ...example, origin: 'log.example' }, log);
  t.same(openCheckpoint(byLog + byWitness.slice(byWitness.indexOf('\n\n') + 2), verifiers), { ...example, origin: 'log.example' }, 'beside that of the log it does no harm');
});

t.test('a note that is signed but is no checkpoint, and a text that is no note, are refused', async (t) => {
  const signer = freshSigner('ed25519');
  for (const text of ['log.example\n', 'log.example\n01\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n', 'log.example\n1\n']) t.equal(openCheckpoint(await signNote(text, 'log.example', signer), [verifierOf('log.example', signer)]), null);
  for (const text of ['', 'log.example', '\n', checkpointText(example), specification.slice(0, -1)]) t.equal(openCheckpoint(text, [verifierOf('log.example', signer)]), null);
});
