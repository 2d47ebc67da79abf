/** Every input of test/fuzz/corpus, tried once: what the fuzzer ever found stays found. */
import t from 'tap';
import { freshDatabase } from '../support/database.ts';
import { committedCorpus, holdsUnpublishedCard, readInputs } from './corpus.ts';
import { loadTarget, targetNames } from './target.ts';

const database = await freshDatabase(t, { migrated: false });

for (const name of targetNames) {
  await t.test(`the corpus of ${name}`, async (t) => {
    const target = await loadTarget(name);
    const inputs = readInputs(committedCorpus(name));
    t.ok(inputs.length > 3);
    await target.open?.(database);
    for (let at = 0; at < inputs.length; at += target.parallel) {
      await Promise.all(
        inputs.slice(at, at + target.parallel).map(async (input) => {
          t.notOk(holdsUnpublishedCard(input.bytes), input.name);
          try {
            await target.run(input.bytes);
          } catch (error) {
            t.fail(`${input.name}: ${(error as Error).message}`);
          }
        }),
      );
    }
    await target.close?.();
  });
}
