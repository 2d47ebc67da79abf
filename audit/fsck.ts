/**
 * Verifies a whole log from its entries, offline, with nothing but the log's public key: the tree and all of its tiles, the signature, the
 * charter, every writer's chain, and that it continues each older checkpoint that somebody kept.
 *
 * Reads the log once, from entry 0, a few bundles ahead, and keeps of it only what the end needs: the edge of the tree and where each writer stands.
 */
import { openCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import { decodeBundle } from './entry.ts';
import { Findings, rangeText } from './findings.ts';
import type { Finding } from './findings.ts';
import { ChainCheck } from './fsck-chains.ts';
import type { ChainTotals } from './fsck-chains.ts';
import { TreeCheck } from './fsck-tree.ts';
import { isLater, keysOf } from './log-keys.ts';
import { readBundle, readTile } from './log-source.ts';
import type { LogSource } from './log-source.ts';
import { leafHash } from './merkle.ts';
import type { NoteVerifier } from './note.ts';
import { bundlePath, tilePath, tileWidth, tileWidthAt } from './tiles.ts';
import type { BundleRef, TileRef } from './tiles.ts';
import { AlertCheck } from './told-alerts.ts';
import type { ToldAlerts } from './told-alerts.ts';

export interface VerifyOptions {
  /** The log's public key, or that of another log of the same vault. */
  readonly vkey: NoteVerifier;
  /** Checkpoints that were kept from earlier, signed notes, each under a name for people. */
  readonly olderCheckpoints?: readonly { readonly name: string; readonly note: string }[];
  /** Called about every thousand entries. */
  readonly onProgress?: (progress: { readonly done: number; readonly total: number }) => void;
  /** Findings that are kept; all are counted. */
  readonly maxFindings?: number;
  /** Bundles that are read ahead. */
  readonly readAhead?: number;
}

export interface LogReport {
  /** Whether nothing was found wrong. */
  readonly holds: boolean;
  /** Null if there is none that this key has signed; then nothing else was looked at. */
  readonly checkpoint: Checkpoint | null;
  readonly totals: ChainTotals;
  /** In the order of the log. */
  readonly findings: readonly Finding[];
  /** How many there are: `findings` may hold fewer. */
  readonly found: number;
  /** Older checkpoints that the log continues, by name. */
  readonly continued: readonly string[];
  /** Older checkpoints of an earlier log of the vault, which this one cannot tell of. */
  readonly earlier: readonly string[];
  /** What the log itself tells of that was wrong when it was written; no finding about the log. */
  readonly alerts: ToldAlerts;
}

const hashBytes = 32;
const noTotals: ChainTotals = { batches: 0, tombstones: 0, entries: 0, writers: 0, earlier: 0 };

/** Never rejects for what is wrong with the log: that is in the report. */
export async function verifyLog(source: LogSource, options: VerifyOptions): Promise<LogReport> {
  const findings = new Findings(options.maxFindings ?? 100);
  const { onProgress, readAhead = 4 } = options;

  // 1. The signed statement, without which there is nothing to verify.
  const failed = (finding: Finding): LogReport => ({ holds: false, checkpoint: null, totals: noTotals, findings: [finding], found: 1, continued: [], earlier: [], alerts: { count: 0, first: [] } });
  const note = await tryRead(() => source.checkpoint());
  if (note instanceof Error) return failed({ code: 'file_unreadable', file: 'checkpoint', message: note.message });
  if (note === null) return failed({ code: 'checkpoint_missing', file: 'checkpoint', message: 'there is no checkpoint: this is no log, or a copy of one that was never completed' });
  const keys = keysOf(options.vkey, note.slice(0, Math.max(0, note.indexOf('\n'))));
  const checkpoint = keys === null ? null : openCheckpoint(note, [keys.checkpoint]);
  if (keys === null || checkpoint === null) return failed({ code: 'checkpoint_invalid', file: 'checkpoint', message: `the checkpoint is not signed by the key ${options.vkey.name}+${options.vkey.keyId.toString('hex')}: it was changed, or is of another log` });
  const { size } = checkpoint;

  // 2. What was kept from earlier.
  const older: { readonly name: string; readonly checkpoint: Checkpoint }[] = [];
  const otherLogs: { readonly name: string; readonly checkpoint: Checkpoint }[] = [];
  for (const { name, note: text } of options.olderCheckpoints ?? []) {
    const known = keysOf(options.vkey, text.slice(0, Math.max(0, text.indexOf('\n'))));
    const opened = known === null ? null : openCheckpoint(text, [known.checkpoint]);
    if (opened === null) findings.add({ code: 'older_checkpoint_invalid', file: name, message: `${name}: is not a checkpoint that the log's key has signed` });
    else if (opened.origin !== checkpoint.origin) otherLogs.push({ name, checkpoint: opened });
    else if (opened.size > size) findings.add({ code: 'older_checkpoint_ahead', file: name, entry: size, to: opened.size - 1, message: `${name}: has ${opened.size} entries, the log only ${size}: ${rangeText(size, opened.size - 1)} were cut off` });
    else older.push({ name, checkpoint: opened });
  }

  // 3. Everything, from entry 0 on.
  const reads = new ReadAhead(source, size, readAhead, findings);
  const tree = new TreeCheck(size, (ref) => reads.tile(ref), findings, older.map((one) => one.checkpoint.size));
  const chains = new ChainCheck({ origin: checkpoint.origin, certifier: keys.certifier, findings });
  const alerts = new AlertCheck();
  const bundles = Math.ceil(size / tileWidth);
  for (let index = 0; index < bundles; index++) {
    const width = tileWidthAt(0, index, size);
    const first = index * tileWidth;
    const bundle = await reads.bundle(index);
    const entries = bundle === null ? null : entriesOf(bundle, { index, width }, findings);
    if (bundle === null || entries === null) {
      await tree.bundle(index, null);
      chains.missing(width);
    } else {
      const hashes = Buffer.allocUnsafe(width * hashBytes);
      for (const [place, entry] of entries.entries()) leafHash(entry).copy(hashes, place * hashBytes);
      await tree.bundle(index, hashes);
      await chains.bundle(first, bundle, entries);
      alerts.bundle(first, bundle, entries);
    }
    if (index % 4 === 3 || index === bundles - 1) onProgress?.({ done: first + width, total: size });
  }
  await chains.end(size);

  // 4. Whether that is what was signed, now and earlier.
  if (!(await tree.end(checkpoint.root))) findings.add({ code: 'root_mismatch', file: 'checkpoint', message: `the entries and tiles do not give the root that the checkpoint of ${size} entries signs: ${rangeText(0, Math.max(0, size - 1))} or their order were changed, added or taken away` });
  const continued: string[] = [];
  for (const { name, checkpoint: before } of older) {
    const root = before.size === size ? checkpoint.root : tree.rootAt(before.size);
    if (root?.equals(before.root) === true) continued.push(name);
    else findings.add({ code: 'older_checkpoint_differs', file: name, entry: 0, to: Math.max(0, before.size - 1), message: root === null ? `${name}: whether its ${before.size} entries are still there cannot be told, for some cannot be read` : `${name}: the log does not begin with the ${before.size} entries that it signs: history was rewritten` });
  }
  const earlier: string[] = [];
  const predecessor = chains.charter?.predecessor ?? null;
  for (const { name, checkpoint: before } of otherLogs) {
    if (isLater(before.origin, checkpoint.origin)) {
      findings.add({ code: 'older_checkpoint_ahead', file: name, entry: size, message: `${name}: is of ${before.origin}, a later log of this vault, so the copy is not the newest one` });
    } else if (predecessor !== null && before.origin === predecessor.origin && before.size > predecessor.size) {
      // The restore itself would have cut them off, and the charter not told of it.
      findings.add({ code: 'older_checkpoint_ahead', file: name, entry: 0, message: `${name}: has ${before.size} entries, but the charter of the log names ${before.origin} as ended with ${predecessor.size}: ${rangeText(predecessor.size, before.size - 1)} of it were passed over` });
    } else if (predecessor !== null && before.origin === predecessor.origin && before.size === predecessor.size) {
      if (before.root.equals(predecessor.root)) continued.push(name);
      else findings.add({ code: 'older_checkpoint_differs', file: name, message: `${name}: the charter of the log names another end of ${before.origin} than the one that was signed` });
    } else earlier.push(name);
  }
  return { holds: findings.count === 0, checkpoint, totals: chains.totals, findings: findings.list(), found: findings.count, continued, earlier, alerts: alerts.told };
}

/** The entries of a bundle; null, and a finding, if it does not hold as many as it must. */
function entriesOf(bundle: Buffer, ref: BundleRef, findings: Findings): Uint8Array[] | null {
  const path = bundlePath(ref);
  const first = ref.index * tileWidth;
  const range = { file: path, entry: first, to: first + ref.width - 1 };
  try {
    const entries = decodeBundle(bundle);
    if (entries.length === ref.width) return entries;
    findings.add({ code: 'bundle_malformed', ...range, message: `${path} holds ${entries.length} entries and not ${ref.width}: ${rangeText(range.entry, range.to)} cannot be checked` });
  } catch {
    findings.add({ code: 'bundle_malformed', ...range, message: `${path} is cut short or damaged: ${rangeText(range.entry, range.to)} cannot be checked` });
  }
  return null;
}

/** Reads bundles and tiles of level 0 a little before they are needed. */
class ReadAhead {
  readonly #source: LogSource;
  readonly #size: number;
  readonly #ahead: number;
  readonly #findings: Findings;
  readonly #bundles = new Map<number, Promise<Buffer | null | Error>>();
  readonly #tiles = new Map<number, Promise<Buffer | null | Error>>();

  constructor(source: LogSource, size: number, ahead: number, findings: Findings) {
    this.#source = source;
    this.#size = size;
    this.#ahead = ahead;
    this.#findings = findings;
  }

  /** A bundle, in order from the first; null, and a finding, if it is not there. */
  async bundle(index: number): Promise<Buffer | null> {
    for (let next = index; next <= index + this.#ahead; next++) {
      const width = tileWidthAt(0, next, this.#size);
      if (width === 0 || this.#bundles.has(next)) continue;
      this.#bundles.set(next, tryRead(() => readBundle(this.#source, { index: next, width })));
      this.#tiles.set(next, tryRead(() => readTile(this.#source, { level: 0, index: next, width })));
    }
    const bundle = await this.#bundles.get(index)!;
    this.#bundles.delete(index);
    const first = index * tileWidth;
    const ref = { index, width: tileWidthAt(0, index, this.#size) };
    const range = { file: bundlePath(ref), entry: first, to: first + ref.width - 1 };
    if (bundle instanceof Error) this.#findings.add({ code: 'file_unreadable', ...range, message: bundle.message });
    else if (bundle === null) this.#findings.add({ code: 'bundle_missing', ...range, message: `${range.file} is missing: ${rangeText(range.entry, range.to)} cannot be checked` });
    return bundle instanceof Error ? null : bundle;
  }

  /** A tile; null, and a finding, if it is not there or cannot be one. */
  async tile(ref: TileRef): Promise<Buffer | null> {
    const tile = await ((ref.level === 0 ? this.#tiles.get(ref.index) : undefined) ?? tryRead(() => readTile(this.#source, ref)));
    if (ref.level === 0) this.#tiles.delete(ref.index);
    const path = tilePath(ref);
    const span = tileWidth ** ref.level;
    const range = { file: path, entry: ref.index * tileWidth * span, to: (ref.index * tileWidth + ref.width) * span - 1 };
    if (tile instanceof Error) this.#findings.add({ code: 'file_unreadable', ...range, message: tile.message });
    else if (tile === null) this.#findings.add({ code: 'tile_missing', ...range, message: `${path} is missing` });
    else if (tile.length !== ref.width * hashBytes) this.#findings.add({ code: 'tile_malformed', ...range, message: `${path} is ${tile.length} bytes long and not ${ref.width * hashBytes}` });
    else return tile;
    return null;
  }
}

async function tryRead<Value>(read: () => Promise<Value>): Promise<Value | Error> {
  try {
    return await read();
  } catch (error) {
    return error instanceof Error ? error : new Error('cannot be read');
  }
}
