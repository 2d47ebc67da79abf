/** The whole API against its own description: schemathesis makes requests from `/openapi.json`, right ones and wrong ones, over mutual TLS. */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Appliance } from '../support/appliance.ts';
import { publishedCards } from '../support/test-cards.ts';
import { lastLines, runToEnd } from './program.ts';

/** How long each caller's run makes requests. Both run at once. */
const seconds = 75;
const requirements = join(import.meta.dirname, 'schemathesis-requirements.txt');
const checks = ['not_a_server_error', 'status_code_conformance', 'content_type_conformance', 'response_headers_conformance', 'response_schema_conformance', 'problem_conformance'];

/** Which operations each caller must have got through to, or the run has tested nothing but refusals. */
const reached = {
  checkout: ['POST /v1/tokenize', 'POST /v1/tokenize/batch', 'POST /v1/validate', 'GET /v1/tokens/{token}', 'POST /v1/tokens/{token}/suspend', 'POST /v1/tokens/{token}/resume', 'DELETE /v1/tokens/{token}'],
  getnet: ['POST /v1/detokenize'],
} as const;

/** The program, installed into a folder of its own under COFRE_HOME the first time. */
async function install(home: string): Promise<string> {
  const folder = join(home, 'tools', 'schemathesis');
  const program = join(folder, 'bin', 'schemathesis');
  const stamp = join(folder, 'installed');
  const wanted = createHash('sha256').update(readFileSync(requirements)).digest('hex');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) {
    // The Python behind it may be gone.
    const works = await runToEnd(program, ['--version'], { timeoutMs: 60_000 });
    if (works.code === 0) return program;
  }
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const python = await runToEnd('python3', ['-m', 'venv', folder], { timeoutMs: 120_000 });
  if (python.code !== 0) throw new Error(`schemathesis needs Python with venv (Debian: python3-venv):\n${lastLines(python.output, 5)}`);
  const pip = await runToEnd(join(folder, 'bin', 'python'), ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--requirement', requirements], { timeoutMs: 300_000 });
  if (pip.code !== 0) throw new Error(`schemathesis could not be installed from PyPI:\n${lastLines(pip.output, 5)}`);
  writeFileSync(stamp, wanted);
  return program;
}

/** Runs it as `caller`. @returns what held. @throws with the end of its report. */
async function runAs(caller: keyof typeof reached, program: string, appliance: Appliance, tokens: readonly string[]): Promise<string> {
  const counts = join(appliance.home, `counts-${caller}.json`);
  const pki = join(appliance.home, 'pki');
  const { code, output } = await runToEnd(
    program,
    ['--no-color', 'run', `https://localhost:${appliance.apiPort}/openapi.json`, '--tls-verify', join(pki, 'ca.pem'), '--request-cert', join(pki, `${caller}.pem`), '--request-cert-key', join(pki, `${caller}.key`), '--checks', checks.join(), '--max-time', String(seconds), '--request-timeout', '20', '--continue-on-failure', '--suppress-health-check', 'all', '--warnings', 'off'],
    {
      timeoutMs: (seconds + 90) * 1000,
      cwd: appliance.home,
      // Nothing of it is written beside the sources.
      env: { ...process.env, SCHEMATHESIS_HOOKS: 'schemathesis_hooks', PYTHONPATH: import.meta.dirname, PYTHONDONTWRITEBYTECODE: '1', COFRE_TOKENS: tokens.join(), COFRE_CARDS: publishedCards.map(({ pan }) => pan).join(), COFRE_COUNTS: counts },
    },
  );
  if (code !== 0) throw new Error(`schemathesis as ${caller} found something:\n${lastLines(output, 120)}`);
  const cases = /(\d+) generated, (\d+) passed/u.exec(output);
  if (cases === null || cases[1] !== cases[2]) throw new Error(`schemathesis as ${caller} does not say that all passed:\n${lastLines(output)}`);
  const statuses = JSON.parse(readFileSync(counts, 'utf8')) as Record<string, Record<string, number>>;
  for (const operation of reached[caller]) {
    if (!Object.keys(statuses[operation] ?? {}).some((status) => status.startsWith('2'))) throw new Error(`schemathesis as ${caller} never got through to ${operation}: ${JSON.stringify(statuses)}`);
  }
  const answers = Object.values(statuses).flatMap((byStatus) => Object.values(byStatus)).reduce((sum, count) => sum + count, 0);
  return `schemathesis as ${caller}: ${cases[1]} cases and ${answers} answers of ${Object.keys(statuses).length} operations, none a fault, each as described`;
}

/** @throws what did not hold. */
export async function fuzzApi(): Promise<string[]> {
  const home = process.env['COFRE_HOME'];
  if (home === undefined) throw new Error('COFRE_HOME is not set: npm run test:extended sets it');
  const program = await install(home);
  const appliance = new Appliance({});
  try {
    await appliance.start();
    const checkout = appliance.client('checkout');
    const tokens: string[] = [];
    for (const { pan } of publishedCards) {
      for (const format of pan.length >= 15 ? ['opaque', 'numeric'] : ['opaque']) tokens.push((await checkout.post('/v1/tokenize', { pan, format })).json()['token'] as string);
    }
    const held = await Promise.all([runAs('checkout', program, appliance, tokens), runAs('getnet', program, appliance, tokens)]);
    const faults = appliance.messages().filter((message) => message['level'] === 'error');
    if (faults.length > 0) throw new Error(`the appliance speaks of a fault: ${JSON.stringify(faults[0])}`);
    return held;
  } finally {
    await appliance.destroy();
  }
}
