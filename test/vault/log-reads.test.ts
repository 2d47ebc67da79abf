/** The entries for those who read the log: whatever is read is in one of them, also what is read while one is written. */
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import type { Entry } from '../../audit/entry.ts';
import type { Call } from '../../vault/call.ts';
import { VaultError } from '../../vault/errors.ts';
import { LogReads } from '../../vault/log-reads.ts';

const call: Call = {
  requestId: '3f1d2c2e-0000-4000-8000-000000000000',
  at: new Date('2026-11-24T10:00:00Z'),
  caller: { spiffeId: 'spiffe://cofre.dev/tenant/platform/service/auditor', tenant: 'platform', service: 'auditor', serial: '1f', notAfter: new Date('2030-01-01') },
  from: '127.0.0.1',
};

t.test('what one certificate reads from two addresses is told of each', async (t) => {
  const entries: Entry[] = [];
  const reads = readsThat(entries, async () => undefined);
  reads.note(call, ['auditor-reads-the-log'], { from: 0, to: 256 });
  reads.note({ ...call, from: '192.0.2.7' }, ['auditor-reads-the-log'], { from: 256, to: 512 });
  await reads.close();
  t.match(entries, [{ from: '127.0.0.1', detail: { entries: '0-255' } }, { from: '192.0.2.7', detail: { entries: '256-511' } }]);
});

t.test('while a log takes nothing rounds do not pile up for the end of the process', async (t) => {
  let tries = 0;
  const reads = new LogReads({
    now: () => new Date('2026-11-24T10:01:00Z'),
    write: async () => {
      tries += 1;
      // Longer than it is from one look to the next.
      await sleep(2500);
      throw new VaultError('store_unavailable');
    },
  });
  reads.note(call, ['auditor-reads-the-log'], 'checkpoint');
  await sleep(3200);
  const before = tries;
  await reads.close();
  t.ok(tries - before <= 2, `${tries - before} more at the end`);
  t.ok(before >= 1);
});

/** Reads whose entries `write` takes, and the first of which finds the log as `first` says. */
function readsThat(entries: Entry[], first: () => Promise<void>): LogReads {
  let begun = false;
  const reads = new LogReads({
    now: () => new Date('2026-11-24T10:01:00Z'),
    write: async (entry) => {
      if (!begun) {
        begun = true;
        await first();
      }
      entries.push(entry);
    },
  });
  return reads;
}

t.test('what is read while an entry is written is in the next one', async (t) => {
  const entries: Entry[] = [];
  let commit = (): void => undefined;
  const reads = readsThat(entries, () => new Promise((done) => (commit = done)));
  reads.note(call, ['auditor-reads-the-log'], { from: 0, to: 256 });
  const closed = reads.close();
  await new Promise(setImmediate);
  reads.note(call, ['auditor-reads-the-log'], { from: 512, to: 768 });
  reads.note(call, ['auditor-reads-the-log'], 'tile');
  commit();
  await closed;
  await reads.close();
  t.match(entries.map(({ detail }) => detail), [{ entries: '0-255', tiles: 0 }, { entries: '512-767', tiles: 1 }]);
});

t.test('what could not be written is in the next entry, with what was read since', async (t) => {
  const entries: Entry[] = [];
  const reads: LogReads = readsThat(entries, async () => {
    reads.note(call, ['auditor-reads-the-log'], { from: 512, to: 768 });
    reads.note(call, ['auditor-reads-the-log'], 'checkpoint');
    throw new VaultError('audit_unavailable');
  });
  reads.note(call, ['auditor-reads-the-log'], { from: 0, to: 256 });
  await reads.close();
  t.same(entries, []);
  await reads.close();
  t.equal(entries.length, 1);
  t.match(entries[0]!.detail, { entries: '0-255 512-767', checkpoints: 1 });
});
