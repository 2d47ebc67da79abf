import { createPublicKey, randomBytes } from 'node:crypto';
import { inspect } from 'node:util';
import * as fc from 'fast-check';
import t, { type Test } from 'tap';
import { keyIdOf } from '../../hsm/card-cipher.ts';
import { HsmError } from '../../hsm/errors.ts';
import { macInput } from '../../hsm/key-registry.ts';
import { labels, openKeyring } from '../../hsm/keyring.ts';
import { CKA, CKM, CKO, findOne, generateHmacKey, generateSigningKeyPair } from '../../hsm/pkcs11.ts';
import { verifySignature } from '../../hsm/signer.ts';
import { hsmError } from './hsm-error.ts';
import { bareHsm, custodies, hsmOf, keyringOf, kinds, memoryStore, planFor, rawSession, softKind, strictKind } from './hsms.ts';
import { storeFailure } from './memory-store.ts';
import { receipt } from './receipt.ts';

const digits = Buffer.from('4111111111111111');
const binding = (tenant: string): { tenant: string; cardId: Buffer } => ({ tenant, cardId: Buffer.alloc(16, 7) });
const small = { blockSeals: 4, keySeals: 12, keyAgeMs: 30 * 86_400_000, aheadMs: 86_400_000 };

for (const kind of kinds) {
  for (const custody of custodies) {
    t.test(`a keyring on ${kind} in ${custody} custody`, async (t) => {
      const hsm = await hsmOf(t, kind);

      await t.test('opens what it sealed, and nothing else', async (t) => {
        const keyring = await keyringOf(t, hsm, { custody, store: memoryStore(t) });
        await fc.assert(
          fc.asyncProperty(
            fc.constantFrom('acme', 'acme-mx', 'globex'),
            fc.stringMatching(/^[0-9]{12,19}$/),
            fc.uint8Array({ minLength: 16, maxLength: 16 }),
            fc.nat(56 * 8 + 7),
            async (tenant, pan, cardId, bit) => {
              const { cipher } = keyring.forTenant(tenant);
              const plaintext = Buffer.from(pan);
              const sealed = await cipher.seal('pan', plaintext, { tenant, cardId });
              const opened = await cipher.open(receipt(), 'pan', sealed, { tenant, cardId });
              if (!opened.equals(plaintext) || plaintext.toString() !== pan) return false;
              const altered = Buffer.from(sealed);
              altered[bit >> 3]! ^= 1 << (bit & 7);
              const refused = await Promise.allSettled([
                (async () => cipher.open(receipt(), 'pan', altered, { tenant, cardId }))(),
                (async () => cipher.open(receipt(), 'name', sealed, { tenant, cardId }))(),
                (async () => cipher.open(receipt(), 'pan', sealed, { tenant, cardId: randomBytes(16) }))(),
              ]);
              return refused.every((one) => one.status === 'rejected' && ['corrupt', 'not_found'].includes((one.reason as { kind: string }).kind));
            },
          ),
          { numRuns: 40 },
        );
      });

      await t.test('keeps tenants apart, of one domain and of two', async (t) => {
        const keyring = await keyringOf(t, hsm, { custody, store: memoryStore(t) });
        const [acme, mexico, globex] = ['acme', 'acme-mx', 'globex'].map((tenant) => keyring.forTenant(tenant));
        const sealed = await acme!.cipher.seal('pan', digits, binding('acme'));
        await t.rejects(async () => mexico!.cipher.open(receipt(), 'pan', sealed, binding('acme-mx')), hsmError('corrupt'));
        await t.rejects(async () => globex!.cipher.open(receipt(), 'pan', sealed, binding('globex')), hsmError('corrupt'));
        const prints = await Promise.all([acme!, mexico!, globex!].map(async (keys, at) => keys.fingerprint.compute(['acme', 'acme-mx', 'globex'][at]!, digits)));
        t.equal(new Set(prints.map((print) => print.toString('hex'))).size, 3);
        t.ok(acme!.rowMacKey.equals(mexico!.rowMacKey));
        t.notOk(acme!.rowMacKey.equals(globex!.rowMacKey));
        t.equal(acme!.rowMacKey.symmetricKeySize, 32);
        t.throws(() => keyring.forTenant('nobody'), hsmError('not_found'));
      });

      await t.test('opens nothing without a receipt, and a value once for each', async (t) => {
        const { cipher } = (await keyringOf(t, hsm, { custody, store: memoryStore(t) })).forTenant('acme');
        const sealed = await cipher.seal('pan', digits, binding('acme'));
        const once = receipt();
        t.same(await cipher.open(once, 'pan', sealed, binding('acme')), digits);
        const asked = hsm.strict?.calls.get('C_DecryptInit');
        await t.rejects(async () => cipher.open(once, 'pan', sealed, binding('acme')), { message: 'redeemed twice' });
        await t.rejects(async () => cipher.open(undefined as never, 'pan', sealed, binding('acme')), TypeError);
        t.equal(hsm.strict?.calls.get('C_DecryptInit'), asked, 'nor is the HSM asked to');
      });

      await t.test('a value that names a key of another domain, or one that is no data key, is told as such', async (t) => {
        const store = memoryStore(t);
        const keyring = await keyringOf(t, hsm, { custody, store });
        const sealed = await keyring.forTenant('acme').cipher.seal('pan', digits, binding('acme'));
        const foreign = store.rows.filter((row) => row.domain !== 'acme' || row.kind !== 'data');
        t.equal(foreign.length, 3);
        for (const { keyId } of foreign) {
          const altered = Buffer.from(sealed);
          altered.writeUInt32BE(keyId, 1);
          await t.rejects(async () => keyring.forTenant('acme').cipher.open(receipt(), 'pan', altered, binding('acme')), { ...hsmError('corrupt'), message: 'a sealed value names a key of another domain' });
        }
      });

      await t.test('a store that answers with another row than asked for, each with its own good MAC, is not believed', async (t) => {
        const store = memoryStore(t);
        const sealed = await (await keyringOf(t, hsm, { custody, store })).forTenant('acme').cipher.seal('pan', digits, binding('acme'));
        const [latestKey, keyById] = [store.latestKey.bind(store), store.keyById.bind(store)];
        const notBelieved = { ...hsmError('corrupt'), message: 'the key registry returned another row than asked for' };
        for (const kind of ['fingerprint', 'data'] as const) {
          for (const other of [{ kind, domain: 'globex' }, { kind: kind === 'data' ? ('fingerprint' as const) : ('data' as const), domain: 'acme' }]) {
            store.latestKey = (asked, domain) => (asked === kind && domain === 'acme' ? latestKey(other.kind, other.domain) : latestKey(asked, domain));
            await t.rejects(keyringOf(t, hsm, { custody, store }), notBelieved, `${other.kind} of ${other.domain} for ${kind} of acme`);
          }
        }
        store.latestKey = latestKey;
        const opening = await keyringOf(t, hsm, { custody, store, uses: ['open'] });
        const stranger = store.rows.find((row) => row.keyId !== keyIdOf(sealed))!;
        store.keyById = () => keyById(stranger.keyId);
        await t.rejects(async () => opening.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding('acme')), notBelieved);
      });

      await t.test('seals names of every length', async (t) => {
        const { cipher } = (await keyringOf(t, hsm, { custody, store: memoryStore(t) })).forTenant('acme');
        for (const length of [1, 29, 30, 31, 255]) {
          const name = Buffer.alloc(length, 'é').subarray(0, length);
          t.same(await cipher.open(receipt(), 'name', await cipher.seal('name', name, binding('acme')), binding('acme')), name);
        }
      });

      await t.test('a second keyring on the same store has the same keys', async (t) => {
        const store = memoryStore(t);
        const first = await keyringOf(t, hsm, { custody, store });
        const sealed = await first.forTenant('acme').cipher.seal('pan', digits, binding('acme'));
        const second = await keyringOf(t, hsm, { custody, store });
        t.same(await second.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding('acme')), digits);
        t.same(await second.forTenant('acme').fingerprint.compute('acme', digits), await first.forTenant('acme').fingerprint.compute('acme', digits));
        t.ok(second.forTenant('acme').rowMacKey.equals(first.forTenant('acme').rowMacKey));
      });

      await t.test('many keyrings that open at once end with one current key for each domain and kind', async (t) => {
        const store = memoryStore(t);
        const keysBefore = hsm.strict?.keyCount() ?? 0;
        const keyrings = await Promise.all(Array.from({ length: 4 }, () => keyringOf(t, hsm, { custody, store })));
        t.same(store.rows.map((row) => `${row.domain} ${row.kind} ${row.version}`).sort(), ['acme data 1', 'acme fingerprint 1', 'globex data 1', 'globex fingerprint 1']);
        const sealed = await Promise.all(keyrings.map(async (keyring) => keyring.forTenant('acme').cipher.seal('pan', digits, binding('acme'))));
        for (const value of sealed) for (const keyring of keyrings) t.same(await keyring.forTenant('acme').cipher.open(receipt(), 'pan', value, binding('acme')), digits);
        t.equal(
          [...store.leased.values()].reduce((sum, leased) => sum + leased, 0),
          8 * 2 ** 22,
          'each leased a block of its own',
        );
        // What the losers made inside the HSM is gone again.
        if (hsm.strict !== null) t.equal(hsm.strict.keyCount() - keysBefore, custody === 'direct' ? 4 : 0);
      });

      await t.test('leases blocks, never beyond what a key may seal, and goes on with the next key', async (t) => {
        const store = memoryStore(t);
        const keyring = await keyringOf(t, hsm, { custody, store, limits: small });
        const { cipher } = keyring.forTenant('acme');
        const sealed: Buffer[] = [];
        for (let n = 0; n < 30; n++) {
          sealed.push(await onceLeased(() => cipher.seal('pan', digits, binding('acme'))));
        }
        const perKey = new Map<number, number>();
        for (const value of sealed) perKey.set(keyIdOf(value), (perKey.get(keyIdOf(value)) ?? 0) + 1);
        t.ok(perKey.size >= 3);
        for (const [keyId, count] of perKey) t.ok(count <= 12 && store.leased.get(keyId)! <= 12);
        for (const value of sealed) t.same(await cipher.open(receipt(), 'pan', value, binding('acme')), digits);
      });

      await t.test('a key that is 29 days old gets a successor, and one of 30 days seals no more', async (t) => {
        const store = memoryStore(t);
        let nowMs = Date.now();
        const keyring = await keyringOf(t, hsm, { custody, store, now: () => new Date(nowMs) });
        const { cipher } = keyring.forTenant('acme');
        const old = await cipher.seal('pan', digits, binding('acme'));
        nowMs += 28 * 86_400_000;
        await keyring.upkeep();
        t.equal(keyIdOf(await cipher.seal('pan', digits, binding('acme'))), keyIdOf(old));
        nowMs += 86_400_000 + 1;
        store.failNext('latestKey');
        await t.rejects(keyring.upkeep(), storeFailure);
        t.equal(keyIdOf(await cipher.seal('pan', digits, binding('acme'))), keyIdOf(old), 'goes on while a successor cannot be made');
        nowMs += 86_400_000;
        // First domain asked is acme: the refill fails for it, after the old lease was dropped.
        store.failNext('latestKey');
        await t.rejects(keyring.upkeep(), storeFailure);
        await keyring.upkeep();
        const fresh = await cipher.seal('pan', digits, binding('acme'));
        t.not(keyIdOf(fresh), keyIdOf(old));
        t.same(await cipher.open(receipt(), 'pan', old, binding('acme')), digits);
        t.same(await cipher.open(receipt(), 'pan', fresh, binding('acme')), digits);
      });

      await t.test('a key from a time that has not come seals no longer than any other', async (t) => {
        const store = memoryStore(t);
        let nowMs = Date.now() + 365 * 86_400_000;
        const keyring = await keyringOf(t, hsm, { custody, store, now: () => new Date(nowMs) });
        const { cipher } = keyring.forTenant('acme');
        const early = await cipher.seal('pan', digits, binding('acme'));
        // The clock that was a year ahead is set right; by then another process starts.
        nowMs -= 365 * 86_400_000;
        const other = await keyringOf(t, hsm, { custody, store, now: () => new Date(nowMs) });
        const fresh = await other.forTenant('acme').cipher.seal('pan', digits, binding('acme'));
        t.not(keyIdOf(fresh), keyIdOf(early));
        await keyring.upkeep();
        t.equal(keyIdOf(await cipher.seal('pan', digits, binding('acme'))), keyIdOf(fresh));
        t.same(await other.forTenant('acme').cipher.open(receipt(), 'pan', early, binding('acme')), digits);

        // A machine whose clock is a little behind takes the key of the others.
        const behind = await keyringOf(t, hsm, { custody, store, now: () => new Date(nowMs - 60_000) });
        t.equal(keyIdOf(await behind.forTenant('acme').cipher.seal('pan', digits, binding('acme'))), keyIdOf(fresh));
      });

      await t.test('an edited registry row is refused, whatever was edited', async (t) => {
        const store = memoryStore(t);
        const first = await keyringOf(t, hsm, { custody, store });
        const sealed = await first.forTenant('acme').cipher.seal('pan', digits, binding('acme'));
        await first.close();
        const keyId = keyIdOf(sealed);
        const original = store.rows.find((row) => row.keyId === keyId)!;
        const material = Buffer.from(original.material);
        material[material.length - 1]! ^= 1;
        for (const change of [
          { material },
          { state: 'retired' as const },
          { version: 2 },
          { rowVersion: 2 },
          { createdAt: new Date(original.createdAt.getTime() + 1) },
          { mac: randomBytes(32) },
          { mac: Buffer.alloc(0) },
        ]) {
          store.edit(keyId, change);
          await t.rejects(keyringOf(t, hsm, { custody, store }), hsmError('corrupt'), Object.keys(change)[0]!);
          store.edit(keyId, original);
        }
        // A whole row of another domain, MAC and all, in its place.
        const other = store.rows.find((row) => row.domain === 'globex' && row.kind === 'data')!;
        const opener = await keyringOf(t, hsm, { custody, store, uses: ['open'] });
        store.edit(keyId, { ...other, keyId });
        await t.rejects(async () => opener.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding('acme')), hsmError('corrupt'));
      });

      await t.test('a key whose row was edited under a running process is forgotten at its next upkeep', async (t) => {
        const store = memoryStore(t);
        const keyring = await keyringOf(t, hsm, { custody, store });
        const { cipher } = keyring.forTenant('acme');
        const sealed = await cipher.seal('pan', digits, binding('acme'));
        const original = store.rows.find((row) => row.keyId === keyIdOf(sealed))!;
        store.edit(original.keyId, { createdAt: new Date(original.createdAt.getTime() + 1) });
        await t.rejects(keyring.upkeep(), hsmError('corrupt'));
        await t.rejects(async () => cipher.open(receipt(), 'pan', sealed, binding('acme')), hsmError('corrupt'));
        await t.rejects(async () => cipher.seal('pan', digits, binding('acme')), HsmError, 'nor does it seal');
        store.edit(original.keyId, original);
        t.same(await cipher.open(receipt(), 'pan', sealed, binding('acme')), digits, 'undone, it opens');
      });

      await t.test('a row with a good MAC is refused where its material is of another version or of another key', async (t) => {
        const store = memoryStore(t);
        const keyring = await keyringOf(t, hsm, { custody, store });
        const sealed = await keyring.forTenant('acme').cipher.seal('pan', digits, binding('acme'));
        const row = store.rows.find((other) => other.keyId === keyIdOf(sealed))!;
        const later = Buffer.from(row.material);
        later.writeUInt16BE(2, 1);
        const [material, refused] =
          custody === 'envelope'
            ? [later, { ...hsmError('not_found'), message: 'a key is encrypted under an unknown version of the domain key' }]
            : [store.rows.find((other) => other.domain === 'globex' && other.kind === 'data')!.material, { ...hsmError('corrupt'), message: 'a key registry row names the wrong object' }];
        store.edit(row.keyId, { material, mac: await keyring.control.mac(macInput({ ...row, material })) });
        const opening = await keyringOf(t, hsm, { custody, store, uses: ['open'] });
        await t.rejects(async () => opening.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding('acme')), refused);
      });

      await t.test('a key whose count of leased seals went back seals no more', async (t) => {
        const store = memoryStore(t);
        const warnings: string[] = [];
        const log = { info: () => undefined, warn: (event: string) => warnings.push(event) };
        const keyring = await keyringOf(t, hsm, { custody, store, limits: { ...small, keySeals: 1_000 }, log });
        const { cipher } = keyring.forTenant('acme');
        const keyIds = new Set<number>();
        for (let n = 0; n < 30; n++) {
          keyIds.add(keyIdOf(await onceLeased(() => cipher.seal('pan', digits, binding('acme')))));
          if (n === 10) for (const keyId of store.leased.keys()) store.leased.set(keyId, 0);
        }
        t.equal(keyIds.size, 2);
        t.ok(warnings.includes('data_key_lease_count_went_back'));
      });

      await t.test('a process that only opens leases nothing and seals nothing', async (t) => {
        const store = memoryStore(t);
        const sealing = await keyringOf(t, hsm, { custody, store, uses: ['seal'] });
        const sealed = await sealing.forTenant('acme').cipher.seal('pan', digits, binding('acme'));
        await t.rejects(async () => sealing.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding('acme')), hsmError('refused'));
        t.throws(() => sealing.logSigner, hsmError('refused'));
        t.throws(() => sealing.evidenceSigner, hsmError('refused'));
        const leased = new Map(store.leased);
        const opening = await keyringOf(t, hsm, { custody, store, uses: ['open'] });
        t.same(await opening.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding('acme')), digits);
        await t.rejects(async () => opening.forTenant('acme').cipher.seal('pan', digits, binding('acme')), hsmError('refused'));
        t.same(store.leased, leased);
      });

      await t.test('concurrent opens under a key that is not loaded read it once', async (t) => {
        const store = memoryStore(t);
        const sealed = await (await keyringOf(t, hsm, { custody, store })).forTenant('acme').cipher.seal('pan', digits, binding('acme'));
        const { cipher } = (await keyringOf(t, hsm, { custody, store, uses: ['open'] })).forTenant('acme');
        let reads = 0;
        const keyById = store.keyById.bind(store);
        store.keyById = (keyId) => {
          reads += 1;
          return keyById(keyId);
        };
        await Promise.all(Array.from({ length: 20 }, async () => cipher.open(receipt(), 'pan', sealed, binding('acme'))));
        t.equal(reads, 1);
      });

      await t.test('a key that an operator destroyed opens nothing more, and a retired one seals nothing more', async (t) => {
        const store = memoryStore(t);
        const keyring = await keyringOf(t, hsm, { custody, store });
        const { cipher } = keyring.forTenant('acme');
        const sealed = await cipher.seal('pan', digits, binding('acme'));
        await restate(store, keyring, keyIdOf(sealed), 'retired');
        await keyring.upkeep();
        t.not(keyIdOf(await cipher.seal('pan', digits, binding('acme'))), keyIdOf(sealed));
        t.same(await cipher.open(receipt(), 'pan', sealed, binding('acme')), digits);
        const retired = store.rows.find((row) => row.keyId === keyIdOf(sealed))!;
        await restate(store, keyring, keyIdOf(sealed), 'destroyed');
        await keyring.upkeep();
        await t.rejects(async () => cipher.open(receipt(), 'pan', sealed, binding('acme')), hsmError('not_found'));
        // The earlier row with its own good MAC, put back.
        store.edit(retired.keyId, retired);
        await t.rejects(async () => cipher.open(receipt(), 'pan', sealed, binding('acme')), hsmError('corrupt'));
      });

      await t.test('a store that is away while a key is needed is told from a fault, and is asked again', async (t) => {
        const store = memoryStore(t);
        const limits = { blockSeals: 1, keySeals: 100, keyAgeMs: 86_400_000, aheadMs: 3_600_000 };
        const sealer = (await keyringOf(t, hsm, { custody, store, limits, uses: ['seal'] })).forTenant('acme').cipher;
        const sealed = await sealer.seal('pan', digits, binding('acme'));
        const opener = (await keyringOf(t, hsm, { custody, store, uses: ['open'] })).forTenant('acme').cipher;
        store.failNext('keyById');
        await t.rejects(async () => opener.open(receipt(), 'pan', sealed, binding('acme')), hsmError('store'));
        t.same(await opener.open(receipt(), 'pan', sealed, binding('acme')), digits);
        if (custody === 'envelope') return;
        // Every seal has a lease of its own here: whatever is ready is used up before the store fails.
        await sealer.seal('pan', digits, binding('acme'));
        for (let n = 0; n < 3; n += 1) store.failNext('leaseSeals');
        await t.rejects(
          async () => {
            for (let n = 0; n < 3; n += 1) await sealer.seal('pan', digits, binding('acme'));
          },
          hsmError('store'),
        );
      });

      for (const call of ['reserveKeyId', 'insertKey', 'leaseSeals'] as const) {
        for (const persist of [false, true]) {
          await t.test(`a store whose ${call} ${persist ? 'is done but not answered' : 'fails'} leaves nothing behind that the next start trips over`, async (t) => {
            const store = memoryStore(t);
            store.failNext(call, persist);
            // It is tried again at once, to learn what became of it.
            if (call === 'insertKey') store.failNext(call);
            await t.rejects(keyringOf(t, hsm, { custody, store }), storeFailure);
            const keyring = await keyringOf(t, hsm, { custody, store });
            const sealed = await keyring.forTenant('globex').cipher.seal('pan', digits, binding('globex'));
            t.same(await keyring.forTenant('globex').cipher.open(receipt(), 'pan', sealed, binding('globex')), digits);
            t.equal(store.rows.length, 4);
          });
        }
      }

      await t.test('signs for the log and for evidence, and gives the control key its MACs', async (t) => {
        const keyring = await keyringOf(t, hsm, { custody, store: memoryStore(t) });
        t.equal(keyring.logSigner.algorithm, hsm.signing);
        t.equal(keyring.evidenceSigner.algorithm, 'ecdsa-p256');
        t.notSame(keyring.logSigner.publicKeySpki, keyring.evidenceSigner.publicKeySpki);
        const message = randomBytes(3_000);
        for (const signer of [keyring.logSigner, keyring.evidenceSigner]) {
          const key = createPublicKey({ key: signer.publicKeySpki, format: 'der', type: 'spki' });
          const signature = await signer.sign(message);
          t.equal(verifySignature(signer.algorithm, key, message, signature), true);
          message[0]! ^= 1;
          t.equal(verifySignature(signer.algorithm, key, message, signature), false);
        }
        t.equal((await keyring.control.mac(message)).length, 32);
        t.same(await keyring.control.mac(message), await keyring.control.mac(message));
      });

      await t.test('after close everything is refused', async (t) => {
        const keyring = await keyringOf(t, hsm, { custody, store: memoryStore(t) });
        const { cipher, fingerprint } = keyring.forTenant('acme');
        await keyring.close();
        await t.rejects(async () => cipher.seal('pan', digits, binding('acme')), hsmError('unavailable'));
        await t.rejects(async () => fingerprint.compute('acme', digits), hsmError('unavailable'));
        await t.rejects(keyring.control.mac(digits), hsmError('unavailable'));
        await keyring.close();
      });

      await t.test('inspection of a keyring and of its errors shows no PIN, key or digits', async (t) => {
        const store = memoryStore(t);
        const keyring = await keyringOf(t, hsm, { custody, store });
        const keys = keyring.forTenant('acme');
        const sealed = await keys.cipher.seal('pan', digits, binding('acme'));
        const raw = keys.rowMacKey.export();
        const failure = await settled(async () => keys.cipher.open(receipt(), 'name', sealed, binding('acme')));
        const wrongPin = hsm.strict === null ? null : await settled(() => keyringOf(t, { ...hsm, pin: Buffer.from('s3cret-pin') }, { custody, store }));
        const text = [keyring, keys, failure, wrongPin].map((value) => inspect(value, { depth: 12, showHidden: true, showProxy: true }) + JSON.stringify(value)).join('\n');
        for (const secret of ['test-pin', 's3cret-pin', digits.toString(), raw.toString('hex'), hexPairs(raw.subarray(0, 6)), hexPairs(Buffer.from('test-pin')), [...raw.subarray(0, 6)].join(',')])
          t.notOk(text.includes(secret));
      });
    });
  }
}

