/** Detokenize over a real PostgreSQL with keys in memory: what opens, what does not and why, when, and what is left of it afterwards. */
import { randomUUID } from 'node:crypto';
import t, { type Test } from 'tap';
import type { Receipt } from '../../audit/append.ts';
import type { SealedKind } from '../../hsm/card-cipher.ts';
import { HsmError } from '../../hsm/errors.ts';
import { createWriterConnector } from '../../platform-adapters/postgres/writer-connector.ts';
import type { Call } from '../../vault/call.ts';
import { GroupCommit } from '../../vault/commit.ts';
import { detokenize, detokenizeBatch, openFailure, type DetokenizeDeps, type DetokenizeOperation, type FailedItem } from '../../vault/detokenize.ts';
import { VaultError } from '../../vault/errors.ts';
import { quotaRules } from '../../vault/quota.ts';
import type { ReferenceRule } from '../../vault/references.ts';
import { Tenants } from '../../vault/tenants.ts';
import { executeDetokenizing, failureEntry, type DetokenizingOperation, type DetokenizingOutcome } from '../../vault/transaction.ts';
import { freshDatabase, type FreshDatabase } from '../support/database.ts';
import { limits, origin, testSigner } from '../support/group-commit.ts';
import { asOwner, codeOf, digitsOf, memoryTenants, openVault, sealedAs, storedLog, tokensIn, type MemoryVault } from '../support/memory-vault.ts';

const minuteMs = 60_000;
const textOf = (card: number): string => digitsOf(card).toString('latin1');

interface Options {
  readonly now?: () => Date;
  readonly allowed?: boolean;
  readonly quota?: number;
  readonly references?: Readonly<Record<string, ReferenceRule>>;
  /** Asked before a value is opened; may throw what the cipher would. */
  readonly before?: (kind: SealedKind, request: string) => Promise<void> | void;
  readonly recordFails?: boolean;
}

interface Opener {
  single(token: string, purpose?: 'capture' | 'refund', reference?: string): Promise<Buffer>;
  batch(tokens: readonly string[], reference?: string): Promise<Buffer>;
  /** What the cipher gave, and what was made of it since. */
  readonly opened: Buffer[];
  /** Of the last call. */
  request: string;
}

/** The detokenizing half, whose cipher opens what `openVault` sealed. Closed with the test. */
async function openOpener(t: Test, database: FreshDatabase, options: Options = {}): Promise<Opener> {
  const now = options.now ?? (() => new Date());
  const writer = await GroupCommit.open<DetokenizingOperation, DetokenizingOutcome>({
    role: 'detokenize',
    origin,
    connector: createWriterConnector(database.connect('detokenize'), { connectTimeoutMs: 5000, queryTimeoutMs: 15_000 }),
    signer: testSigner,
    execute: executeDetokenizing,
    failureEntry,
    limits,
    outbox: false,
    observer: { queued: () => undefined, waited: () => undefined, committed: () => undefined, disturbed: () => undefined },
    now,
    startDetail: {},
    onHead: () => undefined,
  });
  t.teardown(() => writer.close(2000));
  const opened: Buffer[] = [];
  const open = async (receipt: Receipt, kind: SealedKind, sealed: Uint8Array, { cardId }: { readonly cardId: Uint8Array }): Promise<Buffer> => {
    receipt.redeem(`${kind}/${Buffer.from(cardId).toString('hex')}`);
    await options.before?.(kind, opener.request);
    const head = sealedAs(kind, cardId, Buffer.alloc(0));
    if (!Buffer.from(sealed).subarray(0, head.length).equals(head)) throw new HsmError('corrupt', 'a sealed value does not authenticate');
    const plaintext = Buffer.from(sealed.subarray(head.length));
    opened.push(plaintext);
    return plaintext;
  };
  const tenants = new Tenants([...memoryTenants.byId.values()].map((tenant) => ({ ...tenant, keys: { ...tenant.keys, cipher: { ...tenant.keys.cipher, open } } })));
  const deps = {
    policy: { decide: () => ({ allowed: options.allowed ?? true, policyIds: ['some'] }) },
    tenants,
    now,
    stages: { keyWork: () => undefined },
    watch: { named: () => undefined, opened: () => undefined },
    quotasOf: quotaRules(options.quota === undefined ? [] : [{ caller: 'spiffe://cofre.dev/tenant/acme/service/getnet', purpose: 'refund', per_minute: options.quota }]),
    referenceRuleOf: (_tenant: string, purpose: string) => options.references?.[purpose] ?? null,
    commit: (operation: DetokenizingOperation) => writer.commit(operation),
    record: async (operation: DetokenizeOperation, failed: readonly FailedItem[]) => {
      if (options.recordFails === true) throw new VaultError('audit_unavailable');
      await writer.commit({ kind: 'entry', entry: openFailure(operation, failed) });
    },
  } as unknown as DetokenizeDeps;
  const call = (): Call => {
    opener.request = randomUUID();
    return { requestId: opener.request, at: now(), caller: { spiffeId: 'spiffe://cofre.dev/tenant/acme/service/getnet', tenant: 'acme', service: 'getnet', serial: '2a', notAfter: new Date('2030-01-01') }, from: '127.0.0.1' };
  };
  const opener: Opener = {
    single: (token, purpose = 'capture', reference) => detokenize(deps, call(), { token, purpose, ...(reference === undefined ? {} : { reference }) }),
    batch: (tokens, reference) => detokenizeBatch(deps, call(), { tokens, purpose: 'capture', ...(reference === undefined ? {} : { reference }) }),
    opened,
    request: '',
  };
  return opener;
}

