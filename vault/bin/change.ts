/** `cofre change …`: what one operator asks for and another approves. */
import { UsageError, runCommandOf } from './command-group.ts';
import type { Call, Command } from './command-group.ts';
import { asOperator, operatorHelp, operatorOptions } from './operator/as-operator.ts';

const usage = `cofre change <command> [options]

Changes that two people decide on. Both have a session: cofre operator login.

  request  ask for a change
  list     the changes, and the kinds there are
  show     one change, as the second person should read it
  approve  approve a change of somebody else, and have it done
  refuse   refuse it, or take back one's own
  run      do what was approved and did not come to its end

  --help   this, or the command's own help
`;

type ChangeView = Readonly<Record<'id' | 'kind' | 'reason' | 'requested_by' | 'requested_at' | 'expires_at' | 'digest' | 'state', string>> & { readonly params: Readonly<Record<string, unknown>>; readonly decided_by: string | null; readonly result: Readonly<Record<string, unknown>> | null };

const command = (head: string, text: string, words: readonly [number, number], run: (call: Call) => Promise<number>, own: { readonly options?: readonly string[]; readonly help?: string } = {}): Command => ({
  help: `cofre change ${head} [--json] [options]

${text}

${own.help ?? ''}${operatorHelp}`,
  options: [...operatorOptions, ...(own.options ?? [])],
  flags: ['json'],
  words,
  run,
});

const commands: Readonly<Record<string, Command>> = {
  request: command(
    'request KIND NAME=VALUE…',
    'Asks for a change of a kind (cofre change list names them), with its parameters. It waits a day for another person.',
    [1, 17],
    async (call) => {
      const reason = call.options['reason']?.[0];
      if (reason === undefined) throw new UsageError('--reason is needed: the second person reads it');
      const [kind, ...pairs] = call.words;
      const params = Object.fromEntries(
        pairs.map((pair) => {
          const at = pair.indexOf('=');
          if (at < 1) throw new UsageError('a parameter is NAME=VALUE');
          return [pair.slice(0, at), pair.slice(at + 1)] as const;
        }),
      );
      return show(call, await asOperator(call, 'POST', '/v1/changes', { kind, params, reason }));
    },
    { options: ['reason'], help: '  --reason TEXT why\n' },
  ),
  list: command('list', 'The changes, the newest first, and the kinds there are.', [0, 0], async (call) => {
    const answer = await asOperator(call, 'GET', '/v1/changes');
    if (call.flags.has('json')) process.stdout.write(`${JSON.stringify(answer)}\n`);
    else {
      for (const { id, state, kind, params, requested_by: by } of answer['changes'] as readonly ChangeView[]) process.stdout.write(`${id}\t${state}\t${kind} ${textOf(params)}\tby ${by}\n`);
      for (const { kind, title } of answer['kinds'] as readonly { readonly kind: string; readonly title: string }[]) process.stdout.write(`kind ${kind}\t${title}\n`);
    }
    return 0;
  }),
  show: command('show ID', 'A change as it stands. What you approve is its digest.', [1, 1], async (call) => show(call, await asOperator(call, 'GET', `/v1/changes/${idOf(call)}`))),
  approve: command('approve ID DIGEST', 'Approves exactly what stands under the digest (cofre change show), and has it done. Never one\'s own.', [2, 2], async (call) => {
    const [, digest] = call.words;
    if (!/^[0-9a-f]{64}$/u.test(digest!)) throw new UsageError('a digest is 64 digits of lower-case hex');
    return show(call, await asOperator(call, 'POST', `/v1/changes/${idOf(call)}/approve`, { digest }));
  }),
  refuse: command('refuse ID', 'Refuses a change, or takes back one\'s own.', [1, 1], async (call) => show(call, await asOperator(call, 'POST', `/v1/changes/${idOf(call)}/refuse`))),
  run: command('run ID', 'Does what was approved and did not come to its end. Either of the two may.', [1, 1], async (call) => show(call, await asOperator(call, 'POST', `/v1/changes/${idOf(call)}/run`))),
};

/** Runs one command about changes. @returns the exit code. */
export async function change(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  return await runCommandOf({ group: 'change', usage, commands }, argv, env);
}

function idOf({ words }: Call): string {
  const [id] = words;
  if (!/^[0-9a-f-]{36}$/u.test(id!)) throw new UsageError('a change is named by its id');
  return id!;
}

function show(call: Call, answer: Readonly<Record<string, unknown>>): number {
  if (call.flags.has('json')) {
    process.stdout.write(`${JSON.stringify(answer)}\n`);
    return 0;
  }
  const view = answer as unknown as ChangeView & { readonly code?: string };
  const lines = [
    `change    ${view.id}`,
    `state     ${view.state}`,
    `kind      ${view.kind}`,
    `with      ${textOf(view.params)}`,
    `because   ${view.reason}`,
    `asked by  ${view.requested_by} at ${view.requested_at}, until ${view.expires_at}`,
    `digest    ${view.digest}`,
    ...(view.decided_by === null ? [] : [`decided   ${view.decided_by}`]),
    ...(view.result === null ? [] : [`result    ${textOf(view.result)}`]),
    ...(view.code === undefined ? [] : [`code      ${view.code}   (shown this once)`]),
  ];
  process.stdout.write(`${lines.join('\n')}\n`);
  return 0;
}

function textOf(values: Readonly<Record<string, unknown>>): string {
  return Object.entries(values).map(([name, value]) => `${name}=${String(value)}`).join(' ');
}
