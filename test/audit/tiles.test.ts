import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import t from 'tap';
import { openCheckpoint } from '../../audit/checkpoint.ts';
import { decodeBundle } from '../../audit/entry.ts';
import { consistencyProof, Frontier, frontierOf, inclusionProof, leafHash, verifyConsistency, verifyInclusion } from '../../audit/merkle.ts';
import { parseVkey } from '../../audit/note.ts';
import { bundlePath, changedBundles, changedTiles, parsePath, tilePath, tileReader, tileWidthAt, TileBuilder, type BundleRef, type Tile, type TileRef } from '../../audit/tiles.ts';
import { NaiveTree, numberedEntries } from '../support/naive-tree.ts';

/** More than one full tile of level 1, as in the example of the specification, and a width that no other level has. */
const size = 70_000;
const tree = new NaiveTree(numberedEntries(size));
const leaves = Array.from({ length: size }, (_, index) => tree.root(index, index + 1));

/** The hashes of a tile as https://c2sp.org/tlog-tiles defines them: MTH(D[(n * 256 + i) * 256**l : (n * 256 + i + 1) * 256**l]). */
function definedTile({ level, index, width }: TileRef): Buffer {
  const span = 256 ** level;
  return Buffer.concat(Array.from({ length: width }, (_, i) => tree.root((index * 256 + i) * span, (index * 256 + i + 1) * span)));
}

/** Every tile of a tree of `size` leaves by its path, partial ones as they are at that size. */
function definedTiles(size: number): Map<string, Buffer> {
  const tiles = new Map<string, Buffer>();
  for (let level = 0; 256 ** level <= size; level++) {
    const hashes = Math.floor(size / 256 ** level);
    for (let index = 0; index * 256 < hashes; index++) {
      const ref = { level, index, width: Math.min(256, hashes - index * 256) };
      tiles.set(tilePath(ref), definedTile(ref));
    }
  }
  return tiles;
}

/** Where two maps of tiles differ. */
function differences(actual: ReadonlyMap<string, Buffer>, defined: ReadonlyMap<string, Buffer>): string[] {
  return [...new Set([...actual.keys(), ...defined.keys()])].filter((path) => actual.get(path) === undefined || defined.get(path)?.equals(actual.get(path)!) !== true);
}

t.test('the examples of the specification: 70,000 and 256 entries, and index 1234067', async (t) => {
  const at70000 = [...changedTiles(0, 70_000)];
  const full = (level: number): number => at70000.filter((ref) => ref.level === level && ref.width === 256).length;
  const partial = at70000.filter(({ width }) => width < 256);
  t.same([0, 1, 2, 3].map(full), [273, 1, 0, 0]);
  t.same(partial, [
    { level: 0, index: 273, width: 112 },
    { level: 1, index: 1, width: 17 },
    { level: 2, index: 0, width: 1 },
  ]);
  t.same([...changedTiles(0, 256)], [
    { level: 0, index: 0, width: 256 },
    { level: 1, index: 0, width: 1 },
  ]);
  t.equal(tilePath({ level: 0, index: 1_234_067, width: 256 }), 'tile/0/x001/x234/067');
});

