#!/usr/bin/env node
// What every npm script of this repository calls: sets up what is missing, then runs the real thing under Node 24.
// Plain JavaScript, no dependencies: on a fresh machine nothing else is there yet, and Node may be as old as 20.
import { chmodSync, existsSync, mkdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';

if (process.platform !== 'linux') fail('Cofre runs on Linux only');
if (Number(process.versions.node.split('.')[0]) < 20) fail(`Cofre needs Node 20 or newer to set itself up, this is ${process.versions.node}`);

// Imported after the checks, so that an older Node says the line above rather than a syntax error.
const { ROOT, hardened, refuseNodeOptions } = await import('./find-node.js');
const { setUp, SetUpError } = await import('./set-up.js');
const { run } = await import('./run.js');

const bin = (name) => join(ROOT, 'node_modules', '.bin', name);
const [name, ...args] = process.argv.slice(2);
const home = resolve(process.env.COFRE_HOME || join(ROOT, '.cofre'));

/** Each command: whether it needs SoftHSM, the tools of the extended tests, whether it keeps state, and its command line under the Node that was found. Tests make state of their own. */
const COMMANDS = {
  start: { hsm: true, state: true, line: (node) => hardened(node, [join(ROOT, 'vault', 'bin', 'cofre.ts'), 'serve', ...args]) },
  test: { hsm: true, line: (node) => [node, join(ROOT, 'test', 'run.ts'), ...args] },
  'test-extended': { hsm: true, tools: true, state: true, line: (node) => [node, join(ROOT, 'test', 'extended.ts'), ...args] },
  fuzz: { hsm: true, state: true, line: (node) => [node, join(ROOT, 'test', 'fuzz', 'fuzz.ts'), ...args] },
  bench: { hsm: true, state: true, line: (node) => [node, join(ROOT, 'test', 'bench', 'bench.ts'), ...args] },
  check: { hsm: false, line: (node) => [node, bin('tsc'), '-p', ROOT, ...args] },
  lint: { hsm: false, line: (node) => [node, bin('oxlint'), '--type-aware', ...args] },
  'set-up': { hsm: true, line: () => null },
};

const command = Object.hasOwn(COMMANDS, name ?? '') ? COMMANDS[name] : fail(`usage: node docker/bootstrap.js ${Object.keys(COMMANDS).join('|')} [arguments]`);
if (name === 'start') {
  const refusal = refuseNodeOptions();
  if (refusal !== null) fail(refusal);
  makeHome();
}

let node;
try {
  node = setUp(command);
} catch (error) {
  if (error instanceof SetUpError) fail(error.message);
  // What the file system refused. Of a folder made by steps Node names the step, and ENOENT, where nothing may be written at all.
  if (error.syscall !== undefined && error.path !== undefined) fail(`${error.path} cannot be made or read (${error.code}): this clone must be yours and writable until it is set up`);
  throw error;
}
const line = command.line(node);
if (line !== null) {
  process.chdir(ROOT);
  process.exitCode = await run(line, command.state ? { ...process.env, COFRE_HOME: home } : process.env);
}

/** Others may pass through the state folder but not list it: PostgreSQL, where it may not run as root, must reach its own part. Every secret in it is private by itself. */
function makeHome() {
  if (existsSync(home)) return;
  try {
    makeFolder(home);
    chmodSync(home, 0o711);
  } catch {
    fail(`the state folder ${home} cannot be made: set COFRE_HOME to a folder of your own`);
  }
}

/** By single steps: Node's recursive mkdir tries for ever where a parent that is there answers ENOENT, as all of /proc does. */
function makeFolder(folder) {
  if (!existsSync(dirname(folder))) makeFolder(dirname(folder));
  try {
    mkdirSync(folder);
  } catch (error) {
    // Another start may have made it meanwhile.
    if (error.code !== 'EEXIST') throw error;
  }
}

function fail(line) {
  console.error(line);
  process.exit(1);
}
