import { fork } from 'node:child_process';
import { once } from 'node:events';
import { renameSync } from 'node:fs';
import t from 'tap';
import type { Test } from 'tap';
import type { Keyring } from '../../hsm/keyring.ts';
import { findSlot } from '../../hsm/pkcs11.ts';
import type { CKR } from '../../hsm/pkcs11.ts';
import { SessionPool } from '../../hsm/session-pool.ts';
import { hsmError } from './hsm-error.ts';
import { custodies, hsmOf, keyringOf, memoryStore, softKind, strictKind } from './hsms.ts';
import type { Hsm } from './hsms.ts';
import { receipt } from './receipt.ts';
import type { StrictToken } from './strict-token.ts';

const digits = Buffer.from('4111111111111111');
const binding = { tenant: 'acme', cardId: Buffer.alloc(16, 7) };
// Never waits between attempts, and never probes by itself: each test says when.
const eager = { recoveryPauseMs: 0, probeMs: 3_600_000 };

/** Every kind of operation once; throws whatever one of them throws. */
async function exercise(t: Test, keyring: Keyring): Promise<void> {
  const { cipher, fingerprint } = keyring.forTenant('acme');
  t.same(await cipher.open(receipt(), 'pan', await cipher.seal('pan', digits, binding), binding), digits);
  t.equal((await fingerprint.compute('acme', digits)).length, 32);
  t.equal((await keyring.control.mac(digits)).length, 32);
  t.ok((await keyring.logSigner.sign(digits)).length >= 64);
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}

async function strictOf(t: Test): Promise<{ hsm: Hsm; strict: StrictToken }> {
  const hsm = await hsmOf(t, strictKind);
  return { hsm, strict: hsm.strict! };
}

for (const kind of [softKind, strictKind] as const) {
  for (const custody of custodies) {
    t.test(`a keyring on ${kind} in ${custody} custody`, async (t) => {
      const hsm = await hsmOf(t, kind);
      const keyring = await keyringOf(t, hsm, { custody, store: memoryStore(t), sessions: eager });

      await t.test('goes on after all its sessions were closed behind its back', async (t) => {
        hsm.module.C_CloseAllSessions(findSlot(hsm.module, hsm.tokenLabel));
        await exercise(t, keyring);
      });

      await t.test('goes on after the library was finalized', async (t) => {
        hsm.module.C_Finalize();
        await exercise(t, keyring);
      });

      await t.test('goes on after the library was finalized and initialized again', async (t) => {
        hsm.module.C_Finalize();
        hsm.module.C_Initialize({ flags: 2 });
        await exercise(t, keyring);
      });

      await t.test('recovers once for many callers that lose their sessions together', async (t) => {
        hsm.module.C_CloseAllSessions(findSlot(hsm.module, hsm.tokenLabel));
        const before = hsm.strict?.calls.get('C_Login') ?? 0;
        await Promise.all(Array.from({ length: 40 }, () => keyring.control.mac(digits)));
        if (hsm.strict !== null) t.equal(hsm.strict.calls.get('C_Login')! - before, 1);
        t.equal(keyring.health().ok, true);
      });

      await t.test('refuses while the token is away and works when it is back', async (t) => {
        setAway(hsm, true);
        await t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
        t.match(keyring.health(), { ok: false });
        await t.rejects(Promise.all(Array.from({ length: 20 }, () => keyring.logSigner.sign(digits))), hsmError('unavailable'));
        setAway(hsm, false);
        await exercise(t, keyring);
        t.match(keyring.health(), { ok: true, awayMs: 0 });
      });
    });
  }
}

function setAway(hsm: Hsm, away: boolean): void {
  if (hsm.soft !== null) {
    const elsewhere = `${hsm.soft.tokens}.away`;
    if (away) renameSync(hsm.soft.tokens, elsewhere);
    else renameSync(elsewhere, hsm.soft.tokens);
  } else if (away) hsm.strict!.goAway();
  else hsm.strict!.comeBack();
}

