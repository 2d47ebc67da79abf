/**
 * A load of every kind of call that keeps a ledger of what each was answered, and the reckoning with all that stands afterwards: nothing
 * acknowledged is lost, nothing is done twice, and what was not acknowledged stands whole or not at all.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { batchHeader, checkChain, headerHash, readWriterCertificate, writerName, type Batch } from '../../audit/chain.ts';
import { decodeBundle } from '../../audit/entry.ts';
import { openNote } from '../../audit/note.ts';
import { readBatches, readWriters } from '../../audit/store.ts';
import { ApiClient, type Reply, type Transcript } from './api-client.ts';
import { logVerifier } from './log-reader.ts';
import { seeded } from './made-cards.ts';
import type { Credentials } from './pki.ts';
import { cardText } from './test-cards.ts';

/** A vault under test. Its port stays the same over restarts; an `Appliance` is one once it is told which. */
export interface LedgerTarget {
  readonly home: string;
  readonly authority: string;
  /** Reads every table. */
  readonly databaseUrl: string;
  credentials(name: string): Credentials;
}

export interface LedgerOptions {
  readonly port: number;
  readonly seed: number;
  /** Calls under way at once. */
  readonly lanes: number;
  /** Mean time between an answer and the lane's next call. */
  readonly pauseMs: number;
  /** Whether the vault stores events. */
  readonly outbox: boolean;
  /** A call that is not acknowledged in this time is a fault; a minute by default. */
  readonly patienceMs?: number;
}

type Format = 'opaque' | 'numeric';

/** A token that was acknowledged, as it must stand. */
interface Made {
  readonly token: string;
  readonly card: Card;
  readonly format: Format;
  readonly expiresAt: number | null;
  status: 'active' | 'suspended' | 'revoked';
  /** Events of its changes. */
  readonly changes: string[];
}

interface Card {
  readonly number: number;
  readonly tokens: Made[];
  /** The token of a format that is answered again, where it is not the first one. */
  readonly reusable: Map<Format, Made>;
  id: string | null;
  expiry: string | null;
  name: string | null;
}

interface Item {
  readonly card: Card;
  readonly body: { readonly pan: string; readonly expiry?: string; readonly cardholder?: string; readonly format?: Format; readonly reuse?: boolean; readonly ttl_seconds?: number; readonly metadata?: object };
}

interface TokenizeCall {
  readonly id: number;
  readonly key: string | null;
  readonly items: readonly Item[];
  readonly isBatch: boolean;
  /** Tokens that it was answered with, and whether it made each. */
  answer: readonly { readonly token: string; readonly created: boolean }[] | null;
  /** Whether an attempt of it may have been done without an answer. */
  unknown: boolean;
}

/** Codes that say that nothing of the call was or will be done, and why it may not stand in the log. */
const undone: ReadonlySet<string> = new Set(['store_unavailable', 'audit_unavailable', 'overloaded', 'sealed']);

interface Lane {
  readonly index: number;
  readonly dice: (bound: number) => number;
  /** Cards of this lane's own, at rest: no other lane touches them. */
  readonly cards: Card[];
}

/** Cards of a lane that further calls may mean. */
const poolSize = 150;
const retryMs = 60;

export interface LedgerCounts {
  /** Calls that were answered for good. */
  acknowledged: number;
  /** Attempts that were refused for now: nothing was done. */
  refused: number;
  /** Attempts whose outcome nobody told. */
  unknown: number;
  /** Calls with such an attempt that were told afterwards. */
  settled: number;
}

export class Ledger {
  readonly counts: LedgerCounts = { acknowledged: 0, refused: 0, unknown: 0, settled: 0 };
  /** What was wrong with answers as they came. */
  readonly faults: string[] = [];
  readonly #target: LedgerTarget;
  readonly #options: LedgerOptions;
  readonly #checkout: ApiClient;
  readonly #getnet: ApiClient;
  /** Answers are looked at here and not kept. */
  readonly #transcript: Transcript = [];
  readonly #lanes: Lane[];
  #running: Promise<void>[] = [];
  #pausing = true;
  #nextCard = 1;
  #nextCall = 1;
  readonly #tokens = new Map<string, Made>();
  readonly #cards: Card[] = [];
  /** Calls with an Idempotency-Key that were acknowledged. */
  readonly #keyed: TokenizeCall[] = [];
  /** Calls that were left without an answer. */
  readonly #open: TokenizeCall[] = [];
  /** Request ids of acknowledged calls, and whether they succeeded. */
  readonly #answered = new Map<string, boolean>();
  /** Request ids of calls that must not have been done. */
  readonly #undone = new Set<string>();
  /** Request ids of calls that failed for want of the HSM. */
  readonly #failed = new Set<string>();
  /** Attempts that may have been done without an answer, by action. */
  readonly #lost = new Map<string, number>();
  /** Why an outcome was not known, one a try: a code of the vault's or of the connection's. */
  readonly unknownCauses: string[] = [];
  /** How far the lists above were looked through by the last reckoning. */
  #checked = { tokens: 0, keyed: 0 };

