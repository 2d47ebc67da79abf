/** Which texts a reader of search keys keeps. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t from 'tap';
import { facetKey, pairKey, SearchKeyReader } from '../../audit/search-keys.ts';

t.test('texts that a writer may sign and no honest one does are not kept', async (t) => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const reader = new SearchKeyReader();
  const used = (): number => {
    collect();
    return process.memoryUsage().heapUsed / 2 ** 20;
  };
  const long = (index: number): string => Buffer.alloc(60_000, String(index)).toString('latin1');
  reader.read({ action: 'tokenize', outcome: 'allowed', purpose: long(0) });
  const before = used();
  for (let index = 1; index < 1000; index += 1) reader.read({ action: long(index), outcome: long(-index), purpose: long(2 * index) });
  const grown = used() - before;
  t.ok(grown < 20, `${grown.toFixed(1)} MB`);
  t.same(reader.read({ action: 'tokenize', outcome: long(1) }).facets, [facetKey('action', 'tokenize'), facetKey('outcome', long(1)), pairKey('action', 'tokenize', 'outcome', long(1))]);
});
