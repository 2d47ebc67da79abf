import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import t, { type Test } from 'tap';

const ROOT = resolve(import.meta.dirname, '../..');

/** A vault that does what the real one does with signals, slowly enough to be caught in the act. */
const VAULT = `
  import { appendFileSync } from 'node:fs'
  const tell = (line) => appendFileSync(process.env.TOLD, line + '\\n')
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(name, () => { tell(name); setTimeout(() => { tell('stopped'); process.exit(0) }, 300) })
  tell([process.pid, process.version.split('.')[0], process.execArgv.join(' '), process.argv.slice(2).join(' '), process.env.COFRE_HOME].join('|'))
  setInterval(() => {}, 1000)
`;

/** A small clone that is set up: our scripts, a link to each installed package, and a vault made of \`source\`. */
function clone(t: Test, source = VAULT): { root: string; told: string; tell: () => string[] } {
  const root = t.testdir({ vault: { bin: { 'cofre.ts': source } } });
  for (const name of ['docker', 'platform-adapters/linux']) cpSync(join(ROOT, name), join(root, name), { recursive: true });
  for (const name of ['package.json', 'package-lock.json']) cpSync(join(ROOT, name), join(root, name));
  mkdirSync(join(root, 'node_modules/.cofre'), { recursive: true });
  cpSync(join(ROOT, 'node_modules/.cofre'), join(root, 'node_modules/.cofre'), { recursive: true });
  for (const name of ['pg', `node-linux-${process.arch}`]) if (existsSync(join(ROOT, 'node_modules', name))) symlinkSync(join(ROOT, 'node_modules', name), join(root, 'node_modules', name));
  const told = join(root, 'told');
  return { root, told, tell: () => (existsSync(told) ? readFileSync(told, 'utf8').trim().split('\n') : []) };
}

