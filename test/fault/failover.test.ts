/** PostgreSQL with a synchronous standby: the primary is lost, the standby takes over, and nothing acknowledged is lost; nor while the standby, or the network, is away. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, cpSync, lchownSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { Client } from 'pg';
import t from 'tap';
import { startEmbedded } from '../../platform-adapters/postgres/embedded.ts';
import { startAppliance, until } from '../support/appliance.ts';
import { withClient, type FreshDatabase } from '../support/database.ts';
import { Ledger } from '../support/ledger.ts';
import { Relay } from '../support/relay.ts';

// Passable for the user that PostgreSQL runs as under root.
const folder = mkdtempSync(join(tmpdir(), 'cofre-pair-'));
chmodSync(folder, 0o755);
t.teardown(() => rmSync(folder, { recursive: true, force: true }));
const replication = { wal_level: 'replica', max_wal_senders: '4', hot_standby: 'on', wal_receiver_status_interval: '1s', wal_retrieve_retry_interval: '100ms' };

// The standby begins as a copy of the stopped primary: the package has no pg_basebackup.
await (await startEmbedded({ folder: join(folder, 'one'), diesWithParent: true, settings: replication })).stop();
copyOwned(join(folder, 'one/cluster/data'), join(folder, 'two'));
const primary = await startEmbedded({ folder: join(folder, 'one'), diesWithParent: true, settings: replication });
t.teardown(() => primary.stop());
const standby = await startStandby();

/** The folder as it is, owners included. */
function copyOwned(from: string, to: string): void {
  cpSync(from, to, { recursive: true, verbatimSymlinks: true });
  const own = (path: string): void => {
    const { uid, gid, mode } = statSync(from);
    lchownSync(path, uid, gid);
    if (path === to) chmodSync(path, mode);
    for (const entry of statSync(path).isDirectory() ? readdirSync(path) : []) own(join(path, entry));
  };
  own(to);
}

/** A second PostgreSQL over `two`, that follows the first. `startEmbedded` knows no standbys. */
async function startStandby(): Promise<{ readonly url: string; readonly process: ChildProcess }> {
  const data = join(folder, 'two');
  const { uid, gid } = statSync(data);
  const socket = join(folder, 'two-socket');
  mkdirSync(socket, { mode: 0o700 });
  lchownSync(socket, uid, gid);
  const { host, password } = new Client(primary.superuserUrl);
  writeFileSync(join(data, 'standby.signal'), '');
  rmSync(join(data, 'postmaster.pid'), { force: true });
  const settings = { ...replication, unix_socket_directories: socket, listen_addresses: '', primary_conninfo: `host=${host} user=postgres password=${String(password)} application_name=two` };
  const program = readFileSync(`/proc/${primary.pid}/cmdline`, 'utf8').split('\0')[0]!;
  // Where root keeps the files, PostgreSQL is somebody else in a user namespace only.
  const inNamespace = process.getuid!() === 0 && uid === 0;
  const command = [...(inNamespace ? ['unshare', '--user', '--map-user=65534', '--map-group=65534', '--'] : []), program, '-D', data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])];
  const child = spawn('setpriv', ['--pdeathsig', 'INT', ...(process.getuid!() === 0 && uid !== 0 ? [`--reuid=${uid}`, `--regid=${gid}`, '--clear-groups'] : []), '--', ...command], { cwd: '/', env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C', TZ: 'UTC' }, stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(-4000)));
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGCONT');
    child.kill('SIGQUIT');
    await once(child, 'exit');
  });
  const url = primary.adminUrl.replace(encodeURIComponent(host), encodeURIComponent(socket));
  const answers = async (): Promise<boolean> => {
    if (child.exitCode !== null) throw new Error(`the standby ended: ${said}`);
    return await withClient({ connectionString: url }, () => Promise.resolve(true)).catch(() => false);
  };
  await until(answers, 'the standby');
  return { url, process: child };
}

const superuser = <T>(at: string, work: (client: Client) => Promise<T>): Promise<T> => withClient({ connectionString: at }, work);
const standbySuperuserUrl = primary.superuserUrl.replace(encodeURIComponent(dirname(primary.dataFolder).replace(/cluster$/u, 'socket')), encodeURIComponent(join(folder, 'two-socket')));

