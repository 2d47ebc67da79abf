import pkcs11js from 'pkcs11js';
import t from 'tap';
import {
  CKA,
  CKF,
  CKK,
  CKM,
  CKO,
  CKR,
  CKU,
  decryptGcm,
  encryptGcm,
  faultOf,
  findOne,
  findSlot,
  generateAesKey,
  generateHmacKey,
  generateRandom,
  hmacSha256,
  loadPkcs11,
  returnValueOf,
  signEcdsaP256,
} from '../../hsm/pkcs11.ts';
import { softHsmPath } from '../support/softhsm.ts';
import { hsmError } from './hsm-error.ts';
import { bareHsm, rawSession, softKind, strictKind } from './hsms.ts';
import { StrictToken } from './strict-token.ts';

t.test('every constant has the number that pkcs11js gives its name', (t) => {
  const theirs = pkcs11js as unknown as Record<string, number>;
  const groups = { CKR, CKM, CKO, CKK, CKA, CKF, CKU };
  for (const [prefix, constants] of Object.entries(groups)) {
    for (const [name, value] of Object.entries(constants)) {
      // pkcs11js 2.1.7 is of PKCS#11 v2.30 and has no Edwards curves; those numbers are of v3.0, pkcs11t.h.
      const known = theirs[`${prefix}_${name}`];
      if (known === undefined) t.ok(['EC_EDWARDS_KEY_PAIR_GEN', 'EDDSA', 'EC_EDWARDS'].includes(name), `${prefix}_${name} is of v3.0`);
      else t.equal(known, value, `${prefix}_${name}`);
    }
  }
  t.end();
});

for (const kind of [softKind, strictKind] as const) {
  t.test(`shaped calls on ${kind}`, async (t) => {
    const hsm = bareHsm(t, kind);
    const session = rawSession(hsm);
    t.teardown(() => session.close());
    const aes = generateAesKey(session, 'aes');
    const hmac = generateHmacKey(session, 'hmac');

    await t.test('the nonce in an encrypted value is the one that the token used', async (t) => {
      const aad = Buffer.from('aad');
      const seen = new Set<string>();
      for (let n = 0; n < 50; n++) {
        const sealed = await encryptGcm(session, aes, Buffer.from(`value ${n}`), aad);
        t.equal((await decryptGcm(session, aes, sealed, aad)).toString(), `value ${n}`);
        seen.add(sealed.toString('hex', 0, 12));
      }
      t.equal(seen.size, 50);
    });

    await t.test('what is too short to be an encrypted value never reaches the token', async (t) => {
      const asked = hsm.strict?.calls.get('C_DecryptInit');
      for (const length of [0, 27]) await t.rejects(decryptGcm(session, aes, Buffer.alloc(length), Buffer.alloc(0)), { ...hsmError('corrupt'), message: 'an encrypted value is too short' });
      t.equal(hsm.strict?.calls.get('C_DecryptInit'), asked);
    });

    await t.test('a digest of another length than 32 bytes is not signed', async (t) => {
      t.throws(() => void signEcdsaP256(session, aes, Buffer.alloc(31)), hsmError('refused'));
    });

    await t.test('inputs stay as they were and may be wiped while the call is under way', async (t) => {
      const message = Buffer.from('a message');
      const expected = await hmacSha256(session, hmac, message);
      const pending = hmacSha256(session, hmac, message);
      message.fill(0);
      t.same(await pending, expected);
      t.notSame(await hmacSha256(session, hmac, message), expected);

      const [value, aad] = [Buffer.from('a value'), Buffer.from('aad')];
      const encrypting = encryptGcm(session, aes, value, aad);
      for (const bytes of [value, aad]) bytes.fill(0);
      const sealed = await encrypting;
      t.equal((await decryptGcm(session, aes, sealed, Buffer.from('aad'))).toString(), 'a value', 'sealed under the AAD that was given');
      const bound = Buffer.from('aad');
      const opening = decryptGcm(session, aes, sealed, bound);
      for (const bytes of [sealed, bound]) bytes.fill(0);
      t.equal((await opening).toString(), 'a value');
    });

    await t.test('one object a label, or none at all', (t) => {
      t.same(findOne(session, CKO.SECRET_KEY, 'aes'), aes);
      t.throws(() => findOne(session, CKO.PUBLIC_KEY, 'aes'), hsmError('not_found'));
      t.throws(() => findOne(session, CKO.SECRET_KEY, 'none'), hsmError('not_found'));
      generateAesKey(session, 'aes');
      t.throws(() => findOne(session, CKO.SECRET_KEY, 'aes'), hsmError('ambiguous'));
      t.end();
    });

    await t.test('random bytes are random', (t) => {
      t.equal(generateRandom(session, 32).length, 32);
      t.notSame(generateRandom(session, 32), generateRandom(session, 32));
      t.end();
    });

    await t.test('there is one token of the label, or it is not found', (t) => {
      t.equal(findSlot(hsm.module, hsm.tokenLabel).length, 8);
      t.throws(() => findSlot(hsm.module, 'nobody'), hsmError('not_found'));
      t.end();
    });
  });
}

