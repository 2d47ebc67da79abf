/**
 * The last batch that a writer knows to be committed, in a small local file that is fsynced.
 *
 * The successor of a writer that was killed names that batch in its start entry: a database administrator who cuts off the tail
 * of the dead writer's chain is then caught by the successor's signed word. The file is written at most once per `intervalMs`, so
 * it may lag behind by that much; it never runs ahead, because it is told of committed batches only.
 */
import { open, readFile, rename, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { writerName } from './chain.ts';
import type { ChainHead } from './append.ts';

export interface LastBatch {
  /** 16 hex digits. */
  readonly writer: string;
  readonly number: string;
  /** SHA-256 of the batch's header, hex. */
  readonly hash: string;
  /** Whether the writer closed its chain. */
  readonly closed: boolean;
}

/** What a file holds, and when it was written, by this machine's clock. */
export type NotedBatch = LastBatch & { readonly notedAt: Date };

export class LastBatchFile {
  readonly #path: string;
  readonly #intervalMs: number;
  #pending: LastBatch | null = null;
  #timer: NodeJS.Timeout | null = null;
  #writing: Promise<void> = Promise.resolve();
  #failure: Error | null = null;

  constructor(path: string, intervalMs = 250) {
    this.#path = path;
    this.#intervalMs = intervalMs;
  }

  /** What the predecessor left; null if there was none. @throws Error if the file is there but cannot be read as one. */
  async read(): Promise<NotedBatch | null> {
    let text: string;
    let notedAt: Date;
    try {
      text = await readFile(this.#path, 'utf8');
      notedAt = (await stat(this.#path)).mtime;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
      throw new Error(`${this.#path}: the last batch cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`, { cause: error });
    }
    const match = /^\{"writer":"([0-9a-f]{16})","number":"([0-9]{1,19})","hash":"([0-9a-f]{64})","closed":(true|false)\}\n$/u.exec(text);
    if (match === null) throw new Error(`${this.#path}: does not hold the last batch, from which a cut-off log is seen: restore it`);
    return { writer: match[1]!, number: match[2]!, hash: match[3]!, closed: match[4] === 'true', notedAt };
  }

  /** Notes a committed batch; returns at once. */
  note(head: ChainHead, closed = false): void {
    this.#pending = { writer: writerName(head.writer), number: head.number.toString(), hash: head.hash.toString('hex'), closed };
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.#writing = this.#writing.then(() => this.#write());
    }, this.#intervalMs).unref();
  }

  /** Waits until what was noted is on disk. @throws Error if it, or an earlier write, failed. */
  async flush(): Promise<void> {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#writing = this.#writing.then(() => this.#write());
    await this.#writing;
    if (this.#failure !== null) throw this.#failure;
  }

  async #write(): Promise<void> {
    const value = this.#pending;
    if (value === null) return;
    this.#pending = null;
    try {
      const temporary = `${this.#path}.new`;
      const file = await open(temporary, 'w', 0o600);
      try {
        await file.writeFile(`${JSON.stringify(value)}\n`);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(temporary, this.#path);
      const directory = await open(dirname(this.#path), 'r');
      try {
        await directory.sync();
      } finally {
        await directory.close();
      }
      this.#failure = null;
    } catch (error) {
      // Serving goes on: the file only narrows what a cut tail could hide. The next write reports anew.
      this.#failure = new Error('the file of the last batch cannot be written', { cause: error });
    }
  }
}
