/** The primary killed while its worker processes start: they end as well, without a word that is not for the operator. */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { plainLines, startAppliance, until } from '../support/appliance.ts';

const appliance = await startAppliance(t, { config: { workers: 2 } });

await t.test('a kill at any moment of their start leaves neither a process nor a stack trace', { timeout: 180_000 }, async (t) => {
  await appliance.kill9();
  for (let pausesMs = 0; pausesMs < 900; pausesMs += 100) {
    const started = appliance.launch();
    await until(() => appliance.pid > 0, 'the primary');
    const primary = appliance.pid;
    let workers: number[] = [];
    // Its children, once they are there: from then on the moments differ.
    await until(() => {
      try {
        workers = readFileSync(`/proc/${primary}/task/${primary}/children`, 'utf8').trim().split(' ').map(Number).filter((pid) => pid > 0 && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('\0worker\0'));
      } catch {
        // It has just ended.
      }
      // Two that serve, and one that sequences.
      return workers.length === 3;
    }, 'the workers');
    await Promise.race([sleep(pausesMs), started]);
    process.kill(primary, 'SIGKILL');
    if ((await started) === null) await appliance.kill9();
    const lives = (pid: number): boolean => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('\0worker\0');
      } catch {
        return false;
      }
    };
    await until(() => !workers.some(lives), 'the end of the workers');
  }
  // What Node itself says of a channel that is gone before any code of ours runs is not ours to prevent.
  const ours = appliance.err.replaceAll(/^node:events:\d+\n(?:(?!^Node\.js)[^])*?_setupWorker[^]*?^Node\.js .*$/gmu, '');
  t.same(plainLines(ours).filter((line) => !line.startsWith('cofre: ')), []);
  await appliance.start();
  t.equal((await appliance.client('checkout').post('/v1/validate', { token: 'x' })).status, 200);
});
