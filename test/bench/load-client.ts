/** The load client's process: takes one job a time from its parent and answers each, so that its memory and processor time stand apart from the parent's. */
import { fork, type ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { runLoad, type LoadResult } from './load.ts';
import { batchSize, makeScenario, tokenBytes, type KnownCards, type ScenarioName } from './scenario.ts';

export interface Job {
  readonly scenario: ScenarioName;
  readonly port: number;
  readonly tlsFiles: { readonly ca: string; readonly cert: string; readonly key: string };
  readonly connections: number;
  readonly seconds?: number;
  readonly requests?: number;
  readonly warmupSeconds?: number;
  readonly seed: number;
  readonly firstCard: number;
  /** Keeps the tokens of a `tokenize` job of `requests` requests for the scenarios on known cards. */
  readonly remember?: boolean;
}

export interface JobResult extends LoadResult {
  /** Of the client, in the counted time. */
  readonly clientCpuSeconds: number;
  /** Cards that the job used up, from `firstCard`. */
  readonly cards: number;
}

type Message = { readonly type: 'measuring'; readonly begins: boolean } | { readonly type: 'done'; readonly result: JobResult } | { readonly type: 'failed'; readonly message: string };

export interface LoadClient {
  readonly pid: number;
  /** Runs one job; `onMeasuring` is told when the counted time begins and ends, by a message between processes, so about a millisecond late. */
  run(job: Job, onMeasuring?: (begins: boolean) => void): Promise<JobResult>;
  close(): void;
}

/** Starts a client process. One job at a time. */
export function startLoadClient(): LoadClient {
  const child: ChildProcess = fork(fileURLToPath(import.meta.url), { execArgv: [] });
  return {
    pid: child.pid!,
    run: (job, onMeasuring) =>
      new Promise((resolve, reject) => {
        const onExit = (): void => reject(new Error('the load client ended'));
        const onMessage = (message: Message): void => {
          if (message.type === 'measuring') return onMeasuring?.(message.begins);
          child.off('message', onMessage);
          child.off('exit', onExit);
          if (message.type === 'done') resolve(message.result);
          else reject(new Error(`the load client failed: ${message.message}`));
        };
        child.on('message', onMessage);
        child.once('exit', onExit);
        child.send(job);
      }),
    close: () => void child.kill(),
  };
}

let known: KnownCards | null = null;

async function runJob(job: Job): Promise<JobResult> {
  const collect = job.remember === true ? Buffer.alloc((job.requests ?? 0) * tokenBytes) : null;
  const scenario = makeScenario({ name: job.scenario, host: `127.0.0.1:${job.port}`, seed: job.seed, firstCard: job.firstCard, known, collect });
  const cpu = () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  };
  let cpuSeconds = 0;
  const result = await runLoad({
    port: job.port,
    tls: { ca: readFileSync(job.tlsFiles.ca), cert: readFileSync(job.tlsFiles.cert), key: readFileSync(job.tlsFiles.key) },
    connections: job.connections,
    ...(job.seconds === undefined ? { requests: job.requests ?? 0 } : { seconds: job.seconds }),
    warmupSeconds: job.warmupSeconds ?? 0,
    maxRequestBytes: scenario.maxRequestBytes,
    makeRequest: (sequence, into) => scenario.makeRequest(sequence, into),
    onResponse: (response, sequence) => scenario.onResponse(response, sequence),
    onMeasuring: (begins) => {
      cpuSeconds = cpu() - cpuSeconds;
      process.send!({ type: 'measuring', begins } satisfies Message);
    },
  });
  if (collect !== null) known = { first: job.firstCard, count: job.requests ?? 0, tokens: collect };
  const cards = job.scenario === 'tokenize' || job.scenario === 'mixed' ? result.sent : job.scenario === 'batch' ? result.sent * batchSize : 0;
  return { ...result, clientCpuSeconds: cpuSeconds, cards };
}

if (import.meta.main) {
  process.on('disconnect', () => process.exit(0));
  process.on('message', (job: Job) => {
    runJob(job).then(
      (result) => process.send!({ type: 'done', result } satisfies Message),
      (error: unknown) => process.send!({ type: 'failed', message: error instanceof Error ? error.message : 'unknown' } satisfies Message),
    );
  });
}
