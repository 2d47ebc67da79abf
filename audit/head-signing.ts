/** Has the HSM sign the heads that are committed, and gives the checkpoints to the witnesses: each is kept in the database before anybody else sees it. */
import { signCheckpoint } from './checkpoint.ts';
import type { Checkpoint } from './checkpoint.ts';
import type { NoteSigner } from './note.ts';
import type { LogHead, TreeStore, Witness } from './sequenced-log.ts';

export interface HeadSignerOptions {
  readonly store: Pick<TreeStore, 'addCheckpoint'>;
  readonly signer: NoteSigner;
  readonly witnesses: readonly Witness[];
  readonly now: () => Date;
  /** The database no longer has what it had committed: a head that was to be signed is gone from it. */
  readonly lost: () => void;
}

export class HeadSigner {
  readonly #options: HeadSignerOptions;
  #signed: Checkpoint | null = null;
  #signing: Promise<Checkpoint | null> | null = null;
  /** Signed and stored, but not yet with every witness. */
  #unpublished: { readonly note: string; readonly at: Date } | null = null;

  constructor(options: HeadSignerOptions) {
    this.#options = options;
  }

  /** The last checkpoint that was signed and stored. */
  get signed(): Checkpoint | null {
    return this.#signed;
  }

  /** Resolves, whatever becomes of it, when no signature is under way. */
  async idle(): Promise<void> {
    await this.#signing?.catch(() => undefined);
  }

  /** Takes note of what the database keeps as signed; `note` is given to the witnesses with the next signature if they lack it. */
  found(signed: Checkpoint, note: string | null): void {
    this.#signed = signed;
    if (note !== null) this.#unpublished ??= { note, at: this.#options.now() };
  }

  /**
   * Signs the head that `current` gives if it has grown since the last checkpoint, keeps the checkpoint and publishes it. One at a time: whoever asks
   * meanwhile is given the same. Dies before it is kept: a signature that nobody has seen. Before it is published: the next instance publishes it.
   *
   * @returns null if there was nothing to sign, or it was lost. @throws what the HSM, the store or a witness throws.
   */
  sign(current: () => LogHead | null): Promise<Checkpoint | null> {
    this.#signing ??= this.#sign(current).finally(() => {
      this.#signing = null;
    });
    return this.#signing;
  }

  async #sign(current: () => LogHead | null): Promise<Checkpoint | null> {
    if (this.#unpublished !== null) await this.#publish(this.#unpublished.note, this.#unpublished.at);
    const head = current();
    if (head === null || (this.#signed !== null && this.#signed.origin === head.origin && this.#signed.size >= head.size)) return null;
    const checkpoint: Checkpoint = { origin: head.origin, size: head.size, root: head.root };
    const note = await signCheckpoint(checkpoint, this.#options.signer);
    const at = this.#options.now();
    // The database may have lost what it had committed, by a failover or a restore. Then nobody sees this signature, and what stands there is read.
    if (!(await this.#options.store.addCheckpoint(head, note, at))) {
      this.#options.lost();
      return null;
    }
    this.#signed = checkpoint;
    await this.#publish(note, at);
    return checkpoint;
  }

  async #publish(note: string, at: Date): Promise<void> {
    this.#unpublished = { note, at };
    for (const witness of this.#options.witnesses) await witness.publish(note, at);
    this.#unpublished = null;
  }
}
