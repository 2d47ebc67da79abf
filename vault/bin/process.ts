/** What a process of a vault is told, and what it tells. */
import type { Readiness } from '../../platform-adapters/telemetry/listener.ts';
import type { Log } from '../../platform-adapters/telemetry/log.ts';
import type { Metrics } from '../../platform-adapters/telemetry/metrics.ts';
import type { Config } from '../config.ts';
import type { TicketSecret } from '../ticket-secret.ts';
import type { DatabaseAccess } from './database.ts';

export interface ProcessOptions {
  readonly home: string;
  readonly config: Config;
  readonly access: DatabaseAccess;
  readonly log: Log;
  readonly metrics: Metrics;
  /** Which of the processes of this home that serve calls it is, from 0. The first one also does what is done once for all. */
  readonly index: number;
  /** Where several processes share listeners: the secret that their session tickets have in common. */
  readonly tickets: TicketSecret | null;
  /** Where the log is sequenced in another process of this home: resolves once it is. Before, no writer is opened. */
  readonly sequenced?: Promise<void>;
}

export interface VaultProcess {
  readiness(): Readiness;
  /** Opens the listeners, and resolves to their ports; null for one that its roles have no use for. @throws Error of one line. */
  open(): Promise<Ports>;
}

export interface Ports {
  readonly api: number | null;
  readonly admin: number | null;
}