t.test('the paths of another implementation', async (t) => {
  // transparency-dev/tessera, api/layout/paths_test.go and example_test.go.
  const tiles: [string, TileRef][] = [
    ['tile/0/000', { level: 0, index: 0, width: 256 }],
    ['tile/0/000.p/255', { level: 0, index: 0, width: 255 }],
    ['tile/1/000', { level: 1, index: 0, width: 256 }],
    ['tile/15/x455/667', { level: 15, index: 455_667, width: 256 }],
    ['tile/15/x123/x456/789.p/41', { level: 15, index: 123_456_789, width: 41 }],
    ['tile/0/x001/x234/067.p/8', { level: 0, index: 1_234_067, width: 8 }],
    ['tile/0/x001/x234/067.p/89', { level: 0, index: 1_234_067, width: 89 }],
    ['tile/0/001', { level: 0, index: 1, width: 256 }],
  ];
  for (const [path, ref] of tiles) {
    t.equal(tilePath(ref), path);
    t.same(parsePath(path), { kind: 'tile', ...ref });
  }
  const bundles: [string, BundleRef][] = [
    ['tile/entries/000', { index: 0, width: 256 }],
    ['tile/entries/000.p/8', { index: 0, width: 8 }],
    ['tile/entries/255', { index: 255, width: 256 }],
    ['tile/entries/255.p/253', { index: 255, width: 253 }],
    ['tile/entries/x123/x456/789', { index: 123_456_789, width: 256 }],
    ['tile/entries/x001/x234/067.p/8', { index: 1_234_067, width: 8 }],
  ];
  for (const [path, ref] of bundles) {
    t.equal(bundlePath(ref), path);
    t.same(parsePath(path), { kind: 'entries', ...ref });
  }
  const wrong = ['0/x001/x234/067.p/', '0/x001/x234/067.p', '0/x001/x234/', '0/x001/x234', '0/x001/', '0/x001', '1/x001/.p/abc', '64/x001/002', '-1/x001/002', 'abc/x001/002', '8/001/002', '8/x001/0002', '8/x001/-002', '8/x001/002.p/256', '63/x999/x999/x999/x999/x999/x999/999.p/255'];
  for (const path of wrong) t.equal(parsePath(`tile/${path}`), null, path);
});

t.test('a path is read back as what it was written from, and nothing else spells it', async (t) => {
  const index = fc.oneof(fc.nat({ max: 3000 }), fc.maxSafeNat());
  const width = fc.integer({ min: 1, max: 256 });
  const roundTrip = fc.property(fc.integer({ min: 0, max: 63 }), index, width, (level, index, width) => {
    t.strictSame(parsePath(tilePath({ level, index, width })), { kind: 'tile', level, index, width });
    t.strictSame(parsePath(bundlePath({ index, width })), { kind: 'entries', index, width });
  });
  fc.assert(roundTrip, { numRuns: 300 });
  // Whatever is accepted, is what is written.
  const pieces = fc.array(fc.constantFrom('tile', 'entries', '/', '0', '1', '63', '64', '000', '001', 'x001', 'x000', '.p/', '255', '256', '00', '..', '.', ' ', '\n', 'x'), { maxLength: 9 }).map((parts) => parts.join(''));
  const canonical = fc.property(fc.oneof(pieces, pieces.map((rest) => `tile/0/${rest}`), pieces.map((rest) => `tile/entries/000${rest}`)), (path) => {
    const read = parsePath(path);
    return read === null || (read.kind === 'tile' ? tilePath(read) : read.kind === 'entries' ? bundlePath(read) : 'checkpoint') === path;
  });
  t.doesNotThrow(() => fc.assert(canonical, { numRuns: 20_000 }));
  t.same(parsePath('checkpoint'), { kind: 'checkpoint' });
});

