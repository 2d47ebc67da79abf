/** SoftHSM2 empties its token's file at each login before it writes it anew: a process that is killed in that moment leaves it empty. */
import { readFileSync, readdirSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { startAppliance, until } from '../support/appliance.ts';
import { cardText } from '../support/test-cards.ts';

const appliance = await startAppliance(t);
const empty = (): void => {
  const tokens = join(appliance.home, 'hsm/tokens');
  for (const name of readdirSync(tokens)) truncateSync(join(tokens, name, 'token.object'));
};
const children = (): number[] => readFileSync(`/proc/${appliance.pid}/task/${appliance.pid}/children`, 'utf8').trim().split(' ').map(Number).filter((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('\0worker\0'));

await t.test('the next process finds the token, and cards open', { timeout: 120_000 }, async (t) => {
  const { token } = (await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(0) })).json();
  const [sequencer] = children();
  process.kill(sequencer!, 'SIGKILL');
  empty();
  await until(async () => children().some((pid) => pid !== sequencer) && ((await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as { ok: boolean }).ok, 'its successor');

  await appliance.kill9();
  empty();
  await appliance.start();
  t.equal((await appliance.client('getnet').post('/v1/detokenize', { token, purpose: 'authorization' })).status, 200);
});