t.test('a token that took a nonce of zeros as it was gives nothing away', async (t) => {
  // Refuses a random nonce, as one that makes its own does, and then makes none.
  const token = new StrictToken({ iv: 'zeros-only' });
  const hsm = { module: token, modulePath: '', tokenLabel: 'cofre-test', pin: Buffer.from('test-pin'), signing: 'ecdsa-p256', soft: null, strict: token } as const;
  const session = rawSession(hsm);
  const key = generateAesKey(session, 'aes');
  const encrypt = token.C_EncryptAsync.bind(token);
  let parameter: { iv: Buffer } | null = null;
  const init = token.C_EncryptInit.bind(token);
  token.C_EncryptInit = (handle, mechanism, object) => {
    parameter = mechanism.parameter!;
    init(handle, mechanism, object);
  };
  token.C_EncryptAsync = async (...args) => {
    const result = await encrypt(...args);
    parameter!.iv.fill(0);
    return result;
  };
  await t.rejects(encryptGcm(session, key, Buffer.from('x'), Buffer.alloc(0)), hsmError('refused'));
});

t.test('an answer of another length than asked for is refused', async (t) => {
  const token = new StrictToken();
  const session = rawSession({ module: token, modulePath: '', tokenLabel: 'cofre-test', pin: Buffer.from('test-pin'), signing: 'ecdsa-p256', soft: null, strict: token });
  const [aes, hmac] = [generateAesKey(session, 'aes'), generateHmacKey(session, 'hmac')];
  const aad = Buffer.from('aad');
  const sealed = await encryptGcm(session, aes, Buffer.from('a value'), aad);
  for (const call of ['C_EncryptAsync', 'C_DecryptAsync', 'C_SignAsync'] as const) {
    const real = token[call].bind(token);
    token[call] = async (...args) => (await real(...args)).subarray(1);
  }
  await t.rejects(encryptGcm(session, aes, Buffer.from('a value'), aad), hsmError('refused'));
  await t.rejects(decryptGcm(session, aes, sealed, aad), hsmError('corrupt'));
  await t.rejects(hmacSha256(session, hmac, aad), hsmError('refused'));
});

t.test('two tokens of one label are ambiguous', (t) => {
  const token = new StrictToken();
  const hsm = { module: token, modulePath: '', tokenLabel: 'cofre-test', pin: Buffer.from('test-pin'), signing: 'ecdsa-p256', soft: null, strict: token } as const;
  rawSession(hsm).close();
  const slots = token.C_GetSlotList.bind(token);
  token.C_GetSlotList = () => [...slots(), ...slots()];
  t.throws(() => findSlot(token, 'cofre-test'), hsmError('ambiguous'));
  t.end();
});

t.test('a slot that does not tell its token keeps nobody from finding theirs in another, and may be the one where there is none', (t) => {
  const token = new StrictToken();
  token.C_Initialize({ flags: CKF.OS_LOCKING_OK });
  const [slot] = token.C_GetSlotList();
  const broken = Buffer.alloc(8, 9);
  for (const slots of [[broken, slot!], [slot!, broken], [broken]]) {
    token.C_GetSlotList = () => slots;
    const info = StrictToken.prototype.C_GetTokenInfo.bind(token);
    (token as { C_GetTokenInfo(slot: Buffer): unknown }).C_GetTokenInfo = (asked) => {
      if (asked === broken) throw Object.assign(new Error('CKR_TOKEN_NOT_RECOGNIZED'), { code: CKR.TOKEN_NOT_RECOGNIZED });
      return info();
    };
    if (slots.length > 1) t.equal(findSlot(token, 'cofre-test'), slot);
    else t.throws(() => findSlot(token, 'cofre-test'), { code: CKR.TOKEN_NOT_RECOGNIZED });
  }
  t.end();
});

t.test('a generator that fills nothing in is refused', (t) => {
  const token = new StrictToken();
  const session = rawSession({ module: token, modulePath: '', tokenLabel: 'cofre-test', pin: Buffer.from('test-pin'), signing: 'ecdsa-p256', soft: null, strict: token });
  token.C_GenerateRandom = (_session, out) => out;
  t.throws(() => generateRandom(session, 32), hsmError('refused'));
  t.end();
});

t.test('only a Cryptoki error has a return value', (t) => {
  t.equal(returnValueOf(new Error('x')), null);
  t.equal(returnValueOf('CKR_OK'), null);
  t.equal(returnValueOf(Object.assign(new Error('x'), { code: 'ECONNRESET' })), null);
  t.equal(faultOf(new TypeError('x')), 'call');
  t.equal(faultOf(Object.assign(new Error('x'), { code: 0x80000001 })), 'doubtful');
  t.end();
});

t.test('a library is loaded once, and one that is none is not found', (t) => {
  t.equal(loadPkcs11(softHsmPath()), loadPkcs11(softHsmPath()));
  t.throws(() => loadPkcs11('/nowhere/module.so'), hsmError('not_found'));
  t.end();
});
