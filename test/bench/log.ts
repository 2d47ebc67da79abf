/**
 * Measures the log by itself: batches of realistic entries are put into a fresh PostgreSQL by the writers' own code, then sequenced, exported, verified
 * and searched, one after the other, with the processor time of this process and of PostgreSQL apart.
 */
import { generateKeyPairSync, sign } from 'node:crypto';
import { spawn } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Client, Pool } from 'pg';
import { WriterChain } from '../../audit/append.ts';
import { directoryFiles } from '../../audit/directory-log.ts';
import type { Entry } from '../../audit/entry.ts';
import { exportLog } from '../../audit/export.ts';
import { readBundle, searchLog } from '../../audit/log-reader.ts';
import type { LogQuery } from '../../audit/log-reader.ts';
import { logTarget } from '../../audit/log-source.ts';
import type { LogSource } from '../../audit/log-source.ts';
import { encodeVkey, parseVkey } from '../../audit/note.ts';
import type { NoteSigner } from '../../audit/note.ts';
import { Sequencer } from '../../audit/sequencer.ts';
import { postgresTreeStore, readCheckpoint, readHead, readTile } from '../../audit/tree-store.ts';
import { startEmbedded } from '../../platform-adapters/postgres/embedded.ts';
import { connectionFor } from '../../platform-adapters/postgres/connect.ts';
import { migrate } from '../../platform-adapters/postgres/migrate.ts';
import { ensureRoles } from '../../platform-adapters/postgres/roles.ts';
import { cpuSeconds, findGroup } from './processes.ts';

export const logHelp = `npm run bench -- --log N [--batch N]

  --log N     entries of calls that are sequenced, exported, verified and searched
  --batch N   entries in a batch (32, as 64 connections make them)
  --keep      leaves the temporary folder, with the export`;

export const isLogBench = (args: readonly string[]): boolean => args.some((arg) => arg === '--log' || arg.startsWith('--log='));

const origin = 'cofre.bench/log';
const callers = Array.from({ length: 20 }, (_, index) => `spiffe://cofre.dev/tenant/t${index % 5}/service/s${index}`);
const maxEntriesInTransaction = 6400;

const progress = (line: string): void => void process.stderr.write(`${line}\n`);

/** The n-th entry: every third makes a token, and the others name the one that it made. */
function entryOf(n: number, at: Date): Entry {
  const call = n % 3;
  const token = tokenOf(n - call);
  return {
    action: call === 0 ? 'tokenize' : call === 1 ? 'validate' : 'detokenize',
    at,
    caller: callers[n % callers.length]!,
    from: '10.1.2.3',
    outcome: n % 50 === 49 ? 'refused' : 'allowed',
    ...(n % 50 === 49 ? { code: 'quota_exceeded' } : {}),
    policies: ['checkout-tokenizes'],
    ...(call === 2 ? { purpose: 'authorization', reference: `order-${n}` } : {}),
    request: `00000000-0000-4000-8000-${String(n).padStart(12, '0')}`,
    serial: 'cd6f8ee804378ac5acb6175a67126dd4',
    tenant: `t${n % 5}`,
    tokens: { [call === 0 ? 'created' : 'active']: [token] },
  };
}

const tokenOf = (n: number): string => `tok_bench${String(n).padStart(27, '0')}`;