/** One token of each kind that does not open, by the code that says so. */
async function deadTokens(vault: MemoryVault, globex: MemoryVault): Promise<Readonly<Record<string, string>>> {
  const [suspended, revoked, ending, foreign] = [await vault.tokenize(1), await vault.tokenize(2), await vault.tokenize(3, { ttl_seconds: 60 }), await globex.tokenize(4)];
  await vault.change('suspend', suspended.token);
  await vault.change('delete', revoked.token);
  return { token_suspended: suspended.token, token_revoked: revoked.token, token_expired: ending.token, token_unknown: foreign.token };
}

/** What the log says of a request: the outcome of each entry, its code, and what became of the tokens. */
async function said(database: FreshDatabase, request: string): Promise<readonly (readonly [outcome: string, code: string | undefined, tokens: Readonly<Record<string, readonly string[]>>])[]> {
  return ((await storedLog(database)).places.get(request) ?? []).map(({ entry }) => [entry.outcome, entry.code, tokensIn(entry)]);
}

t.test('a token that is not active opens nothing and says why, alone and in a batch', async (t) => {
  const database = await freshDatabase(t);
  const dead = await deadTokens(await openVault(t, database), await openVault(t, database, { tenant: 'globex' }));
  const opener = await openOpener(t, database, { now: () => new Date(Date.now() + minuteMs) });
  for (const [code, token] of Object.entries(dead)) {
    t.equal(await codeOf(opener.single(token)), code, code);
    t.same(await said(database, opener.request), [['refused', code, { [code]: [token] }]]);
  }
  t.equal(await codeOf(opener.single('no token')), 'token_unknown');
  t.same(await said(database, opener.request), [['refused', 'token_unknown', {}]], 'what is no token is not named');
  const { items } = JSON.parse((await opener.batch(Object.values(dead))).toString('utf8')) as { items: { error: { code: string } }[] };
  t.same(items.map(({ error }) => error.code), Object.keys(dead));
  t.equal(opener.opened.length, 0, 'nothing was opened');
});

