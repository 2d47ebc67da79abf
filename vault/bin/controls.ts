/** The chain of controls as a process has it: with a note in the home of how far it was, so that rows that are cut off behind it are missed at the next start. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Pool } from 'pg';
import type { ClientConfig } from 'pg';
import type { ControlKey } from '../../hsm/key-registry.ts';
import { replaceFile } from '../../platform-adapters/linux/durable-file.ts';
import { postgresControlStore } from '../control-store.ts';
import { Controls, ControlsError, noControls } from '../controls.ts';
import type { ControlHead } from '../controls.ts';
import { endInTime } from './database.ts';

export interface ControlsOptions {
  readonly home: string;
  /** As the role whose rows it may add: the admin listener's may add and read all, a serving one's may suspend. */
  readonly connection: ClientConfig;
  /** Whether that is the admin listener's. */
  readonly readsData: boolean;
  readonly control: ControlKey;
  /** Which of the processes of this home it is: the first one keeps the note. */
  readonly index: number;
}

/** Resolves once they are read. @throws ControlsError where somebody changed the rows, and what the database or the HSM throws. */
export async function openControls(stack: AsyncDisposableStack, { home, connection, readsData, control, index }: ControlsOptions): Promise<Controls> {
  const pool = new Pool({ ...connection, max: 1, application_name: 'cofre controls', query_timeout: 5000 });
  pool.on('error', () => undefined);
  stack.defer(() => endInTime(pool));
  const note = join(home, 'controls.json');
  // A crash before it, or a full disk, leaves an older note, which misses less and refuses nothing that is there.
  const keep = ({ number, hash }: ControlHead): void => {
    try {
      replaceFile(note, JSON.stringify({ number, hash: hash.toString('hex') }), 0o600);
    } catch {
      // The row itself is committed, and says more.
    }
  };
  const controls = new Controls(postgresControlStore(pool, readsData), control, readNote(note), index === 0 ? keep : undefined);
  await controls.read();
  return controls;
}

/** @throws ControlsError where the note is there and holds something else. */
function readNote(path: string): ControlHead {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return noControls;
    throw error;
  }
  const match = /^\{"number":(\d{1,15}),"hash":"([0-9a-f]{64})"\}$/u.exec(text);
  if (match === null) throw new ControlsError(`${path}: does not hold how far the table of controls was`);
  return { number: Number(match[1]), hash: Buffer.from(match[2]!, 'hex') };
}
