/**
 * What a writer's start entry says of the one before it in its place: the last batch that its host knows to be committed. Whoever cuts off the tail of a
 * writer that was killed is caught by that.
 *
 * It is the word of one writer about another, and it may be a mistake or a lie: so it decides when the writer that says it goes on, and what is told, and
 * nothing about the one that is named. What is taken of a writer is a matter between its own signed batches and the tree: else who has the key of one
 * writer could stop or discredit every other.
 */
import { writerName } from './chain.ts';
import type { Batch } from './chain.ts';
import type { ChainSet } from './chain-set.ts';
import type { Charter } from './charter.ts';
import { headerHashOf, provenPlace } from './committed-tree.ts';
import { readEntry } from './entry.ts';
import { detailOf, unread } from './live-chain.ts';
import type { LiveChain, ParsedEntry } from './live-chain.ts';
import { prunableMs } from './sequenced-log.ts';
import type { LogHead, TreeStore } from './sequenced-log.ts';

/** The batch that a start entry names as its predecessor's last. */
export interface Predecessor {
  readonly writer: bigint;
  readonly last: bigint;
  /** Of its header; 32 bytes. */
  readonly hash: Buffer;
  /** When the host took note of it, by its own clock; null where the entry does not say. */
  readonly notedAt: Date | null;
}

/** What an alert says. */
export interface Told {
  readonly kind: string;
  readonly detail: Readonly<Record<string, string | number>>;
}

/** The batch that a start entry names as its predecessor's last; null if it names none. */
export function predecessorOf(entry: Uint8Array | undefined): Predecessor | null {
  return entry === undefined ? null : readPredecessor(readEntry(entry) ?? undefined);
}

/** As `predecessorOf`, of an entry that was read. */
export function readPredecessor(start: ParsedEntry | undefined): Predecessor | null {
  const { predecessor, predecessor_last: last, predecessor_hash: hash, predecessor_noted: noted } = detailOf(start);
  if (start?.['action'] !== 'writer.start' || typeof predecessor !== 'string' || typeof last !== 'string' || typeof hash !== 'string') return null;
  if (!/^[0-7][0-9a-f]{15}$/u.test(predecessor) || !/^[0-9]{1,18}$/u.test(last) || !/^[0-9a-f]{64}$/u.test(hash)) return null;
  return { writer: BigInt(`0x${predecessor}`), last: BigInt(last), hash: Buffer.from(hash, 'hex'), notedAt: typeof noted === 'string' && !Number.isNaN(Date.parse(noted)) ? new Date(noted) : null };
}

/**
 * Whether a start entry is right about the last batch of its predecessor, which must be in the tree already, or come before. Where it is not, either
 * somebody cut off the tail of that chain, or the entry is wrong or forged, and nobody here can tell which: it is told of, under both names, and the new
 * writer goes on. What was cut off can be brought back only whole, since the chain that is named stands where it stood.
 *
 * @returns what to tell of it if it is not right. 'not yet': the batch is there and not in the tree; its chain is then among `chains`.
 */
export async function bearsOut(
  store: TreeStore,
  claim: Predecessor,
  successor: LiveChain,
  { chains, head, charter }: { readonly chains: ChainSet<LiveChain>; readonly head: LogHead; readonly charter: Charter },
  now: Date,
): Promise<true | 'not yet' | Told> {
  const detail = { writer: writerName(claim.writer), successor: writerName(successor.writer) };
  let chain = chains.get(claim.writer);
  if (chain === undefined) {
    const stored = await store.chain(claim.writer);
    chain = { ...unread(claim.writer), ...(stored === null ? {} : { position: stored.position, state: stored.state, proven: false }) };
    // Not met yet, since its clock may be another, or met by another instance.
    const registered = stored !== null || (await store.certificates([claim.writer])).length > 0;
    if (registered && chain.state === 'open') chains.add(chain);
  }
  if (chain.position.next <= claim.last) {
    // Nobody is waited for but a writer that more can come of.
    const comes = chain.state === 'open' && chain !== successor && chains.get(claim.writer) === chain && (await store.batch(claim.writer, claim.last)) !== null;
    if (comes && successor.waits) {
      chains.moved(chain);
      return 'not yet';
    }
    return { kind: 'predecessor_missing', detail: { ...detail, reason: `batch ${claim.last} is missing, which its successor names as the last`, next: Number(chain.position.next) } };
  }
  const last = await store.batch(claim.writer, claim.last);
  // Its host was off for months, and it left the database with what is old. Whether the tree holds it, the archive tells, and whoever verifies the log: a
  // tail that somebody cut off before that is told of there.
  const takenOut = last === null && claim.notedAt !== null && claim.notedAt.getTime() < now.getTime() - prunableMs;
  // Where this instance did not bring the chain itself, its position is only a row: a cut tail would be covered up by it.
  if (!takenOut && !chain.proven && (last === null || !(await holds(store, last, head, charter)))) {
    return { kind: 'predecessor_missing', detail: { ...detail, reason: `batch ${claim.last}, which its successor names as the last, is not in the tree as the database says`, next: Number(claim.last) } };
  }
  // One that is not in the database any more was moved out of it, and stands in the tree.
  const same = last !== null ? headerHashOf(last)?.equals(claim.hash) === true : chain.position.next > claim.last + 1n || chain.position.previous.equals(claim.hash);
  if (same) return true;
  return { kind: 'predecessor_differs', detail: { ...detail, reason: `batch ${claim.last} is not the one that its successor saw committed`, next: Number(claim.last) } };
}

/**
 * One writer of each circle of those that wait for one another, which only liars do: none of it, nor whoever waits behind it, would ever go on.
 *
 * @param waiting whom each waits for.
 */
export function oneOfEachCircle(waiting: ReadonlyMap<bigint, bigint>): bigint[] {
  const found: bigint[] = [];
  const walked = new Set<bigint>();
  for (const start of waiting.keys()) {
    const walk = new Set<bigint>();
    let at: bigint | undefined = start;
    for (; at !== undefined && !walked.has(at); at = waiting.get(at)) {
      walked.add(at);
      walk.add(at);
    }
    if (at !== undefined && walk.has(at)) found.push(at);
  }
  return found;
}

/** Whether the tree holds a batch that is to stand in it. Of what was written before this log was begun, whoever began it has made sure (`restart.ts`). */
async function holds(store: TreeStore, batch: Batch, head: LogHead, charter: Charter): Promise<boolean> {
  const carried = charter.carried.find(({ writer }) => writer === batch.writer);
  const earlier = carried === undefined ? charter.predecessor !== null && batch.formedAt <= charter.startedAt : batch.number < carried.next;
  return earlier || (await provenPlace(store, batch, head)) !== null;
}
