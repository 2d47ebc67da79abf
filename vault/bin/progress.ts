/** How far long work has come, on standard error: a bar where a person looks on, elsewhere a line every few seconds. */

const lineEveryMs = 5000;
const barEveryMs = 100;
const barWidth = 24;

export interface Progress {
  update(done: number, total: number): void;
  /** Takes the bar away. */
  end(): void;
}

export function openProgress(what: string, stream: NodeJS.WriteStream = process.stderr): Progress {
  const began = performance.now();
  let shownAt = stream.isTTY ? Number.NEGATIVE_INFINITY : began;
  let before: number | null = null;
  let drawn = false;
  return {
    update(done, total) {
      const time = performance.now();
      // What was there at the start says nothing about the pace.
      before ??= done;
      if (time - shownAt < (stream.isTTY ? barEveryMs : lineEveryMs)) return;
      shownAt = time;
      const share = total === 0 ? 1 : done / total;
      const pace = (done - before) / (time - began);
      const left = pace > 0 && done < total ? `, ${duration((total - done) / pace)} left` : '';
      const text = `${what} ${Math.floor(share * 100)} %, ${count(done)} of ${count(total)} entries${left}`;
      if (stream.isTTY) {
        const full = Math.round(share * barWidth);
        stream.write(`\r\u001B[K[${'#'.repeat(full)}${' '.repeat(barWidth - full)}] ${text}`);
        drawn = true;
      } else stream.write(`${text}\n`);
    },
    end() {
      if (drawn) stream.write('\r\u001B[K');
      drawn = false;
    },
  };
}

/** `1,234,567` */
export function count(value: number): string {
  return value.toLocaleString('en-US');
}

function duration(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  return seconds < 100 ? `${seconds} s` : `${Math.ceil(seconds / 60)} min`;
}
