/** Started by `audit-commands.ts`: runs one command of the auditor's after the other, and gives what each wrote. */
import { audit } from '../../vault/bin/audit.ts';

interface Asked {
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

let running = Promise.resolve();
process.on('message', ({ args, env }: Asked) => {
  running = running.then(async () => {
    const written = { out: '', err: '' };
    const streams = [[process.stdout, 'out'], [process.stderr, 'err']] as const;
    const writes = streams.map(([stream]) => stream.write.bind(stream));
    for (const [stream, name] of streams) stream.write = (chunk: string | Uint8Array): boolean => ((written[name] += Buffer.from(chunk as Uint8Array).toString('utf8')), true);
    // The bucket's client reads its settings from the environment itself.
    const before = { ...process.env };
    Object.assign(process.env, env);
    let code: number;
    try {
      code = await audit(args, { ...before, ...env });
    } finally {
      for (const [index, [stream]] of streams.entries()) stream.write = writes[index]!;
      for (const name of Object.keys(env)) if (before[name] === undefined) delete process.env[name];
      Object.assign(process.env, before);
    }
    process.send?.({ code, ...written });
  });
});
process.on('disconnect', () => process.exit());
