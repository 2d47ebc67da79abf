import { verify, X509Certificate, type KeyObject } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';

import type { CertifiedCaller } from './caller.ts';
import { namesOf, parseCrls, type Crl } from './crl.ts';

export interface RevocationOptions {
  /** One list in DER or any number in PEM: exactly one of each authority in `caFile`. */
  readonly crlFile: string;
  /** The authorities that issue client certificates, PEM: the file that the listeners trust. */
  readonly caFile: string;
  /** From the moment that a list was made (its thisUpdate) to the moment that the vault refuses to go on with it. Milliseconds. */
  readonly maxAgeMs: number;
  readonly now: () => Date;
}

export interface RevocationReload {
  readonly outcome: 'loaded' | 'unchanged' | 'refused';
  /** Why, in constant words; null unless refused. */
  readonly reason: string | null;
  /** Serials that no earlier list had: their connections are to be closed and ticket keys rotated. */
  readonly newlyRevoked: ReadonlySet<string>;
}

/** What a readiness check or a metric may show. */
export interface RevocationStatus {
  /** The number of each list in force, one an authority. */
  readonly numbers: readonly bigint[];
  /** When the lists in force stop being good enough; requests are refused from then on. */
  readonly freshUntil: Date;
  readonly revoked: number;
}

/** Clocks differ: a list from a little ahead is believed. */
const skewMs = 5 * 60_000;
const maxFileBytes = 64 * 1024 * 1024;
const none: ReadonlySet<string> = new Set();

/** Signature algorithms that are believed (RFC 5758 3, RFC 4055 5, RFC 8410 3): digest for node:crypto, and the kind of key. SHA-1 is not among them. */
const algorithms: Readonly<Record<string, { readonly digest: string | null; readonly keyType: string }>> = {
  '1.2.840.10045.4.3.2': { digest: 'sha256', keyType: 'ec' },
  '1.2.840.10045.4.3.3': { digest: 'sha384', keyType: 'ec' },
  '1.2.840.10045.4.3.4': { digest: 'sha512', keyType: 'ec' },
  '1.2.840.113549.1.1.11': { digest: 'sha256', keyType: 'rsa' },
  '1.2.840.113549.1.1.12': { digest: 'sha384', keyType: 'rsa' },
  '1.2.840.113549.1.1.13': { digest: 'sha512', keyType: 'rsa' },
  '1.3.101.112': { digest: null, keyType: 'ed25519' },
};

/**
 * Which certificates no longer count. Serials are compared without their issuer: they are random and long (CA/Browser Forum BR 7.1: 64 bits and
 * more), so a clash between two authorities refuses a caller once in an age and never lets one in.
 */
export class RevocationList {
  readonly #options: RevocationOptions;
  /** By issuer, in hex: rollback is judged for each authority by itself. */
  #inForce: ReadonlyMap<string, Crl>;
  #serials: ReadonlySet<string>;
  #freshUntilMs: number;
  #files: string;
  #timer: NodeJS.Timeout | null = null;
  #pending: Promise<unknown> = Promise.resolve();

  private constructor(options: RevocationOptions, lists: ReadonlyMap<string, Crl>, files: string) {
    this.#options = options;
    this.#files = files;
    this.#inForce = lists;
    this.#serials = union(lists);
    this.#freshUntilMs = freshUntil(lists, options.maxAgeMs);
  }

  /**
   * Loads the lists. One that is past its time is loaded: `check` then says `stale` until a fresh one comes.
   *
   * @throws Error, naming the file, where there is no list that can be believed or no authority to believe: a vault does not start without one.
   */
  static async load(options: RevocationOptions): Promise<RevocationList> {
    try {
      authoritiesOf(await readFile(options.caFile));
    } catch (error) {
      throw new Error(`${options.caFile}: ${reasonOf(error)}`, { cause: error });
    }
    try {
      const files = await signatureOf(options);
      return new RevocationList(options, await readLists(options, new Map()), files);
    } catch (error) {
      throw new Error(`${options.crlFile}: ${reasonOf(error)}`, { cause: error });
    }
  }