/** @returns the exit code. */
export async function runLogBench(args: readonly string[], stack: AsyncDisposableStack): Promise<number> {
  const { values } = parseArgs({ args: [...args], options: { log: { type: 'string' }, batch: { type: 'string' }, keep: { type: 'boolean' }, help: { type: 'boolean' } } });
  const entries = Number(values.log);
  const batchSize = Number(values.batch ?? '32');
  if (values.help === true || !Number.isInteger(entries) || entries < 1 || !Number.isInteger(batchSize) || batchSize < 1) {
    console.log(logHelp);
    return values.help === true ? 0 : 2;
  }
  const folder = mkdtempSync(join(tmpdir(), 'cofre-log-bench-'));
  chmodSync(folder, 0o755);
  stack.defer(() => (values.keep === true ? progress(`left: ${folder}`) : rmSync(folder, { recursive: true, force: true })));
  const postgres = await startEmbedded({ folder: join(folder, 'postgres'), database: 'cofre', settings: { max_wal_size: '4GB' } });
  stack.defer(() => postgres.stop());
  const rolesFile = join(folder, 'roles.json');
  const owner = new Client({ connectionString: postgres.adminUrl });
  await owner.connect();
  stack.defer(() => owner.end());
  await ensureRoles(owner, { database: 'cofre', file: rolesFile });
  await migrate(owner, { database: 'cofre' });
  const { privateKey, publicKey } = generateKeyPairSync('ed25519');
  const signer: NoteSigner = { algorithm: 'ed25519', publicKeySpki: publicKey.export({ format: 'der', type: 'spki' }), sign: async (message) => sign(null, message, privateKey) };
  const vkey = encodeVkey(origin, 'ed25519', signer.publicKeySpki);

  const used = (): { own: number; postgres: number } => ({ own: process.cpuUsage().user / 1e6 + process.cpuUsage().system / 1e6, postgres: cpuSeconds(findGroup(process.pid, folder).postgres) });
  const measure = async (name: string, work: () => Promise<void>): Promise<void> => {
    const before = used();
    const began = performance.now();
    await work();
    const seconds = (performance.now() - began) / 1000;
    const after = used();
    console.log(`${name.padEnd(12)} ${Math.round(entries / seconds).toLocaleString('en')} entries/s, ${seconds.toFixed(1)} s; processor ${(after.own - before.own).toFixed(1)} s here, ${(after.postgres - before.postgres).toFixed(1)} s PostgreSQL; ${Math.round(process.memoryUsage.rss() / 2 ** 20)} MiB`);
  };

  await measure('write', () => write(connectionFor('tokenize', { adminUrl: postgres.adminUrl, file: rolesFile }), signer, entries, batchSize));
  await owner.query('VACUUM ANALYZE batches');
  await owner.query('CHECKPOINT');

  const pool = new Pool({ ...connectionFor('sequencer', { adminUrl: postgres.adminUrl, file: rolesFile }), max: 2 });
  stack.defer(() => pool.end());
  const sequencer = new Sequencer({ store: postgresTreeStore(pool), signer, name: origin, witnesses: [], alert: async (kind, detail) => progress(`ALERT ${kind} ${JSON.stringify(detail)}`), now: () => new Date() });
  await measure('sequence', async () => {
    let done = 0;
    for (let told = 0; ; ) {
      const { leaves, more } = await sequencer.step();
      done += leaves;
      if (done - told > 1_000_000) progress(`  ${(told = done).toLocaleString('en')} leaves`);
      if (!more && leaves === 0) break;
    }
    await sequencer.sign();
  });
  await owner.query('VACUUM ANALYZE log_batches, log_tokens, log_facets, log_tiles');

  const copy = join(folder, 'export');
  await measure('export', async () => {
    await exportLog(sourceOf(pool), logTarget(directoryFiles(copy)), { verifiers: [parseVkey(vkey)] });
  });
  writeFileSync(join(folder, 'vkey'), `${vkey}\n`);
  await measure('verify', () => verify(copy, join(folder, 'vkey')));

  const reader = new Client(connectionFor('admin', { adminUrl: postgres.adminUrl, file: rolesFile }));
  await reader.connect();
  stack.defer(() => reader.end());
  const head = (await readHead(reader))!;
  const searches: readonly (readonly [string, (n: number) => Omit<LogQuery, 'limit'>])[] = [
    ['token', (n) => ({ token: tokenOf((n * 7919 * 3) % (entries - (entries % 3))) })],
    ['caller', (n) => ({ caller: callers[n % callers.length]! })],
    ['caller, refused', (n) => ({ caller: callers[n % callers.length]!, outcome: 'refused' })],
    ['caller, deep', (n) => ({ caller: callers[n % callers.length]!, before: Math.floor(head.size / 2) })],
    ['nobody', () => ({ caller: 'spiffe://cofre.dev/tenant/none/service/none' })],
  ];
  for (const [name, query] of searches) {
    const ms: number[] = [];
    let found = 0;
    for (let n = 0; n < 200; n += 1) {
      const began = performance.now();
      found += (await searchLog(reader, head.logId, head.size, { ...query(n), limit: 100 })).items.length;
      ms.push(performance.now() - began);
    }
    ms.sort((a, b) => a - b);
    console.log(`search ${name}: p50 ${ms[100]!.toFixed(1)} ms, p99 ${ms[197]!.toFixed(1)} ms, ${(found / 200).toFixed(1)} entries each`);
  }
  const { rows } = await owner.query<{ name: string; size: string }>("SELECT relname AS name, pg_size_pretty(pg_total_relation_size(oid)) AS size FROM pg_class WHERE relname IN ('batches', 'log_batches', 'log_tiles', 'log_tokens', 'log_facets') ORDER BY 1");
  console.log(`tables: ${rows.map(({ name, size }) => `${name} ${size}`).join(', ')}`);
  return 0;
}

