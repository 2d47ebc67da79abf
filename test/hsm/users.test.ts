/** A crypto user of the HSM for each role, on a strict token with CloudHSM's manners: what each can do with the keys that were shared with it, and what not (docs/hsm-users.md). */
import t, { type Test } from 'tap';
import { runCeremony } from '../../hsm/ceremony.ts';
import { labels, openKeyring, type Custody, type Keyring, type KeyringOptions, type KeyUse } from '../../hsm/keyring.ts';
import { CKO, CKU, findOne, findSlot, initialize, openSession, type SessionRef } from '../../hsm/pkcs11.ts';
import { hsmError } from './hsm-error.ts';
import { memoryStore, planFor } from './hsms.ts';
import type { MemoryStore } from './memory-store.ts';
import { receipt } from './receipt.ts';
import { StrictHsm, StrictToken } from './strict-token.ts';

const users = { custodian: 'one', tokenize: 'two', detokenize: 'three', admin: 'four' } as const;
type User = keyof typeof users;
const digits = Buffer.from('4111111111111111');
const binding = { tenant: 'acme', cardId: Buffer.alloc(16, 7) };

/** A way of its own to the HSM: that of another host. */
function tokenOf(t: Test, hsm: StrictHsm): StrictToken {
  const token = new StrictToken({ hsm });
  t.teardown(() => {
    if (token.violations.length > 0) throw new Error(token.violations.join('; '));
  });
  return token;
}

const pinOf = (user: User): Buffer => Buffer.from(`${user}:${users[user]}`);

/** An HSM after the ceremony, which the custodian held, with its keys shared as docs/hsm-users.md says. Acme's hosts have nothing of globex. */
async function sharedHsm(t: Test): Promise<StrictHsm> {
  const hsm = new StrictHsm(users);
  await runCeremony(planFor('/nowhere/strict.so', 'cofre-test', 'ecdsa-p256'), { pin: pinOf('custodian'), now: () => new Date(), module: tokenOf(t, hsm) });
  for (const user of ['tokenize', 'detokenize', 'admin'] as const) for (const label of [labels.control, labels.logSigning]) hsm.share('custodian', label, user);
  for (const user of ['tokenize', 'detokenize'] as const) hsm.share('custodian', labels.domain('acme'), user);
  return hsm;
}

interface Asked {
  readonly uses: readonly KeyUse[];
  readonly tenants: readonly string[];
  readonly custody?: Custody;
}

async function keyringAs(t: Test, hsm: StrictHsm, user: User, store: MemoryStore, { uses, tenants, custody = 'envelope' }: Asked): Promise<Keyring> {
  const options: KeyringOptions = { modulePath: '/nowhere/strict.so', module: tokenOf(t, hsm), tokenLabel: 'cofre-test', pin: pinOf(user), custody, tenants: new Map(tenants.map((tenant) => [tenant, tenant])), store, now: () => new Date(), maxAwayMs: 60_000, uses };
  const keyring = await openKeyring(options);
  t.teardown(() => keyring.close());
  return keyring;
}

function sessionAs(t: Test, hsm: StrictHsm, user: User): SessionRef {
  const module = tokenOf(t, hsm);
  initialize(module);
  const handle = openSession(module, findSlot(module, 'cofre-test'));
  module.C_Login(handle, CKU.USER, pinOf(user).toString());
  return { module, handle };
}

t.test('each role does its work with what was shared with its user', async (t) => {
  const hsm = await sharedHsm(t);
  const store = memoryStore(t);
  const tokenizing = await keyringAs(t, hsm, 'tokenize', store, { uses: ['seal', 'sign-log'], tenants: ['acme'] });
  const detokenizing = await keyringAs(t, hsm, 'detokenize', store, { uses: ['open', 'sign-log'], tenants: ['acme'] });
  const sealed = await tokenizing.forTenant('acme').cipher.seal('pan', digits, binding);
  t.same(await detokenizing.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding), digits);
  await t.rejects(async () => tokenizing.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding), hsmError('refused'), 'nor does the process open, but that is its code and not its user');
  const admin = await keyringAs(t, hsm, 'admin', store, { uses: ['sign-log'], tenants: [] });
  t.equal((await admin.logSigner.sign(Buffer.from('a checkpoint'))).length > 0, true);
});

t.test('what was not shared with a user is not there for it', async (t) => {
  const hsm = await sharedHsm(t);
  const absent = hsmError('not_found');
  for (const [user, asked, what] of [
    ['tokenize', { uses: ['seal', 'sign-log'], tenants: ['globex'] }, "another domain's key"],
    ['detokenize', { uses: ['open', 'sign-log'], tenants: ['acme', 'globex'] }, "another domain's key, beside its own"],
    ['admin', { uses: ['sign-log'], tenants: ['acme'] }, 'any domain key, for the admin and sequencing hosts'],
    ['tokenize', { uses: ['seal', 'sign-evidence'], tenants: ['acme'] }, 'the key that signs evidence'],
    ['detokenize', { uses: ['open', 'sign-evidence'], tenants: ['acme'] }, 'nor for the other'],
  ] as const) await t.rejects(keyringAs(t, hsm, user, memoryStore(t), asked), absent, `${user}: ${what}`);
  // With whatever else he has on that host: nor by a look at all that is there.
  for (const user of ['tokenize', 'detokenize', 'admin'] as const) {
    const session = sessionAs(t, hsm, user);
    t.throws(() => findOne(session, CKO.SECRET_KEY, labels.domain('globex')), absent, user);
    t.throws(() => findOne(session, CKO.PRIVATE_KEY, labels.evidenceSigning), absent, user);
  }
});

t.test('a user cannot destroy what was shared with it, and another user of the wrong password is nobody', async (t) => {
  const hsm = await sharedHsm(t);
  const session = sessionAs(t, hsm, 'tokenize');
  const key = findOne(session, CKO.SECRET_KEY, labels.domain('acme'));
  t.throws(() => session.module.C_DestroyObject(session.handle, key), { message: 'CKR_KEY_FUNCTION_NOT_PERMITTED' });
  const token = new StrictToken({ hsm });
  initialize(token);
  const handle = openSession(token, findSlot(token, 'cofre-test'));
  for (const pin of ['detokenize:two', 'two', ':two', 'nobody:two', 'tokenize:']) t.throws(() => token.C_Login(handle, CKU.USER, pin), { message: /CKR_PIN_(INCORRECT|LOCKED)/u }, pin);
});

t.test('in direct custody a new key is there for the user that made it alone, until it is shared', async (t) => {
  const hsm = await sharedHsm(t);
  const store = memoryStore(t);
  const tokenizing = await keyringAs(t, hsm, 'tokenize', store, { custody: 'direct', uses: ['seal', 'sign-log'], tenants: ['acme'] });
  const sealed = await tokenizing.forTenant('acme').cipher.seal('pan', digits, binding);
  const opening = { custody: 'direct', uses: ['open', 'sign-log'], tenants: ['acme'] } as const;
  await t.rejects(keyringAs(t, hsm, 'detokenize', store, opening), hsmError('not_found'));
  for (const object of hsm.objects) if (object.owner === 'tokenize') object.sharedWith.add('detokenize');
  const detokenizing = await keyringAs(t, hsm, 'detokenize', store, opening);
  t.same(await detokenizing.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding), digits);
});
