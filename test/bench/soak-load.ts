/** The soak's client process: every kind of call at its own rate, all at once, each connection made anew now and then. Tells its parent what was answered since the start, every second. */
import { fork, type ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { runLoad, type LoadTls } from './load.ts';
import { batchSize, makeScenario, tokenBytes, type KnownCards, type Scenario } from './scenario.ts';
import { detokenizeBatches, intrusions, tokenLives, wrongRequests, type SoakScenario } from './soak-scenarios.ts';
import type { Count } from './soak-report.ts';
import type { DevelopmentCaller } from './target.ts';

export interface SoakJob {
  readonly port: number;
  readonly tlsFiles: Readonly<Record<DevelopmentCaller, { readonly ca: string; readonly cert: string; readonly key: string }>>;
  readonly seconds: number;
  /** Share of the usual rates. */
  readonly load: number;
}

/** What the client has to tell: that the load begins, then counts since the start by kind of call. */
export type SoakMessage = { readonly type: 'begins' } | { readonly type: 'counts'; readonly countedSeconds: number; readonly counts: Readonly<Record<string, Count>>; readonly failures: Readonly<Record<string, number>> } | { readonly type: 'done' } | { readonly type: 'failed'; readonly message: string };

const seed = 7;
const knownCount = 20_000;

interface Kind {
  readonly name: string;
  readonly caller: DevelopmentCaller;
  readonly perSecond: number;
  readonly connections: number;
  /** Its connections are made anew so often; no two kinds at the same time. */
  readonly reconnectSeconds: number;
  readonly itemsOfCall: number;
  /** Called again with each reconnection; `sent` requests came before. */
  readonly make: (sent: number) => SoakScenario;
}

/** Detokenize stays below development's 100,000 a minute: 60,000 for one purpose, 12,000 in batches for another. */
function kindsOf(host: string, known: KnownCards): Kind[] {
  const usual = (name: 'tokenize' | 'known' | 'detokenize' | 'validate' | 'batch', firstCard: number): Scenario => makeScenario({ name, host, seed, firstCard, known, collect: null });
  let lifeCards = 600_000_000;
  let lives: ReturnType<typeof tokenLives> | null = null;
  const live = (): SoakScenario => {
    lifeCards += lives?.cards ?? 0;
    lives = tokenLives(host, seed, lifeCards);
    return lives;
  };
  return [
    { name: 'tokenize', caller: 'checkout', perSecond: 800, connections: 16, reconnectSeconds: 31, itemsOfCall: 1, make: (sent) => usual('tokenize', knownCount + sent) },
    { name: 'known', caller: 'checkout', perSecond: 300, connections: 8, reconnectSeconds: 37, itemsOfCall: 1, make: () => usual('known', 0) },
    { name: 'batch', caller: 'checkout', perSecond: 5, connections: 2, reconnectSeconds: 61, itemsOfCall: batchSize, make: (sent) => usual('batch', 300_000_000 + sent * batchSize) },
    { name: 'detokenize', caller: 'getnet', perSecond: 1000, connections: 16, reconnectSeconds: 29, itemsOfCall: 1, make: () => usual('detokenize', 0) },
    { name: 'detokenize_batch', caller: 'getnet', perSecond: 2, connections: 2, reconnectSeconds: 53, itemsOfCall: 100, make: () => detokenizeBatches(host, seed, known) },
    { name: 'validate', caller: 'checkout', perSecond: 800, connections: 8, reconnectSeconds: 41, itemsOfCall: 1, make: () => usual('validate', 0) },
    { name: 'lives', caller: 'checkout', perSecond: 200, connections: 8, reconnectSeconds: 43, itemsOfCall: 1, make: live },
    { name: 'wrong', caller: 'checkout', perSecond: 40, connections: 2, reconnectSeconds: 17, itemsOfCall: 1, make: () => wrongRequests(host, seed) },
    { name: 'intruder', caller: 'intruder', perSecond: 10, connections: 1, reconnectSeconds: 13, itemsOfCall: 1, make: () => intrusions(host, seed) },
  ];
}

/** Connections that are cut in the middle of a request's body. */
const abortsPerSecond = 1;

async function soak(job: SoakJob): Promise<void> {
  const host = `127.0.0.1:${job.port}`;
  const tls = Object.fromEntries(Object.entries(job.tlsFiles).map(([caller, files]) => [caller, { ca: readFileSync(files.ca), cert: readFileSync(files.cert), key: readFileSync(files.key) }])) as Record<DevelopmentCaller, LoadTls>;
  const tokens = Buffer.alloc(knownCount * tokenBytes);
  const toKnow = makeScenario({ name: 'tokenize', host, seed, firstCard: 0, known: null, collect: tokens });
  const filled = await runLoad({ port: job.port, tls: tls.checkout, connections: 16, requests: knownCount, ...toKnow });
  if (filled.answered !== knownCount) throw new Error(`the cards to know were not all taken: ${JSON.stringify(filled.failures)}`);

  const counts: Record<string, { calls: number; items: number; p99Ms: number }> = {};
  const failures: Record<string, number> = {};
  const fail = (name: string, count = 1): void => void (failures[name] = (failures[name] ?? 0) + count);
  const endsAtMs = performance.now() + job.seconds * 1000;
  const left = (): number => (endsAtMs - performance.now()) / 1000;
  const runKind = async (kind: Kind): Promise<void> => {
    const count = (counts[kind.name] = { calls: 0, items: 0, p99Ms: 0 });
    for (let sent = 0; left() > 0.1; ) {
      const scenario = kind.make(sent);
      const result = await runLoad({
        port: job.port, tls: tls[kind.caller], connections: kind.connections, perSecond: kind.perSecond * job.load, seconds: Math.min(kind.reconnectSeconds, left()), maxRequestBytes: scenario.maxRequestBytes,
        makeRequest: (sequence, into) => scenario.makeRequest(sequence, into),
        onResponse(response, sequence) {
          const wrong = scenario.onResponse(response, sequence);
          if (wrong === null) {
            count.calls++;
            count.items += kind.itemsOfCall;
          }
          return wrong;
        },
        onLost: (sequence) => scenario.onLost?.(sequence),
      });
      sent += result.sent;
      count.p99Ms = result.latencyMs.p99;
      for (const [name, times] of Object.entries(result.failures)) fail(`${kind.name}: ${name}`, times);
    }
  };
  const abort = async (): Promise<void> => {
    const count = (counts['abort'] = { calls: 0, items: 0, p99Ms: 0 });
    const start = Buffer.from(`POST /v1/tokenize/batch HTTP/1.1\r\nHost: ${host}\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{"items":[{"pan":"`, 'latin1');
    while (left() > 0.1) {
      const socket = connect({ host: '127.0.0.1', port: job.port, ...tls.checkout, minVersion: 'TLSv1.3' });
      socket.on('error', () => fail('abort: refused'));
      socket.once('secureConnect', () => {
        socket.write(start, () => socket.destroy());
        count.calls++;
      });
      await sleep(Math.min(1000 / (abortsPerSecond * job.load), Math.max(0, left() * 1000)));
      socket.destroy();
    }
  };
  tell({ type: 'begins' });
  const tellCounts = (): void => tell({ type: 'counts', countedSeconds: job.seconds - left(), counts, failures });
  const ticker = setInterval(tellCounts, 1000);
  await Promise.all([...kindsOf(host, { first: 0, count: knownCount, tokens }).map(runKind), abort()]);
  clearInterval(ticker);
  tellCounts();
  tell({ type: 'done' });
}

function tell(message: SoakMessage): void {
  process.send!(message);
}

/** Starts the client process; `onMessage` is told what it has to say. */
export function startSoakLoad(job: SoakJob, onMessage: (message: SoakMessage) => void): { readonly pid: number; close(): void } {
  const child: ChildProcess = fork(fileURLToPath(import.meta.url), { execArgv: [] });
  child.on('message', onMessage);
  child.once('exit', () => onMessage({ type: 'failed', message: 'the load client ended' }));
  child.send(job);
  return {
    pid: child.pid!,
    close: () => void child.kill(),
  };
}

if (import.meta.main) {
  process.on('disconnect', () => process.exit(0));
  process.on('message', (job: SoakJob) => {
    soak(job).catch((error: unknown) => tell({ type: 'failed', message: error instanceof Error ? error.message : 'unknown' }));
  });
}