t.test('a row that somebody changed opens nothing, and its neighbours of the batch do', async (t) => {
  const database = await freshDatabase(t);
  const vault = await openVault(t, database);
  const [bad, good] = [await vault.tokenize(1), await vault.tokenize(2)];
  await asOwner(database, 'UPDATE cards SET row_version = row_version + 1 WHERE token = $1', [bad.token]);
  const opener = await openOpener(t, database);
  t.equal(await codeOf(opener.single(bad.token)), 'internal');
  t.equal(opener.opened.length, 0);
  const { items } = JSON.parse((await opener.batch([bad.token, good.token])).toString('utf8')) as { items: { pan?: string; error?: { code: string } }[] };
  t.same(items.map(({ pan, error }) => pan ?? error?.code), ['internal', textOf(2)]);
  t.equal(opener.opened.length, 1);
});

t.test('nothing is opened before the entry that says so is committed', async (t) => {
  const database = await freshDatabase(t);
  const { token } = await (await openVault(t, database)).tokenize(1, { cardholder: 'ANA', expiry: '2029-12' });
  const seen: unknown[] = [];
  const opener = await openOpener(t, database, { before: async (_kind, request) => void seen.push(await said(database, request)) });
  t.same(JSON.parse((await opener.single(token)).toString('utf8')), { pan: textOf(1), expiry: '2029-12', cardholder: 'ANA' });
  const entry = [['allowed', undefined, { authorized: [token] }]];
  t.same(seen, [entry, entry], 'as the number was opened, and as the name was');
});

t.test('a card that several tokens of a call name is opened once', async (t) => {
  const database = await freshDatabase(t);
  const vault = await openVault(t, database);
  const [first, further] = [await vault.tokenize(1), await vault.tokenize(1, { reuse: false }, 'own')];
  const opener = await openOpener(t, database);
  const { items } = JSON.parse((await opener.batch([first.token, further.token, first.token])).toString('utf8')) as { items: { pan: string }[] };
  t.same(items.map(({ pan }) => pan), [textOf(1), textOf(1), textOf(1)]);
  t.equal(opener.opened.length, 1);
});

t.test('what the cipher gave is wiped once it stands in the answer', async (t) => {
  const database = await freshDatabase(t);
  const vault = await openVault(t, database);
  const tokens = [await vault.tokenize(1, { cardholder: 'ANA' }), await vault.tokenize(2)].map(({ token }) => token);
  const opener = await openOpener(t, database);
  for (const body of [await opener.single(tokens[0]!), await opener.batch(tokens)]) t.ok(body.includes(textOf(1)));
  t.equal(opener.opened.length, 5);
  t.ok(opener.opened.every((buffer) => buffer.every((byte) => byte === 0)));
});

t.test('a name that does not open fails the call in a second entry, and leaves no digits', async (t) => {
  const database = await freshDatabase(t);
  const { token } = await (await openVault(t, database)).tokenize(1, { cardholder: 'ANA' });
  for (const [kind, code] of [['corrupt', 'internal'], ['unavailable', 'hsm_unavailable'], ['store', 'store_unavailable'], ['sealed', 'sealed']] as const) {
    const opener = await openOpener(t, database, {
      before: (what) => {
        if (what === 'name') throw new HsmError(kind, 'the name does not open');
      },
    });
    t.equal(await codeOf(opener.single(token)), code);
    t.same(await said(database, opener.request), [['allowed', undefined, { authorized: [token] }], ['failed', code, { [code]: [token] }]]);
    t.equal(opener.opened.length, 1);
    t.ok(opener.opened[0]!.every((byte) => byte === 0), 'the number that had opened is wiped');
  }
});

t.test('where the second entry cannot be written the whole call is refused for that, and leaves no digits', async (t) => {
  const database = await freshDatabase(t);
  const vault = await openVault(t, database);
  const [good, bad] = [await vault.tokenize(1, { cardholder: 'ANA' }), await vault.tokenize(2)];
  await asOwner(database, "UPDATE cards SET sealed_pan = 'rubbish' WHERE token = $1", [bad.token]);
  const opener = await openOpener(t, database, { recordFails: true });
  t.equal(await codeOf(opener.batch([good.token, bad.token])), 'audit_unavailable');
  t.equal(opener.opened.length, 2);
  t.ok(opener.opened.every((buffer) => buffer.every((byte) => byte === 0)));
});

