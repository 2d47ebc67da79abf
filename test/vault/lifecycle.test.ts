/**
 * The life of tokens and cards over a real PostgreSQL with keys in memory: against a model, between two writers, past its end, and when rows were
 * changed behind the vault's back.
 */
import { randomUUID } from 'node:crypto';
import * as fc from 'fast-check';
import { Client } from 'pg';
import t, { type Test } from 'tap';
import { adminConnection } from '../../platform-adapters/postgres/connect.ts';
import type { TokenFormat } from '../../vault/card-store.ts';
import type { LifecycleAction } from '../../vault/lifecycle.ts';
import { isNumericToken } from '../../vault/numeric-token.ts';
import { isDead, type TokenStatus } from '../../vault/token-mac.ts';
import { makeToken, pooledRandom, type RandomBytes } from '../../vault/token.ts';
import type { TokenizeAnswer, TokenizeInput } from '../../vault/tokenize.ts';
import type { WriterConnector } from '../../vault/writer-session.ts';
import { until } from '../support/appliance.ts';
import { freshDatabase, type FreshDatabase } from '../support/database.ts';
import { asOwner, codeOf, digitsOf, openVault, sealedAs, storedLog, readTokens, storedTokens, tokensIn, type MemoryVault, type MemoryVaultOptions, type StoredToken } from '../support/memory-vault.ts';

const startOfTime = Date.parse('2026-11-24T12:00:00Z');

/** A clock that stands still until it is moved. */
function handClock(): { now: () => Date; advance: (ms: number) => void } {
  let time = startOfTime;
  return { now: () => new Date(time), advance: (ms) => void (time += ms) };
}

// ---- The model: what docs and DESIGN say of tokens and cards, in plain words and without a database.

interface ModelToken {
  readonly token: string;
  readonly format: TokenFormat;
  readonly endsAt: number | null;
  /** Whether a call that asks for the card's token of this format may get it. */
  readonly serves: boolean;
  status: TokenStatus;
  metadata: number | null;
}

interface ModelCard {
  readonly number: number;
  readonly cardId: string;
  readonly tokens: ModelToken[];
  destroyed: boolean;
  expiry: string | null;
  name: string | null;
}

interface ModelCall {
  readonly number: number;
  readonly input: TokenizeInput;
  readonly key: string;
  readonly token: string;
  readonly created: boolean;
}

class Model {
  readonly cards: ModelCard[] = [];
  readonly keyed: ModelCall[] = [];
  now = 0;

  get tokens(): { card: ModelCard; token: ModelToken }[] {
    return this.cards.flatMap((card) => card.tokens.map((token) => ({ card, token })));
  }

  find(token: string): { card: ModelCard; token: ModelToken } {
    return this.tokens.find((held) => held.token.token === token)!;
  }

  /** What a token is now: one past its end is expired before anybody marked it. */
  statusOf(token: ModelToken): TokenStatus {
    return !isDead(token.status) && token.endsAt !== null && token.endsAt <= this.now ? 'expired' : token.status;
  }

  /** A card whose last token died is destroyed. @returns whether it just was. */
  #end(card: ModelCard): boolean {
    if (card.destroyed || card.tokens.some((token) => !isDead(this.statusOf(token)))) return false;
    for (const token of card.tokens) this.#become(token, isDead(token.status) ? token.status : 'expired');
    Object.assign(card, { destroyed: true, expiry: null, name: null });
    return true;
  }

  #become(token: ModelToken, status: TokenStatus): void {
    token.status = status;
    if (isDead(status)) token.metadata = null;
  }

  /** @returns the code of the refusal, or the token's status, the card's expiry, and whether the card was destroyed. */
  change(action: LifecycleAction, text: string): { code: string } | { status: TokenStatus; expiry: string | null; destroyed: boolean } {
    const { card, token } = this.find(text);
    const status = this.statusOf(token);
    if (status === 'revoked') return { code: 'token_revoked' };
    if (status === 'expired' && action !== 'delete') return { code: 'token_expired' };
    this.#become(token, action === 'suspend' ? 'suspended' : action === 'resume' ? 'active' : 'revoked');
    const destroyed = this.#end(card);
    return { status: token.status, expiry: card.expiry, destroyed };
  }

  sweep(): void {
    for (const { token } of this.tokens) if (!isDead(token.status) && this.statusOf(token) === 'expired') this.#become(token, 'expired');
    for (const card of this.cards) this.#end(card);
  }

  /** The card that stands for this number, and the token of it that this call is to be answered with, if there is one. */
  standing(number: number, input: TokenizeInput): { card: ModelCard | undefined; token: ModelToken | undefined } {
    const card = this.cards.find((held) => held.number === number && !held.destroyed);
    const asks = input.reuse !== false && input.ttl_seconds === undefined;
    return { card, token: asks ? card?.tokens.find((token) => token.serves && token.format === (input.format ?? 'opaque') && !isDead(token.status)) : undefined };
  }

  /** Takes in what the vault answered to a call; returns what was wrong with it. */
  tokenize(number: number, input: TokenizeInput, key: string | null, answer: TokenizeAnswer): string | null {
    const { card, token } = this.standing(number, input);
    if (answer.created !== (token === undefined)) return `created is ${answer.created}`;
    if (token !== undefined && answer.token !== token.token) return 'it answers with another token';
    if (card !== undefined && answer.card_id !== card.cardId) return 'the card has another name';
    if (card === undefined && this.cards.some((held) => held.cardId === answer.card_id)) return 'a new card has the name of an earlier one';
    if (token === undefined && this.tokens.some((held) => held.token.token === answer.token)) return 'a new token is not new';
    const into = card ?? { number, cardId: answer.card_id, tokens: [], destroyed: false, expiry: null, name: null };
    if (card === undefined) this.cards.push(into);
    if (input.expiry !== undefined) into.expiry = input.expiry;
    if (input.cardholder !== undefined) into.name = input.cardholder;
    const endsAt = input.ttl_seconds === undefined ? null : this.now + input.ttl_seconds * 1000;
    // A card's first token serves whoever asks, whoever it was made for: unless it has an end.
    const now = token ?? { token: answer.token, format: input.format ?? 'opaque', endsAt, serves: endsAt === null && (card === undefined || input.reuse !== false), status: 'active', metadata: null };
    if (token === undefined) into.tokens.push(now);
    if (input.metadata !== undefined) now.metadata = input.metadata['n'] as number;
    if (key !== null) this.keyed.push({ number, input, key, token: now.token, created: answer.created });
    return this.#shown(into, now, answer);
  }

  /** A call that was made before under its key is answered with what it made, as that is now. */
  replayed(call: ModelCall, answer: TokenizeAnswer): string | null {
    if (answer.token !== call.token || answer.created !== call.created) return 'a replay is answered differently';
    const { card, token } = this.find(call.token);
    return this.#shown(card, token, answer);
  }

  #shown(card: ModelCard, token: ModelToken, answer: TokenizeAnswer): string | null {
    const shown = { card_id: answer.card_id, expiry: answer.expiry, status: answer.status, format: answer.format, ends: answer.expires_at === null ? null : Date.parse(answer.expires_at) };
    const right = { card_id: card.cardId, expiry: card.expiry, status: this.statusOf(token), format: token.format, ends: token.endsAt };
    return JSON.stringify(shown) === JSON.stringify(right) ? null : `it shows ${JSON.stringify(shown)}, not ${JSON.stringify(right)}`;
  }

  /** What differs between the tables and the model. */
  compare(stored: ReadonlyMap<string, StoredToken>): string[] {
    const faults: string[] = [];
    for (const card of this.cards) {
      for (const token of card.tokens) {
        const row = stored.get(token.token);
        const fault = (what: string): void => void faults.push(`a token that should be ${token.status}: ${what}`);
        if (row === undefined) {
          fault('has no row');
          continue;
        }
        if (!row.genuine) fault('its MAC does not hold');
        if (row.status !== token.status) fault(`is ${row.status}`);
        if (row.format !== token.format || (row.expiresAt?.getTime() ?? null) !== token.endsAt) fault('has another format or end');
        if (row.metadata !== (token.metadata === null ? null : `{"n": ${token.metadata}}`)) fault('has other metadata');
        if (row.cardToken !== card.tokens[0]!.token || `card_${row.cardId.toString('hex')}` !== card.cardId) fault('is of another card');
        if (row.reusable === true && (isDead(token.status) || !token.serves)) fault('would be answered again');
        if (card.destroyed) {
          if (row.fingerprint.length > 0 || row.sealedPan.length > 0 || row.sealedName !== null || row.expiry !== null) fault('its card was destroyed, and something is left of it');
        } else {
          if (row.fingerprint.length !== 32 || !row.sealedPan.equals(sealedAs('pan', row.cardId, digitsOf(card.number)))) fault('its card was lost');
          if (row.expiry !== (card.expiry === null ? null : Number(card.expiry.replace('-', '')))) fault('its card has another expiry');
          if (card.name === null ? row.sealedName !== null : row.sealedName?.equals(sealedAs('name', row.cardId, Buffer.from(card.name, 'utf8'))) !== true) fault('its card has another name');
        }
      }
    }
    return faults;
  }
}

