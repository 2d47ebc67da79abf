/** A log that is begun anew after a restore: which notes of last batches have done their work. */
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { moveNotesAside } from '../../vault/bin/restart-log.ts';
import { freshDatabase } from '../support/database.ts';
import { PostgresProxy } from '../support/postgres-proxy.ts';

t.test('a note moves aside where the database lacks its batch, and stays where the database does not say', async (t) => {
  const home = t.testdir({});
  const folder = join(home, 'writers');
  mkdirSync(folder);
  for (const [name, writer] of [['tokenize.json', '00000000000000aa'], ['detokenize.json', '00000000000000bb']]) writeFileSync(join(folder, name!), `{"writer":"${writer}","number":"7","hash":"${'0'.repeat(64)}","closed":false}\n`);
  const database = await freshDatabase(t);
  const { proxy, through } = await PostgresProxy.open(t, database.connect('sequencer'));

  proxy.judge = () => 'cut';
  await t.rejects(moveNotesAside(home, through, 'cofre.dev/log/2'));
  t.same(readdirSync(folder).sort(), ['detokenize.json', 'tokenize.json']);

  proxy.judge = () => 'pass';
  await moveNotesAside(home, through, 'cofre.dev/log/2');
  t.same(readdirSync(folder).sort(), ['detokenize.json.before-cofre-dev-log-2', 'tokenize.json.before-cofre-dev-log-2']);
});
