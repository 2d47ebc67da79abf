/** The log of a running vault, as an auditor has it: served, exported, verified, searched and proven by the commands, and told of itself. After a restore: refused, and begun anew. */
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'pg';
import t from 'tap';
import { startAppliance, until, type Appliance } from '../support/appliance.ts';
import { auditCommands, type AuditRun } from '../support/audit-commands.ts';
import { tracesInFolder } from '../support/card-traces.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const run = auditCommands(t);
const audit = (appliance: Appliance, ...args: readonly string[]): Promise<AuditRun> => run(args, { COFRE_HOME: appliance.home, COFRE_ADMIN_PORT: String(appliance.adminPort || 1) });

/** Resolves once a checkpoint covers everything that is committed by now. */
async function signed(appliance: Appliance): Promise<number> {
  const auditor = appliance.client('auditor', { admin: true });
  const size = async (): Promise<number> => Number((await auditor.get('/audit/checkpoint')).body.toString('utf8').split('\n')[1] ?? 0);
  const owner = new Client({ connectionString: appliance.databaseUrl });
  await owner.connect();
  try {
    const { rows } = await owner.query<{ leaves: string }>('SELECT 1 + count(*) + sum(entry_count) AS leaves FROM batches');
    await until(async () => (await size()) >= Number(rows[0]!.leaves), 'the checkpoint');
    return await size();
  } finally {
    await owner.end();
  }
}

interface Found {
  readonly origin: string;
  readonly index: number;
  readonly entry: Record<string, unknown>;
}
const found = (out: string): Found[] => out.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Found);