// ---- Against the model.

type Step =
  | { readonly kind: 'tokenize'; readonly card: number; readonly input: TokenizeInput }
  | { readonly kind: 'replay'; readonly which: number }
  | { readonly kind: 'change'; readonly action: LifecycleAction; readonly which: number }
  | { readonly kind: 'sweep' };

const steps: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant('tokenize' as const),
      card: fc.nat(2),
      input: fc.record(
        { format: fc.constantFrom('opaque' as const, 'numeric' as const), reuse: fc.constantFrom(true, true, false), ttl_seconds: fc.constantFrom(5, 60, 600), expiry: fc.constantFrom('2028-01', '2029-02', '2030-03'), metadata: fc.nat(99).map((n) => ({ n })) },
        { requiredKeys: [] },
      ),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('replay' as const), which: fc.nat(99) }) },
  { weight: 8, arbitrary: fc.record({ kind: fc.constant('change' as const), action: fc.constantFrom('suspend' as const, 'resume' as const, 'delete' as const, 'delete' as const), which: fc.nat(99) }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'sweep' as const }) },
);
/** Steps at the same moment, and how far the clock moves before them. */
const rounds = fc.array(fc.record({ afterMs: fc.constantFrom(0, 0, 1000, 10_000, 100_000), steps: fc.array(steps, { minLength: 1, maxLength: 5 }), name: fc.boolean() }), { minLength: 6, maxLength: 16, size: 'max' });

t.test('whatever is done to tokens, in whatever order and at the same moment, they and their cards are as the rules say', async (t) => {
  const database = await freshDatabase(t);
  const clock = handClock();
  const vault = await openVault(t, database, { now: clock.now });
  const owner = new Client(adminConnection(database.adminUrl));
  await owner.connect();
  t.teardown(() => owner.end());
  /** What the log must say of each call. */
  const told = new Map<string, { action: string; tokens: Record<string, string[]>; code?: string }>();
  let firstCard = 0;
  let destroyed = 0;
  let reborn = 0;
  await fc.assert(
    fc.asyncProperty(rounds, async (all) => {
      const model = new Model();
      const first = (firstCard += 3);
      for (const { afterMs, steps: given, name } of all) {
        clock.advance(afterMs);
        model.now = clock.now().getTime();
        // One transaction takes changes first, then sweeps, then replays (they were true before it), then new work.
        const rank = (step: Step): number => ['change', 'sweep', 'replay', 'tokenize'].indexOf(step.kind);
        const inOrder = given.toSorted((a, b) => rank(a) - rank(b));
        const existing = model.tokens;
        const keyed = [...model.keyed];
        const running = inOrder.map((step): { step: Step; request: string; token?: string; call?: ModelCall; key?: string | null; input?: TokenizeInput; done: Promise<unknown> } | null => {
          const request = randomUUID();
          switch (step.kind) {
            case 'sweep':
              return { step, request, done: vault.sweep() };
            case 'change': {
              const token = existing[step.which % Math.max(1, existing.length)]?.token.token;
              return token === undefined ? null : { step, request, token, done: vault.change(step.action, token, request).catch((error: unknown) => error) };
            }
            case 'replay': {
              const call = keyed[step.which % Math.max(1, keyed.length)];
              return call === undefined ? null : { step, request, call, done: vault.tokenize(call.number, call.input, call.key, request) };
            }
            case 'tokenize': {
              // A name for a known card takes a second transaction, so that it would change places with its neighbours.
              const input = name && given.length === 1 ? { ...step.input, cardholder: `NAME ${step.card}` } : step.input;
              const key = input.reuse === false ? randomUUID() : null;
              return { step, request, key, input, done: vault.tokenize(first + step.card, input, key, request) };
            }
          }
        });
        const answers = await Promise.all(running.map(async (run) => await run?.done));
        for (const [index, run] of running.entries()) {
          if (run === null) continue;
          const { step, request } = run;
          const answer = answers[index];
          if (step.kind === 'sweep') model.sweep();
          else if (step.kind === 'change') {
            const expected = model.change(step.action, run.token!);
            const got = answer as { code?: string; status?: string; expiry?: string | null; card_destroyed?: boolean };
            if ('code' in expected) {
              if (got.code !== expected.code) throw new Error(`${step.action} was answered ${JSON.stringify(answer)}, not ${expected.code}`);
              told.set(request, { action: step.action, code: expected.code, tokens: { [expected.code]: [run.token!] } });
            } else {
              const right = { status: expected.status, expiry: expected.expiry, ...(step.action === 'delete' ? { card_destroyed: expected.destroyed } : {}) };
              const shown = { status: got.status, expiry: got.expiry, ...('card_destroyed' in got ? { card_destroyed: got.card_destroyed } : {}) };
              if (JSON.stringify(shown) !== JSON.stringify(right)) throw new Error(`${step.action} was answered ${JSON.stringify(shown)}, not ${JSON.stringify(right)}`);
              if (expected.destroyed) destroyed += 1;
              told.set(request, { action: step.action, tokens: { [expected.destroyed ? 'card_destroyed' : expected.status]: [run.token!] } });
            }
          } else if (step.kind === 'replay') {
            const fault = model.replayed(run.call!, answer as TokenizeAnswer);
            if (fault !== null) throw new Error(fault);
            told.set(request, { action: 'tokenize', tokens: { replayed: [run.call!.token] } });
          } else {
            const { token, created } = answer as TokenizeAnswer;
            if (created && model.cards.some((card) => card.number === first + step.card && card.destroyed) && !model.cards.some((card) => card.number === first + step.card && !card.destroyed)) reborn += 1;
            const fault = model.tokenize(first + step.card, run.input!, run.key!, answer as TokenizeAnswer);
            if (fault !== null) throw new Error(`tokenize: ${fault}`);
            told.set(request, { action: 'tokenize', tokens: { [created ? 'created' : 'known']: [token] } });
          }
        }
        const faults = model.compare(await readTokens(owner));
        if (faults.length > 0) throw new Error(faults.join('\n'));
      }
    }),
    { numRuns: 15, endOnFailure: true },
  );
  t.same(vault.errors, [], 'one writer alone meets nobody');
  const log = await storedLog(database);
  t.same(log.faults, []);
  const wrong = [...told].flatMap(([request, { action, tokens, code }]) => {
    const right = JSON.stringify([action, code ?? null, tokens]);
    const said = (log.places.get(request) ?? []).map(({ entry }) => JSON.stringify([entry.action, entry.code ?? null, tokensIn(entry)]));
    return said.length === 1 && said[0] === right ? [] : [`${said.join() || 'nothing'} instead of ${right}`];
  });
  t.same(wrong, [], 'the log says of each call what became of its token, once');
  t.ok(destroyed > 5, `${destroyed} cards were destroyed by a deletion`);
  t.ok(reborn > 1, `${reborn} numbers came again after their card was destroyed`);
});

// ---- What the model does not show.

const rowVersions = async (database: FreshDatabase, token: string): Promise<number> => (await storedTokens(database)).get(token)!.rowVersion;
const eventTypes = async (database: FreshDatabase): Promise<string[]> => (await asOwner<{ type: string }>(database, "SELECT event ->> 'type' AS type FROM outbox o, json_array_elements(o.events) WITH ORDINALITY AS e(event, place) ORDER BY o.made_at, o.number, place")).map(({ type }) => type);

t.test('several operations on one token at the same moment come one after the other, and what changes nothing is no change', async (t) => {
  const database = await freshDatabase(t);
  const vault = await openVault(t, database);
  const { token } = await vault.tokenize(1, { metadata: { n: 1 } });
  const kept = await vault.tokenize(1, { reuse: false }, 'a key');
  const actions = ['resume', 'suspend', 'suspend', 'resume', 'suspend', 'delete', 'resume', 'delete'] as const;
  const before = (await storedLog(database)).entries.length;
  const answers = await Promise.all(actions.map((action) => vault.change(action, token).catch((error: { code?: string }) => error)));
  t.same(answers.map((answer) => ('status' in answer && 'token' in answer ? answer.status : answer.code)), ['active', 'suspended', 'suspended', 'active', 'suspended', 'revoked', 'token_revoked', 'token_revoked']);
  t.match(answers[5], { card_destroyed: false });
  t.equal(await rowVersions(database, token), 5, 'a version for each change');
  const { entries } = await storedLog(database);
  t.equal(entries.length, before + actions.length, 'an entry for each');
  t.equal(new Set(entries.slice(-actions.length).map(({ number }) => number)).size, 1, 'in one transaction');
  t.same((await eventTypes(database)).slice(2), ['token.suspended', 'token.resumed', 'token.suspended', 'token.deleted'], 'an event for each change');

  t.match(await vault.change('resume', kept.token), { status: 'active' });
  t.equal(await rowVersions(database, kept.token), 1);
});

