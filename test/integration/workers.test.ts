/** Several worker processes behind one set of listeners: they serve together, and what happens when one of them, or the primary, dies, hangs or is signalled. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { parseReplies, readToEnd } from '../support/api-client.ts';
import { readLog, tokensOf } from '../support/log-reader.ts';
import { isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

const workers = 2;
// More than fits into an environment variable.
const quotas = Array.from({ length: 2000 }, (_, n) => ({ caller: `spiffe://cofre.dev/tenant/acme/service/service-of-a-long-name-${n}`, purpose: 'refund', per_minute: n }));
// More than a process may be given whose stack is limited to 2 MiB: a quarter of that.
const env = Object.fromEntries(Array.from({ length: 6 }, (_, n) => [`COFRE_TEST_FILLER_${n}`, 'x'.repeat(100_000)]));
const appliance = await startAppliance(t, { config: { workers, quotas }, env });
const childrenOf = (pid: number): number[] => readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number);
const is = (pid: number, what: '' | 'sequencer\0'): boolean => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').endsWith(`\0worker\0${what}`);
  } catch {
    // It has just ended.
    return false;
  }
};
const workersNow = (): number[] => childrenOf(appliance.pid).filter((pid) => pid > 0 && is(pid, ''));
const sequencerNow = (): number => childrenOf(appliance.pid).find((pid) => pid > 0 && is(pid, 'sequencer\0')) ?? 0;
const isAlive = (pid: number): boolean => {
  try {
    return !/^State:\s+[ZX]/mu.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};
const readiness = async (): Promise<Record<string, { ok: boolean; detail: string }>> => (await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as Record<string, { ok: boolean; detail: string }>;
let nextCard = 0;

await t.test('all of them serve, and one card gets one token from whichever is asked', async (t) => {
  t.equal(workersNow().length, workers);
  // A connection each: they are given out in turn.
  const clients = Array.from({ length: 6 }, () => appliance.client('checkout', { connections: 1 }));
  const cards = Array.from({ length: 20 }, () => cardText(nextCard++));
  const answers = await Promise.all(clients.map((client) => Promise.all(cards.map(async (pan) => (await client.post('/v1/tokenize', { pan })).json()['token']))));
  for (const tokens of answers) t.same(tokens, answers[0]);
  t.equal(new Set(answers[0]).size, cards.length);
  const getnet = appliance.client('getnet');
  t.equal((await getnet.post('/v1/detokenize', { token: answers[0]![0], purpose: 'refund' })).status, 200);
  const made = (await readLog(appliance)).filter((entry) => tokensOf(entry).some(({ outcome }) => outcome === 'created' || outcome === 'known'));
  t.equal(new Set(made.map(({ writer }) => writer)).size, workers, 'each with a writer of its own');
});

await t.test('what a worker is told does not stand in its environment', async (t) => {
  for (const pid of workersNow()) {
    const environment = readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0');
    t.same(environment.filter((line) => line.includes('spiffe://') || line.includes('_tokenize')), []);
  }
});

await t.test('metrics add up what all of them counted, and readiness tells of all', async (t) => {
  const text = await (await fetch(`${appliance.telemetryUrl}/metrics`)).text();
  t.match(text, new RegExp(`^cofre_request_seconds_count\\{operation="tokenize",outcome="ok"\\} ${6 * 20}$`, 'mu'));
  t.match(text, /^cofre_hsm_up 1$/mu, 'the least, not the sum');
  await until(async () => 'hsm' in (await readiness()), 'the first word of the workers');
  t.match(await readiness(), { ok: true, workers: { ok: true, detail: '2 of 2 serve' }, hsm: { ok: true }, database: { ok: true }, log: { ok: true }, revocation: { ok: true } });
});

await t.test('a session is resumed by whichever worker its client comes to, and after a revocation by none', async (t) => {
  const pki = appliance.pki();
  const client = appliance.client('checkout');
  /** A connection that has asked: whether it was resumed, and its ticket. */
  const visit = async (session?: Buffer): Promise<{ readonly resumed: boolean; readonly ticket: Buffer }> => {
    const socket = await client.connect(session === undefined ? {} : { session });
    const resumed = socket.isSessionReused();
    let ticket: Buffer | null = null;
    socket.on('session', (given: Buffer) => (ticket = given));
    const answer = readToEnd(socket);
    socket.write('GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    t.equal(parseReplies(await answer)[0]?.status, 200);
    return { resumed, ticket: ticket! };
  };
  const all = async (ticket: Buffer): Promise<boolean[]> => {
    const resumed: boolean[] = [];
    for (let n = 0; n < 3 * workers; n += 1) resumed.push((await visit(ticket)).resumed);
    return [...new Set(resumed)];
  };
  const { ticket } = await visit();
  t.same(await all(ticket), [true]);

  pki.revoke('operator-b');
  // Each of them notices the list by itself, and has the secret changed.
  await until(() => appliance.messages().filter((message) => message['msg'] === 'certificates were revoked').length === workers, 'the notice of each');
  t.same(await all(ticket), [false]);
  await until(async () => (await all((await visit()).ticket)).every((resumed) => resumed), 'a secret that all of them have');

  const before = (await visit()).ticket;
  const victim = workersNow()[0]!;
  process.kill(victim, 'SIGKILL');
  await until(() => workersNow().length === workers && !workersNow().includes(victim), 'its successor');
  await until(async () => (await readiness())['workers']!.detail === '2 of 2 serve', 'readiness');
  t.same(await all(before), [true], 'a worker that was started again has it as well');
});

