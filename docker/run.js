// Plain JavaScript for Node 20 and up, without dependencies.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { constants } from 'node:os';

/** A second Ctrl-C within this time is npm passing on the first one. */
const ECHO_MS = 1000;

/** How often to look whether npm is still there. */
const WATCH_MS = 500;

/**
 * Runs a command to its end and resolves to its exit code (128 + number after a signal).
 *
 * The child has a session of its own, so a signal comes to it from us alone and once: from a terminal, Ctrl-C would reach it together with us and with npm, which passes it on again; an impatient second one is passed on.
 * If we or npm are killed outright, it is told to stop as well, so nothing is left running.
 */
export function run(command, env) {
  // The kernel sends SIGTERM when we die, even by kill -9.
  const [program, ...args] = existsSync('/usr/bin/setpriv') ? ['/usr/bin/setpriv', '--pdeathsig', 'TERM', '--', ...command] : command;
  const child = spawn(program, args, { stdio: 'inherit', env, detached: true });
  let last = { name: '', at: -ECHO_MS };
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(name, () => {
      const now = performance.now();
      const echo = last.name === name && now - last.at < ECHO_MS;
      if (!echo) child.kill(name);
      last = echo ? last : { name, at: now };
    });
  }
  if (process.env.npm_lifecycle_event !== undefined) {
    // npm waits for its scripts, so a changed parent means that it was killed.
    const npm = process.ppid;
    const watch = setInterval(() => {
      if (process.ppid !== npm) {
        clearInterval(watch);
        child.kill('SIGTERM');
      }
    }, WATCH_MS);
    watch.unref();
  }
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', (code, signal) => resolve(code ?? 128 + constants.signals[signal]));
  });
}
