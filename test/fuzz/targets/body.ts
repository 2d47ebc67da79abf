/** The body scanner, held against JSON.parse: the first byte says where the body may hold card numbers, the others are the body. */
import type { Where } from '../../../vault/body.ts';
import { disagreement, take } from '../../support/body-oracle.ts';
import { hasPlainCard } from '../plain-card.ts';
import type { Target } from '../target.ts';

const places: readonly Where[] = ['none', 'single', 'batch'];

/** Every string, name and number in a JSON value, as text. */
function* textsOf(value: unknown): Generator<string> {
  if (typeof value === 'string') yield value;
  // Beyond 2^53 JSON.parse gives another number than was sent.
  else if (typeof value === 'number' && Math.abs(value) <= Number.MAX_SAFE_INTEGER) yield String(Math.trunc(Math.abs(value)));
  else if (typeof value === 'object' && value !== null) {
    for (const [name, member] of Object.entries(value)) {
      if (!Array.isArray(value)) yield name;
      yield* textsOf(member);
    }
  }
}

export const target: Target = {
  parallel: 1,
  maxBytes: 600,
  words: ['"pan":"4111111111111111"', '"pan":', '"items":[', '{"pan":"378282246310005"}', '4111111111111111', '\\u0034', '\\u0070an', '4.111111111111111e15', '0000', 'e-1', '"cvv":1', ';4111111111111111=2712101', '\u00e9', '\u{1d7d2}', '\uff14', 'true', 'false', 'null', '},{', '[[[[[[[[', ']]]]]]]]'],
  run(input) {
    const where = places[(input[0] ?? 0) % 3]!;
    const body = input.subarray(1);
    const wrong = disagreement(body, where);
    if (wrong !== null) throw new Error(wrong);
    const outcome = take(body, where);
    if (typeof outcome !== 'string') for (const text of textsOf(JSON.parse(outcome.json))) if (hasPlainCard(text)) throw new Error('a card number is left in the JSON');
    return undefined;
  },
};
