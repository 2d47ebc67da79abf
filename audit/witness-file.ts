/**
 * Checkpoints in a local file that only grows, a month in each: the first witness of the log, outside of the database, so that its administrator
 * cannot take back what was signed, and a restored backup is seen to be older than what was signed since.
 *
 * One JSON object a line, {"at":<time>,"note":<the checkpoint, a signed note>}. Each line is on disk when `publish` resolves. Under full load a line is
 * written each second, about 20 MB a day.
 */
import { mkdirSync, readdirSync } from 'node:fs';
import { open, readFile, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Witness } from './sequenced-log.ts';
import { syncFolder } from './sync-folder.ts';

const fileName = /^checkpoints-[0-9]{4}-[0-9]{2}\.jsonl$/u;

/** A line is far shorter; what lies before the last one is not read. */
const tailBytes = 64 * 1024;

export class WitnessFile implements Witness {
  readonly #folder: string;
  /** What this instance published last; others may have published since. */
  #published: string | null = null;

  /** @param folder is made if it is not there. */
  constructor(folder: string) {
    this.#folder = folder;
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  }

  /** Dies half-way: a line without its end, which the next one leaves behind and `last` passes over. */
  async publish(note: string, at: Date): Promise<void> {
    if (note === this.#published || note === (await this.last())) return;
    // By a clock that was ahead once, or is behind now, a later month may have a file: that is the one which `last` looks at, so it goes on there.
    const path = join(this.#folder, [`checkpoints-${at.toISOString().slice(0, 7)}.jsonl`, ...this.#names()].sort().at(-1)!);
    const file = await open(path, 'a', 0o600);
    try {
      const { size } = await file.stat();
      const torn = size > 0 && !(await endsInNewline(path, size));
      await file.appendFile(`${torn ? '\n' : ''}${JSON.stringify({ at: at.toISOString(), note })}\n`);
      await file.datasync();
      if (size === 0) await syncFolder(dirname(path));
    } finally {
      await file.close();
    }
    this.#published = note;
  }

  /** @throws Error if the newest file holds lines and none of them is a checkpoint: it was damaged, and must not count as empty. */
  async last(): Promise<string | null> {
    for (const name of this.#names().sort().toReversed()) {
      const path = join(this.#folder, name);
      const { size } = await stat(path);
      if (size === 0) continue;
      const lines = (await readTail(path, size)).split('\n').slice(0, -1);
      const notes = lines.map(noteOf).filter((note) => note !== null);
      const newest = notes.at(-1);
      // Of two instances that took turns, the one that came late may have written last.
      if (newest !== undefined) return notes.filter((note) => originOf(note) === originOf(newest)).reduce((largest, note) => (sizeOf(note) >= sizeOf(largest) ? note : largest));
      // One line that was cut off before its end is what a crash leaves in a new file; anything else is damage.
      if (lines.length > 0) throw new Error(`${path}: holds no checkpoint that can be read: restore it`);
    }
    return null;
  }

  #names(): string[] {
    return readdirSync(this.#folder).filter((entry) => fileName.test(entry));
  }
}

function noteOf(line: string): string | null {
  try {
    const { note } = JSON.parse(line) as { note?: unknown };
    return typeof note === 'string' ? note : null;
  } catch {
    return null;
  }
}

/** First and second line of a checkpoint. Whether somebody signed it, whoever reads it finds out. */
const originOf = (note: string): string => note.split('\n', 1)[0]!;
const sizeOf = (note: string): number => Number(note.split('\n', 2)[1]);

async function readTail(path: string, size: number): Promise<string> {
  if (size <= tailBytes) return await readFile(path, 'utf8');
  const file = await open(path, 'r');
  try {
    const tail = Buffer.alloc(tailBytes);
    const { bytesRead } = await file.read(tail, 0, tailBytes, size - tailBytes);
    const text = tail.toString('utf8', 0, bytesRead);
    return text.slice(text.indexOf('\n') + 1);
  } finally {
    await file.close();
  }
}

async function endsInNewline(path: string, size: number): Promise<boolean> {
  const file = await open(path, 'r');
  try {
    const end = Buffer.alloc(1);
    await file.read(end, 0, 1, size - 1);
    return end[0] === 0x0a;
  } finally {
    await file.close();
  }
}
