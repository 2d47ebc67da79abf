/** What an attacker, an accident or a careless operator tried once and must not succeed with again. */
import { renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'pg';
import t from 'tap';
import { plainLines, startAppliance, unstartedAppliance } from '../support/appliance.ts';
import { isProblem } from '../support/problem.ts';

const appliance = await startAppliance(t);
const card = '4111111111111111';

await t.test('a number that JSON.parse would round to a card number is refused', async (t) => {
  const checkout = appliance.client('checkout');
  for (const number of ['4111111111111110.99999999999999', '41111111111111109999999999e-10', '0.41111111111111109999999e16', '378282246310004.999999999999', '5555555555554443.9999999', '4.111111111111111e15']) {
    const body = Buffer.from(`{"pan":"5555555555554444","metadata":{"n":${number}}}`);
    isProblem(t, await checkout.call('POST', '/v1/tokenize', { body }), 'pan_in_other_field');
  }
  for (const number of ['1', '-1.5e3', '1e300', '123456789012345678901234567890', '0.00000000000001']) {
    const reply = await checkout.call('POST', '/v1/tokenize', { body: Buffer.from(`{"pan":"5555555555554444","metadata":{"n":${number}}}`) });
    t.not(reply.json()['code'], 'pan_in_other_field', number);
  }
});

await t.test('garbage behind a request never takes the place of its answer', async (t) => {
  const socket = await appliance.client('checkout').connect();
  const body = `{"pan":"${card}"}`;
  const received: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => received.push(chunk));
  socket.on('error', () => undefined);
  const closed = new Promise((resolve) => socket.once('close', resolve));
  socket.write(`POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}GARBAGE GARBAGE\r\n\r\n`);
  await closed;
  const answer = Buffer.concat(received).toString('latin1');
  t.notMatch(answer, /^HTTP\/1\.1 400/u, 'no answer, or the real one');
});

await t.test('a second Host, a trailer and CONNECT are refused', async (t) => {
  const checkout = appliance.client('checkout');
  const head = 'POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n';
  const chunked = `Transfer-Encoding: chunked\r\n\r\n1a\r\n{"pan":"${card}"}\r\n0\r\n`;
  for (const request of [`${head}Host: y\r\nContent-Length: 2\r\n\r\n{}`, `${head}Trailer: x-card\r\n${chunked}x-card: a\r\n\r\n`, `${head}${chunked}x-card: a\r\n\r\n`]) {
    t.match((await checkout.exchange(request)).toString('latin1'), /^HTTP\/1\.1 400 [\s\S]*"code":"invalid_request"/u);
  }
  t.equal((await checkout.exchange(`CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n${card}`)).length, 0);
  t.equal((await checkout.get('/openapi.json')).status, 200, 'and the vault serves on');
});

await t.test('a role cannot write into the chain of another', async (t) => {
  const superuser = new Client({ connectionString: appliance.databaseUrl });
  await superuser.connect();
  const { rows } = await superuser.query<{ writer: string }>("SELECT writer FROM writers WHERE role = 'detokenize'");
  const { rows: roles } = await superuser.query<{ current_database: string }>('SELECT current_database()');
  await superuser.query(`SET ROLE "${roles[0]!.current_database}_tokenize"`);
  const insert = "INSERT INTO batches (writer, number, kind, formed_at, entry_count, previous, bundle, signature) VALUES ($1, 1000000, 0, now(), 0, '', '', '')";
  await t.rejects(superuser.query(insert, [rows[0]!.writer]), { code: '42501' });
  await t.rejects(superuser.query("INSERT INTO writers (writer, role, certificate, started_at) VALUES (1, 'detokenize', '', now())"), { code: '42501' });
  await superuser.end();
});

await t.test('two first starts in one home make one vault: the second waits, or says so in one line', { timeout: 60_000 }, async (t) => {
  const first = unstartedAppliance(t);
  const second = unstartedAppliance(t, { env: { COFRE_HOME: first.home } });
  const [one, two] = await Promise.all([first.launch(), second.launch()]);
  const [winner, loser, ended] = one === null ? [first, second, two] : [second, first, one];
  t.equal(ended?.code, 1);
  t.match(plainLines(loser.err), [/^cofre: another process already uses /u]);
  await winner.stop();
  await first.start();
  t.equal((await first.client('checkout').post('/v1/tokenize', { pan: card })).status, 201);
  await first.restart();
  t.equal((await first.client('checkout').post('/v1/tokenize', { pan: card })).status, 200, 'and it starts again and again');
});

await t.test('what cards depend on is never made anew in silence', { timeout: 90_000 }, async (t) => {
  await appliance.client('checkout').post('/v1/tokenize', { pan: card });
  const asOwner = async (sql: string): Promise<void> => {
    const client = new Client({ connectionString: appliance.databaseUrl });
    await client.connect();
    await client.query(sql);
    await client.end();
  };
  const refused = async (what: RegExp): Promise<void> => {
    const ended = await appliance.launch();
    t.ok(ended !== null && ended.code !== 0, 'it does not start');
    t.match(plainLines(appliance.err).at(-1), what);
  };
  await asOwner("CREATE TABLE kept AS SELECT * FROM key_registry WHERE kind = 'fingerprint'; DELETE FROM key_registry WHERE kind = 'fingerprint'");
  await appliance.stop();
  await refused(/^cofre: key domain [a-z]+ has cards and no fingerprint key in key_registry: restore that table/u);

  for (const [name, what] of [
    ['postgres/cluster', /^cofre: the log in the database lacks batch \d+ of writer [0-9a-f]{16}/u],
    ['hsm', /ceremony\.json is missing, and cards in the database depend on it/u],
    ['secrets/hsm-pin', /hsm-pin is missing, and cards in the database depend on it/u],
    ['pki/revoked.json', /revoked\.json is missing/u],
  ] as const) {
    const place = join(appliance.home, name);
    renameSync(place, `${place}.away`);
    await refused(what);
    rmSync(place, { recursive: true, force: true });
    renameSync(`${place}.away`, place);
  }
});
