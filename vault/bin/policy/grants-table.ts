/** Grants as a table for people: what differs only by purpose or action stands in one line. Pure. */
import type { Grant } from '../../access-review.ts';

interface Line {
  readonly caller: string;
  readonly tenant: string;
  readonly policies: string;
  readonly what: string[];
}

/** Lines of text, without a head where there is nothing. `mark` stands before each. */
export function grantsTable(grants: readonly Grant[], mark = ''): string[] {
  const lines = new Map<string, Line>();
  const byAction = new Map<string, { readonly grant: Grant; readonly purposes: string[] }>();
  for (const grant of grants) {
    const key = [grant.caller, grant.tenant, grant.action, grant.policies.join()].join('\0');
    const known = byAction.get(key);
    if (known === undefined) byAction.set(key, { grant, purposes: grant.purpose === null ? [] : [grant.purpose] });
    else if (grant.purpose !== null) known.purposes.push(grant.purpose);
  }
  for (const { grant, purposes } of byAction.values()) {
    const key = [grant.caller, grant.tenant, grant.policies.join()].join('\0');
    const line = lines.get(key) ?? { caller: grant.caller, tenant: grant.tenant, policies: grant.policies.join(', '), what: [] };
    line.what.push(purposes.length === 0 ? grant.action : `${grant.action} for ${purposes.join('|')}`);
    lines.set(key, line);
  }
  const rows = [...lines.values()].map(({ caller, tenant, policies, what }) => [caller, tenant, what.join(', '), policies] as const);
  if (rows.length === 0) return [];
  const all = [['caller', 'cards of', 'may', 'by'] as const, ...rows];
  const widths = [0, 1, 2].map((column) => Math.max(...all.map((row) => row[column]!.length)));
  return all.map((row, at) => `${at === 0 ? ' '.repeat(mark.length) : mark}${row.map((cell, column) => (column === 3 ? cell : cell.padEnd(widths[column]!))).join('  ')}`);
}
