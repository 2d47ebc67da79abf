import { existsSync, readFileSync } from 'node:fs';
import inspector from 'node:inspector';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** What the process is like now, read back from the kernel. */
export interface HardeningReport {
  /** False: no other process of this user may read our memory. */
  readonly dumpable: boolean;
  readonly noNewPrivileges: boolean;
  /** The active swap areas that our memory could reach, as named in /proc/swaps. Empty is good. */
  readonly swap: readonly string[];
}

export interface HardeningOptions {
  /** What to do when memory could be swapped out: `refuse` throws, `warn` leaves it to the caller to tell {@link HardeningReport.swap}. */
  readonly swap: 'refuse' | 'warn';
  /** Leaves the memory readable by the same user's processes, so that the tests which search it for card numbers can run without root. Never in production: the caller refuses it there. */
  readonly dumpable?: boolean;
}

interface Addon {
  apply(dumpable: boolean): { dumpable: boolean; noNewPrivileges: boolean; coreSoft: number; coreHard: number };
}

/** docker/set-up.js compiles it there from hardening.c. */
const ADDON = fileURLToPath(new URL('../../node_modules/.cofre/hardening.node', import.meta.url));

/** mallopt(3), M_PERTURB: the C library reads it once, when the process begins. docker/find-node.js says what it is for. */
const FREED_MEMORY_IS_OVERWRITTEN = process.env['MALLOC_PERTURB_'] !== undefined;

/** The environment that has the C library overwrite what is freed, for processes of ours. */
export const overwriteFreedMemory: Readonly<Record<string, string>> = Object.fromEntries(['MALLOC_PERTURB_', 'MALLOC_ARENA_MAX'].flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]])));

/** Options of Node that open the memory to a debugger or write parts of it to disk. */
const UNSAFE_OPTION = /^--(inspect|heap-?snapshot|heap-prof|cpu-prof|report|diagnostic-report|experimental-report|abort-on-uncaught-exception|prof$|trace-event|trace-tls|tls-keylog|insecure-http-parser|perf-)/;

/**
 * Takes this process's memory out of reach of others and of the disk, verifies it, and returns what it found: no core files, undumpable, no new privileges.
 * Called once at start, before any secret is read; it runs once. Child processes inherit the core limit and no-new-privileges.
 *
 * @throws one clear line: the addon is missing or the kernel refused, freed memory is not overwritten, an inspector is open or could be opened (SIGUSR1), an option of Node would write memory to disk, or memory could be swapped out and `swap` is `refuse`.
 */
export function hardenProcess(options: HardeningOptions): HardeningReport {
  const unsafe = unsafeOption(process.execArgv, process.env['NODE_OPTIONS']);
  if (unsafe !== null) throw new Error(`Node's option ${unsafe} would open or write out the memory of the vault: start without it`);
  if (inspector.url() !== undefined) throw new Error('a debugger is listening: the vault does not start with one');
  if (!FREED_MEMORY_IS_OVERWRITTEN) throw new Error('Node was started without MALLOC_PERTURB_, so freed memory would keep what it held: start with npm start or npx cofre');
  // PostgreSQL, our child in development, has no use for it; worker processes get it back.
  delete process.env['MALLOC_PERTURB_'];
  if (!process.execArgv.includes('--disable-sigusr1')) throw new Error('Node was started without --disable-sigusr1, so a signal could open a debugger: start with npm start or npx cofre');

  if (!existsSync(ADDON)) throw new Error('the hardening addon is not built: run npm start, or node docker/bootstrap.js set-up');
  const addon = createRequire(import.meta.url)(ADDON) as Addon;
  let state: ReturnType<Addon['apply']>;
  try {
    state = addon.apply(options.dumpable === true);
  } catch (cause) {
    throw new Error('the kernel refused to harden the process', { cause });
  }
  if (state.dumpable !== (options.dumpable === true) || !state.noNewPrivileges || state.coreSoft !== 0 || state.coreHard !== 0)
    throw new Error('the kernel did not keep what was asked of it: the process is not hardened');

  const swap = swapForbidden() ? [] : swapAreas(existsSync('/proc/swaps') ? readFileSync('/proc/swaps', 'utf8') : '');
  if (swap.length > 0 && options.swap === 'refuse')
    throw new Error('swap is on, so card numbers could reach the disk: turn it off (swapoff -a), or run the process where it may not swap (MemorySwapMax=0)');
  return { dumpable: state.dumpable, noNewPrivileges: state.noNewPrivileges, swap };
}

/** True if a control group that we are in may not swap at all (cgroups v2, memory.swap.max is 0): in a container, /proc/swaps is the host's. */
function swapForbidden(): boolean {
  const path = /^0::(\/.*)$/m.exec(existsSync('/proc/self/cgroup') ? readFileSync('/proc/self/cgroup', 'utf8') : '')?.[1];
  if (path === undefined || path.split('/').includes('..')) return false;
  for (let group = path; ; group = dirname(group)) {
    const file = join('/sys/fs/cgroup', group, 'memory.swap.max');
    if (existsSync(file) && readFileSync(file, 'utf8').trim() === '0') return true;
    if (group === '/') return false;
  }
}

/** Returns the name of the first option, from the command line or NODE_OPTIONS, that exposes memory; null if there is none. Pure. */
export function unsafeOption(execArgv: readonly string[], nodeOptions = ''): string | null {
  // Node takes `_` for `-` within names, and quotes in NODE_OPTIONS.
  const words = [...execArgv, ...nodeOptions.split(/[\s"']+/)].map((word) => word.split('=')[0]!.replaceAll('_', '-'));
  return words.find((word) => UNSAFE_OPTION.test(word)) ?? null;
}

/** Returns the swap areas named in the text of /proc/swaps, whose first line is a heading (proc(5)). Pure. */
export function swapAreas(text: string): string[] {
  return text
    .trim()
    .split('\n')
    .slice(1)
    .map((line) => line.split(/\s+/)[0]!);
}
