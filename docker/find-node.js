// Plain JavaScript for Node 20 and up, without dependencies: it runs before anything is installed.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The clone (or image) that this file lies in. */
export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

/** Node runs TypeScript by itself, stably and without a warning, from 24.12. */
const OLDEST = [24, 12];

/**
 * Releases that nothing of ours may run on. 24.21.0 keeps the client's certificate of every TLS connection that it ever served: 5.1 KB each, 100 MB for 20,000 connections, measured with a bare `tls.createServer({ requestCert: true })`;
 * 24.12 to 24.20 do so only where they are asked for it in one of two ways (vault/peer-certificate.ts), and 26.10 to 26.12 do not. test/memory/connections.test.ts holds any other to it.
 */
const UNFIT = ['24.21.0'];

/**
 * What every process that may hold card numbers is started with. Node opens its inspector on SIGUSR1, and whoever can send that signal could then read the memory.
 */
export const HARDENING_FLAGS = ['--disable-sigusr1'];

/** Options that open the process's memory to others or write it to disk. NODE_OPTIONS reaches every Node below us, so they are refused there. */
const UNSAFE_OPTION = /--(inspect|heap-?snapshot|heap-prof|cpu-prof|report|diagnostic-report|experimental-report|abort-on-uncaught-exception|prof\b|trace-event|trace-tls|tls-keylog|insecure-http-parser|perf-)/;

/** Returns the folder of the npm package that carries Node 24 for this machine. */
export function nodePackage() {
  return join(ROOT, 'node_modules', `node-linux-${process.arch}`);
}

/** Whether the vault can run on this version of Node, such as `24.20.0`. */
export function isFit(version) {
  const [major, minor] = version.split('.').map(Number);
  return (major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1])) && !UNFIT.includes(version);
}

/** Returns the path of a Node that the vault can run on: this one, or the one that npm installed; null if there is none yet. */
export function findNode() {
  if (isFit(process.versions.node)) return process.execPath;
  const installed = join(nodePackage(), 'bin', 'node');
  return existsSync(installed) ? installed : null;
}

/** Returns one line that says why these NODE_OPTIONS are refused, or null. */
export function refuseNodeOptions(options = process.env.NODE_OPTIONS ?? '') {
  const found = UNSAFE_OPTION.exec(options.replaceAll('_', '-'));
  return found === null ? null : `NODE_OPTIONS contains ${found[0]}…, which would open or write out the memory of the vault: unset it`;
}

/**
 * Keeps the vault's memory small and flat. V8's young generation grows to 96 MiB otherwise, and its old one to four times what lives in it before it is collected; here it may double. What may be in memory at once
 * is bounded elsewhere (limits of bodies, queues and answers). A bound for the old generation (--max-old-space-size=320) would save 40 MiB more, but it has V8 collect the whole heap so often that its helper threads
 * take a quarter of a core from PostgreSQL: in runs side by side 26,500 to 29,000 cards a second in batches with it, 31,000 to 33,000 as here and 32,000 to 37,000 with neither, which takes 70 MiB more.
 */
const MEMORY_FLAGS = ['--max-semi-space-size=8', '--heap-growing-percent=100'];

/**
 * Returns a command line that runs Node without core dumps, with files private unless said otherwise. Ends in exec: the pid is Node's own.
 *
 * MALLOC_PERTURB_ (mallopt(3), M_PERTURB) has the C library overwrite memory when it is freed. OpenSSL frees the buffers in which it decrypts requests as they are: without it, one to three
 * card numbers of 10,000 were left in 5 runs of 12.
 *
 * UV_THREADPOOL_SIZE: calls of the HSM run on libuv's threads, as do files, name look-ups and much of crypto. There are four unless told, and a session pool lets eight calls and a probe go at once: eight that hung
 * stopped a read of a file, a look-up and randomBytes for as long as they did, eight seconds in the measurement, where with 16 threads these took 1 to 6 ms (SoftHSM2 in direct custody behind a C_Encrypt that waits,
 * 2 cores). Nine for the HSM leave more than the usual four to the rest. Throughput is the same within the noise.
 *
 * @param {string} node
 * @param {string[]} args
 * @returns {string[]}
 */
export function hardened(node, args) {
  return ['/bin/sh', '-c', 'ulimit -c 0; umask 077; MALLOC_PERTURB_=90 MALLOC_ARENA_MAX=2 UV_THREADPOOL_SIZE=16 exec "$@"', 'sh', node, ...HARDENING_FLAGS, ...MEMORY_FLAGS, ...args];
}
