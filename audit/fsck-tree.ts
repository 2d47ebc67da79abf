/**
 * Builds the tree again from the entries and compares it, tile by tile, with the tiles that are there and the root that is signed.
 *
 * Where the two differ, the hash above tells which one is right: nobody makes a hash fit. So a fault is named where it is, and what is right of
 * the two is carried on, so that it does not hide another one. Only at the edge of the tree, above which there is no hash, and where the hash above
 * is itself wrong, both are carried on until a level, or the signed root, decides.
 */
import { rangeText } from './findings.ts';
import type { Findings } from './findings.ts';
import { completeRoot } from './merkle.ts';
import { bundlePath, TileBuilder, tilePath, tileWidth, tileWidthAt } from './tiles.ts';
import type { TileRef } from './tiles.ts';

const hashBytes = 32;
/** Ways to put doubtful hashes together that are tried before giving up. */
const maxVariants = 256;

/** One way in which a tile may be right, and what is wrong then. */
interface Reading {
  readonly row: Buffer;
  /** Reports what is wrong if this is right; as undecided where it is not known to be. */
  readonly tell: (certain: boolean) => void;
}

/** A tile of which more than one reading is left. */
interface Doubt {
  readonly position: number;
  readonly readings: readonly Reading[];
}

interface Level {
  /** The hashes of the tile that is being filled, and how many. */
  row: Buffer;
  filled: number;
  doubts: Doubt[];
  /** Positions that nothing tells of. */
  holes: number[];
  /** The stored tile at this place. */
  stored: { readonly index: number; readonly row: Buffer | null } | null;
}

export class TreeCheck {
  readonly #size: number;
  readonly #read: (ref: TileRef) => Promise<Buffer | null>;
  readonly #findings: Findings;
  readonly #levels: Level[] = [];
  /** Sizes of older trees whose roots are wanted, ascending. */
  readonly #wanted: number[];
  readonly #roots = new Map<number, Buffer>();

  /**
   * @param read gives a stored tile; null if it is not there or cannot be one, which it has reported.
   * @param olderSizes sizes up to `size`, of which `rootAt` tells the roots in the end.
   */
  constructor(size: number, read: (ref: TileRef) => Promise<Buffer | null>, findings: Findings, olderSizes: readonly number[]) {
    this.#size = size;
    this.#read = read;
    this.#findings = findings;
    this.#wanted = [...new Set(olderSizes)].sort((a, b) => a - b);
    for (let level = 0; Math.floor(size / tileWidth ** level) > 0; level++) this.#levels.push({ row: Buffer.alloc(tileWidth * hashBytes), filled: 0, doubts: [], holes: [], stored: null });
  }

  /** The root of the first `size` entries as they are; null if they do not tell. Known after `end`. */
  rootAt(size: number): Buffer | null {
    return this.#roots.get(size) ?? null;
  }

