import { subscribe } from 'node:diagnostics_channel';
import type { ClientRequest } from 'node:http';
import { Server } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { NetworkBuffers } from '../../../platform-adapters/node/network-buffers.ts';
import { createDevelopmentPki } from '../../../platform-adapters/pki/development.ts';
import { until } from '../../support/appliance.ts';

const made: Server[] = [];
let listenAfterMs = 0;
const listen = Reflect.get(Server.prototype, 'listen') as (this: Server, ...args: unknown[]) => Server;
Server.prototype.listen = function (this: Server, ...args: unknown[]) {
  made.push(this);
  // In a worker process the primary is asked, which may have to do something else first.
  setTimeout(() => void Reflect.apply(listen, this, args), listenAfterMs);
  return this;
} as typeof Server.prototype.listen;

let breaks = 0;
subscribe('http.client.request.start', (message) => {
  if (breaks === 0) return;
  breaks -= 1;
  (message as { request: ClientRequest }).request.destroy(new Error('broken'));
});

t.test('a connection that broke is made anew, and only one, however long that takes', async (t) => {
  const directory = t.testdir({});
  createDevelopmentPki(directory, { trustDomain: 'cofre.dev', now: () => new Date() });
  let overwritten = 0;
  const buffers = await NetworkBuffers.open({ certificate: join(directory, 'server.pem'), key: join(directory, 'server.key'), overwritten: () => (overwritten += 1) });
  t.teardown(() => buffers.close());
  t.equal(overwritten, 1);

  breaks = 1;
  buffers.used();
  await until(() => overwritten === 2, 'the same again on a new one');
  t.same(made.map(({ listening }) => listening), [false, true]);

  breaks = 2;
  buffers.used();
  await until(() => breaks === 0 && made.every(({ listening }) => !listening), 'the end of both');
  listenAfterMs = 300;
  for (let requests = 0; requests < 3; requests += 1) {
    buffers.used();
    await sleep(80);
  }
  await until(() => overwritten >= 4, 'what was asked for before and after the connection was there');
  t.equal(made.filter(({ listening }) => listening).length, 1);

  // Closed while another is made.
  breaks = 1;
  const before = made.length;
  buffers.used();
  await until(() => made.length > before, 'another');
  buffers.close();
  await sleep(listenAfterMs + 200);
  t.equal(made.filter(({ listening }) => listening).length, 0);
});
