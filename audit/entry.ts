/**
 * What one audited event says, and its canonical bytes. Pure.
 *
 * An entry is one JSON object in the canonical form of RFC 8785 (members sorted by name, no spaces, UTF-8), with its version in
 * `v`. It never holds a PAN and never unbounded text from outside: callers of this file pass only what they have checked.
 */

import { isUtf8 } from 'node:buffer';

export type EntryOutcome = 'allowed' | 'refused' | 'failed';

export interface Entry {
  /** What was asked for: `tokenize`, `detokenize`, `writer.start`, … */
  readonly action: string;
  readonly at: Date;
  /** SPIFFE id of the caller; absent where the vault itself acts. */
  readonly caller?: string;
  /** Error code of a refusal or failure (`vault/errors.ts`). */
  readonly code?: string;
  /** Facts of an event of ours (start, stop, keys), or what refused a call where its code does not tell: small, and never text from a client. */
  readonly detail?: Readonly<Record<string, string | number>>;
  /** IP address that the call came from. */
  readonly from?: string;
  /** Items of a call that have no token to be named by, counted by what became of them: an error code, `malformed`. */
  readonly items?: Readonly<Record<string, number>>;
  readonly outcome: EntryOutcome;
  /** Ids of the policies that decided. */
  readonly policies?: readonly string[];
  readonly purpose?: string;
  /** The caller's own reference, at most 64 characters of a narrow alphabet. */
  readonly reference?: string;
  /** Request id; ties the entry to the answer that the caller got. */
  readonly request?: string;
  /** Serial of the caller's certificate, lower-case hex. */
  readonly serial?: string;
  readonly tenant?: string;
  /** The tokens that the call named or made, by what became of them. Only well-formed tokens are ever named: anything else could be a PAN. */
  readonly tokens?: Readonly<Record<string, readonly string[]>>;
}

/** An entry must fit the uint16 length of a C2SP tlog-tiles entry bundle, so it stays below this many bytes. */
export const maxEntryBytes = 65_535;

/**
 * Objects and lists within one another, the entry itself among them; ours have three. How deep a reader can go without a bound depends on the stack that it
 * has left: a sequencer could take what a verifier elsewhere cannot read.
 */
export const maxEntryDepth = 16;

const version = 1;

/**
 * The canonical bytes of an entry, at most `maxEntryBytes`.
 *
 * The object literal below lists its members in the order of RFC 8785; `undefined` members vanish. A test holds the literal to
 * a real canonicalizer, which would cost several times more here.
 *
 * @throws RangeError if the entry is too large: the caller bounds what it lists, so this is a defect and not an input error.
 */
export function encodeEntry(entry: Entry): Buffer {
  const bytes = Buffer.from(
    JSON.stringify({
      action: entry.action,
      at: entry.at.toISOString(),
      caller: entry.caller,
      code: entry.code,
      detail: entry.detail === undefined ? undefined : sortedByName(entry.detail),
      from: entry.from,
      items: entry.items === undefined ? undefined : sortedByName(entry.items),
      outcome: entry.outcome,
      policies: entry.policies,
      purpose: entry.purpose,
      reference: entry.reference,
      request: entry.request,
      serial: entry.serial,
      tenant: entry.tenant,
      tokens: entry.tokens === undefined ? undefined : sortedByName(entry.tokens),
      v: version,
    }),
    'utf8',
  );
  if (bytes.length > maxEntryBytes) throw new RangeError('an entry is larger than a bundle can hold');
  return bytes;
}

/**
 * An entry's members, as JSON gives them; null if the bytes are not those of an entry: an object in the canonical form of RFC 8785, of version 1, with an
 * action. Names that are whole numbers count as out of order; no entry has one.
 */
export function readEntry(bytes: Uint8Array): Readonly<Record<string, unknown>> | null {
  // A replacement character could stand for more than one text.
  if (bytes.length > maxEntryBytes || !isUtf8(bytes)) return null;
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
  try {
    const parsed = JSON.parse(text) as Record<string, unknown> | null;
    if (typeof parsed !== 'object' || parsed === null || parsed['v'] !== version || typeof parsed['action'] !== 'string') return null;
    // Spaces, other spellings of a number or a character, and names that occur twice do not come back as they were.
    return isSorted(parsed) && JSON.stringify(parsed) === text && !hasLoneSurrogate(text) ? parsed : null;
  } catch {
    return null;
  }
}

/** Whether the members of all objects are in order, and none lies too deep. */
function isSorted(value: object, depth = 1): boolean {
  if (depth > maxEntryDepth) return false;
  if (Array.isArray(value)) return value.every((item: unknown) => typeof item !== 'object' || item === null || isSorted(item, depth + 1));
  let previous: string | null = null;
  for (const name of Object.keys(value)) {
    if (previous !== null && previous >= name) return false;
    previous = name;
    const member: unknown = (value as Record<string, unknown>)[name];
    if (typeof member === 'object' && member !== null && !isSorted(member, depth + 1)) return false;
  }
  return true;
}

/** Half of a character, which canonical JSON cannot hold: `JSON.stringify` writes it as an escape. */
function hasLoneSurrogate(text: string): boolean {
  return text.includes('\\ud') && /(?<!\\)(?:\\\\)*\\ud[89a-f]/u.test(text);
}

/**
 * Entries as one C2SP tlog-tiles entry bundle: for each, its length as uint16 big-endian, then its bytes
 * (https://c2sp.org/tlog-tiles, "Entry bundles"). A batch is stored in this form so that the sequencer copies and never re-encodes.
 */
export function encodeBundle(entries: readonly Uint8Array[]): Buffer {
  let size = 0;
  for (const entry of entries) size += 2 + entry.length;
  const bundle = Buffer.allocUnsafe(size);
  let at = 0;
  for (const entry of entries) {
    at = bundle.writeUInt16BE(entry.length, at);
    bundle.set(entry, at);
    at += entry.length;
  }
  return bundle;
}

/**
 * The entries of a bundle, as views into it.
 *
 * @throws RangeError if the bundle is cut short, or holds more than `most` entries.
 */
export function decodeBundle(bundle: Uint8Array, most: number = Number.POSITIVE_INFINITY): Uint8Array[] {
  const view = Buffer.from(bundle.buffer, bundle.byteOffset, bundle.byteLength);
  const entries: Uint8Array[] = [];
  let at = 0;
  while (at < view.length) {
    if (at + 2 > view.length) throw new RangeError('an entry bundle is cut short');
    if (entries.length === most) throw new RangeError('an entry bundle holds too many entries');
    const end = at + 2 + view.readUInt16BE(at);
    if (end > view.length) throw new RangeError('an entry bundle is cut short');
    entries.push(view.subarray(at + 2, end));
    at = end;
  }
  return entries;
}

function sortedByName<Value>(members: Readonly<Record<string, Value>>): Record<string, Value> {
  return Object.fromEntries(Object.entries(members).sort(([a], [b]) => (a < b ? -1 : 1)));
}