t.test('in direct custody no object stays in the HSM that certainly no row names, and none goes that a row may name', async (t) => {
  const eager = { recoveryPauseMs: 0, probeMs: 3_600_000 };
  const tenants = new Map([['acme', 'acme']]);
  const set = async (t: Test) => {
    const hsm = await hsmOf(t, strictKind);
    const store = memoryStore(t);
    const events: string[] = [];
    let nowMs = Date.now();
    const log = { info: () => undefined, warn: (event: string, fields: Readonly<Record<string, string | number | boolean>>) => events.push([event, ...Object.values(fields)].join(' ')) };
    const open = () => keyringOf(t, hsm, { custody: 'direct', store, tenants, sessions: eager, now: () => new Date(nowMs), log });
    const keyring = await open();
    const before = hsm.strict!.keyCount();
    const sealed = async (): Promise<number> => keyIdOf(await keyring.forTenant('acme').cipher.seal('pan', digits, binding('acme')));
    const first = await sealed();
    nowMs += 29 * 86_400_000 + 1;
    // A successor is due.
    return { hsm, strict: hsm.strict!, store, events, keyring, open, sealed, first, made: () => hsm.strict!.keyCount() - before };
  };

  for (const persist of [false, true]) {
    await t.test(`the answer to an insert that was ${persist ? '' : 'not '}done is lost, and the next one comes`, async (t) => {
      const { store, keyring, made, sealed, first, events } = await set(t);
      store.failNext('insertKey', persist);
      await keyring.upkeep();
      t.equal(made(), 1);
      t.not(await sealed(), first);
      t.equal(store.rows.length, 3);
      t.same(events, []);
    });

    await t.test(`the store stays away, with the insert ${persist ? '' : 'not '}done, until the next round of upkeep`, async (t) => {
      const { store, keyring, made, sealed, first, events } = await set(t);
      store.failNext('insertKey', persist);
      store.failNext('insertKey');
      await t.rejects(keyring.upkeep(), storeFailure);
      t.equal(made(), 1, 'it may have a row');
      t.match(events, ['key_object_unsettled data 2', /^data_key_lease_failed/u, /^key_upkeep_failed/u]);
      store.failNext('insertKey');
      await t.rejects(keyring.upkeep(), storeFailure);
      t.equal(made(), 1, 'no other is made meanwhile');
      await keyring.upkeep();
      t.equal(made(), 1);
      t.not(await sealed(), first);
      t.equal(store.rows.length, 3);
    });
  }

  await t.test('another process makes that version while it is not known what became of ours', async (t) => {
    const { store, keyring, made, sealed, open } = await set(t);
    store.failNext('insertKey');
    store.failNext('insertKey');
    await t.rejects(keyring.upkeep(), storeFailure);
    const other = await open();
    t.equal(made(), 2);
    await keyring.upkeep();
    t.equal(made(), 1, 'ours cannot come any more, and is destroyed');
    t.equal(await sealed(), keyIdOf(await other.forTenant('acme').cipher.seal('pan', digits, binding('acme'))));
  });

  await t.test('the row cannot be authenticated', async (t) => {
    const { store, strict, keyring, made } = await set(t);
    const reserve = store.reserveKeyId.bind(store);
    store.reserveKeyId = () => {
      // What comes next is the key, and then its row's MAC.
      strict.failNext('C_SignAsync', 'KEY_FUNCTION_NOT_PERMITTED');
      return reserve();
    };
    await t.rejects(keyring.upkeep(), hsmError('refused'));
    t.equal(made(), 0);
  });

  await t.test('one that cannot be destroyed either is told of', async (t) => {
    const { strict, keyring, made, events } = await set(t);
    strict.failNext('C_GenerateKey', 'DEVICE_MEMORY', true);
    for (let n = 0; n < 2; n += 1) strict.failNext('C_DestroyObject', 'FUNCTION_FAILED');
    await t.rejects(keyring.upkeep(), hsmError('exhausted'));
    t.equal(made(), 1);
    t.ok(events.includes('key_object_left data'), events.join());
  });
});

