/** `npx cofre`: the launcher and the real program behind it, as a person or a script meets them. */
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import t from 'tap';
import { runCofre } from '../support/appliance.ts';
import { makeHome } from '../../vault/bin/home.ts';

const root = resolve(import.meta.dirname, '../..');

interface Run {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Runs a command to its end; one that hangs is killed, with all that it started, and its code is null. */
async function run(program: string, args: readonly string[], env: NodeJS.ProcessEnv = {}, cwd = root): Promise<Run> {
  const { NODE_OPTIONS: _, COFRE_HOME: __, COFRE_DEBUG: ___, DATABASE_URL: ____, ...inherited } = process.env;
  // A group of its own: a start that spins hears no gentler signal, nor passes it on.
  const child = spawn(program, args, { cwd, env: { ...inherited, ...env }, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  const late = setTimeout(() => process.kill(-child.pid!, 'SIGKILL'), 30_000);
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
  const code = await new Promise<number | null>((done, failed) => child.once('error', failed).once('close', done));
  clearTimeout(late);
  return { code, out, err };
}

const cofre = (args: readonly string[], env: NodeJS.ProcessEnv = {}, cwd = root): Promise<Run> => run(process.execPath, [join(root, 'docker/cofre.js'), ...args], env, cwd);

t.test('help is on standard output with exit code 0, also by npx', async (t) => {
  const usage = await cofre(['--help']);
  t.match(usage, { code: 0, err: '' });
  t.match(usage.out, /^cofre <command> \[options\]\n/u);
  for (const command of ['serve', 'init', 'config', 'audit']) t.match(usage.out, new RegExp(`^ {2}${command} +\\S`, 'mu'), command);
  for (const args of [['-h'], ['help']]) t.same(await cofre(args), usage, args.join(' '));
  // In the package's own folder npx finds the command without a network. What npm itself says on standard error is not ours.
  for (const flag of ['-h', '--help']) t.match(await run('npx', ['cofre', flag], { npm_config_yes: 'false', npm_config_offline: 'true' }), { code: 0, out: usage.out }, `npx cofre ${flag}`);

  for (const command of ['serve', 'init', 'config']) {
    const help = await cofre([command, '--help']);
    t.match(help, { code: 0, err: '' });
    t.match(help.out, new RegExp(`^cofre ${command} [^\n]*\n\n[A-Z]`, 'u'));
    t.same(await cofre([command, '-h']), help, `${command} -h`);
  }
  t.match(await cofre(['serve', '--home', '/proc', '--help']), { code: 0, err: '' }, 'help comes before anything is done');
});

t.test('what is not understood is one line with exit code 2, and nothing is done', async (t) => {
  const elsewhere = t.testdir({});
  const unknown = 'cofre: there is no command of that name; cofre --help lists them\n';
  for (const args of [['nonsense'], ['--nonsense'], ['-x'], [''], ['constructor'], ['nonsense', '--help']]) t.same(await cofre(args, {}, elsewhere), { code: 2, out: '', err: unknown }, JSON.stringify(args));
  for (const command of ['serve', 'init', 'config']) {
    const err = `cofre ${command}: an option is not understood; cofre ${command} --help lists them\n`;
    for (const args of command === 'serve' ? [['--nonsense'], ['-x'], ['more'], ['--home'], ['--json=yes'], ['--', 'more']] : [['--nonsense'], ['more']]) t.same(await cofre([command, ...args], {}, elsewhere), { code: 2, out: '', err }, `${command} ${args.join(' ')}`);
  }
  // A script whose variable is not set; it would have meant the folder one stands in.
  for (const name of ['home', 'config', 'ceremony']) t.same(await cofre(['serve', `--${name}=`], {}, elsewhere), { code: 2, out: '', err: `cofre serve: --${name} is empty\n` });
  t.same(await cofre(['init'], { COFRE_HOME: elsewhere }), { code: 2, out: '', err: 'cofre init: --ceremony FILE is needed\n' });
  t.same(await cofre(['init', '--ceremony', join(elsewhere, 'none.yaml')], { COFRE_HOME: elsewhere }), { code: 2, out: '', err: `cofre: ${join(elsewhere, 'none.yaml')}: cannot be read (ENOENT)\n` });
  writeFileSync(join(elsewhere, 'bad.yaml'), 'token: *hunter2');
  t.same(await cofre(['init', '--ceremony', join(elsewhere, 'bad.yaml')], { COFRE_HOME: elsewhere }), { code: 2, out: '', err: `cofre: ${join(elsewhere, 'bad.yaml')}: is not YAML: an alias cannot be resolved\n` });
  const bare = await cofre([]);
  t.match(bare, { code: 2, err: '' });
  t.match(bare.out, /^cofre <command>/u, 'without a command the usage is the answer');
});

t.test('an option of Node that shows what TLS protects or takes loose HTTP ends the real start in one line', async (t) => {
  const home = t.testdir({});
  for (const option of ['--tls-keylog=keys', '--trace-tls', '--insecure-http-parser']) {
    const name = option.replace(/=.*/u, '');
    const launched = await cofre(['serve'], { COFRE_HOME: home, NODE_OPTIONS: option }, home);
    t.same(launched, { code: 2, out: '', err: `NODE_OPTIONS contains ${name}…, which would open or write out the memory of the vault: unset it\n` });
    // Past the launcher, as a unit file or a container may start it.
    const started = await runCofre(t, ['serve'], { NODE_OPTIONS: option });
    t.match(started, { code: 1, out: '', err: `cofre: Node's option ${name} would open or write out the memory of the vault: start without it\n` });
  }
  t.throws(() => statSync(join(home, 'keys')), { code: 'ENOENT' });
});

t.test('a home where no folder can be made is one line with exit code 1, at once', async (t) => {
  const file = join(t.testdir({ file: '', taken: { secrets: 'a file' } }), 'file');
  // In /proc, mkdir answers ENOENT although the parent is there, on which Node's recursive one never returns.
  const cases: readonly (readonly [home: string, folder: string, code: string])[] = [
    ['/proc', '/proc/secrets', 'ENOENT'],
    ['/proc/cofre', '/proc/cofre', 'ENOENT'],
    ['/proc/self/cofre/deep', '/proc/self/cofre', 'ENOENT'],
    [join(file, '../taken'), join(file, '../taken/secrets'), 'EEXIST'],
  ];
  for (const [home, folder, code] of cases) {
    const ended = await cofre(['serve', '--home', home]);
    t.equal(ended.code, 1);
    t.equal(ended.out, '');
    t.match(ended.err, new RegExp(`^cofre: the state folder (${home}|${folder}) cannot be made \\(${code}\\): set --home or COFRE_HOME to a folder of your own\n$`, 'u'));
  }
  t.match(await cofre(['serve'], { COFRE_HOME: '/proc' }), { code: 1, err: /^cofre: the state folder \/proc\/secrets cannot be made/u }, 'by the variable as by the option');
  for (const home of [file, join(file, 'below')]) t.same(await cofre(['serve', '--home', home]), { code: 2, out: '', err: `cofre: ${home}/cofre.config.yaml: cannot be read (ENOTDIR)\n` });
});

t.test('the folders of a home are made with their modes, and kept as they are', async (t) => {
  const umask = process.umask(0o022);
  t.teardown(() => process.umask(umask));
  const top = t.testdir({});
  const home = join(top, 'a/b/home');
  const mode = (folder: string): number => statSync(join(home, folder)).mode & 0o777;
  makeHome(home);
  t.same(['.', 'secrets', 'writers'].map(mode), [0o711, 0o700, 0o700]);
  const other = join(top, 'other');
  mkdirSync(join(other, 'writers'), { recursive: true, mode: 0o750 });
  writeFileSync(join(other, 'writers/kept'), 'kept');
  makeHome(other);
  t.equal(statSync(join(other, 'writers')).mode & 0o777, 0o750);
  t.equal(readFileSync(join(other, 'writers/kept'), 'utf8'), 'kept');
  makeHome(other);
  symlinkSync(other, join(top, 'link'));
  makeHome(join(top, 'link'));
  symlinkSync(join(top, 'nowhere'), join(top, 'dangling'));
  t.throws(() => makeHome(join(top, 'dangling')), { message: /^the state folder \S+\/dangling cannot be made \(EEXIST\): / });
});
