/** What a command of the auditor's is, and what it is called with. */

/** What a command got: options of its own by name, each as often as it was given, and what stands alone. */
export interface Call {
  readonly name: string;
  readonly options: Readonly<Record<string, readonly string[]>>;
  readonly flags: ReadonlySet<string>;
  readonly words: readonly string[];
  readonly home: string;
  readonly env: NodeJS.ProcessEnv;
}

export interface Command {
  readonly help: string;
  /** Options with a value; those whose name ends in `*` may be given several times. `home` is everybody's. */
  readonly options: readonly string[];
  readonly flags: readonly string[];
  /** How many words it takes, at least and at most. */
  readonly words: readonly [number, number];
  /** @returns the exit code. @throws UsageError, or what is explained in one line with exit code 1. */
  run(call: Call): Promise<number>;
}

/** Something that was asked for in a way that is not understood: exit code 2. */
export class UsageError extends Error {}
