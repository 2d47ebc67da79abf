import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Test } from 'tap';
import { scan } from '../memory/scanner.ts';
import { custodies } from './hsms.ts';
import { cards, victimSeed } from './memory-victim.ts';

async function leftBehind(t: Test, ...args: string[]): Promise<number> {
  const victim = fork(fileURLToPath(new URL('memory-victim.ts', import.meta.url)), args, { execArgv: ['--expose-gc'] });
  t.teardown(() => victim.kill('SIGTERM'));
  await once(victim, 'message');
  const report = await scan(victim.pid!, { firstCard: 0, cards, seed: victimSeed });
  t.equal(report.needles, cards);
  victim.disconnect();
  await once(victim, 'exit');
  return report.found.distinct;
}

for (const custody of custodies) {
  t.test(`no card that was sealed, fingerprinted and opened stays in memory in ${custody} custody once its owner wiped it`, async (t) => {
    t.equal(await leftBehind(t, custody), 0);
  });
}

t.test('the scan would have found them: an owner that does not wipe what it opened leaves cards behind', async (t) => {
  t.ok((await leftBehind(t, 'envelope', 'careless')) > 0);
});
