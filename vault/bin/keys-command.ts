/** `cofre keys …`: the keys that the vault keeps beside those of the HSM. */
import { UsageError, runCommandOf } from './command-group.ts';
import type { Command } from './command-group.ts';
import { asOperator, operatorHelp, operatorOptions } from './operator/as-operator.ts';

const usage = `cofre keys <command> [options]

  list    data and fingerprint keys: states, ages, what was leased of them
  rotate  ask that a domain's data key seals no more; another person approves it (cofre change approve)

  --help  this, or the command's own help
`;

interface KeyView {
  readonly key_id: number;
  readonly kind: string;
  readonly domain: string;
  readonly version: number;
  readonly state: string;
  readonly created_at: string;
  readonly days_left: number | null;
  readonly leased_seals: number | null;
}

const listCommand: Command = {
  help: `cofre keys list [--json] [options]

Every data and fingerprint key. A data key seals for 30 days or 2^32 leased seals, then its successor is made by itself; a retired one only opens. A fingerprint key has two years.

${operatorHelp}`,
  options: operatorOptions,
  flags: ['json'],
  words: [0, 0],
  async run(call) {
    const answer = await asOperator(call, 'GET', '/v1/keys');
    if (call.flags.has('json')) process.stdout.write(`${JSON.stringify(answer)}\n`);
    else {
      for (const key of answer['keys'] as readonly KeyView[]) {
        const left = key.days_left === null ? '' : `\t${key.days_left} days left`;
        process.stdout.write(`${key.domain}\t${key.kind} v${key.version}\t${key.state}\tsince ${key.created_at}${left}${key.leased_seals === null ? '' : `\t${key.leased_seals} seals leased`}\n`);
      }
    }
    return 0;
  },
};

const rotateCommand: Command = {
  help: `cofre keys rotate DOMAIN --reason TEXT [--json] [options]

Asks that the data key of a domain seals no more. Once another person has approved it, every process makes or finds its successor within a minute; no call fails for it.

  --reason TEXT why; the second person reads it
${operatorHelp}`,
  options: [...operatorOptions, 'reason'],
  flags: ['json'],
  words: [1, 1],
  async run(call) {
    const [domain] = call.words;
    const reason = call.options['reason']?.[0];
    if (reason === undefined) throw new UsageError('--reason is needed: the second person reads it');
    const { keys } = (await asOperator(call, 'GET', '/v1/keys')) as unknown as { keys: readonly KeyView[] };
    const current = keys.filter((key) => key.kind === 'data' && key.domain === domain).at(-1);
    if (current === undefined) throw new Error(`there is no data key of a domain ${domain!}`);
    const change = await asOperator(call, 'POST', '/v1/changes', { kind: 'key.rotate', params: { domain, version: current.version }, reason });
    if (call.flags.has('json')) process.stdout.write(`${JSON.stringify(change)}\n`);
    else process.stdout.write(`asked for: cofre change approve ${String(change['id'])} ${String(change['digest'])}\n`);
    return 0;
  },
};

const commands: Readonly<Record<string, Command>> = { list: listCommand, rotate: rotateCommand };

/** Runs one command about keys. @returns the exit code. */
export async function keys(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  return await runCommandOf({ group: 'keys', usage, commands }, argv, env);
}
