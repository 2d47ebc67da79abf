import { createPrivateKey, generateKeyPairSync, sign, type KeyObject } from 'node:crypto';
import t from 'tap';
import { encodeVkey, noteKeyId, openNote, parseVkey, signNote, type NoteAlgorithm, type NoteSigner } from '../../audit/note.ts';

/** The example of golang.org/x/mod/sumdb/note (package documentation and example_test.go). */
const go = {
  vkey: 'PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW',
  skey: 'PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz',
  text: "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n",
  signature: '— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n',
};
/** A second key and signature of the same text, from note_test.go there. */
const enoch = {
  vkey: 'EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop',
  signature: '— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n',
};
/** The example of https://c2sp.org/signed-note. */
const specification = {
  vkey: 'example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k',
  note: 'This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n',
};
const goNote = `${go.text}\n${go.signature}`;

function signerOf(algorithm: NoteAlgorithm, privateKey: KeyObject, publicKey: KeyObject): NoteSigner {
  const publicKeySpki = publicKey.export({ format: 'der', type: 'spki' });
  return { algorithm, publicKeySpki, sign: async (message) => (algorithm === 'ed25519' ? sign(null, message, privateKey) : sign('sha256', message, privateKey)) };
}

function freshSigner(algorithm: NoteAlgorithm): NoteSigner {
  const { privateKey, publicKey } = algorithm === 'ed25519' ? generateKeyPairSync('ed25519') : generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  return signerOf(algorithm, privateKey, publicKey);
}

t.test('the notes of the specification and of the Go package open, and their keys are read and written', async (t) => {
  t.equal(openNote(goNote, [parseVkey(go.vkey)]), go.text);
  t.equal(openNote(specification.note, [parseVkey(specification.vkey)]), 'This is an example message.\n');
  for (const vkey of [go.vkey, enoch.vkey, specification.vkey]) {
    const { name, algorithm, key, keyId } = parseVkey(vkey);
    t.equal(encodeVkey(name, algorithm, key.export({ format: 'der', type: 'spki' })), vkey);
    t.equal(keyId.toString('hex'), vkey.split('+')[1]);
  }
});

t.test('signing with the key of the Go example gives its note, byte for byte', async (t) => {
  // The private half is the seed after the type byte; RFC 8410, section 7 wraps it.
  const seed = Buffer.from(go.skey.split('+').slice(4).join('+'), 'base64').subarray(1);
  const privateKey = createPrivateKey({ key: Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), seed]), format: 'der', type: 'pkcs8' });
  const { key } = parseVkey(go.vkey);
  t.equal(await signNote(go.text, 'PeterNeumann', signerOf('ed25519', privateKey, key)), goNote);
});

t.test('a note with several signatures opens by any of its keys, and unknown keys are ignored', async (t) => {
  const both = `${goNote}${enoch.signature}`;
  t.equal(openNote(both, [parseVkey(go.vkey)]), go.text);
  t.equal(openNote(both, [parseVkey(enoch.vkey)]), go.text);
  t.equal(openNote(both, [parseVkey(go.vkey), parseVkey(enoch.vkey)]), go.text);
  t.equal(openNote(both, [parseVkey(specification.vkey)]), null, 'no key of ours signed it');
  t.equal(openNote(both, []), null);
});

t.test('one bad signature by a known key refuses the whole note, although another is good', async (t) => {
  const bad = enoch.signature.replace('rwz+eBzm', 'rwz+eBzn');
  t.equal(openNote(`${goNote}${bad}`, [parseVkey(go.vkey), parseVkey(enoch.vkey)]), null);
  t.equal(openNote(`${goNote}${bad}`, [parseVkey(go.vkey)]), go.text, 'whoever does not know the key cannot judge it');
});

t.test('a flip of any bit of the text or of the signature refuses the note', async (t) => {
  const verifiers = [parseVkey(go.vkey)];
  const bytes = Buffer.from(goNote, 'utf8');
  const opened: string[] = [];
  for (let at = 0; at < bytes.length; at++) {
    for (let bit = 0; bit < 8; bit++) {
      const flipped = Buffer.from(bytes);
      flipped[at]! ^= 1 << bit;
      if (openNote(flipped.toString('utf8'), verifiers) !== null) opened.push(`bit ${bit} of byte ${at}`);
    }
  }
  t.same(opened, []);
});

