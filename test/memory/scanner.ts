/**
 * Looks for card numbers in the memory of another process, through /proc/<pid>/maps and /proc/<pid>/mem. It runs as a process of its own,
 * so that its needles are in nobody's memory but its own:
 *
 *   node test/memory/scanner.ts --pid P (--needles FILE | --cards FIRST:COUNT:SEED) [--tail-digits K] [--no-pause] [--hits N] [--json]
 *
 * Exit code 0: nothing found. 1: found. 2: could not scan. It never prints a digit of what it finds.
 *
 * What it cannot see: kernel memory (socket buffers, page cache), numbers that are compressed, encrypted or in another coding than ASCII and
 * UTF-16LE, and pages that the process unmapped (the kernel clears those before anyone gets them).
 */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { cardLines } from '../support/cards.ts';
import { carryBytes, NeedleFinder, type Encoding, type Match } from './needles.ts';

export interface Mapping {
  readonly start: number;
  readonly end: number;
  /** As in maps, such as `rw-p`. */
  readonly permissions: string;
  readonly kind: MappingKind;
}

/** `shared` is memory that other processes may map too (PostgreSQL's buffers); `file` is a private mapping of a file (a program, a library and its data). */
export type MappingKind = 'heap' | 'stack' | 'anonymous' | 'file' | 'shared';

export interface Count {
  distinct: number;
  occurrences: number;
}

export interface Hit {
  readonly mapping: MappingKind;
  readonly permissions: string;
  /** Bytes from the start of the mapping. */
  readonly offset: number;
  readonly mappingBytes: number;
  readonly encoding: Encoding;
  readonly part: Match['part'];
  /** Which needle, by its place among the distinct ones. */
  readonly needle: number;
  /** Classes of the eight bytes before and after: z zero, d digit, a letter, q quote, s white space, p other printable, x other, ? not read. */
  readonly before: string;
  readonly after: string;
}

export interface ScanReport {
  readonly pid: number;
  readonly needles: number;
  readonly mappings: number;
  readonly bytesScanned: number;
  /** Bytes of mappings that say they are readable and were not: unmapped meanwhile, or device memory. */
  readonly bytesUnreadable: number;
  readonly paused: boolean;
  readonly durationMs: number;
  /** Whole needles. */
  readonly found: Count & Record<Encoding, Count>;
  readonly byKind: Partial<Record<MappingKind, Count>>;
  /** Last digits without the rest, if asked for; `expectedByChance` is how many occurrences random digits would give. */
  readonly tails: (Count & { readonly expectedByChance: number }) | null;
  /** The first `maxHits` places, whole needles and tails. */
  readonly hits: readonly Hit[];
}

export interface ScanOptions {
  readonly pid: number;
  /** Borrowed during the scan. See NeedleFinder for the form. */
  readonly needles: Buffer;
  /** 0 (the default) for none. */
  readonly tailDigits?: number;
  /** Stops the process (SIGSTOP) during the scan, so that a moving garbage collector cannot carry a number past it. True by default; a process that was stopped already stays so. */
  readonly pause?: boolean;
  readonly maxHits?: number;
  /** Bytes read at once, 4 MiB by default. Tests lower it to have many borders. */
  readonly chunkBytes?: number;
}

/** A reason why a process cannot be scanned, fit to be shown. */
export class ScanError extends Error {
  override readonly name = 'ScanError';
}

const pageBytes = 4096;
const neighbours = 8;

/** Parses /proc/<pid>/maps and keeps what can be read and may hold data of the process: readable, not a device, not made by the kernel. */
export function parseMaps(text: string): Mapping[] {
  const mappings: Mapping[] = [];
  for (const line of text.split('\n')) {
    const parts = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)$/.exec(line);
    if (parts === null) continue;
    const [, start, end, permissions, name] = parts as unknown as [string, string, string, string, string];
    if (permissions[0] !== 'r') continue;
    if (/^\[(vvar|vvar_vclock|vdso|vsyscall|uprobes)\]/.test(name)) continue;
    // Reading device memory can have effects. PostgreSQL's shared memory looks like /dev/zero or /dev/shm and is no device.
    if (name.startsWith('/dev/') && !name.startsWith('/dev/zero') && !name.startsWith('/dev/shm/')) continue;
    mappings.push({ start: Number.parseInt(start, 16), end: Number.parseInt(end, 16), permissions, kind: kindOf(permissions, name) });
  }
  return mappings;
}