t.test('with its last token a card is destroyed: nothing sealed is left, and its number makes another card, also at the same moment', async (t) => {
  const database = await freshDatabase(t);
  const vault = await openVault(t, database);
  const first = await vault.tokenize(1, { expiry: '2029-12', cardholder: 'ANA SOUZA', metadata: { n: 1 } });
  const second = await vault.tokenize(1, { reuse: false, metadata: { n: 2 } }, 'second');
  const third = await vault.tokenize(1, { format: 'numeric', ttl_seconds: 100 });
  const [one, two, again, three] = await Promise.all([vault.change('delete', first.token), vault.change('delete', second.token), vault.tokenize(1, {}), vault.change('delete', third.token)]);
  t.same([one, two, three].map((answer) => [answer.card_destroyed, answer.expiry]), [[false, '2029-12'], [false, '2029-12'], [true, null]]);
  t.equal(again.created, true);
  t.not(again.card_id, first.card_id);
  const stored = await storedTokens(database);
  for (const { token } of [first, second, third]) {
    const row = stored.get(token)!;
    t.same({ status: row.status, fingerprint: row.fingerprint.length, pan: row.sealedPan.length, name: row.sealedName, expiry: row.expiry, metadata: row.metadata, genuine: row.genuine }, { status: 'revoked', fingerprint: 0, pan: 0, name: null, expiry: null, metadata: null, genuine: true });
    t.equal(`card_${row.cardId.toString('hex')}`, first.card_id, 'its name stays with its dead tokens');
    for (const action of ['suspend', 'resume', 'delete'] as const) t.equal(await codeOf(vault.change(action, token)), 'token_revoked');
  }
  t.notOk(JSON.stringify(await asOwner(database, 'SELECT c::text, t::text FROM cards c LEFT JOIN tokens t ON t.card_token = c.token')).includes(Buffer.from('ANA SOUZA').toString('hex')));
  t.match(await vault.tokenize(1, { reuse: false, metadata: { n: 2 } }, 'second'), { token: second.token, status: 'revoked', created: true, card_id: first.card_id, expiry: null }, 'its key still tells of it');
});

t.test("another tenant's token, one that was never made, and what is none are unknown, and only the well formed are named in the log", async (t) => {
  const database = await freshDatabase(t);
  const [acme, globex] = [await openVault(t, database), await openVault(t, database, { tenant: 'globex' })];
  const [opaque, numeric] = [await globex.tokenize(1), await globex.tokenize(1, { format: 'numeric' })];
  const never = makeToken(new Date(), pooledRandom());
  const request = randomUUID();
  for (const token of [opaque.token, numeric.token, never, 'tok_nothing', '', digitsOf(1).toString('latin1')]) {
    for (const action of ['suspend', 'resume', 'delete'] as const) t.equal(await codeOf(acme.change(action, token, request)), 'token_unknown');
  }
  const said = (await storedLog(database)).places.get(request)!.map(({ entry }) => JSON.stringify([tokensIn(entry), (entry as { items?: object }).items]));
  t.same([...new Set(said)], [opaque.token, numeric.token, never].map((token) => JSON.stringify([{ token_unknown: [token] }, undefined])).concat(JSON.stringify([{}, { malformed: 1 }])));
  t.same([...(await storedTokens(database)).values()].map(({ status, rowVersion }) => [status, rowVersion]), [['active', 1], ['active', 1]]);
});

// ---- Two writers.

/** Stops a writer before its next statement of a name, until it is let go; or has that statement fail. */
class Gate {
  readonly #stops = new Map<string, { reached: () => void; free: Promise<void> }>();
  readonly #deadlocks = new Set<string>();

