/** Processor time and memory of processes, from /proc (proc(5)). Linux only. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** USER_HZ: the unit of times in /proc, 100 a second on every Linux that Node runs on, whatever the kernel's own tick. */
const ticksPerSecond = 100;

interface Stat {
  readonly pid: number;
  readonly parent: number;
  readonly name: string;
  readonly cpuSeconds: number;
}

function readStat(pid: number): Stat | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const nameEnd = text.lastIndexOf(')');
    // Fields after the name: state ppid … utime and stime are fields 14 and 15 of the line, counted from 1.
    const fields = text.slice(nameEnd + 2).split(' ');
    return { pid, parent: Number(fields[1]), name: text.slice(text.indexOf('(') + 1, nameEnd), cpuSeconds: (Number(fields[11]) + Number(fields[12])) / ticksPerSecond };
  } catch {
    return null; // it ended meanwhile
  }
}

function allProcesses(): Stat[] {
  return readdirSync('/proc').flatMap((name) => (/^[0-9]+$/.test(name) ? (readStat(Number(name)) ?? []) : []));
}

/** The processes of one server under measurement. */
export interface Group {
  /** The started process and all that descend from it, without PostgreSQL. */
  readonly server: readonly number[];
  /** The postmaster and every backend whose data lies below the folder, whoever started them. */
  readonly postgres: readonly number[];
}

/** Finds the processes of the server with this pid, whose PostgreSQL keeps its data below `folder`. */
export function findGroup(pid: number, folder: string): Group {
  const all = allProcesses();
  const postgres = all.filter((process) => process.name === 'postgres' && workingFolder(process.pid).startsWith(`${folder}/`)).map((process) => process.pid);
  const server = new Set([pid]);
  for (let size = 0; size !== server.size; ) {
    size = server.size;
    for (const process of all) if (server.has(process.parent) && process.name !== 'postgres') server.add(process.pid);
  }
  return { server: [...server], postgres };
}

function workingFolder(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/cwd`);
  } catch {
    return '';
  }
}

/** Processor seconds, user and system, that these processes have used so far. One that ended counts as 0. */
export function cpuSeconds(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + (readStat(pid)?.cpuSeconds ?? 0), 0);
}

/** Processor seconds that all processes of this machine have used since its start, without waiting and idling. */
export function machineCpuSeconds(): number {
  const [user, nice, system, , , irq, softirq] = readFileSync('/proc/stat', 'latin1').split('\n')[0]!.split(/ +/).slice(1).map(Number);
  return (user! + nice! + system! + irq! + softirq!) / ticksPerSecond;
}

/** Resident bytes of these processes; pages that they share count for each. */
export function residentBytes(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => {
    try {
      const match = /^VmRSS:\s+([0-9]+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'));
      return sum + Number(match?.[1] ?? 0) * 1024;
    } catch {
      return sum;
    }
  }, 0);
}
