/** A vault that is searched and read while old entries are taken out of its database: at each stage the answers are right, or say that it is in the archive. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import t, { type Test } from 'tap';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { directoryFiles } from '../../audit/directory-log.ts';
import { decodeBundle } from '../../audit/entry.ts';
import { logSource } from '../../audit/log-source.ts';
import { startAppliance } from '../support/appliance.ts';
import { freshDatabase } from '../support/database.ts';
import { logVerifier } from '../support/log-reader.ts';
import { cardText } from '../support/test-cards.ts';

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database, config: { log: { archive: 'archive', archive_interval: '500ms' } } });
const archive = logSource(directoryFiles(join(appliance.home, 'archive', '1')));
const old = new Date(Date.now() - 200 * 86_400_000);
/** Entries that are made old; the first bundles of the log. */
const oldEntries = 600;
const oldBundles = 2;

async function until<Answer>(work: () => Promise<Answer | null | false>, what: string): Promise<Answer> {
  for (const began = Date.now(); Date.now() - began < 40_000; await sleep(100)) {
    const answer = await work();
    if (answer !== null && answer !== false) return answer;
  }
  throw new Error(`waited too long for ${what}`);
}

async function ownerClient(): Promise<Client> {
  const client = new Client({ connectionString: database.adminUrl });
  await client.connect();
  t.teardown(() => client.end());
  return client;
}

const owner = await ownerClient();
const metric = async (name: string): Promise<number> => Number(new RegExp(`^${name} (\\S+)$`, 'mu').exec(await (await fetch(`${appliance.telemetryUrl}/metrics`)).text())?.[1]);
const validate = async (token: string): Promise<number> => (await appliance.client('checkout').post('/v1/validate', { token })).status;

interface Found {
  readonly items: readonly { readonly index: number; readonly entry: Readonly<Record<string, unknown>> }[];
  readonly searchable_from: { readonly index: number; readonly time: string } | null;
}
const search = async (query: string): Promise<Found> => {
  const reply = await appliance.client('auditor', { admin: true }).get(`/audit/search?${query}&limit=1000`);
  if (reply.status !== 200) throw new Error(`${query}: ${reply.status} ${reply.body.toString()}`);
  return reply.json() as unknown as Found;
};

const queries: Record<string, string> = {};
/** By query: what it finds while everything is in the database. */
const truth = new Map<string, Found['items']>();

await t.test('a log of which some is old', { timeout: 120_000 }, async (t) => {
  const checkout = appliance.client('checkout');
  const token = (await checkout.post('/v1/tokenize', { pan: cardText(1) })).json()['token'] as string;
  for (let call = 0; call < 3; call += 1) t.equal(await validate(token), 200);
  for (let done = 0; done < 700; done += 50) await Promise.all(Array.from({ length: 50 }, () => checkout.post('/v1/validate', { token: 'tok_none' })));
  t.equal(await validate(token), 200);
  // The last of them in the tree, and what is there by then in the copy.
  await until(async () => (await search(`token=${token}&action=validate`)).items.some(({ index }) => index > oldEntries), 'the log');
  const size = await metric('cofre_log_size');
  await until(async () => (openCheckpoint((await archive.checkpoint()) ?? '', [logVerifier(appliance.home)])?.size ?? 0) >= size && (await search('action=tokenize')).items.length === 1, 'the copy');
  Object.assign(queries, { 'by token': `token=${token}`, 'by action': 'action=tokenize', 'by caller': 'caller=spiffe://cofre.dev/tenant/acme/service/checkout', 'by outcome': 'outcome=allowed&action=validate' });
  for (const [what, query] of Object.entries(queries)) truth.set(what, (await search(query)).items);
  t.ok(truth.get('by token')!.length >= 4 && truth.get('by token')!.some(({ index }) => index < 256) && truth.get('by token')!.some(({ index }) => index > oldEntries));
  appliance.closeClients();
  t.same(await appliance.stop(), { code: 0, signal: null });
  await owner.query('ALTER TABLE batches DISABLE TRIGGER USER');
  await owner.query('UPDATE batches b SET formed_at = $1 FROM log_batches p WHERE (p.writer, p.number) = (b.writer, b.number) AND p.first_index < $2', [old, oldEntries]);
  await owner.query('UPDATE log_batches SET formed_at = $1 WHERE first_index < $2', [old, oldEntries]);
  await owner.query('ALTER TABLE batches ENABLE TRIGGER USER');
});

