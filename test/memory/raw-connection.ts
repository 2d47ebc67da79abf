/** A client's side of one TLS connection that writes HTTP by hand, and says what it saw in a form that a table can hold. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import { parseReplies } from '../support/api-client.ts';
import type { ApiClient } from '../support/api-client.ts';
import { withDeadline } from '../support/appliance.ts';

export type Packet = string | Buffer;

/** An answer, or the end of a connection, that takes longer does not come. */
const answerMs = 20_000;
/** Every number of test/support/cards.ts but the example of the API's description and of the start's own output. */
export const anyCard = /411111(?!1{10})\d{10}/u;

export class RawConnection {
  readonly #socket: TLSSocket;
  readonly #ended: Promise<void>;
  readonly #received: Buffer[] = [];
  #isClosed = false;
  #news = Promise.withResolvers<void>();

  private constructor(socket: TLSSocket) {
    this.#socket = socket.setNoDelay(true);
    this.#ended = new Promise((done) => {
      socket.once('close', () => {
        this.#isClosed = true;
        this.#wake();
        done();
      });
    });
  }

  static async open(client: ApiClient): Promise<RawConnection> {
    return new RawConnection(await client.connect()).read();
  }

  /** A connection on which nothing is read before `read` is called: the server can write until the kernel's buffers are full. */
  static async openUnread(client: ApiClient): Promise<RawConnection> {
    return new RawConnection(await client.connect());
  }

  read(): this {
    this.#socket.on('data', (data: Buffer) => {
      this.#received.push(data);
      this.#wake();
    });
    return this;
  }

  /** Sends each packet alone, some milliseconds after the one before, so that the server reads them one by one. What the server no longer takes is not sent. */
  async send(packets: readonly Packet[], gapMs = 5): Promise<void> {
    for (const [index, packet] of packets.entries()) {
      if (index > 0) await sleep(gapMs);
      if (this.#socket.writable) this.#socket.write(packet);
    }
  }

  /** Resolves once what was received holds `text`, or the server has closed. */
  async receives(text: string): Promise<void> {
    await this.#until(() => Buffer.concat(this.#received).includes(text));
  }

  /**
   * Reads `count` answers and ends the connection, or reads until the server closes it. Resolves to what was seen: of each answer the status, the code
   * of a refusal, and `a card` if its body holds a card number; and `closed` if it was the server that ended.
   */
  async sees(count: number | 'closed'): Promise<string[]> {
    await this.#until(() => count !== 'closed' && (this.#answers()?.length ?? 0) >= count);
    const closed = this.#isClosed ? ['closed'] : [];
    this.#socket.end();
    await withDeadline(this.#ended, answerMs, 'the end of a connection');
    return [...(this.#answers() ?? ['what is no answer']), ...closed];
  }

  /** Gone at once, whatever was sent and not answered. */
  hangUp(): void {
    this.#socket.destroy();
  }

  /** Null while the last answer is not complete. */
  #answers(): string[] | null {
    try {
      const replies = parseReplies(Buffer.concat(this.#received));
      if (replies.some(({ headers, body }) => body.length !== Number(headers['content-length']))) return null;
      return replies.map((reply) => `${reply.status}${reply.status < 400 ? '' : ` ${String(reply.json()['code'])}`}${anyCard.test(reply.body.toString('latin1')) ? ' a card' : ''}`);
    } catch {
      return null;
    }
  }

  async #until(condition: () => boolean): Promise<void> {
    while (!this.#isClosed && !condition()) await withDeadline(this.#news.promise, answerMs, 'an answer');
  }

  #wake(): void {
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }
}