t.test('a purpose may demand a reference, and that it serves once for a token', async (t) => {
  const database = await freshDatabase(t);
  const vault = await openVault(t, database);
  const [first, second] = [(await vault.tokenize(1)).token, (await vault.tokenize(2)).token];
  const opener = await openOpener(t, database, { references: { capture: 'single_use', refund: 'required' } });
  const refused = async (asked: Promise<Buffer>, code: string): Promise<void> => {
    const error = await asked.catch((thrown: unknown) => thrown);
    t.match(error, { code, recorded: code !== 'reference_required' });
  };
  await refused(opener.single(first), 'reference_required');
  await refused(opener.single(first, 'refund'), 'reference_required');
  for (let n = 0; n < 2; n += 1) t.ok((await opener.single(first, 'refund', 'order-1')).includes(textOf(1)), 'required, and no more');

  t.ok((await opener.single(first, 'capture', 'order-1')).includes(textOf(1)), 'what another purpose used is not used for this one');
  await refused(opener.single(first, 'capture', 'order-1'), 'reference_used');
  t.same(await said(database, opener.request), [['refused', 'reference_used', { reference_used: [first] }]]);
  t.ok((await opener.single(first, 'capture', 'order-2')).includes(textOf(1)));
  t.ok((await opener.single(second, 'capture', 'order-1')).includes(textOf(2)), 'another token');

  // What does not open has not used it.
  await vault.change('suspend', second);
  await refused(opener.single(second, 'capture', 'order-3'), 'token_suspended');
  await vault.change('resume', second);
  const body = JSON.parse((await opener.batch([first, second, first, 'tok_nothing'], 'order-3')).toString('utf8')) as { items: { pan?: string; error?: { code: string } }[] };
  t.same(body.items.map(({ pan, error }) => pan ?? error?.code), [textOf(1), textOf(2), textOf(1), 'token_unknown'], 'a token that stands there twice is one use');
  const again = JSON.parse((await opener.batch([first, second], 'order-3')).toString('utf8')) as { items: { error?: { code: string } }[] };
  t.same(again.items.map(({ error }) => error?.code), ['reference_used', 'reference_used']);
  t.same(await said(database, opener.request), [['allowed', undefined, { reference_used: [first, second] }]]);

  const both = await Promise.allSettled(Array.from({ length: 6 }, () => opener.single(first, 'capture', 'order-4')));
  t.equal(both.filter(({ status }) => status === 'fulfilled').length, 1, 'of calls at the same moment one is granted');
});

t.test('who is refused or has used up the quota opens nothing, and only tokens are named', async (t) => {
  const database = await freshDatabase(t);
  const { token } = await (await openVault(t, database)).tokenize(1);
  const refused = await openOpener(t, database, { allowed: false });
  for (const [asked, named] of [[token, { not_authorized: [token] }], ['no token', undefined]] as const) {
    const error = await refused.single(asked).catch((thrown: unknown) => thrown);
    if (!(error instanceof VaultError)) throw error;
    t.same([error.code, error.recorded, error.facts.tokens], ['not_authorized', false, named], 'its entry is still to be written');
  }
  t.same(await said(database, refused.request), []);

  const now = new Date('2026-11-24T12:34:15.000Z');
  const metered = await openOpener(t, database, { quota: 1, now: () => now });
  t.ok((await metered.single(token, 'refund')).includes(textOf(1)));
  const error = await metered.single(token, 'refund').catch((thrown: unknown) => thrown);
  t.match(error, { code: 'quota_exceeded', recorded: true, retryAfterSeconds: 45 });
  t.same(await said(database, metered.request), [['refused', 'quota_exceeded', { quota_exceeded: [token] }]]);
  t.equal(refused.opened.length + metered.opened.length, 1);
});
