/**
 * References that a purpose demands, and that serve once for a token: whoever refunds order 7 with a card cannot have that card opened for order 7 again. Spent in the transaction that
 * commits the call's entry, so of two calls with one reference, in whatever processes, one is granted.
 *
 * A call whose answer was lost has spent its reference: the next try needs another.
 */
import { createHash } from 'node:crypto';
import type { ClientBase } from 'pg';
import { byteaArray, int4Array } from './binary-arrays.ts';
import type { Purpose } from './policy.ts';

/** `required`: a call for this purpose names a reference. `single_use`: and none serves twice for the same token. */
export type ReferenceRule = 'required' | 'single_use';

/** One line of the configuration: of one tenant, or of all that have no line of their own for that purpose. */
export interface ReferenceDemand {
  readonly tenant?: string;
  readonly purpose: Purpose;
  readonly rule: ReferenceRule;
}

export function referenceRules(demands: readonly ReferenceDemand[]): (tenant: string, purpose: Purpose) => ReferenceRule | null {
  const rules = new Map(demands.map(({ tenant, purpose, rule }) => [`${tenant ?? '*'} ${purpose}`, rule]));
  return (tenant, purpose) => rules.get(`${tenant} ${purpose}`) ?? rules.get(`* ${purpose}`) ?? null;
}

export interface ReferenceUse {
  readonly tenantId: number;
  readonly purpose: Purpose;
  readonly token: string;
  readonly reference: string;
}

/**
 * Spends references in their order: true where it served now for the first time. The same use twice in one call of this is granted once.
 * Rows are inserted in the order of their keys: two transactions never wait for each other in a circle.
 */
export async function spendReferences(tx: ClientBase, uses: readonly ReferenceUse[], now: Date): Promise<boolean[]> {
  const marks = uses.map(({ tenantId, purpose, token, reference }) => ({ tenantId, mark: createHash('sha256').update(`${purpose}\0${token}\0${reference}`).digest().subarray(0, 16) }));
  const distinct = new Map(marks.map((use) => [keyOf(use.tenantId, use.mark), use]));
  const sorted = [...distinct.values()].sort((a, b) => a.tenantId - b.tenantId || Buffer.compare(a.mark, b.mark));
  const { rows } = await tx.query<{ tenant_id: number; mark: Buffer }>({
    name: 'spend-references',
    text: `INSERT INTO used_references (tenant_id, mark, used_at) SELECT q.tenant_id, q.mark, $3::timestamptz FROM unnest($1::int[], $2::bytea[]) AS q(tenant_id, mark)
           ON CONFLICT (tenant_id, mark) DO NOTHING RETURNING tenant_id, mark`,
    values: [int4Array(sorted.map(({ tenantId }) => tenantId)), byteaArray(sorted.map(({ mark }) => mark)), now],
  });
  const first = new Set(rows.map((row) => keyOf(row.tenant_id, row.mark)));
  return marks.map(({ tenantId, mark }) => first.delete(keyOf(tenantId, mark)));
}

/** Forgets references that were spent before `before`: they serve again. */
export async function sweepReferences(client: ClientBase, before: Date): Promise<void> {
  await client.query({ text: 'DELETE FROM used_references WHERE used_at < $1::timestamptz', values: [before] });
}

function keyOf(tenantId: number, mark: Buffer): string {
  return `${tenantId} ${mark.toString('latin1')}`;
}
