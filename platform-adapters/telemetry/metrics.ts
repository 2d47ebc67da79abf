/** Prometheus metrics of every stage, with prom-client. Labels are our own constants; nothing of a request is ever one. */
import { AggregatorRegistry, Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from 'prom-client';
import type { MetricObjectWithValues, MetricValue } from 'prom-client';

const seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
/** For what takes microseconds in memory, and in an HSM across a network milliseconds. */
const fineSeconds = [0.00002, 0.00005, 0.0001, 0.0002, 0.0005, ...seconds];

/** What one process counted, as it crosses from there to the one that is asked. */
export type MetricValues = readonly MetricObjectWithValues<MetricValue<string>>[];

export interface Metrics {
  /** Prometheus text of this process. */
  text(): Promise<string>;
  values(): Promise<MetricValues>;
  /** One answered request. `outcome` is `ok` or an error code. */
  answered(action: string, outcome: string, durationSeconds: number): void;
  queued(role: string, depth: number): void;
  waited(role: string, durationMs: number): void;
  /** Sealing and fingerprinting a card, or opening one. */
  keyWork(stage: string, durationMs: number): void;
  committed(role: string, calls: number, durationMs: number): void;
  disturbed(role: string, kind: string): void;
  connection(kind: string): void;
  /** A connection that was closed before any request on it was looked at. */
  connectionRefused(listener: string, reason: string): void;
  /** A request that was turned away before anything looked at it, or a connection that was closed for how it is used. */
  turnedAway(listener: string, reason: string): void;
  hsmEvent(kind: string): void;
  hsmCall(operation: string, durationMs: number): void;
  /** A caller does what its service would not. */
  abuse(kind: string): void;
  /** Values read when the metrics are scraped; of several processes added up, unless the least or the largest tells. */
  gauge(name: string, help: string, read: () => number, ofSeveral?: 'sum' | 'min' | 'max'): void;
  count(name: string, help: string): (by?: number) => void;
  /** Of seconds. */
  histogram(name: string, help: string): (seconds: number) => void;
}

export function createMetrics(): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const requests = new Histogram({ name: 'cofre_request_seconds', help: 'Time from a request\'s head to its answer, by operation and outcome.', labelNames: ['operation', 'outcome'], buckets: seconds, registers: [registry] });
  const queue = new Gauge({ name: 'cofre_commit_queue', help: 'Calls that wait for a transaction.', labelNames: ['role'], registers: [registry] });
  const waits = new Histogram({ name: 'cofre_commit_wait_seconds', help: 'How long the first call of a transaction had waited for it.', labelNames: ['role'], buckets: seconds, registers: [registry] });
  const keys = new Histogram({ name: 'cofre_key_work_seconds', help: 'Time of sealing and fingerprinting a card (seal), or of opening one (open), the HSM included.', labelNames: ['stage'], buckets: fineSeconds, registers: [registry] });
  const commits = new Histogram({ name: 'cofre_commit_seconds', help: 'Time of a transaction from BEGIN to the answer to COMMIT.', labelNames: ['role'], buckets: seconds, registers: [registry] });
  const sizes = new Histogram({ name: 'cofre_commit_calls', help: 'Calls that shared a transaction.', labelNames: ['role'], buckets: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], registers: [registry] });
  const disturbances = new Counter({ name: 'cofre_commit_disturbed_total', help: 'Transactions that did not commit at once, by what became of them.', labelNames: ['role', 'kind'], registers: [registry] });
  const connections = new Counter({ name: 'cofre_tls_events_total', help: 'Events of the TLS listeners.', labelNames: ['kind'], registers: [registry] });
  const refusedConnections = new Counter({ name: 'cofre_connections_refused_total', help: 'Connections closed before any request on them was looked at, or between two for one of another caller, by listener and reason.', labelNames: ['listener', 'reason'], registers: [registry] });
  const turnedAway = new Counter({ name: 'cofre_requests_turned_away_total', help: 'Requests turned away before anything looked at them, and connections closed because their answers are not read, by listener and reason.', labelNames: ['listener', 'reason'], registers: [registry] });
  const hsmEvents = new Counter({ name: 'cofre_hsm_events_total', help: 'Events of the HSM and of its keys.', labelNames: ['kind'], registers: [registry] });
  const hsmCalls = new Histogram({ name: 'cofre_hsm_call_seconds', help: 'Time of a call of the HSM, without the wait for a session.', labelNames: ['operation'], buckets: fineSeconds, registers: [registry] });
  const abuses = new Counter({ name: 'cofre_abuse_alerts_total', help: 'Callers that did what their service would not, by kind; of a caller and kind one a minute.', labelNames: ['kind'], registers: [registry] });
  return {
    text: () => registry.metrics(),
    values: () => registry.getMetricsAsJSON(),
    answered: (action, outcome, durationSeconds) => requests.observe({ operation: action, outcome }, durationSeconds),
    queued: (role, depth) => queue.set({ role }, depth),
    waited: (role, durationMs) => waits.observe({ role }, durationMs / 1000),
    keyWork: (stage, durationMs) => keys.observe({ stage }, durationMs / 1000),
    committed(role, calls, durationMs) {
      commits.observe({ role }, durationMs / 1000);
      sizes.observe({ role }, calls);
    },
    disturbed: (role, kind) => disturbances.inc({ role, kind }),
    connection: (kind) => connections.inc({ kind }),
    connectionRefused: (listener, reason) => refusedConnections.inc({ listener, reason }),
    turnedAway: (listener, reason) => turnedAway.inc({ listener, reason }),
    hsmEvent: (kind) => hsmEvents.inc({ kind }),
    hsmCall: (operation, durationMs) => hsmCalls.observe({ operation }, durationMs / 1000),
    abuse: (kind) => abuses.inc({ kind }),
    gauge(name, help, read, ofSeveral = 'sum') {
      // prom-client calls `collect` with the metric as `this`.
      registry.registerMetric(new Gauge({ name, help, registers: [], aggregator: ofSeveral, collect() { this.set(read()); } }));
    },
    count(name, help) {
      const counter = new Counter({ name, help, registers: [registry] });
      return (by = 1) => counter.inc(by);
    },
    histogram(name, help) {
      const histogram = new Histogram({ name, help, buckets: seconds, registers: [registry] });
      return (value) => histogram.observe(value);
    },
  };
}

/**
 * Prometheus text of several processes together: each metric added up, or as its own kind says. `missing` is how many processes are not among them, for they do not answer or are not there: the sums lack
 * their share, so it is a metric as well.
 */
export async function textOfSeveral(all: readonly MetricValues[], missing: number): Promise<string> {
  const registry = new Registry();
  new Gauge({ name: 'cofre_processes_missing', help: 'Processes of this vault whose metrics are not among these, because they hang or are being started again: what is added up lacks theirs.', registers: [registry] }).set(missing);
  return await AggregatorRegistry.aggregate([...all, await registry.getMetricsAsJSON()]).metrics();
}