t.test('in direct custody a key that has not reached every HSM of a cluster is looked for again', async (t) => {
  const hsm = await hsmOf(t, strictKind);
  const strict = hsm.strict!;
  const store = memoryStore(t);
  const first = await keyringOf(t, hsm, { custody: 'direct', store });
  const sealed = await first.forTenant('acme').cipher.seal('pan', digits, binding('acme'));

  // Those made just now, by another process, are not there for the first two that look.
  const init = strict.C_FindObjectsInit.bind(strict);
  const find = strict.C_FindObjects.bind(strict);
  let label = '';
  const looked = new Map<string, number>();
  strict.C_FindObjectsInit = (session, template) => {
    label = String(template.find(({ type }) => type === CKA.LABEL)?.value);
    init(session, template);
  };
  let patience = 2;
  strict.C_FindObjects = (session, max) => {
    if (!/^cofre\/(data|fingerprint)\//u.test(label)) return find(session, max);
    looked.set(label, (looked.get(label) ?? 0) + 1);
    return looked.get(label)! <= patience ? [] : find(session, max);
  };
  const second = await keyringOf(t, hsm, { custody: 'direct', store });
  t.same(await second.forTenant('acme').cipher.open(receipt(), 'pan', sealed, binding('acme')), digits);
  t.same([...looked.values()], [3, 3, 3, 3]);

  // One that is gone is not looked for without end.
  patience = Number.POSITIVE_INFINITY;
  await t.rejects(keyringOf(t, hsm, { custody: 'direct', store }), hsmError('not_found'));
});

t.test('keys of the other custody are refused', async (t) => {
  const hsm = await hsmOf(t, strictKind);
  const store = memoryStore(t);
  await keyringOf(t, hsm, { custody: 'envelope', store });
  await t.rejects(keyringOf(t, hsm, { custody: 'direct', store }), hsmError('refused'));
  const direct = memoryStore(t);
  await keyringOf(t, hsm, { custody: 'direct', store: direct });
  await t.rejects(keyringOf(t, hsm, { custody: 'envelope', store: direct }), hsmError('refused'));
});

t.test('a keyring does not open', async (t) => {
  await t.test('without a ceremony', async (t) => {
    await t.rejects(keyringOf(t, bareHsm(t, softKind), { custody: 'envelope', store: memoryStore(t) }), hsmError('not_found'));
  });
  await t.test('on a token of another label', async (t) => {
    await t.rejects(keyringOf(t, { ...(await hsmOf(t, strictKind)), tokenLabel: 'other' }, { custody: 'envelope', store: memoryStore(t) }), hsmError('not_found'));
  });
  await t.test('for a domain that the ceremony did not make', async (t) => {
    const tenants = new Map([['initech', 'initech']]);
    await t.rejects(keyringOf(t, await hsmOf(t, strictKind), { custody: 'envelope', store: memoryStore(t), tenants }), hsmError('not_found'));
  });
  await t.test('where a label stands twice', async (t) => {
    const hsm = await hsmOf(t, softKind);
    const session = rawSession(hsm);
    generateHmacKey(session, labels.control);
    session.close();
    await t.rejects(keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t) }), hsmError('ambiguous'));
  });
  await t.test('with a wrong PIN, and then does not try it again', async (t) => {
    const hsm = await hsmOf(t, strictKind);
    await t.rejects(keyringOf(t, { ...hsm, pin: Buffer.from('wrong') }, { custody: 'envelope', store: memoryStore(t) }), hsmError('refused'));
    t.equal(hsm.strict!.wrongPins, 1);
  });
  await t.test('with a key that could be read out of the HSM', async (t) => {
    for (const [sensitive, extractable] of [[false, true], [true, true], [false, false]] as const) {
      const hsm = bareHsm(t, softKind);
      const session = rawSession(hsm);
      const template = [
        { type: CKA.CLASS, value: CKO.SECRET_KEY },
        { type: CKA.KEY_TYPE, value: 0x10 },
        { type: CKA.VALUE_LEN, value: 32 },
        { type: CKA.TOKEN, value: true },
        { type: CKA.SENSITIVE, value: sensitive },
        { type: CKA.EXTRACTABLE, value: extractable },
        { type: CKA.SIGN, value: true },
        { type: CKA.LABEL, value: labels.control },
      ];
      hsm.module.C_GenerateKey(session.handle, { mechanism: CKM.GENERIC_SECRET_KEY_GEN }, template);
      session.close();
      await t.rejects(keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t) }), { ...hsmError('refused'), message: 'a key in the HSM could be read out of it' }, `sensitive ${sensitive}, extractable ${extractable}`);
    }
  });
  await t.test('with a signing key whose public half is of another pair, or on another curve', async (t) => {
    const hsm = await hsmOf(t, softKind);
    let session = rawSession(hsm);
    const half = (objectClass: number): Buffer => findOne(session, objectClass, labels.logSigning);
    hsm.module.C_DestroyObject(session.handle, half(CKO.PUBLIC_KEY));
    const other = generateSigningKeyPair(session, 'ed25519', labels.logSigning);
    hsm.module.C_DestroyObject(session.handle, other.privateKey);
    await t.rejects(keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t) }), { ...hsmError('corrupt'), message: 'a signing key and its public key do not belong together' });

    // The library was finalized with the keyring that did not open.
    session = rawSession(hsm);
    for (const objectClass of [CKO.PUBLIC_KEY, CKO.PRIVATE_KEY]) hsm.module.C_DestroyObject(session.handle, half(objectClass));
    const common = [{ type: CKA.TOKEN, value: true }, { type: CKA.LABEL, value: labels.logSigning }];
    // 1.3.132.0.34 secp384r1 (RFC 5480 section 2.1.1.1)
    const secp384r1 = { type: CKA.EC_PARAMS, value: Buffer.from('06052b81040022', 'hex') };
    hsm.module.C_GenerateKeyPair(session.handle, { mechanism: CKM.EC_KEY_PAIR_GEN }, [...common, { type: CKA.PRIVATE, value: false }, { type: CKA.VERIFY, value: true }, secp384r1], [...common, { type: CKA.SENSITIVE, value: true }, { type: CKA.EXTRACTABLE, value: false }, { type: CKA.SIGN, value: true }]);
    session.close();
    await t.rejects(keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t) }), { ...hsmError('refused'), message: 'a signing key is neither Ed25519 nor ECDSA P-256' });
  });
  await t.test('where the module cannot be loaded', async (t) => {
    const hsm = await hsmOf(t, strictKind);
    await t.rejects(
      openKeyring({ modulePath: '/nowhere/module.so', tokenLabel: 'x', pin: hsm.pin, custody: 'envelope', tenants: new Map(), store: memoryStore(t), now: () => new Date(), maxAwayMs: 0 }),
      hsmError('not_found'),
    );
  });
});

