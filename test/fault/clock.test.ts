/** The vault's clock stepped forth and back: chains hold, keys and tokens keep their meaning, and what has ended does not begin again. */
import { randomUUID } from 'node:crypto';
import t from 'tap';
import { freshDatabase } from '../support/database.ts';
import { asOwner, codeOf, openVault, storedLog, storedTokens } from '../support/memory-vault.ts';

const minute = 60_000;
const hour = 60 * minute;
const day = 24 * hour;

await t.test('steps of every size between calls, in both directions, lose and double nothing', async (t) => {
  const database = await freshDatabase(t);
  let offset = 0;
  const vault = await openVault(t, database, { now: () => new Date(Date.now() + offset) });
  const made = new Map<number, string>();
  const steps = [0, 1, -1, 1000, -1000, hour, -2 * hour, 30 * day, -30 * day, -400 * day, 3650 * day, 0];
  for (const [index, step] of steps.entries()) {
    offset = step;
    const key = `key-${index}`;
    const first = await vault.tokenize(index, { reuse: false }, key);
    const batch = await vault.batch([{ card: 100 + index }, { card: 100 + index, input: { format: 'numeric' } }], `batch-${key}`);
    t.same(await vault.tokenize(index, { reuse: false }, key), first, `${step} ms: the same call gets the same token`);
    t.same(await vault.batch([{ card: 100 + index }, { card: 100 + index, input: { format: 'numeric' } }], `batch-${key}`), batch);
    made.set(index, first.token);
    for (const [card, token] of made) t.equal((await vault.tokenize(card)).token, token, 'every card of before is known');
    t.equal((await vault.change('suspend', first.token)).status, 'suspended');
    t.equal((await vault.change('resume', first.token)).status, 'active');
  }
  t.same((await storedLog(database)).faults, [], 'chains and signatures hold');
  const stored = await storedTokens(database);
  t.equal(stored.size, 3 * steps.length);
  t.ok([...stored.values()].every(({ genuine }) => genuine));
});

await t.test('a key that was used before the clock went back still tells the same, and one that is used ahead is not taken for another', async (t) => {
  const database = await freshDatabase(t);
  let offset = 0;
  const vault = await openVault(t, database, { now: () => new Date(Date.now() + offset) });
  const key = randomUUID();
  const first = await vault.tokenize(1, { reuse: false }, key);
  offset = -3 * day;
  t.same(await vault.tokenize(1, { reuse: false }, key), first, 'from before its own time');
  t.equal(await codeOf(vault.tokenize(2, { reuse: false }, key)), 'idempotency_conflict');
  offset = 23 * hour;
  t.same(await vault.tokenize(1, { reuse: false }, key), first, 'in its window');
  offset = 0;
  t.same(await vault.tokenize(1, { reuse: false }, key), first);
  t.equal((await storedTokens(database)).size, 1);
});

await t.test('a token past its end that was marked stays ended when the clock goes back; one that was not lives again, as its own end says', async (t) => {
  const database = await freshDatabase(t);
  let offset = 0;
  const vault = await openVault(t, database, { now: () => new Date(Date.now() + offset) });
  const marked = await vault.tokenize(1, { ttl_seconds: 3600 });
  const kept = await vault.tokenize(2, {});
  offset = 2 * hour;
  const unmarked = await vault.tokenize(3, { ttl_seconds: 1 });
  offset = 2 * hour + minute;
  t.equal(await codeOf(vault.change('suspend', unmarked.token)), 'token_expired');
  offset = -day;
  t.equal(await vault.sweep(), 0, 'nothing has ended yesterday');
  t.equal((await vault.change('suspend', unmarked.token)).status, 'suspended');
  offset = 2 * hour + minute;
  t.equal(await vault.sweep(), 2);
  for (const step of [-day, -hour, 0, hour]) {
    offset = step;
    for (const { token } of [marked, unmarked]) {
      const code = await codeOf(vault.change('resume', token));
      t.equal(code, 'token_expired', `${step} ms: ended for good`);
    }
    t.equal((await vault.tokenize(2)).token, kept.token);
  }
  const [cards] = await asOwner<{ destroyed: number }>(database, 'SELECT count(*)::int AS destroyed FROM cards WHERE fingerprint IS NULL AND length(sealed_pan) = 0');
  t.equal(cards!.destroyed, 2, 'with their cards');
  t.same((await storedLog(database)).faults, []);
});

await t.test('a clock that jumps under every call, through a restart of the writer', async (t) => {
  const database = await freshDatabase(t);
  let calls = 0;
  // Alternately far ahead and far back, as two processes whose clocks disagree would be.
  const now = (): Date => new Date(Date.now() + ((calls += 1) % 2 === 0 ? 5 * day : -5 * day));
  for (let run = 0; run < 3; run += 1) {
    const vault = await openVault(t, database, { now });
    const tokens = await Promise.all(Array.from({ length: 40 }, (_, card) => vault.tokenize(card)));
    t.equal(new Set(tokens.map(({ token }) => token)).size, 40);
    t.equal(tokens.filter(({ created }) => created).length, run === 0 ? 40 : 0, 'made once');
    await vault.close();
  }
  t.same((await storedLog(database)).faults, []);
  t.ok([...(await storedTokens(database)).values()].every(({ genuine }) => genuine));
});