await t.test('SIGHUP reaches each of them', async () => {
  const reloads = async (): Promise<number> => (await readLog(appliance)).filter(({ value }) => value['action'] === 'policy.reload').length;
  appliance.signal('SIGHUP');
  await until(async () => (await reloads()) === workers, 'a reload by each');
});

await t.test('one that is killed is started again, and what was acknowledged stands', async (t) => {
  const tokens = new Map<string, string>();
  const load = async (): Promise<void> => {
    const pan = cardText(nextCard++);
    try {
      const reply = await appliance.client('checkout', { connections: 1 }).post('/v1/tokenize', { pan });
      if (reply.status === 201) tokens.set(pan, reply.json()['token'] as string);
    } catch {
      // Its connection was the killed one's.
    }
  };
  for (const victim of workersNow()) {
    await Promise.all(Array.from({ length: 10 }, load));
    const more = Array.from({ length: 10 }, load);
    process.kill(victim, 'SIGKILL');
    await Promise.all(more);
    await until(() => workersNow().length === workers && !workersNow().includes(victim), 'its successor');
    await until(async () => (await readiness())['workers']!.detail === '2 of 2 serve', 'readiness');
  }
  t.ok(tokens.size >= 20);
  for (const [pan, token] of tokens) t.same(await appliance.client('checkout').post('/v1/tokenize', { pan }).then((reply) => [reply.status, reply.json()['token']]), [200, token]);
  const ended = (await readLog(appliance)).filter(({ value }) => value['action'] === 'writer.start' && (value['detail'] as Record<string, unknown>)['predecessor_closed'] === 'no');
  t.ok(ended.length >= 2, 'the successors name their killed predecessors');
});

await t.test('the sequencer is a process of its own: killed, it is started again, and calls go on meanwhile', async (t) => {
  const victim = sequencerNow();
  t.not(victim, 0);
  process.kill(victim, 'SIGKILL');
  const during = await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(nextCard++) });
  t.equal(during.status, 201);
  t.equal((await readiness())['sequencer']?.ok, true, 'which the readiness of calls does not depend on for a while');
  await until(async () => sequencerNow() !== 0 && sequencerNow() !== victim && (await readiness())['sequencer']?.detail === 'sequencing', 'its successor');
  const signed = async (): Promise<number> => Number(/^cofre_log_signed_size (\d+)$/mu.exec(await (await fetch(`${appliance.telemetryUrl}/metrics`)).text())?.[1] ?? 0);
  const before = await signed();
  t.equal((await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(nextCard++) })).status, 201);
  await until(async () => (await signed()) > before, 'a checkpoint of the successor');
});

const endings = (): unknown[] => appliance.messages().filter((message) => message['msg'] === 'a worker process ended and is started again').map((message) => message['kind']);

await t.test('a SIGHUP ends none of them, whoever it comes to, and one that starts takes in what has changed', async (t) => {
  for (const pid of [...workersNow(), sequencerNow()]) process.kill(pid, 'SIGHUP');
  const known = workersNow();
  process.kill(known[0]!, 'SIGKILL');
  const told = endings().length + 1;
  let successor = 0;
  await until(() => (successor = workersNow().find((pid) => !known.includes(pid)) ?? 0) !== 0, 'its successor');
  // At every moment of its start.
  await until(async () => {
    appliance.signal('SIGHUP');
    return (await readiness())['workers']!.detail === '2 of 2 serve';
  }, 'readiness');
  t.ok(workersNow().includes(successor));
  t.same(endings().slice(told), []);
});

