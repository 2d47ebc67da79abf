/** Where the configuration says that the archive is. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { archiveOf } from '../../vault/bin/archiving.ts';
import { readConfig } from '../../vault/config.ts';
import { serveS3 } from '../support/s3-server.ts';

const home = mkdtempSync(join(tmpdir(), 'cofre-archiving-'));
t.teardown(() => rmSync(home, { recursive: true }));
const config = (archive: string) => readConfig(JSON.stringify({ log: { archive } }), 'cofre.config.yaml', {});

t.test('none is none, and a folder is found from the home on, one for each log', async (t) => {
  await using stack = new AsyncDisposableStack();
  t.equal(await archiveOf(stack, home, config('none')), null);
  for (const [named, folder] of [['kept', join(home, 'kept')], [join(home, 'elsewhere'), join(home, 'elsewhere')]] as const) {
    const archive = (await archiveOf(stack, home, config(named)))!;
    t.same([archive.place(1), archive.place(2)], [join(folder, '1'), join(folder, '2')]);
    await archive.of(2).put('checkpoint', Buffer.from('second'));
    t.equal(readFileSync(join(folder, '2/checkpoint'), 'utf8'), 'second');
    t.equal(await archive.of(1).checkpoint(), null);
    t.equal(archive.of(2), archive.of(2), 'one adapter for each');
  }
});

t.test('a bucket, under its prefix', async (t) => {
  for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name];
  const server = await serveS3(t);
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: 'made', AWS_SECRET_ACCESS_KEY: 'for a test', AWS_EC2_METADATA_DISABLED: 'true', AWS_CONFIG_FILE: '/dev/null', AWS_SHARED_CREDENTIALS_FILE: '/dev/null', AWS_ENDPOINT_URL_S3: server.url });
  await using stack = new AsyncDisposableStack();
  const archive = (await archiveOf(stack, home, config('s3://logs/vault')))!;
  t.equal(archive.place(1), 's3://logs/vault/1');
  await archive.of(1).put('tile/0/000', Buffer.alloc(8192, 1));
  t.equal(server.objects.get('/logs/vault/1/tile/0/000')?.length, 8192);
  t.same(await archive.of(1).tile({ level: 0, index: 0, width: 256 }), Buffer.alloc(8192, 1));
  t.equal(await archive.of(1).checkpoint(), null);
});
