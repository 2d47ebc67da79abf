import { argon2Sync } from 'node:crypto';
import t from 'tap';
import { checkPassword, hashPassword, presentCost } from '../../vault/password.ts';

const cheap = { memory: 64, passes: 1, lanes: 1 };

t.test('RFC 9106 section 5.3: Argon2id', async (t) => {
  const tag = argon2Sync('argon2id', { message: Buffer.alloc(32, 1), nonce: Buffer.alloc(16, 2), secret: Buffer.alloc(8, 3), associatedData: Buffer.alloc(12, 4), parallelism: 4, memory: 32, passes: 3, tagLength: 32 });
  t.equal(tag.toString('hex'), '0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659');
});

t.test('a password is known again, and no other', async (t) => {
  const kept = await hashPassword(Buffer.from('correct horse battery'), cheap);
  t.match(kept, /^\$argon2id\$v=19\$m=64,t=1,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/u);
  t.same(await checkPassword(kept, Buffer.from('correct horse battery'), cheap), { right: true, weak: false });
  for (const other of ['correct horse batterz', 'correct horse batter', '', 'correct horse battery ']) t.same(await checkPassword(kept, Buffer.from(other), cheap), { right: false, weak: false });
  t.not(kept, await hashPassword(Buffer.from('correct horse battery'), cheap), 'under a salt of its own each time');
});

t.test('what was kept under a lower cost says so', async (t) => {
  const kept = await hashPassword(Buffer.from('correct horse battery'), cheap);
  t.same(await checkPassword(kept, Buffer.from('correct horse battery'), { ...cheap, memory: 128 }), { right: true, weak: true });
  t.same(await checkPassword(kept, Buffer.from('correct horse battery'), { ...cheap, passes: 2 }), { right: true, weak: true });
  t.same(presentCost, { memory: 65_536, passes: 3, lanes: 1 }, 'RFC 9106 section 4, second recommended option, one lane');
});

t.test('no more than a few at once, and no more than some wait', async (t) => {
  const work = Array.from({ length: 40 }, () => hashPassword(Buffer.from('x'), { memory: 8192, passes: 1, lanes: 1 }).then(() => 'done', (error: { code: string }) => error.code));
  const ended = await Promise.all(work);
  t.equal(ended.filter((code) => code === 'done').length, 18);
  t.equal(ended.filter((code) => code === 'overloaded').length, 22);
  t.ok(await hashPassword(Buffer.from('x'), cheap));
});

t.test('what is no hash of ours is refused', async (t) => {
  for (const kept of ['', '$argon2i$v=19$m=64,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA', '$2b$10$abcdefghijklmnopqrstuv']) await t.rejects(checkPassword(kept, Buffer.from('x'), cheap));
});
