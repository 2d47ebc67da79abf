import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import type { Entry } from '../../audit/entry.ts';
import type { Call } from '../../vault/call.ts';
import { VaultError, type ErrorCode } from '../../vault/errors.ts';
import { Refusals } from '../../vault/refusals.ts';

const start = Date.parse('2026-11-24T10:00:00Z');
const calls = (service: string | null): Call => ({
  requestId: '3f1d2c2e-0000-4000-8000-000000000000',
  at: new Date(start),
  caller: service === null ? null : { spiffeId: `spiffe://cofre.dev/tenant/acme/service/${service}`, tenant: 'acme', service, serial: '1f', notAfter: new Date('2030-01-01') },
  from: '127.0.0.1',
});

class Vault {
  time = start;
  readonly entries: Entry[] = [];
  summed = 0;
  down = false;
  failed = 0;
  readonly refusals = new Refusals({
    entriesPerMinute: 3,
    now: () => new Date(this.time),
    write: async (entry) => {
      if (this.down) {
        this.failed += 1;
        throw new VaultError('audit_unavailable');
      }
      this.entries.push(entry);
    },
    summed: () => void (this.summed += 1),
  });

  async refuse(service: string | null, code: ErrorCode, times = 1): Promise<void> {
    for (let n = 0; n < times; n += 1) await this.refusals.record(calls(service), 'tokenize', new VaultError(code));
  }

  /** Waits until the vault has looked at its clock, which then shows a minute later. */
  async nextMinute(entries: number): Promise<void> {
    this.time += 60_000;
    for (let tries = 0; tries < 500 && this.entries.length < entries; tries += 1) await sleep(10);
  }
}

t.test('the first refusals of a caller are an entry each, the rest of its minute are one with the count of each code', async (t) => {
  const vault = new Vault();
  t.teardown(() => vault.refusals.close());
  await vault.refuse('shop', 'not_authorized', 5);
  await vault.refuse('shop', 'invalid_pan', 2);
  await vault.refuse('other', 'not_found', 3);
  await vault.refuse(null, 'not_authorized', 4);
  t.same(vault.entries.map(({ action, code, caller }) => [action, code, caller?.split('/').at(-1)]), [
    ...Array.from({ length: 3 }, () => ['tokenize', 'not_authorized', 'shop']),
    ...Array.from({ length: 3 }, () => ['tokenize', 'not_found', 'other']),
    ...Array.from({ length: 3 }, () => ['tokenize', 'not_authorized', undefined]),
  ]);
  t.equal(vault.summed, 5);
  await vault.nextMinute(11);
  const since = new Date(start).toISOString();
  t.same(vault.entries.slice(9), [
    { action: 'refusals', at: new Date(start + 60_000), outcome: 'refused', caller: 'spiffe://cofre.dev/tenant/acme/service/shop', tenant: 'acme', detail: { not_authorized: 2, invalid_pan: 2, since, total: 4 } },
    { action: 'refusals', at: new Date(start + 60_000), outcome: 'refused', detail: { not_authorized: 1, since, total: 1 } },
  ]);
  await vault.refuse('shop', 'invalid_pan');
  t.equal(vault.entries.at(-1)?.action, 'tokenize', 'the next minute has entries of its own');
});

t.test('what was counted is written at the end', async (t) => {
  const vault = new Vault();
  await vault.refuse('shop', 'not_found', 4);
  await vault.refusals.close();
  t.match(vault.entries.at(-1), { action: 'refusals', detail: { not_found: 1, total: 1 } });
  t.equal(vault.entries.length, 4);
});

