/** Searches of a log whose entries are as large as those of batches. */
import { Client } from 'pg';
import t from 'tap';
import { readHead } from '../../audit/tree-store.ts';
import { searchLog, type LogQuery } from '../../audit/log-reader.ts';
import { KeptLog } from '../support/kept-log.ts';

t.test('an answer holds no more than a megabyte of entries and the one that passes it, and says where to go on', async (t) => {
  const kept = await KeptLog.open(t, new Date());
  const batches = 150;
  const many = (n: number): string[] => ['tok_shared', ...Array.from({ length: 1000 }, (_, item) => `tok_${String(n).padStart(4, '0')}${String(item).padStart(22, '0')}`)];
  for (let n = 0; n < batches; n += 1) await kept.record({ action: 'tokenize_batch', at: kept.time, caller: 'spiffe://cofre.test/tenant/acme/service/checkout', outcome: 'allowed', request: `r-${n}`, tenant: 'acme', tokens: { known: many(n) } });
  await kept.sequence();
  const { logId, size } = (await readHead(kept.pool))!;
  // As whoever serves the log: the administrating role also knows which batch tells of a token's making.
  const reader = new Client(kept.database.connect('admin'));
  await reader.connect();
  t.teardown(() => reader.end());

  const queries: Omit<LogQuery, 'limit'>[] = [{ action: 'tokenize_batch' }, { token: 'tok_shared' }, { tenant: 'acme', token: 'tok_shared' }];
  for (const query of queries) {
    const requests: unknown[] = [];
    let pages = 0;
    for (let before: number | null = size; before !== null; pages += 1) {
      const page: Awaited<ReturnType<typeof searchLog>> = await searchLog(reader, logId, size, { ...query, before, limit: 1000 });
      const bytes = Buffer.byteLength(JSON.stringify(page.items));
      t.ok(bytes < 1.1 * 1024 * 1024, `${bytes} bytes`);
      requests.push(...page.items.map(({ entry }) => entry['request']));
      before = page.next;
    }
    t.same(requests, Array.from({ length: batches }, (_, n) => `r-${batches - 1 - n}`), 'each once, newest first');
    t.ok(pages > 3, `${pages} pages`);
  }
  t.equal((await searchLog(reader, logId, size, { action: 'tokenize_batch', limit: 3 })).items.length, 3);

  // In every block, and never in one entry.
  const seldom: LogQuery = { action: 'log.batch', caller: 'spiffe://cofre.test/tenant/acme/service/checkout', limit: 1000 };
  t.match(await searchLog(reader, logId, size, seldom), { items: [], next: null });
  const { items, next } = await searchLog(reader, logId, size, seldom, 100_000);
  t.same([items, next], [[], Math.floor((size - 1) / 256) * 256], 'what is read without a result is bounded too');
  t.match(await searchLog(reader, logId, size, { ...seldom, before: next! }, 100_000), { items: [], next: null });
});
