import { createHash, createPublicKey } from 'node:crypto';
import { inspect } from 'node:util';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { CeremonyError, parseCeremonyPlan, plannedKeys, runCeremony } from '../../hsm/ceremony.ts';
import type { CeremonyPlan } from '../../hsm/ceremony.ts';
import { labels } from '../../hsm/keyring.ts';
import { CKA, CKK, CKM, CKO, findAll, findOne, generateAesKey, generateSigningKeyPair, initialize } from '../../hsm/pkcs11.ts';
import type { Attribute, SessionRef } from '../../hsm/pkcs11.ts';
import { softHsmPath, softToken } from '../support/softhsm.ts';
import { bareHsm, hsmOf, keyringOf, memoryStore, planFor, rawSession, softKind, strictKind } from './hsms.ts';
import type { Hsm } from './hsms.ts';

const now = (): Date => new Date(1_790_000_000_000);

const file = {
  ceremony: 'cofre/v1',
  purpose: 'production',
  token: { module: '/opt/cloudhsm/lib/libcloudhsm_pkcs11.so', label: 'hsm1', initialize: false },
  domains: ['acme', 'globex'],
  keys: { domain: 'aes-256', control: 'hmac-sha-256', log_signing: 'ecdsa-p256', evidence_signing: 'ecdsa-p256' },
  witnesses: ['Ana Souza', 'Rui Lima'],
};

function planOf(hsm: Hsm): CeremonyPlan {
  return planFor(hsm.modulePath, hsm.tokenLabel, hsm.signing);
}

async function caught(work: Promise<unknown>): Promise<CeremonyError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof CeremonyError) return error;
    throw error;
  }
  throw new Error('the ceremony was held');
}

t.test('a plan is taken as it was reviewed, and nothing beside it', (t) => {
  t.strictSame(parseCeremonyPlan(file), file);
  const wrong: [string, unknown][] = [
    ['the file: must be a mapping', null],
    ['the file: lacks the key witnesses', omit('witnesses')],
    ['the file: has an unknown key, "notes"', { ...file, notes: '' }],
    ['ceremony: must be cofre/v1', { ...file, ceremony: 'cofre/v2' }],
    ['purpose: must be production or development', { ...file, purpose: 'test' }],
    ['token.module: is not a valid text', { ...file, token: { ...file.token, module: 'lib.so' } }],
    ['token.label: is not a valid text', { ...file, token: { ...file.token, label: 'x'.repeat(33) } }],
    ['token.initialize: must be true or false', { ...file, token: { ...file.token, initialize: 'no' } }],
    ['token.initialize: only a development plan may initialize a token', { ...file, token: { ...file.token, initialize: true } }],
    ['domains: must be a list', { ...file, domains: 'acme' }],
    ['domains: name at least one', { ...file, domains: [] }],
    ['domains: one stands there twice', { ...file, domains: ['acme', 'acme'] }],
    ['domains[1]: is not a valid text', { ...file, domains: ['acme', 'Acme/../x'] }],
    ['keys.domain: must be aes-256', { ...file, keys: { ...file.keys, domain: 'aes-128' } }],
    ['keys.log_signing: must be ed25519 or ecdsa-p256', { ...file, keys: { ...file.keys, log_signing: 'rsa' } }],
    ['keys: lacks the key control', { ...file, keys: { domain: 'aes-256', log_signing: 'ed25519', evidence_signing: 'ed25519' } }],
    ['witnesses: a production ceremony has two different ones or more', { ...file, witnesses: ['Ana Souza', ' ana souza '] }],
  ];
  for (const [message, value] of wrong) t.throws(() => parseCeremonyPlan(value), { name: 'CeremonyError', message });
  t.end();

  function omit(key: string): Record<string, unknown> {
    return Object.fromEntries(Object.entries(file).filter(([name]) => name !== key));
  }
});

for (const kind of [softKind, strictKind] as const) {
  t.test(`a ceremony on ${kind}`, async (t) => {
    const hsm = bareHsm(t, kind);
    const plan = planOf(hsm);
    const options = { pin: hsm.pin, now, module: hsm.module };

    await t.test('makes every key of the plan and reports each as it was read back', async (t) => {
      const report = await runCeremony(plan, options);
      t.strictSame(
        report.keys.map(({ label, type }) => ({ label, type })),
        plannedKeys(plan),
      );
      t.strictSame(
        report.keys.map(({ label }) => label),
        [labels.control, 'cofre/domain/acme/v1', 'cofre/domain/globex/v1', labels.logSigning, labels.evidenceSigning],
      );
      for (const key of report.keys) t.match(key, { made: 'now', sensitive: true, extractable: false, neverExtractable: true, alwaysSensitive: true, local: true });
      t.match(report, { at: now().toISOString(), witnesses: ['a test'], purpose: 'development', planSha256: /^[0-9a-f]{64}$/, token: { label: hsm.tokenLabel, initialized: false } });
      for (const key of report.keys.slice(3)) {
        const spki = Buffer.from(key.publicKey!.spki, 'base64');
        t.equal(createPublicKey({ key: spki, format: 'der', type: 'spki' }).asymmetricKeyType, key.type === 'ed25519' ? 'ed25519' : 'ec');
        t.equal(createHash('sha256').update(spki).digest('hex'), key.publicKey!.sha256);
      }
      t.notOk(inspect(report, { depth: 9 }).includes('test-pin'));
    });

    await t.test('a second one refuses and makes nothing', async (t) => {
      const keys = hsm.strict?.keyCount();
      const refused = await caught(runCeremony(plan, options));
      t.match(refused.message, /holds every key of this plan already: there is nothing to do/);
      t.strictSame(refused.missing, []);
      t.equal(hsm.strict?.keyCount(), keys);
    });

    await t.test('what it made opens a keyring whose signers are those of the report', async (t) => {
      const keyring = await keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t) });
      const report = await runCeremony(plan, { ...options, resume: true });
      t.ok(report.keys.every(({ made }) => made === 'before'));
      t.equal(report.keys[3]!.publicKey!.spki, keyring.logSigner.publicKeySpki.toString('base64'));
    });
  });
}

