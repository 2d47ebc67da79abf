/**
 * `cofre audit …`: what an auditor does with the log, on any machine. Only `export`, `search`, `prove` and `vkey` speak to a vault, and only if they are not
 * told otherwise; `restart` is the operator's, on the vault's own machine.
 */
import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
import { open, rename, stat, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { ParseArgsOptionsConfig } from 'node:util';
import { fileURLToPath } from 'node:url';
import { openCheckpoint, parseCheckpoint } from '../../audit/checkpoint.ts';
import { directoryFiles } from '../../audit/directory-log.ts';
import { decodeBundle } from '../../audit/entry.ts';
import { exportLog } from '../../audit/export.ts';
import { verifyLog } from '../../audit/fsck.ts';
import { keysOf } from '../../audit/log-keys.ts';
import { logSource, logTarget, readBundle, readTile, readVkey } from '../../audit/log-source.ts';
import type { LogFiles, LogSource, WritableLogFiles } from '../../audit/log-source.ts';
import { inclusionProof, leafHash, verifyInclusion } from '../../audit/merkle.ts';
import { encodeVkey, parseVkey } from '../../audit/note.ts';
import type { NoteVerifier } from '../../audit/note.ts';
import { checkProof, encodeProof, parseProof } from '../../audit/proof.ts';
import { tilePath, tileReader, tileWidth, tileWidthAt } from '../../audit/tiles.ts';
import { httpsFiles } from '../../platform-adapters/client/https-log.ts';
import { ConfigError, loadConfig } from '../config.ts';
import { explain } from './explain.ts';
import { count, openProgress } from './progress.ts';

/** What a command got: options of its own by name, each as often as it was given, and what stands alone. */
interface Call {
  readonly name: string;
  readonly options: Readonly<Record<string, readonly string[]>>;
  readonly flags: ReadonlySet<string>;
  readonly words: readonly string[];
  readonly home: string;
  readonly env: NodeJS.ProcessEnv;
}

interface Command {
  readonly help: string;
  /** Options with a value; those whose name ends in `*` may be given several times. `home` is everybody's. */
  readonly options: readonly string[];
  readonly flags: readonly string[];
  /** How many words it takes, at least and at most. */
  readonly words: readonly [number, number];
  /** @returns the exit code. @throws UsageError, or what is explained in one line with exit code 1. */
  run(call: Call): Promise<number>;
}

/** Something that was asked for in a way that is not understood: exit code 2. */
class UsageError extends Error {}

const vaultOptions = ['url', 'cert', 'key', 'ca'];

const vaultHelp = `  --url URL     admin listener of the vault; default https://127.0.0.1:8444
  --cert FILE   certificate of an auditor, PEM; default pki/auditor.pem in the home
  --key FILE    its key; default pki/auditor.key
  --ca FILE     authority of the vault's certificate; default pki/ca.pem
  --home DIR    state of a vault on this machine; default COFRE_HOME, else .cofre beside the package
`;

const usage = `cofre audit <command> [options]

Copies, verifies, searches and proves the log. Only export, search, prove and vkey speak to a vault, and restart needs its home; all else works on any
machine without one.

  export       copy the log to a folder or a bucket, or bring a copy up to date
  verify       verify a copy from its entries to its signed root, offline
  search       find entries by token, caller, tenant, action, outcome, code, purpose and time; itself an entry
  prove        write a proof that one entry is in the log
  check-proof  check such a proof, offline, and print the entry
  vkey         print the public key of the log
  restart      begin a new log after the database was restored from a backup

  --help       this, or the command's own help
`;

const commands: Readonly<Record<string, Command>> = {
  export: {
    help: `cofre audit export DIR|s3://BUCKET/PREFIX [--vkey KEY] [--json] [options]

Copies the log as plain files (c2sp.org/tlog-tiles), only what the copy does not have yet. Every file is held against the signed
checkpoint before it is written, and the new checkpoint must continue the copy's own. It may be interrupted at any time.

  --vkey KEY    public key of the log, or a file that holds it; default what the vault says
${vaultHelp}`,
    options: ['vkey', ...vaultOptions],
    flags: ['json'],
    words: [1, 1],
    run: exportCommand,
  },
  verify: {
    help: `cofre audit verify DIR|s3://BUCKET/PREFIX --vkey KEY [--checkpoint FILE]... [--json]

Verifies a copy of the log: recomputes the tree from its entries, checks all signatures and the chain of every writer, and names what
is wrong. Needs no vault. Exit code 1 if anything is.

  --vkey KEY         public key of the log, or a file that holds it: got from the vault's owner, not from the copy
  --checkpoint FILE  a checkpoint that was kept from earlier, which the log must continue; of a witness file (.jsonl) the last one.
                     May be given several times. Without one, a log whose end was cut off looks like a shorter one.
  --json             the report as JSON
`,
    options: ['vkey', 'checkpoint*'],
    flags: ['json'],
    words: [1, 1],
    run: verifyCommand,
  },
  search: {
    help: `cofre audit search [--token T] [--caller URI] [--tenant NAME] [--action A] [--outcome O] [--code C] [--purpose P] [--from TIME] [--to TIME] [options]

Prints the entries that match all of it, newest first, as JSON: their index and what they say. The search is an entry of the log itself.

  --token TOKEN   entries that name this token, the one of its making too
  --caller URI    SPIFFE id of the caller; --tenant NAME, --action NAME, --code CODE and --purpose NAME as entries say them
  --outcome NAME  allowed, refused or failed
  --from TIME     of this time or later, of UTC: 2026-11-25 or 2026-11-25T10:00:00Z
  --to TIME       earlier than this time
  --limit N       at most so many entries (100)
  --json          one JSON object a line, instead of indented
${vaultHelp}`,
    options: ['token', 'caller', 'tenant', 'action', 'outcome', 'code', 'purpose', 'from', 'to', 'limit', ...vaultOptions],
    flags: ['json'],
    words: [0, 0],
    run: searchCommand,
  },
  restart: {
    help: `cofre audit restart [--home DIR] [--config FILE] [--json]

Begins a new log that names the one that was witnessed, on the machine of a vault that is stopped, after its database was restored from an older backup: the
vault does not start over such a log by itself. What was signed since the backup stays signed, and only copies of the old log hold it.

  --config FILE  configuration; default cofre.config.yaml in the home, else the defaults of development
  --home DIR     state of the vault; default COFRE_HOME, else .cofre beside the package
`,
    options: ['config'],
    flags: ['json'],
    words: [0, 0],
    run: restartCommand,
  },
  prove: {
    help: `cofre audit prove INDEX [--from DIR|s3://BUCKET/PREFIX] [--out FILE] [--vkey KEY] [options]

Writes a proof (c2sp.org/tlog-proof) that the entry with this index is in the log. It holds the entry, and is checked with nothing but
the log's public key.

  --from ADDRESS  take it from a copy; default from the vault
  --out FILE      where to write it; default standard output
  --vkey KEY      public key of the log, or a file that holds it, which the checkpoint is then held against
${vaultHelp}`,
    options: ['from', 'out', 'vkey', ...vaultOptions],
    flags: [],
    words: [1, 1],
    run: proveCommand,
  },
  'check-proof': {
    help: `cofre audit check-proof FILE --vkey KEY [--json]

Checks a proof and prints the entry that it proves. Needs no vault. Exit code 1, and nothing on standard output, if it does not hold.

  --vkey KEY  public key of the log, or a file that holds it
  --json      the entry with its index and the log's size and root
`,
    options: ['vkey'],
    flags: ['json'],
    words: [1, 1],
    run: checkProofCommand,
  },
  vkey: {
    help: `cofre audit vkey [options]

Prints the public key of the vault's log, in the form that public tools take.

${vaultHelp}`,
    options: vaultOptions,
    flags: [],
    words: [0, 0],
    run: vkeyCommand,
  },
};

/** Runs one command of the auditor's. @returns the exit code. */
export async function audit(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const [name, ...rest] = argv;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(usage);
    return name === undefined ? 2 : 0;
  }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (command === undefined) {
    process.stderr.write('cofre audit: there is no command of that name; cofre audit --help lists them\n');
    return 2;
  }
  const options: ParseArgsOptionsConfig = { help: { type: 'boolean', short: 'h' }, home: { type: 'string' } };
  for (const option of command.options) options[option.replace('*', '')] = { type: 'string', multiple: true };
  for (const flag of command.flags) options[flag] = { type: 'boolean' };
  let values: Readonly<Record<string, unknown>>;
  let words: readonly string[];
  try {
    ({ values, positionals: words } = parseArgs({ args: rest, options, allowPositionals: true }));
  } catch {
    process.stderr.write(`cofre audit ${name}: an option is not understood; cofre audit ${name} --help lists them\n`);
    return 2;
  }
  if (values['help'] === true) {
    process.stdout.write(command.help);
    return 0;
  }
  const given: Record<string, readonly string[]> = {};
  for (const option of ['home', ...command.options]) {
    const key = option.replace('*', '');
    const value = values[key];
    given[key] = typeof value === 'string' ? [value] : ((value as string[] | undefined) ?? []);
  }
  const refusal = refusalOf(command, given, words);
  if (refusal !== null) {
    process.stderr.write(`cofre audit ${name}: ${refusal}\n`);
    return 2;
  }
  const home = resolve(given['home']?.[0] ?? (env['COFRE_HOME'] || fileURLToPath(new URL('../../.cofre', import.meta.url))));
  const flags = new Set(command.flags.filter((flag) => values[flag] === true));
  try {
    return await command.run({ name, options: given, flags, words, home, env });
  } catch (error) {
    process.stderr.write(`${error instanceof UsageError ? `cofre audit ${name}` : 'cofre'}: ${explain(error)}\n`);
    if (env['COFRE_DEBUG'] === '1' && error instanceof Error) process.stderr.write(`${error.stack ?? ''}\n`);
    return error instanceof UsageError || error instanceof ConfigError ? 2 : 1;
  }
}