t.test('envelope custody seals, opens and fingerprints while the HSM is away, for as long as it may and no longer', async (t) => {
  const { hsm, strict } = await strictOf(t);
  let nowMs = Date.now();
  let monotonicMs = 5;
  const keyring = await keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t), sessions: eager, now: () => new Date(nowMs), monotonicMs: () => monotonicMs, maxAwayMs: 10_000 });
  const { cipher, fingerprint } = keyring.forTenant('acme');
  const sealed = await cipher.seal('pan', digits, binding);
  strict.goAway();
  await t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
  const since = keyring.health().since;
  // A clock on the wall that is set, back or forth, is not asked.
  nowMs -= 3_600_000;
  monotonicMs += 10_000;
  t.same(await cipher.open(receipt(), 'pan', await cipher.seal('pan', digits, binding), binding), digits);
  t.same(keyring.health(), { ok: false, since, awayMs: 10_000 });
  nowMs += 7_200_000;
  t.same(await cipher.open(receipt(), 'pan', await cipher.seal('pan', digits, binding), binding), digits);
  monotonicMs += 1;
  nowMs -= 7_200_000;
  t.throws(() => cipher.seal('pan', digits, binding), hsmError('unavailable'));
  t.throws(() => cipher.open(receipt(), 'pan', sealed, binding), hsmError('unavailable'));
  t.throws(() => fingerprint.compute('acme', digits), hsmError('unavailable'));
  strict.comeBack();
  await keyring.control.mac(digits);
  t.same(await cipher.open(receipt(), 'pan', sealed, binding), digits);
  t.equal(keyring.health().since.getTime(), nowMs);
});

t.test('the probe notices by itself that the HSM went away and came back', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const keyring = await keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t), sessions: { recoveryPauseMs: 0, probeMs: 2 } });
  strict.goAway();
  await until(() => !keyring.health().ok);
  strict.comeBack();
  await until(() => keyring.health().ok);
  // Sessions that are lost and found again between two probes were never away.
  strict.loseSessions();
  await exercise(t, keyring);
});

const lostCodes = [
  'DEVICE_ERROR',
  'DEVICE_REMOVED',
  'SESSION_HANDLE_INVALID',
  'SESSION_CLOSED',
  'TOKEN_NOT_PRESENT',
  'USER_NOT_LOGGED_IN',
  'KEY_HANDLE_INVALID',
  'OBJECT_HANDLE_INVALID',
  'CRYPTOKI_NOT_INITIALIZED',
  'OPERATION_ACTIVE',
  'GENERAL_ERROR',
  'FUNCTION_FAILED',
] as const satisfies (keyof typeof CKR)[];
const calls = ['C_OpenSession', 'C_EncryptInit', 'C_EncryptAsync', 'C_DecryptInit', 'C_DecryptAsync', 'C_SignInit', 'C_SignAsync'] as const;

for (const rv of lostCodes) {
  t.test(`one ${rv} from any call, done or not done, is survived without the caller noticing`, async (t) => {
    const { hsm, strict } = await strictOf(t);
    // One session, opened anew after each failure, so that C_OpenSession is called as well.
    const keyring = await keyringOf(t, hsm, { custody: 'direct', store: memoryStore(t), sessions: { ...eager, size: 1 } });
    for (const call of calls) {
      for (const done of [false, true]) {
        if (call === 'C_OpenSession') {
          if (done) continue;
          strict.loseSessions();
        }
        strict.failNext(call, rv, done);
        await exercise(t, keyring);
      }
    }
    t.equal(keyring.health().ok, true);
  });
}

t.test('a call that fails on a token that is well is refused, and its session is not used again', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store: memoryStore(t), sessions: { ...eager, size: 1 } });
  strict.failNext('C_SignAsync', 'KEY_FUNCTION_NOT_PERMITTED');
  await t.rejects(keyring.control.mac(digits), hsmError('refused'));
  await exercise(t, keyring);
});

t.test('a general error that stays while the token is well means a value that does not authenticate, and nothing else', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store: memoryStore(t), sessions: { ...eager, size: 1 } });
  const { cipher } = keyring.forTenant('acme');
  const sealed = await cipher.seal('pan', digits, binding);
  for (const [call, kind] of [
    ['C_DecryptAsync', 'corrupt'],
    ['C_EncryptAsync', 'refused'],
  ] as const) {
    for (let n = 0; n < 2; n++) strict.failNext(call, 'GENERAL_ERROR');
    await t.rejects(async () => (call === 'C_DecryptAsync' ? cipher.open(receipt(), 'pan', sealed, binding) : cipher.seal('pan', digits, binding)), hsmError(kind));
    t.equal(keyring.health().ok, true);
  }
});

t.test('a key that was made although the call failed is destroyed, and the next attempt makes one of its own', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const store = memoryStore(t);
  const before = strict.keyCount();
  strict.failNext('C_GenerateKey', 'DEVICE_ERROR', true);
  await t.rejects(keyringOf(t, hsm, { custody: 'direct', store, sessions: eager }), hsmError('unavailable'));
  t.equal(strict.keyCount() - before, 0);
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store, sessions: eager });
  t.equal(strict.keyCount() - before, 4);
  await exercise(t, keyring);
});