await t.test('what callers did is exported, verified, found and proven', { timeout: 120_000 }, async (t) => {
  const appliance = await startAppliance(t);
  const [checkout, getnet, intruder] = [appliance.client('checkout'), appliance.client('getnet'), appliance.client('intruder')];
  const tokens: string[] = [];
  for (let n = 0; n < 12; n += 1) tokens.push((await checkout.post('/v1/tokenize', { pan: cardText(n) })).json()['token'] as string);
  await checkout.post('/v1/tokenize', { pan: cardText(0) });
  await checkout.post('/v1/validate', { token: tokens[0] });
  await getnet.post('/v1/detokenize', { token: tokens[0], purpose: 'refund', reference: 'order-7' });
  await getnet.post('/v1/detokenize', { token: tokens[1], purpose: 'chargeback' });
  for (let n = 0; n < 300; n += 1) await intruder.post('/v1/validate', { token: tokens[2] });
  const size = await signed(appliance);

  const folder = t.testdir();
  const copy = join(folder, 'copy');
  // One that is older than the copy: a newer one would tell of entries that the copy lacks.
  const kept = join(folder, 'checkpoints.jsonl');
  copyFileSync(join(appliance.home, 'witness', readdirSync(join(appliance.home, 'witness')).sort().at(-1)!), kept);
  const exported = await audit(appliance, 'export', copy, '--json');
  t.equal(exported.code, 0, exported.err);
  t.ok((JSON.parse(exported.out) as { size: number }).size >= size);
  const key = join(copy, 'vkey');
  t.match(await audit(appliance, 'verify', copy, '--vkey', key, '--checkpoint', kept), { code: 0, out: new RegExp(`^continues ${kept}\n`, 'u') });
  t.match(await audit(appliance, 'verify', copy, '--vkey', key), { code: 0, out: /all in order/u });

  const ofToken = await audit(appliance, 'search', '--token', tokens[0]!, '--json');
  t.same(found(ofToken.out).map(({ entry }) => [entry['action'], entry['outcome']]), [['detokenize', 'allowed'], ['validate', 'allowed'], ['tokenize', 'allowed'], ['tokenize', 'allowed']], 'newest first, the one of its making too');
  t.match(found(ofToken.out)[0]!.entry, { caller: 'spiffe://cofre.dev/tenant/acme/service/getnet', purpose: 'refund', reference: 'order-7', tenant: 'acme' });
  const refused = found((await audit(appliance, 'search', '--caller', 'spiffe://cofre.dev/tenant/acme/service/intruder', '--outcome', 'refused', '--action', 'validate', '--limit', '250', '--json')).out);
  t.ok(refused.length >= 100 && refused.every(({ entry }) => entry['code'] === 'not_authorized'), `${refused.length} refusals`);
  t.ok(refused.every(({ index }, place) => place === 0 || index < refused[place - 1]!.index), 'each once, in order');
  t.same(found((await audit(appliance, 'search', '--purpose', 'chargeback', '--json')).out).map(({ entry }) => entry['code']), ['not_authorized']);
  t.same(found((await audit(appliance, 'search', '--caller', 'spiffe://cofre.dev/tenant/acme/service/nobody', '--json')).out), []);
  t.same(found((await audit(appliance, 'search', '--from', '2100-01-01', '--json')).out), []);
  t.same(found((await audit(appliance, 'search', '--to', '2001-01-01T00:00:00Z', '--json')).out), []);
  t.match(await audit(appliance, 'search', '--outcome', 'maybe'), { code: 1, err: /answered 400/u });
  t.ok(found(ofToken.out).every(({ origin }) => origin === 'cofre.dev/log'));

  const { index } = found(ofToken.out)[0]!;
  const proof = join(folder, 'detokenize.tlog-proof');
  t.match(await audit(appliance, 'prove', String(index), '--out', proof), { code: 0 });
  const checked = await audit(appliance, 'check-proof', proof, '--vkey', key);
  t.equal(checked.code, 0, checked.err);
  t.equal((JSON.parse(checked.out) as { reference: string }).reference, 'order-7');
  t.match(await audit(appliance, 'prove', String(index), '--from', copy), { code: 0 });

  // Reading is told of: searches one by one with what they asked for, tiles and checkpoints when their minute or the vault ends.
  await signed(appliance);
  const searches = found((await audit(appliance, 'search', '--action', 'log_search', '--json')).out);
  t.ok(searches.some(({ entry }) => JSON.stringify(entry['tokens']) === JSON.stringify({ searched: [tokens[0]] })));
  await appliance.restart();
  await signed(appliance);
  const reads = found((await audit(appliance, 'search', '--action', 'log_read', '--json')).out);
  t.ok(reads.length >= 1);
  t.match(reads.at(-1)!.entry, { caller: 'spiffe://cofre.dev/tenant/platform/service/auditor', policies: ['auditor-reads-the-log'], detail: { entries: /^0-\d+/u, tiles: Number, checkpoints: Number } });

  // The chain of each writer is followed by its successor's, in one log.
  t.match(await audit(appliance, 'export', copy), { code: 0 });
  t.match(await audit(appliance, 'verify', copy, '--vkey', key), { code: 0, out: /all in order/u });
  t.same(tracesInFolder(copy, Array.from({ length: 12 }, (_, n) => cardText(n))), [], 'no card is in the copy');
});

await t.test('nobody else reads it, and nothing else is there', async (t) => {
  const appliance = await startAppliance(t);
  await signed(appliance);
  for (const who of ['checkout', 'getnet', 'intruder', 'operator-a']) {
    for (const path of ['/audit/checkpoint', '/audit/vkey', '/audit/tile/0/000.p/1', '/audit/tile/entries/000.p/1', '/audit/search']) isProblem(t, await appliance.client(who, { admin: true }).get(path), 'not_authorized');
  }
  const auditor = appliance.client('auditor', { admin: true });
  for (const path of ['tile/0/001', 'tile/0/000', 'tile/9/000', 'tile/0/0', 'tile/entries/000.p/256', 'tile/entries/x001/000', 'tile/../checkpoint', 'tile/0/000.p/0', 'checkpoint/x', 'tile/']) isProblem(t, await auditor.get(`/audit/${path}`), 'not_found');
  for (const query of ['limit=0', 'limit=1001', 'limit=x', 'before=-1', 'from=yesterday', 'from=2026-13-45', 'from=2026-02-31', 'to=2026-02-31T00:00Z', 'before=5@2', 'before=5@x', 'before=5@', 'outcome=none', 'token=a%20b', 'caller=x', 'more=1', 'token=a&token=b']) isProblem(t, await auditor.get(`/audit/search?${query}`), 'invalid_request');
  isProblem(t, await appliance.client('auditor').get('/audit/checkpoint'), 'not_found');
});

