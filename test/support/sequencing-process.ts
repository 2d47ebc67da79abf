/** A process with the sequencing role only, to be killed: says `leads` once it does. What it needs comes on standard input. */
import { createPrivateKey } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { text } from 'node:stream/consumers';
import { createLog } from '../../platform-adapters/telemetry/log.ts';
import { createMetrics } from '../../platform-adapters/telemetry/metrics.ts';
import { openSequencing } from '../../vault/bin/sequencing.ts';
import { readConfig } from '../../vault/config.ts';
import type { DatabaseAccess } from '../../vault/bin/database.ts';
import { signerOf } from './log-tables.ts';

const { home, config, access, key } = JSON.parse(await text(process.stdin)) as { home: string; config: string; access: DatabaseAccess; key: string };
const stack = new AsyncDisposableStack();
const sequencing = await openSequencing(stack, { home, config: readConfig(config, 'cofre.config.yaml', {}), access, signer: signerOf(createPrivateKey(key)), log: createLog('error'), metrics: createMetrics(), now: () => new Date(), index: 0, policies: '' });
for (;;) {
  if (sequencing.state().detail === 'sequencing') process.stdout.write('leads\n');
  await sleep(50);
}
