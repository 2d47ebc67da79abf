/** What one transaction of a writer does: each kind of operation in its group has its rows handled at once, by its own file. */
import type { Entry } from '../audit/entry.ts';
import { entryOf } from './call.ts';
import type { Execute, Settlement } from './commit.ts';
import { detokenizeFailure, storeDetokenize } from './detokenize.ts';
import type { DetokenizeOperation, DetokenizeOutcome } from './detokenize.ts';
import type { ErrorCode } from './errors.ts';
import { lifecycleFailure, storeLifecycle, storeSweep, sweepFailure } from './lifecycle.ts';
import type { LifecycleOperation, LifecycleOutcome, SweepOperation, SweepOutcome } from './lifecycle.ts';
import { lockNumericTokens, storeTokenize } from './tokenize-store.ts';
import type { TokenizeOperation, TokenizeOutcome } from './tokenize-operation.ts';
import type { VaultEvent } from './outbox.ts';
import { storeLookUps } from './validate.ts';
import type { LookUpOperation, LookUpOutcome } from './validate.ts';

/** An entry that needs no rows: a call that was refused, or an event of ours. */
export interface EntryOperation {
  readonly kind: 'entry';
  readonly entry: Entry;
  readonly events?: readonly VaultEvent[];
}

export interface EntryOutcome {
  readonly kind: 'recorded';
}

export type TokenizingOperation = TokenizeOperation | LookUpOperation | LifecycleOperation | SweepOperation | EntryOperation;
export type TokenizingOutcome = TokenizeOutcome | LookUpOutcome | LifecycleOutcome | SweepOutcome | EntryOutcome;
export type DetokenizingOperation = DetokenizeOperation | EntryOperation;
export type DetokenizingOutcome = DetokenizeOutcome | EntryOutcome;

const recorded: EntryOutcome = { kind: 'recorded' };

/** The transaction of a writer of the tokenizing role. Changes of tokens come first, then new cards, then look-ups: each sees what those before it did. */
export const executeTokenizing: Execute<TokenizingOperation, TokenizingOutcome> = async (tx, operations, made) => {
  const settled = new Map<TokenizingOperation, Settlement<TokenizingOutcome>>();
  const keep = (some: readonly TokenizingOperation[], settlements: readonly Settlement<TokenizingOutcome>[]): void => {
    for (const [index, operation] of some.entries()) settled.set(operation, settlements[index]!);
  };
  const of = <Kind extends TokenizingOperation['kind']>(kind: Kind) => operations.filter((operation): operation is Extract<TokenizingOperation, { kind: Kind }> => operation.kind === kind);

  const tokenizes = of('tokenize');
  await lockNumericTokens(tx, tokenizes);
  const changes = of('lifecycle');
  if (changes.length > 0) keep(changes, await storeLifecycle(tx, changes, made));
  for (const sweep of of('sweep')) settled.set(sweep, await storeSweep(tx, sweep, made));
  if (tokenizes.length > 0) keep(tokenizes, await storeTokenize(tx, tokenizes, made));
  const lookUps = of('look_up');
  if (lookUps.length > 0) keep(lookUps, await storeLookUps(tx, lookUps, made));
  for (const entry of of('entry')) settled.set(entry, recordedAs(entry));
  return operations.map((operation) => settled.get(operation)!);
};

/** The transaction of a writer of the detokenizing role. */
export const executeDetokenizing: Execute<DetokenizingOperation, DetokenizingOutcome> = async (tx, operations, made) => {
  const detokenizes = operations.filter((operation) => operation.kind === 'detokenize');
  const authorized = detokenizes.length === 0 ? [] : await storeDetokenize(tx, detokenizes, made);
  let next = 0;
  return operations.map((operation): Settlement<DetokenizingOutcome> => (operation.kind === 'detokenize' ? authorized[next++]! : recordedAs(operation)));
};

/** The transaction of a writer that only keeps the log. */
export const executeEntries: Execute<EntryOperation, EntryOutcome> = async (_tx, operations) => operations.map(recordedAs);

function recordedAs({ entry, events }: EntryOperation): Settlement<EntryOutcome> {
  return { entry, outcome: recorded, ...(events === undefined ? {} : { events }) };
}

/** The entry of an operation that broke its transaction. */
export function failureEntry(operation: TokenizingOperation | DetokenizingOperation, code: ErrorCode, now: Date): Entry {
  switch (operation.kind) {
    case 'entry':
      return { ...operation.entry, outcome: 'failed', code };
    case 'lifecycle':
      return lifecycleFailure(operation, code);
    case 'sweep':
      return sweepFailure(code, now);
    case 'detokenize':
      return detokenizeFailure(operation, code);
    case 'tokenize':
      return entryOf(operation.call, { action: operation.action, decision: operation.decision, code });
    case 'look_up':
      return entryOf(operation.call, { action: operation.action, decision: operation.decision, code });
  }
}
