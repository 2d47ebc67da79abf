/** What memory holds after batches: nothing, and without any later request, as the vault overwrites the buffers that requests came through by itself. */
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { startLoadClient } from '../bench/load-client.ts';
import { startReal } from '../bench/target.ts';
import { ApiClient } from '../support/api-client.ts';
import { until } from '../support/appliance.ts';
import { cardDigits, cardNumber } from '../support/cards.ts';
import { scan, type ScanReport } from './scanner.ts';

const seed = 7;
const batches = 20;
const cards = batches * 1000;
/** Cards of this test's own, beyond the load client's: sent and asked for as batches, and one alone. */
const own = 500;

void t.test('after batches of cards and of tokens no card number is left in memory', { timeout: 180_000 }, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'cofre-memory-'));
  chmodSync(folder, 0o755);
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const server = await startReal(folder, { dumpable: true });
  t.teardown(() => server.stop());
  const load = startLoadClient();
  t.teardown(() => load.close());
  const client = (who: 'checkout' | 'getnet'): ApiClient => {
    const { ca, cert, key } = server.tlsFiles(who);
    const made = new ApiClient({ port: server.port, authority: readFileSync(ca, 'utf8'), credentials: { cert: readFileSync(cert, 'utf8'), key: readFileSync(key, 'utf8') }, connections: 1, transcript: [] });
    t.teardown(() => made.close());
    return made;
  };
  const overwritten = async (): Promise<number> => Number(/^cofre_network_buffers_overwritten_total (\d+)$/mu.exec(await (await fetch(`http://127.0.0.1:${server.telemetryPort}/metrics`)).text())?.[1]);
  /** Scans once the vault has overwritten its buffers after what came last: it does so when nothing came for a while, and then no more. */
  const left = async (firstCard: number, count: number): Promise<ScanReport> => {
    let last = await overwritten();
    let same = 0;
    await until(async () => {
      await sleep(100);
      const now = await overwritten();
      same = now === last ? same + 1 : 0;
      last = now;
      return same === 5;
    }, 'rest');
    return await scan(server.pid, { firstCard, cards: count, seed });
  };
  const none = (report: ScanReport, message: string): void => {
    t.equal(report.found.distinct, 0, `${message}; places: ${JSON.stringify(report.hits)}`);
  };

  const sent = await load.run({ port: server.port, connections: 4, seed, firstCard: 0, scenario: 'batch', tlsFiles: server.tlsFiles('checkout'), requests: batches });
  t.strictSame([sent.answered, sent.failures], [batches, {}], 'every batch got its tokens');
  none(await left(0, cards), 'after batches of cards');

  const checkout = client('checkout');
  const getnet = client('getnet');
  const digits = Buffer.alloc(cardDigits);
  const pans = Array.from({ length: own }, (_, n) => {
    cardNumber(cards + n, digits, 0, seed);
    return digits.toString('latin1');
  });
  const made = (await checkout.post('/v1/tokenize/batch', { items: pans.map((pan) => ({ pan, cardholder: 'ANA SOUZA' })) })).json()['items'] as { token: string }[];
  for (let at = 0; at < own; at += 100) {
    const opened = (await getnet.post('/v1/detokenize/batch', { tokens: made.slice(at, at + 100).map(({ token }) => token), purpose: 'capture' })).json()['items'] as { pan: string }[];
    t.equal(opened[99]?.pan, pans[at + 99]);
  }
  none(await left(cards, own), 'after batches of tokens');

  // Alone, and the last of all: nothing comes after it.
  cardNumber(cards + own, digits, 0, seed);
  t.equal((await checkout.post('/v1/tokenize', { pan: digits.toString('latin1') })).status, 201);
  none(await left(cards + own, 1), 'after a single card, with nothing behind it');
});
