/** A TLS server that reads the client's certificate as the vault does and does nothing else, for connections.test.ts: whatever it keeps is kept by Node. Tells its port, and on each message its resident bytes after collection. */
import { readFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:tls';
import { setTimeout as sleep } from 'node:timers/promises';
import { peerCertificate } from '../../vault/peer-certificate.ts';

const [authority, certificate, key] = process.argv.slice(2).map((path) => readFileSync(path));
const collect = (globalThis as { gc?: () => void }).gc!;
const server = createServer({ ca: authority, cert: certificate, key, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' }, (socket) => {
  if (peerCertificate(socket) === null) throw new Error('a client without a certificate');
  socket.on('error', () => undefined);
  socket.on('data', (data: Buffer) => socket.end(data));
});
server.listen(0, '127.0.0.1', () => process.send!((server.address() as AddressInfo).port));
const tell = async (): Promise<void> => {
  for (let round = 0; round < 3; round += 1) {
    collect();
    await sleep(50);
  }
  process.send!(process.memoryUsage.rss());
};
process.on('message', () => void tell());
process.on('disconnect', () => process.exit(0));
