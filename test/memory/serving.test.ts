/** What the serving process's memory holds of the cards that went through it: nothing, once one request without a card came after. */
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { startLoadClient } from '../bench/load-client.ts';
import { startReal } from '../bench/target.ts';
import { scan } from './scanner.ts';

const seed = 7;
const tokenizes = 10_000;
const detokenizes = 1_000;

void t.test('after 10,000 tokenize and 1,000 detokenize calls and one card-less request no card number is left in memory', { timeout: 180_000 }, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'cofre-memory-'));
  chmodSync(folder, 0o755);
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const server = await startReal(folder, { dumpable: true });
  t.teardown(() => server.stop());
  const client = startLoadClient();
  t.teardown(() => client.close());
  const job = { port: server.port, connections: 16, seed, firstCard: 0 };

  const tokenized = await client.run({ ...job, scenario: 'tokenize', tlsFiles: server.tlsFiles('checkout'), requests: tokenizes, remember: true });
  t.strictSame([tokenized.answered, tokenized.failures], [tokenizes, {}], 'every card got its token');
  const detokenized = await client.run({ ...job, scenario: 'detokenize', tlsFiles: server.tlsFiles('getnet'), requests: detokenizes });
  t.strictSame([detokenized.answered, detokenized.failures], [detokenizes, {}], 'every token gave its card');
  const cardless = await client.run({ ...job, scenario: 'validate', tlsFiles: server.tlsFiles('checkout'), connections: 1, requests: 1 });
  t.equal(cardless.answered, 1);

  const report = await scan(server.pid, { firstCard: 0, cards: tokenizes, seed });
  t.ok(report.bytesScanned > 50 * 1024 * 1024, 'the memory was read');
  t.strictSame(report.found, { distinct: 0, occurrences: 0, ascii: { distinct: 0, occurrences: 0 }, utf16le: { distinct: 0, occurrences: 0 } }, `none is left, as ASCII or UTF-16; places: ${JSON.stringify(report.hits)}`);
});
