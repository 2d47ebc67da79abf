/** The vault's side of `network-cut.ts`, run in its namespace with the name of the other: the appliance, its load and the cuts. Says what held. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { Appliance, until } from '../support/appliance.ts';
import type { FreshDatabase } from '../support/database.ts';
import { Ledger } from '../support/ledger.ts';
import { cardText } from '../support/test-cards.ts';
import { addresses, ip, links } from './network-cut.ts';

const otherSide = process.argv[2]!;
/** A query that is not answered is given up on after 15 s, and its callers wait two seconds more. */
const mostMs = 19_000;
/** Once it is known that the database is away: as long as `max_away`, and room. */
const mostMsWhenKnown = 4000;

/** Both ways of losing what is sent without a word: each begins and ends a cut. */
const cuts = [
  {
    what: 'the link goes down at the far end',
    begin: () => ip('-n', otherSide, 'link', 'set', links.database, 'down'),
    end: () => ip('-n', otherSide, 'link', 'set', links.database, 'up'),
  },
  {
    what: 'what the database answers is lost, and what it is told arrives',
    begin: () => ip('-n', otherSide, 'route', 'add', 'blackhole', `${addresses.vault}/32`),
    end: () => ip('-n', otherSide, 'route', 'delete', 'blackhole', `${addresses.vault}/32`),
  },
] as const;

function must(holds: boolean, what: string): void {
  if (!holds) throw new Error(`did not hold: ${what}`);
}

function held(what: string): void {
  process.stdout.write(`held: ${what}\n`);
}

// Passable for the user that PostgreSQL runs as.
const folder = mkdtempSync(join(tmpdir(), 'cofre-cut-'));
chmodSync(folder, 0o755);
const server = spawn('setpriv', ['--pdeathsig', 'TERM', '--', 'ip', 'netns', 'exec', otherSide, process.execPath, join(import.meta.dirname, 'network-cut-database.ts'), folder], { stdio: ['pipe', 'pipe', 'inherit'] });
const serverEnd = once(server, 'close');
const [line] = (await Promise.race([once(createInterface(server.stdout), 'line'), serverEnd.then(() => Promise.reject(new Error('the database ended before it served')))])) as [string];
const { user, password, database } = new Client((JSON.parse(line) as { adminUrl: string }).adminUrl);
const adminUrl = `postgresql://${encodeURIComponent(user ?? '')}:${encodeURIComponent(String(password))}@${addresses.database}:5432/${database}`;
const appliance = new Appliance({ database: { adminUrl } as FreshDatabase, config: { events: { outbox: true }, database: { max_away: '1s', max_settle: '2s' } } });
let ledger: Ledger | null = null;
try {
  await appliance.start();
  const load = (ledger = new Ledger(appliance, { port: appliance.apiPort, seed: 11, lanes: 6, pauseMs: 8, outbox: true }));
  const readiness = async (): Promise<Record<string, { ok: boolean }> & { ok: boolean }> => (await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as never;
  /** A call that must be refused; resolves to how long that took. */
  const refused = async (card: number): Promise<number> => {
    const began = performance.now();
    const reply = await appliance.client('checkout').post('/v1/tokenize', { pan: cardText(card) });
    must(reply.status === 503 && ['store_unavailable', 'outcome_unknown', 'audit_unavailable'].includes(String(reply.json()['code'])), `a call in the cut is refused (${reply.status})`);
    return performance.now() - began;
  };
  load.resume();
  for (const [round, cut] of cuts.entries()) {
    const before = load.counts.acknowledged;
    await until(() => load.counts.acknowledged > before + 100, 'the load');
    cut.begin();
    try {
      // What was on its way at that moment.
      await sleep(200);
      const { acknowledged } = load.counts;
      const first = refused(1_000_000 + round);
      await until(async () => !(await readiness()).database!.ok, 'readiness to say that the database is away');
      const parts = await readiness();
      must(!parts.ok && parts['hsm']!.ok && parts['revocation']!.ok, 'readiness names the database and nothing that is well');
      must((await first) < mostMs, 'a call that met the cut is refused in time');
      const longest = Math.max(...(await Promise.all([1, 2, 3].map((n) => refused(1_000_000 + 10 * n + round)))));
      must(longest < mostMsWhenKnown, `calls are refused at once when that is known (${Math.round(longest)} ms)`);
      must(load.counts.acknowledged === acknowledged, 'nothing is acknowledged in the cut');
    } finally {
      cut.end();
    }
    const after = load.counts.acknowledged;
    await until(() => load.counts.acknowledged > after + 100, 'the load to go on');
    held(`${cut.what}: readiness says so, calls are refused in time, nothing is acknowledged, and it goes on by itself`);
  }
  await load.pause();
  await until(async () => (await readiness()).ok, 'readiness');
  must(load.unknownCauses.every((cause) => cause.endsWith(': outcome_unknown')), `every call was answered: ${load.unknownCauses.join(', ')}`);
  const faults = await load.reckon(true);
  must(faults.length === 0, faults.join('; '));
  const { acknowledged, refused: turnedAway, unknown } = load.counts;
  held(`of ${acknowledged} acknowledged calls nothing was lost or done twice; ${turnedAway} were refused, of ${unknown} the outcome was not known at first`);
  must((await appliance.stop()).code === 0, 'it stops in order');
} finally {
  ledger?.close();
  await appliance.destroy();
  server.stdin.end();
  await serverEnd;
  rmSync(folder, { recursive: true, force: true });
}
