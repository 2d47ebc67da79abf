import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import t from 'tap';
import { completeRoot, consistencyProof, emptyRoot, Frontier, frontierOf, inclusionProof, leafHash, nodeHash, verifyConsistency, verifyInclusion, type HashReader } from '../../audit/merkle.ts';
import { NaiveTree, numberedEntries } from '../support/naive-tree.ts';

interface Vectors {
  readonly leaves: readonly string[];
  readonly nodes: readonly (readonly string[])[];
  readonly roots: readonly string[];
  readonly inclusion: readonly { readonly name: string; readonly leafIdx: number; readonly treeSize: number; readonly root: string; readonly leafHash: string; readonly proof: readonly string[]; readonly valid: boolean }[];
  readonly consistency: readonly { readonly name: string; readonly size1: number; readonly size2: number; readonly root1: string; readonly root2: string; readonly proof: readonly string[]; readonly valid: boolean }[];
}

const vectors = JSON.parse(readFileSync(new URL('../vectors/merkle.json', import.meta.url), 'utf8')) as Vectors;
const leaves = vectors.leaves.map((leaf) => Buffer.from(leaf, 'hex'));
const base64 = (text: string): Buffer => Buffer.from(text, 'base64');
const hex = (hashes: readonly Buffer[]): string[] => hashes.map((hash) => hash.toString('hex'));

/** The sizes up to which every tree is tried. */
const everySizeTo = 300;
const tree = new NaiveTree(numberedEntries(everySizeTo));
const roots = Array.from({ length: everySizeTo + 1 }, (_, size) => tree.root(0, size));
const leafHashes = Array.from({ length: everySizeTo }, (_, index) => tree.root(index, index + 1));

/** Every way in which a proof is not the same any more: a bit flipped in each hash, each hash dropped, doubled, and one added at the front and at the end. */
function* damaged(proof: readonly Buffer[]): Generator<{ how: string; proof: Buffer[] }> {
  for (const [at, hash] of proof.entries()) {
    const flipped = Buffer.from(hash);
    const bit = (at * 37 + proof.length * 101) % 256;
    flipped[bit >> 3]! ^= 1 << (bit & 7);
    yield { how: `bit ${bit} of hash ${at} flipped`, proof: proof.with(at, flipped) };
    yield { how: `hash ${at} dropped`, proof: proof.toSpliced(at, 1) };
    yield { how: `hash ${at} doubled`, proof: proof.toSpliced(at, 0, hash) };
    yield { how: `hash ${at} cut short`, proof: proof.with(at, hash.subarray(0, 31)) };
  }
  yield { how: 'a hash added in front', proof: [emptyRoot, ...proof] };
  yield { how: 'a hash added at the end', proof: [...proof, emptyRoot] };
}

/** Some numbers below `limit`: all if there are few, otherwise the ends, those around its largest power of two, and one by chance of `limit` itself. */
function sample(limit: number): number[] {
  const power = 2 ** Math.floor(Math.log2(limit));
  return [...new Set([0, 1, power - 1, power, (limit * 7919) % limit, (limit * limit + 13) % limit, limit - 2, limit - 1])].filter((value) => value >= 0 && value < limit);
}

