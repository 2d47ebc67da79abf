/**
 * Where a log is read from and copied to: its checkpoint, its tiles and its entry bundles, wherever they lie.
 *
 * Adapters (a folder, an object store, the admin listener, the database) only move bytes; none of them is trusted. Whoever reads holds what
 * it got against a signed checkpoint.
 */
import { decodeBundle, encodeBundle, maxEntryBytes } from './entry.ts';
import { bundlePath, parsePath, tilePath, tileWidth } from './tiles.ts';
import type { BundleRef, TileRef } from './tiles.ts';

/** A log that can be read. Calls may run side by side. Each throws if it cannot tell, which is not the same as null. */
export interface LogSource {
  /** The newest checkpoint, a signed note; null if there is none. */
  checkpoint(): Promise<string | null>;
  /** The hashes of a tile; null if it is not there. Of a partial tile, a source may hold only a wider one: `readTile` looks for that too. */
  tile(ref: TileRef): Promise<Uint8Array | null>;
  /** An entry bundle; null if it is not there. As for tiles, `readBundle` looks for a wider one too. */
  bundle(ref: BundleRef): Promise<Uint8Array | null>;
}

/** A copy of a log. */
export interface LogTarget extends LogSource {
  /**
   * Stores a file of the log under its path (`tiles.ts`, `checkpoint`, `vkey`). Durable when it resolves. Only `checkpoint` and `vkey` are ever
   * replaced; anything else is there once and for all, and storing the same bytes again does nothing.
   *
   * @throws Error if other bytes stand there, or it cannot be stored. After the latter it may be there or not.
   */
  put(path: string, bytes: Uint8Array): Promise<void>;
}

/** What an adapter does: whole files by their path. Calls may run side by side. */
export interface LogFiles {
  /**
   * The bytes of a file; null if it is not there.
   *
   * @throws Error if it cannot be read, or is larger than `maxBytes`.
   */
  read(path: string, maxBytes: number): Promise<Buffer | null>;
}

export interface WritableLogFiles extends LogFiles {
  /** Stores a file, whole or not at all, durably when it resolves. False, and nothing is stored, if one of that path is there. */
  create(path: string, bytes: Uint8Array): Promise<boolean>;
  /** As `create`, but takes the place of what is there. */
  replace(path: string, bytes: Uint8Array): Promise<void>;
}

const hashBytes = 32;
/** As large as a note may be (`note.ts`). */
const maxNoteBytes = 1_000_000;
/** More than a tile has, so that one that is too long is seen to be. */
const maxTileBytes = 65_536;
const maxBundleBytes: number = tileWidth * (2 + maxEntryBytes);

/** Files of a log that change: everything else is written once. */
function isMutable(path: string): boolean {
  return path === 'checkpoint' || path === 'vkey';
}

export function logSource(files: LogFiles): LogSource {
  return {
    async checkpoint() {
      const note = await files.read('checkpoint', maxNoteBytes);
      return note === null ? null : note.toString('utf8');
    },
    tile: (ref) => files.read(tilePath(ref), maxTileBytes),
    bundle: (ref) => files.read(bundlePath(ref), maxBundleBytes),
  };
}

export function logTarget(files: WritableLogFiles): LogTarget {
  return {
    ...logSource(files),
    async put(path, bytes) {
      if (isMutable(path)) {
        await files.replace(path, bytes);
        return;
      }
      if (parsePath(path) === null) throw new Error('not a file of a log');
      if (await files.create(path, bytes)) return;
      const there = await files.read(path, maxBundleBytes).catch(() => null);
      if (there?.equals(bytes) !== true) throw new Error(`${path}: the copy holds something else there, which is never overwritten`);
    },
  };
}

/** The vkey that lies beside a copy's checkpoint; null if none does. It proves nothing: whoever could change the copy could change it. */
export async function readVkey(files: LogFiles): Promise<string | null> {
  return (await files.read('vkey', maxNoteBytes))?.toString('utf8').trim() ?? null;
}

/**
 * A tile of exactly this width, cut out of the full one where only that is there (c2sp.org/tlog-tiles, "Partial Tiles"). Null if neither is
 * there. Its length is what the source gave: a tile that is too short is the caller's to judge.
 */
export async function readTile(source: LogSource, ref: TileRef): Promise<Buffer | null> {
  const exact = await source.tile(ref);
  if (exact !== null || ref.width === tileWidth) return exact === null ? null : asBuffer(exact);
  const full = await source.tile({ ...ref, width: tileWidth });
  return full === null ? null : asBuffer(full).subarray(0, ref.width * hashBytes);
}

/** A bundle of exactly this width, as `readTile` does for tiles. */
export async function readBundle(source: LogSource, ref: BundleRef): Promise<Buffer | null> {
  const exact = await source.bundle(ref);
  if (exact !== null || ref.width === tileWidth) return exact === null ? null : asBuffer(exact);
  const full = await source.bundle({ ...ref, width: tileWidth });
  if (full === null) return null;
  try {
    return encodeBundle(decodeBundle(full).slice(0, ref.width));
  } catch {
    return asBuffer(full);
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
