/** `cofre operator enrol`, `login`, `logout`, `list`. */
import { UsageError } from '../command-group.ts';
import type { Call, Command } from '../command-group.ts';
import { ask, asOperator, forgetSession, keepSession, operatorHelp, operatorOptions, readPassword } from './as-operator.ts';

const passwordHelp = `  --password-file FILE  the password, its first line, where nobody can type it
`;

export const enrolCommand: Command = {
  help: `cofre operator enrol CODE [options]

Turns an invitation into a password of yours and the secret of an authenticator, which is printed this once. The first login with both ends the invitation.

${passwordHelp}${operatorHelp}`,
  options: [...operatorOptions, 'password-file'],
  flags: ['json'],
  words: [1, 1],
  async run(call) {
    const password = await readPassword(call, 'new password, 12 characters or more');
    if (call.options['password-file'] === undefined && (await ask('once more', false)) !== password) throw new UsageError('the two are not the same');
    const answer = await asOperator(call, 'POST', '/v1/operators/enrol', { code: call.words[0]!.toUpperCase(), password });
    if (call.flags.has('json')) process.stdout.write(`${JSON.stringify(answer)}\n`);
    else process.stdout.write(`secret ${String(answer['totp_secret'])}\n${String(answer['totp_uri'])}\n`);
    return 0;
  },
};

export const loginCommand: Command = {
  help: `cofre operator login [options]

Opens a session, which the other commands use until it ends.

  --totp CODE           the code that the authenticator shows
${passwordHelp}${operatorHelp}`,
  options: [...operatorOptions, 'password-file', 'totp'],
  flags: [],
  words: [0, 0],
  async run(call) {
    const password = await readPassword(call, 'password');
    const totp = call.options['totp']?.[0] ?? (await ask('code of the authenticator', true));
    const answer = await asOperator(call, 'POST', '/v1/operators/login', { password, totp: totp.trim() });
    keepSession(call, String(answer['session']));
    process.stdout.write(`session until ${String(answer['expires_at'])}\n`);
    return 0;
  },
};

export const logoutCommand: Command = {
  help: `cofre operator logout [options]

Ends the session.

${operatorHelp}`,
  options: operatorOptions,
  flags: [],
  words: [0, 0],
  async run(call) {
    await asOperator(call, 'POST', '/v1/operators/logout');
    forgetSession(call);
    return 0;
  },
};

export const listCommand: Command = {
  help: `cofre operator list [--json] [options]

The operators and their states.

${operatorHelp}`,
  options: operatorOptions,
  flags: ['json'],
  words: [0, 0],
  async run(call: Call) {
    const answer = await asOperator(call, 'GET', '/v1/operators');
    const list = answer['operators'] as readonly { readonly operator: string; readonly state: string; readonly since: string }[];
    if (call.flags.has('json')) process.stdout.write(`${JSON.stringify(answer)}\n`);
    else for (const { operator, state, since } of list) process.stdout.write(`${operator}\t${state}\tsince ${since}\n`);
    return 0;
  },
};
