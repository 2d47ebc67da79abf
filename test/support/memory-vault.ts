/**
 * The tokenizing half of the vault over a real PostgreSQL, with keys in memory and without a server: a writer, the operations on it, and what an
 * outsider with the keys and the tables finds afterwards.
 */
import { createHmac, createSecretKey, randomUUID } from 'node:crypto';
import type { ClientBase, ClientConfig } from 'pg';
import type { Test } from 'tap';
import type { TenantKeys } from '../../hsm/keyring.ts';
import { encodeVkey, parseVkey } from '../../audit/note.ts';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import { createWriterConnector } from '../../platform-adapters/postgres/writer-connector.ts';
import type { Call } from '../../vault/call.ts';
import type { TokenRow } from '../../vault/card-store.ts';
import { GroupCommit, type CommitLimits } from '../../vault/commit.ts';
import { VaultError, type ErrorCode } from '../../vault/errors.ts';
import { changeToken, type LifecycleAction, type LifecycleAnswer, type LifecycleDeps, type SweepOutcome } from '../../vault/lifecycle.ts';
import { Lane } from '../../vault/lane.ts';
import { Pan } from '../../vault/pan.ts';
import { Tenants } from '../../vault/tenants.ts';
import { pooledRandom, type RandomBytes } from '../../vault/token.ts';
import { statusOf } from '../../vault/token-mac.ts';
import { rowIsGenuine } from '../../vault/token-view.ts';
import { tokenize, tokenizeBatch, type TokenizeAnswer, type TokenizeDeps, type TokenizeInput } from '../../vault/tokenize.ts';
import { executeTokenizing, failureEntry, type TokenizingOperation, type TokenizingOutcome } from '../../vault/transaction.ts';
import type { WriterConnector } from '../../vault/writer-session.ts';
import { cardDigits, cardNumber } from './cards.ts';
import { withClient, type FreshDatabase } from './database.ts';
import { limits, origin, readChains, testSigner, type Log } from './group-commit.ts';

/** A tenant's keys without an HSM. What is sealed here is only looked at, never opened. */
function memoryKeys(domain: string): TenantKeys {
  return {
    domain,
    fingerprintVersion: 1,
    rowMacKey: createSecretKey(createHmac('sha256', 'row').update(domain).digest()),
    fingerprint: { compute: (tenant, digits) => createHmac('sha256', 'key').update(`${tenant}\0`).update(digits).digest() },
    cipher: {
      seal: (kind, plaintext, { cardId }) => sealedAs(kind, cardId, plaintext),
      open: () => {
        throw new Error('tokenize opens nothing');
      },
    },
  };
}

/** What the keys here make of a value. */
export function sealedAs(kind: 'pan' | 'name', cardId: Uint8Array, plaintext: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(`${kind} of `), cardId, plaintext]);
}

export const memoryTenants = new Tenants([
  { id: 1, name: 'acme', keys: memoryKeys('acme') },
  { id: 2, name: 'globex', keys: memoryKeys('globex') },
]);

/** The digits of the n-th card, as bytes. */
export function digitsOf(card: number): Buffer {
  const digits = Buffer.alloc(cardDigits);
  cardNumber(card, digits);
  return digits;
}

export interface BatchItem {
  readonly card: number;
  readonly input?: TokenizeInput;
}

export interface MemoryVault {
  /** Tokenizes the n-th card. The request id is that of the call's entry. */
  tokenize(card: number, input?: TokenizeInput, key?: string | null, request?: string): Promise<TokenizeAnswer>;
  /** Tokenizes cards in one call; null stands for what is no card number. */
  batch(items: readonly (BatchItem | null)[], key?: string | null, request?: string): Promise<(TokenizeAnswer | ErrorCode)[]>;
  change(action: LifecycleAction, token: string, request?: string): Promise<LifecycleAnswer>;
  /** One round of the sweeper. Resolves to how many tokens it marked. */
  sweep(limit?: number): Promise<number>;
  /** What went wrong with transactions, in order. */
  readonly errors: { readonly kind: string; readonly code: unknown; readonly message: string }[];
  /** How often a numeric token was taken already. */
  readonly taken: { count: number };
  close(): Promise<void>;
}

