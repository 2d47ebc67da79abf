/** What the database lets each role do with each table, and that it lets it do nothing else. */
import type { Client } from 'pg';
import t from 'tap';
import { adminConnection } from '../../../platform-adapters/postgres/connect.ts';
import { PROCESS_ROLES, roleName, type ProcessRole } from '../../../platform-adapters/postgres/roles.ts';
import { freshDatabase, withClient } from '../../support/database.ts';

const database = await freshDatabase(t);
const asOwner = <T>(work: (client: Client) => Promise<T>): Promise<T> => withClient(adminConnection(database.adminUrl), work);

const sealed = ['sealed_pan', 'sealed_name'];
/** Where the making of a token is told of: all that a search of the log needs of its row. */
const madeIn = ['tenant_id', 'token', 'made_writer', 'made_batch'];

interface Rights {
  /** Columns, or all of them. */
  readonly select?: 'all' | 'all but sealed' | readonly string[];
  readonly insert?: 'all' | readonly string[];
  readonly update?: 'all' | readonly string[];
  readonly delete?: true;
}

const readByWriters = { tokenize: { select: 'all' }, detokenize: { select: 'all' }, admin: { select: 'all' } } as const;

/** Every right that exists. Whoever adds a table or a grant says so here. */
const granted: Readonly<Record<string, Partial<Record<ProcessRole, Rights>>>> = {
  tenants: { tokenize: { select: 'all' }, detokenize: { select: 'all' }, sequencer: { select: 'all' }, relay: { select: 'all' }, admin: { select: 'all', insert: ['name', 'key_domain'] } },
  key_registry: {
    tokenize: { select: 'all', insert: 'all', update: ['leased_seals'] },
    detokenize: { select: 'all', insert: 'all', update: ['leased_seals'] },
    admin: { select: 'all', insert: 'all', update: ['leased_seals', 'state', 'material', 'row_version', 'mac'] },
  },
  cards: { tokenize: { select: 'all but sealed', insert: 'all', update: ['expiry', 'sealed_name', 'fingerprint', 'sealed_pan', 'status', 'row_version', 'token_mac', 'metadata'] }, detokenize: { select: 'all' }, admin: { select: madeIn } },
  tokens: { tokenize: { select: 'all', insert: 'all', update: ['status', 'row_version', 'token_mac', 'metadata', 'reusable'] }, detokenize: { select: 'all' }, admin: { select: madeIn } },
  idempotency_keys: { tokenize: { select: 'all', insert: 'all', delete: true } },
  guessed_groups: { tokenize: { select: 'all', insert: 'all', update: ['seen', 'shared_at'], delete: true } },
  quota_counts: { detokenize: { select: 'all', insert: 'all', update: 'all', delete: true } },
  quota_tokens: { detokenize: { select: 'all', insert: 'all', delete: true } },
  used_references: { detokenize: { select: 'all', insert: 'all', delete: true } },
  controls: { tokenize: { select: ['number', 'made_at', 'kind', 'subject', 'state', 'made_by', 'data_hash', 'hash', 'mac'], insert: 'all' }, detokenize: { select: ['number', 'made_at', 'kind', 'subject', 'state', 'made_by', 'data_hash', 'hash', 'mac'], insert: 'all' }, admin: { select: 'all', insert: 'all' } },
  caller_hours: { detokenize: { select: 'all', insert: 'all', update: 'all', delete: true } },
  operator_logins: { admin: { select: 'all', insert: 'all', update: 'all', delete: true } },
  operator_sessions: { admin: { select: 'all', insert: 'all', update: 'all', delete: true } },
  policy_sets: { tokenize: { select: ['digest'], insert: 'all' }, detokenize: { select: ['digest'], insert: 'all' }, admin: { select: 'all', insert: 'all' } },
  // Emptied by processes of this version, filled by none.
  quota_usage: { detokenize: { select: 'all', insert: 'all', update: 'all', delete: true } },
  writers: { tokenize: { select: 'all', insert: 'all' }, detokenize: { select: 'all', insert: 'all' }, admin: { select: 'all', insert: 'all' }, sequencer: { select: 'all', insert: 'all' } },
  batches: { tokenize: { select: 'all', insert: 'all' }, detokenize: { select: 'all', insert: 'all' }, admin: { select: 'all', insert: 'all' }, sequencer: { select: 'all', insert: 'all' } },
  outbox: { tokenize: { insert: 'all' }, detokenize: { insert: 'all' }, admin: { insert: 'all' }, relay: { select: 'all', delete: true }, sequencer: { select: ['writer', 'number'] } },
  // The tree is read by whoever writes to the log, to see that its batches stand in it, and written by the sequencer only.
  logs: { ...readByWriters, sequencer: { select: 'all', insert: 'all', update: ['size', 'root', 'paired_from', 'paired_to'] } },
  log_chains: { ...readByWriters, sequencer: { select: 'all', insert: 'all', update: ['next', 'previous', 'formed_at', 'state', 'reason'] } },
  log_batches: { ...readByWriters, sequencer: { select: 'all', insert: 'all' } },
  log_tiles: { ...readByWriters, sequencer: { select: 'all', insert: 'all', update: ['hashes'] } },
  log_checkpoints: { ...readByWriters, sequencer: { select: 'all', insert: 'all', delete: true } },
  log_tokens: { sequencer: { select: 'all', insert: 'all' }, admin: { select: 'all' } },
  log_facets: { sequencer: { select: 'all', insert: 'all' }, admin: { select: 'all' } },
  log_pruned: { sequencer: { select: 'all' }, admin: { select: 'all' } },
  // Read by every process, to refuse a schema that it does not know.
  schema_migrations: Object.fromEntries(PROCESS_ROLES.map((role) => [role, { select: 'all' }])),
};