t.test('every malformed path is refused', async (t) => {
  const wrong = [
    ['', '/', 'tile', 'tile/', 'tile/0', 'tile/0/', 'tile//000', 'entries/000', 'tile/entries', 'tile/entries/', 'checkpoint/', '/checkpoint', 'Checkpoint', 'checkpoint\n', 'checkpoint.0'],
    // Numbers spelled in another way.
    ['tile/00/000', 'tile/01/000', 'tile/+1/000', 'tile/1.0/000', 'tile/0x1/000', 'tile/1e1/000', 'tile/٣/000', 'tile/0/٣٣٣', 'tile/0/00', 'tile/0/0', 'tile/0/0000', 'tile/0/x000/001', 'tile/0/x000/x001/067', 'tile/0/x00/001'],
    // Groups.
    ['tile/0/001/067', 'tile/0/x001', 'tile/0/x001/x067', 'tile/0/X001/067', 'tile/0/x001//067', 'tile/0/x001x067', 'tile/0/x001/067/', 'tile/0/x001/067/x001'],
    // Widths.
    ['tile/0/000.p/0', 'tile/0/000.p/256', 'tile/0/000.p/257', 'tile/0/000.p/05', 'tile/0/000.p/005', 'tile/0/000.p/-5', 'tile/0/000.p/', 'tile/0/000.p', 'tile/0/000.p/5/', 'tile/0/000.p/5.p/5', 'tile/0/000/p/5', 'tile/0/000.P/5', 'tile/0/000p/5', 'tile/0/x001.p/5/067', 'tile/entries/000.p/0', 'tile/entries/000.p/256', 'tile/entries/000.p/1000'],
    // Levels.
    ['tile/64/000', 'tile/99/000', 'tile/100/000', 'tile/-1/000', 'tile/-0/000', 'tile/data/000', 'tile/Entries/000'],
    // Too large for us: 2**53, and beyond any number.
    ['tile/0/x009/x007/x199/x254/x740/992', 'tile/0/x999/x999/x999/x999/x999/999', `tile/0/${'x999/'.repeat(50)}999`, `tile/0/${'x'.repeat(100_000)}`, `tile/0/${'x001/'.repeat(100_000)}`],
    // Out of the folder.
    ['../checkpoint', 'tile/../checkpoint', 'tile/0/../000', 'tile/0/000/../001', 'tile/entries/../0/000', 'tile/0/..', 'tile/0/%2e%2e', 'tile/0/000%00', 'tile/0/000\0', 'tile/0/000\n', '\ntile/0/000', 'tile\\0\\000', '/tile/0/000', './tile/0/000', ' tile/0/000', 'tile/0/000 ', 'tile/0/000?x', 'tile/0/000#x', 'TILE/0/000'],
  ].flat();
  for (const path of wrong) t.equal(parsePath(path), null, JSON.stringify(path.slice(0, 60)));
  t.same(parsePath('tile/0/x009/x007/x199/x254/x740/991'), { kind: 'tile', level: 0, index: Number.MAX_SAFE_INTEGER, width: 256 }, 'the largest');
});

t.test('there is no path of what is no tile', async (t) => {
  for (const index of [-1, 0.5, 2 ** 53, Number.NaN]) {
    t.throws(() => tilePath({ level: 0, index, width: 1 }), RangeError);
    t.throws(() => bundlePath({ index, width: 1 }), RangeError);
  }
  for (const width of [0, 257, -1, 1.5, Number.NaN]) {
    t.throws(() => tilePath({ level: 0, index: 0, width }), RangeError);
    t.throws(() => bundlePath({ index: 0, width }), RangeError);
  }
  for (const level of [-1, 64, 0.5, Number.NaN]) t.throws(() => tilePath({ level, index: 0, width: 1 }), RangeError);
});

t.test('a growing tree changes the tiles that it did not have at that width before', async (t) => {
  const edge = fc.constantFrom(0, 1, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 65_792, 131_072);
  const anySize = fc.oneof(fc.nat({ max: 1200 }), edge, fc.nat({ max: 140_000 }));
  const all = (size: number): TileRef[] => {
    const refs: TileRef[] = [];
    for (let level = 0; level < 8; level++) {
      for (let index = 0; tileWidthAt(level, index, size) > 0; index++) refs.push({ level, index, width: tileWidthAt(level, index, size) });
    }
    return refs;
  };
  const changed = fc.property(anySize, anySize, (a, b) => {
    const [from, to] = [Math.min(a, b), Math.max(a, b)];
    const before = new Set(all(from).map(tilePath));
    const expected = all(to).filter((ref) => !before.has(tilePath(ref)));
    const bundles = expected.filter(({ level }) => level === 0).map(({ index, width }) => ({ index, width }));
    return JSON.stringify([...changedTiles(from, to)]) === JSON.stringify(expected) && JSON.stringify([...changedBundles(from, to)]) === JSON.stringify(bundles);
  });
  t.doesNotThrow(() => fc.assert(changed, { numRuns: 200 }));
  t.same([...changedTiles(0, 0)], []);
  t.same([...changedTiles(70_000, 70_000)], []);
  for (const [from, to] of [[1, 0], [-1, 0], [0, 0.5], [0, 2 ** 53], [Number.NaN, 1]] as const) {
    t.throws(() => [...changedTiles(from, to)], RangeError);
    t.throws(() => [...changedBundles(from, to)], RangeError);
  }
});