t.test('limits under which no key could seal are refused', async (t) => {
  const hsm = await hsmOf(t, strictKind);
  for (const change of [{ blockSeals: 0 }, { blockSeals: 13 }, { keySeals: 2 ** 32 + 1 }, { aheadMs: 30 * 86_400_000 }, { aheadMs: -1 }]) {
    await t.rejects(keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t), limits: { ...small, ...change } }), hsmError('refused'), JSON.stringify(change));
  }
});

t.test('a store that calls every key full does not make the keyring fill the HSM with keys', async (t) => {
  const hsm = await hsmOf(t, strictKind);
  const store = memoryStore(t);
  store.leaseSeals = () => Promise.resolve(null);
  const before = hsm.strict!.keyCount();
  await t.rejects(keyringOf(t, hsm, { custody: 'direct', store }), hsmError('exhausted'));
  t.ok(hsm.strict!.keyCount() - before <= 10);
});

t.test('a full HSM says that it is exhausted, and its keys go on working', async (t) => {
  // control, two domains, two signing pairs; one fingerprint and one data key each make eleven.
  const hsm = await hsmOf(t, strictKind, { maxKeys: 11 });
  const store = memoryStore(t);
  const keyring = await keyringOf(t, hsm, { custody: 'direct', store, limits: small });
  const { cipher } = keyring.forTenant('acme');
  const sealed: Buffer[] = [];
  const failure = await settled(async () => {
    for (let n = 0; n < 40; n++) sealed.push(await cipher.seal('pan', digits, binding('acme')));
  });
  t.match(failure, hsmError('exhausted'));
  t.equal(sealed.length, 12);
  t.same(await cipher.open(receipt(), 'pan', sealed[0]!, binding('acme')), digits);
});

