/** Worker processes in trouble: their primary is killed while they start, or they hang. */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { plainLines, startAppliance, until } from '../support/appliance.ts';

/** The worker processes of a primary, once there are so many. */
async function children(primary: number, count: number): Promise<number[]> {
  let found: number[] = [];
  await until(() => {
    try {
      found = readFileSync(`/proc/${primary}/task/${primary}/children`, 'utf8').trim().split(' ').map(Number).filter(lives);
    } catch {
      // It has just ended.
    }
    return found.length === count;
  }, 'the workers');
  return found;
}

/** Whether a worker process of that number is there. */
function lives(pid: number): boolean {
  try {
    return pid > 0 && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('\0worker\0');
  } catch {
    return false;
  }
}

const appliance = await startAppliance(t, { config: { workers: 2 } });

await t.test('a kill at any moment of their start leaves neither a process nor a stack trace', { timeout: 180_000 }, async (t) => {
  await appliance.kill9();
  for (let pausesMs = 0; pausesMs < 900; pausesMs += 100) {
    const started = appliance.launch();
    await until(() => appliance.pid > 0, 'the primary');
    const primary = appliance.pid;
    // Two that serve, and one that sequences. From then on the moments differ.
    const workers = await children(primary, 3);
    await Promise.race([sleep(pausesMs), started]);
    process.kill(primary, 'SIGKILL');
    if ((await started) === null) await appliance.kill9();
    await until(() => !workers.some(lives), 'the end of the workers');
  }
  // What Node itself says of a channel that is gone before any code of ours runs is not ours to prevent.
  const ours = appliance.err.replaceAll(/^node:events:\d+\n(?:(?!^Node\.js)[^])*?_setupWorker[^]*?^Node\.js .*$/gmu, '');
  // Where two of them said it at once, the last line of one is left.
  t.same(plainLines(ours).filter((line) => !line.startsWith('cofre: ') && !/^Node\.js v[\d.]+$/u.test(line)), []);
  await appliance.start();
  t.equal((await appliance.client('checkout').post('/v1/validate', { token: 'x' })).status, 200);
});

for (const workers of [1, 2]) {
  await t.test(`SIGTERM ends a vault of ${workers} whose processes hang in their start`, { timeout: 120_000 }, async (t) => {
    await appliance.stop();
    appliance.configure({ workers });
    const started = appliance.launch();
    await until(() => appliance.pid > 0, 'the primary');
    const primary = appliance.pid;
    // One that serves from the first process has only the one that sequences.
    const [hung] = await children(primary, workers === 1 ? 1 : 3);
    process.kill(hung!, 'SIGSTOP');
    t.teardown(() => {
      if (lives(hung!)) process.kill(hung!, 'SIGKILL');
    });
    // The others have come to wait for it.
    await sleep(3000);
    const before = performance.now();
    process.kill(primary, 'SIGTERM');
    t.same(await started, { code: 0, signal: null });
    t.ok(performance.now() - before < 20_000, 'in time');
    t.notOk(lives(hung!));
    await appliance.start();
  });
}

await t.test('one that hangs while it serves is killed and another serves in its place; a primary that stood still kills nobody', { timeout: 300_000 }, async (t) => {
  await appliance.stop();
  appliance.configure({ workers: 2 });
  await appliance.start();
  const before = await children(appliance.pid, 3);
  t.teardown(() => before.filter(lives).forEach((pid) => process.kill(pid, 'SIGCONT')));
  const killed = (): unknown[] => appliance.messages().filter((message) => message['msg'] === 'a worker process says nothing and is killed').map((message) => message['pid']);

  appliance.signal('SIGSTOP');
  await sleep(65_000);
  appliance.signal('SIGCONT');
  await sleep(5000);
  t.same(killed(), []);
  t.same(await children(appliance.pid, 3), before);

  const [hung] = before;
  process.kill(hung!, 'SIGSTOP');
  await sleep(40_000);
  await until(() => !lives(hung!), 'its end');
  t.same(killed(), [hung]);
  await until(async () => ((await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as { ok?: boolean }).ok === true, 'readiness');
  t.equal((await children(appliance.pid, 3)).filter((pid) => before.includes(pid)).length, 2);
  t.equal((await appliance.client('checkout').post('/v1/validate', { token: 'x' })).status, 200);
});