t.test('the width of a tile follows the size of the tree, at any level and beyond 32 bits', async (t) => {
  t.equal(tileWidthAt(0, 273, 70_000), 112);
  t.equal(tileWidthAt(0, 272, 70_000), 256);
  t.equal(tileWidthAt(0, 274, 70_000), 0);
  t.equal(tileWidthAt(1, 1, 70_000), 17);
  t.equal(tileWidthAt(2, 0, 70_000), 1);
  t.equal(tileWidthAt(3, 0, 70_000), 0);
  t.equal(tileWidthAt(63, 0, Number.MAX_SAFE_INTEGER), 0);
  t.equal(tileWidthAt(6, 0, Number.MAX_SAFE_INTEGER), 31);
  t.equal(tileWidthAt(0, 2 ** 45 - 1, Number.MAX_SAFE_INTEGER), 255);
  t.equal(tileWidthAt(5, 31, Number.MAX_SAFE_INTEGER), 255);
  // The formula of the specification for the partial tile: floor(s / 256**l) mod 256.
  const width = fc.property(fc.maxSafeNat(), fc.integer({ min: 0, max: 6 }), (size, level) => {
    const hashes = BigInt(size) / 256n ** BigInt(level);
    return tileWidthAt(level, Number(hashes / 256n), size) === Number(hashes % 256n);
  });
  t.doesNotThrow(() => fc.assert(width, { numRuns: 1000 }));
});

t.test('the tiles that a builder makes are the defined ones, in whatever pieces the tree grew', async (t) => {
  const defined = definedTiles(size);
  const pieces = fc.array(fc.record({ length: fc.oneof(fc.nat({ max: 600 }), fc.constantFrom(0, 1, 255, 256, 257, 65_536), fc.nat({ max: 40_000 })), restart: fc.boolean() }), { minLength: 1, maxLength: 40 });
  const grows = fc.property(pieces, (pieces) => {
    const tiles = new Map<string, Buffer>();
    let builder = new TileBuilder(0, new Map());
    for (const { length, restart } of [...pieces, { length: size, restart: false }]) {
      const from = builder.size;
      const to = Math.min(size, from + length);
      for (let index = from; index < to; index++) builder.append(leaves[index]!);
      const taken = builder.take();
      t.strictSame(
        taken.map(({ level, index, width }) => ({ level, index, width })),
        [...changedTiles(from, to)],
      );
      for (const tile of taken) {
        if (!definedTile(tile).equals(tile.hashes)) throw new Error(`${tilePath(tile)} at ${to}`);
        tiles.set(tilePath(tile), tile.hashes);
      }
      if (!builder.frontier().root().equals(tree.root(0, to))) throw new Error(`the root at ${to}`);
      for (const [level, edge] of builder.edges) if (!edge.equals(definedTile({ level, index: Math.floor(to / 256 ** (level + 1)), width: edge.length / 32 }))) throw new Error(`the edge of level ${level} at ${to}`);
      if (restart) builder = new TileBuilder(to, builder.edges);
    }
    // The partial tiles of the sizes in between are there too.
    for (const [path] of tiles) if (!defined.has(path) && path.includes('.p/')) tiles.delete(path);
    return differences(tiles, defined).length === 0;
  });
  t.doesNotThrow(() => fc.assert(grows, { numRuns: 8 }));
});

