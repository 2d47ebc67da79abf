/** What one transaction of a writer does: each kind of operation in its group has its rows handled at once, by its own file. */
import type { Entry } from '../audit/entry.ts';
import { entryOf } from './call.ts';
import type { Execute, Settlement } from './commit.ts';
import { detokenizeEntry, storeDetokenize } from './detokenize.ts';
import type { DetokenizeOperation, DetokenizeOutcome } from './detokenize.ts';
import type { ErrorCode } from './errors.ts';
import { storeTokenize } from './tokenize.ts';
import type { TokenizeOperation, TokenizeOutcome } from './tokenize.ts';
import { storeLookUps } from './validate.ts';
import type { LookUpOperation, LookUpOutcome } from './validate.ts';

/** An entry that needs no rows: a call that was refused, or an event of ours. */
export interface EntryOperation {
  readonly kind: 'entry';
  readonly entry: Entry;
}

export interface EntryOutcome {
  readonly kind: 'recorded';
}

export type TokenizingOperation = TokenizeOperation | LookUpOperation | EntryOperation;
export type TokenizingOutcome = TokenizeOutcome | LookUpOutcome | EntryOutcome;
export type DetokenizingOperation = DetokenizeOperation | EntryOperation;
export type DetokenizingOutcome = DetokenizeOutcome | EntryOutcome;

const recorded: EntryOutcome = { kind: 'recorded' };

/** The transaction of a writer of the tokenizing role. */
export const executeTokenizing: Execute<TokenizingOperation, TokenizingOutcome> = async (tx, operations, made) => {
  const tokenizes = operations.filter((operation) => operation.kind === 'tokenize');
  const lookUps = operations.filter((operation) => operation.kind === 'look_up');
  const tokenized = tokenizes.length === 0 ? [] : await storeTokenize(tx, tokenizes, made);
  const lookedUp = lookUps.length === 0 ? [] : await storeLookUps(tx, lookUps, made);
  let nextTokenize = 0;
  let nextLookUp = 0;
  return operations.map((operation): Settlement<TokenizingOutcome> => {
    switch (operation.kind) {
      case 'tokenize':
        return tokenized[nextTokenize++]!;
      case 'look_up':
        return lookedUp[nextLookUp++]!;
      case 'entry':
        return { entry: operation.entry, outcome: recorded };
    }
  });
};

/** The transaction of a writer of the detokenizing role. */
export const executeDetokenizing: Execute<DetokenizingOperation, DetokenizingOutcome> = async (tx, operations, made) => {
  const detokenizes = operations.filter((operation) => operation.kind === 'detokenize');
  const authorized = detokenizes.length === 0 ? [] : await storeDetokenize(tx, detokenizes, made);
  let next = 0;
  return operations.map((operation): Settlement<DetokenizingOutcome> => (operation.kind === 'detokenize' ? authorized[next++]! : { entry: operation.entry, outcome: recorded }));
};

/** The entry of an operation that broke its transaction. */
export function failureEntry(operation: TokenizingOperation | DetokenizingOperation, code: ErrorCode): Entry {
  switch (operation.kind) {
    case 'entry':
      return { ...operation.entry, outcome: 'failed', code };
    case 'detokenize':
      return detokenizeEntry(operation, code);
    case 'tokenize':
      return entryOf(operation.call, { action: 'tokenize', decision: operation.decision, code });
    case 'look_up':
      return entryOf(operation.call, { action: operation.action, decision: operation.decision, code });
  }
}