function refusalOf(command: Command, given: Readonly<Record<string, readonly string[]>>, words: readonly string[]): string | null {
  for (const option of ['home', ...command.options]) {
    const key = option.replace('*', '');
    // Empty is what a script passes whose variable is not set.
    if (given[key]!.includes('')) return `--${key} is empty`;
    if (given[key]!.length > 1 && !option.endsWith('*')) return `--${key} is given twice`;
  }
  if (words.includes('')) return 'a name is empty';
  const [least, most] = command.words;
  if (words.length < least) return `${/^\S+ \S+ \S+ (\S+)/u.exec(command.help)?.[1] ?? 'a name'} is needed`;
  return words.length > most ? 'more is given than it takes' : null;
}

// Places.

function vaultFiles({ options, home, env }: Call): LogFiles & { close(): void } {
  const one = (option: string): string | undefined => options[option]?.[0];
  const read = (option: string, file: string): Buffer => {
    const path = resolve(one(option) ?? join(home, 'pki', file));
    try {
      return readFileSync(path);
    } catch (error) {
      throw new Error(`${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'}): --${option} names another`, { cause: error });
    }
  };
  return httpsFiles({ url: one('url') ?? `https://127.0.0.1:${env['COFRE_ADMIN_PORT'] || '8444'}`, cert: read('cert', 'auditor.pem'), key: read('key', 'auditor.key'), ca: read('ca', 'ca.pem') });
}

