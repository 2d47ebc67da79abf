/** The database's side of `network-cut.ts`, run in its namespace: PostgreSQL in this folder, until standard input ends. Says how to connect to it. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { once } from 'node:events';
import { startEmbedded } from '../../platform-adapters/postgres/embedded.ts';
import { addresses } from './network-cut.ts';

const folder = process.argv[2]!;
const access = join(folder, 'pg_hba.conf');
writeFileSync(access, `local all all scram-sha-256\nhost all all ${addresses.vault}/32 scram-sha-256\n`, { mode: 0o644 });
const server = await startEmbedded({ folder: join(folder, 'postgres'), database: 'cofre', diesWithParent: true, settings: { listen_addresses: addresses.database, hba_file: access } });
process.stdout.write(`${JSON.stringify({ adminUrl: server.adminUrl })}\n`);
await once(process.stdin.resume(), 'end');
await server.stop();