  /** Takes the leaf hashes of the next bundle; null if it cannot be read. In order from the first. */
  async bundle(index: number, computed: Buffer | null): Promise<void> {
    const width = tileWidthAt(0, index, this.#size);
    if (width < tileWidth) {
      // The edge: `end` decides.
      const level = this.#levels[0]!;
      const stored = await this.#stored(0, index);
      level.filled = width;
      const readings = leafReadings(index, width, computed, stored, this.#findings);
      if (readings.length === 0) level.holes.push(0);
      else {
        level.row = readings[0]!.row;
        if (readings.length > 1) level.doubts.push({ position: -1, readings });
      }
      return;
    }
    const readings = leafReadings(index, width, computed, await this.#stored(0, index), this.#findings);
    await this.#place(0, index, readings);
  }

  /** Decides between the readings of a full tile by the hash above it, and puts its hash, or the doubt, there. */
  async #place(level: number, index: number, readings: readonly Reading[]): Promise<void> {
    const parentIndex = Math.floor(index / tileWidth);
    const position = index % tileWidth;
    const above = await this.#stored(level + 1, parentIndex);
    const told = above === null ? null : above.subarray(position * hashBytes, (position + 1) * hashBytes);
    const hashes = readings.map(({ row }) => completeRoot(row, 0, tileWidth));
    const chosen = readings.findIndex((_, place) => told !== null && hashes[place]!.equals(told));
    if (chosen >= 0) readings[chosen]!.tell(true);
    if (level === 0) this.#noteRoots(index, readings[Math.max(0, chosen)]?.row ?? null);

    const parent = this.#levels[level + 1]!;
    const hash = hashes[Math.max(0, chosen)] ?? told;
    if (hash === null) parent.holes.push(position);
    else hash.copy(parent.row, position * hashBytes);
    // A bundle and its tile that agree have nothing to tell; that the hash above is another one, the level above sees.
    if (chosen < 0 && (readings.length > 1 || level > 0)) parent.doubts.push({ position, readings: readings.map(({ tell }, place) => ({ row: hashes[place]!, tell })) });
    parent.filled = position + 1;
    if (parent.filled < tileWidth) return;
    const rows = this.#rowReadings(level + 1, parentIndex, tileWidth, parent, await this.#stored(level + 1, parentIndex));
    parent.row = Buffer.alloc(tileWidth * hashBytes);
    parent.filled = 0;
    parent.doubts = [];
    parent.holes = [];
    await this.#place(level + 1, parentIndex, rows);
  }

  /** What a tile above level 0 may be: what is below it, in each way that is left, and what is stored. */
  #rowReadings(level: number, index: number, width: number, { row, doubts, holes }: Level, stored: Buffer | null): Reading[] {
    const ref: TileRef = { level, index, width };
    const readings: Reading[] = [];
    if (holes.length === 0) {
      for (const choice of variantsOf(doubts)) {
        const variant = Buffer.from(row.subarray(0, width * hashBytes));
        for (const [place, doubt] of doubts.entries()) doubt.readings[choice[place]!]!.row.copy(variant, doubt.position * hashBytes);
        readings.push({
          row: variant,
          tell: (certain) => {
            for (const [place, doubt] of doubts.entries()) doubt.readings[choice[place]!]!.tell(certain);
            if (stored !== null && !stored.equals(variant)) this.#tellTile(ref, certain);
          },
        });
      }
    }
    if (stored !== null && !readings.some((reading) => reading.row.equals(stored))) {
      readings.push({
        row: stored,
        tell: (certain) => {
          for (let position = 0; position < width; position++) {
            const hash = stored.subarray(position * hashBytes, (position + 1) * hashBytes);
            const doubt = doubts.find((one) => one.position === position);
            const fits = doubt?.readings.find((one) => one.row.equals(hash));
            if (fits !== undefined) fits.tell(certain);
            else if (doubt !== undefined && doubt.readings.length > 1) doubt.readings[0]!.tell(false);
            else if (!holes.includes(position) && !hash.equals(row.subarray(position * hashBytes, (position + 1) * hashBytes))) this.#tellBelow(level - 1, index * tileWidth + position, certain);
          }
        },
      });
    }
    // Where nothing fits, the doubts below are told as they are.
    if (readings.length === 0 && doubts.length > 0) for (const doubt of doubts) doubt.readings[0]!.tell(false);
    return readings;
  }

  #tellTile(ref: TileRef, certain: boolean): void {
    const file = tilePath(ref);
    const span = tileWidth ** ref.level;
    const [entry, to] = [ref.index * tileWidth * span, (ref.index * tileWidth + ref.width) * span - 1];
    if (certain) this.#findings.add({ code: 'tile_changed', file, entry, to, message: `${file} is not what ${rangeText(entry, to)} give, which are in order` });
    else this.#findings.add({ code: 'undecided', file, entry, to, message: `${file} is not what ${rangeText(entry, to)} give, and neither gives what is signed` });
  }

