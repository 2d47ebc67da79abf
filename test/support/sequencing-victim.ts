/** A sequencing process that is meant to be killed: it steps for as long as there is anything, and says so once it has begun. Its connection and its key come on standard input. */
import { createPrivateKey } from 'node:crypto';
import { text } from 'node:stream/consumers';
import { Pool } from 'pg';
import type { ClientConfig } from 'pg';
import { Sequencer } from '../../audit/sequencer.ts';
import { postgresTreeStore } from '../../audit/tree-store.ts';
import { origin, signerOf } from './log-tables.ts';

const { connection, key } = JSON.parse(await text(process.stdin)) as { connection: ClientConfig; key: string };
const pool = new Pool({ ...connection, max: 2 });
const sequencer = new Sequencer({ store: postgresTreeStore(pool), signer: signerOf(createPrivateKey(key)), name: origin, witnesses: [], alert: async () => undefined, now: () => new Date(), maxLeaves: 5, maxBatches: 2 });
for (let told = false, more = true; more; told = true) {
  const step = await sequencer.step();
  await sequencer.sign();
  ({ more } = step);
  if (step.leaves > 0 && !told) process.stdout.write('steps\n');
}
await pool.end();
