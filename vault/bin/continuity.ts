/** Refusals to start over state that does not belong together: what is missing must never be made anew under cards that depend on it. */
import type { ClientBase } from 'pg';
import type { LastBatch } from '../../audit/last-batch-file.ts';
import { batchHeader, headerHash } from '../../audit/chain.ts';
import { readBatches } from '../../audit/store.ts';

/**
 * Every key domain that has cards has its keys. New ones would neither open those cards nor find them again.
 *
 * @throws Error of one line that names the domain.
 */
export async function assertKeysOfCards(client: ClientBase): Promise<void> {
  const { rows } = await client.query<{ key_domain: string; kind: string }>(
    `SELECT t.key_domain, w.kind FROM tenants t CROSS JOIN (VALUES ('fingerprint'), ('data')) AS w(kind)
     WHERE EXISTS (SELECT 1 FROM cards c WHERE c.tenant_id = t.tenant_id)
       AND NOT EXISTS (SELECT 1 FROM key_registry k WHERE k.domain = t.key_domain AND k.kind = w.kind)`,
  );
  const [missing] = rows;
  if (missing !== undefined) throw new Error(`key domain ${missing.key_domain} has cards and no ${missing.kind} key in key_registry: restore that table, new keys could not open them`);
}

/**
 * The last batch that this machine saw committed stands in the database as it was. Where it does not, the database was restored from
 * an older backup, was exchanged, or had its log's tail cut off.
 *
 * @throws Error of one line that names the batch and the file; and what the database throws.
 */
export async function assertLastBatch(client: ClientBase, last: LastBatch, file: string): Promise<void> {
  if (await standsInLog(client, last)) return;
  throw new Error(`the log in the database lacks batch ${last.number} of writer ${last.writer}, which this machine saw committed: the database is older than this vault, or was tampered with (if it was restored on purpose, move ${file} away)`);
}

/** Whether the database has, or had until it grew old, that very batch. @throws what the database throws: nothing is known then. */
export async function standsInLog(client: ClientBase, last: LastBatch): Promise<boolean> {
  const number = BigInt(last.number);
  for await (const batch of readBatches(client, BigInt(`0x${last.writer}`), { after: number - 1n, pageSize: 1 })) {
    if (batch.number === number && headerHash(batchHeader(batch)).toString('hex') === last.hash) return true;
    break;
  }
  return await wasTakenOut(client, last);
}

/**
 * Whether a batch stands in the tree and left the database with what is old (`audit/retention.ts`): its vault was stopped for months. The chain says how
 * far the tree holds it; that the tree is the one that was signed, the sequencer makes sure of.
 */
async function wasTakenOut(client: ClientBase, last: LastBatch): Promise<boolean> {
  const { rows } = await client.query<{ next: string; previous: Buffer }>(
    `SELECT next, previous FROM log_chains c WHERE writer = $1::bigint AND formed_at < now() - interval '3 months' AND NOT EXISTS (SELECT 1 FROM log_batches p WHERE p.writer = c.writer AND p.number = $2::bigint)`,
    [BigInt(`0x${last.writer}`), last.number],
  );
  const [chain] = rows;
  if (chain === undefined) return false;
  // The note is written a little after the batch: some that it does not name may have followed.
  const behind = BigInt(chain.next) - BigInt(last.number) - 1n;
  return behind > 0n || (behind === 0n && chain.previous.toString('hex') === last.hash);
}
