import type { Receipt } from '../../audit/append.ts';

/** Stands in for a committed entry's receipt, as strict as the real one: a second redemption for the same value throws. */
export function receipt(): Receipt {
  const redeemed = new Set<string>();
  const fake = {
    redeem(what: string): void {
      if (redeemed.has(what)) throw new Error('redeemed twice');
      redeemed.add(what);
    },
  };
  return fake as unknown as Receipt;
}
