/** A listener that serves the files of a log as the admin listener does: by mutual TLS, below `/audit/`. */
import type { ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { MemoryFiles } from './made-log.ts';
import type { TestPki } from './pki.ts';

export interface LogServer {
  readonly url: string;
  readonly port: number;
  /** Paths that were asked for. */
  readonly asked: string[];
  /** Connections that were accepted. */
  connections: number;
  /** Answers in place of the file, if it returns true. */
  instead: ((path: string, response: ServerResponse) => boolean) | null;
}

export async function serveLog(t: { teardown(callback: () => unknown): unknown }, pki: TestPki, files: MemoryFiles): Promise<LogServer> {
  const state: { -readonly [name in keyof LogServer]: LogServer[name] } = { url: '', port: 0, asked: [], connections: 0, instead: null };
  const server = createServer({ ...pki.credentials('server'), ca: pki.credentials('ca').cert, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' }, (request, response) => {
    const path = request.url!.replace(/^\/audit\//u, '');
    state.asked.push(path);
    if (state.instead?.(path, response) === true) return;
    const bytes = request.url!.startsWith('/audit/') ? files.files.get(path) : undefined;
    response.writeHead(bytes === undefined ? 404 : 200).end(bytes);
  });
  server.on('secureConnection', () => (state.connections += 1));
  server.listen(0, '127.0.0.1');
  await new Promise((done) => server.once('listening', done));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  state.port = (server.address() as AddressInfo).port;
  state.url = `https://127.0.0.1:${state.port}`;
  return state;
}
