/**
 * How far each writer's chain is in the tree that a database has, by what the tree proves and not by what the database says: for whoever begins a new log,
 * in which every batch that stands in no tree is to come, and none that stands in one.
 *
 * A database administrator may have moved a chain on, so that batches would be in no log, or back, so that they would be in two. Each of that is found by
 * the last batch of every writer that the database has, by the batch before the one that comes next, and by a look at all leaves behind that one.
 */
import { followChain, noPredecessor, writerName } from './chain.ts';
import type { Batch } from './chain.ts';
import { originOf } from './charter.ts';
import type { CarriedWriter, Charter } from './charter.ts';
import { openCheckpoint } from './checkpoint.ts';
import { headerHashOf, leafHashOf, provenPlace, treeReader, wholeTile } from './committed-tree.ts';
import type { Tree } from './committed-tree.ts';
import { decodeBundle } from './entry.ts';
import { certifiedKey, closes, follow } from './live-chain.ts';
import { renamed } from './log-keys.ts';
import { consistencyProof, frontierOf, verifyConsistency } from './merkle.ts';
import type { Frontier, HashReader } from './merkle.ts';
import type { NoteVerifier } from './note.ts';
import { LogFault, prunableMs } from './sequenced-log.ts';
import type { StoredChain, TreeStore } from './sequenced-log.ts';
import { tileWidth, tileWidthAt } from './tiles.ts';

/** What the database has of a writer. */
export interface Written {
  readonly writer: bigint;
  /** Number of the last batch in the database; null if it has none. */
  readonly last: bigint | null;
  /** How far it says that the tree holds the chain; null if it says nothing. */
  readonly chain: StoredChain | null;
}

export interface Standing {
  /** Writers of which batches stand in the tree, and others do not. */
  readonly carried: readonly CarriedWriter[];
  /** Writers that more might have come of, and of which all batches stand in the tree. */
  readonly ended: readonly bigint[];
}

/** Longer than any certificate of ours: as many as a charter carries must fit into it. */
const maxCertificate = 1024;
/** Between the clocks of two hosts, in ms. */
const clocksDifferMs = 60_000;
/** 8 KiB each. Proofs of many writers read the same tiles of the upper levels. */
const cachedTiles = 1024;

/**
 * Finds where every writer stands.
 *
 * @param written every writer that the database knows of.
 * @param tree of which the root is known to be what was signed, or what follows it by the writers' signatures; null if the database has no log.
 * @throws Error of one line that names the writer if the database says otherwise than the tree.
 */
export async function provenStanding(store: TreeStore, written: readonly Written[], tree: Tree | null, charter: Charter | null, certifier: NoteVerifier, now: Date): Promise<Standing> {
  const reader = tree === null ? null : treeReader(store, tree, cachedTiles);
  const carried: CarriedWriter[] = [];
  const ended: bigint[] = [];
  /** By leaf hash: the batches that come next, which must not stand in the tree. */
  const next = new Map<string, Batch>();
  let from = Number.POSITIVE_INFINITY;
  /** From this leaf on, nothing can have been taken out of the database. */
  let wholeFrom = Number.POSITIVE_INFINITY;
  for (const { writer, last, chain } of written) {
    const position = chain?.position ?? { next: 0n, previous: noPredecessor, formedAt: null };
    const begins = charter?.carried.find((each) => each.writer === writer);
    const lastBatch = last === null ? null : await store.batch(writer, last);
    // Settled when this log was begun, as what is older than that must be.
    const canBeEarlier = charter !== null && charter.predecessor !== null && begins === undefined && lastBatch !== null && (chain?.state === 'distrusted' || (chain?.state === 'closed' && position.next > last!));
    if (canBeEarlier && lastBatch.formedAt.getTime() <= charter.startedAt.getTime() + clocksDifferMs) continue;
    // All that it ever wrote is gone: of a chain that has ended, after months; of another, the tree tells.
    if (last === null || lastBatch === null) {
      if (chain?.state === 'open') ended.push(writer);
      continue;
    }
    const [registered] = await store.certificates([writer]);
    const certificate = registered?.certificate ?? '';
    const key = certificate.length > maxCertificate ? null : certifiedKey(certificate, writer, certifier);
    const isSigned = (batch: Batch): boolean => key !== null && typeof followChain({ next: batch.number, previous: batch.previous, formedAt: null }, batch, key, (bundle) => decodeBundle(bundle).length) !== 'string';
    // What a sequencer takes: a batch that its writer signed can be refused for what it holds.
    const isNext = (batch: Batch): boolean => key !== null && typeof follow({ state: 'open', position, identity: { certificate, key } }, batch) !== 'string';
    const before = position.next === 0n ? null : await store.batch(writer, position.next - 1n);
    if (chain?.state === 'distrusted' && position.next > 0n && before === null && (lastBatch.formedAt.getTime() < now.getTime() - prunableMs || !isSigned(lastBatch))) continue;
    const place = await placeBefore(store, position, before, begins, tree, reader);
    // Earlier all the same, by a clock that was ahead of the one by which this log was begun.
    if (place === null && canBeEarlier && (await stoodEarlier(store, position, before, tree, certifier))) continue;
    if (place === null) throw tampered(writer, `that the log holds its batches up to ${position.next - 1n}, and it does not`);
    if (place > 0 && before !== null && before.formedAt.getTime() > now.getTime() - prunableMs) wholeFrom = Math.min(wholeFrom, place);
    if (last < position.next) {
      if (chain?.state === 'open') ended.push(writer);
      continue;
    }
    const batch = await store.batch(writer, position.next);
    if (chain?.state === 'closed') {
      // The sequencer of the new log tells of what stands behind the end of a chain.
      if (before === null || !endsWith(before)) throw tampered(writer, `that it ended with batch ${position.next - 1n}, which does not say so`);
      continue;
    }
    if (chain?.state === 'distrusted') {
      if (batch !== null && isNext(batch) && (before === null || !endsWith(before))) throw tampered(writer, `that nothing is to be taken of it from batch ${position.next} on, which is as it must be`);
      continue;
    }
    if (position.next > 0n) {
      if (key === null) throw tampered(writer, 'what its certificate is, which the HSM did not sign');
      carried.push({ writer, next: position.next, previous: position.previous, certificate });
    }
    if (batch !== null && headerHashOf(batch) !== null) {
      next.set((await leafHashOf(store, batch)).toString('latin1'), batch);
      from = Math.min(from, place);
    }
  }
  if (tree !== null && reader !== null && next.size > 0) await assertAbsent(store, tree, reader, { from, wholeFrom }, next);
  return { carried, ended };
}

