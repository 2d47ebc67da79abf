/** Who PostgreSQL runs as, and how a command is started as that user. */
import { spawnSync } from 'node:child_process';
import { lchownSync, lstatSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

const NOBODY = 65_534;

/** Who PostgreSQL runs as. It refuses uid 0, so root needs one of the last two. */
export type Identity =
  | { readonly kind: 'self' }
  /** Another uid, which owns the data: `nobody`, or the user that made the folder. */
  | { readonly kind: 'user'; readonly uid: number; readonly gid: number }
  /** root outside, `nobody` inside a user namespace: the kernel still sees the owner of the files, so a folder under /root (mode 0700) works. */
  | { readonly kind: 'namespace' };

/** Decides by who owns the data, so nothing needs to be remembered beside it. */
export function chooseIdentity(folder: string, cluster: string, binaries: string): Identity {
  const owner = statSync(cluster, { throwIfNoEntry: false });
  const self = process.getuid!();
  if (self !== 0) {
    if (owner !== undefined && owner.uid !== self) throw new Error(`${cluster} belongs to another user: run as that user, or set COFRE_HOME to a folder of your own`);
    return { kind: 'self' };
  }
  const wanted = owner === undefined || owner.uid === 0 ? { uid: NOBODY, gid: NOBODY } : { uid: owner.uid, gid: owner.gid };
  if (owner?.uid !== 0 && reaches(wanted, folder, binaries)) return { kind: 'user', ...wanted };
  const probe = spawnSync('unshare', ['--user', `--map-user=${NOBODY}`, `--map-group=${NOBODY}`, '--', join(binaries, 'postgres'), '--version']);
  if (probe.status === 0) {
    if (owner !== undefined) chownTree(cluster, 0, 0);
    return { kind: 'namespace' };
  }
  if (reaches(wanted, folder, binaries)) {
    chownTree(cluster, wanted.uid, wanted.gid);
    return { kind: 'user', ...wanted };
  }
  throw new Error(`PostgreSQL refuses to run as root and no other user can reach ${folder}: set COFRE_HOME to a folder such as /var/lib/cofre, and keep the clone where others can read it`);
}

/** True if that uid can enter the folder and run the binaries. Tried, not computed: mounts, ACLs and security modules have a say. */
function reaches(user: { uid: number; gid: number }, folder: string, binaries: string): boolean {
  if (spawnSync(join(binaries, 'postgres'), ['--version'], { ...user, cwd: '/' }).status !== 0) return false;
  return spawnSync('/bin/sh', ['-c', 'test -x "$1"', 'sh', folder], { ...user, cwd: '/' }).status === 0;
}

/** Gives a folder and all below it to somebody; follows no link. */
export function chownTree(path: string, uid: number, gid: number): void {
  lchownSync(path, uid, gid);
  if (lstatSync(path).isDirectory()) for (const name of readdirSync(path)) chownTree(join(path, name), uid, gid);
}

export interface Launcher {
  readonly prefix: readonly string[];
  readonly uid?: number;
  readonly gid?: number;
}

/** Arguments of /bin/sh to put before a command. Every step ends in exec, so the pid that is started is PostgreSQL's own. */
export function launcher(identity: Identity, diesWithParent: boolean): Launcher {
  const prefix = ['-c', 'ulimit -c 0; umask 077; exec "$@"', 'sh'];
  if (identity.kind === 'namespace') prefix.push('unshare', '--user', `--map-user=${NOBODY}`, `--map-group=${NOBODY}`, '--');
  if (diesWithParent) prefix.push('setpriv', '--pdeathsig', 'INT', '--');
  return identity.kind === 'user' ? { prefix, uid: identity.uid, gid: identity.gid } : { prefix };
}

/** Nothing of our environment reaches PostgreSQL: PG* variables would change its settings, others may be secrets. */
export const ENVIRONMENT = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C', TZ: 'UTC' };

/** For `spawn`. */
export function identityOf(run: Launcher): { uid?: number; gid?: number } {
  return run.uid === undefined || run.gid === undefined ? {} : { uid: run.uid, gid: run.gid };
}
