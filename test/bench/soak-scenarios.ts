/** The calls of a soak that no measurement makes: batches out of the vault, whole lives of tokens, and requests that must be refused. */
import { makeToken, pooledRandom } from '../../vault/token.ts';
import { cardDigits, cardNumber } from '../support/cards.ts';
import type { Response } from './http-response.ts';
import { tokenBytes, type KnownCards, type Scenario } from './scenario.ts';

export interface SoakScenario extends Scenario {
  /** Told of a request that was never answered. */
  onLost?(sequence: number): void;
}

const openedInABatch = 100;

/** What a problem's body, or any other that is not secret, says under a key of text. */
function textOf(body: Buffer, key: string): string | null {
  return new RegExp(`"${key}":"([A-Za-z0-9_]{1,64})"`).exec(body.toString('latin1', 0, 2000))?.[1] ?? null;
}

function describe({ status, body }: Response): string {
  const code = textOf(body, 'code');
  return `status_${status}${code === null ? '' : `_${code}`}`;
}

function head(method: string, path: string, host: string, bodyBytes: number): string {
  const content = method === 'POST' ? `${bodyBytes === 0 ? '' : 'Content-Type: application/json\r\n'}Content-Length: ${bodyBytes}\r\n` : '';
  return `${method} ${path} HTTP/1.1\r\nHost: ${host}\r\n${content}\r\n`;
}

/** Batches of known tokens; every card number of every answer is checked. */
export function detokenizeBatches(host: string, seed: number, known: KnownCards): SoakScenario {
  const before = '{"purpose":"capture","tokens":["';
  const list = Array.from({ length: openedInABatch }, () => '0'.repeat(tokenBytes)).join('","');
  const body = `${before}${list}"]}`;
  const request = Buffer.from(head('POST', '/v1/detokenize/batch', host, body.length) + body, 'latin1');
  const gap = request.length - body.length + before.length;
  const panField = Buffer.from('"pan":"', 'latin1');
  const expected = Buffer.alloc(cardDigits);
  const cardAt = (sequence: number, i: number): number => (sequence * openedInABatch * 7 + i * 31) % known.count;
  return {
    maxRequestBytes: request.length,
    makeRequest(sequence, into) {
      if (into[0] === 0) request.copy(into);
      for (let i = 0; i < openedInABatch; i++) {
        const at = cardAt(sequence, i) * tokenBytes;
        known.tokens.copy(into, gap + i * (tokenBytes + 3), at, at + tokenBytes);
      }
      return request.length;
    },
    onResponse(response, sequence) {
      if (response.status !== 200) return describe(response);
      let at = 0;
      for (let i = 0; i < openedInABatch; i++) {
        at = response.body.indexOf(panField, at);
        if (at === -1) return 'answer_with_failed_items';
        at += panField.length;
        cardNumber(known.first + cardAt(sequence, i), expected, 0, seed);
        if (response.body.compare(expected, 0, cardDigits, at, at + cardDigits) !== 0) return 'answer_of_another_card';
      }
      return null;
    },
  };
}

interface Life {
  step: number;
  card: number;
  token: string;
}

/** One step in the life of a token: the request, and what its answer must hold. */
interface Step {
  readonly method: 'GET' | 'POST' | 'DELETE';
  readonly path: (token: string) => string;
  readonly body?: (token: string) => string;
  readonly holds: string;
}

const validate = (status: string, valid: boolean): Step => ({ method: 'POST', path: () => '/v1/validate', body: (token) => `{"token":"${token}"}`, holds: `{"valid":${valid},"status":"${status}"` });
const change = (action: string, status: string): Step => ({ method: 'POST', path: (token) => `/v1/tokens/${token}/${action}`, holds: `"status":"${status}"` });

/** After the card was tokenized, which is step 0. */
const steps: readonly Step[] = [
  validate('active', true),
  change('suspend', 'suspended'),
  validate('suspended', false),
  change('resume', 'active'),
  { method: 'GET', path: (token) => `/v1/tokens/${token}`, holds: '"status":"active"' },
  { method: 'DELETE', path: (token) => `/v1/tokens/${token}`, holds: '"card_destroyed":true' },
  validate('revoked', false),
];

/** New cards, from `firstCard` on, whose tokens are suspended, resumed and deleted, and looked at in between: one life a connection at a time. */
export function tokenLives(host: string, seed: number, firstCard: number): SoakScenario & { readonly cards: number } {
  const before = '{"pan":"';
  const body = `${before}${'0'.repeat(cardDigits)}","expiry":"2031-12","metadata":{"order":"soak"}}`;
  const tokenize = Buffer.from(head('POST', '/v1/tokenize', host, body.length) + body, 'latin1');
  const gap = tokenize.length - body.length + before.length;
  // A connection is known by its buffer.
  const lives = new Map<Buffer, Life>();
  const underWay = new Map<number, Life>();
  let cards = 0;
  return {
    maxRequestBytes: 1024,
    get cards() {
      return cards;
    },
    makeRequest(sequence, into) {
      const life = lives.get(into) ?? { step: 0, card: 0, token: '' };
      lives.set(into, life);
      underWay.set(sequence, life);
      if (life.step === 0) {
        life.card = firstCard + cards++;
        tokenize.copy(into);
        cardNumber(life.card, into, gap, seed);
        return tokenize.length;
      }
      const { method, path, body: make } = steps[life.step - 1]!;
      const text = make?.(life.token) ?? '';
      return into.write(head(method, path(life.token), host, text.length) + text, 'latin1');
    },
    onResponse(response, sequence) {
      const life = underWay.get(sequence)!;
      underWay.delete(sequence);
      const { step } = life;
      life.step = 0;
      if (step === 0) {
        const token = response.status === 201 ? textOf(response.body, 'token') : null;
        if (token === null) return `life_${describe(response)}`;
        life.token = token;
      } else if (response.status !== 200 || !response.body.toString('latin1').includes(steps[step - 1]!.holds)) {
        return `life_step_${step}_${describe(response)}`;
      }
      life.step = step === steps.length ? 0 : step + 1;
      return null;
    },
    onLost(sequence) {
      const life = underWay.get(sequence);
      underWay.delete(sequence);
      if (life !== undefined) life.step = 0;
    },
  };
}