/**
 * Index of the leaf behind which the batch that comes next can stand at the earliest; null if the tree does not hold the batch before it, or the database
 * has another one of it.
 */
async function placeBefore(store: TreeStore, { next, previous, formedAt }: StoredChain['position'], before: Batch | null, begins: CarriedWriter | undefined, tree: Tree | null, reader: HashReader | null): Promise<number | null> {
  if (next === 0n) return begins === undefined && previous.equals(noPredecessor) && formedAt === null ? 0 : null;
  if (before === null || headerHashOf(before)?.equals(previous) !== true || before.formedAt.getTime() !== formedAt?.getTime()) return null;
  if (begins?.next === next) return begins.previous.equals(previous) ? 0 : null;
  return tree === null || reader === null ? null : await provenPlace(store, before, tree, reader);
}

/** Whether an earlier log holds a chain as far as the database says, under a checkpoint of it that the HSM signed. */
async function stoodEarlier(store: TreeStore, { next, previous, formedAt }: StoredChain['position'], before: Batch | null, tree: Tree | null, certifier: NoteVerifier): Promise<boolean> {
  if (tree === null || before === null || next === 0n || headerHashOf(before)?.equals(previous) !== true || before.formedAt.getTime() !== formedAt?.getTime()) return false;
  for (let logId = tree.logId - 1; logId > 0; logId -= 1) {
    const note = await store.checkpoint(logId);
    const signed = note === null ? null : openCheckpoint(note, [renamed(certifier, originOf(certifier.name, logId))]);
    if (signed === null) continue;
    const place = await provenPlace(store, before, { logId, size: signed.size, root: signed.root }).catch((error: unknown) => {
      // Its tiles are damaged: it proves nothing.
      if (error instanceof LogFault) return null;
      throw error;
    });
    if (place !== null) return true;
  }
  return false;
}

/**
 * That none of `batches` stands in the tree from leaf `from` on, as far as the database has it: what is older than its level 0 tiles cannot be told. Before
 * leaf `wholeFrom` some may be gone in the midst of others, since the tile with the last batch of a chain that is open stays (`retention.ts`).
 *
 * @throws Error of one line that names the batch; LogFault if the tiles are not those of the tree.
 */
async function assertAbsent(store: TreeStore, tree: Tree, reader: HashReader, { from, wholeFrom }: { readonly from: number; readonly wholeFrom: number }, batches: ReadonlyMap<string, Batch>): Promise<void> {
  // The root over what is before and every leaf that is read: so each leaf is the tree's.
  let frontier: Frontier | null = null;
  for (let index = Math.floor(from / tileWidth); index * tileWidth < tree.size; index += 1) {
    const end = (index + 1) * tileWidth;
    if (end <= wholeFrom && end < tree.size && (await store.tile(tree.logId, 0, index)) === null) {
      if (frontier !== null) await assertBegins(tree, frontier, reader);
      frontier = null;
      continue;
    }
    frontier ??= await frontierOf(index * tileWidth, reader);
    const width = tileWidthAt(0, index, tree.size);
    const tile = await wholeTile(store, tree.logId, 0, index, width);
    for (let at = 0; at < width * 32; at += 32) {
      const hash = tile.subarray(at, at + 32);
      const found = batches.get(hash.toString('latin1'));
      if (found !== undefined) throw tampered(found.writer, `that batch ${found.number} comes next, which stands in the log as entry ${frontier.size}`);
      frontier.append(hash);
    }
  }
  if (frontier !== null) await assertBegins(tree, frontier, reader);
}

/** @throws LogFault if the tree does not begin with what was read. */
async function assertBegins({ size, root }: Tree, read: Frontier, reader: HashReader): Promise<void> {
  const proof = read.size === size ? [] : await consistencyProof(read.size, size, reader);
  if (!verifyConsistency(read.size, size, read.root(), root, proof)) throw new LogFault('corrupt', 'the tiles of the log do not give its root');
}

function endsWith(batch: Batch): boolean {
  try {
    return closes(decodeBundle(batch.bundle).at(-1), batch.writer);
  } catch {
    return false;
  }
}

function tampered(writer: bigint, what: string): Error {
  return new Error(`of writer ${writerName(writer)} the database says ${what}: it was tampered with, and entries would be lost or come twice. Restore another backup`);
}