  constructor(target: LedgerTarget, options: LedgerOptions) {
    this.#target = target;
    this.#options = options;
    const client = (name: string): ApiClient =>
      new ApiClient({ port: options.port, authority: target.authority, credentials: target.credentials(name), connections: options.lanes * 2, transcript: this.#transcript });
    this.#checkout = client('checkout');
    this.#getnet = client('getnet');
    this.#lanes = Array.from({ length: options.lanes }, (_, index) => ({ index, dice: diceOf(options.seed, index), cards: [] }));
  }

  /** Starts the load, or goes on with it. */
  resume(): void {
    this.#pausing = false;
    this.#running = this.#lanes.map((lane) => this.#run(lane));
  }

  /** Resolves once every call under way was acknowledged, or left open. The vault must serve again for that. */
  async pause(): Promise<void> {
    this.#pausing = true;
    await Promise.all(this.#running);
    this.#running = [];
  }

  close(): void {
    this.#pausing = true;
    this.#checkout.close();
    this.#getnet.close();
  }

  get cards(): number {
    return this.#cards.length;
  }

  get tokens(): number {
    return this.#tokens.size;
  }

  /** Calls that nobody has an answer to yet. */
  get open(): number {
    return this.#open.length;
  }

  async #run(lane: Lane): Promise<void> {
    while (!this.#pausing) {
      this.#transcript.length = 0;
      await this.#step(lane);
      await sleep(lane.dice(2 * this.#options.pauseMs + 1));
    }
  }

  /** One call, or two at once, by the dice. */
  async #step(lane: Lane): Promise<void> {
    const { dice } = lane;
    const known = lane.cards[dice(Math.max(1, lane.cards.length))];
    const roll = dice(100);
    if (known === undefined || roll < 14) await this.#tokenizeNew(lane, null);
    else if (roll < 24) await this.#tokenizeNew(lane, this.#newKey());
    else if (roll < 29) await this.#tokenizeTwins(lane);
    else if (roll < 33) await this.#tokenizeShortLived(lane);
    else if (roll < 43) await this.#tokenizeBatch(lane);
    else if (roll < 51) await this.#deliver(lane, this.#call([{ card: known, body: { pan: cardText(known.number), reuse: false, ...(dice(3) === 0 ? { format: 'numeric' } : {}), ...(dice(4) === 0 ? { ttl_seconds: 100_000 } : {}) } }], this.#newKey()));
    else if (roll < 60) await this.#deliver(lane, this.#call([{ card: known, body: { pan: cardText(known.number), ...(dice(3) === 0 ? { format: 'numeric' } : {}), ...(dice(3) === 0 ? { expiry: expiryOf(dice) } : {}), ...(dice(4) === 0 ? { cardholder: `NAME ${dice(1000)}` } : {}) } }], null));
    else if (roll < 75) await this.#detokenize(known.tokens[dice(known.tokens.length)]!);
    else if (roll < 80) await this.#detokenizeBatch(Array.from({ length: 1 + dice(6) }, () => lane.cards[dice(lane.cards.length)]!).map((card) => card.tokens[dice(card.tokens.length)]!));
    else await this.#changeToken(lane, known.tokens[dice(known.tokens.length)]!);
  }

  #newCard(): Card {
    return { number: this.#nextCard++, tokens: [], reusable: new Map(), id: null, expiry: null, name: null };
  }

  #newKey(): string {
    return `key-${this.#nextCall}-${this.#options.seed}`;
  }

  /** Metadata ties rows to the call that made them, whether it was acknowledged or not; only for calls that make all their tokens. */
  #call(items: readonly Item[], key: string | null, isBatch = false): TokenizeCall {
    return { id: this.#nextCall++, key, items, isBatch, answer: null, unknown: false };
  }

  #newItem(lane: Lane, card: Card, more: Partial<Item['body']> = {}): Item {
    const { dice } = lane;
    return { card, body: { pan: cardText(card.number), metadata: { call: this.#nextCall }, ...(dice(2) === 0 ? { expiry: expiryOf(dice) } : {}), ...(dice(3) === 0 ? { cardholder: `NAME ${card.number}` } : {}), ...more } };
  }

  async #tokenizeNew(lane: Lane, key: string | null): Promise<void> {
    const numeric = lane.dice(4) === 0 ? ({ format: 'numeric' } as const) : {};
    await this.#deliver(lane, this.#call([this.#newItem(lane, this.#newCard(), { ...numeric, ...(key === null ? {} : { reuse: false }) })], key), 40);
  }

  /** The same new card twice at the same moment, which may meet in two processes. */
  async #tokenizeTwins(lane: Lane): Promise<void> {
    const item = this.#newItem(lane, this.#newCard(), { metadata: {} });
    const calls = [this.#call([item], null), this.#call([item], null)];
    const replies = await Promise.all(calls.map((call) => this.#until('tokenize', () => this.#send(call), (): void => void (call.unknown = true))));
    const answers = replies.flatMap((reply) => (reply === null ? [] : [reply.json()]));
    if (answers.length < 2) return;
    if (answers[0]!['token'] !== answers[1]!['token']) this.#fault('one card, asked for twice at once, got two tokens');
    const made = answers.filter(({ created }) => created === true).length;
    if (made > 1 || (made === 0 && calls.every(({ unknown }) => !unknown))) this.#fault(`one card, asked for twice at once, was made ${made} times`);
    const first = answers.findIndex(({ created }) => created === true);
    this.#accept(lane, { ...calls[0]!, unknown: made === 0 }, [answers[Math.max(0, first)]!]);
  }

  /** With a key: a token with an end is never answered to another call. */
  async #tokenizeShortLived(lane: Lane): Promise<void> {
    await this.#deliver(lane, this.#call([this.#newItem(lane, this.#newCard(), { ttl_seconds: 1 + lane.dice(5) })], this.#newKey()));
  }

  async #tokenizeBatch(lane: Lane): Promise<void> {
    const items = Array.from({ length: 1 + lane.dice(8) }, () => this.#newCard()).flatMap((card) => [
      this.#newItem(lane, card),
      this.#newItem(lane, card, { format: 'numeric' }),
      this.#newItem(lane, card, { reuse: false }),
      this.#newItem(lane, card, { format: 'numeric', ttl_seconds: 100_000 }),
    ]);
    await this.#deliver(lane, this.#call(items, this.#newKey(), true), 40);
  }

  /** Sends a call until it is acknowledged and enters the answer; `leave` percent of those whose outcome is unknown are left open. */
  async #deliver(lane: Lane, call: TokenizeCall, leave = 0): Promise<void> {
    let left = false;
    const lost = (): boolean => {
      call.unknown = true;
      left = lane.dice(100) < leave;
      return left;
    };
    const reply = await this.#until(call.isBatch ? 'tokenize_batch' : 'tokenize', () => this.#send(call, lane.dice(20) === 0), lost);
    if (left) this.#open.push(call);
    else if (reply !== null) this.#enter(lane, call, reply);
  }

  #enter(lane: Lane | null, call: TokenizeCall, reply: Reply): void {
    if (reply.status >= 300) this.#fault(`a tokenize was answered ${reply.status} ${String(reply.json()['code'])}`);
    else this.#accept(lane, call, call.isBatch ? (reply.json()['items'] as Record<string, unknown>[]) : [reply.json()]);
  }

