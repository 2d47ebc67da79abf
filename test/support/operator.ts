/** An operator of an appliance under test: certificate, password, authenticator, session. */
import { hotp, stepAt } from '../../vault/totp.ts';
import type { ApiClient, Reply } from './api-client.ts';

/** The bytes of a secret in base32 (RFC 4648). */
export function secretOf(base32: string): Buffer {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';
  const bits = base32.split('').map((character) => alphabet.indexOf(character).toString(2).padStart(5, '0')).join('');
  return Buffer.from((bits.match(/.{8}/gu) ?? []).map((byte) => Number.parseInt(byte, 2)));
}

export class TestOperator {
  readonly #client: () => ApiClient;
  readonly #forget: () => Promise<unknown>;
  secret: Buffer = Buffer.alloc(0);
  password = 'correct horse battery staple';
  session = '';

  /** `forget` has the vault forget which code was the last: a test has no half minute for each. */
  constructor(client: () => ApiClient, forget: () => Promise<unknown>) {
    this.#client = client;
    this.#forget = forget;
  }

  async enrol(code: string): Promise<Reply> {
    const reply = await this.#client().post('/v1/operators/enrol', { code, password: this.password });
    if (reply.status === 200) this.secret = secretOf(reply.json()['totp_secret'] as string);
    return reply;
  }

  code(): string {
    return hotp(this.secret, stepAt(new Date()));
  }

  /** With the code of now, unless one is given. */
  async logIn(totp?: string, password = this.password): Promise<Reply> {
    if (totp === undefined) await this.#forget();
    return await this.#logIn(totp ?? this.code(), password);
  }

  async #logIn(totp: string, password: string): Promise<Reply> {
    const reply = await this.#client().post('/v1/operators/login', { password, totp });
    if (reply.status === 200) this.session = reply.json()['session'] as string;
    return reply;
  }

  async post(path: string, body?: unknown, session = this.session): Promise<Reply> {
    return await this.#client().call('POST', path, { headers: { authorization: `Bearer ${session}` }, ...(body === undefined ? {} : { body }) });
  }

  async get(path: string, session = this.session): Promise<Reply> {
    return await this.#client().call('GET', path, { headers: { authorization: `Bearer ${session}` } });
  }
}
