/**
 * A database administrator changes rows behind the vault's back. Each change is caught when the row is used: the answer is `internal`, the
 * entry says that the call failed, nothing is opened, and the same card undone works again.
 */
import { Client } from 'pg';
import t, { type Test } from 'tap';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { startAppliance } from '../support/appliance.ts';
import { freshDatabase } from '../support/database.ts';
import { readLog } from '../support/log-reader.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

// A database of its own lives on while a vault refuses to start over it.
const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database });
/** Owns every table. */
const administrator = new Client(adminConnection(database.adminUrl));
await administrator.connect();
t.teardown(() => administrator.end());
const checkout = appliance.client('checkout');
const globex = appliance.client('checkout-globex');
const getnet = appliance.client('getnet');
let nextCard = 0;

interface Card {
  readonly pan: string;
  /** The card's first token. */
  readonly token: string;
  /** A second token of it. */
  readonly further: string;
}

async function newCard(): Promise<Card> {
  const pan = cardText(nextCard++);
  const made = (await checkout.post('/v1/tokenize', { pan, expiry: '2029-12', cardholder: `holder ${nextCard}` })).json();
  const further = (await checkout.post('/v1/tokenize', { pan, reuse: false }, { 'idempotency-key': `further-${nextCard}` })).json();
  return { pan, token: made['token'] as string, further: further['token'] as string };
}

const detokenize = (token: string) => getnet.post('/v1/detokenize', { token, purpose: 'capture' });

/** Runs as the owner and says how many rows it changed. */
const change = async (sql: string, ...values: unknown[]): Promise<number> => (await administrator.query(sql, values)).rowCount ?? 0;

/** Asserts that this token is refused wherever it is used, and that each refusal is in the log as a failure. */
async function isCaught(t: Test, token: string, how: 'mac' | 'open'): Promise<void> {
  const opened = await detokenize(token);
  isProblem(t, opened, 'internal', 'detokenize');
  const requests = [opened.json()['request_id']];
  if (how === 'mac') {
    const validated = await checkout.post('/v1/validate', { token });
    isProblem(t, validated, 'internal', 'validate');
    const shown = await checkout.get(`/v1/tokens/${token}`);
    isProblem(t, shown, 'internal', 'metadata');
    requests.push(validated.json()['request_id'], shown.json()['request_id']);
  }
  const entries = (await readLog(appliance)).filter(({ value }) => requests.includes(value['request']));
  const failed = entries.filter(({ value }) => value['outcome'] === 'failed' && value['code'] === 'internal');
  t.equal(failed.length, requests.length, 'each call is logged as failed');
  // Caught by its MAC, a row opens nothing; caught by the cipher, it had been authorized, which the log says first.
  t.equal(entries.length - failed.length, how === 'open' ? 1 : 0, 'and nothing else is said of it');
}

async function opens(t: Test, card: Card): Promise<void> {
  for (const token of [card.token, card.further]) t.equal((await detokenize(token)).json()['pan'], card.pan, 'undone, it opens to its own card');
}

await t.test('a fingerprint that points a card number at the card of another', async (t) => {
  const [victim, thief] = [await newCard(), await newCard()];
  // Whoever tokenizes the thief's number would be given the victim's card.
  const { rows } = await administrator.query<{ fingerprint: Buffer }>('SELECT fingerprint FROM cards WHERE token = $1', [thief.token]);
  const own = (await administrator.query<{ fingerprint: Buffer }>('SELECT fingerprint FROM cards WHERE token = $1', [victim.token])).rows[0]!.fingerprint;
  await change('UPDATE cards SET fingerprint = $2 WHERE token = $1', thief.token, Buffer.alloc(32, 7));
  t.equal(await change('UPDATE cards SET fingerprint = $2 WHERE token = $1', victim.token, rows[0]!.fingerprint), 1);
  isProblem(t, await checkout.post('/v1/tokenize', { pan: thief.pan }), 'internal', 'tokenize by the repointed fingerprint');
  isProblem(t, await checkout.post('/v1/tokenize', { pan: thief.pan, reuse: false }, { 'idempotency-key': 'repointed' }), 'internal', 'and for a new token of it');
  await isCaught(t, victim.token, 'mac');
  await isCaught(t, victim.further, 'mac');
  await isCaught(t, thief.token, 'mac');
  await change('UPDATE cards SET fingerprint = $2 WHERE token = $1', victim.token, own);
  await change('UPDATE cards SET fingerprint = $2 WHERE token = $1', thief.token, rows[0]!.fingerprint);
  await opens(t, victim);
  await opens(t, thief);
});

await t.test('a token that is pointed at another card', async (t) => {
  const [victim, thief] = [await newCard(), await newCard()];
  t.equal(await change('UPDATE tokens SET card_token = $2 WHERE token = $1', thief.further, victim.token), 1);
  await isCaught(t, thief.further, 'mac');
  await change('UPDATE tokens SET card_token = $2 WHERE token = $1', thief.further, thief.token);
  await opens(t, thief);

  await change('UPDATE tokens SET token_mac = (SELECT token_mac FROM tokens WHERE token = $2) WHERE token = $1', thief.further, victim.further);
  await isCaught(t, thief.further, 'mac');
});

