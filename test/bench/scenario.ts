/** The requests of a measurement, and what a right answer to each looks like. Runs in the load client; holds no card number as a string. */
import { cardDigits, cardNumber } from '../support/cards.ts';
import type { Response } from './http-response.ts';

export type ScenarioName = 'tokenize' | 'known' | 'detokenize' | 'validate' | 'batch' | 'mixed';

/** `tok_` and 32 characters of base62. */
export const tokenBytes = 36;

export const batchSize = 1000;

/** Whether a call of this scenario is {@link batchSize} cards: its rates and costs are then told by the token and not by the call. */
export const isBatch = (name: ScenarioName): boolean => name === 'batch';

/** Cards that the server knows: number i of `seed` has the token at 36 * i. Filled by a `tokenize` run that collects. */
export interface KnownCards {
  readonly first: number;
  readonly count: number;
  readonly tokens: Buffer;
}

export interface Scenario {
  readonly maxRequestBytes: number;
  makeRequest(sequence: number, into: Buffer): number;
  onResponse(response: Response, sequence: number): string | null;
}

export interface ScenarioOptions {
  readonly name: ScenarioName;
  readonly host: string;
  readonly seed: number;
  /** Card of sequence number 0, for new cards. */
  readonly firstCard: number;
  /** For `known`, `detokenize` and `validate`. */
  readonly known: KnownCards | null;
  /** For `tokenize`: puts each token at 36 * sequence. */
  readonly collect: Buffer | null;
}

/** Every answer's status is checked; bodies are checked one in so many, because the client shares the server's cores. */
const checkedOneIn = 16;

const tokenField = Buffer.from('"token":"', 'latin1');
const panField = Buffer.from('"pan":"', 'latin1');
const last4Field = Buffer.from('"last4":"', 'latin1');
const createdTrue = Buffer.from('"created":true', 'latin1');
const validTrue = Buffer.from('"valid":true', 'latin1');

/** Builds a scenario. Throws Error if it needs known cards and has none. */
export function makeScenario(options: ScenarioOptions): Scenario {
  return makers[options.name](options);
}

const makers: Record<ScenarioName, (options: ScenarioOptions) => Scenario> = {
  tokenize: tokenizeNew,
  known: (options) => tokenizeKnown(options, demand(options.known)),
  detokenize: (options) => detokenize(options, demand(options.known)),
  validate: (options) => validate(options, demand(options.known)),
  batch: tokenizeBatch,
  // The single calls of it: their batches come from a client of their own (bench.ts).
  mixed: tokenizeNew,
};

function demand(known: KnownCards | null): KnownCards {
  if (known === null) throw new Error('this scenario needs known cards');
  return known;
}

/** A request that is the same but for `gapBytes` bytes at `gap`. */
function template(host: string, path: string, before: string, gapBytes: number, after: string): { bytes: Buffer; gap: number } {
  const body = before + '0'.repeat(gapBytes) + after;
  const head = `POST ${path} HTTP/1.1\r\nHost: ${host}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n`;
  return { bytes: Buffer.from(head + body, 'latin1'), gap: head.length + before.length };
}

const ok = (status: number): boolean => status >= 200 && status < 300;

/** The problem's code makes a failure readable; it is one of a fixed table and never holds input. */
function problem({ status, body }: Response): string {
  const code = /"code":"([a-z_]{1,40})"/.exec(body.toString('latin1', 0, 1000));
  return `status_${status}${code === null ? '' : `_${code[1]}`}`;
}

function tokenizeNew({ host, seed, firstCard, collect }: ScenarioOptions): Scenario {
  const request = template(host, '/v1/tokenize', '{"pan":"', cardDigits, '","expiry":"2031-12"}');
  const expected = Buffer.allocUnsafeSlow(128);
  return {
    maxRequestBytes: request.bytes.length,
    makeRequest(sequence, into) {
      if (into[0] === 0) request.bytes.copy(into);
      cardNumber(firstCard + sequence, into, request.gap, seed);
      return request.bytes.length;
    },
    onResponse(response, sequence) {
      if (response.status !== 201) return ok(response.status) ? `status_${response.status}_for_a_new_card` : problem(response);
      if (collect === null && sequence % checkedOneIn !== 0) return null;
      const token = tokenAt(response.body, 0);
      if (token === -1) return 'answer_without_token';
      if (response.body.indexOf(createdTrue) === -1) return 'answer_not_created';
      cardNumber(firstCard + sequence, expected, 0, seed);
      if (!follows(response.body, last4Field, expected, cardDigits - 4, cardDigits)) return 'answer_of_another_card';
      if (collect !== null) response.body.copy(collect, sequence * tokenBytes, token, token + tokenBytes);
      return null;
    },
  };
}