  connector = (real: WriterConnector): WriterConnector => ({
    connect: async () => {
      const session = await real.connect();
      const query = session.client.query.bind(session.client) as (statement: unknown) => Promise<unknown>;
      session.client.query = (async (statement: unknown) => {
        const name = typeof statement === 'string' ? statement : (statement as { name: string }).name;
        if (this.#deadlocks.delete(name)) return await query("DO $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$");
        const stop = this.#stops.get(name);
        if (stop === undefined) return await query(statement);
        this.#stops.clear();
        stop.reached();
        await stop.free;
        return await query(statement);
      }) as never;
      return session;
    },
  });

  /** Stops it before `statement`, once. Only for statements that nothing is sent behind. */
  before(statement: string): { readonly reached: Promise<void>; readonly free: () => void } {
    const reached = Promise.withResolvers<void>();
    const free = Promise.withResolvers<void>();
    this.#stops.set(statement, { reached: reached.resolve, free: free.promise });
    return { reached: reached.promise, free: free.resolve };
  }

  /** Makes it the one that a deadlock is broken with at its next `statement`. @returns whether that is still to come. */
  deadlockAt(statement: string): () => boolean {
    this.#deadlocks.add(statement);
    return () => this.#deadlocks.has(statement);
  }
}

interface Meeting {
  readonly database: FreshDatabase;
  readonly one: MemoryVault;
  readonly gate: Gate;
  readonly other: MemoryVault;
  readonly owner: Client;
  /** Resolves once so many writers wait for a lock. */
  readonly waiting: (count: number) => Promise<void>;
}

/** Two writers over one database, of which the first can be stopped. */
async function meeting(t: Test, options: { readonly now?: () => Date; readonly random?: () => RandomBytes } = {}): Promise<Meeting> {
  const database = await freshDatabase(t);
  const owner = new Client(adminConnection(database.adminUrl));
  await owner.connect();
  t.teardown(() => owner.end());
  // Who holds the role may see what its sessions wait for.
  await owner.query(`GRANT "${database.database}_tokenize" TO CURRENT_USER`);
  const gate = new Gate();
  const of = (): MemoryVaultOptions => ({ ...(options.now === undefined ? {} : { now: options.now }), ...(options.random === undefined ? {} : { random: options.random() }) });
  return {
    database,
    gate,
    owner,
    one: await openVault(t, database, { ...of(), connector: gate.connector }),
    other: await openVault(t, database, of()),
    waiting: (count) => until(async () => (await owner.query("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")).rowCount === count, `${count} that wait`),
  };
}

/** What must be true of every card and token, whatever happened. */
function faultsOf(stored: ReadonlyMap<string, StoredToken>): string[] {
  const faults: string[] = [];
  const cards = Map.groupBy(stored.values(), (row) => `${row.tenantId} ${row.cardToken}`);
  for (const tokens of cards.values()) {
    const [card] = tokens;
    const destroyed = card!.fingerprint.length === 0;
    if (tokens.some((row) => !row.genuine)) faults.push('a MAC does not hold');
    if (destroyed !== (card!.sealedPan.length === 0)) faults.push('a card is half destroyed');
    if (destroyed !== tokens.every((row) => row.status === null || isDead(row.status))) faults.push(`a card with ${tokens.map((row) => row.status).join()} is ${destroyed ? '' : 'not '}destroyed`);
    if (tokens.some((row) => row.status !== null && isDead(row.status) && row.metadata !== null)) faults.push('a dead token has metadata');
    for (const format of ['opaque', 'numeric']) if (tokens.filter((row) => row.format === format && row.reusable === true).length > 1) faults.push('two tokens of one format are answered again');
  }
  const standing = [...cards.values()].map(([card]) => card!.fingerprint.toString('hex')).filter((fingerprint) => fingerprint !== '');
  if (new Set(standing).size < standing.length) faults.push('a number has two cards');
  return faults;
}

t.test('the last token is deleted while another writer adds one, caught at each of its steps', async (t) => {
  const { database, one, gate, other, waiting } = await meeting(t);
  /** Stops the tokenizing writer before a statement, lets the other delete the card's only token, and lets go. */
  const cases: readonly { readonly stop: string; readonly input: TokenizeInput; readonly deleted: 'before' | 'after' }[] = [
    { stop: 'insert-tokens', input: { reuse: false }, deleted: 'before' },
    { stop: 'insert-tokens', input: { format: 'numeric' }, deleted: 'before' },
    { stop: 'insert-tokens', input: { ttl_seconds: 1000 }, deleted: 'before' },
    { stop: 'update-cards', input: { expiry: '2030-01' }, deleted: 'before' },
    { stop: 'update-cards', input: { cardholder: 'ANA' }, deleted: 'before' },
    { stop: 'count-standing', input: { reuse: false }, deleted: 'after' },
    { stop: 'update-cards', input: { reuse: false, expiry: '2030-01' }, deleted: 'after' },
    { stop: 'COMMIT', input: { reuse: false }, deleted: 'after' },
  ];
  for (const [card, { stop, input, deleted }] of cases.entries()) {
    const message = `${stop} of ${JSON.stringify(input)}`;
    const first = await one.tokenize(card);
    const held = gate.before(stop);
    const adding = one.tokenize(card, input, `key ${card}`);
    await held.reached;
    const deleting = other.change('delete', first.token);
    if (deleted === 'before') await deleting;
    else await waiting(1);
    held.free();
    const [added, gone] = await Promise.all([adding, deleting]);
    const stored = await storedTokens(database);
    t.equal(gone.card_destroyed, deleted === 'before', message);
    t.equal(added.created, true, message);
    t.equal(added.card_id === first.card_id, deleted === 'after', message);
    t.match(stored.get(added.token), { status: 'active', sealedPan: sealedAs('pan', stored.get(added.token)!.cardId, digitsOf(card)) }, message);
    t.equal(added.expiry, input.expiry ?? null, message);
    t.same(faultsOf(stored), [], message);
    t.equal((await one.tokenize(card, input, `key ${card}`)).token, added.token, 'a retry gets the same');
  }
  t.same([...new Set(one.errors.map(({ message }) => message))], ['a card was destroyed meanwhile'], 'each was noticed, and tried again');
  t.same(other.errors, []);
});

t.test('a token is added while another writer holds its card to delete the last one', async (t) => {
  const { database, one, gate, other, waiting } = await meeting(t);
  for (const [card, { stop, input }] of ([{ stop: 'find-others', input: { reuse: false } }, { stop: 'update-tokens-in-cards', input: {} }, { stop: 'destroy-cards', input: { format: 'numeric' } }, { stop: 'COMMIT', input: {} }, { stop: 'COMMIT', input: { expiry: '2031-01', cardholder: 'ANA' } }] as const).entries()) {
    const first = await other.tokenize(card);
    const held = gate.before(stop);
    const deleting = one.change('delete', first.token);
    await held.reached;
    const adding = other.tokenize(card, input, `key ${card}`);
    // One that asks for the token that stands, before the deletion wrote anything, waits for nothing.
    const waits = !(stop === 'update-tokens-in-cards');
    if (waits) await waiting(1);
    else t.match(await adding, { token: first.token, created: false });
    held.free();
    const [added, gone] = await Promise.all([adding, deleting]);
    t.equal(gone.card_destroyed, true, stop);
    if (waits) {
      t.equal(added.created, true, stop);
      t.not(added.card_id, first.card_id, stop);
    }
    t.same(faultsOf(await storedTokens(database)), [], stop);
  }
});

t.test('metadata for a token that another writer deletes meanwhile is not kept with what is dead', async (t) => {
  const { database, one, gate, other } = await meeting(t);
  for (const [card, which] of (['first', 'further'] as const).entries()) {
    const first = await one.tokenize(card, which === 'first' ? {} : { ttl_seconds: 1000 });
    const answered = which === 'first' ? first : await one.tokenize(card);
    await one.tokenize(card, { reuse: false }, `keeps card ${card}`);
    const held = gate.before('update-metadata-of-cards');
    const known = one.tokenize(card, { metadata: { n: 1 } });
    await held.reached;
    await other.change('delete', answered.token);
    held.free();
    await known;
    t.same(faultsOf(await storedTokens(database)), [], which);
  }
});

t.test('two writers make the card\'s token of another format at the same moment: there is one, made once', async (t) => {
  const { database, one, gate, other, waiting } = await meeting(t);
  // The first token is opaque, and both want a numeric one: the second waits until it can see the first's.
  await one.tokenize(1);
  const holding = gate.before('COMMIT');
  const numeric = [one.tokenize(1, { format: 'numeric' })];
  await holding.reached;
  numeric.push(other.tokenize(1, { format: 'numeric' }));
  await waiting(1);
  holding.free();
  const [first, second] = await Promise.all(numeric);
  t.equal(first!.token, second!.token);
  t.same([first!.created, second!.created], [true, false]);
  // The first token is numeric, and both want an opaque one: the second is refused by the index, and tries again.
  await one.tokenize(2, { format: 'numeric' });
  const held = gate.before('insert-tokens');
  const late = one.tokenize(2);
  await held.reached;
  const early = await other.tokenize(2);
  held.free();
  t.match(await late, { token: early.token, created: false });
  t.equal(early.created, true);
  t.same(one.errors.map(({ message }) => message), ['a card got a token of the same format meanwhile']);
  t.same(other.errors, []);
  // Many, unheld.
  for (let card = 10; card < 20; card += 1) {
    await one.tokenize(card, card % 2 === 0 ? {} : { format: 'numeric' });
    const format = card % 2 === 0 ? 'numeric' : 'opaque';
    const answers = await Promise.all(Array.from({ length: 8 }, (_, n) => (n % 2 === 0 ? one : other).tokenize(card, { format })));
    t.equal(new Set(answers.map(({ token }) => token)).size, 1);
    t.equal(answers.filter(({ created }) => created).length, 1);
  }
  t.same(faultsOf(await storedTokens(database)), []);
});

t.test('cards that one call adds tokens to and another deletes are taken in one order: neither waits for the other in a circle', async (t) => {
  const { database, one, other, owner, waiting } = await meeting(t);
  const made = await one.batch([{ card: 1 }, { card: 2 }]) as TokenizeAnswer[];
  const [low, high] = made.map(({ token }, n) => ({ card: n + 1, token })).sort((a, b) => (a.token < b.token ? -1 : 1));
  // A third session makes both wait in the order in which they came, the deleting one first.
  await owner.query('BEGIN');
  await owner.query('SELECT 1 FROM cards WHERE token = $1 FOR UPDATE', [low!.token]);
  const deleting = Promise.all([one.change('delete', low!.token), one.change('delete', high!.token)]);
  await waiting(1);
  const adding = other.batch([{ card: high!.card, input: { reuse: false } }, { card: low!.card, input: { reuse: false } }], 'key');
  await waiting(2);
  await owner.query('COMMIT');
  t.same((await deleting).map(({ card_destroyed: destroyed }) => destroyed), [true, true]);
  t.same((await adding).map((answer) => typeof answer === 'object' && answer.created), [true, true]);
  t.same([...one.errors, ...other.errors].filter(({ code }) => code === '40P01'), [], 'no deadlock');
  t.same(faultsOf(await storedTokens(database)), []);
});


t.test('cards that one call writes in several ways and another deletes are taken in one order too', async (t) => {
  const { database, one, gate, other, waiting } = await meeting(t);
  const further = { reuse: false };
  const mixed: readonly (readonly [high: TokenizeInput, low: TokenizeInput, stop: string])[] = [
    [further, { expiry: '2030-01' }, 'update-cards'],
    [further, { cardholder: 'ANA' }, 'update-cards'],
    [further, { metadata: { n: 1 } }, 'update-metadata-of-cards'],
    [{ expiry: '2030-01' }, { metadata: { n: 1 } }, 'update-metadata-of-cards'],
  ];
  for (const [round, [inHigh, inLow, stop]] of mixed.entries()) {
    const made = (await one.batch([{ card: 2 * round }, { card: 2 * round + 1 }])) as TokenizeAnswer[];
    const [low, high] = made.map(({ token }, n) => ({ card: 2 * round + n, token })).sort((a, b) => (a.token < b.token ? -1 : 1));
    // It has written to the one card and is about to write to the other.
    const held = gate.before(stop);
    const writing = one.batch([{ card: high!.card, input: inHigh }, { card: low!.card, input: inLow }], `key ${round}`);
    await held.reached;
    const deleting = Promise.all([other.change('delete', low!.token), other.change('delete', high!.token)]);
    await waiting(1);
    held.free();
    const [written, deleted] = await Promise.all([writing, deleting]);
    t.same(written.map((answer) => (typeof answer === 'object' ? [answer.card_id, answer.created] : answer)), [high!, low!].map(({ token }, n) => [made.find((card) => card.token === token)!.card_id, n === 0 && inHigh === further]));
    t.same(deleted.map(({ card_destroyed: destroyed }) => destroyed), [true, inHigh !== further]);
    t.same(faultsOf(await storedTokens(database)), []);
  }
  t.same([...one.errors, ...other.errors], [], 'no deadlock');
});

t.test('a writer that waits for its turn to make numeric tokens holds no card that the one before it may want', async (t) => {
  const { one, owner, waiting } = await meeting(t);
  const { token } = await one.tokenize(1);
  // Another worker that is about to give this card a further token.
  await owner.query('BEGIN');
  await owner.query("SELECT pg_advisory_xact_lock(x'636f6672'::int, (SELECT tenant_id FROM cards))");
  const both = Promise.all([one.change('suspend', token), one.tokenize(2, { format: 'numeric' })]);
  await waiting(1);
  await t.resolves(owner.query('SELECT FROM cards WHERE token = $1 FOR KEY SHARE NOWAIT', [token]));
  await owner.query('COMMIT');
  t.match(await both, [{ status: 'suspended' }, { created: true }]);
  const numbers = await owner.query<{ batches: number }>('SELECT count(*)::int AS batches FROM batches');
  t.equal(numbers.rows[0]!.batches, 4, 'two starts, the card, and both in one transaction');
});

t.test('whichever statement a deadlock is broken at, the call is tried again, and what it did stands once', async (t) => {
  const database = await freshDatabase(t);
  const gate = new Gate();
  const vault = await openVault(t, database, { connector: gate.connector });
  const statements = ['insert-cards', 'find-by-fingerprint', 'lock-numeric-tokens', 'find-reusable', 'insert-tokens', 'count-standing', 'update-cards', 'update-names', 'update-metadata-of-tokens', 'find-idempotency-keys', 'insert-idempotency-keys'];
  for (const [card, statement] of statements.entries()) {
    const first = await vault.tokenize(card);
    const numeric = await vault.tokenize(card, { format: 'numeric' });
    const pending = gate.deadlockAt(statement);
    const request = randomUUID();
    const answers = (await vault.batch([{ card: 100 + card }, { card, input: { format: 'numeric', metadata: { n: 1 } } }, { card, input: { reuse: false } }, { card, input: { expiry: '2030-01', cardholder: 'ANA' } }], `key ${card}`, request)) as TokenizeAnswer[];
    t.notOk(pending(), statement);
    t.same(answers.map(({ created }) => created), [true, false, true, false], statement);
    t.same([answers[1]!.token, answers[3]!.token], [numeric.token, first.token], statement);
    const places = (await storedLog(database)).places.get(request)!;
    t.same(places.map(({ entry }) => tokensIn(entry)), [{ created: [answers[0]!.token, answers[2]!.token], known: [numeric.token, first.token] }], statement);
    t.equal((await vault.batch([{ card: 100 + card }, { card, input: { format: 'numeric', metadata: { n: 1 } } }, { card, input: { reuse: false } }, { card, input: { expiry: '2030-01', cardholder: 'ANA' } }], `key ${card}`)).length, 4, 'and its key is kept');
  }
  for (const [n, statement] of ['find-tokens', 'lock-cards', 'find-others', 'update-tokens-in-cards', 'update-tokens-in-tokens', 'destroy-cards'].entries()) {
    const card = 200 + n;
    const [first, second] = [await vault.tokenize(card), await vault.tokenize(card, { format: 'numeric' })];
    const pending = gate.deadlockAt(statement);
    const [one, two] = await Promise.all([vault.change('delete', first.token), vault.change('delete', second.token)]);
    t.notOk(pending(), statement);
    t.same([one.card_destroyed, two.card_destroyed], [false, true], statement);
    t.same([await rowVersions(database, first.token), await rowVersions(database, second.token)], [2, 2], statement);
  }
  t.same([...new Set(vault.errors.map(({ kind, code }) => `${kind} ${String(code)}`))], ['conflict 40P01']);
  t.equal(vault.errors.length, statements.length + 6);
  t.same(faultsOf(await storedTokens(database)), []);
});

t.test('two writers that add, change and delete tokens of the same cards without end lose nothing and leave nothing half done', async (t) => {
  const database = await freshDatabase(t);
  // Small transactions, so that there are many for them to meet in.
  const writers = [await openVault(t, database, { limits: { maxCalls: 8 } }), await openVault(t, database, { limits: { maxCalls: 8 } })];
  const cards = Array.from({ length: 20 }, (_, n) => n);
  const alive = new Map<string, number>();
  const dead = new Set<string>();
  let keys = 0;
  for (const card of cards) alive.set((await writers[0]!.tokenize(card)).token, card);
  for (let round = 0; round < 4; round += 1) {
    const given = [...alive];
    const work: Promise<unknown>[] = [];
    const refused: string[] = [];
    // One of them adds and updates, the other changes and deletes: a transaction that does both may wait in a circle, which costs a second each time.
    const [adding, changing] = round % 2 === 0 ? writers : writers.toReversed();
    for (const card of cards.flatMap((n) => [n, cards.length - 1 - n])) {
      const input: TokenizeInput = card % 5 === round % 5 ? { expiry: `2030-0${round + 1}` } : card % 5 === (round + 1) % 5 ? { format: 'numeric', metadata: { n: round } } : { reuse: false };
      work.push(adding!.tokenize(card, input, input.reuse === false ? `key ${(keys += 1)}` : null).then(({ token }) => alive.set(token, card)));
    }
    // Each token is deleted or suspended, and some are both, at the same moment.
    for (const [n, [token]] of given.entries()) {
      for (const action of n % 3 === 0 ? (['suspend'] as const) : n % 3 === 1 ? (['delete'] as const) : (['suspend', 'delete', 'resume'] as const)) {
        work.push(codeOf(changing!.change(action, token)).then((code) => (code === null ? action === 'delete' && dead.add(token) : refused.push(code))));
      }
    }
    await Promise.all(work);
    for (const token of dead) alive.delete(token);
    t.same([...new Set(refused)].filter((code) => code !== 'token_revoked'), [], `round ${round}: nothing else is refused`);
    const stored = await storedTokens(database);
    t.same(faultsOf(stored), [], `round ${round}`);
    t.same([...dead].filter((token) => stored.get(token)?.status !== 'revoked'), [], 'what was deleted stays so');
    const lost = [...alive].filter(([token, card]) => {
      const row = stored.get(token);
      return row === undefined || (row.status !== 'active' && row.status !== 'suspended') || !row.sealedPan.equals(sealedAs('pan', row.cardId, digitsOf(card)));
    });
    t.same(lost, [], 'and what was given out and not deleted stands, of its own card');
  }
  t.same(writers.flatMap(({ errors }) => errors).filter(({ code }) => code !== undefined), [], 'no deadlock');
  const { faults, entries } = await storedLog(database);
  t.same(faults, []);
  const destroyed = entries.flatMap(({ entry }) => tokensIn(entry)['card_destroyed'] ?? []);
  const rows = [...(await storedTokens(database)).values()];
  t.equal(destroyed.length, new Set(rows.filter((row) => row.fingerprint.length === 0).map((row) => row.cardToken)).size, 'each destroyed card was told of once');
  t.ok(destroyed.length > 3, `${destroyed.length}`);
});

// ---- Numeric tokens that are taken.

/** A source whose numeric tokens are one and the same, the first so many times. */
function repeating(times: number, last4: string): RandomBytes {
  const real = pooledRandom();
  const digit = Array.from({ length: 10 }, (_, n) => n).find((n) => isNumericToken(`99${String(n).repeat(10)}${last4}`))!;
  let left = times;
  return (count) => (count === 32 && left-- > 0 ? Buffer.alloc(count, digit) : real(count));
}

/** Cards with the same last four digits. */
function lookalikes(count: number): number[] {
  const byLast4 = new Map<string, number[]>();
  for (let card = 0; ; card += 1) {
    const last4 = digitsOf(card).toString('latin1', 12);
    const found = [...(byLast4.get(last4) ?? []), card];
    if (found.length === count) return found;
    byLast4.set(last4, found);
  }
}

t.test('a numeric token that is taken is drawn again, wherever it is taken', async (t) => {
  const cards = lookalikes(6);
  const last4 = digitsOf(cards[0]!).toString('latin1', 12);
  const numeric = { format: 'numeric' } as const;

  await t.test('by another item of the call, and by another call of the moment', async (t) => {
    const database = await freshDatabase(t);
    const vault = await openVault(t, database, { random: repeating(4, last4) });
    const batched = (await vault.batch(cards.slice(0, 4).map((card) => ({ card, input: numeric })))) as TokenizeAnswer[];
    t.equal(new Set(batched.map(({ token }) => token)).size, 4);
    t.equal(vault.taken.count, 3);
    const single = await openVault(t, database, { random: repeating(2, last4) });
    const answers = await Promise.all(cards.slice(4).map((card) => single.tokenize(card, numeric)));
    t.equal(new Set([...batched, ...answers].map(({ token }) => token)).size, 6);
    t.ok(single.taken.count >= 2);
    for (const { token, created } of [...batched, ...answers]) t.ok(created && isNumericToken(token) && token.endsWith(last4));
    t.same(faultsOf(await storedTokens(database)), []);
    t.same([...vault.errors, ...single.errors], []);
  });

  await t.test('by a first token, by a further one, by a suspended one, and by one that is no more', async (t) => {
    const database = await freshDatabase(t);
    const state = { left: 0 };
    const fixed = repeating(Number.POSITIVE_INFINITY, last4);
    const real = pooledRandom();
    const vault = await openVault(t, database, { random: (count) => (count === 32 && state.left-- > 0 ? fixed(count) : real(count)) });
    const draw = async (card: number, input: TokenizeInput, key: string | null = null): Promise<TokenizeAnswer> => {
      state.left = 1;
      const answer = await vault.tokenize(card, input, key);
      state.left = 0;
      return answer;
    };
    const first = await draw(cards[0]!, numeric);
    t.equal(vault.taken.count, 0);
    t.not((await draw(cards[1]!, numeric)).token, first.token, 'by a first token');
    t.not((await draw(cards[0]!, { ...numeric, reuse: false }, 'own')).token, first.token, 'of the same card too');
    t.equal(vault.taken.count, 2);
    await vault.change('suspend', first.token);
    t.not((await draw(cards[2]!, numeric)).token, first.token, 'by a suspended one');
    await vault.change('delete', first.token);
    t.not((await draw(cards[3]!, numeric)).token, first.token, 'by one that was deleted');
    t.equal(vault.taken.count, 4);
    const other = await openVault(t, database, { tenant: 'globex', random: repeating(1, last4) });
    t.equal((await other.tokenize(cards[0]!, numeric)).token, first.token, 'another tenant has tokens of its own');

    const further = await freshDatabase(t);
    const vault2 = await openVault(t, further, { random: (count) => (count === 32 && state.left-- > 0 ? fixed(count) : real(count)) });
    await vault2.tokenize(cards[0]!);
    state.left = 1;
    const second = await vault2.tokenize(cards[0]!, numeric);
    t.equal(second.token, first.token);
    state.left = 1;
    t.not((await vault2.tokenize(cards[1]!, numeric)).token, second.token, 'by a further token');
    for (const held of [database, further]) t.same(faultsOf(await storedTokens(held)), []);
  });

  await t.test('by another writer at the same moment, before its transaction is over', async (t) => {
    const { database, one, gate, other, waiting } = await meeting(t, { random: () => repeating(1, last4) });
    const held = gate.before('COMMIT');
    const first = one.tokenize(cards[0]!, numeric);
    await held.reached;
    const second = other.tokenize(cards[1]!, numeric);
    await waiting(1);
    held.free();
    const answers = await Promise.all([first, second]);
    t.equal(new Set(answers.map(({ token }) => token)).size, 2);
    t.equal(one.taken.count + other.taken.count, 1);
    t.same([...one.errors, ...other.errors], []);
    const writers = [await openVault(t, database, { random: repeating(3, last4) }), await openVault(t, database, { random: repeating(3, last4) })];
    const many = await Promise.all(cards.slice(2).map((card, n) => writers[n % 2]!.tokenize(card, numeric)));
    t.equal(new Set([...answers, ...many].map(({ token }) => token)).size, 6);
    t.same(faultsOf(await storedTokens(database)), []);
  });

  await t.test('a source that gives nothing else is given up on, and nothing of the call stands but its entry', async (t) => {
    const database = await freshDatabase(t);
    const vault = await openVault(t, database, { random: repeating(Number.POSITIVE_INFINITY, last4) });
    const first = await vault.tokenize(cards[0]!, numeric);
    for (const call of [(request: string): Promise<unknown> => vault.batch([{ card: cards[0]!, input: { ...numeric, expiry: '2030-01' } }, { card: cards[1]!, input: numeric }], 'a key', request), (request: string): Promise<unknown> => vault.tokenize(cards[1]!, numeric, null, request)]) {
      const request = randomUUID();
      await t.rejects(call(request), { code: 'overloaded', recorded: true });
      t.match((await storedLog(database)).places.get(request), [{ entry: { outcome: 'failed', code: 'overloaded' } }]);
    }
    const stored = await storedTokens(database);
    t.same([...stored.keys()], [first.token]);
    t.equal(stored.get(first.token)!.expiry, null);
    t.ok(vault.taken.count > 3);
  });
});

t.test('twins with one Idempotency-Key whose numeric token is taken get one answer', async (t) => {
  const database = await freshDatabase(t);
  const [held, card] = lookalikes(2);
  const vault = await openVault(t, database, { random: repeating(7, digitsOf(held!).toString('latin1', 12)) });
  await vault.tokenize(held!, { format: 'numeric' });
  const answers = await Promise.all(Array.from({ length: 6 }, () => vault.tokenize(card!, { format: 'numeric', reuse: false }, 'a key')));
  t.equal(new Set(answers.map((answer) => JSON.stringify(answer))).size, 1);
  t.equal((await storedTokens(database)).size, 2);
});

// ---- The sweeper.

t.test('the sweeper takes no more than its limit at once, the earliest first, and leaves nothing in the end', async (t) => {
  const database = await freshDatabase(t);
  const clock = handClock();
  const vault = await openVault(t, database, { now: clock.now });
  // First tokens and further ones, with and without another that keeps their card.
  const made = (await vault.batch(Array.from({ length: 30 }, (_, card) => ({ card, input: { ttl_seconds: 100 + card, expiry: '2030-01' } })))) as TokenizeAnswer[];
  const further = (await vault.batch(Array.from({ length: 30 }, (_, card) => ({ card, input: { format: 'numeric', ttl_seconds: 1000 - card } })))) as TokenizeAnswer[];
  const kept = (await vault.batch(Array.from({ length: 5 }, (_, n) => ({ card: n * 6 })))) as TokenizeAnswer[];
  const stays = await vault.tokenize(100, { ttl_seconds: 5000 });
  clock.advance(99_000);
  t.equal(await vault.sweep(10), 0, 'none has ended yet');
  clock.advance(15_000);
  const entries = async (): Promise<Readonly<Record<string, readonly string[]>>[]> => (await storedLog(database)).entries.filter(({ entry }) => entry.action === 'sweep').map(({ entry }) => tokensIn(entry));
  t.equal(await vault.sweep(10), 10);
  t.equal(await vault.sweep(10), 5, 'those that ended by now: 100 to 114 s');
  t.equal(await vault.sweep(10), 0);
  t.same(await entries(), [{ expired: made.slice(0, 10).map(({ token }) => token) }, { expired: made.slice(10, 15).map(({ token }) => token) }], 'the earliest first, and no entry where there is nothing');
  clock.advance(2_000_000);
  const counts: number[] = [];
  for (let rounds = 0; rounds < 20 && counts.at(-1) !== 0; rounds += 1) counts.push(await vault.sweep(10));
  t.equal(counts.reduce((sum, count) => sum + count, 0), 45, `${counts.join()}: each once`);
  t.ok(counts.every((count) => count <= 20), 'of each table no more than the limit');
  const told = (await entries()).flatMap((tokens) => Object.entries(tokens).flatMap(([outcome, list]) => list.map((token) => ({ token, outcome }))));
  t.equal(told.length, 60);
  t.same(new Set(told.map(({ token }) => token)), new Set([...made, ...further].map(({ token }) => token)));
  const stored = await storedTokens(database);
  t.same(faultsOf(stored), []);
  for (const { token } of [...made, ...further]) t.equal(stored.get(token)!.status, 'expired');
  for (const { token } of [...kept, stays]) t.equal(stored.get(token)!.status, 'active');
  t.same([...stored.values()].filter((row) => row.token === row.cardToken && row.fingerprint.length === 0).length, 25, 'cards without a living token are gone');
  t.equal(new Set(told.filter(({ outcome }) => outcome === 'card_destroyed').map(({ token }) => stored.get(token)!.cardToken)).size, 25, 'and told of');
  t.same(await Promise.all((['suspend', 'resume'] as const).map((action) => codeOf(vault.change(action, made[0]!.token)))), ['token_expired', 'token_expired']);
  t.match(await vault.change('delete', made[1]!.token), { status: 'revoked', card_destroyed: false }, 'it was destroyed before');
});

t.test('a token past its end is expired before the sweeper comes by, and may be deleted; with it goes the card', async (t) => {
  const database = await freshDatabase(t);
  const clock = handClock();
  const vault = await openVault(t, database, { now: clock.now });
  const [one, two] = [await vault.tokenize(1, { ttl_seconds: 10, cardholder: 'ANA' }), await vault.tokenize(1, { ttl_seconds: 10 })];
  clock.advance(10_000);
  t.equal(await codeOf(vault.change('suspend', one.token)), 'token_expired');
  t.match(await vault.change('delete', one.token), { status: 'revoked', card_destroyed: true });
  const stored = await storedTokens(database);
  t.equal(stored.get(two.token)!.status, 'expired', 'its MAC must not need the fingerprint that is gone');
  t.same(faultsOf(stored), []);
  t.equal(await vault.sweep(), 0);
  t.match(await vault.change('delete', two.token), { status: 'revoked', card_destroyed: false });
  t.same(faultsOf(await storedTokens(database)), []);
});

t.test('two sweepers at once mark each token once, and one that meets a deletion leaves it as it is', async (t) => {
  const clock = handClock();
  const { database, one, gate, other, waiting } = await meeting(t, { now: clock.now });
  const made = (await one.batch(Array.from({ length: 8 }, (_, card) => ({ card, input: { ttl_seconds: 1 + card } })))) as TokenizeAnswer[];
  clock.advance(100_000);
  const held = gate.before('update-tokens-in-cards');
  const first = one.sweep(5);
  await held.reached;
  const second = other.sweep(5);
  await waiting(1);
  held.free();
  t.same([await first, await second], [5, 0], 'it looks again at what it waited for');
  const again = gate.before('update-tokens-in-cards');
  const third = one.sweep(5);
  await again.reached;
  const deleting = other.change('delete', made[6]!.token);
  await waiting(1);
  again.free();
  t.equal(await third, 3);
  t.match(await deleting, { status: 'revoked', card_destroyed: false });
  t.same(faultsOf(await storedTokens(database)), []);
  const told = (await storedLog(database)).entries.filter(({ entry }) => entry.action === 'sweep').flatMap(({ entry }) => tokensIn(entry)['card_destroyed'] ?? []);
  t.same(told.toSorted(), made.map(({ token }) => token).toSorted());
});

t.test('a card may have any number of tokens: no call of one of them reads them all at once', { timeout: 120_000 }, async (t) => {
  const database = await freshDatabase(t);
  const clock = handClock();
  let most = 0;
  const connector = (real: WriterConnector): WriterConnector => ({
    connect: async () => {
      const session = await real.connect();
      const query = session.client.query.bind(session.client) as (statement: unknown) => Promise<{ rows?: unknown[] }>;
      session.client.query = (async (statement: unknown) => {
        const result = await query(statement);
        most = Math.max(most, result.rows?.length ?? 0);
        return result;
      }) as never;
      return session;
    },
  });
  const vault = await openVault(t, database, { now: clock.now, connector });
  const rowsOf = async <T>(work: Promise<T>): Promise<[T, number]> => {
    most = 0;
    return [await work, most];
  };
  const many = 1500;
  const add = async (card: number, input: TokenizeInput): Promise<string[]> => {
    const tokens: string[] = [];
    while (tokens.length < many) tokens.push(...((await vault.batch(Array.from({ length: 500 }, () => ({ card, input })), `${tokens.length} of ${card}`)) as TokenizeAnswer[]).map(({ token }) => token));
    return tokens;
  };

  const first = await vault.tokenize(1);
  const living = await add(1, { reuse: false });
  for (const action of ['suspend', 'resume', 'delete'] as const) {
    const [answer, rows] = await rowsOf(vault.change(action, first.token));
    t.ok(rows <= 10, `${action}: ${rows} rows`);
    t.notOk(answer.card_destroyed);
  }
  const [again, vouched] = await rowsOf(vault.tokenize(1));
  t.match(again, { card_id: first.card_id, created: true }, 'one of the living vouches for a card whose first token is dead');
  t.ok(vouched <= 10, `${vouched} rows`);

  // All of them end before the first one is deleted: more than one transaction marks at once are left to the sweeper.
  const second = await vault.tokenize(2);
  const ended = await add(2, { ttl_seconds: 10 });
  clock.advance(11_000);
  const [left, leftRows] = await rowsOf(vault.change('delete', second.token));
  t.equal(left.card_destroyed, false);
  t.ok(leftRows <= 1000, `${leftRows} rows`);
  let swept = 0;
  for (let marked = 1; marked > 0; swept += marked) marked = await vault.sweep(900);
  t.equal(swept, many);
  t.equal((await vault.tokenize(2)).card_id === second.card_id, false, 'the card went with the last of them');

  // All of them are marked before the first one is deleted: each is looked at, a thousand at a time.
  const third = await vault.tokenize(3);
  await add(3, { ttl_seconds: 10 });
  clock.advance(11_000);
  for (let marked = 1; marked > 0; ) marked = await vault.sweep(900);
  const fourth = await vault.tokenize(4);
  const [tampered] = (await add(4, { ttl_seconds: 1000 })) as [string];
  await asOwner(database, "UPDATE tokens SET status = 3 WHERE card_token = $1", [fourth.token]);
  const [gone, goneRows] = await rowsOf(vault.change('delete', third.token));
  t.equal(gone.card_destroyed, true);
  t.ok(goneRows <= 1000, `${goneRows} rows`);
  t.equal((await vault.change('delete', fourth.token)).card_destroyed, false, 'what was made to look dead does not take its card along');
  const stored = await storedTokens(database);
  t.equal(stored.get(third.token)!.fingerprint.length, 0);
  t.equal(stored.get(tampered)!.fingerprint.length, 32);
  for (const token of [...living, ...ended]) if (!stored.get(token)!.genuine) t.fail(token);
});

t.test('of the cards that end in one transaction no more tokens are marked at once than memory is for; the sweeper does the rest', { timeout: 120_000 }, async (t) => {
  const database = await freshDatabase(t);
  const clock = handClock();
  const vault = await openVault(t, database, { now: clock.now });
  const cards = 13;
  const each = 1000;
  const first: TokenizeAnswer[] = [];
  for (let card = 0; card < cards; card += 1) {
    first.push(await vault.tokenize(card));
    await vault.batch(Array.from({ length: each }, () => ({ card, input: { ttl_seconds: 10 } })));
  }
  // As autovacuum does within a minute: plans made while the tables were empty read all tokens of all cards for each.
  await asOwner(database, 'ANALYZE cards, tokens');
  clock.advance(11_000);
  const destroyed = (await Promise.all(first.map(({ token }) => vault.change('delete', token)))).filter((answer) => answer.card_destroyed).length;
  t.equal(new Set((await storedLog(database)).entries.filter(({ entry }) => entry.action === 'delete').map(({ number }) => number)).size, 1, 'they shared a transaction');
  t.equal(destroyed, 10);
  let swept = 0;
  for (let marked = 1; marked > 0; swept += marked) marked = await vault.sweep(900);
  t.equal(swept, (cards - destroyed) * each, 'what was left');
  t.same([...(await storedTokens(database)).values()].filter(({ fingerprint }) => fingerprint.length > 0), [], 'and no card is');
});

// ---- Rows that somebody changed.

interface Tampering {
  readonly database: FreshDatabase;
  readonly vault: MemoryVault;
  readonly clock: ReturnType<typeof handClock>;
  readonly tamper: (sql: string, ...values: unknown[]) => Promise<void>;
}

async function tampering(t: Test): Promise<Tampering> {
  const database = await freshDatabase(t);
  const clock = handClock();
  return { database, clock, vault: await openVault(t, database, { now: clock.now }), tamper: async (sql, ...values) => void (await asOwner(database, sql, values)) };
}

/** Whether a card is as it was sealed. */
const stands = (stored: ReadonlyMap<string, StoredToken>, token: string, card: number): boolean => {
  const row = stored.get(token)!;
  return row.sealedPan.equals(sealedAs('pan', row.cardId, digitsOf(card))) && row.fingerprint.length === 32;
};

t.test('a token whose row was changed is refused as internal whatever is asked of it, and never takes its card with it', async (t) => {
  const { database, vault, clock, tamper } = await tampering(t);
  const edits = ['status = 1', 'status = 2', 'status = 3', 'status = 9', 'row_version = row_version + 1', 'row_version = -1', "token_expires_at = '2026-01-01'", "token_expires_at = '2030-01-01'", "token_expires_at = '-infinity'", "token_expires_at = 'infinity'", "token_mac = '\\x00'", "token_mac = decode(repeat('00', 16), 'hex')"];
  let card = 0;
  for (const table of ['cards', 'tokens'] as const) {
    for (const edit of edits) {
      card += 1;
      const message = `${table}: ${edit}`;
      const [first, further] = [await vault.tokenize(card), await vault.tokenize(card, { format: 'numeric' })];
      const [bad, good] = table === 'cards' ? [first, further] : [further, first];
      await tamper(`UPDATE ${table} SET ${edit} WHERE token = $1`, bad.token);
      for (const action of ['suspend', 'resume', 'delete'] as const) t.equal(await codeOf(vault.change(action, bad.token)), 'internal', `${message}, ${action}`);
      if (!/status = [239]/u.test(edit) && !edit.startsWith('token_expires_at')) t.equal(await codeOf(vault.tokenize(card, { format: bad.format })), 'internal', `${message}, tokenize`);
      clock.advance(1000);
      t.equal(await vault.sweep(), 0, `${message}, the sweeper`);
      t.match(await vault.change('delete', good.token), { status: 'revoked', card_destroyed: false }, `${message}: the other token's end is not the card's`);
      t.ok(stands(await storedTokens(database), bad.token, card), `${message}: the card stands`);
    }
  }
});

t.test('a dead token that is revived is refused, and so is one that is pointed at another card', async (t) => {
  const { database, vault, clock, tamper } = await tampering(t);
  // Of cards that stand, and of one that was destroyed.
  const [first, further] = [await vault.tokenize(1, { ttl_seconds: 10 }), await vault.tokenize(1)];
  const gone = await vault.tokenize(2);
  const other = await vault.tokenize(3);
  clock.advance(10_000);
  await vault.sweep();
  await vault.change('delete', gone.token);
  for (const status of [0, 1]) {
    for (const end of ['NULL', 'token_expires_at', "'2030-01-01'"]) {
      for (const { token } of [first, gone]) {
        const { rowVersion, expiresAt, status: before } = (await storedTokens(database)).get(token)!;
        for (const version of [rowVersion, rowVersion - 1]) {
          await tamper(`UPDATE cards SET status = ${status}, row_version = ${version}, token_expires_at = ${end} WHERE token = $1`, token);
          for (const action of ['suspend', 'resume', 'delete'] as const) t.equal(await codeOf(vault.change(action, token)), 'internal');
        }
        await tamper('UPDATE cards SET status = $2, row_version = $3, token_expires_at = $4 WHERE token = $1', token, before === 'expired' ? 3 : 2, rowVersion, expiresAt);
      }
    }
  }
  t.same(faultsOf(await storedTokens(database)), [], 'all is as it was');

  await tamper('UPDATE tokens SET card_token = $2 WHERE token = $1', further.token, other.token);
  for (const action of ['suspend', 'resume', 'delete'] as const) t.equal(await codeOf(vault.change(action, further.token)), 'internal');
  t.match(await vault.change('delete', other.token), { card_destroyed: false }, 'a token that does not belong to it keeps a card from being destroyed');
  t.ok(stands(await storedTokens(database), other.token, 3));
  const dead = await vault.tokenize(4, { ttl_seconds: 10 });
  const more = await vault.tokenize(4, { ttl_seconds: 10, format: 'numeric' });
  clock.advance(10_000);
  await vault.change('delete', more.token);
  t.equal((await storedTokens(database)).get(dead.token)!.fingerprint.length, 0);
  await tamper('UPDATE tokens SET card_token = $2 WHERE token = $1', more.token, first.token);
  t.equal(await codeOf(vault.change('delete', more.token)), 'internal', 'a dead one at another card');
});

t.test('what a fingerprint that was moved to another card finds is not used', async (t) => {
  const { database, vault, clock, tamper } = await tampering(t);
  const ways: readonly TokenizeInput[] = [{}, { expiry: '2031-01' }, { cardholder: 'ANA' }, { metadata: { n: 1 } }, { reuse: false }, { format: 'numeric' }, { format: 'numeric', reuse: false }, { ttl_seconds: 100 }];
  /** Cards by what their tokens are. All have one that is alive. */
  const makers: Readonly<Record<string, (card: number) => Promise<void>>> = {
    'a first token': async (card) => void (await vault.tokenize(card)),
    'a suspended first token': async (card) => void (await vault.change('suspend', (await vault.tokenize(card)).token)),
    'a deleted first token and a living one': async (card) => {
      const { token } = await vault.tokenize(card);
      await vault.tokenize(card, { reuse: false }, `of ${card}`);
      await vault.change('delete', token);
    },
    'a first token past its end and a living one of the other format': async (card) => {
      await vault.tokenize(card, { ttl_seconds: 1 });
      await vault.tokenize(card, { format: 'numeric', ttl_seconds: 100_000 });
      clock.advance(1000);
      await vault.sweep();
    },
  };
  let card = 0;
  for (const [what, make] of Object.entries(makers)) {
    const [victim, attacker] = [(card += 2), card + 1];
    await make(victim);
    await vault.tokenize(attacker);
    const before = await storedTokens(database);
    const keyOf = (n: number): string => [...before.values()].find((row) => row.token === row.cardToken && row.sealedPan.equals(sealedAs('pan', row.cardId, digitsOf(n))))!.token;
    const [target, source] = [keyOf(victim), keyOf(attacker)];
    const fingerprints = [before.get(target)!.fingerprint, before.get(source)!.fingerprint];
    // Whoever tokenizes the attacker's number now finds the victim's card.
    const move = async (ofTarget: Buffer | null, ofSource: Buffer | null): Promise<void> => {
      await tamper('UPDATE cards SET fingerprint = NULL WHERE token = ANY($1::text[])', [target, source]);
      await tamper('UPDATE cards SET fingerprint = $2 WHERE token = $1', target, ofTarget);
      await tamper('UPDATE cards SET fingerprint = $2 WHERE token = $1', source, ofSource);
    };
    for (const [swap, [ofTarget, ofSource]] of ([[fingerprints[1]!, fingerprints[0]!], [fingerprints[1]!, null]] as const).entries()) {
      await move(ofTarget, ofSource);
      for (const [n, way] of ways.entries()) t.equal(await codeOf(vault.tokenize(attacker, way, `${what} ${swap} ${n}`)), 'internal', `${what}: ${JSON.stringify(way)}`);
      t.same(await vault.batch([{ card: attacker, input: { reuse: false } }, { card: 1000 + card }], `${what} ${swap}`).then((answers) => answers.map((answer) => (typeof answer === 'string' ? answer : answer.created))), ['internal', swap === 0]);
      t.equal(await vault.sweep(), 0);
      await move(fingerprints[0]!, fingerprints[1]!);
    }
    const after = await storedTokens(database);
    t.same(
      [...after.values()].filter(({ cardToken }) => cardToken === target || cardToken === source),
      [...before.values()].filter(({ cardToken }) => cardToken === target || cardToken === source),
      `${what}: nothing was written`,
    );
    t.equal((await vault.tokenize(attacker, { reuse: false }, `${what} afterwards`)).card_id, `card_${before.get(source)!.cardId.toString('hex')}`, 'put back, it is used again');
    t.equal((await vault.tokenize(victim, { reuse: false }, `${what} afterwards too`)).card_id, `card_${before.get(target)!.cardId.toString('hex')}`);
  }
});

t.test('a card that was destroyed does not come back with its fingerprint', async (t) => {
  const { database, vault, tamper } = await tampering(t);
  const gone = await vault.tokenize(1);
  const { fingerprint, sealedPan } = (await storedTokens(database)).get(gone.token)!;
  await vault.change('delete', gone.token);
  // As from a backup. Its token is dead for good, and its MAC, which holds, says nothing of the fingerprint.
  await tamper('UPDATE cards SET fingerprint = $2, sealed_pan = $3 WHERE token = $1', gone.token, fingerprint, sealedPan);
  for (const [n, way] of ([{}, { reuse: false }, { format: 'numeric' }, { ttl_seconds: 5 }] as const).entries()) t.equal(await codeOf(vault.tokenize(1, way, `key ${n}`)), 'internal', JSON.stringify(way));
  t.equal((await storedTokens(database)).size, 1);
  t.equal(await codeOf(vault.change('resume', gone.token)), 'token_revoked');
});

t.test('a token that was made to be answered again, and is not meant to be, is not', async (t) => {
  const { database, vault, clock, tamper } = await tampering(t);
  for (const [card, make] of ([
    async (card: number) => (await vault.tokenize(card, { ttl_seconds: 100_000 })).token,
    async (card: number) => {
      const { token } = await vault.tokenize(card, { reuse: false }, `a ${card}`);
      await vault.change('delete', token);
      return token;
    },
  ] as const).entries()) {
    const first = await vault.tokenize(card, { format: 'numeric' });
    const token = await make(card);
    await tamper('UPDATE tokens SET reusable = true WHERE token = $1', token);
    t.equal(await codeOf(vault.tokenize(card)), 'internal');
    t.match(await vault.tokenize(card, { format: 'numeric' }), { token: first.token }, 'others of the card are');
  }
  clock.advance(1);
  t.equal((await storedTokens(database)).size, 4);
});

t.test('rows that cannot be marked do not keep the sweeper from those behind them', async (t) => {
  const { database, vault, clock, tamper } = await tampering(t);
  const made = (await vault.batch(Array.from({ length: 9 }, (_, card) => ({ card, input: { ttl_seconds: 10 + card } })))) as TokenizeAnswer[];
  for (const { token } of made.slice(0, 4)) await tamper('UPDATE cards SET row_version = row_version + 1 WHERE token = $1', token);
  clock.advance(100_000);
  let marked = 0;
  for (let rounds = 0; rounds < 10; rounds += 1) marked += await vault.sweep(2);
  t.equal(marked, 5);
  const stored = await storedTokens(database);
  for (const [card, { token }] of made.entries()) t.equal(stands(stored, token, card), card < 4);
});

t.test("the sweeper does not go through the tokens of a tenant that is no longer the vault's", async (t) => {
  const database = await freshDatabase(t);
  const clock = handClock();
  const statements: string[] = [];
  const connector = (real: WriterConnector): WriterConnector => ({
    connect: async () => {
      const session = await real.connect();
      const query = session.client.query.bind(session.client) as (statement: unknown) => Promise<unknown>;
      session.client.query = ((statement: { name?: string }) => {
        statements.push(statement.name ?? '');
        return query(statement);
      }) as never;
      return session;
    },
  });
  const vault = await openVault(t, database, { now: clock.now, connector });
  const made = (await vault.batch(Array.from({ length: 20 }, (_, card) => ({ card, input: { ttl_seconds: 10 } })))) as TokenizeAnswer[];
  await vault.batch(made.map((_, card) => ({ card, input: { ttl_seconds: 10, format: 'numeric' } })));
  await asOwner(database, 'ALTER TABLE tokens DROP CONSTRAINT tokens_tenant_id_card_token_fkey');
  await asOwner(database, 'UPDATE tokens SET tenant_id = 77');
  await asOwner(database, 'UPDATE cards SET tenant_id = 77');
  await vault.tokenize(100, { ttl_seconds: 10 });
  clock.advance(11_000);
  t.equal(await vault.sweep(2), 1, 'its own');
  statements.length = 0;
  t.equal(await vault.sweep(2), 0);
  t.same(statements.filter((name) => name === 'find-ending' || name === 'lock-cards'), ['find-ending']);
});