async function write(connection: ConstructorParameters<typeof Client>[0] & object, signer: NoteSigner, entries: number, batchSize: number): Promise<void> {
  const client = new Client({ ...connection, pipeline: true });
  await client.connect();
  try {
    const now = new Date();
    const chain = await WriterChain.start({ role: 'tokenize', origin, signer, now });
    const start = chain.form([{ action: 'writer.start', at: now, outcome: 'allowed', detail: { name: 'bench', writer: chain.name } }], now);
    await client.query('BEGIN');
    await chain.register(client);
    await chain.append(client, start);
    await client.query('COMMIT');
    chain.committed(start);
    for (let n = 0; n < entries; ) {
      const answers: Promise<unknown>[] = [client.query('BEGIN')];
      for (const end = Math.min(entries, n + maxEntriesInTransaction); n < end; ) {
        const at = new Date();
        const batch = chain.form(Array.from({ length: Math.min(batchSize, end - n) }, (_, index) => entryOf(n + index, at)), at);
        answers.push(chain.append(client, batch));
        chain.committed(batch);
        n += batch.entryCount;
      }
      answers.push(client.query('COMMIT'));
      await Promise.all(answers);
      if (n % (maxEntriesInTransaction * 200) === 0) progress(`  ${n.toLocaleString('en')} entries written`);
    }
  } finally {
    await client.end();
  }
}

function sourceOf(pool: Pool): LogSource {
  const head = readHead(pool);
  return {
    checkpoint: async () => await readCheckpoint(pool, (await head)!.logId),
    tile: async ({ level, index, width }) => (await readTile(pool, (await head)!.logId, level, index))?.subarray(0, width * 32) ?? null,
    bundle: async ({ index, width }) => await readBundle(pool, (await head)!.logId, index, width),
  };
}

/** In a process of its own, as an assessor would. */
async function verify(copy: string, vkeyFile: string): Promise<void> {
  const child = spawn(process.execPath, [join(import.meta.dirname, '../../vault/bin/cofre.ts'), 'audit', 'verify', copy, '--vkey', vkeyFile], { stdio: ['ignore', 'inherit', 'inherit'] });
  let peak = 0;
  const sampler = setInterval(() => {
    try {
      peak = Math.max(peak, Number(/^VmHWM:\s+(\d+) kB$/mu.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1] ?? 0));
    } catch {
      // It has ended.
    }
  }, 200);
  const code = await new Promise<number | null>((done) => child.once('exit', done));
  clearInterval(sampler);
  console.log(`             at most ${Math.round(peak / 1024)} MiB resident, exit code ${code}`);
  if (code !== 0) throw new Error('the export does not verify');
}
