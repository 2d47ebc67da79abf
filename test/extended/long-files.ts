/** The test files that `npm test` leaves out (test/long.ts), run as it runs the others. */
import { join } from 'node:path';
import { lastLines, runToEnd } from './program.ts';

/** @throws with what failed. */
export async function runLongFiles(): Promise<string[]> {
  const { code, output } = await runToEnd(process.execPath, [join(import.meta.dirname, '../run.ts'), '--long'], { timeoutMs: 25 * 60_000 });
  const [, passed = '0'] = /^(\d+) passed, 0 failed$/mu.exec(output) ?? [];
  if (code !== 0 || passed === '0') throw new Error(`not all long test files pass:\n${lastLines(output, 120)}`);
  return [`${passed} assertions`];
}
