/** Metrics of several worker processes as one text: prom-client asks each of them over its channel and adds up what they say. */
import { AggregatorRegistry } from 'prom-client';
import type { PrometheusContentType, Registry } from 'prom-client';

let aggregator: AggregatorRegistry<PrometheusContentType> | null = null;

/** In the primary process: Prometheus text of all workers. Rejects if one of them does not answer. */
export function collectMetrics(): Promise<string> {
  aggregator ??= new AggregatorRegistry();
  return aggregator.clusterMetrics();
}

/** In a worker: answers the primary with this registry from now on. */
export function answerMetrics(registry: Registry): void {
  aggregator ??= new AggregatorRegistry();
  AggregatorRegistry.setRegistries([registry]);
}
