/** The process that sequences the log: the signing key, a writer of its own, and nothing that a caller reaches. */
import type { Entry } from '../../audit/entry.ts';
import { describe } from '../../platform-adapters/telemetry/log.ts';
import { connectionOf } from './database.ts';
import { KeyEvents, openKeys } from './keys.ts';
import { watchLog } from './log-watching.ts';
import type { ProcessOptions, VaultProcess } from './process.ts';
import { addGauges, readinessOf } from './readiness.ts';
import { openSequencing } from './sequencing.ts';
import { tryAgain } from './writers.ts';

/**
 * Starts to sequence. What it starts is stopped with the stack; a last checkpoint is signed then, over what the other processes of this home left if they
 * have ended before.
 *
 * @throws Error of one line for the operator, also where the log is not what was signed.
 */
export async function startSequencer(stack: AsyncDisposableStack, options: ProcessOptions): Promise<VaultProcess> {
  const { home, config, access, log, metrics, index } = options;
  const now = (): Date => new Date();
  const keyEvents = new KeyEvents(now, log, metrics);
  const keyring = await openKeys(stack, options, 'sequencer', [], keyEvents);
  const sequencing = await openSequencing(stack, { home, config, access, signer: keyring.logSigner, log, metrics, now, index });
  const writers = [sequencing.writer];
  const record = async (entry: Entry): Promise<void> => {
    await sequencing.writer.commit({ kind: 'entry', entry });
  };
  keyEvents.recordWith((entry) => void record(entry).catch((error: unknown) => log.error('a key event could not be recorded', { error: describe(error) })));
  const watched = watchLog(stack, { config, connection: connectionOf(access, 'sequencer'), signer: keyring.logSigner, writers, record, log, metrics, now });
  tryAgain(stack, writers, now);
  addGauges(metrics, keyring, writers);
  return {
    readiness: () => ({ ...readinessOf(keyring, writers, config), checkpoints: watched.state(), sequencer: sequencing.state() }),
    open: () => Promise.resolve({ api: null, admin: null }),
  };
}