function kindOf(permissions: string, name: string): MappingKind {
  if (permissions[3] === 's') return 'shared';
  if (name === '[heap]') return 'heap';
  if (name === '[stack]') return 'stack';
  return name === '' || name.startsWith('[') ? 'anonymous' : 'file';
}

/**
 * Scans every readable mapping of a process and returns what it found. Synchronous. Needs root (CAP_SYS_PTRACE), or the same user and a
 * process that did not make itself undumpable. Throws ScanError with the reason otherwise, if the process ends meanwhile, or if it is this
 * one, whose memory holds the needles.
 */
export function scanProcess(options: ScanOptions): ScanReport {
  const { pid, maxHits = 100, chunkBytes = 4 * 1024 * 1024, pause = true } = options;
  if (!Number.isSafeInteger(pid) || pid <= 0) throw new ScanError('the process id must be a positive number');
  if (pid === process.pid) throw new ScanError('a process cannot scan itself: its needles are in its memory');
  const finder = new NeedleFinder(options.needles, options.tailDigits ?? 0);
  const startedMs = performance.now();
  const memory = openMemory(pid);
  const resume = pause ? stop(pid) : () => {};
  try {
    return scanMappings();
  } finally {
    resume();
    closeSync(memory);
  }

  function scanMappings(): ScanReport {
    const mappings = parseMaps(readFileSync(`/proc/${pid}/maps`, 'latin1'));
    if (mappings.length === 0) throw new ScanError('the process has no memory: it has ended');
    const whole = new Tally(finder.count);
    const tails = new Tally(finder.count);
    const byEncoding = { ascii: new Tally(finder.count), utf16le: new Tally(finder.count) };
    const byKind = new Map<MappingKind, Tally>();
    const hits: Hit[] = [];
    const chunk = Buffer.alloc(carryBytes + chunkBytes);
    let bytesScanned = 0;
    let bytesUnreadable = 0;
    let carried = 0;
    let carriedTo = -1; // the address after the last byte that was read

    for (const mapping of mappings) {
      for (let at = mapping.start; at < mapping.end; ) {
        // Neighbouring mappings may hold one block of memory (their permissions or advice differ): the carry crosses their border.
        if (at !== carriedTo) carried = 0;
        const want = Math.min(chunkBytes, mapping.end - at);
        const got = readMemory(memory, chunk, carried, want, at);
        if (got === 0) {
          const skipped = Math.min(pageBytes - (at % pageBytes), mapping.end - at);
          bytesUnreadable += skipped;
          at += skipped;
          continue;
        }
        const length = carried + got;
        const base = at - carried;
        finder.scan(chunk, length, carried, (match) => {
          if (match.part === 'whole') {
            whole.add(match.needle);
            byEncoding[match.encoding].add(match.needle);
            let kind = byKind.get(mapping.kind);
            if (kind === undefined) byKind.set(mapping.kind, (kind = new Tally(finder.count)));
            kind.add(match.needle);
          } else {
            tails.add(match.needle);
          }
          if (hits.length < maxHits) {
            const { offset, bytes, encoding, part, needle } = match;
            hits.push({
              mapping: mapping.kind, permissions: mapping.permissions, offset: base + offset - mapping.start, mappingBytes: mapping.end - mapping.start, encoding, part, needle,
              before: classes(chunk, offset - neighbours, offset, length), after: classes(chunk, offset + bytes, offset + bytes + neighbours, length),
            });
          }
        });
        bytesScanned += got;
        at += got;
        carriedTo = at;
        carried = Math.min(carryBytes, length);
        chunk.copyWithin(0, length - carried, length);
      }
    }
    if (bytesScanned === 0) throw new ScanError('nothing of the process could be read: it has ended');
    chunk.fill(0);
    return {
      pid, needles: finder.count, mappings: mappings.length, bytesScanned, bytesUnreadable, paused: pause, durationMs: Math.round(performance.now() - startedMs),
      found: { ...whole.count, ascii: byEncoding.ascii.count, utf16le: byEncoding.utf16le.count },
      byKind: Object.fromEntries([...byKind].map(([kind, tally]) => [kind, tally.count])),
      tails: options.tailDigits ? { ...tails.count, expectedByChance: (finder.tailLookups * finder.count) / 10 ** options.tailDigits } : null,
      hits,
    };
  }
}