function tokenizeKnown({ host, seed }: ScenarioOptions, known: KnownCards): Scenario {
  const request = template(host, '/v1/tokenize', '{"pan":"', cardDigits, '","expiry":"2031-12"}');
  return {
    maxRequestBytes: request.bytes.length,
    makeRequest(sequence, into) {
      if (into[0] === 0) request.bytes.copy(into);
      cardNumber(known.first + scatter(sequence, known.count), into, request.gap, seed);
      return request.bytes.length;
    },
    onResponse(response, sequence) {
      if (response.status !== 200) return ok(response.status) ? `status_${response.status}_for_a_known_card` : problem(response);
      if (sequence % checkedOneIn !== 0) return null;
      const at = scatter(sequence, known.count) * tokenBytes;
      return follows(response.body, tokenField, known.tokens, at, at + tokenBytes) ? null : 'answer_with_another_token';
    },
  };
}

function detokenize({ host, seed }: ScenarioOptions, known: KnownCards): Scenario {
  const request = template(host, '/v1/detokenize', '{"token":"', tokenBytes, '","purpose":"authorization"}');
  const expected = Buffer.allocUnsafeSlow(128);
  return {
    maxRequestBytes: request.bytes.length,
    makeRequest(sequence, into) {
      if (into[0] === 0) request.bytes.copy(into);
      const at = scatter(sequence, known.count) * tokenBytes;
      known.tokens.copy(into, request.gap, at, at + tokenBytes);
      return request.bytes.length;
    },
    onResponse(response, sequence) {
      if (response.status !== 200) return ok(response.status) ? `status_${response.status}` : problem(response);
      if (sequence % checkedOneIn !== 0) return null;
      cardNumber(known.first + scatter(sequence, known.count), expected, 0, seed);
      return follows(response.body, panField, expected, 0, cardDigits) ? null : 'answer_of_another_card';
    },
  };
}

function validate({ host }: ScenarioOptions, known: KnownCards): Scenario {
  const request = template(host, '/v1/validate', '{"token":"', tokenBytes, '"}');
  return {
    maxRequestBytes: request.bytes.length,
    makeRequest(sequence, into) {
      if (into[0] === 0) request.bytes.copy(into);
      const at = scatter(sequence, known.count) * tokenBytes;
      known.tokens.copy(into, request.gap, at, at + tokenBytes);
      return request.bytes.length;
    },
    onResponse(response, sequence) {
      if (response.status !== 200) return ok(response.status) ? `status_${response.status}` : problem(response);
      return sequence % checkedOneIn !== 0 || response.body.indexOf(validTrue) !== -1 ? null : 'answer_not_valid';
    },
  };
}

/** One request is {@link batchSize} new cards. */
function tokenizeBatch({ host, seed, firstCard }: ScenarioOptions): Scenario {
  const before = '{"pan":"';
  const item = `${before}${'0'.repeat(cardDigits)}","expiry":"2031-12"}`;
  const request = template(host, '/v1/tokenize/batch', '{"items":[', 0, `${Array.from({ length: batchSize }, () => item).join(',')}]}`);
  return {
    maxRequestBytes: request.bytes.length,
    makeRequest(sequence, into) {
      if (into[0] === 0) request.bytes.copy(into);
      let at = request.gap + before.length;
      for (let i = 0; i < batchSize; i++, at += item.length + 1) cardNumber(firstCard + sequence * batchSize + i, into, at, seed);
      return request.bytes.length;
    },
    onResponse(response, sequence) {
      if (response.status !== 200) return ok(response.status) ? `status_${response.status}` : problem(response);
      if (sequence % checkedOneIn !== 0) return null;
      let tokens = 0;
      for (let at = tokenAt(response.body, 0); at !== -1; at = tokenAt(response.body, at)) tokens++;
      return tokens === batchSize ? null : 'answer_with_failed_items';
    },
  };
}

/** Visits the known cards in an order without neighbours, so that a server cannot live on its last answer. */
function scatter(sequence: number, count: number): number {
  return (sequence * 7919) % count;
}

/** Where a well-formed token stands at or after `from`, or -1. */
function tokenAt(body: Buffer, from: number): number {
  const field = body.indexOf(tokenField, from);
  if (field === -1) return -1;
  const at = field + tokenField.length;
  if (body[at + tokenBytes] !== 0x22 || body[at] !== 0x74 || body[at + 1] !== 0x6f || body[at + 2] !== 0x6b || body[at + 3] !== 0x5f) return -1;
  for (let i = at + 4; i < at + tokenBytes; i++) {
    const byte = body[i]!;
    const inBase62 = (byte >= 0x30 && byte <= 0x39) || (byte >= 0x41 && byte <= 0x5a) || (byte >= 0x61 && byte <= 0x7a);
    if (!inBase62) return -1;
  }
  return at;
}

function follows(body: Buffer, field: Buffer, expected: Buffer, from: number, to: number): boolean {
  const at = body.indexOf(field);
  if (at === -1) return false;
  const start = at + field.length;
  return start + to - from <= body.length && body.compare(expected, from, to, start, start + to - from) === 0;
}
