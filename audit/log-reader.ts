/** Reads the log out of the database: leaves by their index, bundles as C2SP tlog-tiles serves them, and entries by what they say. */
import type { ClientBase } from 'pg';
import { encodeBatchLeaf } from './batch-leaf.ts';
import { writerName } from './chain.ts';
import { decodeBundle, encodeBundle } from './entry.ts';
import { blockEntries, facetKey, facetNames, facetPairs, pairKey, tokenKey } from './search-keys.ts';
import type { FacetName } from './search-keys.ts';
import { batchOfRow } from './store.ts';
import type { BatchRow } from './store.ts';
import { tileWidth } from './tiles.ts';

type Queryable = Pick<ClientBase, 'query'>;

/** A batch that stands in the tree is not in the database any more: moved to the archive, or taken away. */
export class MissingEntries extends Error {}

/**
 * The leaves `from` to `to` (exclusive) of a log, in order, their bytes as they were hashed. `to` is at most the size of the tree.
 *
 * @throws MissingEntries if some are not in the database; Error, naming the batch, if one cannot be read as it was.
 */
export async function readLeaves(client: Queryable, logId: number, from: number, to: number): Promise<Buffer[]> {
  return (await readCounted(client, logId, from, to)).leaves;
}

/** As `readLeaves`, with the bytes of the batches that these leaves stand in: a batch is read whole, whatever is wanted of it. */
async function readCounted(client: Queryable, logId: number, from: number, to: number): Promise<{ readonly leaves: Buffer[]; readonly read: number }> {
  const leaves: Buffer[] = [];
  let read = 0;
  if (from === 0 && to > 0) {
    const { rows } = await client.query<{ first_leaf: Buffer }>('SELECT first_leaf FROM logs WHERE log_id = $1::int', [logId]);
    if (rows[0] === undefined) throw new MissingEntries('the log is not in the database');
    leaves.push(rows[0].first_leaf);
  }
  const { rows } = await client.query<BatchRow & { writer: string; first_index: string; counted: number; certificate: string | null }>({
    name: 'log-leaves',
    text: `SELECT p.first_index, p.writer, p.entry_count AS counted, b.number, b.kind, b.formed_at, b.entry_count, b.previous, b.bundle, b.signature,
                  CASE WHEN p.number = 0 THEN (SELECT certificate FROM writers w WHERE w.writer = p.writer) END AS certificate
           FROM log_batches p JOIN batches b ON b.writer = p.writer AND b.number = p.number
           WHERE p.log_id = $1::int AND p.first_index < $3::bigint
             AND p.first_index >= COALESCE((SELECT max(first_index) FROM log_batches WHERE log_id = $1::int AND first_index <= $2::bigint), 0)
           ORDER BY p.first_index`,
    values: [logId, from, to],
  });
  for (const row of rows) {
    const first = Number(row.first_index);
    const batch = batchOfRow(BigInt(row.writer), row);
    read += batch.bundle.length;
    let entries: Uint8Array[];
    try {
      entries = decodeBundle(batch.bundle);
      if (entries.length !== row.counted) throw new RangeError('entries are missing');
    } catch (cause) {
      throw new Error(`entries ${first} to ${first + row.counted}: batch ${batch.number} of writer ${writerName(batch.writer)} is not what stands in the tree`, { cause });
    }
    if (first >= from) leaves.push(encodeBatchLeaf(batch, row.certificate));
    for (let index = Math.max(0, from - first - 1); index < entries.length && first + 1 + index < to; index += 1) {
      const { buffer, byteOffset, byteLength } = entries[index]!;
      leaves.push(Buffer.from(buffer, byteOffset, byteLength));
    }
  }
  if (leaves.length !== to - from) throw new MissingEntries(`entries ${from} to ${to - 1} are not all in the database`);
  return { leaves, read };
}

/** Entry bundle `index` of a log, `width` leaves. @throws as `readLeaves`. */
export async function readBundle(client: Queryable, logId: number, index: number, width: number): Promise<Buffer> {
  return encodeBundle(await readLeaves(client, logId, index * tileWidth, index * tileWidth + width));
}

export interface SearchableFrom {
  /** Entries from this index on are in the database. */
  readonly index: number;
  /** When the first of them was committed, ISO 8601; null if there is none. */
  readonly time: string | null;
}

/** From where on a log is in the database: what stood before was taken out of it (`retention.ts`). */
export async function searchableFrom(client: Queryable, logId: number): Promise<SearchableFrom> {
  const { rows } = await client.query<{ entries_from: string | null; formed_at: Date | null }>({
    name: 'log-searchable-from',
    text: `SELECT x.entries_from, (SELECT formed_at FROM log_batches WHERE log_id = l.log_id AND first_index >= coalesce(x.entries_from, 0) ORDER BY first_index LIMIT 1) AS formed_at
           FROM logs l LEFT JOIN log_pruned x USING (log_id) WHERE l.log_id = $1::int`,
    values: [logId],
  });
  return { index: Number(rows[0]?.entries_from ?? 0), time: rows[0]?.formed_at?.toISOString() ?? null };
}

