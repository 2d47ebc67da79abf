/** What readiness and the gauges are made of. */
import type { Keyring } from '../../hsm/keyring.ts';
import type { Part, Readiness } from '../../platform-adapters/telemetry/listener.ts';
import type { Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import { milliseconds } from '../config.ts';
import type { Config } from '../config.ts';
import type { RevocationList } from '../revocation.ts';
import type { TlsListener } from '../tls.ts';

/** What is asked of a writer here. */
export type AnyWriter = { awayMs(): number; readonly logRefused: boolean; readonly depth: number };

/** HSM, database and log, each apart, so that whoever is woken knows where to look. */
export function readinessOf(keyring: Keyring, writers: readonly AnyWriter[], config: Config): Readiness {
  const hsm = keyring.health();
  const awayMs = Math.max(...writers.map((writer) => writer.awayMs()));
  const written = awayMs === 0 && !writers.some((writer) => writer.logRefused);
  const hsmUsable = hsm.ok || (config.hsm.custody === 'envelope' && hsm.awayMs <= milliseconds(config.hsm.max_away));
  return {
    hsm: { ok: hsmUsable, detail: hsm.ok ? 'answers' : `away for ${Math.round(hsm.awayMs / 1000)} s` },
    database: { ok: awayMs === 0, detail: awayMs === 0 ? 'connected' : `away for ${Math.round(awayMs / 1000)} s` },
    log: { ok: written, detail: written ? 'batches are committed' : 'batches cannot be committed' },
  };
}

/** Whether the revocation list is fresh. */
export function freshnessOf(revocation: RevocationList): Part {
  const fresh = revocation.status().freshUntil > new Date();
  return { ok: fresh, detail: fresh ? 'fresh' : 'the revocation list is stale: every caller is refused' };
}

/** States that are read when metrics are scraped. */
export function addGauges(metrics: Metrics, keyring: Keyring, writers: readonly AnyWriter[]): void {
  metrics.gauge('cofre_hsm_up', 'Whether the HSM answered its last probe.', () => (keyring.health().ok ? 1 : 0), 'min');
  metrics.gauge('cofre_hsm_away_seconds', 'How long the HSM has not answered.', () => keyring.health().awayMs / 1000, 'max');
  metrics.gauge('cofre_database_away_seconds', 'How long a writer has been without its session.', () => Math.max(...writers.map((writer) => writer.awayMs())) / 1000, 'max');
}

export function addConnectionGauges(metrics: Metrics, api: TlsListener): void {
  metrics.gauge('cofre_connections', 'Open connections of the API listener.', () => api.connections);
  metrics.gauge('cofre_handshakes_waiting', 'Connections of the API listener that wait for their handshake.', () => api.handshakesWaiting);
}
