/** `cofre audit …` as an auditor meets it: a vault that serves its log, folders, buckets, files with keys and checkpoints. */
import { spawn } from 'node:child_process';
import { appendFileSync, lstatSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import t from 'tap';
import { signCheckpoint } from '../../audit/checkpoint.ts';
import { directoryFiles } from '../../audit/directory-log.ts';
import { decodeBundle, encodeEntry } from '../../audit/entry.ts';
import { encodeVkey } from '../../audit/note.ts';
import { auditCommands } from '../support/audit-commands.ts';
import { serveLog } from '../support/log-server.ts';
import { MadeLog, makeLog, makeSigner, MemoryFiles } from '../support/made-log.ts';
import { testPki } from '../support/pki.ts';
import { serveS3 } from '../support/s3-server.ts';

const root = resolve(import.meta.dirname, '../..');
const makeVkey = (): string => encodeVkey('cofre.test/log', 'ed25519', makeSigner().publicKeySpki);

const audit = auditCommands(t);

t.test('the launcher runs them', async (t) => {
  const child = spawn(process.execPath, [join(root, 'docker/cofre.js'), 'audit', 'check-proof', '/nowhere', '--vkey', makeVkey()], { stdio: ['ignore', 'pipe', 'pipe'] });
  let err = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
  const code = await new Promise<number | null>((done, failed) => child.once('error', failed).once('close', done));
  t.same({ code, err }, { code: 1, err: 'cofre: /nowhere: cannot be read (ENOENT)\n' });
});

t.test('help is on standard output with exit code 0, and what is not understood is one line with 2', async (t) => {
  const usage = await audit(['--help']);
  t.match(usage, { code: 0, err: '' });
  t.match(usage.out, /^cofre audit <command> \[options\]\n\n[A-Z]/u);
  for (const command of ['export', 'verify', 'search', 'prove', 'check-proof', 'vkey', 'restart']) {
    t.match(usage.out, new RegExp(`^ {2}${command} +\\S`, 'mu'));
    const help = await audit([command, '--help']);
    t.match(help, { code: 0, err: '' });
    t.match(help.out, new RegExp(`^cofre audit ${command} [^\n]*\n\n[A-Z]`, 'u'));
  }
  t.match(await audit([]), { code: 2, out: usage.out, err: '' });
  for (const name of ['nonsense', 'constructor', '']) t.same(await audit([name]), { code: 2, out: '', err: 'cofre audit: there is no command of that name; cofre audit --help lists them\n' });
  const cases: readonly (readonly [args: readonly string[], line: string])[] = [
    [['verify', 'x', '--nonsense'], 'cofre audit verify: an option is not understood; cofre audit verify --help lists them'],
    [['vkey', '--json'], 'cofre audit vkey: an option is not understood; cofre audit vkey --help lists them'],
    [['verify'], 'cofre audit verify: DIR|s3://BUCKET/PREFIX is needed'],
    [['prove'], 'cofre audit prove: INDEX is needed'],
    [['check-proof', ''], 'cofre audit check-proof: a name is empty'],
    [['export', 'a', 'b'], 'cofre audit export: more is given than it takes'],
    [['verify', 'x'], 'cofre audit verify: --vkey KEY is needed: the public key of the log, got from the vault\'s owner'],
    [['verify', 'x', '--vkey='], 'cofre audit verify: --vkey is empty'],
    [['verify', 'x', '--vkey', 'a', '--vkey', 'b'], 'cofre audit verify: --vkey is given twice'],
    [['verify', 'x', '--vkey', '/nowhere'], 'cofre audit verify: --vkey is neither a public key nor a file that can be read (ENOENT)'],
    [['prove', '-1'], 'cofre audit prove: an option is not understood; cofre audit prove --help lists them'],
    [['prove', '1.5'], 'cofre audit prove: INDEX is to be the number of an entry, from 0 on'],
    [['search', '--from', '2026-02-31'], 'cofre audit search: --from is no time of UTC that there is, like 2026-11-25 or 2026-11-25T10:00:00Z'],
    [['search', '--to', '2026-11-25 10:00'], 'cofre audit search: --to is no time of UTC that there is, like 2026-11-25 or 2026-11-25T10:00:00Z'],
    [['prove', '1', '--from', 'https://127.0.0.1'], 'cofre audit prove: a copy is in a folder, or in a bucket as s3://bucket/prefix'],
  ];
  for (const [args, line] of cases) t.same(await audit(args), { code: 2, out: '', err: `${line}\n` }, args.join(' '));
});

t.test('a log is exported, again when it has grown, and verified with nothing but its key', async (t) => {
  const pki = testPki(t);
  const log = await makeLog(1500, { at: [700] });
  const served = new MemoryFiles();
  for (const [path, bytes] of log.files.files) served.files.set(path, bytes);
  served.files.set('vkey', Buffer.from(`${log.vkey}\n`));
  served.files.set('checkpoint', Buffer.from(log.checkpoints[0]!));
  const server = await serveLog(t, pki, served);
  const folder = t.testdir({ home: {} });
  const copy = join(folder, 'copy');
  const vault = ['--url', server.url, '--cert', pki.path('auditor.pem'), '--key', pki.path('auditor.key'), '--ca', pki.path('ca.pem')];
  t.same(await audit(['vkey', ...vault]), { code: 0, out: `${log.vkey}\n`, err: '' });
  t.same(await audit(['export', copy, ...vault]), { code: 0, out: `${copy}: 700 entries of cofre.test/log, 700 of them new\n`, err: '' });
  const kept = join(folder, 'kept');
  writeFileSync(kept, readFileSync(join(copy, 'checkpoint')));
  served.files.set('checkpoint', Buffer.from(log.checkpoints[1]!));
  const again = await audit(['export', copy, ...vault, '--json']);
  t.match({ ...again, out: JSON.parse(again.out) as unknown }, { code: 0, err: '', out: { origin: 'cofre.test/log', size: 1500, added: 800, target: copy } });
  t.same(await audit(['export', copy, ...vault, '--vkey', log.vkey]), { code: 0, out: `${copy}: 1,500 entries of cofre.test/log, as before\n`, err: '' });
  t.equal(readFileSync(join(copy, 'vkey'), 'utf8'), `${log.vkey}\n`);

  const key = join(folder, 'key');
  writeFileSync(key, `${log.vkey}\n`);
  const witness = join(folder, 'checkpoints-2026-01.jsonl');
  writeFileSync(witness, `${log.checkpoints.map((note) => JSON.stringify({ at: 'x', note })).join('\n')}\n{"at":"x","no`);
  const clean = await audit(['verify', copy, '--vkey', key, '--checkpoint', kept, '--checkpoint', witness]);
  t.match(clean, { code: 0, err: '' });
  t.match(clean.out, new RegExp(`^continues ${kept}\ncontinues ${witness}\n${copy}: 1,500 entries of cofre.test/log, \\d+ batches of \\d+ writers: all in order \\(\\d+\\.\\d s\\)\n$`, 'u'));
  t.match(await audit(['verify', copy, '--vkey', log.vkey]), { code: 0, err: '', out: /all in order .*\nwhether its end was cut off only an older checkpoint would tell \(--checkpoint\)\n$/u });
  // A month of checkpoints under full load is longer than a string can be.
  truncateSync(witness, 700_000_000);
  appendFileSync(witness, `\n${JSON.stringify({ at: 'x', note: log.checkpoints[1]! })}\n`);
  t.match(await audit(['verify', copy, '--vkey', key, '--checkpoint', witness]), { code: 0, err: '', out: new RegExp(`^continues ${witness}\n`, 'u') });
  const json = await audit(['verify', copy, '--vkey', key, '--json']);
  t.match({ ...json, out: JSON.parse(json.out) as unknown }, { code: 0, out: { holds: true, size: 1500, origin: 'cofre.test/log', findings: [], found: 0 } });

  // By the default certificate of a home, and its port.
  t.match(await audit(['vkey', '--home', pki.directory], { COFRE_ADMIN_PORT: String(server.port) }), { code: 1, out: '', err: new RegExp(`^cofre: ${pki.directory}/pki/auditor.pem: cannot be read \\(ENOENT\\): --cert names another\n$`, 'u') });
  const refused = await audit(['export', copy, ...vault, '--vkey', encodeVkey(log.base, 'ed25519', makeSigner().publicKeySpki)]);
  t.match(refused, { code: 1, out: '', err: /^cofre: the checkpoint of the copy is not signed by this log's key: it is a copy of another log, or damaged\n$/u });
  t.match(await audit(['export', copy, ...vault, '--url', 'https://127.0.0.1:1'].filter((word, at, all) => !(word === '--url' && all.indexOf(word) === at) && word !== server.url)), { code: 1, out: '', err: 'cofre: https://127.0.0.1:1: cannot be reached (ECONNREFUSED)\n' });

  const bundle = join(copy, 'tile/entries/002');
  const bytes = readFileSync(bundle);
  const changed = bytes.lastIndexOf('"tenant":"acme"');
  bytes.write('emca', changed + 10);
  const index = 512 + decodeBundle(bytes.subarray(0, bytes.lastIndexOf('{"action"', changed) - 2)).length;
  writeFileSync(bundle, bytes);
  rmSync(join(copy, 'tile/0/004'));
  const found = await audit(['verify', copy, '--vkey', key]);
  t.match(found, { code: 1, err: '' });
  t.match(found.out, new RegExp(`^batch_signature: .*\nentry_changed: entry ${index} in tile/entries/002 is not the one that the log signs\ntile_missing: tile/0/004 is missing\n.*: 3 findings \\(\\d+\\.\\d s\\)\n$`, 'u'));
  t.match(JSON.parse((await audit(['verify', copy, '--vkey', key, '--json'])).out), { holds: false, found: 3, findings: [{ code: 'batch_signature' }, { code: 'entry_changed', entry: index, to: index, file: 'tile/entries/002' }, { code: 'tile_missing' }] });
  t.match(await audit(['verify', join(folder, 'nothing'), '--vkey', key]), { code: 1, out: /^checkpoint_missing: there is no checkpoint/u, err: '' });
});

t.test('alerts that a log holds are told of, and change nothing about it', async (t) => {
  const log = await MadeLog.start();
  const writer = await log.writer();
  const alert = (reason?: string): Buffer => encodeEntry({ action: 'log.alert', at: new Date('2026-01-02T03:04:05.678Z'), outcome: 'failed', detail: { kind: 'archive', ...(reason === undefined ? {} : { reason }) } });
  const first = log.batch(writer, [alert('a bundle is gone')]) + 1;
  await log.publish();
  const folder = t.testdir();
  const copy = directoryFiles(folder);
  const publish = async (): Promise<void> => {
    for (const [path, bytes] of log.files.files) await copy.replace(path, bytes);
  };
  await publish();
  const one = await audit(['verify', folder, '--vkey', log.vkey]);
  t.match(one, { code: 0, err: '' });
  t.match(one.out, new RegExp(`^tells of 1 alert of the vault's own:\n  entry ${first}, 2026-01-02T03:04:05.678Z: archive: a bundle is gone\n.*: all in order`, 'u'));
  for (let n = 0; n < 6; n += 1) log.batch(writer, [alert()]);
  await log.publish();
  await publish();
  const all = await audit(['verify', folder, '--vkey', log.vkey]);
  t.match(all.out, /^tells of 7 alerts of the vault's own:\n(?: {2}entry \d+, .*\n){5} {2}… and 2 more \(cofre audit search --action log\.alert\)\n.*: all in order/u);
  t.match(JSON.parse((await audit(['verify', folder, '--vkey', log.vkey, '--json'])).out), { holds: true, alerts: { count: 7, first: [{ index: first, at: '2026-01-02T03:04:05.678Z', kind: 'archive', reason: 'a bundle is gone' }] } });
});

t.test('one entry is proven from the vault or from a copy, and the proof holds by itself', async (t) => {
  const pki = testPki(t);
  const log = await makeLog(1500);
  log.files.files.set('vkey', Buffer.from(log.vkey));
  const server = await serveLog(t, pki, log.files);
  const folder = t.testdir({});
  const copy = join(folder, 'copy');
  const vault = ['--url', server.url, '--cert', pki.path('auditor.pem'), '--key', pki.path('auditor.key'), '--ca', pki.path('ca.pem')];
  t.match(await audit(['export', copy, ...vault]), { code: 0 });
  const file = join(folder, 'one.tlog-proof');
  t.same(await audit(['prove', '777', '--from', copy, '--out', file]), { code: 0, out: `${file}: the proof of entry 777\n`, err: '' });
  const printed = await audit(['prove', '777', ...vault]);
  t.same(printed, { code: 0, out: readFileSync(file, 'utf8'), err: '' }, 'the same from either');
  const checked = await audit(['check-proof', file, '--vkey', log.vkey]);
  t.match(checked, { code: 0, err: 'is entry 777 of cofre.test/log, under a checkpoint of 1,500 entries\n' });
  t.match(JSON.parse(checked.out), { v: 1 });
  t.match(JSON.parse((await audit(['check-proof', file, '--vkey', log.vkey, '--json'])).out), { index: 777, size: 1500, origin: 'cofre.test/log', entry: checked.out.trimEnd() });
  const link = join(folder, 'link');
  symlinkSync('/dev/null', link);
  t.same(await audit(['prove', '777', '--from', copy, '--out', link]), { code: 0, out: `${link}: the proof of entry 777\n`, err: '' });
  t.ok(lstatSync(link).isSymbolicLink(), 'what is no file is written to, and stays what it was');
  t.match(await audit(['check-proof', '/dev/zero', '--vkey', log.vkey]), { code: 1, out: '', err: 'cofre: /dev/zero: cannot be read (EFBIG)\n' });
  const stranger = encodeVkey(log.base, 'ed25519', makeSigner().publicKeySpki);
  t.same(await audit(['check-proof', file, '--vkey', stranger]), { code: 1, out: '', err: `cofre: ${file}: does not hold: the checkpoint is not signed by a known key in the name of its log\n` });
  const passed: number[] = [];
  const text = readFileSync(file);
  const flipped = join(folder, 'flipped');
  for (let at = 0; at < text.length; at += Math.ceil(text.length / 12)) {
    const changed = Buffer.from(text);
    changed[at]! ^= 1;
    writeFileSync(flipped, changed);
    const { code, out } = await audit(['check-proof', flipped, '--vkey', log.vkey]);
    if (code !== 1 || out !== '') passed.push(at);
  }
  t.same(passed, []);
  t.match(await audit(['prove', '1500', '--from', copy]), { code: 1, out: '', err: 'cofre: the log has 1,500 entries under a checkpoint, so there is no entry 1500 yet\n' });
  t.match(await audit(['prove', '7', '--from', copy, '--vkey', stranger]), { code: 1, out: '', err: 'cofre: the checkpoint is not signed by the log\'s key\n' });
  rmSync(join(copy, 'tile/entries/000'));
  t.match(await audit(['prove', '7', '--from', copy]), { code: 1, out: '', err: 'cofre: the log does not hold entry 7 any more: a copy does\n' });
  writeFileSync(join(copy, 'tile/entries/000'), log.files.files.get('tile/entries/001')!);
  t.match(await audit(['prove', '7', '--from', copy]), { code: 1, out: '', err: 'cofre: entry 7 is not what the checkpoint signs: cofre audit verify tells what is wrong\n' });
  t.match(await audit(['check-proof', join(copy, 'vkey'), '--vkey', log.vkey]), { code: 1, out: '', err: `cofre: ${copy}/vkey: is not a proof\n` });
});

t.test('a copy in a bucket is made, verified and proven from', async (t) => {
  const pki = testPki(t);
  const log = await makeLog(300);
  log.files.files.set('vkey', Buffer.from(log.vkey));
  const server = await serveLog(t, pki, log.files);
  const bucket = await serveS3(t);
  const env = { AWS_ENDPOINT_URL_S3: bucket.url, AWS_ACCESS_KEY_ID: 'made', AWS_SECRET_ACCESS_KEY: 'for a test', AWS_EC2_METADATA_DISABLED: 'true' };
  const vault = ['--url', server.url, '--cert', pki.path('auditor.pem'), '--key', pki.path('auditor.key'), '--ca', pki.path('ca.pem')];
  t.same(await audit(['export', 's3://logs/one', ...vault], env), { code: 0, out: 's3://logs/one: 300 entries of cofre.test/log, 300 of them new\n', err: '' });
  t.match(await audit(['verify', 's3://logs/one', '--vkey', log.vkey], env), { code: 0, err: '', out: /all in order/u });
  t.match(await audit(['prove', '7', '--from', 's3://logs/one'], env), { code: 0, err: '', out: /^c2sp\.org\/tlog-proof@v1\n/u });
});

t.test('the second log of a vault is verified with the key of the first, and has a vkey of its own name', async (t) => {
  const pki = testPki(t);
  const first = await makeLog(300);
  const second = await MadeLog.start({ logId: 2, signer: first.signer, predecessor: { origin: first.origin, size: first.size, root: first.root() } });
  await second.writer({ predecessor: first.writers[0]! });
  await second.publish();
  const vkey = encodeVkey(second.origin, 'ed25519', second.signer.publicKeySpki);
  second.files.files.set('vkey', Buffer.from(first.vkey));
  const server = await serveLog(t, pki, second.files);
  const folder = t.testdir({ end: first.checkpoints[0]! });
  const copy = join(folder, 'copy');
  const vault = ['--url', server.url, '--cert', pki.path('auditor.pem'), '--key', pki.path('auditor.key'), '--ca', pki.path('ca.pem')];
  t.match(await audit(['export', copy, ...vault]), { code: 0, out: `${copy}: 3 entries of cofre.test/log/2, 3 of them new\n` });
  t.equal(readFileSync(join(copy, 'vkey'), 'utf8'), `${vkey}\n`);
  for (const key of [vkey, first.vkey]) t.match(await audit(['verify', copy, '--vkey', key, '--checkpoint', join(folder, 'end')]), { code: 0, out: new RegExp(`^continues ${folder}/end\n1 of the writers follow`, 'u') });

  // A witness file of the month in which the second log was begun tells of the first one too, and of what the charter passed over.
  const witness = join(folder, 'checkpoints-2026-01.jsonl');
  const witnessed = (...notes: string[]): void => writeFileSync(witness, notes.map((note) => `${JSON.stringify({ at: 'x', note })}\n`).join(''));
  witnessed(first.checkpoints[0]!, second.checkpoints[0]!);
  t.match(await audit(['verify', copy, '--vkey', vkey, '--checkpoint', witness]), { code: 0, out: new RegExp(`^continues ${witness}\ncontinues ${witness} \\(cofre\\.test/log\\)\n`, 'u') });
  const beyond = await signCheckpoint({ origin: first.origin, size: 310, root: Buffer.alloc(32, 7) }, first.signer);
  witnessed(first.checkpoints[0]!, beyond, first.checkpoints[0]!, second.checkpoints[0]!);
  t.match(await audit(['verify', copy, '--vkey', vkey, '--checkpoint', witness]), { code: 1, out: new RegExp(`^older_checkpoint_ahead: ${witness} \\(cofre\\.test/log\\): has 310 entries, but the charter of the log names cofre\\.test/log as ended with 300: entries 300 to 309 of it were passed over\n`, 'u') });
});

t.test('whoever hangs up in the midst of an answer is told nothing, and what was looked for is not repeated in a message', async (t) => {
  const pki = testPki(t);
  const server = await serveLog(t, pki, new MemoryFiles());
  const vault = ['--url', server.url, '--cert', pki.path('auditor.pem'), '--key', pki.path('auditor.key'), '--ca', pki.path('ca.pem')];
  server.instead = (path, response) => {
    if (path.includes('token=')) response.writeHead(422).end();
    else response.writeHead(200).end(JSON.stringify({ items: Array.from({ length: 1000 }, (_, index) => ({ index, entry: { text: 'x'.repeat(1000) } })), next: 1 }));
    return true;
  };
  t.same(await audit(['search', '--token', '4111111111111111', ...vault]), { code: 1, out: '', err: `cofre: ${server.url}/audit/search: the vault answered 422\n` });
  const child = spawn(process.execPath, [join(root, 'docker/cofre.js'), 'audit', 'search', '--limit', '1000000', ...vault], { stdio: ['ignore', 'pipe', 'pipe'] });
  let err = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
  child.stdout.once('data', () => child.stdout.destroy());
  t.equal(await new Promise((done) => child.once('close', done)), 1);
  t.equal(err, '');
});