async function columnsOf(table: string): Promise<string[]> {
  return await asOwner(async (client) => (await client.query<{ name: string }>("SELECT column_name::text AS name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = $1 ORDER BY 1", [table])).rows.map((row) => row.name));
}

await t.test('the table of rights names every table there is', async (t) => {
  const tables = await asOwner(async (client) => (await client.query<{ name: string }>("SELECT relname::text AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')")).rows.map((row) => row.name));
  t.same(tables.sort(), Object.keys(granted).sort());
});

await t.test('each role has on each column of each table exactly the rights of the table', async (t) => {
  const wrong: string[] = [];
  let looked = 0;
  for (const [table, roles] of Object.entries(granted)) {
    const columns = await columnsOf(table);
    for (const role of PROCESS_ROLES) {
      const rights: Rights = roles[role] ?? {};
      const expected = (column: string): Readonly<Record<string, boolean>> => ({
        SELECT: rights.select === 'all' || (rights.select === 'all but sealed' && !sealed.includes(column)) || (Array.isArray(rights.select) && rights.select.includes(column)),
        INSERT: rights.insert === 'all' || rights.insert?.includes(column) === true,
        UPDATE: rights.update === 'all' || rights.update?.includes(column) === true,
        REFERENCES: false,
      });
      await asOwner(async (client) => {
        for (const column of columns) {
          for (const [right, may] of Object.entries(expected(column))) {
            const { rows } = await client.query<{ may: boolean }>('SELECT has_column_privilege($1, $2, $3, $4) AS may', [roleName(database.database, role), table, column, right]);
            looked += 1;
            if (rows[0]!.may !== may) wrong.push(`${role} ${rows[0]!.may ? 'may' : 'may not'} ${right} ${table}.${column}`);
          }
        }
        for (const [right, may] of [['DELETE', rights.delete === true], ['TRUNCATE', false], ['TRIGGER', false]] as const) {
          const { rows } = await client.query<{ may: boolean }>('SELECT has_table_privilege($1, $2, $3) AS may', [roleName(database.database, role), table, right]);
          if (rows[0]!.may !== may) wrong.push(`${role} ${rows[0]!.may ? 'may' : 'may not'} ${right} ${table}`);
        }
      });
    }
  }
  t.same(wrong, []);
  t.ok(looked > 500, `${looked} questions`);
});

/** Functions that run with the owner's rights, and who may call them. */
const lent: Readonly<Record<string, readonly ProcessRole[]>> = { prune_log_batches: ['sequencer'], prune_log_search: ['sequencer'], prune_log_tiles: ['sequencer'] };

