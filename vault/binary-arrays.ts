/**
 * PostgreSQL arrays in their binary wire form, built straight into one Buffer. Pure.
 *
 * node-postgres would render a JavaScript array as text, and bytea in it as hex, which the server then parses again: hand-built
 * arrays carried a third more rows a second. A Buffer parameter is sent in binary format as it is.
 * Form (src/backend/utils/adt/arrayfuncs.c, array_recv): dimensions (4) || has nulls (4) || element oid (4) || length (4) ||
 * lower bound (4), then for each element its length, or -1 for NULL, and its bytes.
 */

const headerBytes = 20;
const oid = { bool: 16, bytea: 17, int2: 21, int4: 23, text: 25, timestamptz: 1184 } as const;
/** 2000-01-01, from which PostgreSQL counts, in milliseconds since 1970. */
const postgresEpochMs = 946_684_800_000;

/** `bytea[]`; the elements are copied. */
export function byteaArray(values: readonly (Uint8Array | null)[]): Buffer {
  return variableArray(oid.bytea, values, byteLengthOfBytes, writeBytes);
}

/** `text[]` in UTF-8. */
export function textArray(values: readonly (string | null)[]): Buffer {
  return variableArray(oid.text, values, byteLengthOfText, writeText);
}

export function int4Array(values: readonly (number | null)[]): Buffer {
  return variableArray(oid.int4, values, () => 4, writeInt4);
}

export function int2Array(values: readonly (number | null)[]): Buffer {
  return variableArray(oid.int2, values, () => 2, writeInt2);
}

export function boolArray(values: readonly (boolean | null)[]): Buffer {
  return variableArray(oid.bool, values, () => 1, writeBool);
}

/** `timestamptz[]`, to the millisecond. */
export function timestampArray(values: readonly (Date | null)[]): Buffer {
  return variableArray(oid.timestamptz, values, () => 8, writeTimestamp);
}

function variableArray<T>(elementOid: number, values: readonly (T | null)[], sizeOf: (value: T) => number, write: (target: Buffer, at: number, value: T) => void): Buffer {
  let size = headerBytes;
  let nulls = 0;
  for (const value of values) {
    size += 4;
    if (value === null) nulls = 1;
    else size += sizeOf(value);
  }
  const array = Buffer.allocUnsafe(size);
  array.writeInt32BE(1, 0);
  array.writeInt32BE(nulls, 4);
  array.writeInt32BE(elementOid, 8);
  array.writeInt32BE(values.length, 12);
  array.writeInt32BE(1, 16);
  let at = headerBytes;
  for (const value of values) {
    if (value === null) {
      at = array.writeInt32BE(-1, at);
      continue;
    }
    const length = sizeOf(value);
    at = array.writeInt32BE(length, at);
    write(array, at, value);
    at += length;
  }
  return array;
}

function byteLengthOfBytes(value: Uint8Array): number {
  return value.length;
}

function byteLengthOfText(value: string): number {
  return Buffer.byteLength(value, 'utf8');
}

function writeBytes(target: Buffer, at: number, value: Uint8Array): void {
  target.set(value, at);
}

function writeText(target: Buffer, at: number, value: string): void {
  target.write(value, at, 'utf8');
}

function writeBool(target: Buffer, at: number, value: boolean): void {
  target[at] = value ? 1 : 0;
}

function writeTimestamp(target: Buffer, at: number, value: Date): void {
  target.writeBigInt64BE(BigInt(value.getTime() - postgresEpochMs) * 1000n, at);
}

function writeInt4(target: Buffer, at: number, value: number): void {
  target.writeInt32BE(value, at);
}

function writeInt2(target: Buffer, at: number, value: number): void {
  target.writeInt16BE(value, at);
}