t.test('a label that is taken in any object class stops the ceremony before it makes anything', async (t) => {
  const hsm = bareHsm(t, softKind);
  const session = rawSession(hsm);
  t.teardown(() => session.close());
  generateSigningKeyPair(session, 'ecdsa-p256', labels.domain('globex'));
  const refused = await caught(runCeremony(planOf(hsm), { pin: hsm.pin, now, module: hsm.module }));
  t.strictSame(refused.existing, [labels.domain('globex')]);
  t.equal(refused.missing.length, 4);
  t.match(refused.message, /holds cofre\/domain\/globex\/v1 and lacks cofre\/control\/v1,/);
  t.equal(findAll(session, CKO.SECRET_KEY, labels.control).length, 0);
});

for (let at = 0; at < 3; at++) {
  for (const done of [false, true]) {
    t.test(`a ceremony that fails at secret key ${at + 1}, ${done ? 'after' : 'before'} making it, says what there is; resume completes it and keeps what was made`, async (t) => {
      const hsm = bareHsm(t, strictKind);
      const strict = hsm.strict!;
      const generate = strict.C_GenerateKey.bind(strict);
      let count = 0;
      strict.C_GenerateKey = (...args) => {
        if (count++ === at) strict.failNext('C_GenerateKey', 'DEVICE_ERROR', done);
        return generate(...args);
      };
      const plan = planOf(hsm);
      const options = { pin: hsm.pin, now, module: hsm.module };
      const stopped = await caught(runCeremony(plan, options));
      const made = plannedKeys(plan)
        .slice(0, at + (done ? 1 : 0))
        .map(({ label }) => label);
      t.strictSame(stopped.existing, made);
      t.match(stopped.message, `stopped at ${plannedKeys(plan)[at]!.label}`);
      if (made.length > 0) t.match((await caught(runCeremony(plan, options))).message, /half-finished/);
      const report = await runCeremony(plan, { ...options, resume: true });
      t.strictSame(
        report.keys.filter((key) => key.made === 'before').map(({ label }) => label),
        made,
      );
      t.equal(strict.labels().length, 7);
    });
  }
}

t.test('resume takes away a public key without its private half and makes the pair anew', async (t) => {
  const hsm = bareHsm(t, softKind);
  const session = rawSession(hsm);
  t.teardown(() => session.close());
  const pair = generateSigningKeyPair(session, 'ed25519', labels.logSigning);
  hsm.module.C_DestroyObject(session.handle, pair.privateKey);
  const report = await runCeremony(planOf(hsm), { pin: hsm.pin, now, module: hsm.module, resume: true });
  t.ok(report.keys.every(({ made }) => made === 'now'));
  t.ok(findOne(session, CKO.PUBLIC_KEY, labels.logSigning));
});

t.test('resume refuses a key of the right label and the wrong kind', async (t) => {
  const hsm = bareHsm(t, softKind);
  const session = rawSession(hsm);
  t.teardown(() => session.close());
  generateAesKey(session, labels.control);
  const stopped = await caught(runCeremony(planOf(hsm), { pin: hsm.pin, now, module: hsm.module, resume: true }));
  t.match(stopped.message, /stopped at cofre\/control\/v1: a key has the wrong type or size/);
});