const isSynchronous = async (): Promise<boolean> => await superuser(primary.superuserUrl, async (client) => (await client.query("SELECT FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'")).rowCount === 1);
await superuser(primary.superuserUrl, async (client) => {
  await client.query("ALTER SYSTEM SET synchronous_standby_names = 'two'");
  await client.query('SELECT pg_reload_conf()');
});
await until(isSynchronous, 'the synchronous standby');

const relay = await Relay.open(t, primary.adminUrl);
const database = { adminUrl: relay.url } as FreshDatabase;
const appliance = await startAppliance(t, { database, config: { events: { outbox: true }, database: { max_away: '1s', max_settle: '2s' } } });
const ready = async (): Promise<boolean> => ((await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as { ok: boolean }).ok;
const ledger = new Ledger(appliance, { port: appliance.apiPort, seed: 7, lanes: 6, pauseMs: 8, outbox: true });
t.teardown(() => ledger.close());

async function loadGoesOn(calls = 60): Promise<void> {
  const before = ledger.counts.acknowledged;
  await until(() => ledger.counts.acknowledged > before + calls, 'the load to go on');
}

async function reckons(t: { same(found: unknown, wanted: unknown, message: string): unknown }, message: string): Promise<void> {
  await ledger.pause();
  await until(ready, 'readiness');
  t.same(await ledger.reckon(false), [], message);
}

await t.test('a network that is cut, and one that is silent, between the vault and its database', { timeout: 120_000 }, async (t) => {
  ledger.resume();
  for (let round = 0; round < 4; round += 1) {
    await loadGoesOn();
    relay.cut();
  }
  await loadGoesOn();
  const before = ledger.counts.refused + ledger.counts.unknown;
  relay.silence(true);
  await until(() => ledger.counts.refused + ledger.counts.unknown > before + 6, 'refusals');
  relay.silence(false);
  await loadGoesOn();
  await reckons(t, 'nothing was lost or done twice');
});

await t.test('while the standby is away nothing is acknowledged, although the primary has it all', { timeout: 120_000 }, async (t) => {
  ledger.resume();
  await loadGoesOn();
  // Its process that receives stands still as well: what it has is not confirmed.
  const pids = [standby.process.pid!, ...readFileSync(`/proc/${standby.process.pid}/task/${standby.process.pid}/children`, 'utf8').trim().split(' ').map(Number)];
  for (const pid of pids) process.kill(pid, 'SIGSTOP');
  const { refused, unknown } = ledger.counts;
  await until(() => ledger.counts.refused + ledger.counts.unknown > refused + unknown + 6, 'refusals');
  const { acknowledged } = ledger.counts;
  const after = ledger.counts.refused + ledger.counts.unknown;
  await until(() => ledger.counts.refused + ledger.counts.unknown > after + 6, 'more refusals');
  t.equal(ledger.counts.acknowledged, acknowledged, 'nothing was acknowledged meanwhile');
  for (const pid of pids) process.kill(pid, 'SIGCONT');
  await loadGoesOn();
  await reckons(t, 'nothing was lost or done twice');
});

await t.test('the primary is killed and the standby promoted in mid-load', { timeout: 120_000 }, async (t) => {
  ledger.resume();
  await loadGoesOn(100);
  await until(isSynchronous, 'the synchronous standby');
  const backends = readFileSync(`/proc/${primary.pid}/task/${primary.pid}/children`, 'utf8').trim().split(' ').map(Number);
  for (const pid of [primary.pid, ...backends]) process.kill(pid, 'SIGKILL');
  await superuser(standbySuperuserUrl, async (client) => {
    await client.query('SELECT pg_promote()');
    await client.query("ALTER SYSTEM SET synchronous_standby_names = ''");
    await client.query('SELECT pg_reload_conf()');
  });
  relay.target = standby.url;
  relay.cut();
  await loadGoesOn(100);
  await ledger.pause();
  await until(ready, 'readiness');
  t.same(await ledger.reckon(true), [], 'all that was acknowledged stands on the promoted standby');
  t.same(await appliance.stop(), { code: 0, signal: null });
  await appliance.start();
  t.equal((await appliance.client('checkout').post('/v1/validate', { token: 'x' })).status, 200, 'and the next start finds the log that it knows');
});
