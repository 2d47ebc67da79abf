/** Holds takeCards() against JSON.parse, and looks after what must always hold, whatever the body was. */
import { MAX_DEPTH, takeCards, type BodyRefused, type TakenPan, type Where } from '../../vault/body.ts';
import { Pan } from '../../vault/pan.ts';
import { passesLuhn } from './made-cards.ts';

export type Outcome = { json: string; pans: (string | null)[]; itemCount: number; refused?: Record<string, string> } | BodyRefused['refusal'];

// Every Pan that is made while a test runs, so that none is left unwiped after a refusal or a disposal.
const made: Pan[] = [];
const parseInto = Pan.parseInto.bind(Pan);
Pan.parseInto = (...args: Parameters<typeof parseInto>): Pan | null => {
  const pan = parseInto(...args);
  if (pan !== null) made.push(pan);
  return pan;
};
const isWiped = (pan: Pan): boolean => {
  try {
    pan.reveal();
    return false;
  } catch {
    return true;
  }
};

/** Takes the cards out of a body and looks after what must always hold, whatever the body was. */
export function take(original: string | Uint8Array, where: Where): Outcome {
  made.length = 0;
  const body = typeof original === 'string' ? Buffer.from(original) : Buffer.from(original);
  const length = body.length;
  const taken = takeCards(body, where);
  if (!taken.ok) {
    if (!made.every(isWiped)) throw new Error('a refusal left a card number');
    if (!body.every((byte) => byte === 0)) throw new Error('a refusal left a body');
    taken[Symbol.dispose]();
    return taken.refusal;
  }
  if (taken.json !== body || body.length !== length) throw new Error('the JSON is other memory');
  const pans = taken.pans.map((pan: TakenPan) => (pan instanceof Pan ? pan.reveal().toString() : pan));
  // Inside of a longer run of digits it may stand: such a run is no card number, by the rules of card-scan.ts.
  for (const pan of pans) if (pan !== null && pan !== 'absent' && new RegExp(`(?<![0-9])${pan}(?![0-9])`, 'u').test(body.toString('latin1'))) throw new Error('a card number is still in the body');
  const kept = taken.pans.filter((pan) => pan instanceof Pan);
  if (made.filter((pan) => !isWiped(pan)).length !== kept.length) throw new Error('a card number that does not count was left');
  taken[Symbol.dispose]();
  if (!made.every(isWiped)) throw new Error('a disposal left a card number');
  return { json: body.toString(), pans, itemCount: taken.itemCount, ...(taken.refused.size === 0 ? {} : { refused: Object.fromEntries(taken.refused) }) };
}
export const depthOf = (value: unknown): number => (typeof value === 'object' && value !== null ? 1 + Math.max(0, ...Object.values(value).map(depthOf)) : 0);
const isCard = (value: unknown): value is string => typeof value === 'string' && /^[0-9]{12,19}$/.test(value) && passesLuhn(value);
const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value);

/** What takeCards() must answer for an accepted body, told from JSON.parse: the cards, and the JSON without what is taken. */
function expected(parsed: unknown, where: Where): { pans: unknown[]; itemCount: number } {
  const panOf = (holder: unknown): unknown => (isObject(holder) && Object.hasOwn(holder, 'pan') && typeof holder['pan'] === 'string' ? (isCard(holder['pan']) ? holder['pan'] : null) : 'absent');
  if (where === 'single') return { pans: [panOf(parsed)], itemCount: 0 };
  const items = where === 'batch' && isObject(parsed) && Object.hasOwn(parsed, 'items') && Array.isArray(parsed['items']) ? (parsed['items'] as unknown[]) : [];
  return { pans: items.map(panOf), itemCount: items.length };
}
function withoutTaken(parsed: unknown, where: Where): unknown {
  const strip = (holder: unknown): void => {
    if (isObject(holder) && typeof holder['pan'] === 'string' && Object.hasOwn(holder, 'pan')) holder['pan'] = 'taken';
  };
  if (where === 'single') strip(parsed);
  if (where === 'batch' && isObject(parsed) && Object.hasOwn(parsed, 'items') && Array.isArray(parsed['items'])) (parsed['items'] as unknown[]).forEach(strip);
  return parsed;
}

/** Holds a body against JSON.parse; answers what was wrong, or null. */
export function disagreement(original: Uint8Array, where: Where): string | null {
  const outcome = take(original, where);
  const text = Buffer.from(original).toString();
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    return typeof outcome === 'string' ? null : 'accepted what JSON.parse refuses';
  }
  if (typeof outcome === 'string') {
    if (outcome !== 'invalid_request') return null; // what it found is told in other tests
    const hasNumber = /"(?:p|\\u0070)(?:a|\\u0061)(?:n|\\u006e)"\s*:\s*[-0-9]/i.test(text);
    return hasNumber || depthOf(parsed) > MAX_DEPTH || !Buffer.from(text).equals(original) ? null : 'refused what JSON.parse accepts';
  }
  const wanted = expected(parsed, where);
  // What is refused alone reads as null.
  for (const place of Object.keys(outcome.refused ?? {})) {
    (parsed as { items: unknown[] }).items[Number(place)] = null;
    wanted.pans[Number(place)] = 'absent';
  }
  if (JSON.stringify(wanted) !== JSON.stringify({ pans: outcome.pans, itemCount: outcome.itemCount })) return 'took other cards than JSON.parse reads';
  const [after, before] = [withoutTaken(JSON.parse(outcome.json), where), withoutTaken(parsed, where)];
  return JSON.stringify(after) === JSON.stringify(before) ? null : 'changed what is no card number';
}