await t.test('readiness tells of processes that hang, and metrics of those that do not', { timeout: 60_000 }, async (t) => {
  const scrape = async (): Promise<{ status: number; text: string }> => {
    const reply = await fetch(`${appliance.telemetryUrl}/metrics`);
    return { status: reply.status, text: await reply.text() };
  };
  const hung = [workersNow()[0]!, sequencerNow()];
  for (const pid of hung) process.kill(pid, 'SIGSTOP');
  const tellsOfTheOther = async (when: string): Promise<void> => {
    const { status, text } = await scrape();
    t.equal(status, 200, when);
    t.match(text, /^cofre_processes_missing 2$/mu, when);
    t.match(text, /^cofre_database_away_seconds 0$/mu, when);
    t.notMatch(text, /^cofre_log_signed_size /mu, when);
  };
  try {
    await tellsOfTheOther('before it is known that they hang');
    await until(async () => !(await readiness())['workers']!.ok && !(await readiness())['sequencer']!.ok, 'the word that they hang');
    t.match(await readiness(), { ok: false, workers: { ok: false, detail: '1 of 2 serve' }, sequencer: { ok: false, detail: /^its process says nothing for \d+ s$/u } });
    await tellsOfTheOther('when it is known');
  } finally {
    for (const pid of hung) process.kill(pid, 'SIGCONT');
  }
  await until(async () => (await readiness())['sequencer']!.detail === 'sequencing' && (await readiness())['ok'] as unknown as boolean, 'their return');
  t.match((await scrape()).text, /^cofre_processes_missing 0$/mu);
});

for (const { option, name, low, code } of [{ option: 'nofile', name: 'Max open files', low: '8', code: 'EMFILE' }, { option: 'stack', name: 'Max stack size', low: '2097152', code: 'E2BIG' }]) {
  await t.test(`one that cannot be started, for ${code}, is started once it can be`, async (t) => {
    const { pid } = appliance;
    const limit = (soft: string): unknown => execFileSync('prlimit', ['--pid', String(pid), `--${option}=${soft}:`]);
    const before = new RegExp(`^${name}\\s+(\\d+|unlimited)`, 'mu').exec(readFileSync(`/proc/${pid}/limits`, 'utf8'))![1]!;
    const victim = sequencerNow();
    limit(low);
    try {
      process.kill(victim, 'SIGKILL');
      await until(() => endings().at(-1) === code || !isAlive(pid), 'the word of it');
      t.ok(isAlive(pid), 'and ends nothing else');
    } finally {
      if (isAlive(pid)) limit(before);
    }
    await until(async () => sequencerNow() !== 0 && (await readiness())['sequencer']?.detail === 'sequencing', 'the sequencer');
  });
}

await t.test('SIGTERM ends all of them in order', async (t) => {
  const before = [...workersNow(), sequencerNow()];
  t.same(await appliance.stop(), { code: 0, signal: null });
  t.same(before.filter(isAlive), []);
  await appliance.start();
  const unclosed = (await readLog(appliance)).filter(({ value }) => value['action'] === 'writer.start' && (value['detail'] as Record<string, unknown>)['predecessor_closed'] === 'yes');
  t.equal(unclosed.length, workers * 3 + 1, 'every chain was closed, that of the one sequencer too');
});

await t.test('none outlives a primary that was killed, and the next start takes over', async (t) => {
  const before = [...workersNow(), sequencerNow()];
  await appliance.kill9();
  await until(() => !before.some(isAlive), 'their end');
  await appliance.start();
  t.equal((await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(0) })).status, 200);
  isProblem(t, await appliance.client('intruder').post('/v1/tokenize', { pan: cardText(0) }), 'not_authorized');
});

await t.test('where the port for telemetry is taken no worker is started', async (t) => {
  await appliance.stop();
  const taken = createServer();
  await new Promise<void>((done) => taken.listen(0, '127.0.0.1', done));
  const mark = appliance.err.length;
  let seen = 0;
  const looking = setInterval(() => {
    try {
      seen += workersNow().length;
    } catch {
      // It has not begun, or has just ended.
    }
  }, 5);
  t.equal((await appliance.launch({ COFRE_TELEMETRY_PORT: String((taken.address() as AddressInfo).port) }))?.code, 1);
  clearInterval(looking);
  taken.close();
  t.match(appliance.err.slice(mark), /COFRE_TELEMETRY_PORT chooses another/u);
  t.equal(seen, 0);
});

await t.test('a worker that cannot start tells why in one line, and nothing stays', async (t) => {
  appliance.configure({ workers, quotas, hsm: { token_label: 'no-such-token' }, profile: 'development' });
  const ended = await appliance.launch();
  t.equal(ended?.code, 1);
  t.match(appliance.err.trim().split('\n').at(-1), /^cofre: .+/u);
  t.notMatch(appliance.err, /^\s+at /mu);
});