t.test('what a builder gave away does not change as the tree grows on, nor does what it was given matter to it any more', async (t) => {
  const builder = new TileBuilder(0, new Map());
  const given = Buffer.from(leaves[0]!);
  builder.append(given);
  given.fill(0);
  for (let index = 1; index < 300; index++) builder.append(leaves[index]!);
  const { edges } = builder;
  const taken: Tile[] = builder.take();
  const again = new TileBuilder(300, edges);
  for (const edge of edges.values()) edge.fill(0);
  for (let index = 300; index < 700; index++) {
    builder.append(leaves[index]!);
    again.append(leaves[index]!);
  }
  for (const tile of taken) t.ok(definedTile(tile).equals(tile.hashes), tilePath(tile));
  t.ok(again.frontier().root().equals(tree.root(0, 700)));
  t.ok(builder.frontier().root().equals(tree.root(0, 700)));
  t.equal(builder.take().length, 3);
  t.same(builder.take(), [], 'nothing since');
});

t.test('a builder refuses an edge that is not of a tree of its size', async (t) => {
  const { edges } = (() => {
    const builder = new TileBuilder(0, new Map());
    for (let index = 0; index < 513; index++) builder.append(leaves[index]!);
    return builder;
  })();
  t.same([...edges].map(([level, edge]) => [level, edge.length]), [[0, 32], [1, 64]]);
  t.equal(new TileBuilder(513, edges).size, 513);
  const wrong: [number, [number, Buffer][]][] = [
    [513, [[0, edges.get(0)!]]],
    [513, [...edges, [2, Buffer.alloc(32)]]],
    [513, [[0, Buffer.alloc(64)], [1, edges.get(1)!]]],
    [513, [[0, Buffer.alloc(31)], [1, edges.get(1)!]]],
    [512, [...edges]],
    [514, [...edges]],
    [0, [[0, Buffer.alloc(0)]]],
    [256, [[0, Buffer.alloc(0)], [1, Buffer.alloc(32)]]],
    [256, [[0, Buffer.alloc(8192)]]],
    [-1, []],
    [0.5, []],
    [2 ** 53, []],
  ];
  for (const [size, edges] of wrong) t.throws(() => new TileBuilder(size, new Map(edges)), RangeError, `${size}: ${edges.map(([level, edge]) => `${level} of ${edge.length}`).join(', ')}`);
});

t.test('a reader of tiles agrees with the definition at every node, and proofs from tiles hold', async (t) => {
  for (const size of [1, 2, 255, 256, 257, 300, 511, 65_535, 65_536, 65_537, 70_000]) {
    const tiles = definedTiles(size);
    const reader = tileReader(size, async (ref) => tiles.get(tilePath(ref)) ?? Promise.reject(new Error(`asked for ${tilePath(ref)}, which is not there`)));
    const wrong: string[] = [];
    for (let level = 0; 2 ** level <= size; level++) {
      const nodes = Math.floor(size / 2 ** level);
      for (const index of new Set(size <= 600 ? Array(nodes).keys() : [0, 1, 127, 128, nodes >> 1, nodes - 2, nodes - 1].filter((index) => index >= 0 && index < nodes)))
        if (!(await reader.node(level, index)).equals(tree.root(index * 2 ** level, (index + 1) * 2 ** level))) wrong.push(`${index} of level ${level}`);
      await t.rejects(reader.node(level, nodes), RangeError, 'a subtree that is not complete yet');
    }
    t.same(wrong, [], `nodes of ${size}`);
    const frontier = await frontierOf(size, reader);
    t.ok(frontier.root().equals(tree.root(0, size)), `root of ${size}`);
    for (const index of [0, size >> 1, size - 1]) t.ok(verifyInclusion(leaves[index]!, index, size, frontier.root(), await inclusionProof(index, size, reader)), `${index} of ${size}`);
    for (const from of [1, size >> 1, size - 1, size]) t.ok(verifyConsistency(from, size, tree.root(0, from), frontier.root(), await consistencyProof(from, size, reader)), `${from} to ${size}`);
  }
});

