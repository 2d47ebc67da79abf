import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, chownSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, readlinkSync, realpathSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import t, { type Test } from 'tap';
import { adminConnection, assertDurable } from '../../../platform-adapters/postgres/connect.ts';
import { startEmbedded, type EmbeddedOptions, type EmbeddedPostgres } from '../../../platform-adapters/postgres/embedded.ts';
import { superviseEmbedded } from '../../../platform-adapters/postgres/supervisor.ts';
import { withClient } from '../../support/database.ts';
import { watchFlushes } from '../../support/flushes.ts';

/** A state folder that is removed again; the name's length is chosen where it matters. */
function stateFolder(t: Test, name = 'postgres'): string {
  const parent = mkdtempSync(join(tmpdir(), 'cofre-embedded-'));
  chmodSync(parent, 0o711);
  t.teardown(() => rmSync(parent, { recursive: true, force: true }));
  return join(parent, name);
}

async function started(t: Test, folder: string, options: Partial<EmbeddedOptions> = {}): Promise<EmbeddedPostgres> {
  const server = await startEmbedded({ folder, diesWithParent: true, ...options });
  t.teardown(() => server.stop());
  return server;
}

/** Starts the server from a process of its own, which is then killed outright. Resolves to the pid of the PostgreSQL that is left. */
async function abandonServer(folder: string): Promise<number> {
  const module = new URL('../../../platform-adapters/postgres/embedded.ts', import.meta.url).href;
  const source = `import { startEmbedded } from ${JSON.stringify(module)}; const s = await startEmbedded({ folder: ${JSON.stringify(folder)} }); console.log(s.pid); setInterval(() => {}, 1000)`;
  const child = spawn(process.execPath, ['--input-type=module-typescript', '-e', source], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  child.kill('SIGKILL');
  await once(child, 'exit');
  return Number(line.toString());
}

function write(server: EmbeddedPostgres, sql: string): Promise<unknown[]> {
  return withClient(adminConnection(server.adminUrl), async (client) => (await client.query<Record<string, unknown>>(sql)).rows);
}

/** A process of nobody's that outlives the test's steps. */
function bystander(t: Test): number {
  const child = spawn('sleep', ['600'], { stdio: 'ignore' });
  t.teardown(() => child.kill());
  return child.pid!;
}

t.test('what was committed is there after stop and start, and the server is durable', async (t) => {
  const folder = stateFolder(t);
  const first = await started(t, folder);
  t.equal(first.adopted, false);
  await write(first, 'CREATE TABLE kept AS SELECT 7 AS n');
  await first.stop();
  t.notOk(existsSync(`/proc/${first.pid}`), 'stop() resolves when the process is gone');
  await first.stop();
  const second = await started(t, folder);
  t.same(await write(second, 'SELECT n FROM kept'), [{ n: 7 }]);
  await t.resolves(withClient(adminConnection(second.adminUrl), assertDurable));
  t.same(
    await write(
      second,
      "SELECT current_setting('data_checksums') AS sums, current_setting('listen_addresses') AS tcp, current_setting('server_encoding') AS encoding, current_setting('log_min_error_statement') AS statements",
    ),
    [{ sums: 'on', tcp: '', encoding: 'UTF8', statements: 'panic' }],
  );
});

t.test('a server that does not flush what it acknowledges is refused, by the name of its setting', async (t) => {
  const folder = stateFolder(t);
  for (const setting of ['fsync', 'full_page_writes'] as const) {
    const server = await started(t, folder, { settings: { [setting]: 'off' } });
    await t.rejects(withClient(adminConnection(server.adminUrl), assertDurable), { message: `PostgreSQL runs with ${setting}=off, so acknowledged tokens could be lost: set it to on` });
    await server.stop();
  }
});

t.test('the owner is no superuser, and a wrong password does not enter', async (t) => {
  const server = await started(t, stateFolder(t));
  t.same(await write(server, 'SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user'), [{ rolsuper: false, rolcreaterole: true, rolcreatedb: true }]);
  await t.rejects(
    withClient({ connectionString: server.superuserUrl.replace(/:[^:@/]+@/, ':wrong@') }, async () => undefined),
    { code: '28P01' },
  );
});

t.test('its files are private, it cannot dump core, and as root it does not run with our uid or inherits a way back', async (t) => {
  const server = await started(t, stateFolder(t));
  t.equal(statSync(server.dataFolder).mode & 0o077, 0);
  t.equal(lstatSync(join(server.dataFolder, '..', 'passwords.json')).mode & 0o077, 0);
  t.equal(statSync(server.logFile).mode & 0o077, 0);
  t.match(readFileSync(`/proc/${server.pid}/limits`, 'utf8'), /^Max core file size\s+0\s+0\s/m);
  const uids = /^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${server.pid}/status`, 'utf8'))![1];
  const inNamespace = readlinkSync(`/proc/${server.pid}/ns/user`) !== readlinkSync('/proc/self/ns/user');
  t.ok(process.getuid!() !== 0 || uids !== '0' || inNamespace);
});

t.test('statements and values stay out of the log', async (t) => {
  const server = await started(t, stateFolder(t));
  await withClient(adminConnection(server.adminUrl), async (client) => {
    await client.query('CREATE TABLE u (v text PRIMARY KEY)');
    await client.query('INSERT INTO u VALUES ($1)', ['needle-in-parameter']);
    await t.rejects(client.query('INSERT INTO u VALUES ($1)', ['needle-in-parameter']), { code: '23505' });
    await t.rejects(client.query("SELECT 'needle-in-statement' FROM absent"), { code: '42P01' });
  });
  const log = readFileSync(server.logFile, 'utf8');
  t.match(log, 'duplicate key value', 'the fault itself is logged');
  t.notMatch(log, 'needle');
});

t.test('a server that a killed process left behind is taken over, with what it committed', async (t) => {
  const folder = stateFolder(t);
  const pid = await abandonServer(folder);
  const server = await started(t, folder, { diesWithParent: false });
  t.equal(server.adopted, true);
  t.equal(server.pid, pid);
  await server.stop();
  await server.exited;
  t.notOk(existsSync(join(server.dataFolder, 'postmaster.pid')), 'it can be stopped cleanly too');
});

t.test('a left-behind server with other settings is ended and started anew', async (t) => {
  const folder = stateFolder(t);
  const pid = await abandonServer(folder);
  const server = await started(t, folder, { settings: { work_mem: '8MB' } });
  t.equal(server.adopted, false);
  t.not(server.pid, pid);
  t.same(await write(server, "SELECT current_setting('work_mem') AS mem"), [{ mem: '8MB' }]);
});

t.test('a left-behind server that hangs is ended and started anew', async (t) => {
  const folder = stateFolder(t);
  const pid = await abandonServer(folder);
  process.kill(pid, 'SIGSTOP');
  const server = await started(t, folder, { diesWithParent: false });
  t.equal(server.adopted, false);
  t.same(await write(server, 'SELECT 1 AS one'), [{ one: 1 }]);
});

t.test('a server killed outright recovers what was committed', async (t) => {
  const folder = stateFolder(t);
  const first = await started(t, folder);
  await write(first, 'CREATE TABLE kept AS SELECT 7 AS n');
  process.kill(first.pid, 'SIGKILL');
  await first.exited;
  const second = await started(t, folder);
  t.same(await write(second, 'SELECT n FROM kept'), [{ n: 7 }]);
});

t.test('a server that is not ready yet is ended where it is not wanted any more', { timeout: 120_000 }, async (t) => {
  const folder = stateFolder(t);
  const first = await started(t, folder);
  await first.stop();
  // It recovers without end: it waits for somebody else's WAL, and lets nobody in meanwhile.
  const signal = join(first.dataFolder, 'standby.signal');
  writeFileSync(signal, '');
  const unwanted = new AbortController();
  const settings = { hot_standby: 'off' };
  const before = performance.now();
  setTimeout(() => unwanted.abort(), 1500);
  await t.rejects(startEmbedded({ folder, diesWithParent: true, settings, unwanted: unwanted.signal }), { message: 'PostgreSQL was told to end while it started' });
  t.ok(performance.now() - before < 30_000);
  rmSync(signal);

  // The supervision as well ends what it has just started again.
  const events: string[] = [];
  const supervised = await superviseEmbedded({ folder, diesWithParent: true, settings }, (event) => events.push(event));
  writeFileSync(signal, '');
  process.kill(Number.parseInt(readFileSync(join(first.dataFolder, 'postmaster.pid'), 'utf8'), 10), 'SIGKILL');
  while (!events.includes('postgres_ended')) await new Promise((resolve) => setTimeout(resolve, 20));
  await new Promise((resolve) => setTimeout(resolve, 3000));
  const stopping = performance.now();
  await supervised.stop();
  t.ok(performance.now() - stopping < 30_000);
  t.same(events, ['postgres_ended']);
  rmSync(signal);
});

t.test('a server whose startup process is killed while it recovers from the kill of another is started again', async (t) => {
  const folder = stateFolder(t);
  const events: string[] = [];
  const supervised = await superviseEmbedded({ folder, diesWithParent: true }, (event) => events.push(event));
  t.teardown(() => supervised.stop());
  const postmaster = Number.parseInt(readFileSync(join(folder, 'cluster/data/postmaster.pid'), 'utf8'), 10);
  const childOf = (title: string): number | undefined =>
    readFileSync(`/proc/${postmaster}/task/${postmaster}/children`, 'utf8').trim().split(' ').map(Number).find((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith(`postgres: ${title}`);
      } catch {
        return false;
      }
    });
  await withClient(adminConnection(supervised.adminUrl), (client) => client.query('CREATE TABLE kept AS SELECT 7 AS n'));
  let stranded = false;
  // It must be met before it has begun to replay, which lasts a few hundredths of a second.
  for (let tries = 0; tries < 20 && !stranded && events.length === 0; tries += 1) {
    process.kill(childOf('walwriter')!, 'SIGKILL');
    let startup: number | undefined;
    for (const until = performance.now() + 2000; startup === undefined && performance.now() < until;) startup = childOf('startup');
    if (startup !== undefined) process.kill(startup, 'SIGKILL');
    await new Promise((resolve) => setTimeout(resolve, 3000));
    stranded = existsSync(`/proc/${postmaster}`) && childOf('startup') === undefined && childOf('walwriter') === undefined;
    if (!existsSync(`/proc/${postmaster}`)) break;
  }
  t.ok(stranded, 'it stands still');
  for (let waits = 0; waits < 300 && !events.includes('postgres_restarted'); waits += 1) await new Promise((resolve) => setTimeout(resolve, 100));
  t.same(events, ['postgres_stranded', 'postgres_ended', 'postgres_restarted']);
  t.same(await withClient(adminConnection(supervised.adminUrl), async (client) => (await client.query<{ n: number }>('SELECT n FROM kept')).rows), [{ n: 7 }]);
});

t.test('lock files that name an unrelated living process do not stop a start, and the process is left alone', async (t) => {
  const folder = stateFolder(t);
  const first = await started(t, folder);
  const pidFile = readFileSync(join(first.dataFolder, 'postmaster.pid'), 'utf8');
  const socketLock = readFileSync(join(folder, 'socket', '.s.PGSQL.5432.lock'), 'utf8');
  await first.stop();
  const other = bystander(t);
  writeFileSync(join(first.dataFolder, 'postmaster.pid'), pidFile.replace(/^\d+/, String(other)));
  writeFileSync(join(folder, 'socket', '.s.PGSQL.5432.lock'), socketLock.replace(/^\d+/, String(other)));
  const second = await started(t, folder);
  t.same(await write(second, 'SELECT 1 AS one'), [{ one: 1 }]);
  t.ok(existsSync(`/proc/${other}`));
});

t.test('a half-made cluster is thrown away', async (t) => {
  const folder = stateFolder(t);
  mkdirSync(join(folder, 'initdb-0123456789ab', 'data'), { recursive: true });
  writeFileSync(join(folder, 'initdb-0123456789ab', 'data', 'PG_VERSION'), '18\n');
  chmodSync(folder, 0o711);
  await started(t, folder);
  t.notOk(readdirSync(folder).some((name) => name.startsWith('initdb-')));
});

t.test('a new cluster is on disk with its passwords, under its own name, before it is used', async (t) => {
  const folder = stateFolder(t);
  const flushes = watchFlushes();
  t.teardown(() => flushes.stop());
  await started(t, folder);
  const half = new RegExp(`^${folder}/initdb-[0-9a-f]{12}$`);
  t.match(flushes.paths, [new RegExp(`^${folder}/initdb-[0-9a-f]{12}/passwords\\.json\\.`), half, half, folder]);
});

t.test('a state folder with a long path gets its socket elsewhere, in a private folder', async (t) => {
  const server = await started(t, stateFolder(t, 'a'.repeat(120)));
  const socket = new URL(server.adminUrl.replace('@/', '@h/')).searchParams.get('host')!;
  t.match(socket, /^\/tmp\/cofre-[0-9a-f]{16}$/);
  t.equal(statSync(socket).mode & 0o777, 0o700);
  await server.stop();
  rmSync(socket, { recursive: true });
});

t.test('what somebody else put where the socket goes is neither used nor removed', async (t) => {
  const folder = stateFolder(t, 'b'.repeat(120));
  mkdirSync(folder, { mode: 0o711 });
  const socket = `/tmp/cofre-${createHash('sha256').update(realpathSync(folder)).digest('hex').slice(0, 16)}`;
  t.teardown(() => rmSync(socket, { recursive: true, force: true }));
  const refused = { message: `${socket} belongs to somebody else: see what it is and remove it, or set COFRE_HOME to a shorter path` };
  // A file is of nobody's making here, whoever owns it; that another user made a folder only root can try.
  writeFileSync(socket, 'kept');
  await t.rejects(startEmbedded({ folder, diesWithParent: true }), refused);
  t.equal(readFileSync(socket, 'utf8'), 'kept');
  if (process.getuid!() === 0) {
    rmSync(socket);
    mkdirSync(socket);
    writeFileSync(join(socket, 'theirs'), 'kept');
    chownSync(socket, 12_345, 12_345);
    await t.rejects(startEmbedded({ folder, diesWithParent: true }), refused);
    t.equal(readFileSync(join(socket, 'theirs'), 'utf8'), 'kept');
  }
});

t.test('a server that cannot be started again says why, and comes back when it can', async (t) => {
  const folder = stateFolder(t);
  const reports: string[] = [];
  const supervised = await superviseEmbedded({ folder, diesWithParent: true }, (event, reason) => reports.push(reason === undefined ? event : `${event}: ${reason}`));
  t.teardown(() => supervised.stop());
  const passwords = join(folder, 'cluster/passwords.json');
  const kept = readFileSync(passwords);
  rmSync(passwords);
  process.kill(Number(readFileSync(join(folder, 'cluster/data/postmaster.pid'), 'utf8').split('\n')[0]), 'SIGQUIT');
  while (reports.length < 2) await new Promise((resolve) => setTimeout(resolve, 20));
  t.same(reports.slice(0, 2), ['postgres_ended', `postgres_not_restarted: ${passwords} does not hold the database's passwords: restore it from a backup`]);
  // As it was, owner and all.
  const owner = statSync(join(folder, 'cluster'));
  writeFileSync(passwords, kept, { mode: 0o600 });
  chownSync(passwords, owner.uid, owner.gid);
  while (reports.at(-1) !== 'postgres_restarted') await new Promise((resolve) => setTimeout(resolve, 20));
  await supervised.stop();
});

t.test('a folder in use, one that cannot be written, and a broken setting are one clear line each', async (t) => {
  const folder = stateFolder(t);
  const file = `${folder}-file`;
  writeFileSync(file, '');
  await t.rejects(startEmbedded({ folder: join(file, 'below') }), { message: /is not writable: set COFRE_HOME to a folder of your own$/ });
  await t.rejects(startEmbedded({ folder, diesWithParent: true, settings: { shared_buffers: 'much' } }), { message: 'PostgreSQL did not start: invalid value for parameter "shared_buffers": "much"' });
  await started(t, folder);
  await t.rejects(startEmbedded({ folder, patienceMs: 0 }), { message: /^another process already uses .*: stop it, or set COFRE_HOME to another folder$/ });
});

t.test('a server that dies by itself is told', async (t) => {
  const server = await started(t, stateFolder(t));
  process.kill(server.pid, 'SIGQUIT');
  await t.resolves(server.exited);
});
