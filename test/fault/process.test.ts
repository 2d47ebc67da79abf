/** The serving process ended in mid-load, by a kill and by order, again and again: nothing acknowledged is lost, and each successor names what it follows. */
import { Client } from 'pg';
import t, { type Test } from 'tap';
import { batchHeader, headerHash, writerName } from '../../audit/chain.ts';
import { startAppliance, until } from '../support/appliance.ts';
import { reckon, startCardLoad } from '../support/card-load.ts';
import { readChains, type Log } from '../support/group-commit.ts';
import { logVerifier } from '../support/log-reader.ts';

const appliance = await startAppliance(t);

async function chains(): Promise<Log> {
  const client = new Client({ connectionString: appliance.databaseUrl });
  await client.connect();
  try {
    return await readChains(client, logVerifier(appliance.home));
  } finally {
    await client.end();
  }
}

/** The runs of one of a process's writers, in the order of their start: their ids and start entries. */
function startsOf(log: Log, name: string): { readonly name: string; readonly writer: bigint; readonly detail: Readonly<Record<string, unknown>> }[] {
  return log.entries
    .filter(({ entry }) => entry.action === 'writer.start' && entry.detail?.['name'] === name)
    .map(({ writer, entry }) => ({ name: writerName(writer), writer, detail: entry.detail ?? {} }));
}

/** Asserts that each writer but the first names its predecessor, a batch that stands there, and whether that had closed its chain. */
function namesPredecessors(t: Test, log: Log, closed: readonly string[]): void {
  t.same(log.faults, [], 'chains, signatures and certificates hold');
  for (const role of ['tokenize', 'tokenize-batch', 'detokenize']) {
    const starts = startsOf(log, role);
    t.equal(starts.length, closed.length + 1, `one ${role} writer a run`);
    t.notOk('predecessor' in starts[0]!.detail, 'the first has none');
    for (const [index, { detail }] of starts.slice(1).entries()) {
      const before = starts[index]!;
      const chain = log.batches.get(before.writer)!;
      t.equal(detail['predecessor'], before.name, `${role} run ${index + 1} names its predecessor`);
      t.equal(detail['predecessor_closed'], closed[index]);
      const named = chain[Number(detail['predecessor_last'])];
      t.equal(named === undefined ? 'no batch' : headerHash(batchHeader(named)).toString('hex'), detail['predecessor_hash'], 'and a batch of it, as it stands');
      const last = log.entries.filter(({ writer }) => writer === before.writer).at(-1)!;
      t.equal(last.entry.action === 'writer.stop', closed[index] === 'yes', 'whose chain ends with a stop exactly if it was closed');
      if (closed[index] === 'yes') t.equal(named, chain.at(-1), 'and whose last batch is the named one');
    }
  }
}

const endings: string[] = [];

for (const [round, how] of (['kill -9', 'kill -9', 'SIGTERM', 'kill -9', 'SIGTERM', 'kill -9'] as const).entries()) {
  await t.test(`round ${round}: ${how} in mid-load`, { timeout: 90_000 }, async (t) => {
    const load = startCardLoad(appliance);
    // Another number each time, so that it strikes another moment.
    await until(() => load.acknowledged.size > 60 + round * 17, 'the load');
    if (how === 'kill -9') await appliance.kill9();
    else t.same(await appliance.stop(), { code: 0, signal: null }, 'it ends in order');
    await load.stop();
    await appliance.start();
    endings.push(how === 'kill -9' ? 'no' : 'yes');
    await reckon(t, appliance, load);
    namesPredecessors(t, await chains(), endings);
  });
}

await t.test('a kill in the middle of a start leaves nothing that the next start trips over', { timeout: 90_000 }, async (t) => {
  const before = startCardLoad(appliance);
  await until(() => before.acknowledged.size > 30, 'the load');
  await appliance.kill9();
  await before.stop();
  for (const afterMs of [150, 400, 700, 1000, 1300]) {
    const started = appliance.launch();
    const kill = setTimeout(() => appliance.signal('SIGKILL'), afterMs);
    const ended = await started;
    clearTimeout(kill);
    // Faster than the kill: then it is killed as soon as it is ready.
    if (ended === null) await appliance.kill9();
  }
  await appliance.start();
  await reckon(t, appliance, before);
  t.same((await chains()).faults, []);
});