t.test('a wiped PIN of a provider is asked for again at each login', async (t) => {
  const hsm = await hsmOf(t, strictKind);
  const given: Buffer[] = [];
  const pin = async (): Promise<Buffer> => {
    const answer = Buffer.from(hsm.pin);
    given.push(answer);
    return answer;
  };
  const keyring = await keyringOf(t, hsm, { custody: 'envelope', store: memoryStore(t), pin });
  hsm.strict!.loseSessions();
  await keyring.control.mac(digits);
  t.equal(given.length, 2);
  for (const answer of given) t.ok(answer.every((byte) => byte === 0));
  t.equal(hsm.pin.toString(), 'test-pin');
});

t.test('the plan of the tests names labels that the keyring looks for', async (t) => {
  const hsm = await hsmOf(t, softKind);
  const session = rawSession(hsm);
  t.ok(findOne(session, CKO.SECRET_KEY, labels.domain(planFor('/x', 'x', 'ed25519').domains[0]!)));
  session.close();
});

async function settled(work: () => unknown): Promise<unknown> {
  try {
    await work();
    return null;
  } catch (error) {
    return error;
  }
}

// Envelope custody seals synchronously: without a lease it refuses, and says that a retry will do.
async function onceLeased(seal: () => Buffer | Promise<Buffer>): Promise<Buffer> {
  for (;;) {
    try {
      return await seal();
    } catch (error) {
      if (!(error instanceof HsmError) || error.kind !== 'exhausted' || !error.retryable) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
}

// As an operator's command would: a new state, the next row version, a new MAC.
async function restate(store: ReturnType<typeof memoryStore>, keyring: { control: { mac(message: Uint8Array): Promise<Buffer> } }, keyId: number, state: 'retired' | 'destroyed'): Promise<void> {
  const row = store.rows.find((other) => other.keyId === keyId)!;
  const next = { ...row, state, rowVersion: row.rowVersion + 1 };
  store.edit(keyId, { ...next, mac: await keyring.control.mac(macInput(next)) });
}

function hexPairs(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(' ');
}