/** What callers' entries a bundle holds, as text; null in the place of a batch's leaf, of which the time is no longer what was signed. */
function entriesOf(bundle: Uint8Array): (string | null)[] {
  return decodeBundle(bundle).map((bytes) => Buffer.from(bytes).toString()).map((entry) => (entry.includes('"action":"log.batch"') ? null : entry));
}

/** Asks for everything, and holds each answer against what was there, and against what it says of itself. Returns from where on it is searched. */
async function answersAreRight(t: Test, stage: string): Promise<number> {
  let from = 0;
  for (const [what, query] of Object.entries(queries)) {
    const { items, searchable_from: searchable } = await search(query);
    from = searchable?.index ?? 0;
    const last = truth.get(what)![0]!.index;
    t.same(items.filter(({ index }) => index <= last), truth.get(what)!.filter(({ index }) => index >= from), `${stage}: ${what}, from ${from} on`);
  }
  const auditor = appliance.client('auditor', { admin: true });
  for (let index = 0; index <= oldBundles; index += 1) {
    for (const kind of ['entries', '0'] as const) {
      const ref = { index, width: 256 };
      const reply = await auditor.get(`/audit/tile/${kind}/00${index}`);
      const kept = kind === 'entries' ? await archive.bundle(ref) : await archive.tile({ ...ref, level: 0 });
      const read = (bytes: Uint8Array): unknown => (kind === 'entries' ? entriesOf(bytes) : Buffer.from(bytes));
      if (reply.status === 200) t.same(read(reply.body), read(kept!), `${stage}: ${kind}/${index} is what it was`);
      else t.ok(reply.status === 404 && index < oldBundles && from > index * 256, `${stage}: ${kind}/${index}: ${reply.status}, searched from ${from}`);
    }
  }
  t.equal(await validate('tok_none'), 200, `${stage}: calls go on`);
  return from;
}

await t.test('at each stage of it answers are right', { timeout: 180_000 }, async (t) => {
  // Each stage is held up by somebody who holds a row of what goes in it.
  const stages: readonly (readonly [string, string, string])[] = [
    ['before batches go', 'prune_log_batches', 'SELECT 1 FROM batches b JOIN log_batches p USING (writer, number) WHERE p.first_index BETWEEN 1 AND 300 FOR UPDATE OF b'],
    ['before what they are found by goes', 'prune_log_search', 'SELECT 1 FROM log_facets WHERE block < 2 FOR UPDATE'],
    ['before tiles go', 'prune_log_tiles', 'SELECT 1 FROM log_tiles WHERE level = 0 AND tile < 2 FOR UPDATE'],
  ];
  const holders = await Promise.all(stages.map(async ([, , held]) => {
    const client = await ownerClient();
    await client.query(`BEGIN; ${held}`);
    return client;
  }));
  await appliance.start();
  const froms: number[] = [];
  for (const [index, [stage, statement]] of stages.entries()) {
    await until(async () => ((await owner.query("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1", [`%${statement}%`])).rowCount ?? 0) > 0, `the pruning to wait ${stage}`);
    froms.push(await answersAreRight(t, stage));
    await holders[index]!.query('ROLLBACK');
  }
  await until(async () => (await metric('cofre_log_pruned_entries_total')) >= oldBundles * 256, 'the end');
  froms.push(await answersAreRight(t, 'afterwards'));
  t.same(froms, froms.toSorted((a, b) => a - b), 'never further back than before');
  t.ok(froms[0] === 0 && froms.at(-1)! > 256, 'and some of it is in the archive in the end');
  t.match((await search('action=log.pruned')).items, [{ entry: { detail: { entries: `0-${oldBundles * 256 - 1}` } } }]);
  appliance.closeClients();
});
