/**
 * The certificate that a client showed, read once for each connection.
 *
 * Not by `getPeerX509Certificate`: on the server side Node 24 never frees what that gives, 5 KB for each connection (24.12 to 24.21, a bare server, resident
 * MiB after 1,000 and after 6,000 connections: 95 and 125; by `getPeerCertificate` 88 and 94; Node 26.12 frees it). In the soak it was 40 to 70 MiB an hour.
 */
import { X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';

const read = new WeakMap<TLSSocket, X509Certificate | null>();

/**
 * The client's certificate, of a resumed session as well, whose ticket carries that of the first handshake; null where the client showed none, or its connection is gone.
 * Whether it was verified is for `socket.authorized` to say.
 */
export function peerCertificate(socket: TLSSocket): X509Certificate | null {
  let certificate = read.get(socket);
  if (certificate === undefined) {
    // Of a client without one an empty object comes, of a closed connection null, whatever the types say.
    const raw = (socket.getPeerCertificate() as { raw?: Buffer } | null)?.raw;
    certificate = raw === undefined ? null : new X509Certificate(raw);
    // A closed connection has not told what it had.
    if (certificate !== null || !socket.destroyed) read.set(socket, certificate);
  }
  return certificate;
}
