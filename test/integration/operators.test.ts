/** Operators and what two of them decide on, over the admin listener and by the commands, from the ceremony on. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { startAppliance } from '../support/appliance.ts';
import { auditCommands } from '../support/audit-commands.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { readLog } from '../support/log-reader.ts';
import { TestOperator } from '../support/operator.ts';
import type { Credentials } from '../support/pki.ts';
import { isProblem } from '../support/problem.ts';

const idOf = (name: string): string => `spiffe://cofre.dev/tenant/platform/service/${name}`;
const checkout = 'spiffe://cofre.dev/tenant/acme/service/checkout';
const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database, config: { operators: { session_idle: '5m', session_longest: '1h' } } });
const query = <T extends object>(text: string, values: unknown[] = []): Promise<T[]> => withClient({ connectionString: database.adminUrl }, async (client) => (await client.query<T>(text, values)).rows);
const admin = (name: string) => appliance.client(name, { admin: true });
const forget = (): Promise<unknown> => query('UPDATE operator_logins SET last_step = 0');
const a = new TestOperator(() => admin('operator-a'), forget);
const b = new TestOperator(() => admin('operator-b'), forget);
const run = auditCommands(t, 'operator');
const runChange = auditCommands(t, 'change');
const env = (): Record<string, string> => ({ COFRE_HOME: appliance.home, COFRE_ADMIN_PORT: String(appliance.adminPort), DATABASE_URL: database.adminUrl });
const logged = async (action: string) => (await readLog(appliance)).map(({ value }) => value).filter((value) => value['action'] === action).sort((x, y) => (String(x['at']) < String(y['at']) ? -1 : 1));
/** A certificate of the development authority for whomever. */
const issued = (spiffeId: string): Credentials => {
  const { certificate, key } = appliance.pki().issueCertificate({ commonName: 'odd', names: [{ type: 'uri', value: spiffeId }] });
  return { cert: certificate, key };
};
let codes: Record<string, string> = {};

await t.test('before the ceremony nobody is an operator', async (t) => {
  isProblem(t, await a.logIn('000000'), 'not_authorized');
  isProblem(t, await admin('operator-a').post('/v1/operators/enrol', { code: 'A'.repeat(26), password: 'correct horse battery staple' }), 'not_authorized');
  isProblem(t, await a.get('/v1/changes', 'A'.repeat(75)), 'not_authorized');
  t.match((await run(['init', idOf('operator-a'), idOf('operator-b')], env())).err, /another process already uses/u, 'nor is there one while it runs');
});

await t.test('the ceremony invites two, once, and says how they enrol', async (t) => {
  await appliance.stop();
  for (const [ids, why] of [[[idOf('operator-a')], /two people/u], [[idOf('operator-a'), idOf('operator-a')], /two people/u], [[idOf('operator-a'), 'somebody'], /SPIFFE id/u], [[idOf('operator-a'), idOf('auditor')], /no two of them decide/u], [[idOf('operator-a'), 'spiffe://other.dev/tenant/platform/service/x'], /SPIFFE id/u]] as const) {
    const refused = await run(['init', ...ids], env());
    t.equal(refused.code, 1, String(why));
    t.match(refused.err, why);
  }
  const made = await run(['init', idOf('operator-a'), idOf('operator-b'), '--json'], env());
  t.equal(made.code, 0, made.err);
  const { invitations } = JSON.parse(made.out) as { invitations: { operator: string; code: string }[] };
  codes = Object.fromEntries(invitations.map(({ operator, code }) => [operator, code]));
  t.same(Object.keys(codes), [idOf('operator-a'), idOf('operator-b')]);
  for (const code of Object.values(codes)) t.match(code, /^[A-Z2-7]{26}$/u);

  // A ceremony that was cut short goes on with codes of its own.
  const again = await run(['init', idOf('operator-a'), idOf('operator-b'), '--json'], env());
  t.equal(again.code, 0);
  codes = Object.fromEntries((JSON.parse(again.out) as { invitations: { operator: string; code: string }[] }).invitations.map(({ operator, code }) => [operator, code]));
  await appliance.start();
});