class Tally {
  readonly #seen: Uint8Array;
  readonly count: Count = { distinct: 0, occurrences: 0 };

  constructor(needles: number) {
    this.#seen = new Uint8Array(needles);
  }

  add(needle: number): void {
    this.count.occurrences++;
    if (this.#seen[needle] !== 0) return;
    this.#seen[needle] = 1;
    this.count.distinct++;
  }
}

function openMemory(pid: number): number {
  try {
    return openSync(`/proc/${pid}/mem`, 'r');
  } catch (cause) {
    throw refusal(cause);
  }
}

function refusal(cause: unknown): ScanError {
  const code = (cause as NodeJS.ErrnoException).code;
  if (code === 'ENOENT' || code === 'ESRCH') return new ScanError('there is no such process', { cause });
  if (code === 'EACCES' || code === 'EPERM') return new ScanError('the memory of the process may not be read: run as root, or as its user while it is dumpable', { cause });
  return new ScanError('the memory of the process cannot be read', { cause });
}

/** Bytes read, fewer where a hole begins; 0 if there is nothing to read at this address. */
function readMemory(memory: number, into: Buffer, offset: number, length: number, address: number): number {
  try {
    return readSync(memory, into, offset, length, address);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'EIO' || code === 'EFAULT') return 0;
    throw refusal(cause);
  }
}

/** Stops every thread of the process and returns how to let it go on. */
function stop(pid: number): () => void {
  try {
    if (threadStates(pid).every(isStopped)) return () => {};
    process.kill(pid, 'SIGSTOP');
    for (let tries = 0; !threadStates(pid).every(isStopped); tries++) {
      if (tries === 2000) {
        process.kill(pid, 'SIGCONT');
        throw new ScanError('the process does not stop');
      }
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  } catch (cause) {
    throw cause instanceof ScanError ? cause : refusal(cause);
  }
  return () => {
    try {
      process.kill(pid, 'SIGCONT');
    } catch {
      // It was killed while it stood still.
    }
  };
}

const isStopped = (state: string): boolean => state === 'T' || state === 't';

function threadStates(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).map((thread) => {
    const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'latin1');
    return stat[stat.lastIndexOf(')') + 2]!;
  });
}

function classes(data: Buffer, from: number, to: number, length: number): string {
  let text = '';
  for (let i = from; i < to; i++) text += i < 0 || i >= length ? '?' : classOf(data[i]!);
  return text;
}

function classOf(byte: number): string {
  if (byte === 0) return 'z';
  if (byte >= 0x30 && byte <= 0x39) return 'd';
  if (byte === 0x22 || byte === 0x27) return 'q';
  if (byte === 0x20 || (byte >= 0x09 && byte <= 0x0d)) return 's';
  if ((byte >= 0x41 && byte <= 0x5a) || (byte >= 0x61 && byte <= 0x7a)) return 'a';
  return byte > 0x20 && byte < 0x7f ? 'p' : 'x';
}

/** What `scan` runs the scanner with: needles from a file, or made in the scanner from the test cards, so that the caller's memory never holds them. */
export type Needles = { readonly file: string } | { readonly firstCard: number; readonly cards: number; readonly seed: number };