  #send({ key, items, isBatch }: TokenizeCall, last = false): Promise<Reply> {
    const bodies = items.map(({ body }) => body);
    // A connection stays with its process: that of a restarted one must be found anew.
    const headers = { ...(key === null ? {} : { 'idempotency-key': key }), ...(last ? { connection: 'close' } : {}) };
    return this.#checkout.post(isBatch ? '/v1/tokenize/batch' : '/v1/tokenize', isBatch ? { items: bodies } : bodies[0], headers);
  }

  /** Enters an answer, after comparing it with what the ledger says that it must be. */
  #accept(lane: Lane | null, call: TokenizeCall, results: readonly Record<string, unknown>[]): void {
    if (results.length !== call.items.length) return this.#fault('a batch was answered with another number of items');
    for (const [index, { card, body }] of call.items.entries()) {
      const result = results[index]!;
      const { token, created, status, expiry } = result as { token: string; created: boolean; status: string; expiry: string | null };
      if (token === undefined) {
        this.#fault(`an item was refused: ${JSON.stringify(result)}`);
        continue;
      }
      const format = body.format ?? 'opaque';
      const reuses = (body.reuse ?? true) && body.ttl_seconds === undefined;
      const standing = reuses ? reusableOf(card, format) : null;
      let made = this.#tokens.get(token) ?? null;
      if (standing !== null && token !== standing.token) this.#fault('a known card was answered with another token');
      if (standing === null && made !== null) this.#fault('a token was given out twice');
      // What an attempt without an answer has made is known to the next one.
      if (created !== (standing === null) && !(call.key === null && call.unknown && standing === null)) this.#fault(created ? 'a known token is said to be made' : 'a new token is said to be known');
      card.id ??= result['card_id'] as string;
      if (card.id !== result['card_id']) this.#fault('a card changed its id');
      if (made === null) {
        made = { token, card, format, expiresAt: result['expires_at'] === null ? null : Date.parse(result['expires_at'] as string), status: 'active', changes: [] };
        this.#tokens.set(token, made);
        if (card.tokens.length === 0) this.#cards.push(card);
        else if (reuses) card.reusable.set(format, made);
        card.tokens.push(made);
      }
      card.expiry = body.expiry ?? card.expiry;
      card.name = body.cardholder ?? card.name;
      // One that ended while its outcome was unknown says so, and its card may be gone.
      if (status === 'expired' && made.expiresAt !== null && made.expiresAt < Date.now() + 1000) continue;
      if (status !== made.status) this.#fault(`a token that is ${made.status} was answered as ${status}`);
      // In one call a later item may have changed what an earlier one says.
      if (!call.isBatch && expiry !== card.expiry) this.#fault('a card was answered with another expiry');
    }
    call.answer = results.map((result) => ({ token: result['token'] as string, created: result['created'] === true }));
    if (call.key !== null) this.#keyed.push(call);
    for (const card of new Set(call.items.map(({ card }) => card))) {
      if (lane === null || lane.cards.includes(card) || card.tokens.some(({ expiresAt }) => expiresAt !== null && expiresAt < Date.now() + 3_600_000)) continue;
      if (lane.cards.length < poolSize) lane.cards.push(card);
      else lane.cards[lane.dice(poolSize)] = card;
    }
  }

  async #detokenize(made: Made): Promise<void> {
    const reply = await this.#until('detokenize', () => this.#getnet.post('/v1/detokenize', { token: made.token, purpose: 'capture' }));
    if (reply === null) return;
    const { status, body } = opened(made);
    const answered = reply.json();
    const right = reply.status === status && (status === 200 ? same(answered, body) : answered['code'] === body['code']);
    if (!right) this.#fault(`a token that is ${made.status} was opened as ${reply.status} ${status === 200 ? 'with something else' : String(answered['code'])}`);
  }

  async #detokenizeBatch(tokens: readonly Made[]): Promise<void> {
    const reply = await this.#until('detokenize_batch', () => this.#getnet.post('/v1/detokenize/batch', { tokens: tokens.map(({ token }) => token), purpose: 'refund' }));
    if (reply === null) return;
    const items = (reply.json()['items'] as Record<string, unknown>[] | undefined) ?? [];
    const right = items.length === tokens.length && tokens.every((made, index) => {
      const { status, body } = opened(made);
      const item = items[index]!;
      const code = (item['error'] as { code?: unknown } | undefined)?.code;
      return status === 200 ? same(item, body) || code === 'hsm_unavailable' : code === body['code'];
    });
    if (!right) this.#fault(`tokens were opened as something else (${reply.status})`);
  }

  async #changeToken(lane: Lane, made: Made): Promise<void> {
    if (made.status === 'revoked') return;
    const action = lane.dice(4) === 0 ? 'delete' : made.status === 'active' ? 'suspend' : 'resume';
    let unknown = false;
    const path = `/v1/tokens/${made.token}`;
    const reply = await this.#until(action, () => (action === 'delete' ? this.#checkout.call('DELETE', path) : this.#checkout.call('POST', `${path}/${action}`)), () => {
      unknown = true;
    });
    if (reply === null) return;
    const { code, status } = reply.json();
    // The attempt without an answer was done.
    const deletedBefore = action === 'delete' && unknown && code === 'token_revoked';
    const next = action === 'delete' ? 'revoked' : action === 'suspend' ? 'suspended' : 'active';
    if (!deletedBefore && (reply.status !== 200 || status !== next)) return this.#fault(`to ${action} a token that is ${made.status} was answered ${reply.status} ${String(code ?? status)}`);
    made.status = next;
    made.changes.push(action === 'delete' ? 'token.deleted' : action === 'suspend' ? 'token.suspended' : 'token.resumed');
    const { card } = made;
    const over = card.tokens.every((token) => token.status === 'revoked');
    if (over) lane.cards.splice(lane.cards.indexOf(card), 1);
    if (!deletedBefore && action === 'delete' && reply.json()['card_destroyed'] !== over) this.#fault(`the end of a card was told as ${String(reply.json()['card_destroyed'])}`);
  }

  /** Tries until the call is acknowledged; null where that takes too long, or `lost` says to leave it. */
  async #until(action: string, send: () => Promise<Reply>, lost: () => boolean | void = () => undefined): Promise<Reply | null> {
    const { counts } = this;
    const deadline = performance.now() + (this.#options.patienceMs ?? 60_000);
    let unknown = false;
    for (;;) {
      let cause: string | null = null;
      try {
        const reply = await send();
        const code = reply.status < 400 ? null : String(reply.json()['code']);
        const request = String(reply.headers['x-request-id']);
        if (code === null || !(undone.has(code) || code === 'hsm_unavailable' || code === 'outcome_unknown')) {
          this.#answered.set(request, code === null);
          counts.acknowledged += 1;
          if (unknown) counts.settled += 1;
          return reply;
        }
        if (undone.has(code)) this.#undone.add(request);
        // It has its entry, and what was authorized and then did not open has two.
        else if (code === 'hsm_unavailable') this.#failed.add(request);
        if (code === 'outcome_unknown') cause = code;
      } catch (error) {
        // Nobody listened: it never left.
        const { code = (error as Error).name } = error as NodeJS.ErrnoException;
        if (code !== 'ECONNREFUSED') cause = code;
      }
      if (cause !== null) {
        unknown = true;
        counts.unknown += 1;
        this.unknownCauses.push(`${action}: ${cause}`);
        this.#lost.set(action, (this.#lost.get(action) ?? 0) + 1);
        if (lost() === true) return null;
      } else counts.refused += 1;
      if (performance.now() > deadline) {
        this.#fault(`a ${action} was not acknowledged in time`);
        return null;
      }
      await sleep(retryMs);
    }
  }

  #fault(text: string): void {
    this.faults.push(text);
  }

  /**
   * The reckoning, while the load pauses and the vault serves: settles what was left open, asks the API for every token and key since the last
   * one (`whole`: for all, keys by sample), and reads all that stands. Returns what is wrong.
   */
  async reckon(whole: boolean): Promise<string[]> {
    const faults = this.faults.splice(0);
    faults.push(...(await this.#halves()));
    const open = this.#open.splice(0);
    await Promise.all(split(open, 8).map(async (calls) => {
      for (const call of calls) {
        const reply = await this.#until(call.isBatch ? 'tokenize_batch' : 'tokenize', () => this.#send(call));
        if (reply === null) continue;
        this.#enter(null, call, reply);
        this.counts.settled += 1;
      }
    }));
    await this.#ask(whole);
    faults.push(...this.faults.splice(0), ...(await this.#readAll()));
    return summed(faults);
  }

  /** Calls that were left open stand wholly or not at all: told by the metadata of their rows, before anybody repeats them. */
  async #halves(): Promise<string[]> {
    const { rows } = await this.#asOwner((client) =>
      client.query<{ call: number; tokens: number; batches: number }>(
        `SELECT (metadata->>'call')::int AS call, count(*)::int AS tokens, count(DISTINCT (made_writer, made_batch))::int AS batches
         FROM (SELECT metadata, made_writer, made_batch FROM cards UNION ALL SELECT metadata, made_writer, made_batch FROM tokens) AS t WHERE (metadata->>'call')::int = ANY ($1) GROUP BY 1`,
        [this.#open.map(({ id }) => id)],
      ),
    );
    const standing = new Map(rows.map((row) => [row.call, row]));
    return this.#open.flatMap(({ id, items }) => {
      const row = standing.get(id);
      if (row === undefined || (row.tokens === items.length && row.batches === 1)) return [];
      return [`of ${items.length} tokens of a call without an answer ${row.tokens} stand, from ${row.batches} batches`];
    });
  }

  async #ask(whole: boolean): Promise<void> {
    const checked = whole ? { tokens: 0, keyed: 0 } : this.#checked;
    const tokens = [...this.#tokens.values()].slice(checked.tokens);
    // The window of keys is long and their number large: of the earlier ones some.
    const recent = this.#keyed.slice(this.#checked.keyed);
    const earlier = this.#keyed.slice(0, this.#checked.keyed);
    const step = Math.max(1, Math.floor(earlier.length / (whole ? 3000 : 200)));
    const keyed = [...recent, ...earlier.filter((_, index) => index % step === 0)];
    this.#checked = { tokens: this.#tokens.size, keyed: this.#keyed.length };
    const lanes = 8;
    await Promise.all([
      ...split(tokens, lanes).map(async (some) => {
        for (const made of some) await this.#validate(made);
      }),
      ...split(keyed, lanes).map(async (some) => {
        for (const call of some) await this.#repeat(call);
      }),
    ]);
  }

  /** A row whose MAC is not genuine is answered `internal`. */
  async #validate(made: Made): Promise<void> {
    this.#transcript.length = 0;
    const before = Date.now();
    const reply = await this.#until('validate', () => this.#checkout.post('/v1/validate', { token: made.token }));
    if (reply === null) return;
    const { code, status, last4 } = reply.json();
    const ended = made.status !== 'revoked' && made.expiresAt !== null && made.expiresAt <= Date.now();
    const wanted = ended ? 'expired' : made.status;
    const justEnded = ended && made.expiresAt > before - 50 && status === made.status;
    if (reply.status !== 200 || (status !== wanted && !justEnded) || last4 !== cardText(made.card.number).slice(-4)) this.#fault(`a token that is ${wanted} was validated as ${reply.status} ${String(code ?? status)}`);
  }

  async #repeat(call: TokenizeCall): Promise<void> {
    this.#transcript.length = 0;
    const reply = await this.#until(call.isBatch ? 'tokenize_batch' : 'tokenize', () => this.#send(call));
    if (reply === null) return;
    const results = call.isBatch ? ((reply.json()['items'] ?? []) as Record<string, unknown>[]) : [reply.json()];
    if (!same(results.map(({ token, created }) => ({ token, created })), call.answer)) this.#fault(`a repeated call with its key was answered otherwise (${reply.status} ${String(reply.json()['code'])})`);
  }

  async #asOwner<T>(work: (client: Client) => Promise<T>): Promise<T> {
    const client = new Client({ connectionString: this.#target.databaseUrl });
    await client.connect();
    try {
      return await work(client);
    } finally {
      await client.end();
    }
  }

  async #readAll(): Promise<string[]> {
    return await this.#asOwner(async (client) => {
      await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
      return await this.read(client);
    });
  }

  /** Everything that stands, as the transaction of `client` sees it, against the ledger. Returns what is wrong. The load pauses. */
  async read(client: Client): Promise<string[]> {
    const log = await this.#readLog(client);
    return [...log.faults, ...(await this.#readRows(client, log.createdIn)), ...(this.#options.outbox ? await this.#readOutbox(client, log) : []), ...(await this.#readKeys(client))];
  }

  /** Chains, certificates, predecessors; and for each entry that its call is one that was answered so, or one that may have been. */
  async #readLog(client: Client): Promise<StandingLog> {
    const faults: string[] = [];
    const verifier = logVerifier(this.#target.home);
    const createdIn = new Map<string, string>();
    const requestIn = new Map<string, string>();
    const strangers = new Map<string, number>();
    const hashes = new Map<string, Buffer[]>();
    const answered = new Set<string>();
    for (const { writer, role, certificate } of await readWriters(client)) {
      const name = writerName(writer);
      const text = openNote(certificate, [verifier]);
      const certified = text === null ? null : readWriterCertificate(text);
      const batches: Batch[] = await Array.fromAsync(readBatches(client, writer));
      if (certified === null || certified.writer !== writer || certified.role !== role) {
        faults.push('the certificate of a writer does not hold');
        continue;
      }
      const fault = checkChain(batches, certified.publicKey, (bundle) => decodeBundle(bundle).length);
      if (fault !== null) faults.push(`a chain does not hold: ${fault}`);
      hashes.set(name, batches.map((batch) => headerHash(batchHeader(batch))));
      for (const batch of batches) {
        const place = `${writer}:${batch.number}`;
        for (const bytes of decodeBundle(batch.bundle)) {
          const entry = JSON.parse(Buffer.from(bytes).toString('utf8')) as LogEntry;
          for (const token of entry.tokens?.['created'] ?? []) {
            if (createdIn.has(token)) faults.push('two entries tell of the making of one token');
            createdIn.set(token, place);
          }
          const { predecessor, predecessor_last: last, predecessor_hash: hash } = entry.detail ?? {};
          if (entry.action === 'writer.start' && predecessor !== undefined && hashes.get(String(predecessor))?.[Number(last)]?.toString('hex') !== hash) faults.push('a writer names a batch of its predecessor that does not stand');
          const { request } = entry;
          if (request === undefined) continue;
          if (requestIn.has(request)) {
            // Cards that were authorized and did not open.
            if (!(entry.outcome === 'failed' && entry.action.startsWith('detokenize') && entry.code === 'hsm_unavailable')) faults.push(`a ${entry.action} has two entries`);
            continue;
          }
          requestIn.set(request, place);
          const succeeded = this.#answered.get(request);
          if (succeeded !== undefined) {
            answered.add(request);
            if (succeeded !== (entry.outcome === 'allowed')) faults.push(`a ${entry.action} that was ${succeeded ? '' : 'not '}done is logged as ${entry.outcome}`);
          } else if (this.#undone.has(request)) {
            if (entry.outcome === 'allowed') faults.push(`a ${entry.action} that was refused for now is logged as done`);
          } else if (!this.#failed.has(request)) strangers.set(entry.action, (strangers.get(entry.action) ?? 0) + 1);
        }
      }
    }
    if (answered.size < this.#answered.size) faults.push(...Array<string>(this.#answered.size - answered.size).fill('an acknowledged call has no entry'));
    for (const [action, count] of strangers) if (count > (this.#lost.get(action) ?? 0)) faults.push(`${count} entries of ${action} are of calls that nobody made: ${this.#lost.get(action) ?? 0} had no answer`);
    return { faults, createdIn, requestIn };
  }

  async #readRows(client: Client, createdIn: ReadonlyMap<string, string>): Promise<string[]> {
    const faults: string[] = [];
    const seen = new Set<string>();
    const dead = new Map<string, { all: boolean; destroyed: boolean }>();
    const query = `SELECT token, token AS card_token, status, row_version, token_expires_at, format, made_writer, made_batch, encode(card_id, 'hex') AS card_id, expiry,
                          fingerprint IS NULL AS destroyed, length(sealed_pan) = 0 AS emptied FROM cards
                   UNION ALL
                   SELECT t.token, t.card_token, t.status, t.row_version, t.token_expires_at, t.format, t.made_writer, t.made_batch, encode(c.card_id, 'hex'), c.expiry, c.fingerprint IS NULL, length(c.sealed_pan) = 0
                   FROM tokens t JOIN cards c ON c.tenant_id = t.tenant_id AND c.token = t.card_token`;
    for await (const row of rowsOf<StandingRow>(client, query)) {
      const made = this.#tokens.get(row.token);
      if (seen.has(row.token)) faults.push('a token stands twice');
      seen.add(row.token);
      if (createdIn.get(row.token) !== `${row.made_writer}:${row.made_batch}`) faults.push('a token stands that no entry of its batch tells of');
      const isDead = row.status >= 2;
      const card = dead.get(row.card_token) ?? { all: true, destroyed: row.destroyed };
      dead.set(row.card_token, { ...card, all: card.all && isDead });
      if (row.destroyed !== row.emptied) faults.push('a card is half destroyed');
      if (made === undefined) {
        faults.push('a token stands that nobody was given');
        continue;
      }
      const codes = { active: 0, suspended: 1, revoked: 2 };
      const swept = row.status === 3 && made.status !== 'revoked' && made.expiresAt !== null && made.expiresAt <= Date.now();
      if (row.status !== codes[made.status] && !swept) faults.push(`a token that is ${made.status} stands with status ${row.status}`);
      if (row.row_version !== 1 + made.changes.length + (swept ? 1 : 0)) faults.push(`a token that was changed ${made.changes.length} times stands in version ${row.row_version}`);
      if (`card_${row.card_id}` !== made.card.id) faults.push('a token stands with another card');
      if (row.card_token !== made.card.tokens[0]!.token) faults.push('a token stands beside another first token');
      if (!row.destroyed && (row.expiry === null ? null : `${Math.floor(row.expiry / 100)}-${String(row.expiry % 100).padStart(2, '0')}`) !== made.card.expiry) faults.push('a card stands with another expiry');
      if ((row.token_expires_at?.getTime() ?? null) !== made.expiresAt) faults.push('a token stands with another end');
      if (row.format !== (made.format === 'numeric' ? 1 : 0)) faults.push('a token stands in another format');
    }
    for (const { all, destroyed } of dead.values()) if (all !== destroyed) faults.push(all ? 'a card outlives its tokens' : 'a card is destroyed before its last token');
    for (const token of this.#tokens.keys()) if (!seen.has(token)) faults.push('an acknowledged token is lost');
    for (const token of createdIn.keys()) if (!seen.has(token)) faults.push('an entry tells of a token that does not stand');
    return faults;
  }

  async #readOutbox(client: Client, { createdIn, requestIn }: StandingLog): Promise<string[]> {
    const faults: string[] = [];
    const made = new Set<string>();
    const changes = new Map<string, string[]>();
    for await (const { writer, number, events } of rowsOf<{ writer: string; number: string; events: OutboxEvent[] }>(client, 'SELECT writer, number, events FROM outbox')) {
      const place = `${writer}:${number}`;
      for (const { type, subject, data } of events) {
        if (requestIn.get(data.request_id) !== place) faults.push(`an event ${type} does not stand beside the entry of its call`);
        if (type === 'token.created') {
          if (made.has(subject)) faults.push('two events tell of the making of one token');
          made.add(subject);
          if (createdIn.get(subject) !== place) faults.push('an event tells of a token that was made elsewhere');
        } else if (type !== 'card.updated') {
          const list = changes.get(subject) ?? [];
          changes.set(subject, list);
          list.push(type);
        }
      }
    }
    for (const token of createdIn.keys()) if (!made.has(token)) faults.push('no event tells of a token that was made');
    for (const { token, changes: wanted } of this.#tokens.values()) {
      if (!same((changes.get(token) ?? []).sort(), wanted.toSorted())) faults.push('the events of a token are not its changes');
    }
    return faults;
  }

  async #readKeys(client: Client): Promise<string[]> {
    const { rows } = await client.query<{ keys: number }>('SELECT count(*)::int AS keys FROM idempotency_keys');
    return rows[0]!.keys === this.#keyed.length ? [] : [`${rows[0]!.keys} Idempotency-Keys stand of ${this.#keyed.length} that were acknowledged`];
  }
}

interface LogEntry {
  readonly action: string;
  readonly outcome: string;
  readonly code?: string;
  readonly request?: string;
  readonly detail?: Readonly<Record<string, string | number>>;
  readonly tokens?: Readonly<Record<string, readonly string[]>>;
}

interface StandingLog {
  readonly faults: readonly string[];
  /** The batch whose entry tells of a token's making. */
  readonly createdIn: ReadonlyMap<string, string>;
  /** The batch of a call's entry. */
  readonly requestIn: ReadonlyMap<string, string>;
}

interface StandingRow {
  readonly token: string;
  readonly card_token: string;
  readonly status: number;
  readonly row_version: number;
  readonly token_expires_at: Date | null;
  readonly format: number;
  readonly made_writer: string;
  readonly made_batch: string;
  readonly card_id: string;
  readonly expiry: number | null;
  readonly destroyed: boolean;
  readonly emptied: boolean;
}

interface OutboxEvent {
  readonly type: string;
  readonly subject: string;
  readonly data: { readonly request_id: string };
}

/** The rows of a query, some thousands at a time. In a transaction. */
async function* rowsOf<Row extends object>(client: Client, query: string): AsyncGenerator<Row> {
  await client.query(`DECLARE all_rows NO SCROLL CURSOR FOR ${query}`);
  for (;;) {
    const { rows } = await client.query<Row>('FETCH 5000 FROM all_rows');
    yield* rows;
    if (rows.length === 0) break;
  }
  await client.query('CLOSE all_rows');
}

/** The token that a call for a card's token of a format is answered with; null where it makes one. */
function reusableOf(card: Card, format: Format): Made | null {
  const [first] = card.tokens;
  if (first !== undefined && first.format === format && first.expiresAt === null && first.status !== 'revoked') return first;
  const further = card.reusable.get(format);
  return further === undefined || further.status === 'revoked' ? null : further;
}

/** What a detokenize of it must be answered. Its tokens' ends are far, or nobody asks. */
function opened({ status, card }: Made): { status: number; body: Record<string, unknown> } {
  if (status === 'suspended') return { status: 409, body: { code: 'token_suspended' } };
  if (status === 'revoked') return { status: 410, body: { code: 'token_revoked' } };
  return { status: 200, body: { pan: cardText(card.number), expiry: card.expiry, cardholder: card.name } };
}

function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** Equal faults once, with their number. */
function summed(faults: readonly string[]): string[] {
  return [...Map.groupBy(faults, (fault) => fault)].map(([fault, all]) => (all.length === 1 ? fault : `${fault} (${all.length} times)`));
}

function split<T>(list: readonly T[], parts: number): T[][] {
  return Array.from({ length: parts }, (_, part) => list.filter((_, index) => index % parts === part));
}

function expiryOf(dice: (bound: number) => number): string {
  return `${2030 + dice(9)}-${String(1 + dice(12)).padStart(2, '0')}`;
}

/** Dice of their own for each lane. Neighbouring seeds begin alike, so the first throws are left out. */
export function diceOf(seed: number, lane: number): (bound: number) => number {
  const dice = seeded((seed * 7919 + (lane + 1) * 104_729) | 0 || 1);
  for (let skipped = 0; skipped < 30; skipped += 1) dice(2);
  return dice;
}