await t.test('an invitation becomes a password and an authenticator, by whom it is for', async (t) => {
  isProblem(t, await b.enrol(codes[idOf('operator-a')]!), 'not_authorized', 'another\'s code');
  isProblem(t, await admin('operator-a').post('/v1/operators/enrol', { code: codes[idOf('operator-a')], password: 'short' }), 'invalid_request');
  t.equal((await a.enrol(codes[idOf('operator-a')]!)).status, 200);
  isProblem(t, await a.logIn('000000'), 'not_authorized', 'no code yet');
  t.equal((await a.enrol(codes[idOf('operator-a')]!)).status, 200, 'as long as nobody has logged in with it');
  t.equal((await a.logIn()).status, 200);
  isProblem(t, await a.enrol(codes[idOf('operator-a')]!), 'not_authorized', 'and never after');
  t.equal((await b.enrol(codes[idOf('operator-b')]!)).status, 200);
  t.equal((await b.logIn()).status, 200);
  await appliance.stop();
  const late = await run(['init', idOf('operator-a'), idOf('operator-b')], env());
  t.equal(late.code, 1);
  t.match(late.err, /there are operators already/u);
  await appliance.start();
  t.equal((await b.logIn()).status, 200);
  t.equal((await a.logIn()).status, 200);
  t.match((await a.get('/v1/operators')).json(), { operators: [{ operator: idOf('operator-a'), state: 'active' }, { operator: idOf('operator-b'), state: 'active' }] });
});

await t.test('a session is of one certificate, ends when it is not used, and when it is ended', async (t) => {
  t.equal((await a.get('/v1/changes')).status, 200);
  isProblem(t, await admin('operator-a').get('/v1/changes'), 'not_authorized', 'the certificate alone is not enough');
  isProblem(t, await b.get('/v1/changes', a.session), 'not_authorized', 'nor another\'s session');
  isProblem(t, await a.get('/v1/changes', `${a.session.slice(0, -1)}${a.session.endsWith('A') ? 'B' : 'A'}`), 'not_authorized');
  for (const text of ['', 'x', `${a.session}A`, 'A'.repeat(75)]) isProblem(t, await a.get('/v1/changes', text), 'not_authorized');
  const renewed = new TestOperator(() => appliance.client(issued(idOf('operator-a')), { admin: true }), forget);
  isProblem(t, await renewed.get('/v1/changes', a.session), 'not_authorized', 'another certificate of the same person');

  // A row that somebody writes opens nothing.
  await query("INSERT INTO operator_sessions (id, operator, used_at, expires_at) VALUES (decode(repeat('00', 16), 'hex'), $1, now(), now() + interval '1 day')", [idOf('operator-a')]);
  isProblem(t, await a.get('/v1/changes', Buffer.alloc(56).toString('base64url')), 'not_authorized');

  const { session } = b;
  t.equal((await b.post('/v1/operators/logout')).status, 200);
  isProblem(t, await b.get('/v1/changes', session), 'not_authorized');
  await query("UPDATE operator_sessions SET used_at = used_at - interval '10 minutes'");
  isProblem(t, await a.get('/v1/changes'), 'not_authorized', 'it was idle');
  isProblem(t, await admin('auditor').post('/v1/operators/login', { password: 'correct horse battery staple', totp: '000000' }), 'not_authorized', 'no operator');
});

await t.test('no code serves twice, not even at once', async (t) => {
  await forget();
  const codes = [a.code(), b.code()] as const;
  const twice = await Promise.all([a.logIn(codes[0]), a.logIn(codes[0]), a.logIn(codes[0])]);
  t.same(twice.map(({ status }) => status).sort((x, y) => x - y), [200, 403, 403]);
  isProblem(t, await a.logIn(codes[0]), 'not_authorized');
  t.equal((await b.logIn(codes[1])).status, 200);
  const why = (await logged('operator.login')).filter(({ outcome }) => outcome === 'refused').map(({ detail }) => (detail as { why: string }).why);
  t.ok(why.includes('code'));
  t.same((await logged('operator.login')).at(-1)?.['outcome'], 'allowed');
});