export interface LogQuery extends Readonly<Partial<Record<FacetName, string>>> {
  readonly token?: string;
  /** By the time that an entry says. */
  readonly from?: Date;
  readonly to?: Date;
  /** Entries before this index only: where the last answer ended. */
  readonly before?: number;
  readonly limit: number;
}

export interface FoundEntry {
  readonly index: number;
  /** The entry's JSON, parsed. */
  readonly entry: Readonly<Record<string, unknown>>;
}

export interface SearchResult {
  /** Newest first. */
  readonly items: readonly FoundEntry[];
  /** Where to go on, as `before`; null if there is no more. */
  readonly next: number | null;
  /** What stands before it is in the archive only. */
  readonly searchable_from: SearchableFrom;
}

type Found = Pick<SearchResult, 'items' | 'next'>;

/** A found entry with the bytes that it has in the log. */
interface Read {
  readonly found: FoundEntry;
  readonly bytes: number;
}

/** Bytes of entries in an answer, after which no further one is added: entries of large batches have 33 KB each, and a thousand of them would take 120 MB of memory until the answer is read. */
const maxFoundBytes = 1024 * 1024;

/** Entries that one call looks through at most: what matches rarely comes in several answers, some of them empty. */
const maxLookedThrough = 100_000;
/** And bytes of them: those of large batches would be gigabytes, which whoever serves calls reads through meanwhile. */
const maxBytesLookedThrough = 64 * 1024 * 1024;
/** How far the batch of an entry may be from it in time: the longest that a call waits for its commit, and much more. */
const commitSlackMs = 10 * 60_000;
/** How far the clocks of hosts may differ: whoever is ahead stands in the tree among what others call earlier. */
const clocksDifferMs = 60_000;

/** The entries of a log that match all of `query` and are in the database, newest first; those that were found when about `maxBytes` of entries were read. */
export async function searchLog(client: Queryable, logId: number, size: number, query: LogQuery, maxBytes: number = maxBytesLookedThrough): Promise<SearchResult> {
  for (;;) {
    const there = await searchableFrom(client, logId);
    const end = Math.min(size, query.before ?? size, await endOf(client, logId, query.to));
    const begin = Math.max(there.index, await beginOf(client, logId, query.from));
    try {
      const found = query.token === undefined ? await searchBlocks(client, logId, query, { begin, end, maxBytes }) : await searchToken(client, logId, query, query.token, { begin, end, maxBytes });
      return { ...found, searchable_from: there };
    } catch (error) {
      // Taken out meanwhile, or missing.
      if (!(error instanceof MissingEntries) || (await searchableFrom(client, logId)).index === there.index) throw error;
    }
  }
}

/** Entries of one token that one call looks at, at most: each may stand in a batch of its own. */
const maxTokenLooks = 2000;