export interface MemoryVaultOptions {
  readonly tenant?: string;
  readonly now?: () => Date;
  readonly random?: RandomBytes;
  /** Another way to the database than straight. */
  readonly through?: ClientConfig;
  readonly connector?: (real: WriterConnector) => WriterConnector;
  readonly limits?: Partial<CommitLimits>;
  /** Whether the caller may bring a card now, as far as guessing goes; by its fingerprint. */
  readonly guessing?: (fingerprint: Uint8Array) => 'granted' | 'refused' | 'closed';
}

/** Opens a writer. Closed with the test. */
export async function openVault(t: Test, database: FreshDatabase, options: MemoryVaultOptions = {}): Promise<MemoryVault> {
  const tenant = options.tenant ?? 'acme';
  const now = options.now ?? (() => new Date());
  const errors: { kind: string; code: unknown; message: string }[] = [];
  const taken = { count: 0 };
  const real = createWriterConnector(options.through ?? database.connect('tokenize'), { connectTimeoutMs: 5000, queryTimeoutMs: 15_000 });
  const writer = await GroupCommit.open<TokenizingOperation, TokenizingOutcome>({
    role: 'tokenize',
    origin,
    connector: options.connector?.(real) ?? real,
    signer: testSigner,
    execute: executeTokenizing,
    failureEntry,
    limits: { ...limits, maxCalls: 500, maxWeight: 5000, ...options.limits },
    outbox: true,
    observer: { queued: () => undefined, waited: () => undefined, committed: () => undefined, disturbed: (kind, error) => void errors.push({ kind, code: (error as { code?: unknown } | null)?.code, message: (error as Error | null)?.message ?? '' }) },
    now,
    startDetail: {},
    onHead: () => undefined,
  });
  t.teardown(() => writer.close(2000));
  const common = { policy: { decide: () => ({ allowed: true, policyIds: [] }) }, tenants: memoryTenants, now };
  const tokenizeDeps = {
    ...common,
    random: options.random ?? pooledRandom(),
    stages: { keyWork: () => undefined },
    batchLane: new Lane(10),
    guessing: { ask: (_tenant: unknown, _caller: string, _group: number, fingerprint: Uint8Array) => options.guessing?.(fingerprint) ?? 'granted', secondsToNextDay: () => 1 },
    binDigits: 6,
    commit: (operation: Extract<TokenizingOperation, { kind: 'tokenize' }>) => writer.commit(operation, operation.items.length),
    numericSpace: { drawn: () => undefined, taken: () => void (taken.count += 1) },
  } as unknown as TokenizeDeps;
  const lifecycleDeps = { ...common, watch: { named: () => undefined, opened: () => undefined }, commit: (operation: TokenizingOperation) => writer.commit(operation) } as unknown as LifecycleDeps;
  const callOf = (request: string): Call => ({ requestId: request, at: now(), caller: { spiffeId: `spiffe://cofre.dev/tenant/${tenant}/service/checkout`, tenant, service: 'checkout', serial: '1f', notAfter: new Date('2030-01-01') }, from: '127.0.0.1' });
  return {
    errors,
    taken,
    async tokenize(card, input = {}, key = null, request = randomUUID()) {
      using pan = Pan.parse(digitsOf(card));
      return await tokenize(tokenizeDeps, callOf(request), pan, input, key);
    },
    async batch(items, key = null, request = randomUUID()) {
      using stack = new DisposableStack();
      const given = items.map((item) => ({ pan: item === null ? null : stack.use(Pan.parse(digitsOf(item.card))), input: item?.input ?? {} }));
      return await tokenizeBatch(tokenizeDeps, callOf(request), given, key);
    },
    change: async (action, token, request = randomUUID()) => await changeToken(lifecycleDeps, callOf(request), action, token),
    sweep: async (limit = 10_000) => ((await writer.commit({ kind: 'sweep', tenants: memoryTenants, limit }, limit)).outcome as SweepOutcome).tokens,
    close: () => writer.close(2000),
  };
}