t.test('handles are looked up once, and again only after a loss', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store: memoryStore(t), sessions: eager });
  await exercise(t, keyring);
  const searches = strict.calls.get('C_FindObjectsInit');
  for (let n = 0; n < 20; n++) await exercise(t, keyring);
  t.equal(strict.calls.get('C_FindObjectsInit'), searches);
  strict.loseSessions();
  await exercise(t, keyring);
  t.ok(strict.calls.get('C_FindObjectsInit')! > searches!);
});

t.test('hundreds of callers share a bounded number of sessions', async (t) => {
  const hsm = await hsmOf(t, strictKind, { maxSessions: 5 });
  // Three for operations, one that keeps the login, one for the probe.
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store: memoryStore(t), sessions: { ...eager, size: 3 } });
  const { cipher } = keyring.forTenant('acme');
  const sealed = await Promise.all(Array.from({ length: 300 }, async () => cipher.seal('pan', digits, binding)));
  const opened = await Promise.all(sealed.map(async (value) => cipher.open(receipt(), 'pan', value, binding)));
  for (const plaintext of opened) if (!plaintext.equals(digits)) t.fail();
  t.equal(new Set(sealed.map((value) => value.toString('hex', 5, 17))).size, 300);
});

t.test('a call that never returns is given up, its session retired, and the place is free once it ends', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store: memoryStore(t), sessions: { ...eager, size: 4, callMs: 20 } });
  const release = strict.hangNext('C_SignAsync');
  await t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
  t.equal(keyring.health().ok, false);
  // The others go on: one hung call does not take the pool down.
  await keyring.control.mac(digits);
  const second = strict.hangNext('C_SignAsync');
  await t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
  // Two of four hang: no more are risked, without waiting for any deadline.
  const asked = strict.calls.get('C_SignInit');
  await t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
  t.equal(strict.calls.get('C_SignInit'), asked);
  release();
  second();
  await new Promise((resolve) => setTimeout(resolve, 5));
  await exercise(t, keyring);
});

t.test('what a call gives when it has been given up is wiped', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const pool = await SessionPool.open({ module: strict, tokenLabel: hsm.tokenLabel, pin: hsm.pin, probe: async () => undefined, now: () => new Date(), ...eager, callMs: 20 });
  t.teardown(() => pool.close());
  const late = Promise.withResolvers<Buffer>();
  await t.rejects(pool.run('sign', () => late.promise), hsmError('unavailable'));
  const bytes = Buffer.from(digits);
  late.resolve(bytes);
  await new Promise((resolve) => setImmediate(resolve));
  t.same(bytes, Buffer.alloc(digits.length));
  t.same(await pool.run('sign', async () => Buffer.from(digits)), digits, 'and what comes in time is not');
});

t.test('how long each call took is told by its name, also of one that failed, was repeated or did not come, and without the wait for a session', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const told: { operation: string; durationMs: number }[] = [];
  const pool = await SessionPool.open({ module: strict, tokenLabel: hsm.tokenLabel, pin: hsm.pin, probe: async () => undefined, now: () => new Date(), ...eager, size: 1, callMs: 50, observe: (operation, durationMs) => told.push({ operation, durationMs }) });
  t.teardown(() => pool.close());
  t.same(told.splice(0).map(({ operation }) => operation), ['log_in', 'probe']);
  const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
  await Promise.all([pool.run('encrypt', () => pause(30)), pool.run('hmac', async () => undefined)]);
  t.same(told.map(({ operation }) => operation), ['encrypt', 'hmac']);
  t.ok(told[0]!.durationMs >= 29 && told[1]!.durationMs < 25, told.map(({ durationMs }) => durationMs).join());
  told.length = 0;
  await t.rejects(pool.run('make', () => { throw Object.assign(new Error(), { code: 0x68 }); }), hsmError('refused'));
  await t.rejects(pool.run('sign', () => pause(100)), hsmError('unavailable'));
  t.same(told.map(({ operation }) => operation), ['make', 'sign']);
  t.ok(told[1]!.durationMs < 99);
  await pause(100);
});

t.test('whoever finds no free session in time is told so', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store: memoryStore(t), sessions: { ...eager, size: 1, waitMs: 5, callMs: 60_000 } });
  const release = strict.hangNext('C_SignAsync');
  const slow = keyring.control.mac(digits);
  await t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
  release();
  t.equal((await slow).length, 32);
  await exercise(t, keyring);
});

