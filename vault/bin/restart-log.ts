/** `cofre audit restart`: the vault is stopped, and its database was restored on purpose. */
import { existsSync, readdirSync, renameSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { Pool } from 'pg';
import type { ClientConfig } from 'pg';
import { withArchivedTiles } from '../../audit/archived-tiles.ts';
import { LastBatchFile } from '../../audit/last-batch-file.ts';
import { restartLog } from '../../audit/restart.ts';
import type { RestartedLog } from '../../audit/restart.ts';
import { postgresTreeStore } from '../../audit/tree-store.ts';
import { WitnessFile } from '../../audit/witness-file.ts';
import { openKeyring } from '../../hsm/keyring.ts';
import { lockFolder } from '../../platform-adapters/linux/folder-lock.ts';
import { postgresKeyStore } from '../../platform-adapters/postgres/key-store.ts';
import { superviseEmbedded } from '../../platform-adapters/postgres/supervisor.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import { archiveOf } from './archiving.ts';
import { standsInLog } from './continuity.ts';
import { asClient, connectionOf, endInTime, givenDatabase } from './database.ts';
import { prepareDevelopment, readPin } from './development.ts';

/**
 * Begins a new log that names the one that was witnessed, and moves aside the notes of batches that the restored database lacks.
 *
 * @throws Error of one line; nothing was changed then, or the new log stands and the notes do not, and another start says so.
 */
export async function restartLogOf(home: string, config: Config, env: NodeJS.ProcessEnv): Promise<RestartedLog & { readonly movedAside: readonly string[] }> {
  await using stack = new AsyncDisposableStack();
  if (!existsSync(home)) throw new Error(`${home}: there is no vault`);
  stack.defer(await lockFolder(home, 2000));
  if (config.profile === 'development') {
    if (!existsSync(join(home, 'hsm/ceremony.json'))) throw new Error(`${home}: there is no vault`);
    await prepareDevelopment(home, config);
  }
  const roleFile = join(home, 'secrets/database-roles.json');
  let url = env['DATABASE_URL'] ?? '';
  if (url === '') {
    const embedded = await superviseEmbedded({ folder: join(home, 'postgres'), database: 'cofre' }, () => undefined);
    stack.defer(() => embedded.stop());
    url = embedded.adminUrl;
  }
  const connection = connectionOf(givenDatabase(url, roleFile, config), 'sequencer');
  const pool = new Pool({ ...connection, max: 2, application_name: 'cofre audit restart' });
  pool.on('error', () => undefined);
  stack.defer(() => endInTime(pool));
  const keyring = await openKeyring({
    modulePath: config.hsm.module,
    tokenLabel: config.hsm.token_label,
    pin: () => readPin(resolve(home, config.hsm.pin_file)),
    custody: config.hsm.custody,
    tenants: new Map(),
    store: postgresKeyStore(pool),
    now: () => new Date(),
    maxAwayMs: milliseconds(config.hsm.max_away),
    log: { info: () => undefined, warn: () => undefined },
    uses: ['sign-log'],
  });
  stack.defer(() => keyring.close());

  const store = withArchivedTiles(postgresTreeStore(pool), await archiveOf(stack, home, config, env));
  const restarted = await restartLog({ store, witnesses: [new WitnessFile(join(home, 'witness'))], signer: keyring.logSigner, name: config.log.origin, now: new Date() });
  const movedAside = await moveNotesAside(home, connection, restarted.origin);
  return { ...restarted, movedAside };
}

/**
 * Notes of last batches that the database lacks: the new log's charter tells of the restore, so they have done their work. Exported for its test.
 *
 * @throws what the database throws, or Error of one line; a note of which nothing is known stays.
 */
export async function moveNotesAside(home: string, connection: ClientConfig, origin: string): Promise<string[]> {
  return await asClient(connection, 'DATABASE_URL', async (client) => {
    const moved: string[] = [];
    const folder = join(home, 'writers');
    for (const name of readdirSync(folder).filter((entry) => entry.endsWith('.json'))) {
      const path = join(folder, name);
      const last = await new LastBatchFile(path).read();
      if (last === null || (await standsInLog(client, last))) continue;
      const aside = `${path}.before-${origin.replaceAll(/[^a-z0-9]/giu, '-')}`;
      renameSync(path, aside);
      moved.push(aside);
    }
    return moved;
  });
}