await t.test('the owner\'s rights are lent by the functions that are named here, to the roles that are named', async (t) => {
  const { rows } = await asOwner((client) => client.query<{ name: string; lends: boolean; path: string | null; may: string[] }>(
    `SELECT p.proname::text AS name, p.prosecdef AS lends, p.proconfig::text AS path,
            array(SELECT r.role FROM unnest($1::text[], $2::text[]) AS r(role, login) WHERE has_function_privilege(r.login, p.oid, 'EXECUTE')) AS may
     FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef ORDER BY 1`,
    [PROCESS_ROLES, PROCESS_ROLES.map((role) => roleName(database.database, role))],
  ));
  t.same(Object.fromEntries(rows.map(({ name, may }) => [name, may])), lent);
  for (const { name, path } of rows) t.equal(path, '{"search_path=public, pg_temp"}', `${name} looks nowhere else`);
});

/** Statements that no process of the role may run: what a stolen host would try first. */
const forbidden: Readonly<Record<ProcessRole, readonly string[]>> = {
  tokenize: [
    'SELECT sealed_pan FROM cards',
    'SELECT sealed_name FROM cards',
    'SELECT * FROM cards',
    'SELECT count(sealed_pan) FROM cards',
    'SELECT 1 FROM cards WHERE sealed_pan IS NOT NULL',
    'INSERT INTO cards SELECT * FROM cards RETURNING sealed_pan',
    "UPDATE cards SET sealed_name = sealed_pan",
    "UPDATE cards SET sealed_pan = sealed_name",
    "UPDATE cards SET sealed_pan = '' RETURNING sealed_pan",
    "UPDATE cards SET token = 'tok_x'",
    "UPDATE cards SET card_id = ''",
    "UPDATE cards SET token_expires_at = NULL",
    "UPDATE tokens SET token_expires_at = NULL",
    'UPDATE cards SET expiry = 1 RETURNING sealed_name',
    'COPY cards TO STDOUT',
    'DELETE FROM cards',
    'SELECT * FROM cards FOR UPDATE',
    "UPDATE tokens SET card_token = ''",
    'DELETE FROM tokens',
    'UPDATE guessed_groups SET day = day',
    'TRUNCATE guessed_groups',
    'SELECT * FROM quota_usage',
    'UPDATE logs SET size = size',
    'UPDATE log_chains SET next = next',
    'INSERT INTO log_tiles SELECT * FROM log_tiles',
    'SELECT * FROM log_tokens',
    'UPDATE key_registry SET material = mac',
    'DELETE FROM key_registry',
    'CREATE TABLE mine (n int)',
    'CREATE FUNCTION peek() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$',
    "COPY cards TO PROGRAM 'true'",
    "SELECT pg_read_file('postgresql.conf')",
    'DROP TRIGGER batches_append_only ON batches',
    'ALTER TABLE batches DISABLE TRIGGER ALL',
    'SET session_replication_role = replica',
  ],
  detokenize: ['INSERT INTO cards SELECT * FROM cards', "UPDATE cards SET status = 0", 'DELETE FROM cards', "UPDATE tokens SET status = 0", 'INSERT INTO tokens SELECT * FROM tokens', 'SELECT * FROM idempotency_keys', 'SELECT * FROM guessed_groups', 'UPDATE key_registry SET state = state', 'CREATE TABLE mine (n int)', 'SET session_replication_role = replica'],
  sequencer: ['SELECT 1 FROM cards', 'SELECT token FROM tokens', 'SELECT * FROM key_registry', 'UPDATE logs SET origin = origin', 'UPDATE logs SET first_leaf = first_leaf', 'DELETE FROM logs', 'DELETE FROM log_chains', 'DELETE FROM log_batches', 'UPDATE log_batches SET number = number', 'DELETE FROM log_tiles', 'SELECT events FROM outbox', 'UPDATE log_pruned SET entries_from = 0', 'UPDATE log_checkpoints SET note = note', 'CREATE TABLE mine (n int)'],
  relay: ['SELECT 1 FROM cards', 'SELECT token FROM tokens', 'SELECT * FROM key_registry', 'SELECT * FROM batches', 'SELECT * FROM idempotency_keys', 'CREATE TABLE mine (n int)'],
  admin: ['SELECT fingerprint FROM cards', 'SELECT sealed_pan FROM cards', 'SELECT * FROM cards', 'SELECT card_token FROM tokens', 'UPDATE logs SET size = size', 'DELETE FROM log_checkpoints', 'INSERT INTO log_batches SELECT * FROM log_batches', 'SELECT * FROM quota_usage', 'DELETE FROM guessed_groups', 'UPDATE quota_usage SET used = 0', "UPDATE tenants SET name = ''", 'DELETE FROM key_registry', 'CREATE TABLE mine (n int)'],
};