function bootstrap(t: Test, root: string, args: string[], env: NodeJS.ProcessEnv = {}): ChildProcess {
  const { COFRE_HOME: _, NODE_OPTIONS: __, npm_lifecycle_event: ___, ...rest } = process.env;
  const child = spawn(process.execPath, [join(root, 'docker/bootstrap.js'), ...args], { cwd: dirname(root), env: { ...rest, TOLD: join(root, 'told'), ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

async function finished(child: ChildProcess): Promise<{ code: number | null; errors: string }> {
  let errors = '';
  child.stderr!.on('data', (chunk: Buffer) => (errors += chunk.toString('utf8')));
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, errors: errors.trim() };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 20));
}

function lives(pid: number): boolean {
  return existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
}

t.test('start runs the vault under Node 24 with its hardening flags, its arguments, and a state folder in the clone', async (t) => {
  const { root, tell } = clone(t);
  const child = bootstrap(t, root, ['start', '--profile', 'x']);
  await until(() => tell().length > 0);
  const [pid, node, flags, args, home] = tell()[0]!.split('|');
  t.match(node, /^v2[4-9]$/);
  t.equal(flags, '--disable-sigusr1 --max-semi-space-size=8 --heap-growing-percent=100');
  t.equal(args, 'serve --profile x');
  t.equal(home, join(root, '.cofre'));
  t.equal(statSync(join(root, '.cofre')).mode & 0o777, 0o711);
  t.match(readFileSync(`/proc/${pid}/limits`, 'utf8'), /^Max core file size\s+0\s/m);
  child.kill('SIGTERM');
  t.equal((await finished(child)).code, 0);
});

t.test('two interrupts at once, as from a terminal and from npm, reach the vault as one, and its exit code is ours', async (t) => {
  const { root, tell } = clone(t);
  const child = bootstrap(t, root, ['start']);
  await until(() => tell().length > 0);
  child.kill('SIGINT');
  await until(() => tell().length > 1);
  child.kill('SIGINT');
  t.equal((await finished(child)).code, 0);
  t.same(tell().slice(1), ['SIGINT', 'stopped']);

  const failing = clone(t, 'process.exit(7)');
  t.equal((await finished(bootstrap(t, failing.root, ['start']))).code, 7);
});

t.test('a vault whose starter is killed outright is told to stop', async (t) => {
  const { root, tell } = clone(t);
  const child = bootstrap(t, root, ['start']);
  await until(() => tell().length > 0);
  child.kill('SIGKILL');
  await until(() => tell().includes('stopped'));
  // The kernel may say it once for each thread of the starter that dies.
  t.same([...new Set(tell().slice(1))], ['SIGTERM', 'stopped']);
  await until(() => !lives(Number(tell()[0]!.split('|')[0])));
});

t.test('an unsafe NODE_OPTIONS, a state folder that cannot be made, and an unknown command are one clear line each', async (t) => {
  const { root, tell } = clone(t);
  const option = await finished(bootstrap(t, root, ['start'], { NODE_OPTIONS: '--heapsnapshot-signal=SIGUSR2' }));
  t.match(option, { code: 1, errors: /^NODE_OPTIONS contains --heapsnapshot…, which would open or write out the memory of the vault: unset it$/ });
  const home = await finished(bootstrap(t, root, ['start'], { COFRE_HOME: join(root, 'package.json/below') }));
  t.match(home, { code: 1, errors: /cannot be made: set COFRE_HOME to a folder of your own$/ });
  t.match(await finished(bootstrap(t, root, ['stat'])), { code: 1, errors: /^usage: / });
  t.match(await finished(bootstrap(t, root, ['constructor'])), { code: 1, errors: /^usage: / });
  t.same(tell(), [], 'and the vault was not started');
});

t.test('NODE_OPTIONS that show what TLS protects or take loose HTTP are refused by start and by the launcher, in one line', async (t) => {
  const { root, tell } = clone(t, "import { appendFileSync } from 'node:fs'; appendFileSync(process.env.TOLD, 'started')");
  chmodSync(join(root, 'docker/cofre.js'), 0o755);
  const keys = join(root, 'keys');
  for (const option of ['--tls-keylog', '--trace-tls', '--insecure-http-parser']) {
    const line = `NODE_OPTIONS contains ${option}…, which would open or write out the memory of the vault: unset it`;
    for (const spelled of [option, `--${option.slice(2).replaceAll('-', '_')}`]) {
      const NODE_OPTIONS = `--max-old-space-size=512 ${option === '--tls-keylog' ? `${spelled}=${keys}` : spelled}`;
      t.same(await finished(bootstrap(t, root, ['start'], { NODE_OPTIONS })), { code: 1, errors: line }, NODE_OPTIONS);
      const run = spawnSync(process.execPath, [join(root, 'docker/cofre.js'), 'serve'], { encoding: 'utf8', env: { ...process.env, TOLD: join(root, 'told'), NODE_OPTIONS } });
      t.match(run, { status: 2, stdout: '', stderr: `${line}\n` });
    }
  }
  t.same(tell(), [], 'and the vault was not started');
  t.notOk(existsSync(keys));
});

t.test('a state folder where none can be made ends in one line, and a deep one is made', async (t) => {
  const { root, tell } = clone(t);
  // Node's own recursive mkdir never returns there.
  for (const home of ['/proc/cofre', '/proc/self/cofre/deep']) {
    const child = bootstrap(t, root, ['start'], { COFRE_HOME: home });
    const late = setTimeout(() => child.kill('SIGKILL'), 30_000);
    t.same(await finished(child), { code: 1, errors: `the state folder ${home} cannot be made: set COFRE_HOME to a folder of your own` });
    clearTimeout(late);
  }
  t.same(tell(), []);
  const deep = join(root, 'a/b/c');
  const child = bootstrap(t, root, ['start'], { COFRE_HOME: deep });
  await until(() => tell().length > 0);
  t.equal(statSync(deep).mode & 0o777, 0o711);
  child.kill('SIGTERM');
  await finished(child);
});

t.test('what is missing and may not be installed is named in one line', async (t) => {
  const { root } = clone(t);
  rmSync(join(root, 'node_modules/.cofre'), { recursive: true });
  const bin = join(root, 'bin');
  mkdirSync(bin);
  for (const name of ['sh', 'flock', 'env']) symlinkSync(`/usr/bin/${name}`, join(bin, name));
  const result = await finished(bootstrap(t, root, ['set-up'], { PATH: bin }));
  t.equal(result.code, 1);
  t.match(result.errors, /^Cofre needs system packages that it may not install itself: install them with your system's package manager: (softhsm2 )?python3 make g\+\+$/);
});

t.test('a clone in which nothing can be made, as one that is mounted read-only, ends in one line', async (t) => {
  const { root } = clone(t);
  rmSync(join(root, 'node_modules/.cofre'), { recursive: true });
  cpSync(join(ROOT, 'node_modules/.package-lock.json'), join(root, 'node_modules/.package-lock.json'));
  symlinkSync(join(ROOT, 'node_modules/pkcs11js'), join(root, 'node_modules/pkcs11js'));
  // Not by its mode: root writes all the same.
  writeFileSync(join(root, 'node_modules/.cofre'), '');
  t.same(await finished(bootstrap(t, root, ['set-up'])), { code: 1, errors: `${join(root, 'node_modules/.cofre')} cannot be made or read (EEXIST): this clone must be yours and writable until it is set up` });
});

t.test('a second set-up in the same clone waits for the first', async (t) => {
  const { root } = clone(t);
  const holder = spawn('flock', [join(root, 'package-lock.json'), 'sleep', '600'], { stdio: 'ignore', detached: true });
  t.teardown(() => {
    try {
      process.kill(-holder.pid!, 'SIGKILL');
    } catch {
      // It ended in the test.
    }
  });
  await until(() => spawnSync('flock', ['-n', join(root, 'package-lock.json'), 'true']).status !== 0);
  const child = bootstrap(t, root, ['set-up']);
  let errors = '';
  child.stderr!.on('data', (chunk: Buffer) => (errors += chunk.toString('utf8')));
  await until(() => errors !== '');
  t.equal(errors, 'Another set-up is at work in this clone: waiting for it\n');
  t.equal(child.exitCode, null);
  process.kill(-holder.pid!, 'SIGKILL');
  const [code] = (await once(child, 'close')) as [number | null];
  t.equal(code, 0, 'a lock whose holder was killed is free');
});

t.test('the addon is compiled again when its source changed, and only then', async (t) => {
  const { root } = clone(t);
  const addon = join(root, 'node_modules/.cofre/hardening.node');
  const old = new Date(1_000_000_000_000);
  utimesSync(addon, old, old);
  t.equal((await finished(bootstrap(t, root, ['set-up']))).code, 0);
  t.equal(statSync(addon).mtimeMs, old.getTime());
  const source = join(root, 'platform-adapters/linux/hardening.c');
  writeFileSync(source, `${readFileSync(source, 'utf8')}// edited\n`);
  t.equal((await finished(bootstrap(t, root, ['set-up']))).code, 0);
  t.ok(statSync(addon).mtimeMs > old.getTime());
});

t.test('the addon is there after packages were installed anew, which removes all of node_modules', async (t) => {
  const { root } = clone(t);
  rmSync(join(root, 'node_modules/.cofre/packages'));
  const bin = join(root, 'bin');
  mkdirSync(bin);
  writeFileSync(join(bin, 'npm'), '#!/bin/sh\n[ "$1" = ci ] && rm -r node_modules/.cofre && mkdir node_modules/.cofre\n', { mode: 0o755 });
  const { npm_execpath: _, ...env } = process.env;
  t.match(await finished(bootstrap(t, root, ['set-up'], { ...env, PATH: `${bin}:${env['PATH']}`, npm_execpath: '' })), { code: 0, errors: /Installed npm packages/u });
  t.ok(existsSync(join(root, 'node_modules/.cofre/hardening.node')));
});

t.test('the launcher runs the command with its arguments and exit code, from anywhere', async (t) => {
  const { root } = clone(t, "console.log(process.argv.slice(2).join(' '), process.execArgv.join(' ')); process.exit(3)");
  chmodSync(join(root, 'docker/cofre.js'), 0o755);
  const run = spawnSync(process.execPath, [join(root, 'docker/cofre.js'), 'audit', 'verify', '--json'], { cwd: '/', encoding: 'utf8' });
  t.match(run, { status: 3, stdout: 'audit verify --json --disable-sigusr1 --max-semi-space-size=8 --heap-growing-percent=100\n' });
});

t.test('the launcher of a clone that is not set up says how to set it up', async (t) => {
  const root = t.testdir({});
  cpSync(join(ROOT, 'docker'), join(root, 'docker'), { recursive: true });
  writeFileSync(join(root, 'package.json'), '{"type":"module"}');
  const run = spawnSync(process.execPath, [join(root, 'docker/cofre.js'), 'serve'], { encoding: 'utf8' });
  t.match(run, { status: 2, stderr: 'Cofre is not set up yet: run npm start or npm ci first\n', stdout: '' });
});

t.test('an interrupt that is sent to the launcher alone reaches the vault', async (t) => {
  const { root, tell } = clone(t);
  chmodSync(join(root, 'docker/cofre.js'), 0o755);
  for (const name of ['SIGINT', 'SIGTERM'] as const) {
    rmSync(join(root, 'told'), { force: true });
    const child = spawn(process.execPath, [join(root, 'docker/cofre.js'), 'serve'], { env: { ...process.env, TOLD: join(root, 'told') }, stdio: ['ignore', 'pipe', 'pipe'] });
    t.teardown(() => child.kill('SIGKILL'));
    const end = finished(child);
    await until(() => tell().length > 0);
    const vault = Number(tell()[0]!.split('|')[0]);
    t.teardown(() => lives(vault) && process.kill(vault, 'SIGKILL'));
    child.kill(name);
    await Promise.race([until(() => tell().includes('stopped')), new Promise((resolve) => setTimeout(resolve, 10_000))]);
    t.same(tell().slice(1), [name, 'stopped']);
    if (!tell().includes('stopped')) process.kill(vault, 'SIGKILL');
    t.equal((await end).code, 0);
  }
});
