/** Reads entries strictly: whatever is not canonical JSON (RFC 8785) with version 1 is none. Pure. */
import { maxEntryDepth } from './entry.ts';

/**
 * What an entry says; null if its bytes are not those that its meaning has.
 *
 * Parsing and writing again is faster than any scanner in JavaScript: both halves are V8's own.
 */
export function parseCanonical(bytes: Uint8Array): Readonly<Record<string, unknown>> | null {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== 'object' || value === null || Array.isArray(value) || (value as { v?: unknown }).v !== 1) return null;
    // Names that look like integers stand first in an object, wherever they were: those are put in order by hand.
    if (!((isSorted(value) && JSON.stringify(value) === text) || canonicalize(value) === text)) return null;
    // Bytes that are not UTF-8 were read as U+FFFD, and half a surrogate pair can be written as an escape.
    if (text.includes('\uFFFD') && !Buffer.from(text, 'utf8').equals(bytes)) return null;
    if (text.includes('\\ud') && !isWellFormed(value)) return null;
    return value as Readonly<Record<string, unknown>>;
  } catch {
    return null;
  }
}

/** Whether the members of all objects are in the order of RFC 8785, by UTF-16 code units, and none lies too deep. */
function isSorted(value: object, depth = 1): boolean {
  if (depth > maxEntryDepth) return false;
  if (Array.isArray(value)) return value.every((item: unknown) => typeof item !== 'object' || item === null || isSorted(item, depth + 1));
  let before: string | null = null;
  for (const name in value) {
    if (before !== null && name <= before) return false;
    before = name;
    const member: unknown = (value as Record<string, unknown>)[name];
    if (typeof member === 'object' && member !== null && !isSorted(member, depth + 1)) return false;
  }
  return true;
}

/** @throws RangeError if something lies too deep. */
function canonicalize(value: unknown, depth = 1): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (depth > maxEntryDepth) throw new RangeError('deeper than an entry may be');
  if (Array.isArray(value)) return `[${value.map((item: unknown) => canonicalize(item, depth + 1)).join(',')}]`;
  const members = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonicalize(member, depth + 1)}`).join(',')}}`;
}

function isWellFormed(value: unknown): boolean {
  if (typeof value === 'string') return value.isWellFormed();
  if (typeof value !== 'object' || value === null) return true;
  return Object.entries(value).every(([name, member]) => name.isWellFormed() && isWellFormed(member));
}
