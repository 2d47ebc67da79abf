/** What the processes of a PostgreSQL are doing at this moment, for whoever has to explain why it does not go on. */
import { readFileSync, readdirSync, readlinkSync } from 'node:fs';

/**
 * One line a process whose working directory is `dataFolder`: pid, title, state, the kernel function it waits in, and the CPU time that it has used, in clock ticks (proc(5): state, wchan, utime and stime).
 * Processes that end meanwhile are left out. What the kernel does not tell this user reads `?`.
 */
export function describeProcesses(dataFolder: string): string[] {
  const lines: string[] = [];
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/u.test(name))) {
    try {
      if (readlinkSync(`/proc/${pid}/cwd`) !== dataFolder) continue;
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      const title = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0', 1)[0];
      lines.push(`${pid} ${title}: state ${fields[0]}, in ${read(`/proc/${pid}/wchan`)}, ${Number(fields[11]) + Number(fields[12])} ticks${kernelStack(pid)}`);
    } catch {
      // Gone, or another user's.
    }
  }
  return lines;
}

function kernelStack(pid: string): string {
  const frames = read(`/proc/${pid}/stack`).split('\n').map((frame) => frame.replace(/^\[<0>\] /u, '').replace(/\+.*$/u, ''));
  return frames.length > 1 ? `, ${frames.slice(0, 6).join(' < ')}` : '';
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim() || '?';
  } catch {
    return '?';
  }
}
