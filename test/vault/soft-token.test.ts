/** Development's token survives that a process is killed while it logs in. */
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { prepareDevelopment } from '../../vault/bin/development.ts';
import { mendTokens } from '../../vault/bin/soft-token.ts';
import { loadConfig } from '../../vault/config.ts';

t.test('a token whose file a login left empty, as it was killed, is put back', async (t) => {
  const home = mkdtempSync(join(tmpdir(), 'cofre-home-'));
  t.teardown(() => rmSync(home, { recursive: true, force: true }));
  const config = loadConfig({ home, file: null, env: {} });
  await prepareDevelopment(home, config);
  const [token] = readdirSync(join(home, 'hsm/tokens'));
  const file = join(home, 'hsm/tokens', token!, 'token.object');
  const whole = readFileSync(file);
  for (const left of [Buffer.alloc(0), whole.subarray(0, 100)]) {
    writeFileSync(file, left);
    await prepareDevelopment(home, config);
    t.same(readFileSync(file), whole);
  }
  // Another PIN, for instance.
  const changed = Buffer.from(whole);
  changed[whole.length - 1]! ^= 1;
  writeFileSync(file, changed);
  mendTokens(home);
  writeFileSync(file, '');
  mendTokens(home);
  t.same(readFileSync(file), changed);
});