t.test('a reader asks once for what it needs side by side, again for what failed, and keeps the tiles used last', async (t) => {
  const asked: string[] = [];
  let failing = true;
  const read = async (ref: TileRef): Promise<Buffer> => {
    asked.push(tilePath(ref));
    await Promise.resolve();
    if (failing) throw new Error('storage is away');
    return definedTile(ref);
  };
  const reader = tileReader(2000, read, 2);
  await t.rejects(Promise.all([reader.node(0, 0), reader.node(0, 1), reader.node(3, 5)]), /storage is away/u);
  failing = false;
  const [a, b] = await Promise.all([reader.node(0, 0), reader.node(0, 1)]);
  t.ok(a.equals(leaves[0]!) && b.equals(leaves[1]!));
  t.same(asked.splice(0), ['tile/0/000', 'tile/0/000']);
  // 0 is used again before 2 comes, so that 1 is what goes.
  for (const tile of [1, 0, 2, 0]) await reader.node(0, tile * 256);
  t.same(asked.splice(0), ['tile/0/001', 'tile/0/002']);
  await reader.node(0, 256);
  t.same(asked.splice(0), ['tile/0/001']);
  a.fill(0);
  t.ok((await reader.node(0, 0)).equals(leaves[0]!), 'a hash that was given away is not the one that is kept');
});

t.test('a reader names the tile that is not as long as its width, and refuses what is no subtree', async (t) => {
  for (const length of [0, 31, 43 * 32, 45 * 32, 8192]) await t.rejects(tileReader(300, async () => Buffer.alloc(length)).node(0, 260), { message: 'tile/0/001.p/44 is not 44 hashes long' });
  await t.rejects(tileReader(300, async () => Buffer.alloc(8191)).node(0, 0), /tile\/0\/000 /u);
  const reader = tileReader(300, async (ref) => new Uint8Array(definedTile(ref)));
  t.ok((await reader.node(3, 1)).equals(tree.root(8, 16)), 'any bytes will do');
  for (const [level, index] of [[-1, 0], [0.5, 0], [0, -1], [0, 0.5], [0, 300], [8, 1], [9, 0], [64, 0], [2000, 0], [0, Number.NaN], [Number.NaN, 0]] as const)
    await t.rejects(reader.node(level, index), RangeError);
  await t.rejects(tileReader(0, async () => Buffer.alloc(0)).node(0, 0), RangeError);
});

t.test('a log that another implementation made: its tile, its roots and the proofs between its checkpoints', async (t) => {
  const log = JSON.parse(readFileSync(new URL('../vectors/tessera-log.json', import.meta.url), 'utf8')) as { vkey: string; bundle: string; tile: string; checkpoints: string[] };
  const verifier = parseVkey(log.vkey);
  const entries = decodeBundle(Buffer.from(log.bundle, 'hex'));
  const builder = new TileBuilder(0, new Map());
  const frontier = new Frontier();
  const checkpoints = log.checkpoints.map((note) => openCheckpoint(note, [verifier])!);
  for (const [size, checkpoint] of checkpoints.entries()) {
    t.equal(checkpoint.origin, 'example.com/log/testdata');
    t.equal(checkpoint.size, size);
    t.ok(frontier.root().equals(checkpoint.root), `root at ${size}`);
    if (size === 15) break;
    const leaf = leafHash(entries[size]!);
    frontier.append(leaf);
    builder.append(leaf);
  }
  t.equal(entries.length, 15);
  t.same(
    builder.take().map(({ hashes, ...ref }) => [tilePath(ref), hashes.toString('hex')]),
    [['tile/0/000.p/15', log.tile]],
  );
  for (const to of checkpoints) {
    const reader = tileReader(to.size, async ({ width }) => Buffer.from(log.tile, 'hex').subarray(0, width * 32));
    for (const from of checkpoints.slice(0, to.size + 1)) t.ok(verifyConsistency(from.size, to.size, from.root, to.root, await consistencyProof(from.size, to.size, reader)), `${from.size} to ${to.size}`);
    for (let index = 0; index < to.size; index++) t.ok(verifyInclusion(leafHash(entries[index]!), index, to.size, to.root, await inclusionProof(index, to.size, reader)), `${index} of ${to.size}`);
  }
});
