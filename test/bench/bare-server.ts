/**
 * What the vault is measured against: the same door (HTTP/1.1 over TLS 1.3 with client certificates, a JSON schema), one durable INSERT a
 * request into a table with two unique indexes, and nothing else: no HSM, no encryption, no policy, no audit. It is meant to be as fast as a
 * competent simple service. It keeps card numbers as strings and must never see a real one.
 *
 * Environment: BARE_DATABASE_URL, BARE_PKI (folder), BARE_POOL (connections to PostgreSQL, each process), BARE_PORT,
 * BARE_PROCESSES.
 */
import { hash, randomBytes, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import cluster from 'node:cluster';
import Fastify from 'fastify';
import { Pool } from 'pg';

const table = `CREATE TABLE IF NOT EXISTS bare_cards (
  tenant_id integer NOT NULL, token text COLLATE "C" NOT NULL, fingerprint bytea NOT NULL, card_id uuid NOT NULL, stored_pan bytea NOT NULL, expiry integer,
  brand text NOT NULL, bin text NOT NULL, last4 text NOT NULL, created_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, token), UNIQUE (tenant_id, fingerprint))`;

const insert = {
  name: 'insert_card',
  text: `INSERT INTO bare_cards (tenant_id, token, fingerprint, card_id, stored_pan, expiry, brand, bin, last4, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
};

interface TokenizeBody {
  readonly pan: string;
  readonly expiry?: string;
}

const body = {
  type: 'object', required: ['pan'], additionalProperties: false,
  properties: {
    pan: { type: 'string', pattern: '^[0-9]{12,19}$' },
    expiry: { type: 'string', pattern: '^[0-9]{4}-(0[1-9]|1[0-2])$' },
    cardholder: { type: 'string', maxLength: 255 },
    format: { type: 'string', enum: ['opaque', 'numeric'] },
    reuse: { type: 'boolean' },
    ttl_seconds: { type: 'integer', minimum: 1 },
    metadata: { type: 'object', additionalProperties: { type: 'string' } },
  },
};

const text = { type: 'string' };
const answer = {
  type: 'object',
  properties: {
    token: text, created: { type: 'boolean' }, format: text, status: text, card_id: text, brand: text, bin: text, last4: text,
    length: { type: 'integer' }, expiry: text, created_at: text,
  },
};

function passesLuhn(pan: string): boolean {
  let sum = 0;
  for (let i = pan.length - 1, double = false; i >= 0; i--, double = !double) {
    const digit = pan.charCodeAt(i) - 0x30;
    sum += !double ? digit : digit > 4 ? digit * 2 - 9 : digit * 2;
  }
  return sum % 10 === 0;
}

async function main(): Promise<void> {
  const pki = process.env['BARE_PKI'] ?? '';
  const pool = new Pool({ connectionString: process.env['BARE_DATABASE_URL'], max: Number(process.env['BARE_POOL'] ?? 16), idleTimeoutMillis: 0 });
  // Stands for a stored number of the vault's size, so that rows are alike.
  const storedPan = randomBytes(57);
  const app = Fastify({
    logger: false,
    https: {
      key: readFileSync(join(pki, 'server.key')), cert: readFileSync(join(pki, 'server.pem')), ca: readFileSync(join(pki, 'ca.pem')),
      requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3',
    },
    keepAliveTimeout: 72_000,
    bodyLimit: 65_536,
  });
  app.post<{ Body: TokenizeBody }>('/v1/tokenize', { schema: { body, response: { 201: answer } } }, async (request, reply) => {
    const { pan, expiry } = request.body;
    if (!passesLuhn(pan)) return reply.code(422).send({ code: 'invalid_pan' });
    const now = new Date();
    // Time first: neighbours in time are neighbours in the index, as in the vault.
    const token = `tok_${(Math.floor(now.getTime() / 1000).toString(36) + randomUUID().replaceAll('-', '')).slice(0, 32)}`;
    const cardId = randomUUID();
    const bin = pan.slice(0, 6);
    const last4 = pan.slice(-4);
    const month = expiry === undefined ? null : Number(expiry.slice(0, 4)) * 100 + Number(expiry.slice(5));
    await pool.query({ ...insert, values: [1, token, hash('sha256', pan, 'buffer'), cardId, storedPan, month, 'visa', bin, last4, now] });
    return reply.code(201).send({
      token, created: true, format: 'opaque', status: 'active', card_id: cardId, brand: 'visa', bin, last4, length: pan.length, expiry, created_at: now.toISOString(),
    });
  });
  await app.listen({ host: '127.0.0.1', port: Number(process.env['BARE_PORT'] ?? 0) });
  const address = app.server.address();
  if (cluster.isPrimary) console.log(`bare ready https://127.0.0.1:${typeof address === 'object' ? address?.port : ''}`);
  process.once('SIGTERM', () => process.exit(0));
}

if (cluster.isPrimary) {
  const pool = new Pool({ connectionString: process.env['BARE_DATABASE_URL'], max: 1 });
  await pool.query(table);
  await pool.end();
}
// BARE_PROCESSES above 1: so many serve, and this one only passes connections on.
const processes = Number(process.env['BARE_PROCESSES'] ?? 1);
if (cluster.isPrimary && processes > 1) {
  let listening = 0;
  cluster.on('listening', () => {
    if (++listening === processes) console.log(`bare ready https://127.0.0.1:${process.env['BARE_PORT']}`);
  });
  for (let i = 0; i < processes; i++) cluster.fork();
  process.once('SIGTERM', () => {
    for (const worker of Object.values(cluster.workers ?? {})) worker?.process.kill();
    process.exit(0);
  });
} else {
  await main();
}
