/** What the log is told of the sets of policies that come into force, also while nothing can be written. */
import t from 'tap';
import type { Entry } from '../../audit/entry.ts';
import { PolicyTelling } from '../../vault/bin/policy-telling.ts';

const start = Date.parse('2026-11-24T10:00:00Z');

class Vault {
  time = start;
  away = false;
  failures = 0;
  readonly done: string[] = [];
  readonly entries: Entry[] = [];
  readonly telling = new PolicyTelling({
    keep: async (digest) => this.#write(() => this.done.push(`keep ${digest}`)),
    record: async (entry) => {
      this.#write(() => this.done.push(`name ${String(entry.detail?.['policies'])}`));
      this.entries.push(entry);
    },
    failed: () => void (this.failures += 1),
    now: () => new Date(this.time),
    retryMs: 10,
  });

  #write(what: () => unknown): void {
    if (this.away) throw new Error('the database is away');
    what();
  }
}

const after = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

t.test('a set is kept and then named, with the time at which it came into force; sets in their order', async (t) => {
  const vault = new Vault();
  vault.telling.tell({ digest: 'a', files: new Map() });
  vault.telling.tell({ digest: 'b', files: new Map() });
  vault.time += 5000;
  await vault.telling.close();
  t.same(vault.done, ['keep a', 'name a', 'keep b', 'name b']);
  t.match(vault.entries, [{ action: 'policy.reload', at: new Date(start), outcome: 'allowed' }, { at: new Date(start) }]);
  t.equal(vault.failures, 0);
});

t.test('while nothing can be written it is tried again until it can, and said once', async (t) => {
  const vault = new Vault();
  vault.away = true;
  vault.telling.tell({ digest: 'a', files: new Map() });
  await after(100);
  vault.telling.tell({ digest: 'b', files: new Map() });
  await after(50);
  t.same(vault.done, []);
  vault.away = false;
  vault.time += 60_000;
  for (let tries = 0; tries < 500 && vault.done.length < 4; tries += 1) await after(10);
  t.same(vault.done, ['keep a', 'name a', 'keep b', 'name b']);
  t.match(vault.entries[0], { at: new Date(start) }, 'when it came into force, not when it could be told');
  t.equal(vault.failures, 1);
});

t.test('an end while nothing can be written does not wait for it', async (t) => {
  const vault = new Vault();
  vault.away = true;
  vault.telling.tell({ digest: 'a', files: new Map() });
  await after(30);
  await vault.telling.close();
  t.same([vault.done, vault.failures], [[], 1]);
});
