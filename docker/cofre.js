#!/usr/bin/env node
// The `cofre` command. Plain JavaScript, because the machine's own Node may be too old for TypeScript, and because Node does not strip types below node_modules.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { ROOT, findNode, hardened, refuseNodeOptions } from './find-node.js';

const node = findNode();
if (node === null || !existsSync(join(ROOT, 'node_modules', 'pg'))) fail('Cofre is not set up yet: run npm start or npm ci first');
const refusal = refuseNodeOptions();
if (refusal !== null) fail(refusal);

const [program, ...args] = hardened(node, [join(ROOT, 'vault', 'bin', 'cofre.ts'), ...process.argv.slice(2)]);
const child = spawn(program, args, { stdio: 'inherit' });
child.on('error', () => fail('Cofre could not be started: /bin/sh is missing'));
// Sent to this process alone, perhaps, by whoever started it. Ctrl-C reaches the whole foreground group, so the child has it twice, which means no more than once.
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(name, () => child.kill(name));
child.on('exit', (code, signal) => {
  process.exitCode = code ?? 128 + constants.signals[signal];
});

function fail(line) {
  console.error(line);
  process.exit(2);
}
