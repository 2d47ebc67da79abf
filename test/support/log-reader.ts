/** Reads an appliance's log as an outsider would: certificates against the HSM's public key, chains against the certificates. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'pg';
import { checkChain, readWriterCertificate, writerName, type Batch } from '../../audit/chain.ts';
import { decodeBundle } from '../../audit/entry.ts';
import { encodeVkey, openNote, parseVkey, type NoteVerifier } from '../../audit/note.ts';
import { readBatches, readWriters } from '../../audit/store.ts';
import type { Appliance } from './appliance.ts';

/** An entry as it stands in the log, and where. */
export interface LoggedEntry {
  readonly writer: string;
  readonly role: string;
  readonly batch: bigint;
  /** Its canonical bytes, as text. */
  readonly text: string;
  readonly value: Readonly<Record<string, unknown>>;
}

/** The tokens that an entry names, each with what became of it. */
export function tokensOf({ value }: Pick<LoggedEntry, 'value'>): { readonly token: string; readonly outcome: string }[] {
  const named = (value['tokens'] as Readonly<Record<string, readonly string[]>> | undefined) ?? {};
  return Object.entries(named).flatMap(([outcome, tokens]) => tokens.map((token) => ({ token, outcome })));
}

/** The verifier of the log's signing key, from the report of the ceremony that made it in the HSM. */
export function logVerifier(home: string, origin = 'cofre.dev/log'): NoteVerifier {
  const report = JSON.parse(readFileSync(join(home, 'hsm/ceremony.json'), 'utf8')) as { keys: { label: string; type: string; publicKey?: { spki: string } }[] };
  const [key, second] = report.keys.filter(({ label, publicKey }) => label.includes('log') && publicKey !== undefined);
  if (key?.publicKey === undefined || second !== undefined) throw new Error('the ceremony made not exactly one log signing key');
  return parseVkey(encodeVkey(origin, key.type === 'ed25519' ? 'ed25519' : 'ecdsa-p256', Buffer.from(key.publicKey.spki, 'base64')));
}

/**
 * Every entry of the log, writer by writer.
 *
 * @throws Error naming the writer whose certificate or chain does not hold, or the entry that is not canonical.
 */
export async function readLog(appliance: Appliance): Promise<LoggedEntry[]> {
  const verifier = logVerifier(appliance.home);
  const client = new Client({ connectionString: appliance.databaseUrl });
  await client.connect();
  try {
    const entries: LoggedEntry[] = [];
    for (const { writer, role, certificate } of await readWriters(client)) {
      const name = writerName(writer);
      const text = openNote(certificate, [verifier]);
      const certified = text === null ? null : readWriterCertificate(text);
      if (certified === null || certified.writer !== writer || certified.role !== role) throw new Error(`the certificate of writer ${name} does not hold`);
      const batches: Batch[] = [];
      for await (const batch of readBatches(client, writer)) batches.push(batch);
      const fault = checkChain(batches, certified.publicKey, (bundle) => decodeBundle(bundle).length);
      if (fault !== null) throw new Error(`writer ${name}: ${fault}`);
      for (const batch of batches) {
        for (const bytes of decodeBundle(batch.bundle)) {
          const entry = Buffer.from(bytes).toString('utf8');
          const value = JSON.parse(entry) as Record<string, unknown>;
          if (JSON.stringify(sorted(value)) !== entry) throw new Error(`writer ${name}, batch ${batch.number}: an entry is not canonical`);
          entries.push({ writer: name, role, batch: batch.number, text: entry, value });
        }
      }
    }
    return entries;
  } finally {
    await client.end();
  }
}

/** RFC 8785 for what entries hold: members by name, at every depth. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, member]) => [name, sorted(member)]));
}
