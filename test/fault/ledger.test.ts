/** The reckoning itself: whatever is changed behind the back of a vault, it says so. And the HSM away under every kind of call. */
import { renameSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'pg';
import t, { type Test } from 'tap';
import { startAppliance, until, type Appliance } from '../support/appliance.ts';
import { Ledger } from '../support/ledger.ts';

async function loaded(t: Test, config: object = {}): Promise<{ appliance: Appliance; ledger: Ledger }> {
  const appliance = await startAppliance(t, { config: { events: { outbox: true }, tokens: { sweep_interval: '1s' }, ...config } });
  const ledger = new Ledger(appliance, { port: appliance.apiPort, seed: 3, lanes: 6, pauseMs: 4, outbox: true });
  t.teardown(() => ledger.close());
  ledger.resume();
  await until(() => ledger.counts.acknowledged > 250, 'the load');
  return { appliance, ledger };
}

await t.test('what was lost, doubled or changed is found', { timeout: 120_000 }, async (t) => {
  const { appliance, ledger } = await loaded(t);
  await ledger.pause();
  t.same(await ledger.reckon(true), [], 'at first nothing is wrong');

  const owner = new Client({ connectionString: appliance.databaseUrl });
  await owner.connect();
  t.teardown(() => owner.end());
  const plain = "status = 0 AND token_expires_at IS NULL AND NOT EXISTS (SELECT FROM tokens t WHERE t.card_token = cards.token) ORDER BY token LIMIT 1";
  // A superuser switches triggers and foreign keys off, as whoever loses or forges rows would.
  const attempts: readonly (readonly [what: string, sql: string, finds: RegExp])[] = [
    ['a card that is gone', `DELETE FROM cards WHERE token = (SELECT token FROM cards WHERE ${plain})`, /an acknowledged token is lost/u],
    ['a further token that is gone', 'DELETE FROM tokens WHERE token = (SELECT min(token) FROM tokens WHERE status = 0)', /an acknowledged token is lost/u],
    ['a token that was suspended by nobody', `UPDATE cards SET status = 1 WHERE token = (SELECT token FROM cards WHERE ${plain})`, /stands with status 1/u],
    ['a change that was done twice', `UPDATE cards SET row_version = row_version + 1 WHERE token = (SELECT token FROM cards WHERE ${plain})`, /changed \d times stands in version/u],
    ['another expiry', `UPDATE cards SET expiry = 202001 WHERE token = (SELECT token FROM cards WHERE ${plain})`, /another expiry/u],
    ['a token of nobody', `INSERT INTO tokens (tenant_id, token, card_token, format, status, row_version, token_mac, created_at, made_writer, made_batch) SELECT tenant_id, 'tok_nobody', token, 0, 0, 1, token_mac, created_at, made_writer, made_batch FROM cards WHERE ${plain}`, /a token stands that nobody was given/u],
    ['a row of another batch', `UPDATE cards SET made_batch = made_batch + 1 WHERE token = (SELECT token FROM cards WHERE ${plain})`, /no entry of its batch tells of/u],
    ['a batch that is gone from the middle', 'DELETE FROM batches WHERE (writer, number) = (SELECT writer, 1 FROM batches GROUP BY writer HAVING count(*) > 3 LIMIT 1)', /batch 1 is missing/u],
    ['the tail of a chain that is gone', 'DELETE FROM batches WHERE (writer, number) = (SELECT writer, max(number) FROM batches GROUP BY writer ORDER BY max(number) DESC LIMIT 1)', /an acknowledged call has no entry/u],
    ['a signature', 'UPDATE batches SET signature = set_byte(signature, 5, get_byte(signature, 5) # 1) WHERE (writer, number) = (SELECT writer, 2 FROM batches WHERE number = 2 LIMIT 1)', /wrong signature/u],
    ['events that are gone', 'DELETE FROM outbox WHERE (writer, number) = (SELECT writer, min(number) FROM outbox GROUP BY writer LIMIT 1)', /no event tells of a token that was made|the events of a token are not its changes/u],
    ['an event that was told twice', "UPDATE outbox SET events = (SELECT json_agg(e) FROM (SELECT json_array_elements(events) AS e UNION ALL SELECT json_array_elements(events)) AS d) WHERE (writer, number) = (SELECT writer, number FROM outbox WHERE events::text LIKE '%token.created%' LIMIT 1)", /two events tell of the making of one token/u],
    ['an Idempotency-Key that is gone', 'DELETE FROM idempotency_keys WHERE key_hash = (SELECT min(key_hash) FROM idempotency_keys)', /Idempotency-Keys stand/u],
  ];
  for (const [what, sql, finds] of attempts) {
    // Looked at and undone in one transaction: the reckoning reads on the connection that changed it.
    await owner.query('BEGIN; SET LOCAL session_replication_role = replica');
    t.equal((await owner.query(sql)).rowCount, 1, what);
    t.match((await ledger.read(owner)).join('\n'), finds, what);
    await owner.query('ROLLBACK');
  }
  t.same(await ledger.reckon(true), [], 'undone, nothing is wrong');

  await owner.query(`UPDATE cards SET token_mac = set_byte(token_mac, 0, get_byte(token_mac, 0) # 1) WHERE token = (SELECT token FROM cards WHERE ${plain})`);
  t.match((await ledger.reckon(true)).join('\n'), /was validated as 500 internal/u, 'a MAC that is not genuine');
});

for (const custody of ['envelope', 'direct'] as const) {
  await t.test(`${custody} custody: the HSM away and back under every kind of call, batches among them`, { timeout: 120_000 }, async (t) => {
    const { appliance, ledger } = await loaded(t, { hsm: { custody, max_away: '1s' } });
    const tokens = join(appliance.home, 'hsm/tokens');
    for (let round = 0; round < 2; round += 1) {
      const { refused } = ledger.counts;
      renameSync(tokens, `${tokens}.away`);
      await until(() => ledger.counts.refused > refused + 10, 'refusals');
      renameSync(`${tokens}.away`, tokens);
      const { acknowledged } = ledger.counts;
      await until(() => ledger.counts.acknowledged > acknowledged + 80, 'the load to go on');
    }
    await ledger.pause();
    t.same(await ledger.reckon(true), []);
    t.same(ledger.unknownCauses, [], 'an HSM that is away leaves nothing in doubt');
  });
}
