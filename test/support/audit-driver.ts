/** Started by `audit-commands.ts`: runs one command after the other, and gives what each wrote. */
import { audit } from '../../vault/bin/audit.ts';
import { change } from '../../vault/bin/change.ts';
import { keys } from '../../vault/bin/keys-command.ts';
import { operator } from '../../vault/bin/operator.ts';
import { policy } from '../../vault/bin/policy.ts';

const groups = { audit, change, keys, operator, policy };

interface Asked {
  readonly group: keyof typeof groups;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

async function run({ group, args, env }: Asked): Promise<{ code: number; out: string; err: string }> {
  const written = { out: '', err: '' };
  const streams = [[process.stdout, 'out'], [process.stderr, 'err']] as const;
  const writes = streams.map(([stream]) => stream.write.bind(stream));
  for (const [stream, name] of streams) stream.write = (chunk: string | Uint8Array): boolean => ((written[name] += Buffer.from(chunk as Uint8Array).toString('utf8')), true);
  // The bucket's client reads its settings from the environment itself.
  const before = { ...process.env };
  Object.assign(process.env, env);
  let code: number;
  try {
    code = await groups[group](args, { ...before, ...env });
  } finally {
    for (const [index, [stream]] of streams.entries()) stream.write = writes[index]!;
    for (const name of Object.keys(env)) if (before[name] === undefined) delete process.env[name];
    Object.assign(process.env, before);
  }
  return { code, ...written };
}

let running: Promise<unknown> = Promise.resolve();
process.on('message', (asked: Asked) => {
  // One after the other: the streams are everybody's.
  running = running.then(() => run(asked)).then((ran) => process.send?.(ran));
});
process.on('disconnect', () => process.exit());