t.test('what is not a note is refused', async (t) => {
  const verifiers = [parseVkey(go.vkey)];
  const cases: Readonly<Record<string, string>> = {
    empty: '',
    'no signature': `${go.text}\n`,
    'no empty line': `${go.text}${go.signature}`,
    'no newline at the end': goNote.slice(0, -1),
    'a hyphen for the dash': goNote.replace('— P', '- P'),
    'a space too many': goNote.replace('— P', '—  P'),
    'a carriage return': goNote.replaceAll('\n', '\r\n'),
    'no base64': goNote.replace('x08go/', 'x08go_'),
    'a signature of four bytes': `${go.text}\n— PeterNeumann x08gow==\n`,
    'more signatures than anybody needs': `${go.text}\n${go.signature.repeat(101)}`,
    'another name for the key': goNote.replace('PeterNeumann', 'PeterNeuman'),
  };
  for (const [what, note] of Object.entries(cases)) t.equal(openNote(note, verifiers), null, what);
});

t.test('a note of more than a million bytes is not read, whoever signed it', async (t) => {
  const signer = freshSigner('ed25519');
  const verifiers = [parseVkey(encodeVkey('log', 'ed25519', signer.publicKeySpki))];
  const rest = Buffer.byteLength(await signNote('\n', 'log', signer)) - 1;
  // Bytes count, not characters.
  const text = (bytes: number): string => `${'é'.repeat((bytes - rest - 2) / 2)}\n\n`;
  const largest = text(1_000_000 - (rest % 2));
  t.equal(openNote(await signNote(largest, 'log', signer), verifiers), largest);
  t.equal(openNote(await signNote(`${largest}\n\n`, 'log', signer), verifiers), null);
});

t.test('a mangled vkey is refused, wherever it is cut or changed', async (t) => {
  // As note_test.go of the Go package does.
  for (let from = 0; from <= go.vkey.length; from++)
    for (let to = from + 1; to <= go.vkey.length; to++) if (to - from < go.vkey.length && isVkey(go.vkey.slice(from, to))) t.fail(`${from} to ${to}`);
  for (let at = 0; at < go.vkey.length; at++) {
    const changed = go.vkey.slice(0, at) + String.fromCharCode(go.vkey.charCodeAt(at) + 1) + go.vkey.slice(at + 1);
    if (isVkey(changed)) t.fail(`character ${at}`);
  }
  t.notOk(isVkey('PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY=='), 'a key too long');
  t.notOk(isVkey('PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW'), 'an unknown type with its own key id');
});

function isVkey(text: string): boolean {
  try {
    parseVkey(text);
    return true;
  } catch {
    return false;
  }
}

t.test('either algorithm signs what its vkey opens, and not what another key of the name opens', async (t) => {
  for (const algorithm of ['ed25519', 'ecdsa-p256'] as const) {
    const signer = freshSigner(algorithm);
    const note = await signNote('a\n\nb\n', 'cofre.dev/log', signer);
    t.equal(openNote(note, [parseVkey(encodeVkey('cofre.dev/log', algorithm, signer.publicKeySpki))]), 'a\n\nb\n', algorithm);
    t.equal(openNote(note, [parseVkey(encodeVkey('cofre.dev/log', algorithm, freshSigner(algorithm).publicKeySpki))]), null);
    t.equal(noteKeyId('cofre.dev/log', algorithm, signer.publicKeySpki).length, 4);
  }
});

t.test('nothing is signed that is no note text or no key name', async (t) => {
  const signer = freshSigner('ed25519');
  for (const text of ['', 'no newline', 'a\r\n', 'a\u0000\n', 'half \ud800\n']) await t.rejects(signNote(text, 'log', signer), { message: 'not a note text' });
  for (const name of ['', 'a b', 'a+b', 'a\nb']) await t.rejects(signNote('a\n', name, signer), { message: 'not a key name' });
});