  /**
   * Whether this caller's certificate counts at `now`. O(1), no I/O: for every request. Anything but `good` is to be refused. An authority whose list is not
   * in force is `stale`: a listener may have learned of it before its list came, or be the only one to accept it.
   */
  check(caller: CertifiedCaller, now: Date): 'good' | 'revoked' | 'expired' | 'stale' {
    const moment = now.getTime();
    if (this.#serials.has(caller.serial)) return 'revoked';
    if (moment > caller.notAfter.getTime()) return 'expired';
    if (moment > this.#freshUntilMs || !this.#inForce.has(caller.authority)) return 'stale';
    return 'good';
  }

  status(): RevocationStatus {
    return { numbers: [...this.#inForce.values()].map(({ number }) => number), freshUntil: new Date(this.#freshUntilMs), revoked: this.#serials.size };
  }

  /**
   * Reads the files again, for SIGHUP. Taken whole or not at all: a list that is malformed, not signed by an authority of the file, older by number or
   * by time than the one in force, or missing for an authority, leaves everything as it was. Never throws; runs one at a time.
   */
  reload(): Promise<RevocationReload> {
    const next = this.#pending.then(() => this.#reload());
    this.#pending = next;
    return next;
  }

  /** Reloads whenever a file has changed, looking every `everyMs`, and tells of every outcome but `unchanged` and the same refusal again. Does not keep the process alive. */
  watch(everyMs: number, onReload: (reload: RevocationReload) => void): void {
    this.close();
    let refused: string | null = null;
    const look = async (): Promise<void> => {
      const reload = await this.#reloadIfChanged();
      const told = reload.outcome === 'unchanged' || (reload.outcome === 'refused' && reload.reason === refused);
      if (reload.outcome !== 'unchanged') refused = reload.reason;
      if (!told) onReload(reload);
    };
    this.#timer = setInterval(() => void look(), everyMs).unref();
  }

  close(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  #reloadIfChanged(): Promise<RevocationReload> {
    const next = this.#pending.then(async (): Promise<RevocationReload> => {
      const files = await signatureOf(this.#options).catch(() => 'missing');
      return files === this.#files ? { outcome: 'unchanged', reason: null, newlyRevoked: none } : this.#reload();
    });
    this.#pending = next;
    return next;
  }

  async #reload(): Promise<RevocationReload> {
    // Taken before the files are read: a change while reading is seen as a change the next time. Kept on a refusal too: a long bad list is not read each second.
    this.#files = await signatureOf(this.#options).catch(() => 'missing');
    try {
      const lists = await readLists(this.#options, this.#inForce);
      const same = lists.size === this.#inForce.size && [...lists].every(([issuer, list]) => this.#inForce.get(issuer)?.tbs.equals(list.tbs) === true);
      if (same) return { outcome: 'unchanged', reason: null, newlyRevoked: none };
      const serials = union(lists);
      const newlyRevoked = serials.difference(this.#serials);
      this.#inForce = lists;
      this.#serials = serials;
      this.#freshUntilMs = freshUntil(lists, this.#options.maxAgeMs);
      return { outcome: 'loaded', reason: null, newlyRevoked };
    } catch (error) {
      // Not the list's fault but the reading's: looked at again the next time, changed or not.
      if ((error as NodeJS.ErrnoException).code !== undefined) this.#files = '';
      return { outcome: 'refused', reason: reasonOf(error), newlyRevoked: none };
    }
  }
}

async function readLists(options: RevocationOptions, inForce: ReadonlyMap<string, Crl>): Promise<ReadonlyMap<string, Crl>> {
  const authorities = authoritiesOf(await readFile(options.caFile));
  const { size } = await stat(options.crlFile);
  if (size > maxFileBytes) throw new Error('the file of revocation lists is larger than 64 MiB');
  const lists = new Map<string, Crl>();
  for (const list of parseCrls(await readFile(options.crlFile))) {
    const issuer = list.issuer.toString('hex');
    if (!authorities.some((authority) => authority.subject === issuer && isSignedBy(list, authority.publicKey))) throw new Error('a revocation list is not signed by an authority of ours');
    if (lists.has(issuer)) throw new Error('the file has two revocation lists of one authority');
    if (list.thisUpdate.getTime() > options.now().getTime() + skewMs) throw new Error('a revocation list is from the future');
    const earlier = inForce.get(issuer);
    if (earlier !== undefined && (list.number < earlier.number || list.thisUpdate < earlier.thisUpdate)) throw new Error('a revocation list is older than the one in force');
    if (earlier !== undefined && list.number === earlier.number && !list.tbs.equals(earlier.tbs)) throw new Error('two different revocation lists have the same number');
    lists.set(issuer, list);
  }
  if (authorities.some(({ subject }) => !lists.has(subject))) throw new Error('an authority has no revocation list');
  return lists;
}

/** Also the reader of `ca.pem` for whoever needs the same authorities. */
export function authoritiesOf(pem: Buffer): readonly { readonly subject: string; readonly publicKey: KeyObject; readonly certificate: X509Certificate }[] {
  const blocks = pem.toString('latin1').match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  if (blocks.length === 0) throw new Error('the file of authorities holds no certificate');
  return blocks.map((block) => {
    const certificate = parsed(block);
    if (!certificate.ca) throw new Error('a certificate in the file of authorities is not of an authority');
    return { subject: namesOf(certificate.raw).subject.toString('hex'), publicKey: certificate.publicKey, certificate };
  });
}

function parsed(pem: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch {
    throw new Error('a certificate in the file of authorities cannot be read');
  }
}

function isSignedBy(list: Crl, key: KeyObject): boolean {
  const algorithm = algorithms[list.signatureAlgorithm];
  if (algorithm === undefined || key.asymmetricKeyType !== algorithm.keyType) return false;
  try {
    return verify(algorithm.digest, list.tbs, key, list.signature);
  } catch {
    return false;
  }
}

function union(lists: ReadonlyMap<string, Crl>): ReadonlySet<string> {
  const [first, ...others] = [...lists.values()].map(({ serials }) => serials);
  return others.reduce<ReadonlySet<string>>((all, serials) => all.union(serials), first ?? none);
}

/** The list that ages first decides for all: an authority whose revocations we no longer hear of is reason enough to stop. */
function freshUntil(lists: ReadonlyMap<string, Crl>, maxAgeMs: number): number {
  return Math.min(...[...lists.values()].map((list) => Math.min(list.nextUpdate.getTime(), list.thisUpdate.getTime() + maxAgeMs)));
}

/** Changes whenever a file was replaced or written. */
async function signatureOf({ crlFile, caFile }: RevocationOptions): Promise<string> {
  const stats = await Promise.all([crlFile, caFile].map((file) => stat(file, { bigint: true })));
  return stats.map(({ mtimeNs, size, ino }) => `${mtimeNs}:${size}:${ino}`).join(' ');
}

/** An error of the file system may name a path; ours are constant. */
function reasonOf(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return code === undefined ? message : `the file cannot be read (${code})`;
}
