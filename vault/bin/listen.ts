/** Opening and closing the listeners. */
import type { AddressInfo, Server } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { FastifyInstance } from 'fastify';

/** Stops a listener: new connections are refused and idle ones closed at once; requests in flight get `timeoutMs`, then their connections are cut. */
export async function drain(app: FastifyInstance, timeoutMs: number): Promise<void> {
  const cut = sleep(timeoutMs, 'late', { ref: false });
  const closed = app.close().then(() => 'closed');
  if ((await Promise.race([closed, cut])) === 'late') (app.server as unknown as { closeAllConnections(): void }).closeAllConnections();
  await closed;
}

/** @returns the port. @throws Error of one line that names `variable`, which chooses another port. */
export async function listenSecure(app: FastifyInstance, host: string, port: number, name: string, variable: string): Promise<number> {
  try {
    await app.listen({ host, port });
  } catch (error) {
    throw portError(error, host, port, name, variable);
  }
  return (app.server.address() as AddressInfo).port;
}

/** As `listenSecure`, for a plain server. */
export async function listen(server: Server, host: string, port: number, name: string, variable: string): Promise<void> {
  await new Promise<void>((done, failed) => {
    server.once('error', (error) => failed(portError(error, host, port, name, variable)));
    server.listen({ host, port }, () => done());
  });
}

function portError(error: unknown, host: string, port: number, name: string, variable: string): Error {
  const { code } = error as NodeJS.ErrnoException;
  const why = code === 'EADDRINUSE' ? 'is in use by another process' : code === 'EACCES' ? 'may not be used by this user' : `cannot be listened on (${code ?? 'unknown'})`;
  return new Error(`${host}:${port} ${why}: the ${name} listener needs it; ${variable} chooses another`, { cause: error });
}
