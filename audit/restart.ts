/**
 * Begins a new log where the one in the database is not the one that was witnessed: after a restore from an older backup. What was signed since
 * cannot be brought back, and a log must never take anything back; so the new one has a name of its own, and its charter names the old one's last
 * checkpoint for everybody to see.
 */
import { logIdOf, maxCarried, newLog, originOf, readCharter } from './charter.ts';
import { openCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import { encodeVkey, parseVkey } from './note.ts';
import type { NoteSigner, NoteVerifier } from './note.ts';
import { LogFault } from './sequenced-log.ts';
import type { LogHead, TreeStore, Witness } from './sequenced-log.ts';
import { provenStanding } from './standing.ts';
import type { Written } from './standing.ts';
import { loadTree } from './tree-loading.ts';

export interface RestartStore extends TreeStore {
  /** Every writer that the database knows of, by its registration or its chain. */
  written(): Promise<readonly Written[]>;
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
 * @throws Error of one line if there is nothing to begin anew for, a witness cannot be believed, or what the database says of its chains is not what its
 * own tree proves.
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
  const certifier = verifierOf(name, signer);
  const faultOf = async (held: readonly Witness[]): Promise<LogFault | null> => {
    try {
      await loadTree({ store, signer, name, certifier, witnesses: held, signed: null, now: () => now });
      return null;
    } catch (error) {
      if (error instanceof LogFault) return error;
      throw error;
    }
  };
  // By the tree, which must be whole for that, though it is an older one: what the database says beside it would be signed in the charter, and nobody could tell later.
  const damaged = head === null ? null : await faultOf([]);
  if (damaged !== null) throw new Error(`${damaged.message}. So nobody can tell which batches that log holds, and which a new one must: restore another backup`);
  // What stands in its tree and is not signed yet would be in no log: a sequencer that starts over it signs it.
  if (head !== null && head.size > 1) {
    const fault = await faultOf(witnesses);
    if (fault === null) throw new Error('the log in the database goes on from what was witnessed: start the vault, there is no reason to begin another');
    if (fault.kind === 'corrupt') throw new Error(`${fault.message}. So nobody can tell whether the log in the database goes on from what was witnessed: have its archive at hand, as log.archive names it`);
  }

  // What was committed and is in no tree that the database has: it goes on in the new log. All others have ended.
  const charter = head === null ? null : readCharter(await store.firstLeaf(head.logId), [certifier]);
  const { carried, ended } = await provenStanding(store, await store.written(), head, charter, certifier, now);
  if (carried.length > maxCarried) throw new Error(`the batches of ${carried.length} writers are in no log: start the vault on its restored log first, or ask for help`);
  await store.close(ended, 'a new log was begun');

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
