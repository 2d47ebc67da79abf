/** Sessions for the vault's writers: node-postgres in pipeline mode, where BEGIN and what follows it share a trip. */
import { Client } from 'pg';
import type { ClientConfig } from 'pg';
import type { WriterConnector, WriterSession } from '../../vault/writer-session.ts';

/** How long the server may take to close a session that is ended in order. */
const endTimeoutMs = 2000;

/**
 * Connects as `config` says. A query that is not answered within `queryTimeoutMs` breaks its session: node-postgres destroys the
 * connection, because in a pipeline nothing behind the silent query could be answered either.
 */
export function createWriterConnector(config: ClientConfig, options: { readonly connectTimeoutMs: number; readonly queryTimeoutMs: number }): WriterConnector {
  return {
    async connect(): Promise<WriterSession> {
      const client = new Client({ ...config, pipeline: true, connectionTimeoutMillis: options.connectTimeoutMs, query_timeout: options.queryTimeoutMs, keepAlive: true });
      let gone = false;
      client.on('error', () => {
        gone = true;
      });
      client.on('end', () => {
        gone = true;
      });
      // The stream is replaced when TLS is negotiated, so it is looked up each time.
      const stream = (): { destroyed: boolean; destroy(): void } => (client as unknown as { connection: { stream: { destroyed: boolean; destroy(): void } } }).connection.stream;
      try {
        await client.connect();
      } catch (error) {
        stream().destroy();
        throw error;
      }
      return {
        client,
        alive: () => !gone && !stream().destroyed,
        destroy() {
          gone = true;
          stream().destroy();
        },
        async end() {
          gone = true;
          // A server that no longer answers does not close either, and node-postgres would wait for it.
          const cut = setTimeout(() => stream().destroy(), endTimeoutMs);
          await client.end().catch(() => undefined);
          clearTimeout(cut);
        },
      };
    },
  };
}
