import t from 'tap';
import { HsmError } from '../../../hsm/errors.ts';
import { createLog, describe } from '../../../platform-adapters/telemetry/log.ts';

/** What a log at `level` wrote, line by line. */
function lines(level: string, write: (log: ReturnType<typeof createLog>) => void): Record<string, unknown>[] {
  const written: string[] = [];
  write(createLog(level, { write: (line) => void written.push(line) }));
  return written.map((line) => JSON.parse(line) as Record<string, unknown>);
}

t.test('a message is a JSON line with its level, its time, and the fields that it may carry', async (t) => {
  const [line, ...more] = lines('info', (log) => log.warn('a message', { role: 'tokenize', count: 3 }));
  t.same(more, []);
  const { time, ...rest } = line!;
  t.match(time, /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$/u);
  t.same(rest, { level: 'warn', role: 'tokenize', count: 3, msg: 'a message' });
});

t.test('a field beyond the list is dropped, even where the types were got around, and a long text is cut', async (t) => {
  const smuggled = { reason: 'x'.repeat(1000), body: 'secret', err: new Error('secret'), headers: { authorization: 'secret' }, toJSON: () => 'secret' };
  const [line] = lines('info', (log) => log.error('a message', smuggled));
  t.same(Object.keys(line!).sort(), ['level', 'msg', 'reason', 'time']);
  t.equal((line!['reason'] as string).length, 300);
  t.notOk(JSON.stringify(line).includes('secret'));
});

t.test('what is below the level is not written', async (t) => {
  const all = (log: ReturnType<typeof createLog>): void => {
    for (const level of ['debug', 'info', 'warn', 'error'] as const) log[level](level);
  };
  t.same(lines('warn', all).map((line) => line['msg']), ['warn', 'error']);
  t.same(lines('debug', all).map((line) => line['level']), ['debug', 'info', 'warn', 'error']);
});

t.test('an error is told by its class, its code and its place, with its causes, and never by its message', async (t) => {
  const database = Object.assign(new Error('Key (pan)=(secret) already exists.\n    at vault/secret.ts:1:1'), { name: 'DatabaseError', code: '23505', detail: 'secret' });
  const told = describe(new TypeError('secret', { cause: database }));
  t.match(told, /^TypeError[^<]* < DatabaseError\(23505\)/u);
  t.notOk(told.includes('secret'));
  t.match(describe(new HsmError('refused', 'secret')), /^HsmError/u);
  t.match(describe(Object.assign(new Error('CKR_DEVICE_ERROR'), { name: 'Pkcs11Error', code: 0x30 })), /^Pkcs11Error\(0x30\)/u, 'a return value of PKCS#11 is a number');
  t.same([describe('secret'), describe(null), describe(undefined), describe({ message: 'secret' })], ['string', 'object', 'undefined', 'object'], 'what is no error is told by its type');
});

t.test('a place is one of our own files', async (t) => {
  const at = (...frames: string[]): Error => Object.assign(new Error('x'), { stack: ['Error: x', ...frames.map((frame) => `    at ${frame}`)].join('\n') });
  t.equal(describe(at('f (node:internal/x:1:2)', 'Pool.g (file:///srv/cofre/vault/commit.ts:12:3)', 'h (file:///srv/cofre/hsm/keyring.ts:4:5)')), 'Error at vault/commit.ts:12');
  t.equal(describe(at('f (node:internal/x:1:2)')), 'Error');
});

t.test('a circle of causes ends', async (t) => {
  const one = new Error('x');
  one.stack = 'Error: x';
  one.cause = one;
  t.equal(describe(one), 'Error < Error < Error < Error');
});