await t.test('sealed values that are swapped between cards, between numbers and names, cut, or flipped', async (t) => {
  const [one, two] = [await newCard(), await newCard()];
  const { rows } = await administrator.query<{ sealed_pan: Buffer; sealed_name: Buffer }>('SELECT sealed_pan, sealed_name FROM cards WHERE token = ANY ($1) ORDER BY token = $2 DESC', [[one.token, two.token], one.token]);
  const [first, second] = rows as [{ sealed_pan: Buffer; sealed_name: Buffer }, { sealed_pan: Buffer; sealed_name: Buffer }];
  const flipped = Buffer.from(first.sealed_pan);
  flipped[30]! ^= 1;
  const attempts: readonly (readonly [what: string, pan: Buffer, name: Buffer])[] = [
    ["the number of another card", second.sealed_pan, first.sealed_name],
    ["the name of another card", first.sealed_pan, second.sealed_name],
    ['number and name of another card', second.sealed_pan, second.sealed_name],
    ['the name as the number', first.sealed_name, first.sealed_name],
    ['a flipped bit', flipped, first.sealed_name],
    ['a cut number', first.sealed_pan.subarray(0, 20), first.sealed_name],
    ['no number', Buffer.alloc(0), first.sealed_name],
    ['a key that is not there', Buffer.concat([first.sealed_pan.subarray(0, 1), Buffer.from('fffffffe', 'hex'), first.sealed_pan.subarray(5)]), first.sealed_name],
  ];
  for (const [what, pan, name] of attempts) {
    t.comment(what);
    t.equal(await change('UPDATE cards SET sealed_pan = $2, sealed_name = $3 WHERE token = $1', one.token, pan, name), 1, what);
    await isCaught(t, one.token, 'open');
  }
  await change('UPDATE cards SET sealed_pan = $2, sealed_name = $3 WHERE token = $1', one.token, first.sealed_pan, first.sealed_name);
  await opens(t, one);
});

await t.test('a card whose sealed values, and the id that they are bound to, are those of another', async (t) => {
  const [victim, thief] = [await newCard(), await newCard()];
  const moved = await change('UPDATE cards SET sealed_pan = v.sealed_pan, sealed_name = v.sealed_name, card_id = v.card_id FROM cards v WHERE cards.token = $1 AND v.token = $2', thief.token, victim.token);
  t.equal(moved, 1);
  await isCaught(t, thief.token, 'mac');
  // With everything copied that the MAC covers but the token itself.
  await change("UPDATE cards SET fingerprint = '\\x00' WHERE token = $1", victim.token);
  await change('UPDATE cards SET token_mac = v.token_mac FROM cards v WHERE cards.token = $1 AND v.token = $2', thief.token, victim.token);
  await isCaught(t, thief.token, 'mac');
});

await t.test('a token that is revived, extended, or changed in whatever its MAC covers', async (t) => {
  const card = await newCard();
  for (const table of ['cards', 'tokens'] as const) {
    const token = table === 'cards' ? card.token : card.further;
    const before = (await administrator.query<Record<string, unknown>>(`SELECT status, row_version, token_expires_at, token_mac FROM ${table} WHERE token = $1`, [token])).rows[0]!;
    const edits: readonly string[] = [
      'status = 1',
      'status = 2',
      'status = 9',
      'row_version = row_version + 1',
      'row_version = -1',
      "token_expires_at = now() + interval '1 year'",
      "token_expires_at = now() - interval '1 year'",
      "token_expires_at = 'infinity'",
      "token_expires_at = '-infinity'",
      "token_mac = '\\x00000000000000000000000000000000'",
      "token_mac = ''",
      "token_mac = token_mac || '\\x00'",
    ];
    for (const edit of edits) {
      t.equal(await change(`UPDATE ${table} SET ${edit} WHERE token = $1`, token), 1, `${table}: ${edit}`);
      await isCaught(t, token, 'mac');
      if (table === 'cards') isProblem(t, await checkout.post('/v1/tokenize', { pan: card.pan }), 'internal', 'nor is it given out again');
      await change(`UPDATE ${table} SET status = $2, row_version = $3, token_expires_at = $4, token_mac = $5 WHERE token = $1`, token, before['status'], before['row_version'], before['token_expires_at'], before['token_mac']);
    }
  }
  await opens(t, card);
});

await t.test('an operation that meets a changed row fails alone, beside calls of the same moment', async (t) => {
  const [bad, good] = [await newCard(), await newCard()];
  await change("UPDATE cards SET token_expires_at = 'infinity', row_version = -1 WHERE token = $1", bad.token);
  const replies = await Promise.all(Array.from({ length: 24 }, (_, i) => detokenize(i % 6 === 0 ? bad.token : good.token)));
  t.same(replies.map((reply) => reply.status), replies.map((_, i) => (i % 6 === 0 ? 500 : 200)));
});

