/**
 * Begins a new log where the one in the database is not the one that was witnessed: after a restore from an older backup. What was signed since
 * cannot be brought back, and a log must never take anything back; so the new one has a name of its own, and its charter names the old one's last
 * checkpoint for everybody to see.
 */
import { maxCarried, newLog, originOf } from './charter.ts';
import type { CarriedWriter } from './charter.ts';
import { openCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import { encodeVkey, parseVkey } from './note.ts';
import type { NoteSigner, NoteVerifier } from './note.ts';
import { LogFault } from './sequenced-log.ts';
import { Sequencer } from './sequencer.ts';
import type { LogHead, TreeStore, Witness } from './sequenced-log.ts';

export interface RestartStore extends TreeStore {
  /** Closes the chains of these writers: nothing more of them is taken. */
  close(writers: readonly bigint[], reason: string): Promise<void>;
}

export interface RestartedLog {
  readonly origin: string;
  readonly predecessor: Checkpoint;
  /** What the database still had of the old log. */
  readonly had: number;
  /** Writers whose last batches the new log begins with. */
  readonly carried: number;
}

/**
 * No process may be writing. Done again after a crash, it begins one more log, with nothing lost.
 *
 * @throws Error of one line if there is nothing to begin anew for, or a witness cannot be believed.
 */
export async function restartLog(options: { readonly store: RestartStore; readonly witnesses: readonly Witness[]; readonly signer: NoteSigner; readonly name: string; readonly now: Date }): Promise<RestartedLog> {
  const { store, witnesses, signer, name, now } = options;
  const head = await store.head();
  const notes = (await Promise.all(witnesses.map((witness) => witness.last()))).filter((note) => note !== null);
  const stored = head === null ? null : await store.checkpoint(head.logId);
  if (stored !== null) notes.push(stored);
  let last: { readonly checkpoint: Checkpoint; readonly logId: number } | null = null;
  for (const note of notes) {
    const origin = note.split('\n', 1)[0]!;
    const logId = logIdOf(origin, name);
    const checkpoint = logId === null ? null : openCheckpoint(note, [verifierOf(origin, signer)]);
    if (checkpoint === null || logId === null) throw new Error('a witnessed checkpoint is not signed by this vault\'s log key, or is of another vault: see to that first');
    if (last === null || logId > last.logId || (logId === last.logId && checkpoint.size > last.checkpoint.size)) last = { checkpoint, logId };
  }
  if (last === null) throw new Error('no checkpoint was ever witnessed: there is no log to go on from');
  if (head !== null && head.origin === last.checkpoint.origin && head.size === last.checkpoint.size && head.root.equals(last.checkpoint.root)) {
    throw new Error('the log in the database is the one that was witnessed: there is no reason to begin another');
  }
  // What stands in its tree and is not signed yet would be in no log: a sequencer that starts over it signs it.
  const starts = async (): Promise<boolean> => {
    try {
      await new Sequencer({ store, signer, name, witnesses, alert: async () => undefined, now: () => now }).open();
      return true;
    } catch (error) {
      if (error instanceof LogFault) return false;
      throw error;
    }
  };
  if (head !== null && head.size > 1 && (await starts())) {
    throw new Error('the log in the database goes on from what was witnessed: start the vault, there is no reason to begin another');
  }

  // What was committed and is in no tree that the database has: it goes on in the new log. All others have ended.
  const chains = await store.chains();
  const pending = new Set<bigint>();
  for (const { writer, position } of chains) if ((await store.batch(writer, position.next)) !== null) pending.add(writer);
  const going = chains.filter(({ writer, position }) => pending.has(writer) && position.next > 0n);
  if (going.length > maxCarried) throw new Error(`the batches of ${going.length} writers are in no log: start the vault on its restored log first, or ask for help`);
  const certificates = new Map((await store.certificates(going.map(({ writer }) => writer))).map(({ writer, certificate }) => [writer, certificate]));
  const carried = going.flatMap(({ writer, position }): CarriedWriter[] => {
    const certificate = certificates.get(writer);
    return certificate === undefined ? [] : [{ writer, next: position.next, previous: position.previous, certificate }];
  });
  await store.close(chains.filter(({ writer }) => !pending.has(writer)).map(({ writer }) => writer), 'a new log was begun');

  const logId = Math.max(last.logId, head?.logId ?? 0) + 1;
  const origin = originOf(name, logId);
  await store.create(await newLog({ logId, origin, startedAt: now, predecessor: last.checkpoint, carried }, name, signer));
  const created: LogHead | null = await store.head();
  if (created === null || created.origin !== origin) throw new Error('the new log was not made: is another process at work on this database?');
  return { origin, predecessor: last.checkpoint, had: head?.size ?? 0, carried: carried.length };
}

function verifierOf(origin: string, { algorithm, publicKeySpki }: NoteSigner): NoteVerifier {
  return parseVkey(encodeVkey(origin, algorithm, publicKeySpki));
}

/** The number of the log with this origin; null if it is none of the vault that calls its logs `name`. */
function logIdOf(origin: string, name: string): number | null {
  if (origin === name) return 1;
  const match = origin.startsWith(`${name}/`) ? /^(?:[2-9]|[1-9][0-9]{1,5})$/u.exec(origin.slice(name.length + 1)) : null;
  return match === null ? null : Number(match[0]);
}
