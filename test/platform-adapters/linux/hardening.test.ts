import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import t from 'tap';
import { swapAreas, unsafeOption } from '../../../platform-adapters/linux/hardening.ts';

const MODULE = new URL('../../../platform-adapters/linux/hardening.ts', import.meta.url).href;

/** Runs hardenProcess in a process of its own, since it cannot be undone, and then `after`, which may use `report`. Returns what it printed, or the message of what it threw. */
function harden(options: { flags?: string[]; options?: object; after?: string; env?: NodeJS.ProcessEnv } = {}): string {
  const source = `
    import { readFileSync } from 'node:fs'
    import { spawnSync } from 'node:child_process'
    import { hardenProcess } from ${JSON.stringify(MODULE)}
    try {
      const report = hardenProcess(${JSON.stringify({ swap: 'warn', ...options.options })})
      ${options.after ?? 'console.log(JSON.stringify(report))'}
    } catch (error) {
      console.log(error.message)
    }`;
  const run = spawnSync(process.execPath, [...(options.flags ?? ['--disable-sigusr1']), '--input-type=module', '-e', source], {
    encoding: 'utf8',
    env: { ...process.env, MALLOC_PERTURB_: '90', ...options.env },
  });
  return run.stdout.trim();
}

t.test('a hardened process is undumpable, gains no privileges and writes no core, as the kernel tells', async (t) => {
  t.match(JSON.parse(harden()), { dumpable: false, noNewPrivileges: true });
  const told = harden({
    after: `console.log(/^NoNewPrivs:\\s+(\\d)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1], /^Max core file size\\s+(\\S+)\\s+(\\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8')).slice(1).join(' '))`,
  });
  t.equal(told, '1 0 0');
});

t.test('programs that it starts inherit the limits', async (t) => {
  t.equal(harden({ after: `console.log(spawnSync('sh', ['-c', 'ulimit -Hc; grep NoNewPrivs /proc/self/status'], { encoding: 'utf8' }).stdout.replace(/\\s+/g, ' '))` }), '0 NoNewPrivs: 1');
});

t.test('hardening twice changes nothing, and the memory search may leave the process dumpable', async (t) => {
  t.match(JSON.parse(harden({ after: `console.log(JSON.stringify(hardenProcess({ swap: 'warn' })))` })), { dumpable: false });
  t.match(JSON.parse(harden({ options: { dumpable: true } })), { dumpable: true, noNewPrivileges: true });
});

t.test('a process that a signal, an option or a debugger could open is refused', async (t) => {
  t.match(harden({ flags: [] }), /^Node was started without --disable-sigusr1/);
  t.match(harden({ env: { MALLOC_PERTURB_: undefined } }), /^Node was started without MALLOC_PERTURB_/);
  t.match(harden({ flags: ['--disable-sigusr1', '--heapsnapshot-signal=SIGUSR2'] }), /^Node's option --heapsnapshot-signal would/);
  t.match(harden({ env: { NODE_OPTIONS: '--report-on-signal' } }), /^Node's option --report-on-signal would/);
  t.match(
    harden({ after: `;(await import('node:inspector')).open(0); try { hardenProcess({ swap: 'warn' }) } catch (error) { console.log(error.message) } process.exit()` }),
    /^a debugger is listening/,
  );
});

t.test('a process that would write out or show what TLS protects, or take loose HTTP, is refused in one line', async (t) => {
  const keys = join(t.testdir({}), 'keys');
  for (const option of ['--tls-keylog', '--trace-tls', '--insecure-http-parser']) {
    const line = `Node's option ${option} would open or write out the memory of the vault: start without it`;
    for (const spelled of [option, `--${option.slice(2).replaceAll('-', '_')}`]) {
      const given = option === '--tls-keylog' ? `${spelled}=${keys}` : spelled;
      t.equal(harden({ flags: ['--disable-sigusr1', given] }), line, given);
      t.equal(harden({ env: { NODE_OPTIONS: given } }), line, `NODE_OPTIONS=${given}`);
      t.equal(harden({ env: { NODE_OPTIONS: `--max-old-space-size=512 "${given}"` } }), line, `NODE_OPTIONS with ${given} in quotes`);
    }
  }
});

t.test('unsafe options are found however they are written, and others pass', async (t) => {
  for (const words of [
    '--inspect',
    '--inspect-brk=0',
    '--heap_snapshot_on_oom',
    '--heapsnapshot-near-heap-limit=1',
    '--heap-prof',
    '--cpu-prof',
    '--report-uncaught-exception',
    '--report_on_fatalerror',
    '--abort-on-uncaught-exception',
    '--prof',
    '--tls-keylog=/tmp/keys',
    '--tls_keylog=/tmp/keys',
    '--trace-tls',
    '--trace_tls',
    '--insecure-http-parser',
    '--insecure_http_parser',
  ]) {
    t.equal(unsafeOption([words]) !== null, true, words);
    t.equal(unsafeOption([], `--max-old-space-size=512 "${words}"`) !== null, true, `${words} in NODE_OPTIONS`);
  }
  t.equal(unsafeOption(['--disable-sigusr1', '--max-old-space-size=512', '--import=./inspect.js'], '--enable-source-maps --trace-warnings'), null);
});

t.test('swap areas are read from the kernel’s table', async (t) => {
  t.same(swapAreas('Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n'), []);
  t.same(swapAreas(''), []);
  t.same(swapAreas('Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda2 partition\t2097148\t0\t-2\n/swapfile file\t1\t0\t-3\n'), ['/dev/sda2', '/swapfile']);
});
