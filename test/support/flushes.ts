/** Watches which files a piece of work flushes. */
import fs, { readlinkSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';

/** The paths that were flushed, in their order, under the names that they had then. */
export interface Flushes {
  readonly paths: readonly string[];
  stop(): void;
}

/** Keeps watch until `stop`. Only of fsyncSync, which is what durable files are flushed by. */
export function watchFlushes(): Flushes {
  const paths: string[] = [];
  const { fsyncSync } = fs;
  fs.fsyncSync = (fd) => {
    paths.push(readlinkSync(`/proc/self/fd/${fd}`));
    fsyncSync(fd);
  };
  syncBuiltinESMExports();
  return {
    paths,
    stop() {
      fs.fsyncSync = fsyncSync;
      syncBuiltinESMExports();
    },
  };
}