await t.test('wrong passwords lock out, many at once no more than one after the other, and the right one does not help then', async (t) => {
  const wrong = await Promise.all(Array.from({ length: 8 }, () => b.logIn('000000', 'not the password at all')));
  t.ok(wrong.every(({ status }) => status === 403 || status === 503));
  isProblem(t, await b.logIn(), 'not_authorized', 'locked');
  t.equal((await logged('operator.login')).at(-1)?.['code'], 'not_authorized');
  t.match((await logged('operator.login')).at(-1), { detail: { why: 'locked' } });
  t.equal((await logged('operator.login')).filter(({ detail }) => (detail as { why?: string } | undefined)?.why === 'password').length, 5);
  await query("UPDATE operator_logins SET locked_until = now() - interval '1 second'");
  t.equal((await b.logIn()).status, 200);
  t.same(await query('SELECT failures, locked_until FROM operator_logins WHERE operator = $1', [idOf('operator-b')]), [{ failures: 0, locked_until: null }]);
});

const ask = async (by: TestOperator, kind: string, params: object, reason = 'because') => await by.post('/v1/changes', { kind, params, reason });
const idAndDigest = (json: Record<string, unknown>): [string, string] => [json['id'] as string, json['digest'] as string];
const freshSessions = async (): Promise<void> => {
  for (const one of [a, b]) await one.logIn();
};

await t.test('a suspended caller comes back when one asks and another approves exactly that', async (t) => {
  await freshSessions();
  t.equal((await admin('operator-a').post('/v1/suspensions', { caller: checkout })).status, 201);
  isProblem(t, await appliance.client('checkout').post('/v1/validate', { token: 'x' }), 'not_authorized');
  const asked = await ask(a, 'suspension.resume', { caller: checkout }, 'it was a test');
  t.equal(asked.status, 201);
  const [id, digest] = idAndDigest(asked.json());
  isProblem(t, await a.post(`/v1/changes/${id}/approve`, { digest }), 'not_authorized', 'not the same person');
  isProblem(t, await b.post(`/v1/changes/${id}/approve`, { digest: digest.replace(/^./u, (c) => (c === 'a' ? 'b' : 'a')) }), 'invalid_request', 'not something else');
  isProblem(t, await admin('auditor').call('POST', `/v1/changes/${id}/approve`, { body: { digest }, headers: { authorization: `Bearer ${b.session}` } }), 'not_authorized', 'not anybody');
  isProblem(t, await b.post(`/v1/changes/${id}/run`), 'change_decided', 'nothing is done before it is approved');
  isProblem(t, await appliance.client('checkout').post('/v1/validate', { token: 'x' }), 'not_authorized');
  const done = await b.post(`/v1/changes/${id}/approve`, { digest });
  t.equal(done.status, 200, done.body.toString());
  t.match(done.json(), { state: 'done', decided_by: idOf('operator-b'), result: { caller: checkout, resumed: 'yes' } });
  t.equal((await appliance.client('checkout').post('/v1/validate', { token: 'x' })).status, 200);
  isProblem(t, await b.post(`/v1/changes/${id}/approve`, { digest }), 'change_decided', 'once');
  isProblem(t, await b.post(`/v1/changes/${id}/run`), 'change_decided');
  isProblem(t, await a.post(`/v1/changes/${id}/refuse`), 'change_decided');
  t.match((await logged('change.request')).at(-1), { caller: idOf('operator-a'), outcome: 'allowed', detail: { change: id, kind: 'suspension.resume', digest } });
  t.match((await logged('change.approve')).filter(({ outcome }) => outcome === 'allowed').at(-1), { caller: idOf('operator-b'), detail: { change: id, requested_by: idOf('operator-a') } });
  t.match((await logged('change.run')).filter(({ outcome }) => outcome === 'allowed').at(-1), { caller: idOf('operator-b'), detail: { change: id, decided_by: idOf('operator-b'), requested_by: idOf('operator-a'), resumed: 'yes' } });
});

