/** The vault and its database in network namespaces of their own, joined by a veth pair, which is cut in mid-load: what a pulled cable or a firewall does, by the kernel's own means. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { lastLines, runToEnd } from './program.ts';

/** Of TEST-NET-1 (RFC 5737): they exist inside the two namespaces only. */
export const addresses = { vault: '192.0.2.1', database: '192.0.2.2' } as const;
export const links = { vault: 'vault0', database: 'database0' } as const;

export function ip(...args: string[]): void {
  const { status, stderr, error } = spawnSync('ip', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`ip ${args.join(' ')}: ${error?.message ?? stderr.trim()}`);
}

/** @throws what did not hold, or why namespaces cannot be made. */
export async function cutNetwork(): Promise<string[]> {
  if (process.getuid!() !== 0) throw new Error('network namespaces are made by root: run this part as root, in a container with CAP_SYS_ADMIN and CAP_NET_ADMIN');
  const vault = `cofre-vault-${process.pid}`;
  const database = `cofre-database-${process.pid}`;
  try {
    try {
      for (const name of [vault, database]) ip('netns', 'add', name);
      ip('link', 'add', links.vault, 'netns', vault, 'type', 'veth', 'peer', 'name', links.database, 'netns', database);
    } catch (error) {
      throw new Error(`network namespaces cannot be made here (in a container they need CAP_SYS_ADMIN and CAP_NET_ADMIN): ${(error as Error).message}`, { cause: error });
    }
    for (const [name, link, address] of [[vault, links.vault, addresses.vault], [database, links.database, addresses.database]] as const) {
      ip('-n', name, 'address', 'add', `${address}/30`, 'dev', link);
      ip('-n', name, 'link', 'set', link, 'up');
      ip('-n', name, 'link', 'set', 'lo', 'up');
    }
    const { code, output } = await runToEnd('ip', ['netns', 'exec', vault, process.execPath, join(import.meta.dirname, 'network-cut-vault.ts'), database], { timeoutMs: 175_000 });
    const passed = output.split('\n').flatMap((line) => (line.startsWith('held: ') ? [line.slice('held: '.length)] : []));
    if (code !== 0) throw new Error(lastLines(output));
    return passed;
  } finally {
    // With them go their links. What ran in them ended with the above.
    for (const name of [vault, database]) spawnSync('ip', ['netns', 'delete', name]);
  }
}
