/**
 * Reads the committed tree, and refuses it if it is not the one that was signed: it must extend every checkpoint that was signed, stored or witnessed, and
 * hold behind the last of them nothing but what writers signed.
 */
import { setImmediate as yieldTurn } from 'node:timers/promises';
import { encodeBatchLeaf } from './batch-leaf.ts';
import { chainStart, noPredecessor } from './chain.ts';
import type { Batch, ChainPosition } from './chain.ts';
import { logIdOf, newLog, readCharter } from './charter.ts';
import type { Charter } from './charter.ts';
import { openCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import { headerHashOf, provenPlace, treeReader, wholeTile } from './committed-tree.ts';
import { follow, identify, isStop, leavesATurn, unread } from './live-chain.ts';
import type { LiveChain } from './live-chain.ts';
import { consistencyProof, frontierOf, leafHash, verifyConsistency } from './merkle.ts';
import type { Frontier, HashReader } from './merkle.ts';
import { encodeVkey, parseVkey } from './note.ts';
import type { NoteSigner, NoteVerifier } from './note.ts';
import { LogFault } from './sequenced-log.ts';
import type { LogHead, TreeStore, Witness } from './sequenced-log.ts';
import { TileBuilder, tileWidthAt } from './tiles.ts';

export interface TreeLoading {
  readonly store: TreeStore;
  readonly signer: NoteSigner;
  /** Name as which writers are certified; the first log's origin. */
  readonly name: string;
  /** Of the same key under that name. */
  readonly certifier: NoteVerifier;
  readonly witnesses: readonly Witness[];
  /** What this process signed last, which holds whatever the database says by now. */
  readonly signed: Checkpoint | null;
  readonly now: () => Date;
  /** Of entries that are read at once. */
  readonly maxBytes?: number;
}

export interface LoadedTree {
  readonly head: LogHead;
  readonly charter: Charter;
  readonly builder: TileBuilder;
  readonly frontier: Frontier;
  /** The largest checkpoint in the database; null before there is one. */
  readonly kept: Checkpoint | null;
  /** Its note, if a witness may not have it. */
  readonly unpublished: string | null;
}

/**
 * Reads the tree, and begins the log if there is none and never was one.
 *
 * @throws LogFault if it is not what was signed; what the store, the HSM or a witness throws.
 */
export async function loadTree(options: TreeLoading): Promise<LoadedTree> {
  const { store, signer, name, certifier, witnesses, signed, now } = options;
  // Read in the opposite order of writing, witness, checkpoint, head: whatever another instance does meanwhile, what is read later is not behind.
  const published = await Promise.all(witnesses.map((witness) => witness.last()));
  let before = await store.head();
  if (before === null) {
    // A vault that has witnessed a log, or signed one, does not start another as if it were the first.
    if (signed !== null || published.some((note) => note !== null)) throw new LogFault('behind_witness', 'the database has no log, but a checkpoint of one was witnessed: it was restored from before the log began, or exchanged');
    // Dies before: nothing is there. After: a log of one leaf, unsigned. A rival's charter that came first is the log's.
    await store.create(await newLog({ logId: 1, origin: name, startedAt: now(), predecessor: null, carried: [] }, name, signer));
    before = await store.head();
    if (before === null) throw new Error('a log that was made is not there');
  }
  const { logId } = before;
  const stored = await store.checkpoint(logId);
  const head = await store.head();
  if (head === null || head.logId !== logId) throw new Error('the log was exchanged while it was read');
  const { size } = head;
  // Only the HSM starts a log: a database administrator cannot begin a new one beside the one that is witnessed.
  const firstLeaf = await store.firstLeaf(logId);
  const charter = readCharter(firstLeaf, [certifier]);
  if (charter === null || charter.origin !== head.origin) throw new LogFault('rewritten', 'the log in the database was not begun by this vault');
  const edges = new Map<number, Buffer>();
  for (let level = 0; Math.floor(size / 256 ** level) > 0; level += 1) {
    const index = Math.floor(size / 256 ** (level + 1));
    const width = tileWidthAt(level, index, size);
    if (width > 0) edges.set(level, await wholeTile(store, logId, level, index, width));
  }
  const reader = treeReader(store, head);
  const frontier = await frontierOf(size, reader);
  if (!frontier.root().equals(head.root)) throw new LogFault('corrupt', 'the tiles of the log do not give its root');

  const verifiers = [parseVkey(encodeVkey(head.origin, signer.algorithm, signer.publicKeySpki))];
  const kept = stored === null ? null : openCheckpoint(stored, verifiers);
  if (stored !== null && kept === null) throw new LogFault('rewritten', 'a stored checkpoint is not signed by this log\'s key');
  const held: Checkpoint[] = [];
  for (const note of published) {
    // Of a log before this one nothing can follow in this one. The charter names the last of them, and a witness whose host was off may be further behind.
    if (note === null || (charter.predecessor !== null && isEarlier(note, head, options))) continue;
    const checkpoint = openCheckpoint(note, verifiers);
    if (checkpoint === null) throw otherLog(note, head, options);
    held.push(checkpoint);
  }
  // What this instance signed earlier holds as well, whatever the database says by now.
  if (signed !== null) held.push(signed);
  for (const checkpoint of held) await assertExtends(checkpoint, head, reader, true);
  if (kept !== null) await assertExtends(kept, head, reader, false);
  // It is stored before anybody sees it, so one that is not there any more was taken away.
  for (const { size: witnessed } of held) if (kept === null || kept.size < witnessed) throw new LogFault('behind_witness', `the checkpoint of ${witnessed} entries, which was witnessed, is gone from the database`);
  await assertWritten(options, head, kept ?? { size: 1, root: leafHash(firstLeaf) }, charter, reader);
  // The last one may not have reached every witness.
  const unpublished = stored !== null && published.some((note) => note !== stored) ? stored : null;
  return { head, charter, builder: new TileBuilder(size, edges), frontier, kept, unpublished };
}

/** Whether a note is a checkpoint of a log of this vault before that of `head`. */
function isEarlier(note: string, head: LogHead, { name, signer }: TreeLoading): boolean {
  const origin = note.split('\n', 1)[0]!;
  const logId = logIdOf(origin, name);
  return logId !== null && logId < head.logId && openCheckpoint(note, [parseVkey(encodeVkey(origin, signer.algorithm, signer.publicKeySpki))]) !== null;
}

/** A witness has a checkpoint that is not of this log: of a later one of this vault, after a restore from before that was begun, or of somebody else's. */
function otherLog(note: string, head: LogHead, { name, signer }: TreeLoading): LogFault {
  const origin = note.split('\n', 1)[0]!;
  const later = (logIdOf(origin, name) ?? 0) > head.logId && openCheckpoint(note, [parseVkey(encodeVkey(origin, signer.algorithm, signer.publicKeySpki))]) !== null;
  if (later) return new LogFault('behind_witness', `a checkpoint of the log ${origin} was witnessed, and the database has ${head.origin}, which was left behind for it: the database was restored from a backup of before`);
  return new LogFault('behind_witness', `a witnessed checkpoint is of another log than ${head.origin}, or not signed by this log's key`);
}

/** @throws LogFault if the tree of `head` does not extend `earlier`, which somebody signed; `witnessed` where it is kept outside of the database. */
async function assertExtends(earlier: Checkpoint, head: LogHead, reader: HashReader, witnessed: boolean): Promise<void> {
  if (earlier.origin !== head.origin) throw new LogFault('behind_witness', `a checkpoint of log ${earlier.origin} was witnessed, which is not the one in the database`);
  if (earlier.size > head.size) {
    const what = witnessed ? 'witnessed' : 'signed';
    throw new LogFault('behind_witness', `a checkpoint of ${earlier.size} entries was ${what}, but the log in the database has ${head.size}: the database was restored from an older backup, or cut off`);
  }
  const proof = earlier.size === head.size ? [] : await consistencyProof(earlier.size, head.size, reader);
  if (!verifyConsistency(earlier.size, head.size, earlier.root, head.root, proof)) throw new LogFault('rewritten', `the log in the database is not the one whose first ${earlier.size} entries were signed`);
}

/**
 * That behind `signed` there stands what steps have appended: batches as their writers signed them, each behind the one before it. Until a checkpoint covers
 * it, only the database says so, and whoever writes there could have any leaf signed, and proven to everybody. @throws LogFault
 */
async function assertWritten({ store, certifier, maxBytes = 6 * 1024 * 1024 }: TreeLoading, head: LogHead, signed: Pick<Checkpoint, 'size' | 'root'>, charter: Charter, reader: HashReader): Promise<void> {
  const wrong = (index: number): LogFault => new LogFault('rewritten', `the log in the database has leaves behind its last checkpoint that are no writer's, from ${index} on`);
  const frontier = await frontierOf(signed.size, reader);
  if (!frontier.root().equals(signed.root)) throw wrong(0);
  const chains = new Map<bigint, LiveChain>();
  for (let sinceTurn = 0; frontier.size < head.size; ) {
    const found = await store.placed(head.logId, frontier.size, maxBytes);
    if (found.length === 0) throw wrong(frontier.size);
    const met = found.flatMap(({ batch }) => (batch === null || chains.has(batch.writer) ? [] : [batch]));
    for (const batch of met) if (!chains.has(batch.writer)) chains.set(batch.writer, { ...unread(batch.writer), position: await positionBefore(store, batch, head.logId, signed, charter) });
    await identify(store, certifier, met.map(({ writer }) => chains.get(writer)!), new Set());
    for (const { firstIndex, batch } of found) {
      if (frontier.size === head.size) break;
      const chain = batch === null ? undefined : chains.get(batch.writer);
      const identity = chain?.identity ?? null;
      if (batch === null || chain === undefined || identity === null || firstIndex !== frontier.size) throw wrong(frontier.size);
      const followed = follow(chain, batch);
      if (typeof followed === 'string') throw wrong(frontier.size);
      frontier.append(leafHash(encodeBatchLeaf(batch, batch.number === 0n ? identity.certificate : null)));
      for (const entry of followed.entries) frontier.append(leafHash(entry));
      chain.position = followed.position;
      if (isStop(followed.parsed.at(-1), batch.writer)) chain.state = 'closed';
      sinceTurn += 1 + batch.entryCount;
      if (sinceTurn < leavesATurn) continue;
      sinceTurn = 0;
      await yieldTurn();
    }
  }
  if (!frontier.root().equals(head.root)) throw wrong(signed.size);
}

/** Where a chain stood before `batch`, by what is signed: at its beginning, or behind a batch that stands in the tree of `signed`. */
async function positionBefore(store: TreeStore, { writer, number }: Batch, logId: number, signed: Pick<Checkpoint, 'size' | 'root'>, charter: Charter): Promise<ChainPosition> {
  if (number === 0n) return chainStart;
  const carried = charter.carried.find((each) => each.writer === writer && each.next === number);
  if (carried !== undefined) return { next: number, previous: carried.previous, formedAt: null };
  const last = await store.batch(writer, number - 1n);
  if (last !== null && (await provenPlace(store, last, { logId, ...signed })) !== null) return { next: number, previous: headerHashOf(last)!, formedAt: last.formedAt };
  // No batch can follow this one.
  return { next: -1n, previous: noPredecessor, formedAt: null };
}
