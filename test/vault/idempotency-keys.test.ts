/** Keys that ran out leave the table as fast as they come; one of a batch tells what was done of it so far. What a key of a single call tells is test/vault/tokenize.test.ts's matter. */
import t from 'tap';
import type { TokenizeAnswer } from '../../vault/tokenize.ts';
import { sweepIdempotencyKeys } from '../../vault/token-store.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { asOwner, codeOf, digitsOf, memoryTenants, openVault, storedLog, storedTokens, tokensIn } from '../support/memory-vault.ts';

t.test('all keys that ran out are swept, however many, and no other', async (t) => {
  const database = await freshDatabase(t);
  const before = new Date('2026-11-24T12:00:00Z');
  await asOwner(
    database,
    `INSERT INTO idempotency_keys (tenant_id, key_hash, request_mac, tokens, created_tokens, created_at)
     SELECT 1, decode(lpad(to_hex(n + 100), 64, '0'), 'hex'), '', 'tok_', '1', $1::timestamptz + n * interval '1 second' FROM generate_series(-30, 5) AS n`,
    [before],
  );
  await withClient(database.connect('tokenize'), async (client) => {
    t.equal(await sweepIdempotencyKeys(client, before, 10), 31);
    t.equal(await sweepIdempotencyKeys(client, before, 10), 0);
  });
  t.same(await asOwner(database, 'SELECT count(*)::int AS left, min(created_at) AS first FROM idempotency_keys'), [{ left: 5, first: new Date('2026-11-24T12:00:01Z') }]);
});

t.test('a batch of which some cards were refused for guessing goes on where it is repeated, and is never another request', async (t) => {
  const database = await freshDatabase(t);
  const { name, keys } = memoryTenants.byId.get(1)!;
  const cards = [1, 2, 3, 4];
  const fingerprints = cards.map((card) => (keys.fingerprint.compute(name, digitsOf(card)) as Buffer).toString('hex'));
  let granted: readonly number[] = [];
  const guessing = (fingerprint: Uint8Array): 'granted' | 'refused' => (granted.includes(cards[fingerprints.indexOf(Buffer.from(fingerprint).toString('hex'))]!) ? 'granted' : 'refused');
  const vaults = [await openVault(t, database, { guessing }), await openVault(t, database, { guessing })];
  const items = cards.map((card) => ({ card, input: { reuse: false, metadata: { card } } }));
  const tokensOf = (answers: readonly (TokenizeAnswer | string)[]): string[] => answers.map((answer) => (typeof answer === 'string' ? answer : answer.token));
  const repeat = async (now: readonly number[], request?: string): Promise<string[]> => {
    granted = now;
    const answers = await vaults[0]!.batch(items, 'a key', request);
    t.ok(answers.every((answer) => typeof answer === 'string' || answer.created), 'what the batch made is answered as made');
    return tokensOf(answers);
  };

  t.same(await repeat([]), cards.map(() => 'quota_exceeded'));
  const [, second, third] = await repeat([2, 3]);
  t.same(await repeat([2, 3]), ['quota_exceeded', second, third, 'quota_exceeded'], 'as the first time');
  const [first] = await repeat([1, 3], '00000000-0000-4000-8000-000000000001');
  t.not(first, 'quota_exceeded', 'one more');
  t.same(await repeat([], '00000000-0000-4000-8000-000000000002'), [first, second, third, 'quota_exceeded'], 'and what was done is told on a day when it could not be');
  t.equal(await codeOf(vaults[0]!.batch(items.slice(0, 3), 'a key')), 'idempotency_conflict');
  t.equal(await codeOf(vaults[0]!.batch(items.toReversed(), 'a key')), 'idempotency_conflict');

  granted = cards;
  const twins = await Promise.all(Array.from({ length: 6 }, (_, n) => vaults[n % 2]!.batch(items, 'a key')));
  const [whole] = twins.map(tokensOf);
  t.same(whole!.slice(0, 3), [first, second, third]);
  for (const twin of twins) t.same(tokensOf(twin), whole, 'whoever goes on, all are told of it');
  t.same(await repeat([]), whole);
  t.same([...(await storedTokens(database)).keys()].sort(), whole!.toSorted(), 'each card has one token');
  t.same(await asOwner(database, 'SELECT tokens, created_tokens FROM idempotency_keys'), [{ tokens: whole!.join(','), created_tokens: '1111' }]);

  const log = await storedLog(database);
  t.same(log.faults, []);
  const said = (n: number): object => log.places.get(`00000000-0000-4000-8000-00000000000${n}`)![0]!.entry;
  t.match(said(1), { outcome: 'allowed', tokens: { created: [first], replayed: [third, second] }, items: { quota_exceeded: 1 }, detail: { guesses: 1 } });
  t.same(tokensIn(said(2)), { replayed: [first, second, third] });
  t.match(said(2), { items: { quota_exceeded: 1 }, detail: { guesses: 1 } });
  const events = await asOwner<{ token: string }>(database, "SELECT event->>'subject' AS token FROM outbox o, json_array_elements(o.events) AS e(event)");
  t.same(events.map(({ token }) => token).sort(), whole!.toSorted(), 'and one event');
});

t.test('a key does not tell which cards it was used for, once nothing else may', async (t) => {
  const database = await freshDatabase(t);
  let standing: 'granted' | 'refused' | 'closed' = 'granted';
  const vault = await openVault(t, database, { guessing: () => standing });
  await vault.batch([{ card: 1 }], 'a key');
  standing = 'closed';
  t.equal(await codeOf(vault.batch([{ card: 1 }], 'a key')), 'quota_exceeded', 'the card of the key');
  t.equal(await codeOf(vault.batch([{ card: 2 }], 'a key')), 'quota_exceeded', 'another one');
  t.same(await vault.batch([{ card: 1 }, { card: 2 }]), ['quota_exceeded', 'quota_exceeded'], 'and without a key each is refused alone');
});
