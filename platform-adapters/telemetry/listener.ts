/** The telemetry listener: plain HTTP for the machines that watch. It tells states and numbers, never whose. */
import { createServer } from 'node:http';
import type { Server } from 'node:http';
import { Registry } from 'prom-client';

export interface Part {
  readonly ok: boolean;
  /** Constant words for a person. */
  readonly detail: string;
}

/** What readiness is made of: HSM, database, log and so on, each apart. */
export type Readiness = Readonly<Record<string, Part>>;

/**
 * `/metrics` (Prometheus text), `/healthz` (200 while the process lives) and `/readyz` (200 if every part is ok, else 503; JSON
 * either way). Does not listen yet.
 */
export function createTelemetry(metrics: () => Promise<string>, readiness: () => Readiness): Server {
  const server = createServer((request, response) => {
    request.resume();
    const send = (status: number, type: string, body: string): void => {
      response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(body), 'cache-control': 'no-store' });
      response.end(request.method === 'HEAD' ? undefined : body);
    };
    if (request.method !== 'GET' && request.method !== 'HEAD') return send(405, 'text/plain', 'GET only\n');
    const path = (request.url ?? '').replace(/\?.*/u, '');
    switch (path) {
      case '/healthz':
        return send(200, 'application/json', '{"ok":true}\n');
      case '/readyz': {
        const parts = readiness();
        const ok = Object.values(parts).every((part) => part.ok);
        return send(ok ? 200 : 503, 'application/json', `${JSON.stringify({ ok, ...parts })}\n`);
      }
      case '/metrics':
        metrics().then(
          (text) => send(200, Registry.PROMETHEUS_CONTENT_TYPE, text),
          () => send(500, 'text/plain', 'the metrics cannot be collected\n'),
        );
        return;
      default:
        return send(404, 'text/plain', 'not found\n');
    }
  });
  server.requestTimeout = 5000;
  server.maxConnections = 64;
  return server;
}
