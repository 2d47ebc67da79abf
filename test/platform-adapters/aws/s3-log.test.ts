import t from 'tap';
import { exportLog } from '../../../audit/export.ts';
import { verifyLog } from '../../../audit/fsck.ts';
import { logSource, logTarget } from '../../../audit/log-source.ts';
import { s3Files } from '../../../platform-adapters/aws/s3-log.ts';
import { makeLog } from '../../support/made-log.ts';
import { s3Error, serveS3 } from '../../support/s3-server.ts';

// The SDK reads the process's environment; nothing of the machine's is to reach it.
for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name];
Object.assign(process.env, { AWS_ACCESS_KEY_ID: 'made', AWS_SECRET_ACCESS_KEY: 'for a test', AWS_EC2_METADATA_DISABLED: 'true', AWS_CONFIG_FILE: '/dev/null', AWS_SHARED_CREDENTIALS_FILE: '/dev/null' });

t.test('a copy in a bucket grows, is read back and verified, and what is written once is put so', async (t) => {
  const server = await serveS3(t);
  process.env['AWS_ENDPOINT_URL_S3'] = server.url;
  const log = await makeLog(1500, { at: [700] });
  const files = s3Files('s3://logs/vault/one', process.env);
  t.teardown(() => files.close());
  const target = logTarget(files);
  for (const note of log.checkpoints) await exportLog({ ...log.target, checkpoint: async () => note }, target, { verifiers: [log.verifier] });
  for (const [path, bytes] of log.files.files) t.ok(server.objects.get(`/logs/vault/one/${path}`)?.equals(bytes), path);
  t.match(await verifyLog(logSource(files), { vkey: log.verifier, olderCheckpoints: [{ name: 'old', note: log.checkpoints[0]! }] }), { holds: true, continued: ['old'] });
  for (const { method, path, ifNoneMatch, signed } of server.requests) if (!signed || (method === 'PUT' && (ifNoneMatch === '*') === path.endsWith('/checkpoint'))) t.fail(`${method} ${path}`);
  await t.rejects(target.put('tile/0/000', Buffer.alloc(8192)), { message: 'tile/0/000: the copy holds something else there, which is never overwritten' });
  t.equal(await files.read('tile/0/999', 10), null);
  await t.rejects(files.read('tile/0/000', 10), { message: 's3://logs/vault/one/tile/0/000: is larger than it can be' });
});

t.test('a put whose answer is lost is found to be done, and one that meets another is repeated', async (t) => {
  const server = await serveS3(t);
  process.env['AWS_ENDPOINT_URL_S3'] = server.url;
  const files = s3Files('s3://logs', process.env);
  t.teardown(() => files.close());
  const target = logTarget(files);
  let faults = 0;
  server.instead = (request, response, apply) => {
    if (request.method !== 'PUT' || faults++ > 0) return false;
    apply();
    response.destroy();
    return true;
  };
  await target.put('tile/0/000', Buffer.alloc(8192, 1));
  t.same([...server.objects.keys()], ['/logs/tile/0/000']);
  faults = 0;
  server.instead = (request, response) => request.method === 'PUT' && faults++ < 2 && (s3Error(response, 409, 'ConditionalRequestConflict'), true);
  await target.put('tile/0/001', Buffer.alloc(8192, 1));
  t.equal(server.objects.size, 2);
});

t.test('what a bucket refuses is one line that names the object, and an address must be one', async (t) => {
  const server = await serveS3(t);
  process.env['AWS_ENDPOINT_URL_S3'] = server.url;
  const files = s3Files('s3://logs/a/', process.env);
  t.teardown(() => files.close());
  server.instead = (_, response) => (s3Error(response, 403, 'AccessDenied'), true);
  await t.rejects(files.read('checkpoint', 100), { message: 's3://logs/a/checkpoint: cannot be read (AccessDenied, 403)' });
  await t.rejects(files.create('tile/0/000', Buffer.alloc(32)), { message: 's3://logs/a/tile/0/000: cannot be written (AccessDenied, 403)' });
  server.instead = (_, response) => (s3Error(response, 404, 'NoSuchBucket'), true);
  await t.rejects(files.read('checkpoint', 100), { message: 's3://logs/a/checkpoint: cannot be read (NoSuchBucket, 404)' }, 'a bucket that is not there is no empty one');
  for (const address of ['s3://', 's3://A', 's3:///x', 's3://logs?x', 'logs']) t.throws(() => s3Files(address, process.env), { message: 'the address of a bucket is to look like s3://bucket/prefix' }, address);
});

t.test('a bucket that falls silent, before its answer or in it, is given up on, and one that never ends is not read on', async (t) => {
  const server = await serveS3(t);
  process.env['AWS_ENDPOINT_URL_S3'] = server.url;
  const files = s3Files('s3://logs', process.env, 300);
  t.teardown(() => files.close());
  let hungUp = 0;
  server.instead = (_, response) => {
    response.once('close', () => (hungUp += 1));
    return true;
  };
  await t.rejects(files.read('checkpoint', 100), { message: 's3://logs/checkpoint: cannot be read (no answer in time)' });
  await t.rejects(files.create('tile/0/000', Buffer.alloc(32)), { message: 's3://logs/tile/0/000: cannot be written (no answer in time)' });
  server.instead = (_, response) => {
    response.once('close', () => (hungUp += 1));
    response.writeHead(200, { 'content-length': '50' }).write('half');
    return true;
  };
  await t.rejects(files.read('checkpoint', 100), { message: /^s3:\/\/logs\/checkpoint: cannot be read \(/u });
  server.instead = (_, response) => {
    response.once('close', () => (hungUp += 1));
    response.writeHead(200);
    for (let part = 0; part < 3; part += 1) response.write(Buffer.alloc(60));
    return true;
  };
  await t.rejects(files.read('checkpoint', 100), { message: 's3://logs/checkpoint: is larger than it can be' });
  while (hungUp < 4) await new Promise((done) => setTimeout(done, 10));
  t.equal(hungUp, 4, 'no connection is kept for what nobody waits for');
});
