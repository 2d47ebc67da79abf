/** Reads a vault's metrics: Prometheus text on its telemetry port. */

/** The text; null if it does not answer. */
export async function readMetrics(telemetryPort: number): Promise<string | null> {
  try {
    return await (await fetch(`http://127.0.0.1:${telemetryPort}/metrics`)).text();
  } catch {
    return null;
  }
}

/** The sum of a metric over all its labels; 0 if the text has none. */
export function sumOf(text: string, name: string): number {
  return [...text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? ([0-9.e+-]+)$`, 'gm'))].reduce((sum, match) => sum + Number(match[1]), 0);
}
