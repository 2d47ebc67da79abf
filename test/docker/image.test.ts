import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';

const ROOT = resolve(import.meta.dirname, '../..');
const dockerfile = readFileSync(join(ROOT, 'docker/Dockerfile'), 'utf8');

t.test('all that the image copies is there, and the build context lets it through', async (t) => {
  const allowed = readFileSync(join(ROOT, 'docker/Dockerfile.dockerignore'), 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('!'))
    .map((line) => line.slice(1));
  const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.+)$/gm)].flatMap((match) => match[1]!.split(' ').slice(0, -1));
  t.ok(copied.length > 5);
  for (const path of copied) {
    t.ok(existsSync(join(ROOT, path)), `${path} exists`);
    t.ok(
      allowed.some((prefix) => path === prefix || path.startsWith(`${prefix}/`)),
      `${path} is in the context`,
    );
  }
});

t.test('the image compiles and starts as set-up and launcher do', async (t) => {
  const launcher = readFileSync(join(ROOT, 'docker/find-node.js'), 'utf8');
  const flags = [...launcher.matchAll(/_FLAGS = (\[.*\])/g)].flatMap(([, list]) => JSON.parse(list!.replaceAll("'", '"')) as string[]);
  const prelude = /'(ulimit -c 0; .*?exec) "\$@"'/.exec(launcher)![1]!;
  t.match(dockerfile, `${prelude} node ${flags.join(' ')} vault/bin/cofre.ts`);
  const compiler = /spawnSync\('cc', \[(.*?), '-I'/.exec(readFileSync(join(ROOT, 'docker/set-up.js'), 'utf8'))![1]!.replaceAll(/[',]/g, '');
  t.match(dockerfile, `cc ${compiler} -I`);
});

t.test('composed, the vault cannot write its image, gain rights, dump core or swap, and the database has no way out', async (t) => {
  const compose = parse(readFileSync(join(ROOT, 'docker/compose.yaml'), 'utf8')) as {
    services: Record<string, Record<string, unknown>>;
    networks: Record<string, unknown>;
    configs: Record<string, { content: string }>;
  };
  t.match(compose.services['cofre'], { read_only: true, cap_drop: ['ALL'], security_opt: ['no-new-privileges:true'], ulimits: { core: 0 }, mem_limit: '1g', memswap_limit: '1g' });
  t.same(compose.services['postgres']!['networks'], ['inside']);
  t.same(compose.networks['inside'], { internal: true });
  t.notMatch(JSON.stringify(compose.services['postgres']!['command']), /fsync|synchronous_commit|full_page_writes/);
  t.match(parse(compose.configs['cofre']!.content), { database: { embedded: false } });
});