/** A token's entries: those that name it, by their rows, and the one that tells of its making, by the token's. */
async function searchToken(client: Queryable, logId: number, query: LogQuery, token: string, { begin, end, maxBytes }: { readonly begin: number; readonly end: number; readonly maxBytes: number }): Promise<Found> {
  const made = await client.query<{ first_index: string; entry_count: number }>({
    name: 'log-token-made',
    text: `SELECT p.first_index, p.entry_count FROM log_batches p
           JOIN (SELECT made_writer, made_batch FROM cards c JOIN tenants t USING (tenant_id) WHERE c.token = $1::text
                 UNION SELECT made_writer, made_batch FROM tokens k JOIN tenants t USING (tenant_id) WHERE k.token = $1::text) m
             ON p.writer = m.made_writer AND p.number = m.made_batch
           WHERE p.log_id = $2::int`,
    values: [token, logId],
  });
  const found = new Map<number, FoundEntry>();
  const needles = [...needlesOf(query), Buffer.from(JSON.stringify(token))];
  let size = 0;
  let read = 0;
  /** Takes what is found from the newest on; at which entry the answer was full, null if it was not. */
  const look = async (from: number, to: number, most = Number.POSITIVE_INFINITY): Promise<number | null> => {
    const there = await readCounted(client, logId, from, to);
    read += there.read;
    for (const { found: one, bytes } of foundIn(there.leaves, from, needles).toReversed()) {
      if (found.has(one.index) || !namesToken(one.entry, token) || !matches(one.entry, query)) continue;
      found.set(one.index, one);
      size += bytes;
      if (size >= most) return one.index;
    }
    return read >= maxBytes ? from : null;
  };
  for (const row of made.rows) {
    const first = Number(row.first_index) + 1;
    // The rest of its batch is of other calls.
    if (first + row.entry_count > begin && first < end) await look(Math.max(first, begin), Math.min(first + row.entry_count, end));
  }
  // From the newest on, until enough of them match: from `reached` on all are known.
  let reached = end;
  for (let looks = 0; reached > begin; ) {
    const { rows } = await client.query<{ entry: string; first: string | null }>({
      name: 'log-token-entries',
      text: `SELECT entry, (SELECT max(first_index) FROM log_batches p WHERE p.log_id = t.log_id AND p.first_index <= t.entry) AS first
             FROM log_tokens t WHERE token_key = $1::bigint AND log_id = $2::int AND entry >= $3::bigint AND entry < $4::bigint ORDER BY entry DESC LIMIT $5::int`,
      values: [tokenKey(token), logId, begin, reached, query.limit + 1],
    });
    let full: number | null = null;
    // Calls that came together name their token in one batch, which is read once for all of them.
    for (const [place, { first, entry: last }] of rows.entries()) {
      if (place > 0 && rows[place - 1]!.first === first) continue;
      const lowest = Number(rows.findLast((row) => row.first === first)!.entry);
      full = await look(lowest, Number(last) + 1, maxFoundBytes);
      if (full !== null) break;
    }
    reached = full ?? (rows.length > query.limit ? Number(rows.at(-1)!.entry) : begin);
    looks += rows.length;
    if (full !== null || looks >= maxTokenLooks || [...found.keys()].filter((index) => index >= reached).length > query.limit) break;
  }
  const known = [...found.values()].filter(({ index }) => index >= reached).sort((a, b) => b.index - a.index);
  const items = known.slice(0, query.limit);
  return { items, next: known.length > query.limit ? items.at(-1)!.index : reached > begin ? reached : null };
}

/** Entries `begin` to `end` (exclusive), and the facets that a block has which holds one of them that is looked for. */
interface SearchedPart {
  readonly begin: number;
  readonly end: number;
  readonly facets: readonly bigint[];
}

/** Whatever is known by its block: the blocks that hold all the values, from the newest on. */
async function searchBlocks(client: Queryable, logId: number, query: LogQuery, { begin, end, maxBytes }: { readonly begin: number; readonly end: number; readonly maxBytes: number }): Promise<Found> {
  const needles = needlesOf(query);
  const items: FoundEntry[] = [];
  let size = 0;
  let looked = 0;
  let read = 0;
  for (const part of await partsOf(client, logId, query, begin, end)) {
    for (let until = part.end; until > part.begin; ) {
      const first = Math.floor(part.begin / blockEntries);
      const blocks = part.facets.length === 0 ? everyBlock(part.begin, until) : await blocksWith(client, logId, part.facets, first, Math.ceil(until / blockEntries));
      if (blocks.length === 0) break;
      for (const block of blocks) {
        const from = Math.max(block * blockEntries, part.begin);
        const to = Math.min((block + 1) * blockEntries, until);
        const leaves = await readLeaves(client, logId, from, to);
        for (const { found, bytes } of foundIn(leaves, from, needles).toReversed()) {
          if (!matches(found.entry, query)) continue;
          if (items.length === query.limit || size >= maxFoundBytes) return { items, next: items.at(-1)!.index };
          items.push(found);
          size += bytes;
        }
        looked += to - from;
        read += leaves.reduce((sum, { length }) => sum + length, 0);
        until = from;
        if ((looked >= maxLookedThrough || read >= maxBytes) && until > begin) return { items, next: until };
      }
    }
  }
  return { items, next: null };
}

/** The parts of a log, newest first, by what their blocks are known by: pairs of values only where the log's row says that they were kept of every entry (migration 0013). */
async function partsOf(client: Queryable, logId: number, query: LogQuery, begin: number, end: number): Promise<SearchedPart[]> {
  const asked = facetNames.filter((name) => query[name] !== undefined);
  const singles = asked.map((name) => facetKey(name, query[name]!));
  const pairs = facetPairs.filter(([first, second]) => query[first] !== undefined && query[second] !== undefined);
  if (pairs.length === 0) return [{ begin, end, facets: singles }];
  const { rows } = await client.query<{ paired_from: string; paired_to: string }>({ name: 'log-paired', text: 'SELECT paired_from, paired_to FROM logs WHERE log_id = $1::int', values: [logId] });
  const from = Number(rows[0]?.paired_from ?? 0);
  const to = Number(rows[0]?.paired_to ?? 0);
  // Pairs come first: they are the rarest, and the first one's blocks are walked.
  const paired = [
    ...pairs.map(([first, second]) => pairKey(first, query[first]!, second, query[second]!)),
    ...asked.filter((name) => !pairs.some((pair: readonly FacetName[]) => pair.includes(name))).map((name) => facetKey(name, query[name]!)),
  ];
  return [
    { begin: Math.max(begin, to), end, facets: singles },
    { begin: Math.max(begin, from), end: Math.min(end, to), facets: paired },
    { begin, end: Math.min(end, from), facets: singles },
  ].filter((part) => part.begin < part.end);
}