await t.test('two changes crossed, one refused, one taken back, one too old, one of an operator who is none any more', async (t) => {
  await freshSessions();
  const other = 'spiffe://cofre.dev/tenant/acme/service/other';
  const ofA = idAndDigest((await ask(a, 'suspension.resume', { caller: other })).json());
  const ofB = idAndDigest((await ask(b, 'suspension.resume', { caller: other })).json());
  const crossed = await Promise.all([b.post(`/v1/changes/${ofA[0]}/approve`, { digest: ofA[1] }), a.post(`/v1/changes/${ofB[0]}/approve`, { digest: ofB[1] })]);
  t.same(crossed.map(({ status }) => status), [200, 200]);
  t.same(crossed.map((reply) => (reply.json()['result'] as { resumed: string }).resumed), ['was not suspended', 'was not suspended']);

  const refused = idAndDigest((await ask(a, 'suspension.resume', { caller: other })).json());
  t.match((await b.post(`/v1/changes/${refused[0]}/refuse`)).json(), { state: 'refused', decided_by: idOf('operator-b') });
  isProblem(t, await b.post(`/v1/changes/${refused[0]}/approve`, { digest: refused[1] }), 'change_decided');
  const taken = idAndDigest((await ask(a, 'suspension.resume', { caller: other })).json());
  t.equal((await a.post(`/v1/changes/${taken[0]}/refuse`)).status, 200);

  // Approved by several at once: one of them is told so.
  const raced = idAndDigest((await ask(a, 'suspension.resume', { caller: other })).json());
  const approvals = await Promise.all(Array.from({ length: 5 }, () => b.post(`/v1/changes/${raced[0]}/approve`, { digest: raced[1] })));
  t.same(approvals.map(({ status }) => status).sort((x, y) => x - y), [200, 409, 409, 409, 409]);

  isProblem(t, await ask(a, 'suspension.resume', { caller: 'x' }), 'invalid_request');
  isProblem(t, await ask(a, 'suspension.resume', {}), 'invalid_request');
  isProblem(t, await ask(a, 'suspension.resume', { caller: other, more: 1 }), 'invalid_request');
  isProblem(t, await ask(a, 'vault.explode', {}), 'invalid_request');
  isProblem(t, await a.get('/v1/changes/00000000-0000-0000-0000-000000000000'), 'not_found');
});

await t.test('an operator is added, and taken away, by two; what a third one had asked for is worth nothing then', async (t) => {
  await freshSessions();
  const c = 'spiffe://cofre.dev/tenant/platform/service/operator-c';
  const added = idAndDigest((await ask(a, 'operator.add', { operator: c })).json());
  const reply = (await b.post(`/v1/changes/${added[0]}/approve`, { digest: added[1] })).json();
  t.match(reply['code'], /^[A-Z2-7]{26}$/u, 'the code, this once');
  t.notMatch(JSON.stringify((await a.get(`/v1/changes/${added[0]}`)).json()), new RegExp(reply['code'] as string, 'u'));
  t.notMatch(JSON.stringify((await readLog(appliance)).map(({ text }) => text)), new RegExp(reply['code'] as string, 'u'));
  const certificate = issued(c);
  const third = new TestOperator(() => appliance.client(certificate, { admin: true }), forget);
  t.equal((await third.enrol(reply['code'] as string)).status, 200);
  t.equal((await third.logIn()).status, 200);
  isProblem(t, await third.get('/v1/changes'), 'not_authorized', 'an operator may what the policies say, and these say nothing of it');

  const tooFew = idAndDigest((await ask(a, 'operator.disable', { operator: c })).json());
  t.equal((await b.post(`/v1/changes/${tooFew[0]}/approve`, { digest: tooFew[1] })).status, 200, 'two are left');
  const last = idAndDigest((await ask(a, 'operator.disable', { operator: idOf('operator-b') })).json());
  isProblem(t, await b.post(`/v1/changes/${last[0]}/approve`, { digest: last[1] }), 'invalid_request', 'one alone decides nothing');
  const anew = idAndDigest((await ask(a, 'operator.add', { operator: c })).json());
  t.equal((await third.enrol((await b.post(`/v1/changes/${anew[0]}/approve`, { digest: anew[1] })).json()['code'] as string)).status, 200);
  t.equal((await third.logIn()).status, 200);

  const ofB = idAndDigest((await ask(b, 'suspension.resume', { caller: checkout })).json());
  const disable = idAndDigest((await ask(b, 'operator.disable', { operator: idOf('operator-b') })).json());
  t.equal((await a.post(`/v1/changes/${disable[0]}/approve`, { digest: disable[1] })).status, 200);
  isProblem(t, await b.get('/v1/changes'), 'not_authorized', 'the session ended');
  isProblem(t, await b.logIn(), 'not_authorized');
  isProblem(t, await a.post(`/v1/changes/${ofB[0]}/approve`, { digest: ofB[1] }), 'not_authorized', 'asked by nobody any more');
});

