import t from 'tap';
import { exportLog } from '../../../audit/export.ts';
import { logSource, logTarget } from '../../../audit/log-source.ts';
import { httpsFiles } from '../../../platform-adapters/client/https-log.ts';
import { serveLog } from '../../support/log-server.ts';
import { makeLog, MemoryFiles } from '../../support/made-log.ts';
import { testPki } from '../../support/pki.ts';

t.test('a whole log comes over a few connections that stay open', async (t) => {
  const pki = testPki(t);
  const log = await makeLog(256 * 30);
  const server = await serveLog(t, pki, log.files);
  const files = httpsFiles({ url: server.url, ...pki.credentials('auditor'), ca: pki.credentials('ca').cert, connections: 4 });
  t.teardown(() => files.close());
  const copy = new MemoryFiles();
  await exportLog(logSource(files), logTarget(copy), { verifiers: [log.verifier] });
  for (const [path, bytes] of log.files.files) if (copy.files.get(path)?.equals(bytes) !== true) t.fail(path);
  t.ok(server.asked.length > 60);
  t.ok(server.connections <= 4, `${server.connections} connections`);
});

t.test('what is not there is null, and what is not right is one line that names it', async (t) => {
  const pki = testPki(t);
  const log = await makeLog(300);
  const server = await serveLog(t, pki, log.files);
  const ca = pki.credentials('ca').cert;
  const files = httpsFiles({ url: server.url, ...pki.credentials('auditor'), ca, timeoutMs: 300 });
  t.teardown(() => files.close());
  t.ok((await files.read('checkpoint', 1000))?.equals(log.files.files.get('checkpoint')!));
  t.equal(await files.read('tile/0/999', 1000), null);
  await t.rejects(files.read('tile/0/000', 8191), { message: `${server.url}/audit/tile/0/000: is larger than it can be` });
  server.instead = (_, response) => (response.writeHead(403).end('{}'), true);
  await t.rejects(files.read('checkpoint', 1000), { message: `${server.url}/audit/checkpoint: the vault does not let this certificate read the log (403)` });
  server.instead = (_, response) => (response.writeHead(302, { location: '/' }).end(), true);
  await t.rejects(files.read('checkpoint', 1000), { message: `${server.url}/audit/checkpoint: the vault answered 302` });

  let faults = 0;
  server.instead = (_, response) => {
    faults += 1;
    if (faults === 1) return (response.writeHead(503).end(), true);
    if (faults === 2) return (response.writeHead(200, { 'content-length': '300' }).write('cut'), setTimeout(() => response.destroy(), 20), true);
    return false;
  };
  t.ok((await files.read('checkpoint', 1000))?.equals(log.files.files.get('checkpoint')!), 'a refusal for now and a lost connection are tried again');
  t.equal(faults, 3);
  const asked = server.asked.length;
  server.instead = () => true;
  await t.rejects(files.read('checkpoint', 1000), { message: `${server.url}: cannot be reached (ETIMEDOUT)` }, 'silence ends');
  t.equal(server.asked.length - asked, 4);
});

t.test('each side must be who it says', async (t) => {
  const pki = testPki(t);
  const other = testPki(t);
  const log = await makeLog(300);
  const server = await serveLog(t, pki, log.files);
  const ca = pki.credentials('ca').cert;
  for (const options of [{ ...pki.credentials('auditor'), ca: other.credentials('ca').cert }, { ...other.credentials('auditor'), ca }]) {
    const files = httpsFiles({ url: server.url, ...options });
    await t.rejects(files.read('checkpoint', 1000), { message: /^https:\/\/127\.0\.0\.1:\d+: (?:no connection that both sides trust \([A-Z_0-9]+\): are these the vault's authority and an auditor's certificate\?|hangs up: it may not take this certificate)$/u });
    files.close();
  }
  const files = httpsFiles({ url: 'https://127.0.0.1:1', ...pki.credentials('auditor'), ca });
  await t.rejects(files.read('checkpoint', 1000), { message: 'https://127.0.0.1:1: cannot be reached (ECONNREFUSED)' });
  for (const url of ['', 'http://127.0.0.1:8444', 'https://127.0.0.1:8444/audit', 'https://me@127.0.0.1', '127.0.0.1:8444'])
    t.throws(() => httpsFiles({ url, ...pki.credentials('auditor'), ca }), { message: 'the URL of the vault is to look like https://127.0.0.1:8444' });
});