async function copyFiles(address: string, env: NodeJS.ProcessEnv): Promise<WritableLogFiles & { close(): void }> {
  if (/^[a-z][a-z0-9+.-]*:\/\//iu.test(address) && !address.startsWith('s3://')) throw new UsageError('a copy is in a folder, or in a bucket as s3://bucket/prefix');
  if (!address.startsWith('s3://')) return { ...directoryFiles(address), close: () => undefined };
  // Only who names a bucket loads the client.
  const { s3Files } = await import('../../platform-adapters/aws/s3-log.ts');
  return s3Files(address, env);
}

/** No key, checkpoint or proof is as large as this. */
const maxTextBytes = 1024 * 1024;

/** What stands in a file that somebody gave; `cut`: only its end, for it is larger and the `end` will do. @throws Error with a code. */
function readText(file: string, end = false): { readonly text: string; readonly cut: boolean } {
  const descriptor = openSync(file, 'r');
  try {
    const status = fstatSync(descriptor);
    const skipped = end && status.isFile() ? Math.max(0, status.size - maxTextBytes) : 0;
    const bytes = Buffer.alloc(maxTextBytes + 1);
    let length = 0;
    for (let read = -1; read !== 0 && length < bytes.length; length += Math.max(0, read)) read = readSync(descriptor, bytes, length, bytes.length - length, status.isFile() ? skipped + length : null);
    if (length > maxTextBytes && skipped === 0) throw Object.assign(new Error('too large'), { code: 'EFBIG' });
    return { text: bytes.toString('utf8', 0, length), cut: skipped > 0 };
  } finally {
    closeSync(descriptor);
  }
}

/** The key itself, or the one in the file of that name. */
function readKey(value: string): NoteVerifier {
  const readable = (text: string): NoteVerifier | null => {
    try {
      return parseVkey(text);
    } catch {
      return null;
    }
  };
  const itself = readable(value);
  if (itself !== null) return itself;
  let text;
  try {
    text = readText(value).text.trim();
  } catch (error) {
    throw new UsageError(`--vkey is neither a public key nor a file that can be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`, { cause: error });
  }
  const inFile = readable(text);
  if (inFile === null) throw new UsageError(`${value}: holds no public key of a log`);
  return inFile;
}

function neededKey({ options }: Call): NoteVerifier {
  const value = options['vkey']?.[0];
  if (value === undefined) throw new UsageError('--vkey KEY is needed: the public key of the log, got from the vault\'s owner');
  return readKey(value);
}

function vkeyOf({ name, algorithm, key }: NoteVerifier): string {
  return encodeVkey(name, algorithm, key.export({ format: 'der', type: 'spki' }));
}

function originOf(note: string | null): string {
  return note?.slice(0, Math.max(0, note.indexOf('\n'))) ?? '';
}

async function vaultKey(files: LogFiles): Promise<NoteVerifier> {
  const text = await readVkey(files);
  try {
    return parseVkey(text ?? '');
  } catch (error) {
    throw new Error('the vault does not tell the public key of its log', { cause: error });
  }
}

// Commands.

async function exportCommand(call: Call): Promise<number> {
  const [address = ''] = call.words;
  const vault = vaultFiles(call);
  const copy = await copyFiles(address, call.env);
  try {
    const kept = await readVkey(copy);
    const vkey = call.options['vkey']?.[0] === undefined ? await vaultKey(vault) : readKey(call.options['vkey'][0]);
    const source = logSource(vault);
    const target = logTarget(copy);
    const origins = [originOf(await source.checkpoint()), originOf(await target.checkpoint())];
    const verifiers = origins.flatMap((origin) => keysOf(vkey, origin)?.checkpoint ?? []);
    const progress = openProgress('exported');
    const exported = await exportLog(source, target, { verifiers, onProgress: ({ done, total }) => progress.update(done, total) }).finally(() => progress.end());
    const { origin, size, root } = exported.checkpoint;
    // For whoever finds the copy; who verifies it has the key from elsewhere.
    const text = vkeyOf(keysOf(vkey, origin)!.checkpoint);
    if (kept !== text) await target.put('vkey', Buffer.from(`${text}\n`));
    const added = size - exported.from;
    process.stdout.write(call.flags.has('json') ? `${JSON.stringify({ origin, size, root: root.toString('base64'), added, target: address })}\n` : `${address}: ${count(size)} entries of ${origin}, ${added === 0 ? 'as before' : `${count(added)} of them new`}\n`);
    return 0;
  } finally {
    vault.close();
    copy.close();
  }
}

async function verifyCommand(call: Call): Promise<number> {
  const [address = ''] = call.words;
  const vkey = neededKey(call);
  const olderCheckpoints = (call.options['checkpoint'] ?? []).map((file) => ({ name: file, note: readCheckpointFile(file) }));
  const copy = await copyFiles(address, call.env);
  const progress = openProgress('verified');
  const began = performance.now();
  const report = await verifyLog(logSource(copy), { vkey, olderCheckpoints, readAhead: address.startsWith('s3://') ? 16 : 4, onProgress: ({ done, total }) => progress.update(done, total) }).finally(() => {
    progress.end();
    copy.close();
  });
  const { holds, checkpoint, totals, findings, found, continued, earlier } = report;
  if (call.flags.has('json')) {
    process.stdout.write(`${JSON.stringify({ holds, origin: checkpoint?.origin ?? null, size: checkpoint?.size ?? null, root: checkpoint?.root.toString('base64') ?? null, totals, found, findings, continued, earlier })}\n`);
    return holds ? 0 : 1;
  }
  const lines = findings.map(({ code, message }) => `${code}: ${message}`);
  if (found > findings.length) lines.push(`… and ${count(found - findings.length)} more`);
  for (const name of continued) lines.push(`continues ${name}`);
  for (const name of earlier) lines.push(`says nothing about ${name}, which is of an earlier log of this vault`);
  if (totals.earlier > 0) lines.push(`${count(totals.earlier)} of the writers follow one that only the earlier log tells of`);
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  const what = checkpoint === null ? address : `${address}: ${count(checkpoint.size)} entries of ${checkpoint.origin}, ${count(totals.batches)} batches of ${count(totals.writers)} writers`;
  lines.push(holds ? `${what}: all in order (${seconds} s)` : `${what}: ${count(found)} ${found === 1 ? 'finding' : 'findings'} (${seconds} s)`);
  if (holds && olderCheckpoints.length === 0) lines.push('whether its end was cut off only an older checkpoint would tell (--checkpoint)');
  process.stdout.write(`${lines.join('\n')}\n`);
  return holds ? 0 : 1;
}

/** A checkpoint, or the last one of a witness file. */
function readCheckpointFile(file: string): string {
  let text;
  let cut;
  try {
    ({ text, cut } = readText(file, true));
  } catch (error) {
    throw new UsageError(`${file}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`, { cause: error });
  }
  if (!cut && !text.startsWith('{')) return text;
  // What a crash left behind has no end; what lies before it counts.
  for (const line of text.split('\n').slice(0, -1).toReversed()) {
    try {
      const { note } = JSON.parse(line) as { note?: unknown };
      if (typeof note === 'string') return note;
    } catch {
      continue;
    }
  }
  throw new UsageError(`${file}: holds no checkpoint`);
}

async function proveCommand(call: Call): Promise<number> {
  const [word = ''] = call.words;
  const index = /^(?:0|[1-9][0-9]{0,15})$/u.test(word) ? Number(word) : Number.NaN;
  if (!Number.isSafeInteger(index)) throw new UsageError('INDEX is to be the number of an entry, from 0 on');
  const from = call.options['from']?.[0];
  const files = from === undefined ? vaultFiles(call) : await copyFiles(from, call.env);
  try {
    const given = call.options['vkey']?.[0];
    // A vault that was reached by its certificate says itself which key it has.
    const vkey = given === undefined ? (from === undefined ? await vaultKey(files) : null) : readKey(given);
    const text = await proofOf(logSource(files), index, vkey);
    const out = call.options['out']?.[0];
    if (out === undefined) process.stdout.write(text);
    else {
      await writeWhole(out, text);
      process.stdout.write(`${out}: the proof of entry ${index}\n`);
    }
    return 0;
  } finally {
    files.close();
  }
}

/** The text of a proof that holds. @throws Error of one line if the log does not give one. */
async function proofOf(source: LogSource, index: number, vkey: NoteVerifier | null): Promise<string> {
  const note = await source.checkpoint();
  if (note === null) throw new Error('there is no checkpoint: this is no log, or a copy of one that was never completed');
  const keys = vkey === null ? null : keysOf(vkey, originOf(note));
  const checkpoint = vkey === null ? parseCheckpoint(note.slice(0, note.lastIndexOf('\n\n') + 1)) : keys === null ? null : openCheckpoint(note, [keys.checkpoint]);
  if (checkpoint === null) throw new Error('the checkpoint is not signed by the log\'s key');
  const { size, root } = checkpoint;
  if (index >= size) throw new Error(`the log has ${count(size)} entries under a checkpoint, so there is no entry ${index} yet`);
  const bundleIndex = Math.floor(index / tileWidth);
  const reader = tileReader(size, async (ref) => {
    const tile = await readTile(source, ref);
    if (tile === null) throw new Error(`${tilePath(ref)} is missing`);
    return tile;
  });
  const [bundle, hashes] = await Promise.all([readBundle(source, { index: bundleIndex, width: tileWidthAt(0, bundleIndex, size) }), inclusionProof(index, size, reader)]);
  if (bundle === null) throw new Error(`the log does not hold entry ${index} any more: a copy does`);
  let entry;
  try {
    entry = decodeBundle(bundle)[index % tileWidth];
  } catch {
    entry = undefined;
  }
  if (entry === undefined || !verifyInclusion(leafHash(entry), index, size, root, hashes)) throw new Error(`entry ${index} is not what the checkpoint signs: cofre audit verify tells what is wrong`);
  return encodeProof({ index, hashes, checkpoint: note, extra: Buffer.from(entry) });
}

async function checkProofCommand(call: Call): Promise<number> {
  const [file = ''] = call.words;
  const vkey = neededKey(call);
  let text;
  try {
    ({ text } = readText(file));
  } catch (error) {
    throw new Error(`${file}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`, { cause: error });
  }
  const proof = parseProof(text);
  if (proof === null) throw new Error(`${file}: is not a proof`);
  const keys = keysOf(vkey, originOf(proof.checkpoint));
  const checked = checkProof(proof, keys === null ? [] : [keys.checkpoint]);
  if (typeof checked === 'string') throw new Error(`${file}: does not hold: ${checked}`);
  const { entry, checkpoint } = checked;
  const { origin, size, root } = checkpoint;
  if (call.flags.has('json')) process.stdout.write(`${JSON.stringify({ index: proof.index, origin, size, root: root.toString('base64'), entry: entry.toString('utf8') })}\n`);
  else {
    process.stdout.write(`${entry.toString('utf8')}\n`);
    process.stderr.write(`is entry ${proof.index} of ${origin}, under a checkpoint of ${count(size)} entries\n`);
  }
  return 0;
}

async function vkeyCommand(call: Call): Promise<number> {
  const vault = vaultFiles(call);
  try {
    process.stdout.write(`${vkeyOf(await vaultKey(vault))}\n`);
    return 0;
  } finally {
    vault.close();
  }
}

/** An answer of a thousand entries, each as large as it can be, is no more than this. */
const maxAnswerBytes = 128 * 1024 * 1024;
const criteria = ['token', 'caller', 'tenant', 'action', 'outcome', 'code', 'purpose', 'from', 'to'] as const;

async function searchCommand(call: Call): Promise<number> {
  const one = (option: string): string | undefined => call.options[option]?.[0];
  const limit = Number(one('limit') ?? '100');
  if (!Number.isInteger(limit) || limit < 1) throw new UsageError('--limit is to be a number of entries');
  const asked = criteria.flatMap((name): [string, string][] => {
    const value = one(name);
    return value === undefined ? [] : [[name, value]];
  });
  const vault = vaultFiles(call);
  try {
    let left = limit;
    for (let before: number | null = null; ; ) {
      const parameters = new URLSearchParams([...asked, ['limit', String(Math.min(left, 1000))]]);
      if (before !== null) parameters.set('before', String(before));
      const answer = await vault.read(`search?${parameters.toString()}`, maxAnswerBytes);
      if (answer === null) throw new Error('the vault has no log that can be searched');
      const { items, next, searchable_from: from } = JSON.parse(answer.toString('utf8')) as { items: { index: number; entry: unknown }[]; next: number | null; searchable_from?: { index: number; time: string | null } };
      for (const item of items) process.stdout.write(`${call.flags.has('json') ? JSON.stringify(item) : JSON.stringify(item, null, 2)}\n`);
      left -= items.length;
      before = next;
      if (before === null || left <= 0) {
        if (from !== undefined && from.index > 0) process.stderr.write(`entries before ${count(from.index)} (${from.time ?? ''}) were moved to the archive and are not searched\n`);
        return 0;
      }
    }
  } finally {
    vault.close();
  }
}

async function restartCommand(call: Call): Promise<number> {
  const { restartLogOf } = await import('./restart-log.ts');
  const file = call.options['config']?.[0];
  const config = loadConfig({ home: call.home, file: file === undefined ? null : resolve(file), env: call.env });
  const { origin, predecessor, had, carried, movedAside } = await restartLogOf(call.home, config, call.env);
  if (call.flags.has('json')) process.stdout.write(`${JSON.stringify({ origin, predecessor: { origin: predecessor.origin, size: predecessor.size, root: predecessor.root.toString('base64') }, had, carried, moved_aside: movedAside })}\n`);
  else {
    process.stdout.write(`${origin} begins; it names ${predecessor.origin} with ${count(predecessor.size)} entries, of which the database has ${count(had)}\n`);
    if (carried > 0) process.stdout.write(`${count(carried)} writers go on in it\n`);
    for (const path of movedAside) process.stdout.write(`moved aside: ${path}\n`);
  }
  return 0;
}

/** Writes a file whole or not at all. */
async function writeWhole(path: string, text: string): Promise<void> {
  // Renamed over a device or a pipe, a file would take its place.
  if ((await stat(path).catch(() => null))?.isFile() === false) {
    await writeFile(path, text);
    return;
  }
  const temporary = `${path}.${process.pid}.new`;
  const file = await open(temporary, 'w', 0o640);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
}