t.test('a sum that takes its time to be written is written once, and what comes meanwhile is not lost', async (t) => {
  const entries: Entry[] = [];
  let time = start;
  const refusals = new Refusals({
    entriesPerMinute: 0,
    now: () => new Date(time),
    write: async (entry) => {
      await sleep(1200);
      entries.push(entry);
    },
    summed: () => undefined,
  });
  const refuse = async (service: string, times: number): Promise<void> => {
    for (let n = 0; n < times; n += 1) await refusals.record({ ...calls(service), at: new Date(time) }, 'tokenize', new VaultError('not_found'));
  };
  for (const service of ['a', 'b', 'c']) await refuse(service, 10);
  time += 60_000;
  await sleep(1500);
  for (const service of ['a', 'b', 'c']) await refuse(service, 5);
  await sleep(2500);
  await refusals.close();
  const totals: Record<string, number> = {};
  for (const { caller, detail } of entries) totals[caller!.split('/').at(-1)!] = (totals[caller!.split('/').at(-1)!] ?? 0) + (detail!['total'] as number);
  t.same(totals, { a: 15, b: 15, c: 15 });
  t.equal(new Set(entries.map(({ caller, detail }) => `${caller} ${detail!['since']}`)).size, entries.length, 'no minute of a caller is told twice');
});

t.test('a log that is silent for long does not keep the end waiting for more than the round that is under way', async (t) => {
  let tries = 0;
  let silent = Promise.withResolvers<undefined>();
  const refusals = new Refusals({
    entriesPerMinute: 0,
    now: () => new Date(start + 60_000),
    write: async () => {
      tries += 1;
      await silent.promise;
      throw new VaultError('store_unavailable');
    },
    summed: () => undefined,
  });
  await refusals.record(calls('shop'), 'tokenize', new VaultError('not_found'));
  await sleep(4500);
  t.equal(tries, 1, 'one round at a time');
  const closed = refusals.close();
  const first = silent;
  silent = Promise.withResolvers();
  first.resolve(undefined);
  await sleep(20);
  t.equal(tries, 2);
  silent.resolve(undefined);
  await closed;
  t.equal(tries, 2, 'one last round, and none of those that were due meanwhile');
});

t.test('a refusal whose entry cannot be written says so, and counts that cannot be written are not lost', async (t) => {
  const vault = new Vault();
  t.teardown(() => vault.refusals.close());
  await vault.refuse('shop', 'not_found', 5);
  vault.down = true;
  await t.rejects(vault.refuse('other', 'not_found'), { code: 'audit_unavailable' });
  vault.time += 60_000;
  await sleep(1500);
  t.equal(vault.entries.length, 3);
  vault.down = false;
  await vault.nextMinute(4);
  t.match(vault.entries[3], { action: 'refusals', detail: { not_found: 2, total: 2, since: new Date(start).toISOString() } });
});

t.test('the entries of a minute whose count cannot be written stay used up', async (t) => {
  const vault = new Vault();
  t.teardown(() => vault.refusals.close());
  await vault.refuse('shop', 'not_found', 5);
  vault.down = true;
  vault.time += 60_000;
  for (let tries = 0; tries < 500 && vault.failed === 0; tries += 1) await sleep(10);
  t.ok(vault.failed > 0, 'it was tried');
  await vault.refuse('shop', 'invalid_pan', 2);
  t.equal(vault.summed, 4, 'these are counted too: an entry would have been refused');
  vault.down = false;
  await vault.nextMinute(4);
  t.match(vault.entries[3], { action: 'refusals', detail: { not_found: 2, invalid_pan: 2, total: 4, since: new Date(start).toISOString() } });
});

t.test('a clock that was set back does not keep a minute open', async (t) => {
  const vault = new Vault();
  t.teardown(() => vault.refusals.close());
  await vault.refuse('shop', 'not_found', 5);
  vault.time -= 60 * 60_000;
  for (let tries = 0; tries < 500 && vault.entries.length < 4; tries += 1) await sleep(10);
  t.match(vault.entries[3], { action: 'refusals', detail: { not_found: 2, total: 2, since: new Date(start).toISOString() } });
});

t.test('what the vault failed in always has an entry of its own', async (t) => {
  const vault = new Vault();
  t.teardown(() => vault.refusals.close());
  await vault.refuse('shop', 'hsm_unavailable', 20);
  t.equal(vault.entries.filter(({ code, outcome }) => code === 'hsm_unavailable' && outcome === 'failed').length, 20);
  t.equal(vault.summed, 0);
});