const blocksAtOnce = 32;

function everyBlock(begin: number, until: number): number[] {
  const last = Math.ceil(until / blockEntries) - 1;
  const first = Math.floor(begin / blockEntries);
  return Array.from({ length: Math.min(blocksAtOnce, last - first + 1) }, (_, index) => last - index);
}

async function blocksWith(client: Queryable, logId: number, facets: readonly bigint[], first: number, end: number): Promise<number[]> {
  // One index is walked backwards, and each of the others asked for its blocks.
  const others = facets.slice(1).map((_, index) => `AND EXISTS (SELECT 1 FROM log_facets o WHERE o.facet = $${index + 6}::bigint AND o.log_id = f.log_id AND o.block = f.block)`);
  const { rows } = await client.query<{ block: string }>({
    name: `log-blocks-${facets.length}`,
    text: `SELECT f.block FROM log_facets f WHERE f.facet = $1::bigint AND f.log_id = $2::int AND f.block >= $3::bigint AND f.block < $4::bigint ${others.join(' ')} ORDER BY f.block DESC LIMIT $5::int`,
    values: [facets[0], logId, first, end, blocksAtOnce, ...facets.slice(1)],
  });
  return rows.map((row) => Number(row.block));
}

/** Entries are canonical JSON, so what one says stands in it in one form of bytes. Those without all of `needles` are not even parsed. */
function foundIn(leaves: readonly Buffer[], from: number, needles: readonly Buffer[]): Read[] {
  return leaves.flatMap((leaf, offset) => {
    if (!needles.every((needle) => leaf.includes(needle))) return [];
    try {
      return [{ found: { index: from + offset, entry: JSON.parse(leaf.toString('utf8')) as FoundEntry['entry'] }, bytes: leaf.length }];
    } catch {
      return [];
    }
  });
}

function needlesOf(query: LogQuery): Buffer[] {
  return facetNames.flatMap((name) => (query[name] === undefined ? [] : [Buffer.from(`"${name}":${JSON.stringify(query[name])}`)]));
}

function matches(entry: FoundEntry['entry'], query: LogQuery): boolean {
  for (const name of facetNames) if (query[name] !== undefined && entry[name] !== query[name]) return false;
  if (query.from === undefined && query.to === undefined) return true;
  const at = typeof entry['at'] === 'string' ? Date.parse(entry['at']) : Number.NaN;
  return !(query.from !== undefined && at < query.from.getTime()) && !(query.to !== undefined && at >= query.to.getTime());
}

function namesToken(entry: FoundEntry['entry'], token: string): boolean {
  const { tokens } = entry;
  return typeof tokens === 'object' && tokens !== null && Object.values(tokens).some((list) => Array.isArray(list) && list.includes(token));
}

/** Before which index no entry of `time` or later can stand. Batches of several writers stand nearly by their time: those about it are looked at. */
async function beginOf(client: Queryable, logId: number, time: Date | undefined): Promise<number> {
  if (time === undefined) return 0;
  const { rows } = await client.query<{ least: string | null }>({
    name: 'log-begin',
    text: 'SELECT min(first_index) AS least FROM (SELECT first_index FROM log_batches WHERE log_id = $1::int AND formed_at >= $2::timestamptz ORDER BY formed_at LIMIT 2000) AS near',
    values: [logId, new Date(time.getTime() - clocksDifferMs)],
  });
  return rows[0]?.least === null || rows[0] === undefined ? Number.MAX_SAFE_INTEGER : Number(rows[0].least);
}

/** From which index on no entry of before `time` can stand. */
async function endOf(client: Queryable, logId: number, time: Date | undefined): Promise<number> {
  if (time === undefined) return Number.MAX_SAFE_INTEGER;
  const { rows } = await client.query<{ most: string | null }>({
    name: 'log-end',
    text: 'SELECT max(first_index + entry_count + 1) AS most FROM (SELECT first_index, entry_count FROM log_batches WHERE log_id = $1::int AND formed_at < $2::timestamptz ORDER BY formed_at DESC LIMIT 2000) AS near',
    values: [logId, new Date(time.getTime() + commitSlackMs)],
  });
  return rows[0]?.most === null || rows[0] === undefined ? 0 : Number(rows[0].most);
}