t.test('resume refuses a key that can be read out of the token, was brought into it, or has the public half of another', async (t) => {
  const template = (sensitive: boolean, extractable: boolean): Attribute[] => [
    { type: CKA.CLASS, value: CKO.SECRET_KEY },
    { type: CKA.KEY_TYPE, value: CKK.GENERIC_SECRET },
    { type: CKA.TOKEN, value: true },
    { type: CKA.SENSITIVE, value: sensitive },
    { type: CKA.EXTRACTABLE, value: extractable },
    { type: CKA.SIGN, value: true },
    { type: CKA.LABEL, value: labels.control },
  ];
  const generate = (session: SessionRef, sensitive: boolean, extractable: boolean): unknown =>
    session.module.C_GenerateKey(session.handle, { mechanism: CKM.GENERIC_SECRET_KEY_GEN }, [...template(sensitive, extractable), { type: CKA.VALUE_LEN, value: 32 }]);
  // Not among the calls that the product makes: nobody brings a key in by it.
  const bringIn = ({ module, handle }: SessionRef): unknown =>
    (module as unknown as { C_CreateObject(session: Buffer, template: Attribute[]): Buffer }).C_CreateObject(handle, [...template(true, false), { type: 0x11 /* CKA_VALUE */, value: Buffer.alloc(32, 7) }]);
  const mixPairs = (session: SessionRef): void => {
    const [one, other] = [generateSigningKeyPair(session, 'ed25519', labels.logSigning), generateSigningKeyPair(session, 'ed25519', labels.logSigning)];
    session.module.C_DestroyObject(session.handle, one.publicKey);
    session.module.C_DestroyObject(session.handle, other.privateKey);
  };
  const table: readonly (readonly [string, (session: SessionRef) => unknown, RegExp])[] = [
    ['not sensitive', (session) => generate(session, false, false), /stopped at cofre\/control\/v1: a key is not kept on the token, or could be read out of it/],
    ['extractable', (session) => generate(session, true, true), /stopped at cofre\/control\/v1: a key is not kept on the token, or could be read out of it/],
    ['brought in', bringIn, /stopped at cofre\/control\/v1: a key has not always been inside the token/],
    ['of two pairs', mixPairs, /stopped at cofre\/sign\/log\/v1: a signing key and its public key do not belong together/],
  ];
  for (const [what, plant, message] of table) {
    const hsm = bareHsm(t, softKind);
    const session = rawSession(hsm);
    plant(session);
    const stopped = await caught(runCeremony(planOf(hsm), { pin: hsm.pin, now, module: hsm.module, resume: true }));
    t.match(stopped.message, message, what);
    session.close();
  }
});

t.test('a production ceremony is never resumed', async (t) => {
  const hsm = bareHsm(t, strictKind);
  const plan: CeremonyPlan = { ...planOf(hsm), purpose: 'production', witnesses: ['Ana Souza', 'Rui Lima'] };
  const refused = await caught(runCeremony(plan, { pin: hsm.pin, now, module: hsm.module, resume: true }));
  t.match(refused.message, /resume is for development/);
  t.equal((await runCeremony(plan, { pin: hsm.pin, now, module: hsm.module })).keys.length, 5);
  t.equal(hsm.strict!.keyCount(), 7);
});

t.test('an algorithm that the token lacks stops the ceremony before it makes anything', async (t) => {
  const hsm = bareHsm(t, strictKind);
  const refused = await caught(runCeremony(planFor(hsm.modulePath, hsm.tokenLabel, 'ed25519'), { pin: hsm.pin, now, module: hsm.module }));
  t.match(refused.message, /cannot make cofre\/sign\/log\/v1 as ed25519/);
  t.equal(hsm.strict!.keyCount(), 0);
});

t.test('a plan that was not parsed is held to the same rules', async (t) => {
  const hsm = await hsmOf(t, strictKind);
  const plan = { ...planOf(hsm), domains: ['../x'] };
  t.match((await caught(runCeremony(plan, { pin: hsm.pin, now, module: hsm.module }))).message, /domains\[0\]/);
});

t.test('a development plan initializes an empty SoftHSM2 and then holds the ceremony', async (t) => {
  const first = softToken(t, 'other-token');
  const folder = mkdtempSync(join(tmpdir(), 'cofre-softhsm-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  mkdirSync(join(folder, 'tokens'), { mode: 0o700 });
  writeFileSync(join(folder, 'softhsm2.conf'), `directories.tokendir = ${join(folder, 'tokens')}\nobjectstore.backend = file\nlog.level = ERROR\n`);
  process.env['SOFTHSM2_CONF'] = join(folder, 'softhsm2.conf');
  first.module.C_Finalize();
  const plan = parseCeremonyPlan({ ...file, purpose: 'development', token: { module: softHsmPath(), label: 'cofre-dev', initialize: true }, witnesses: [] });
  const pin = Buffer.from('dev-pin');
  t.match((await caught(runCeremony(plan, { pin, now }))).message, /needs the security officer PIN/);
  const report = await runCeremony(plan, { pin, soPin: Buffer.from('dev-so-pin'), now });
  t.equal(report.token.initialized, true);
  t.equal(report.token.manufacturer, 'SoftHSM project');
  t.equal(report.keys.length, 5);
  // Again: the token is there, so are its keys, and neither is touched.
  t.match((await caught(runCeremony(plan, { pin, soPin: Buffer.from('dev-so-pin'), now }))).message, /every key/);
  initialize(first.module);
});

t.test('a token of another maker is never initialized', async (t) => {
  const hsm = bareHsm(t, strictKind);
  const plan = parseCeremonyPlan({ ...planOf(hsm), token: { module: hsm.modulePath, label: 'new', initialize: true } });
  t.match((await caught(runCeremony(plan, { pin: hsm.pin, soPin: hsm.pin, now, module: hsm.module }))).message, /no free SoftHSM2 slot/);
});
