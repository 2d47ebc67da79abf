import type { FreshDatabase } from '../support/database.ts';

/** What a fuzz target is. Each file of test/fuzz/targets exports one as `target`, and is loaded after the instrumentation. */
export interface Target {
  /** Executions that may be under way at once. Where it is one, `run` is not waited for: it must be done when it returns. */
  readonly parallel: number;
  readonly maxBytes: number;
  /** Pieces worth putting into an input, beside those that the sources of the vault compare with. */
  readonly words: readonly string[];
  /** Prepares what all executions share; a given database is used where one is needed. */
  open?(database?: FreshDatabase): Promise<void>;
  /**
   * Tries one input; may not keep it. May return a word for how it went, where the branches behind it cannot be counted.
   *
   * @throws Error whose message says what did not hold, without anything of the input.
   */
  run(input: Buffer): string | undefined | Promise<string | undefined>;
  /** Ends what `open` began. @throws Error where something shows only then. */
  close?(): Promise<void>;
}

/** The targets by name: the files of test/fuzz/targets. */
export const targetNames = ['body', 'card-scan', 'tokens', 'caller', 'crl', 'http'] as const;
export type TargetName = (typeof targetNames)[number];

export async function loadTarget(name: TargetName): Promise<Target> {
  switch (name) {
    case 'body':
      return (await import('./targets/body.ts')).target;
    case 'card-scan':
      return (await import('./targets/card-scan.ts')).target;
    case 'tokens':
      return (await import('./targets/tokens.ts')).target;
    case 'caller':
      return (await import('./targets/caller.ts')).target;
    case 'crl':
      return (await import('./targets/crl.ts')).target;
    case 'http':
      return (await import('./targets/http.ts')).target;
  }
}