/** Scans in a process of its own and resolves to its report. Rejects with ScanError (the reason as text) if it could not scan. */
export function scan(pid: number, needles: Needles, options: Pick<ScanOptions, 'tailDigits' | 'pause' | 'maxHits' | 'chunkBytes'> = {}): Promise<ScanReport> {
  const args = [fileURLToPath(import.meta.url), '--json', '--pid', String(pid)];
  if ('file' in needles) args.push('--needles', needles.file);
  else args.push('--cards', `${needles.firstCard}:${needles.cards}:${needles.seed}`);
  if (options.tailDigits !== undefined) args.push('--tail-digits', String(options.tailDigits));
  if (options.pause === false) args.push('--no-pause');
  if (options.maxHits !== undefined) args.push('--hits', String(options.maxHits));
  if (options.chunkBytes !== undefined) args.push('--chunk-bytes', String(options.chunkBytes));
  return new Promise((resolve, reject) => {
    execFile(process.execPath, args, { maxBuffer: 64 * 1024 * 1024 }, (error, stdout, stderr) => {
      if (error === null || error.code === 1) resolve(JSON.parse(stdout) as ScanReport);
      else reject(new ScanError(stderr.trim() || 'the scanner was ended', { cause: error }));
    });
  });
}

function main(): void {
  const { values } = parseArgs({
    options: {
      pid: { type: 'string' }, needles: { type: 'string' }, cards: { type: 'string' }, 'tail-digits': { type: 'string', default: '0' },
      'no-pause': { type: 'boolean', default: false }, hits: { type: 'string', default: '100' }, 'chunk-bytes': { type: 'string', default: String(4 * 1024 * 1024) },
      json: { type: 'boolean', default: false },
    },
  });
  const [first, count, seed] = (values.cards ?? '').split(':').map(Number);
  if (values.pid === undefined || (values.needles === undefined) === (values.cards === undefined)) throw new ScanError('give --pid and one of --needles FILE, --cards FIRST:COUNT:SEED');
  const report = scanProcess({
    pid: Number(values.pid),
    needles: values.needles === undefined ? cardLines(first ?? 0, count ?? 0, seed ?? 0) : readFileSync(values.needles),
    tailDigits: Number(values['tail-digits']), pause: !values['no-pause'], maxHits: Number(values.hits), chunkBytes: Number(values['chunk-bytes']),
  });
  console.log(values.json ? JSON.stringify(report) : describe(report));
  process.exitCode = report.found.occurrences === 0 ? 0 : 1;
}

/** The report in words, one line a fact. */
export function describe(report: ScanReport): string {
  const count = ({ distinct, occurrences }: Count): string => `${distinct} distinct, ${occurrences} occurrences`;
  const lines = [
    `process ${report.pid}: ${Math.round(report.bytesScanned / 2 ** 20)} MiB in ${report.mappings} mappings scanned in ${report.durationMs} ms, ${Math.round(report.bytesUnreadable / 1024)} KiB unreadable`,
    `${report.needles} numbers sought: ${count(report.found)} (ASCII ${count(report.found.ascii)}; UTF-16 ${count(report.found.utf16le)})`,
    ...Object.entries(report.byKind).map(([kind, tally]) => `  ${kind}: ${count(tally)}`),
  ];
  if (report.tails !== null) lines.push(`last digits only: ${count(report.tails)}, ${report.tails.expectedByChance.toFixed(2)} expected by chance`);
  for (const hit of report.hits) lines.push(`  ${hit.part} #${hit.needle} ${hit.encoding} in ${hit.mapping} ${hit.permissions} at ${hit.offset} of ${hit.mappingBytes}: ${hit.before} | ${hit.after}`);
  return lines.join('\n');
}

if (import.meta.main) {
  try {
    main();
  } catch (error) {
    console.error(`scanner: ${(error as Error).message}`);
    process.exitCode = 2;
  }
}