  /** A subtree in which entries and tiles agree, but not with what is above them. */
  #tellBelow(level: number, index: number, certain: boolean): void {
    const span = tileWidth ** (level + 1);
    const [entry, to] = [index * span, (index + 1) * span - 1];
    const file = tilePath({ level, index, width: tileWidth });
    if (certain) this.#findings.add({ code: 'range_changed', file, entry, to, message: `${rangeText(entry, to)} were changed, one of them or more, and ${file} with them` });
    else this.#findings.add({ code: 'undecided', file, entry, to, message: `${rangeText(entry, to)} and ${file} are not what the tile above them tells, and neither gives what is signed` });
  }

  /** Decides about the edge by the signed root. @returns whether something gives it. */
  async end(root: Buffer): Promise<boolean> {
    const readings: (readonly Reading[])[] = [];
    for (const [level, state] of this.#levels.entries()) {
      const index = Math.floor(this.#size / tileWidth ** (level + 1));
      const width = tileWidthAt(level, index, this.#size);
      if (width === 0) continue;
      if (level === 0) readings[level] = state.holes.length > 0 ? [] : (state.doubts[0]?.readings ?? [{ row: state.row, tell: () => undefined }]);
      else readings[level] = this.#rowReadings(level, index, width, state, await this.#stored(level, index));
      if (readings[level].length === 0) {
        for (const level of readings) level?.[0]?.tell(false);
        this.#endRoots(null);
        return false;
      }
    }
    const levels = [...readings.keys()].filter((level) => readings[level] !== undefined);
    const doubts = levels.map((level) => ({ position: level, readings: readings[level]! }));
    for (const choice of variantsOf(doubts)) {
      const edges = new Map(levels.map((level, place) => [level, readings[level]![choice[place]!]!.row]));
      if (!new TileBuilder(this.#size, edges).frontier().root().equals(root)) continue;
      for (const [place, level] of levels.entries()) readings[level]![choice[place]!]!.tell(true);
      this.#endRoots(edges);
      return true;
    }
    for (const level of levels) readings[level]![0]!.tell(false);
    this.#endRoots(new Map(levels.map((level) => [level, readings[level]![0]!.row])));
    return false;
  }

  /** Older roots that end within a tile of level 0, of which all levels above hold what is before it. */
  #noteRoots(index: number, row: Buffer | null): void {
    while (this.#wanted.length > 0 && this.#wanted[0]! < (index + 1) * tileWidth) {
      const size = this.#wanted.shift()!;
      const edges = new Map<number, Buffer>();
      let known = row !== null || size % tileWidth === 0;
      for (const [level, { row: above, holes }] of this.#levels.entries()) {
        const width = Math.floor(size / tileWidth ** level) % tileWidth;
        if (holes.length > 0 && level > 0) known = false;
        if (width > 0) edges.set(level, Buffer.from((level === 0 ? (row ?? above) : above).subarray(0, width * hashBytes)));
      }
      if (known) this.#roots.set(size, new TileBuilder(size, edges).frontier().root());
    }
  }

  #endRoots(edges: ReadonlyMap<number, Buffer> | null): void {
    if (edges === null) return;
    for (const [level, state] of this.#levels.entries()) if (level > 0) edges.get(level)?.copy(state.row);
    this.#noteRoots(Math.floor(this.#size / tileWidth), edges.get(0) ?? Buffer.alloc(0));
  }

  async #stored(level: number, index: number): Promise<Buffer | null> {
    const state = this.#levels[level];
    if (state === undefined) return null;
    if (state.stored?.index !== index) {
      const width = tileWidthAt(level, index, this.#size);
      state.stored = { index, row: width === 0 ? null : await this.#read({ level, index, width }) };
    }
    return state.stored.row;
  }
}

/** What a tile of level 0 may be: the hashes of the entries, and what is stored. None if neither is there. */
function leafReadings(index: number, width: number, computed: Buffer | null, stored: Buffer | null, findings: Findings): Reading[] {
  const file = tilePath({ level: 0, index, width });
  const first = index * tileWidth;
  const nothing = (): void => undefined;
  if (computed === null) return stored === null ? [] : [{ row: stored, tell: nothing }];
  if (stored === null || stored.equals(computed)) return [{ row: computed, tell: nothing }];
  const undecided = (): void => {
    findings.add({ code: 'undecided', file, entry: first, to: first + width - 1, message: `${file} and ${bundlePath({ index, width })} do not agree, and neither gives what is signed` });
  };
  return [
    {
      row: computed,
      tell: (certain) => {
        if (!certain) undecided();
        else findings.add({ code: 'tile_changed', file, entry: first, to: first + width - 1, message: `${file} is not what ${rangeText(first, first + width - 1)} give, which are in order` });
      },
    },
    {
      row: stored,
      tell: (certain) => {
        if (!certain) {
          undecided();
          return;
        }
        for (let place = 0; place < width; place++) {
          if (stored.compare(computed, place * hashBytes, (place + 1) * hashBytes, place * hashBytes, (place + 1) * hashBytes) === 0) continue;
          let last = place;
          while (last + 1 < width && stored.compare(computed, (last + 1) * hashBytes, (last + 2) * hashBytes, (last + 1) * hashBytes, (last + 2) * hashBytes) !== 0) last += 1;
          const [entry, to] = [first + place, first + last];
          const verb = entry === to ? 'is not the one' : 'are not those';
          findings.add({ code: 'entry_changed', file: bundlePath({ index, width }), entry, to, message: `${rangeText(entry, to)} in ${bundlePath({ index, width })} ${verb} that the log signs` });
          place = last;
        }
      },
    },
  ];
}

/** For each doubt the number of a reading: all first ones first, and not more than `maxVariants`. */
function* variantsOf(doubts: readonly Doubt[]): Generator<number[], void, undefined> {
  const choice = doubts.map(() => 0);
  for (let count = 0; count < maxVariants; count++) {
    yield [...choice];
    let place = 0;
    while (place < choice.length && choice[place]! + 1 === doubts[place]!.readings.length) choice[place++] = 0;
    if (place === choice.length) return;
    choice[place]! += 1;
  }
}
