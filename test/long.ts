/**
 * Test files that `npm test` leaves to `npm run test:extended`, so that it stays under ten minutes: each takes half a minute and more, most of it starting
 * vaults and killing them. By name they run as all others do: `npm test -- fault/ledger`.
 */
export const LONG: ReadonlySet<string> = new Set([
  'test/fault/disk.test.ts',
  'test/fault/failover.test.ts',
  'test/fault/ledger.test.ts',
  'test/fault/process.test.ts',
  'test/fault/workers.test.ts',
  'test/integration/damaged.test.ts',
  'test/integration/guessing.test.ts',
  'test/integration/hostile.test.ts',
  'test/integration/workers.test.ts',
  'test/platform-adapters/postgres/embedded.test.ts',
  'test/vault/sequencing.test.ts',
]);
