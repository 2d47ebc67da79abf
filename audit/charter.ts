/**
 * How a log begins: its first leaf holds a charter, signed by the HSM's log key, that names the log and, where a vault was restored and had to
 * begin anew, the log before it and the writers that go on in this one. Pure but for the signature.
 *
 * The text of the charter, a C2SP signed note under the vault's name for its log:
 *   cofre/log/v1
 *   <origin>
 *   <time, ISO 8601>
 *   predecessor <origin> <size> <root, base64>          where there is one
 *   carried <writer> <next batch> <hash of its last batch's header, hex> <certificate, base64>      one a writer, where there is a predecessor
 */
import { emptyRoot, leafHash } from './merkle.ts';
import { encodeEntry } from './entry.ts';
import { openNote, signNote } from './note.ts';
import type { NoteSigner, NoteVerifier } from './note.ts';
import type { NewLog } from './sequenced-log.ts';
import { writerName } from './chain.ts';

export interface CarriedWriter {
  readonly writer: bigint;
  readonly next: bigint;
  /** SHA-256 of its last batch's header; 32 bytes. */
  readonly previous: Buffer;
  /** Signed note. */
  readonly certificate: string;
}

export interface Charter {
  readonly origin: string;
  readonly startedAt: Date;
  readonly predecessor: { readonly origin: string; readonly size: number; readonly root: Buffer } | null;
  readonly carried: readonly CarriedWriter[];
}

/** Writers that one charter can carry: it must fit an entry. */
export const maxCarried = 40;

/** Origin of the `logId`-th log of a vault that calls its log `name`. */
export function originOf(name: string, logId: number): string {
  return logId === 1 ? name : `${name}/${logId}`;
}

/** The number of the log with this origin; null if it is none of the vault that calls its logs `name`. */
export function logIdOf(origin: string, name: string): number | null {
  if (origin === name) return 1;
  const match = origin.startsWith(`${name}/`) ? /^(?:[2-9]|[1-9][0-9]{1,5})$/u.exec(origin.slice(name.length + 1)) : null;
  return match === null ? null : Number(match[0]);
}

/** A log of one leaf, its charter, signed. @throws what the signer throws, and RangeError if too many writers are carried. */
export async function newLog(log: Charter & { readonly logId: number }, name: string, signer: NoteSigner): Promise<NewLog> {
  if (log.carried.length > maxCarried) throw new RangeError('more writers go on than a charter holds');
  const { predecessor } = log;
  const lines = [
    'cofre/log/v1',
    log.origin,
    log.startedAt.toISOString(),
    ...(predecessor === null ? [] : [`predecessor ${predecessor.origin} ${predecessor.size} ${predecessor.root.toString('base64')}`]),
    ...log.carried.map(({ writer, next, previous, certificate }) => `carried ${writerName(writer)} ${next} ${previous.toString('hex')} ${Buffer.from(certificate, 'utf8').toString('base64')}`),
  ];
  const charter = await signNote(`${lines.join('\n')}\n`, name, signer);
  const firstLeaf = encodeEntry({ action: 'log.start', at: log.startedAt, outcome: 'allowed', detail: { charter } });
  return { head: { logId: log.logId, origin: log.origin, size: 1, root: leafHash(firstLeaf) }, firstLeaf, at: log.startedAt };
}

/** The charter in a log's first leaf; null if it is none, or not signed by one of `verifiers`. */
export function readCharter(leaf: Uint8Array, verifiers: readonly NoteVerifier[]): Charter | null {
  let note: unknown;
  try {
    const entry = JSON.parse(Buffer.from(leaf.buffer, leaf.byteOffset, leaf.byteLength).toString('utf8')) as { action?: unknown; detail?: { charter?: unknown } } | null;
    note = entry?.action === 'log.start' ? entry.detail?.charter : null;
  } catch {
    return null;
  }
  const text = typeof note === 'string' ? openNote(note, verifiers) : null;
  if (text === null) return null;
  const [format, origin = '', startedAt = '', ...rest] = text.slice(0, -1).split('\n');
  if (format !== 'cofre/log/v1' || !/^[^\s+]+$/u.test(origin) || Number.isNaN(Date.parse(startedAt))) return null;
  let predecessor: Charter['predecessor'] = null;
  const carried: CarriedWriter[] = [];
  for (const [index, line] of rest.entries()) {
    const [word, a = '', b = '', c = '', d = '', ...more] = line.split(' ');
    if (more.length > 0) return null;
    if (word === 'predecessor' && index === 0 && d === '') {
      const root = Buffer.from(c, 'base64');
      if (!/^(?:0|[1-9][0-9]{0,15})$/u.test(b) || root.length !== emptyRoot.length || root.toString('base64') !== c) return null;
      predecessor = { origin: a, size: Number(b), root };
    } else if (word === 'carried' && predecessor !== null && /^[0-7][0-9a-f]{15}$/u.test(a) && /^(?:0|[1-9][0-9]{0,18})$/u.test(b) && /^[0-9a-f]{64}$/u.test(c)) {
      carried.push({ writer: BigInt(`0x${a}`), next: BigInt(b), previous: Buffer.from(c, 'hex'), certificate: Buffer.from(d, 'base64').toString('utf8') });
    } else return null;
  }
  return { origin, startedAt: new Date(startedAt), predecessor, carried };
}
