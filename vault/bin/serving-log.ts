/** The log in the database as `vault/audit-routes.ts` serves it. */
import { Pool } from 'pg';
import type { ClientConfig } from 'pg';
import { MissingEntries, readBundle } from '../../audit/log-reader.ts';
import { encodeVkey } from '../../audit/note.ts';
import type { NoteSigner } from '../../audit/note.ts';
import { searchLogs } from '../../audit/search-logs.ts';
import { parsePath, tileWidth, tileWidthAt } from '../../audit/tiles.ts';
import { readCheckpoint, readHead, readTile } from '../../audit/tree-store.ts';
import type { ServedLog } from '../audit-routes.ts';
import { findPolicySet } from '../policy-store.ts';
import { endInTime } from './database.ts';

/** `connection` is the administrating role's, which reads the log, and of cards only where their tokens' entries stand. */
export function serveLog(stack: AsyncDisposableStack, connection: ClientConfig, key: Pick<NoteSigner, 'algorithm' | 'publicKeySpki'>): ServedLog {
  const pool = new Pool({ ...connection, max: 4, application_name: 'cofre log reader', statement_timeout: 30_000 });
  pool.on('error', () => undefined);
  stack.defer(() => endInTime(pool));
  return {
    async checkpoint() {
      const head = await readHead(pool);
      return head === null ? null : await readCheckpoint(pool, head.logId);
    },
    async vkey() {
      const head = await readHead(pool);
      return head === null ? null : encodeVkey(head.origin, key.algorithm, key.publicKeySpki);
    },
    policySet: (digest) => findPolicySet(pool, digest),
    async resource(path) {
      const parsed = parsePath(path);
      const head = parsed === null || parsed.kind === 'checkpoint' ? null : await readHead(pool);
      if (head === null || parsed === null || parsed.kind === 'checkpoint') return null;
      const { logId, size } = head;
      const { index, width } = parsed;
      // Whatever the tree has grown since, a narrower tile is the beginning of what stands there now.
      if (width > tileWidthAt(parsed.kind === 'tile' ? parsed.level : 0, index, size)) return null;
      if (parsed.kind === 'tile') {
        const tile = await readTile(pool, logId, parsed.level, index);
        return tile === null || tile.length < width * 32 ? null : { bytes: tile.subarray(0, width * 32), entries: null };
      }
      try {
        return { bytes: await readBundle(pool, logId, index, width), entries: { from: index * tileWidth, to: index * tileWidth + width } };
      } catch (error) {
        if (error instanceof MissingEntries) return null;
        throw error;
      }
    },
    search: (query) => searchLogs(pool, query, key),
  };
}