interface Wrong {
  readonly method?: 'GET' | 'POST';
  readonly path: string;
  /** `#` stands for a card number. */
  readonly body?: string;
  /** Whether the card number's last digit is wrong. */
  readonly broken?: boolean;
  readonly status: number;
  /** The problem's code, or the status that validate tells. */
  readonly says: string;
}

const blank = '#'.repeat(cardDigits);

/** What callers get wrong, and some try on purpose, each with the one right answer to it. */
const wrongs = (unknown: string): readonly Wrong[] => [
  { path: '/v1/tokenize', body: `{"pan":"${blank}"}`, broken: true, status: 422, says: 'invalid_pan' },
  { path: '/v1/tokenize', body: `{"pan":"${blank}","cvv":"123"}`, status: 422, says: 'sad_refused' },
  { path: '/v1/tokenize', body: `{"pan":"${blank}","cardholder":"${blank}"}`, status: 422, says: 'pan_in_other_field' },
  { path: '/v1/tokenize', body: `{"pan":"${blank}","surprise":1}`, status: 400, says: 'invalid_request' },
  { path: '/v1/tokenize', body: `{"pan":"${blank}"`, status: 400, says: 'invalid_request' },
  { path: '/v1/tokenize', body: `{"pan":"${blank}","metadata":{"x":"${'x'.repeat(20_000)}"}}`, status: 413, says: 'payload_too_large' },
  { path: '/v1/tokenize/batch', body: '{"items":[]}', status: 400, says: 'invalid_request' },
  { path: '/v1/validate', body: '{"token":"tok_no"}', status: 200, says: 'malformed' },
  { path: '/v1/validate', body: `{"token":"${unknown}"}`, status: 200, says: 'unknown' },
  { path: `/v1/tokens/${unknown}/suspend`, status: 404, says: 'token_unknown' },
  { method: 'GET', path: `/v1/tokens/${unknown}`, status: 404, says: 'token_unknown' },
  { path: '/v1/detokenize', body: `{"token":"${unknown}","purpose":"authorization"}`, status: 403, says: 'not_authorized' },
  { method: 'GET', path: '/v1/nothing', status: 404, says: 'not_found' },
];

/** Requests that must be refused, in turn. */
export function wrongRequests(host: string, seed: number): SoakScenario {
  const requests = wrongs(makeToken(new Date(), pooledRandom())).map((wrong) => {
    const { method = 'POST', path, body = '' } = wrong;
    const bytes = Buffer.from(head(method, path, host, body.length) + body, 'latin1');
    const gaps: number[] = [];
    for (let at = bytes.indexOf(blank); at !== -1; at = bytes.indexOf(blank, at + 1)) gaps.push(at);
    return { wrong, bytes, gaps };
  });
  return {
    maxRequestBytes: Math.max(...requests.map(({ bytes }) => bytes.length)),
    makeRequest(sequence, into) {
      const { wrong, bytes, gaps } = requests[sequence % requests.length]!;
      bytes.copy(into);
      for (const gap of gaps) {
        cardNumber(sequence, into, gap, seed);
        const last = gap + cardDigits - 1;
        if (wrong.broken === true) into[last] = into[last] === 0x39 ? 0x30 : into[last]! + 1;
      }
      return bytes.length;
    },
    onResponse(response, sequence) {
      const { wrong } = requests[sequence % requests.length]!;
      const says = textOf(response.body, response.status === 200 ? 'status' : 'code');
      return response.status === wrong.status && says === wrong.says ? null : `wanted_${wrong.status}_${wrong.says}_got_${describe(response)}`;
    },
  };
}

/** A good request of a caller without any grant. */
export function intrusions(host: string, seed: number): SoakScenario {
  const body = `{"pan":"${blank}"}`;
  const request = Buffer.from(head('POST', '/v1/tokenize', host, body.length) + body, 'latin1');
  const gap = request.indexOf(blank);
  return {
    maxRequestBytes: request.length,
    makeRequest(sequence, into) {
      request.copy(into);
      cardNumber(sequence, into, gap, seed);
      return request.length;
    },
    onResponse: (response) => (response.status === 403 && textOf(response.body, 'code') === 'not_authorized' ? null : `intruder_${describe(response)}`),
  };
}