await t.test('over an older database the vault does not start, until a new log that names the old one is begun', { timeout: 180_000 }, async (t) => {
  const appliance = await startAppliance(t);
  const checkout = appliance.client('checkout');
  const kept = (await checkout.post('/v1/tokenize', { pan: cardText(1) })).json()['token'] as string;
  await appliance.stop();
  const folder = t.testdir();
  const backup = join(folder, 'backup');
  // With owners and modes: under root its files belong to the user that PostgreSQL runs as.
  execFileSync('cp', ['-a', join(appliance.home, 'postgres'), backup]);
  await appliance.start();
  const lost = (await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(2) })).json()['token'] as string;
  const size = await signed(appliance);
  const old = join(folder, 'old');
  t.match(await audit(appliance, 'export', old), { code: 0 });
  t.match(await audit(appliance, 'restart'), { code: 1, err: /another process already uses/u });
  await appliance.stop();
  t.match(await audit(appliance, 'restart'), { code: 1, err: /the log in the database is the one that was witnessed/u });

  rmSync(join(appliance.home, 'postgres'), { recursive: true });
  execFileSync('cp', ['-a', backup, join(appliance.home, 'postgres')]);
  const refused = await appliance.launch();
  t.match(refused, { code: 1 });
  t.match(appliance.err, /the database is older than this vault, or was tampered with/u);

  // The notes of last batches out of the way, the witness still knows.
  const notes = join(appliance.home, 'writers');
  const aside = join(appliance.home, 'writers-aside');
  renameSync(notes, aside);
  t.match(await appliance.launch(), { code: 1 });
  t.match(appliance.err, /a checkpoint of \d+ entries was witnessed, but the log in the database has \d+: the database was restored from an older backup, or cut off\. If it was restored on purpose, begin a new log that names this one: cofre audit restart/u);
  rmSync(notes, { recursive: true, force: true });
  renameSync(aside, notes);

  const restarted = await audit(appliance, 'restart', '--json');
  t.equal(restarted.code, 0, restarted.err);
  const told = JSON.parse(restarted.out) as { origin: string; predecessor: { origin: string; size: number }; had: number; moved_aside: string[] };
  t.equal(told.origin, 'cofre.dev/log/2');
  t.equal(told.predecessor.origin, 'cofre.dev/log');
  t.ok(told.predecessor.size >= size && told.had < told.predecessor.size);
  t.ok(told.moved_aside.length > 0 && told.moved_aside.every((path) => existsSync(path)));
  await appliance.start();
  const again = appliance.client('checkout');
  t.equal((await again.post('/v1/validate', { token: kept })).json()['status'], 'active');
  t.equal((await again.post('/v1/validate', { token: lost })).json()['status'], 'unknown', 'what came after the backup is gone from the database');
  // The last call above is in the new log: a first checkpoint may be of less.
  await until(async () => (await appliance.client('auditor', { admin: true }).get('/audit/search?action=validate')).body.includes(lost), 'the calls in the new log');
  const fresh = join(folder, 'new');
  const exported = await audit(appliance, 'export', fresh);
  t.match(exported, { code: 0, out: /cofre\.dev\/log\/2/u });
  const vkey = (await audit(appliance, 'vkey')).out.trim();
  t.match(vkey, /^cofre\.dev\/log\/2\+/u);
  t.match(await audit(appliance, 'verify', fresh, '--vkey', vkey), { code: 0, out: /all in order/u });
  t.match(await audit(appliance, 'verify', old, '--vkey', vkey), { code: 0, out: /all in order/u }, 'the key is the same under both names');
  t.match(await audit(appliance, 'export', old), { code: 1, err: /the copy is of the log cofre\.dev\/log, not of cofre\.dev\/log\/2/u }, 'a copy is of one log');

  // What the backup held of the old log is searched behind the new one, and what only a copy has is told of.
  const ofKept = await audit(appliance, 'search', '--token', kept, '--json');
  t.same(found(ofKept.out).map(({ origin, entry }) => [origin, entry['action']]), [['cofre.dev/log/2', 'validate'], ['cofre.dev/log', 'tokenize']]);
  t.equal(ofKept.err, `cofre.dev/log, an earlier log of this vault, is searched as far as the database has it: ${told.had.toLocaleString('en')} of ${told.predecessor.size.toLocaleString('en')} entries; only a copy of it holds the others\n`);
  t.same(found((await audit(appliance, 'search', '--token', lost, '--json')).out).map(({ origin, entry }) => [origin, entry['action']]), [['cofre.dev/log/2', 'validate']]);
  const charters = await audit(appliance, 'search', '--action', 'log.start', '--json');
  t.same(found(charters.out).map(({ origin, index }) => [origin, index]), [['cofre.dev/log/2', 0], ['cofre.dev/log', 0]]);
  const answer = (await appliance.client('auditor', { admin: true }).get('/audit/search?action=log.start')).json() as { next: unknown; earlier_logs: unknown };
  t.equal(answer.next, `${told.had}@1`);
  t.match(answer.earlier_logs, [{ origin: 'cofre.dev/log', entries: told.had, signed: told.predecessor.size }]);
  isProblem(t, await appliance.client('auditor', { admin: true }).get('/audit/search?before=5@3'), 'invalid_request');

  await appliance.restart();
  t.equal((await appliance.client('checkout').post('/v1/validate', { token: kept })).json()['status'], 'active', 'it starts again');
});