await t.test('a database administrator neither makes an operator nor approves', async (t) => {
  await query('CREATE TABLE kept AS SELECT * FROM controls');
  for (const edit of ["UPDATE controls SET state = 'active' WHERE kind = 'operator' AND subject LIKE '%operator-b' AND state = 'disabled'", "UPDATE controls SET data = replace(data, 'requestedBy', 'requestedby') WHERE kind = 'change'", "INSERT INTO controls SELECT number + 1, made_at, kind, subject, 'active', made_by, data, data_hash, hash, mac FROM controls ORDER BY number DESC LIMIT 1"]) {
    await appliance.stop();
    await query(edit);
    t.equal((await appliance.launch())?.code, 1, edit);
    await query('DELETE FROM controls');
    await query('INSERT INTO controls SELECT * FROM kept');
    await appliance.start();
  }
});

await t.test('the same by the commands', async (t) => {
  // operator-b is disabled, and nobody is left who could approve a change.
  await appliance.stop();
  const made = await run(['init', idOf('operator-a'), idOf('operator-b'), '--recover', '--json'], env());
  t.equal(made.code, 0, made.err);
  const { invitations } = JSON.parse(made.out) as { invitations: { operator: string; code: string }[] };
  await appliance.start();
  const file = join(appliance.home, 'password');
  writeFileSync(file, 'correct horse battery staple\n');
  for (const [name, one] of [['operator-a', a], ['operator-b', b]] as const) {
    const enrolled = await run(['enrol', invitations.find(({ operator }) => operator === idOf(name))!.code, '--as', name, '--password-file', file, '--json'], env());
    t.equal(enrolled.code, 0, enrolled.err);
    const { secretOf } = await import('../support/operator.ts');
    one.secret = secretOf((JSON.parse(enrolled.out) as { totp_secret: string }).totp_secret);
    const { hotp, stepAt } = await import('../../vault/totp.ts');
    const login = await run(['login', '--as', name, '--password-file', file, '--totp', hotp(one.secret, stepAt(new Date()))], env());
    t.equal(login.code, 0, login.err);
  }
  t.match((await run(['list', '--as', 'operator-a'], env())).out, /operator-b\tactive/u);
  t.equal((await runChange(['request', 'suspension.resume', `caller=${checkout}`, '--as', 'operator-a'], env())).code, 2, 'without a reason');
  const asked = await runChange(['request', 'suspension.resume', `caller=${checkout}`, '--reason', 'a test', '--as', 'operator-a', '--json'], env());
  t.equal(asked.code, 0, asked.err);
  const [id, digest] = idAndDigest(JSON.parse(asked.out) as Record<string, unknown>);
  t.match((await runChange(['list', '--as', 'operator-b'], env())).out, new RegExp(`${id}\tpending\tsuspension.resume caller=`, 'u'));
  t.match((await runChange(['show', id, '--as', 'operator-b'], env())).out, new RegExp(`digest    ${digest}`, 'u'));
  const own = await runChange(['approve', id, digest, '--as', 'operator-a'], env());
  t.equal(own.code, 1);
  t.match(own.err, /not_authorized/u);
  t.match((await runChange(['approve', id, digest, '--as', 'operator-b'], env())).out, /state {5}done/u);
  t.equal((await run(['logout', '--as', 'operator-a'], env())).code, 0);
  t.equal((await run(['list', '--as', 'operator-a'], env())).code, 1);
  t.equal((await run(['nothing'], env())).code, 2);
  t.match((await run(['--help'], env())).out, /enrol/u);
});

await t.test('the admin listener describes its paths', async (t) => {
  const { paths } = (await admin('auditor').get('/openapi.json')).json() as { paths: Record<string, unknown> };
  for (const path of ['/v1/operators/login', '/v1/operators/enrol', '/v1/changes', '/v1/changes/{id}/approve', '/v1/suspensions', '/v1/honey-tokens']) t.ok(paths[path], path);
});

await t.test('neither a password nor a code nor a secret is in the log, the messages or a table', async (t) => {
  const texts = [JSON.stringify((await readLog(appliance)).map(({ text }) => text)), appliance.out, appliance.err, JSON.stringify(await query('SELECT * FROM controls')), JSON.stringify(await query('SELECT * FROM operator_logins'))].join('\n');
  for (const secret of ['correct horse battery staple', a.secret.toString('base64'), a.secret.toString('hex'), ...Object.values(codes)]) t.notOk(texts.includes(secret));
});
