import t from 'tap';
import { isLater, keysOf } from '../../audit/log-keys.ts';
import { encodeVkey, parseVkey } from '../../audit/note.ts';
import { makeSigner } from '../support/made-log.ts';

t.test('one vkey stands for all logs of its vault, and for no other', async (t) => {
  for (const algorithm of ['ed25519', 'ecdsa-p256'] as const) {
    const { publicKeySpki } = makeSigner(algorithm);
    const names = (name: string, origin: string): unknown => {
      const keys = keysOf(parseVkey(encodeVkey(name, algorithm, publicKeySpki)), origin);
      return keys === null ? null : [keys.checkpoint.name, ...keys.certifier.map((one) => one.name)];
    };
    t.same(names('a.test/log', 'a.test/log'), ['a.test/log', 'a.test/log']);
    t.same(names('a.test/log', 'a.test/log/2'), ['a.test/log/2', 'a.test/log']);
    t.same(names('a.test/log', 'a.test/log/10'), ['a.test/log/10', 'a.test/log']);
    t.same(names('a.test/log/3', 'a.test/log'), ['a.test/log', 'a.test/log']);
    t.same(names('a.test/log/3', 'a.test/log/2'), ['a.test/log/2', 'a.test/log']);
    t.same(names('a.test/log/3', 'a.test/log/3'), ['a.test/log/3', 'a.test/log/3', 'a.test/log'], 'its own, or the third one of another name');
    for (const origin of ['', 'a.test', 'a.test/log/1', 'a.test/log/0', 'a.test/log/02', 'a.test/log/2/2', 'a.test/log/x', 'a.test/logs', 'b.test/log']) t.equal(names('a.test/log', origin), null, origin);
    const { key } = keysOf(parseVkey(encodeVkey('a', algorithm, publicKeySpki)), 'a/2')!.checkpoint;
    t.ok(key.export({ format: 'der', type: 'spki' }).equals(publicKeySpki), 'the key is the same');
  }
});

t.test('logs of a vault come one after the other, by their names', async (t) => {
  for (const [origin, than] of [['a/2', 'a'], ['a/3', 'a/2'], ['a/10', 'a/9'], ['a/2/2', 'a/2']] as const) {
    t.equal(isLater(origin, than), true, `${origin} after ${than}`);
    t.equal(isLater(than, origin), false, `${than} before ${origin}`);
  }
  for (const [one, other] of [['a', 'a'], ['a/2', 'a/2'], ['a/2', 'b'], ['a/3', 'b/2']] as const) t.equal(isLater(one, other), false, `${one} and ${other}`);
});