for (const role of PROCESS_ROLES) {
  await t.test(`a process of the role ${role} is refused what is not its business`, async (t) => {
    const log = ['UPDATE batches SET entry_count = 0', 'DELETE FROM batches', 'TRUNCATE batches', 'UPDATE writers SET role = role', 'DELETE FROM writers', 'TRUNCATE writers, batches', 'SELECT * FROM batches FOR UPDATE', `SET ROLE ${roleName(database.database, role === 'admin' ? 'detokenize' : 'admin')}`];
    await withClient(database.connect(role), async (client) => {
      for (const statement of [...forbidden[role], ...log]) await t.rejects(client.query(statement), { code: '42501' }, statement);
    });
  });
}

await t.test('not even the owner of the tables changes the log without taking its guard away', async (t) => {
  await asOwner(async (client) => {
    for (const table of ['batches', 'writers']) {
      const column = table === 'batches' ? 'kind' : 'role';
      for (const statement of [`UPDATE ${table} SET ${column} = ${column}`, `DELETE FROM ${table}`, `TRUNCATE ${table} CASCADE`]) await t.rejects(client.query(statement), { code: 'P0001', message: 'the log is append only' }, statement);
    }
  });
});

await t.test('a role registers writers of its own name only, and appends to their chains only', async (t) => {
  const register = (role: string, writer: number) => ({ text: "INSERT INTO writers (writer, role, certificate, started_at) VALUES ($1, $2, '', now())", values: [writer, role] });
  const append = (writer: number, number: number) => ({ text: "INSERT INTO batches (writer, number, kind, formed_at, entry_count, previous, bundle, signature) VALUES ($1, $2, 0, now(), 0, '', '', '')", values: [writer, number] });
  const writers = ['tokenize', 'detokenize', 'admin', 'sequencer'] as const;
  for (const [writer, role] of writers.entries()) await withClient(database.connect(role), (client) => t.resolves(client.query(register(role, writer)), `${role} registers its own`));
  for (const role of writers) {
    await withClient(database.connect(role), async (client) => {
      for (const [writer, other] of writers.entries()) {
        if (other === role) await t.resolves(client.query(append(writer, 0)), `${role} appends to its own`);
        else {
          await t.rejects(client.query(register(other, 100)), { code: '42501' }, `${role} does not register a writer of ${other}`);
          await t.rejects(client.query(append(writer, 1)), { code: '42501' }, `${role} takes no number of ${other}`);
        }
      }
    });
  }
});

await t.test('what a role may do, it can: each grant is one that a statement uses', async (t) => {
  await withClient(database.connect('tokenize'), async (client) => {
    for (const statement of ['SELECT token, fingerprint, token_mac FROM cards', 'UPDATE cards SET expiry = 203001, sealed_name = NULL WHERE false', 'DELETE FROM idempotency_keys', 'SELECT * FROM batches', "INSERT INTO guessed_groups AS g VALUES (1, '2026-11-24', '', '', now()) ON CONFLICT (tenant_id, day, card_group) DO UPDATE SET seen = g.seen | EXCLUDED.seen", 'DELETE FROM guessed_groups']) await t.resolves(client.query(statement), statement);
  });
  await withClient(database.connect('detokenize'), async (client) => {
    for (const statement of ['SELECT * FROM cards', 'SELECT * FROM tokens', 'DELETE FROM quota_usage']) await t.resolves(client.query(statement), statement);
  });
  await withClient(database.connect('sequencer'), async (client) => {
    for (const statement of ['SELECT * FROM batches JOIN writers USING (writer)', 'UPDATE logs SET size = size, root = root', 'DELETE FROM log_checkpoints']) await t.resolves(client.query(statement), statement);
  });
  await withClient(database.connect('admin'), async (client) => {
    for (const statement of ['SELECT tenant_id, token, made_writer, made_batch FROM cards', 'SELECT made_writer, made_batch FROM tokens', 'SELECT * FROM log_facets']) await t.resolves(client.query(statement), statement);
  });
});
