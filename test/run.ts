import { spawn } from 'node:child_process';
import { globSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { Parser, type Result } from 'tap-parser';
import { startEmbedded } from '../platform-adapters/postgres/embedded.ts';
import { LONG } from './long.ts';

/**
 * What `npm test` runs: the type check, the lint, and every test file, two at a time, beside one PostgreSQL. Prints each failure as it comes and ends with `N passed, N failed`: assertions, and one each for the type check and the lint.
 *
 * A file that crashes, hangs, bails out or asserts nothing is a failure, and so is a test that is skipped or to do. `npm test -- vault/pan hsm` runs the test files whose paths contain one of the words, without check and lint. The longest files run with `npm run test:extended` (test/long.ts).
 */

const ROOT = resolve(import.meta.dirname, '..');
const JOBS = 2;
const FILE_TIMEOUT_MS = 10 * 60_000;

interface Outcome {
  readonly passed: number;
  /** What went wrong, each ready to print. */
  readonly failures: readonly string[];
  readonly ms: number;
}

interface Finished {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly timedOut: boolean;
  /** Standard error, and for a tool standard output too. */
  readonly text: string;
}

const stops = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => stops.abort());

function runProgram(program: string, args: readonly string[], options: { env: NodeJS.ProcessEnv; timeoutMs: number; onOutput?: (chunk: Buffer) => void }): Promise<Finished> {
  const { promise, resolve, reject } = Promise.withResolvers<Finished>();
  const child = spawn(program, args, { cwd: ROOT, env: options.env, stdio: ['ignore', 'pipe', 'pipe'], signal: stops.signal, killSignal: 'SIGTERM' });
  const text: Buffer[] = [];
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    child.kill('SIGKILL');
  }, options.timeoutMs);
  child.stdout.on('data', options.onOutput ?? ((chunk: Buffer) => text.push(chunk)));
  child.stderr.on('data', (chunk: Buffer) => text.push(chunk));
  child.on('error', (error) => (stops.signal.aborted ? undefined : reject(error)));
  child.on('close', (code, signal) => {
    clearTimeout(timer);
    resolve({ code, signal, timedOut, text: Buffer.concat(text).toString('utf8').trim() });
  });
  return promise;
}

/** A check that passes or fails as a whole. */
async function runTool(program: string, args: readonly string[]): Promise<Outcome> {
  const began = performance.now();
  const { code, text } = await runProgram(program, args, { env: process.env, timeoutMs: FILE_TIMEOUT_MS });
  const ms = performance.now() - began;
  return code === 0 ? { passed: 1, failures: [], ms } : { passed: 0, failures: [text], ms };
}

async function runFile(file: string, env: NodeJS.ProcessEnv): Promise<Outcome> {
  const began = performance.now();
  const failures: string[] = [];
  let passed = 0;
  let complete = false;
  const parser = new Parser(() => {
    complete = true;
  });
  const watch = (parser: Parser): void => {
    let failedBelow = 0;
    parser.on('assert', (result: Result) => {
      if (result.skip !== false || result.todo !== false) failures.push(`${result.fullname}\n  ${result.skip !== false ? 'skipped' : 'to do'}, which counts as failed`);
      else if (result.closingTestPoint) {
        // Sums up assertions that were counted already; on its own it fails by a throw, a timeout or a wrong plan.
        if (!result.ok && failures.length === failedBelow) failures.push(describe(result));
      } else if (result.ok) passed++;
      else failures.push(describe(result));
      failedBelow = failures.length;
    });
    parser.on('child', watch);
  };
  watch(parser);
  // tap's own timeout would end a long property test after 30 s; ours above counts.
  const finished = await runProgram(process.execPath, [file], { env: { ...env, TAP_TIMEOUT: String(FILE_TIMEOUT_MS / 1000) }, timeoutMs: FILE_TIMEOUT_MS, onOutput: (chunk) => parser.write(chunk) });
  parser.end();
  if (finished.timedOut) failures.push(`did not end within ${FILE_TIMEOUT_MS / 60_000} minutes`);
  else if (finished.signal !== null) failures.push(`was ended by ${finished.signal}`);
  else if (failures.length === 0 && (finished.code !== 0 || !complete || !parser.ok))
    failures.push(`exited with code ${finished.code} and ${parser.ok ? 'no failed assertion' : 'an incomplete report'}`);
  else if (passed + failures.length === 0) failures.push('asserted nothing');
  if (failures.length > 0 && finished.text !== '') failures.push(`standard error:\n${indent(finished.text)}`);
  return { passed, failures, ms: performance.now() - began };
}

function describe(result: Result): string {
  const diag = result.diag as Record<string, unknown> | null;
  const lines = [result.fullname];
  if (diag !== null) {
    const at = diag['at'] as { fileName?: string; lineNumber?: number } | undefined;
    if (at?.fileName !== undefined) lines.push(`at ${at.fileName}:${at.lineNumber}`);
    for (const [key, value] of Object.entries(diag))
      if (key !== 'at' && key !== 'source')
        lines.push(typeof value === 'string' && value.includes('\n') ? `${key}:\n${indent(value.trimEnd())}` : `${key}: ${typeof value === 'string' ? value : JSON.stringify(value)}`);
  }
  return lines.join('\n  ');
}

function indent(text: string): string {
  return text.replaceAll(/^/gm, '    ');
}

const filters = process.argv.slice(2);
const onlyLong = filters.length === 1 && filters[0] === '--long';
const wanted = (file: string): boolean => (onlyLong ? LONG.has(file) : filters.length === 0 ? !LONG.has(file) : filters.some((word) => file.includes(word)));
const files = globSync('test/**/*.test.ts', { cwd: ROOT }).filter(wanted).sort();
// A file that was renamed would run nowhere.
if (onlyLong && files.length !== LONG.size) throw new Error('test/long.ts names a file that is not there');

let passed = 0;
let failed = 0;
function report(name: string, outcome: Outcome): void {
  passed += outcome.passed;
  // Standard error is no failure of its own.
  failed += outcome.failures.filter((text) => !text.startsWith('standard error:')).length;
  console.log(`${outcome.failures.length === 0 ? 'ok    ' : 'FAILED'} ${name} (${outcome.passed} passed, ${(outcome.ms / 1000).toFixed(1)} s)`);
  for (const text of outcome.failures) console.log(`  ${text.replaceAll('\n', '\n  ')}`);
}

if (files.length === 0) {
  console.error('no test file matches');
  process.exit(2);
}
if (filters.length === 0) {
  report('types (tsc)', await runTool(process.execPath, [join(ROOT, 'node_modules/.bin/tsc'), '-p', ROOT]));
  report('lint (oxlint)', await runTool(process.execPath, [join(ROOT, 'node_modules/.bin/oxlint'), '--type-aware']));
}

const folder = mkdtempSync(join(tmpdir(), 'cofre-test-run-'));
const server = await startEmbedded({ folder, diesWithParent: true });
try {
  const env = { ...process.env, COFRE_TEST_DATABASE_URL: server.adminUrl };
  const queue = files.values();
  await Promise.all(
    Array.from({ length: JOBS }, async () => {
      // One iterator for all: each takes the next file when it is free.
      for (const file of queue) {
        if (stops.signal.aborted) return;
        report(file, await runFile(file, env));
      }
    }),
  );
} finally {
  await server.stop();
  rmSync(folder, { recursive: true });
}
if (stops.signal.aborted) {
  console.error('stopped');
  failed++;
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
