/** A load of new cards whose every acknowledged answer is remembered, and the reckoning afterwards: nothing acknowledged is lost. */
import type { Test } from 'tap';
import type { Appliance } from './appliance.ts';
import { readLog } from './log-reader.ts';
import { cardText } from './test-cards.ts';

export interface CardLoad {
  /** Card number to token, for every answer that was received. */
  readonly acknowledged: ReadonlyMap<string, string>;
  /** Request ids of every answer that was received, refusals included. */
  readonly answered: ReadonlySet<string>;
  /** Answers by `status code`. */
  readonly statuses: ReadonlyMap<string, number>;
  /** Ends the load and resolves when the last answer is in. */
  stop(): Promise<void>;
}

let nextCard = 1_000_000;

/** Codes of answers whose call could not be written to the log: that is what they say. */
const unwritten = new Set(['store_unavailable', 'audit_unavailable', 'outcome_unknown', 'overloaded']);

/** `connections` clients, each tokenizing one new card after the other; some are detokenized at once. A failed call is tried again with the same card. */
export function startCardLoad(appliance: Appliance, connections = 12): CardLoad {
  const checkout = appliance.client('checkout', { connections });
  const getnet = appliance.client('getnet', { connections });
  const acknowledged = new Map<string, string>();
  const answered = new Set<string>();
  const statuses = new Map<string, number>();
  let stopped = false;
  const note = (reply: { status: number; headers: Record<string, unknown>; json(): Record<string, unknown> } | null): void => {
    const code = reply === null ? 'none' : reply.status >= 400 ? String(reply.json()['code']) : String(reply.status);
    statuses.set(code, (statuses.get(code) ?? 0) + 1);
    if (reply !== null && !unwritten.has(code)) answered.add(reply.headers['x-request-id'] as string);
  };
  const worker = async (): Promise<void> => {
    while (!stopped) {
      const pan = cardText(nextCard++);
      for (let tries = 0; tries < 200 && !stopped && !acknowledged.has(pan); tries += 1) {
        const reply = await checkout.post('/v1/tokenize', { pan }).catch(() => null);
        note(reply);
        if (reply !== null && reply.status < 300) acknowledged.set(pan, reply.json()['token'] as string);
        else await new Promise((resolve) => setTimeout(resolve, 50));
      }
      const token = acknowledged.get(pan);
      if (token !== undefined && Math.random() < 0.2) note(await getnet.post('/v1/detokenize', { token, purpose: 'capture' }).catch(() => null));
    }
  };
  const workers = Array.from({ length: connections }, worker);
  return {
    acknowledged,
    answered,
    statuses,
    async stop() {
      stopped = true;
      await Promise.all(workers);
    },
  };
}

/** Every acknowledged token opens to its own card, and every answered call is in exactly one batch; `readLog` verifies chains, numbers and signatures. */
export async function reckon(t: Test, appliance: Appliance, load: CardLoad): Promise<void> {
  const getnet = appliance.client('getnet', { connections: 8 });
  const opened = await Promise.all([...load.acknowledged].map(async ([pan, token]) => (await getnet.post('/v1/detokenize', { token, purpose: 'capture' })).json()['pan'] === pan));
  t.equal(opened.filter((same) => !same).length, 0, 'every acknowledged token opens to its own card');
  // A card that was authorized and then did not open has a second entry by design (docs/MONEY-PATH.md, out, step 6): it is not counted.
  const entriesOf = new Map<string, { failed: boolean; batch: string }[]>();
  for (const { value, writer, batch } of await readLog(appliance)) {
    const request = value['request'];
    if (typeof request !== 'string') continue;
    const entries = entriesOf.get(request) ?? [];
    entriesOf.set(request, entries);
    entries.push({ failed: value['action'] === 'detokenize' && value['outcome'] === 'failed', batch: `${writer} ${batch}` });
  }
  const first = (request: string): number => {
    const entries = entriesOf.get(request) ?? [];
    return entries.length - (entries.length > 1 ? entries.filter(({ failed }) => failed).length : 0);
  };
  t.equal([...load.answered].filter((request) => first(request) !== 1).length, 0, 'every answered call is in exactly one batch');
  t.equal([...entriesOf.keys()].filter((request) => first(request) !== 1).length, 0, 'and no call is in two');
}
