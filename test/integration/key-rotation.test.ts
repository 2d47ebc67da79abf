/** A data key that two operators rotate, by the commands. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { startAppliance } from '../support/appliance.ts';
import { auditCommands } from '../support/audit-commands.ts';
import { freshDatabase, withClient } from '../support/database.ts';
import { secretOf } from '../support/operator.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';
import { hotp, stepAt } from '../../vault/totp.ts';

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database });
const env = (): Record<string, string> => ({ COFRE_HOME: appliance.home, COFRE_ADMIN_PORT: String(appliance.adminPort), DATABASE_URL: database.adminUrl });
const [operator, change, keys] = [auditCommands(t, 'operator'), auditCommands(t, 'change'), auditCommands(t, 'keys')];
const people = ['operator-a', 'operator-b'] as const;
interface Key {
  readonly kind: string;
  readonly domain: string;
  readonly version: number;
  readonly state: string;
  readonly days_left: number | null;
}
const list = async (): Promise<readonly Key[]> => (JSON.parse((await keys(['list', '--json', '--as', 'operator-a'], env())).out) as { keys: Key[] }).keys;
const { token } = (await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(1) })).json() as { token: string };

await t.test('the keys, their states and periods, for operators and auditors', async (t) => {
  const found = await list();
  t.same(found.map(({ kind, domain, version, state }) => `${domain} ${kind} ${version} ${state}`), ['acme data 1 active', 'acme fingerprint 1 active', 'globex data 1 active', 'globex fingerprint 1 active']);
  t.same(found.map(({ days_left: left }) => left), [29, 729, 29, 729]);
  t.equal((await appliance.client('auditor', { admin: true }).get('/v1/keys')).status, 200);
  isProblem(t, await appliance.client('intruder', { admin: true }).get('/v1/keys'), 'not_authorized');
  t.notMatch((await appliance.client('auditor', { admin: true }).get('/v1/keys')).body.toString(), /material|mac/u);
  t.match((await keys(['list', '--as', 'auditor'], env())).out, /^acme\tdata v1\tactive\tsince .*\t29 days left\t4194304 seals leased$/mu);
  await withClient({ connectionString: database.adminUrl }, (client) => client.query("UPDATE key_registry SET created_at = created_at + interval '1 second' WHERE domain = 'globex' AND kind = 'data'"));
  isProblem(t, await appliance.client('auditor', { admin: true }).get('/v1/keys'), 'internal', 'a row that somebody edited');
  await withClient({ connectionString: database.adminUrl }, (client) => client.query("UPDATE key_registry SET created_at = created_at - interval '1 second' WHERE domain = 'globex' AND kind = 'data'"));
});

await t.test('rotated by two people, it seals no more and still opens', async (t) => {
  t.equal((await keys(['rotate', 'acme', '--reason', 'drill', '--as', 'operator-a'], env())).code, 1, 'not without a session');
  await appliance.stop();
  const made = await operator(['init', ...people.map((name) => `spiffe://cofre.dev/tenant/platform/service/${name}`), '--json'], env());
  t.equal(made.code, 0, made.err);
  await appliance.start();
  const file = join(appliance.home, 'password');
  writeFileSync(file, 'correct horse battery staple\n');
  for (const { operator: id, code } of (JSON.parse(made.out) as { invitations: { operator: string; code: string }[] }).invitations) {
    const who = ['--as', id.split('/').at(-1)!, '--password-file', file];
    const enrolled = JSON.parse((await operator(['enrol', code, ...who, '--json'], env())).out) as { totp_secret: string };
    t.equal((await operator(['login', ...who, '--totp', hotp(secretOf(enrolled.totp_secret), stepAt(new Date()))], env())).code, 0);
  }
  t.equal((await keys(['rotate', 'nobody', '--reason', 'drill', '--as', 'operator-a'], env())).code, 1);
  t.equal((await keys(['rotate', 'acme', '--as', 'operator-a'], env())).code, 2);
  const asked = await keys(['rotate', 'acme', '--reason', 'drill', '--as', 'operator-a'], env());
  const [, id, digest] = /cofre change approve (\S+) (\S+)/u.exec(asked.out) ?? [];
  t.equal((await change(['approve', id!, digest!, '--as', 'operator-a'], env())).code, 1, 'by another person');
  const done = await change(['approve', id!, digest!, '--as', 'operator-b'], env());
  t.match(done.out, /state {5}done[^]*result {4}domain=acme version=1 retired=yes/u);
  t.match(await list(), [{ domain: 'acme', kind: 'data', version: 1, state: 'retired', days_left: null }]);
  const getnet = appliance.client('getnet');
  t.equal((await getnet.post('/v1/detokenize', { token, purpose: 'capture' })).json()['pan'], cardText(1));
  t.equal((await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(2) })).status, 201, 'until its successor is there it goes on');

  // The upkeep of a running process comes once a minute; a start looks at once.
  await appliance.restart();
  const { token: later } = (await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(3) })).json() as { token: string };
  t.match((await list()).filter(({ domain, kind }) => domain === 'acme' && kind === 'data'), [{ version: 1, state: 'retired' }, { version: 2, state: 'active' }]);
  const sealedBy = await withClient({ connectionString: database.adminUrl }, async (client) => (await client.query<{ token: string; key: string }>("SELECT token, encode(substring(sealed_pan FROM 1 FOR 8), 'hex') AS key FROM cards WHERE token IN ($1, $2)", [token, later])).rows);
  t.equal(new Set(sealedBy.map(({ key }) => key)).size, 2, 'by another key');
  for (const [of, card] of [[token, 1], [later, 3]] as const) t.equal((await appliance.client('getnet').post('/v1/detokenize', { token: of, purpose: 'capture' })).json()['pan'], cardText(card));
});