t.test('the hashes of the reference implementation: a leaf, an empty leaf, a node, nothing', async (t) => {
  // transparency-dev/merkle, rfc6962/rfc6962_test.go: each is what `printf … | xxd -r -p | sha256sum` gives.
  t.equal(emptyRoot.toString('hex'), 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
  t.equal(leafHash(Buffer.from('L123456')).toString('hex'), '395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56');
  t.equal(leafHash(Buffer.alloc(0)).toString('hex'), '6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d');
  t.same(leaves.map((leaf) => leafHash(leaf).toString('hex')), vectors.nodes[0]);
  for (const level of [1, 2, 3]) {
    const below = vectors.nodes[level - 1]!.map((hash) => Buffer.from(hash, 'hex'));
    t.same(vectors.nodes[level]!.map((_, index) => nodeHash(below[2 * index]!, below[2 * index + 1]!).toString('hex')), vectors.nodes[level]);
    t.equal(completeRoot(Buffer.concat(below), 0, below.length).toString('hex'), vectors.nodes[3]![0]);
  }
});

t.test('the leaf hash is that of the entry at every length, whatever was hashed before', async (t) => {
  const lengths = [0, 1, 4095, 4096, 65_535, 3, 4094, 70_000, 0];
  for (const length of lengths) {
    const entry = Buffer.alloc(length, length % 251);
    t.equal(leafHash(entry).toString('hex'), createHash('sha256').update(Buffer.from([0])).update(entry).digest('hex'), `${length} bytes`);
  }
  const before = leafHash(Buffer.from('a'));
  leafHash(Buffer.from('b'));
  t.equal(before.toString('hex'), leafHash(Buffer.from('a')).toString('hex'), 'a hash stays after others were made');
});

t.test('the tree of the eight leaves has the published roots and frontiers at every size', async (t) => {
  const n = vectors.nodes;
  // CompactTrees of transparency-dev/merkle, testonly/constants.go.
  const frontiers = [[], [n[0]![0]], [n[1]![0]], [n[1]![0], n[0]![2]], [n[2]![0]], [n[2]![0], n[0]![4]], [n[2]![0], n[1]![2]], [n[2]![0], n[1]![2], n[0]![6]], [n[3]![0]]];
  const frontier = new Frontier();
  for (const [size, root] of vectors.roots.entries()) {
    t.equal(frontier.size, size);
    t.equal(frontier.root().toString('hex'), root);
    t.same(hex(frontier.hashes), frontiers[size]);
    if (size < 8) frontier.append(leafHash(leaves[size]!));
  }
});

t.test('published inclusion proofs hold or fail as published, and are the ones that we make', async (t) => {
  const reader = new NaiveTree(leaves);
  let made = 0;
  for (const vector of vectors.inclusion) {
    t.equal(verifyInclusion(base64(vector.leafHash), vector.leafIdx, vector.treeSize, base64(vector.root), vector.proof.map(base64)), vector.valid, vector.name);
    if (!vector.valid || base64(vector.root).toString('hex') !== vectors.roots[vector.treeSize]) continue;
    t.same((await inclusionProof(vector.leafIdx, vector.treeSize, reader)).map((hash) => hash.toString('base64')), vector.proof, vector.name);
    made += 1;
  }
  t.ok(made >= 5);
});

t.test('published consistency proofs hold or fail as published, and are the ones that we make', async (t) => {
  // The one divergence: there, a proof from the empty tree is an error. https://c2sp.org/tlog-witness has it be empty, "because the empty tree is consistent with any".
  const fromNothing = 'consistency/additional/size1-is-zero-and-size2-is-not-zero';
  const reader = new NaiveTree(leaves);
  let made = 0;
  for (const vector of vectors.consistency) {
    const holds = verifyConsistency(vector.size1, vector.size2, base64(vector.root1), base64(vector.root2), vector.proof.map(base64));
    t.equal(holds, vector.valid || vector.name === fromNothing, vector.name);
    if (!vector.valid || base64(vector.root2).toString('hex') !== vectors.roots[vector.size2]) continue;
    t.same((await consistencyProof(vector.size1, vector.size2, reader)).map((hash) => hash.toString('base64')), vector.proof, vector.name);
    made += 1;
  }
  t.ok(made >= 5);
});

t.test(`every record of every tree up to ${everySizeTo} is proven, by the proof that the RFC defines`, async (t) => {
  const wrong: string[] = [];
  let proven = 0;
  for (let size = 1; size <= everySizeTo; size++) {
    for (let index = 0; index < size; index++) {
      const proof = await inclusionProof(index, size, tree);
      const defined = tree.path(index, 0, size);
      if (proof.length !== defined.length || proof.some((hash, at) => !hash.equals(defined[at]!))) wrong.push(`${index} of ${size} has another path`);
      if (!verifyInclusion(leafHashes[index]!, index, size, roots[size]!, proof)) wrong.push(`${index} of ${size} is not proven`);
      proven += 1;
    }
  }
  t.same(wrong, []);
  t.equal(proven, (everySizeTo * (everySizeTo + 1)) / 2);
});

t.test(`every tree up to ${everySizeTo} is consistent with every older one, by the proof that the RFC defines`, async (t) => {
  const wrong: string[] = [];
  for (let to = 0; to <= everySizeTo; to++) {
    for (let from = 0; from <= to; from++) {
      const proof = await consistencyProof(from, to, tree);
      const defined = from === 0 ? [] : tree.proof(from, 0, to);
      if (proof.length !== defined.length || proof.some((hash, at) => !hash.equals(defined[at]!))) wrong.push(`${from} to ${to} has another proof`);
      if (!verifyConsistency(from, to, roots[from]!, roots[to]!, proof)) wrong.push(`${from} to ${to} is not proven`);
      if (from < to && verifyConsistency(to, from, roots[to]!, roots[from]!, proof)) wrong.push(`${from} to ${to} is proven backwards`);
    }
  }
  t.same(wrong, []);
});

t.test('a damaged inclusion proof is refused, and so is a sound one for another leaf, index, size or root', async (t) => {
  const wrong: string[] = [];
  let refused = 0;
  for (let size = 1; size <= everySizeTo; size++) {
    const root = roots[size]!;
    for (const index of sample(size)) {
      const leaf = leafHashes[index]!;
      const proof = await inclusionProof(index, size, tree);
      const cases = [...damaged(proof)].map(({ how, proof }) => ({ how, holds: verifyInclusion(leaf, index, size, root, proof) }));
      for (const other of [...sample(size), size, -1, index + 0.5, index + 2 ** 53, Number.NaN])
        if (other !== index) cases.push({ how: `index ${other}`, holds: verifyInclusion(leaf, other, size, root, proof) });
      for (const other of new Set([0, size - 1, size + 1, Math.min(2 * size, everySizeTo), 1, everySizeTo]))
        if (other !== size && other <= everySizeTo) cases.push({ how: `size ${other} with its root`, holds: verifyInclusion(leaf, index, other, roots[other]!, proof) });
      // A path of another length does not fit the size, even under the same root.
      for (const other of [4 * size, 2 ** 52, -size, size + 0.5, 2 ** 53]) cases.push({ how: `size ${other}`, holds: verifyInclusion(leaf, index, other, root, proof) });
      cases.push({ how: 'another leaf', holds: verifyInclusion(leafHash(Buffer.from('forged')), index, size, root, proof) });
      cases.push({ how: 'another root', holds: verifyInclusion(leaf, index, size, emptyRoot, proof) });
      cases.push({ how: 'a short leaf', holds: verifyInclusion(leaf.subarray(1), index, size, root, proof) });
      for (const { how, holds } of cases) if (holds) wrong.push(`${index} of ${size}: ${how}`);
      refused += cases.length;
    }
  }
  t.same(wrong, []);
  t.ok(refused > 50_000, `${refused} refused`);
});

t.test('a damaged consistency proof is refused, and so is a sound one between other sizes or roots', async (t) => {
  const wrong: string[] = [];
  let refused = 0;
  for (let to = 1; to <= everySizeTo; to++) {
    for (const from of sample(to + 1)) {
      const proof = await consistencyProof(from, to, tree);
      const [older, newer] = [roots[from]!, roots[to]!];
      const cases = [...damaged(proof)].map(({ how, proof }) => ({ how, holds: verifyConsistency(from, to, older, newer, proof) }));
      // From nothing, all is consistent whatever the newer tree is; between equal sizes nothing but the roots counts.
      if (from > 0) {
        for (const other of sample(to)) if (other !== from && other > 0) cases.push({ how: `from ${other}`, holds: verifyConsistency(other, to, roots[other]!, newer, proof) });
        for (const other of [to - 1, to + 1, Math.min(2 * to, everySizeTo)])
          if (other !== to && other <= everySizeTo && from < other) cases.push({ how: `to ${other}`, holds: verifyConsistency(from, other, older, roots[other]!, proof) });
        for (const other of [-from, from + 0.5, 2 ** 53, Number.NaN]) {
          cases.push({ how: `from ${other}`, holds: verifyConsistency(other, to, older, newer, proof) });
          cases.push({ how: `to ${other}`, holds: verifyConsistency(from, other, older, newer, proof) });
        }
        cases.push({ how: 'another newer root', holds: verifyConsistency(from, to, older, leafHashes[0]!.equals(newer) ? emptyRoot : leafHashes[0]!, proof) });
      }
      cases.push({ how: 'another older root', holds: verifyConsistency(from, to, leafHashes[1]!, newer, proof) });
      for (const { how, holds } of cases) if (holds) wrong.push(`${from} to ${to}: ${how}`);
      refused += cases.length;
    }
  }
  t.same(wrong, []);
  t.ok(refused > 50_000, `${refused} refused`);
  t.notOk(verifyConsistency(0, 0, emptyRoot, roots[1]!, []), 'an empty tree has one root');
  // Here the older root is hashed itself; what is missing must not come from the call before.
  const proof = await consistencyProof(4, 8, tree);
  t.ok(verifyConsistency(4, 8, roots[4]!, roots[8]!, proof));
  t.notOk(verifyConsistency(4, 8, roots[4]!.subarray(0, 31), roots[8]!, proof), 'an older root cut short');
});

t.test('a fork is not consistent: the same sizes with one older entry exchanged', async (t) => {
  const entries = numberedEntries(100);
  const wrong: string[] = [];
  for (const at of [0, 1, 31, 32, 63, 64, 98]) {
    const fork = new NaiveTree(entries.with(at, Buffer.from('forged')));
    for (let from = at + 1; from <= 100; from++)
      if (verifyConsistency(from, 100, roots[from]!, fork.root(0, 100), await consistencyProof(from, 100, fork))) wrong.push(`${at} exchanged, from ${from}`);
  }
  t.same(wrong, []);
});

t.test('sizes beyond 32 bits, up to the largest, are proven and verified', async (t) => {
  // All leaves the same, so that a subtree's hash depends on its level only.
  const levels = [leafHash(Buffer.from('same'))];
  while (levels.length <= 53) levels.push(nodeHash(levels.at(-1)!, levels.at(-1)!));
  const reader: HashReader = { node: async (level) => levels[level]! };
  const sizes = [2 ** 31 - 1, 2 ** 31, 2 ** 32 + 1, 2 ** 40 + 12_345, 2 ** 52, Number.MAX_SAFE_INTEGER];
  for (const size of sizes) {
    const frontier = await frontierOf(size, reader);
    const root = frontier.root();
    for (const index of [0, 1, 2 ** 30 + 7, size - 2, size - 1]) {
      const proof = await inclusionProof(index, size, reader);
      t.ok(verifyInclusion(levels[0]!, index, size, root, proof), `${index} of ${size}`);
      t.same([...damaged(proof)].filter((broken) => verifyInclusion(levels[0]!, index, size, root, broken.proof)).map(({ how }) => how).filter((how) => how.includes('flipped')), []);
    }
    for (const from of [1, 2 ** 30, 2 ** 31 - 1, size - 1, size]) {
      const proof = await consistencyProof(from, size, reader);
      t.ok(verifyConsistency(from, size, (await frontierOf(from, reader)).root(), root, proof), `${from} to ${size}`);
    }
    if (size === Number.MAX_SAFE_INTEGER) continue;
    frontier.append(levels[0]!);
    t.equal(frontier.root().toString('hex'), (await frontierOf(size + 1, reader)).root().toString('hex'), `${size} and one more`);
  }
});

t.test('a frontier is read, copied and goes on from what it was made of', async (t) => {
  for (let size = 0; size <= everySizeTo; size += 7) {
    const frontier = await frontierOf(size, tree);
    const again = new Frontier(size, frontier.hashes);
    const copy = again.clone();
    for (let index = size; index < everySizeTo; index++) copy.append(leafHashes[index]!);
    t.equal(copy.root().toString('hex'), roots[everySizeTo]!.toString('hex'));
    t.equal(again.size, size);
    t.equal(again.root().toString('hex'), roots[size]!.toString('hex'), 'what was copied stands still');
  }
});

t.test('what is no tree, no leaf of it, or no older size is refused when proofs are made', async (t) => {
  t.throws(() => new Frontier(3, [emptyRoot]), RangeError);
  t.throws(() => new Frontier(1, [emptyRoot.subarray(1)]), RangeError);
  t.throws(() => new Frontier(0, [emptyRoot]), RangeError);
  for (const size of [-1, 0.5, 2 ** 53, Number.NaN]) {
    t.throws(() => new Frontier(size), RangeError);
    await t.rejects(frontierOf(size, tree), RangeError);
    await t.rejects(inclusionProof(0, size, tree), RangeError);
    await t.rejects(inclusionProof(size, 10, tree), RangeError);
    await t.rejects(consistencyProof(0, size, tree), RangeError);
    await t.rejects(consistencyProof(size, 10, tree), RangeError);
  }
  await t.rejects(inclusionProof(0, 0, tree), RangeError);
  await t.rejects(inclusionProof(10, 10, tree), RangeError);
  await t.rejects(consistencyProof(11, 10, tree), RangeError);
  await t.rejects(inclusionProof(3, everySizeTo + 1, tree), /not within the tree/u, 'what the reader throws');
});

t.test('verifying never throws, and takes no proof by chance', async (t) => {
  const bytes = fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes));
  const hash = fc.oneof({ weight: 4, arbitrary: fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes)) }, { weight: 1, arbitrary: bytes });
  const number = fc.oneof(fc.integer({ min: -1, max: 70 }), fc.double(), fc.maxSafeInteger());
  const inclusion = fc.property(hash, number, number, hash, fc.array(hash, { maxLength: 60 }), (leaf, index, size, root, proof) => !verifyInclusion(leaf, index, size, root, proof) || (size === 1 && leaf.equals(root)));
  const consistency = fc.property(number, number, hash, hash, fc.array(hash, { maxLength: 60 }), (from, to, older, newer, proof) => !verifyConsistency(from, to, older, newer, proof) || (from === to && older.equals(newer)));
  t.doesNotThrow(() => fc.assert(inclusion, { numRuns: 2000 }));
  t.doesNotThrow(() => fc.assert(consistency, { numRuns: 2000 }));
});