await t.test('an entry that is changed in the database is named by whoever copies or verifies', { timeout: 120_000 }, async (t) => {
  const appliance = await startAppliance(t);
  const checkout = appliance.client('checkout');
  for (let n = 0; n < 5; n += 1) await checkout.post('/v1/validate', { token: 'tok_none' });
  await signed(appliance);
  const folder = t.testdir();
  const copy = join(folder, 'copy');
  t.match(await audit(appliance, 'export', copy), { code: 0 });
  const superuser = new Client({ connectionString: appliance.databaseUrl });
  await superuser.connect();
  t.teardown(() => superuser.end());
  await superuser.query("SET session_replication_role = replica; UPDATE batches SET bundle = set_byte(bundle, 40, get_byte(bundle, 40) # 1) WHERE (writer, number) = (SELECT writer, number FROM log_batches ORDER BY first_index DESC LIMIT 1 OFFSET 2)");
  const exported = await audit(appliance, 'export', join(folder, 'second'));
  t.match(exported, { code: 1, err: /entries 0 to \d+ of the log \(tile\/entries\/000\.p\/\d+\) are not those that its checkpoint signs/u });
  // In a copy it is the verifier who names it.
  const bundle = readdirSync(join(copy, 'tile/entries')).find((name) => name.startsWith('000'))!;
  const path = existsSync(join(copy, 'tile/entries', bundle)) && !bundle.endsWith('.p') ? join(copy, 'tile/entries', bundle) : join(copy, 'tile/entries', bundle, readdirSync(join(copy, 'tile/entries', bundle))[0]!);
  const bytes = readFileSync(path);
  bytes[bytes.length - 30] = bytes[bytes.length - 30]! ^ 1;
  writeFileSync(path, bytes);
  const vkey = (await audit(appliance, 'vkey')).out.trim();
  t.match(await audit(appliance, 'verify', copy, '--vkey', vkey), { code: 1, out: /entry \d+/u });
});