/** The code of the refusal that `work` ends with; null if it succeeds. */
export async function codeOf(work: Promise<unknown>): Promise<ErrorCode | null> {
  try {
    await work;
    return null;
  } catch (error) {
    if (error instanceof VaultError) return error.code;
    throw error;
  }
}

/** Runs SQL as the owner of the tables, and resolves to the rows. */
export async function asOwner<Row extends object = Record<string, unknown>>(database: FreshDatabase, sql: string, values: readonly unknown[] = []): Promise<Row[]> {
  return await withClient(adminConnection(database.adminUrl), async (client) => (await client.query<Row>(sql, [...values])).rows);
}

/** A token as it stands in the tables, with what stands of its card. */
export interface StoredToken extends TokenRow {
  readonly sealedPan: Buffer;
  readonly sealedName: Buffer | null;
  /** Of a further token: whether it is the one of its format that is answered again; null for a first one. */
  readonly reusable: boolean | null;
  /** Whether its MAC holds. */
  readonly genuine: boolean;
}

/** Every token of both tables, by token. */
export async function storedTokens(database: FreshDatabase): Promise<Map<string, StoredToken>> {
  return await withClient(adminConnection(database.adminUrl), readTokens);
}

/** As `storedTokens`, on a connection of the owner's. */
export async function readTokens(client: ClientBase): Promise<Map<string, StoredToken>> {
  const { rows } = await client.query<{ [column: string]: unknown; token: string }>(
    `SELECT c.tenant_id, c.token, c.token AS card_token, c.fingerprint, c.card_id, c.sealed_pan, c.sealed_name, c.expiry, c.brand, c.bin, c.last4, c.pan_length, c.format, c.status, c.row_version, c.token_expires_at,
            c.token_mac, c.metadata::text AS metadata, c.created_at, NULL::boolean AS reusable FROM cards c
     UNION ALL
     SELECT t.tenant_id, t.token, t.card_token, c.fingerprint, c.card_id, c.sealed_pan, c.sealed_name, c.expiry, c.brand, c.bin, c.last4, c.pan_length, t.format, t.status, t.row_version, t.token_expires_at,
            t.token_mac, t.metadata::text, t.created_at, t.reusable FROM tokens t JOIN cards c ON c.tenant_id = t.tenant_id AND c.token = t.card_token`,
  );
  return new Map(
    rows.map((raw) => {
      const row: TokenRow = {
        tenantId: raw['tenant_id'] as number,
        token: raw.token,
        cardToken: raw['card_token'] as string,
        fingerprint: (raw['fingerprint'] as Buffer | null) ?? Buffer.alloc(0),
        cardId: raw['card_id'] as Buffer,
        expiry: raw['expiry'] as number | null,
        brand: raw['brand'] as string,
        bin: raw['bin'] as string | null,
        last4: raw['last4'] as string,
        panLength: raw['pan_length'] as number,
        format: raw['format'] === 1 ? 'numeric' : 'opaque',
        status: statusOf(raw['status'] as number),
        rowVersion: raw['row_version'] as number,
        expiresAt: raw['token_expires_at'] as Date | null,
        tokenMac: raw['token_mac'] as Buffer,
        metadata: raw['metadata'] as string | null,
        createdAt: raw['created_at'] as Date,
      };
      return [row.token, { ...row, sealedPan: raw['sealed_pan'] as Buffer, sealedName: raw['sealed_name'] as Buffer | null, reusable: raw['reusable'] as boolean | null, genuine: rowIsGenuine(memoryTenants.byId.get(row.tenantId)!, row) }];
    }),
  );
}

const verifier = parseVkey(encodeVkey(origin, 'ed25519', testSigner.publicKeySpki));

/** Every chain of the log, verified. */
export async function storedLog(database: FreshDatabase): Promise<Log> {
  return await withClient(adminConnection(database.adminUrl), (client) => readChains(client, verifier));
}

/** What an entry says became of each token, the outcomes and the tokens of each in their order. */
export function tokensIn(entry: object): Readonly<Record<string, readonly string[]>> {
  return (entry as { tokens?: Readonly<Record<string, readonly string[]>> }).tokens ?? {};
}