t.test('closing waits for the call under way and turns away those that wait', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store: memoryStore(t), sessions: { ...eager, size: 1 } });
  const release = strict.hangNext('C_SignAsync');
  const slow = keyring.control.mac(digits);
  const turnedAway = t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
  await new Promise((resolve) => setImmediate(resolve));
  let done = false;
  const closed = keyring.close().finally(() => (done = true));
  await turnedAway;
  await new Promise((resolve) => setImmediate(resolve));
  t.notOk(done, 'it waits');
  release();
  t.equal((await slow).length, 32);
  await closed;
});

for (const [when, callMs] of [['in time', 5_000], ['only after nobody waits any more', 20]] as const) {
  t.test(`closing while a recovery asks for the PIN, which comes ${when}, leaves no library that is initialized or logged in`, async (t) => {
    const { hsm, strict } = await strictOf(t);
    const answers: PromiseWithResolvers<Buffer>[] = [];
    let ask = (): Promise<Buffer> | Buffer => Buffer.from(hsm.pin);
    const pool = await SessionPool.open({ module: strict, tokenLabel: hsm.tokenLabel, pin: () => ask(), probe: async () => undefined, now: () => new Date(), recoveryPauseMs: 0, probeMs: 2, callMs });
    ask = () => {
      const answer = Promise.withResolvers<Buffer>();
      answers.push(answer);
      return answer.promise;
    };
    // Noticed by the probe: no operation is under way that closing would wait for.
    strict.loseSessions();
    strict.failNext('C_OpenSession', 'SESSION_HANDLE_INVALID');
    await until(() => answers.length === 1);
    let done = false;
    const closed = pool.close().finally(() => (done = true));
    if (callMs === 20) {
      await closed;
      t.ok(strict.initialized, 'whom the recovery still needs');
    } else await new Promise((resolve) => setTimeout(resolve, 20));
    t.equal(done, callMs === 20);
    const late = Buffer.from(hsm.pin);
    answers[0]!.resolve(late);
    await closed;
    await until(() => !strict.initialized);
    await new Promise((resolve) => setTimeout(resolve, 20));
    t.notOk(strict.initialized || strict.loggedIn);
    t.equal(strict.openSessions, 0);
    t.equal(answers.length, 1, 'nor is it asked for again');
    t.same(late, Buffer.alloc(late.length), 'and is wiped');
  });
}

t.test('a library with a call that hangs is not finalized for the sake of a recovery', async (t) => {
  const { hsm, strict } = await strictOf(t);
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store: memoryStore(t), sessions: { ...eager, size: 4, callMs: 20 } });
  const release = strict.hangNext('C_SignAsync');
  await t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
  strict.goAway();
  const finalized = strict.calls.get('C_Finalize');
  await t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
  t.equal(strict.calls.get('C_Finalize'), finalized, 'it could crash the process');
  strict.comeBack();
  release();
  await exercise(t, keyring);
});

t.test('a PIN that was changed while the HSM was away is tried once, not until the token locks it', async (t) => {
  const { hsm, strict } = await strictOf(t);
  let answer = 'test-pin';
  const keyring = await keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t), sessions: eager, pin: () => Buffer.from(answer) });
  answer = 'changed';
  strict.loseSessions();
  for (let n = 0; n < 10; n++) await t.rejects(keyring.control.mac(digits), hsmError('refused'));
  t.equal(strict.wrongPins, 1);
});

t.test('two keyrings in one process survive that one of them closes, or recovers the library', async (t) => {
  for (const kind of [softKind, strictKind] as const) {
    const hsm = await hsmOf(t, kind);
    const store = memoryStore(t);
    const first = await keyringOf(t, hsm, { custody: 'direct', store, sessions: eager });
    const second = await keyringOf(t, hsm, { custody: 'direct', store, sessions: eager });
    setAway(hsm, true);
    await t.rejects(first.control.mac(digits), hsmError('unavailable'));
    setAway(hsm, false);
    await Promise.all([exercise(t, first), exercise(t, second)]);
    await first.close();
    await exercise(t, second);
    await second.close();
  }
});

t.test('a start finds its token while another process logs in, which rewrites the token\'s file each time', async (t) => {
  const hsm = await hsmOf(t, softKind);
  const other = fork(new URL('login-loop.ts', import.meta.url), [hsm.modulePath, hsm.tokenLabel, hsm.pin.toString('utf8')]);
  t.teardown(() => void other.kill('SIGKILL'));
  await once(other, 'message');
  for (let start = 0; start < 60; start += 1) {
    const keyring = await keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t), sessions: eager });
    await exercise(t, keyring);
    await keyring.close();
  }
});
