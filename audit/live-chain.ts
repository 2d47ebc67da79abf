/** A writer's chain as the sequencer follows it: who may write it, what may come next in it, and where it stands in the tree. */
import type { KeyObject } from 'node:crypto';
import { batchLeafAction } from './batch-leaf.ts';
import { chainStart, followChain, readWriterCertificate, writerName } from './chain.ts';
import type { Batch, ChainPosition } from './chain.ts';
import type { Charter } from './charter.ts';
import { headerHashOf, provenPlace } from './committed-tree.ts';
import { decodeBundle, readEntry } from './entry.ts';
import { openNote } from './note.ts';
import type { NoteVerifier } from './note.ts';
import type { ChainState, LogHead, TreeStore } from './sequenced-log.ts';

export interface LiveChain {
  readonly writer: bigint;
  /** Its certificate and the key that this certifies; null as long as nothing was read of it. */
  identity: { readonly certificate: string; readonly key: KeyObject } | null;
  /** Whether `position` is known to be that of the tree: this instance brought it there, or has found the last batch in the tree. */
  proven: boolean;
  position: ChainPosition;
  state: ChainState;
  reason: string | null;
  /** Whether it waits for its predecessor: not any more once it was seen to wait, by way of others, for itself. */
  waits: boolean;
}

/** Leaves after which other work of the process gets its turn, in about a millisecond: p99 of calls beside it was 65 and 58 ms, and 83 and 62 ms with 256, in two pairs on a noisy machine. */
export const leavesATurn = 32;

export type ParsedEntry = Readonly<Record<string, unknown>>;

/** Longer than any certificate of ours; a signed note may carry lines that its signature does not cover. */
const maxCertificate = 4096;

/**
 * Entries of a batch, several times what a group commit can be configured to take. Those of a bundle of 64 MiB can be empty: cut up, 33 million of them took
 * 46 s and 4 GB, for which every other writer would wait.
 */
const maxEntries = 65_536;

/** Leaves that only a log has: no writer may bring them. */
const reserved: ReadonlySet<unknown> = new Set([batchLeafAction, 'log.start']);

/** A chain of which nothing is in the tree. */
export function unread(writer: bigint): LiveChain {
  return { writer, identity: null, proven: true, position: chainStart, state: 'open', reason: null, waits: true };
}

/** Takes nothing of a writer from here on. */
export function distrust(chain: LiveChain, reason: string, touched: Set<LiveChain>): void {
  chain.state = 'distrusted';
  chain.reason = reason;
  touched.add(chain);
}

/** Reads the certificates of those whose key is not known yet. Who has none of the HSM's is distrusted, and added to `touched`. */
export async function identify(store: Pick<TreeStore, 'certificates'>, certifier: NoteVerifier, chains: readonly LiveChain[], touched: Set<LiveChain>): Promise<void> {
  const unknown = chains.filter(({ identity }) => identity === null);
  if (unknown.length === 0) return;
  const certificates = new Map((await store.certificates(unknown.map(({ writer }) => writer))).map(({ writer, certificate }) => [writer, certificate]));
  for (const chain of unknown) {
    const certificate = certificates.get(chain.writer) ?? '';
    const key = certifiedKey(certificate, chain.writer, certifier);
    if (key !== null) chain.identity = { certificate, key };
    else distrust(chain, 'its certificate is not the HSM\'s', touched);
  }
}

/** The key that a certificate certifies as `writer`'s; null if it is not the HSM's, or that of another. */
export function certifiedKey(certificate: string, writer: bigint, certifier: NoteVerifier): KeyObject | null {
  const text = certificate.length > maxCertificate ? null : openNote(certificate, [certifier]);
  const read = text === null ? null : readWriterCertificate(text);
  return read !== null && read.writer === writer ? read.publicKey : null;
}

/** What is in a batch that may come next, and where its chain stands behind it. */
export interface Followed {
  readonly position: ChainPosition;
  readonly entries: readonly Uint8Array[];
  /** The same entries, read. */
  readonly parsed: readonly ParsedEntry[];
}

/** What `batch` brings as the next one of an identified chain, or what is wrong with it. What a verifier of the log would refuse must not come into it. */
export function follow(chain: Pick<LiveChain, 'state' | 'position' | 'identity'>, batch: Batch): Followed | string {
  if (chain.state === 'closed') return `batch ${batch.number} stands behind the end of the chain`;
  let entries: readonly Uint8Array[] = [];
  const position = followChain(chain.position, batch, chain.identity!.key, (bundle) => (entries = decodeBundle(bundle, maxEntries)).length);
  if (typeof position === 'string') return position;
  const parsed: ParsedEntry[] = [];
  for (const bytes of entries) {
    const entry = readEntry(bytes);
    if (entry === null || reserved.has(entry['action'])) return `batch ${batch.number} holds what is no entry of a writer`;
    parsed.push(entry);
  }
  if ((batch.kind === 'tombstone') !== (entries.length === 0)) return `batch ${batch.number} holds entries in a tombstone, or none outside of one`;
  if (batch.number === 0n && (parsed[0]?.['action'] !== 'writer.start' || detailOf(parsed[0])['writer'] !== writerName(batch.writer))) return 'batch 0 does not tell of its writer\'s start';
  return { position, entries, parsed };
}

/**
 * Whether the position that the database has of a chain is that of the tree: whoever moved it on would have batches left out with every signature in
 * place. So the batch before it must stand in the tree; of a chain that may go on, that one is never moved out of the database.
 */
export async function standsAt(store: TreeStore, { writer, position }: Pick<LiveChain, 'writer' | 'position'>, head: LogHead, charter: Charter): Promise<boolean> {
  const carried = charter.carried.find((each) => each.writer === writer);
  if (carried === undefined ? position.next === 0n : carried.next === position.next && carried.previous.equals(position.previous)) return true;
  const last = await store.batch(writer, position.next - 1n);
  return last !== null && headerHashOf(last)?.equals(position.previous) === true && last.formedAt.getTime() === position.formedAt?.getTime() && (await provenPlace(store, last, head)) !== null;
}

export function detailOf(entry: ParsedEntry | undefined): ParsedEntry {
  const detail = entry?.['detail'];
  return typeof detail === 'object' && detail !== null ? (detail as Record<string, unknown>) : {};
}

/** Whether an entry, as the last one of a batch, is the one with which a writer ends its chain. */
export function isStop(entry: ParsedEntry | undefined, writer: bigint): boolean {
  return entry?.['action'] === 'writer.stop' && detailOf(entry)['writer'] === writerName(writer);
}

/** As `isStop`, of an entry's bytes. */
export function closes(entry: Uint8Array | undefined, writer: bigint): boolean {
  if (entry === undefined || !Buffer.from(entry.buffer, entry.byteOffset, entry.byteLength).includes('"writer.stop"')) return false;
  return isStop(readEntry(entry) ?? undefined, writer);
}