await t.test("a card that is given to another tenant, by its number or by the tenants' own rows", async (t) => {
  const card = await newCard();
  const ids = new Map((await administrator.query<{ name: string; tenant_id: number }>('SELECT name, tenant_id FROM tenants')).rows.map((row) => [row.name, row.tenant_id]));
  await change('DELETE FROM tokens WHERE token = $1', card.further);
  t.equal(await change('UPDATE cards SET tenant_id = $2 WHERE token = $1', card.token, ids.get('globex')), 1);
  isProblem(t, await globex.post('/v1/validate', { token: card.token }), 'internal', 'the thief is refused');
  isProblem(t, await globex.get(`/v1/tokens/${card.token}`), 'internal');
  t.match((await checkout.post('/v1/validate', { token: card.token })).json(), { valid: false, status: 'unknown' });
  await change('UPDATE cards SET tenant_id = $2 WHERE token = $1', card.token, ids.get('acme'));

  // Read once, at the start; so the names are swapped under a vault that starts anew.
  const swap = async (column: 'name' | 'name, key_domain'): Promise<void> => {
    const given = (value: string): string => (column === 'name' ? `name = '${value}'` : `name = '${value}', key_domain = '${value}'`);
    await change(`UPDATE tenants SET ${given('swapping')} WHERE name = 'acme'`);
    await change(`UPDATE tenants SET ${given('acme')} WHERE name = 'globex'`);
    await change(`UPDATE tenants SET ${given('globex')} WHERE name = 'swapping'`);
  };
  await appliance.kill9();
  await swap('name');
  t.match(await appliance.launch(), { code: 1 }, 'names that no longer fit their keys stop the start');
  await swap('name');
  await swap('name, key_domain');
  await appliance.start();
  const [thief, owner] = [appliance.client('checkout-globex'), appliance.client('checkout')];
  isProblem(t, await thief.post('/v1/validate', { token: card.token }), 'internal', 'the thief is refused');
  t.match((await owner.post('/v1/validate', { token: card.token })).json(), { valid: false, status: 'unknown' });
  await appliance.kill9();
  await swap('name, key_domain');
  await appliance.start();
  t.equal((await appliance.client('getnet').post('/v1/detokenize', { token: card.token, purpose: 'capture' })).json()['pan'], card.pan);
});

await t.test('an edited row of the key registry is refused by the vault that reads it', async (t) => {
  const card = { token: (await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(nextCard) })).json()['token'], pan: cardText(nextCard++) };
  const edits: readonly (readonly [what: string, sql: string])[] = [
    ['a retired key revived or an active one retired', "UPDATE key_registry SET state = 'retired' WHERE domain = 'acme' AND kind = 'data'"],
    ['a key under another version', "UPDATE key_registry SET version = version + 40 WHERE domain = 'acme' AND kind = 'fingerprint'"],
    ['another row version', "UPDATE key_registry SET row_version = row_version + 1 WHERE domain = 'acme' AND kind = 'data'"],
    ['a key that is older than it says', "UPDATE key_registry SET created_at = created_at - interval '20 days' WHERE domain = 'acme' AND kind = 'data'"],
    ["another tenant's key material", "UPDATE key_registry SET material = (SELECT material FROM key_registry WHERE domain = 'globex' AND kind = 'data' LIMIT 1) WHERE domain = 'acme' AND kind = 'data'"],
    ['a flipped bit of the material', "UPDATE key_registry SET material = set_byte(material, 20, get_byte(material, 20) # 1) WHERE domain = 'acme' AND kind = 'fingerprint'"],
    ['a MAC of zeros', "UPDATE key_registry SET mac = decode(repeat('00', 32), 'hex') WHERE domain = 'acme'"],
  ];
  await administrator.query('CREATE TEMPORARY TABLE before AS SELECT * FROM key_registry');
  for (const [what, sql] of edits) {
    await appliance.kill9();
    t.ok((await change(sql)) > 0, what);
    const mark = appliance.err.length;
    const ended = await appliance.launch();
    if (ended !== null) {
      t.equal(ended.code, 1, 'it does not start');
      t.match(appliance.err.slice(mark), /key registry/u, what);
    } else {
      // A key that is read only when it is needed is refused then.
      const reply = await appliance.client('getnet').post('/v1/detokenize', { token: card.token, purpose: 'capture' });
      isProblem(t, reply, 'internal', what);
      isProblem(t, await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(nextCard++) }), 'internal', what);
      await appliance.kill9();
    }
    await administrator.query('UPDATE key_registry k SET state = b.state, version = b.version, row_version = b.row_version, created_at = b.created_at, material = b.material, mac = b.mac FROM before b WHERE k.key_id = b.key_id');
    await appliance.start();
    t.equal((await appliance.client('getnet').post('/v1/detokenize', { token: card.token, purpose: 'capture' })).json()['pan'], card.pan, 'undone, it opens');
  }
});

await t.test('the log of all that holds', async (t) => {
  const entries = await readLog(appliance);
  t.ok(entries.length > 100, `${entries.length} entries`);
});
