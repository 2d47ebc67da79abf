/** The command line: `cofre <command>`. Exit codes: 0 done, 1 failed or refused, 2 not understood. Each command is loaded when it is asked for: an auditor's needs nothing of the vault. */
import { parseArgs } from 'node:util';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { digestOfLimits } from '../approvals.ts';
import { ConfigError, loadConfig } from '../config.ts';
import { stringify as toYaml } from 'yaml';
import { configurationReference } from '../config-reference.ts';
import { explain } from './explain.ts';

const usage = `cofre <command> [options]

  serve     run the appliance (npm start does it for you)
  init      make the vault's keys inside the HSM, from one reviewed file
  config    print the configuration in force, or what every key means
  audit     export, verify and prove the log: cofre audit --help lists how
  policy    check and compare policies, and who may do what, now or at a past moment
  operator  the people who run the vault: cofre operator --help lists how
  keys      data and fingerprint keys: list, rotate
  change    what one operator asks for and another approves: cofre change --help

  --home DIR      state of the vault; default COFRE_HOME, else .cofre beside the package
  --config FILE   configuration; default cofre.config.yaml in the home, else the defaults of development
  --help          this, or the command's own help
`;

const help: Readonly<Record<string, string>> = {
  serve: `cofre serve [--home DIR] [--config FILE]

Runs the appliance until SIGTERM or SIGINT. Prints "cofre ready <url>" once requests are accepted; messages are JSON lines on
standard error. SIGHUP reloads policies, certificates and the revocation list. DATABASE_URL names a PostgreSQL of yours.
`,
  init: `cofre init --ceremony FILE [--json] [--home DIR] [--config FILE]

Makes every key of the ceremony file inside the HSM and reports what was made. Refuses if any label exists already. The user PIN
is read from the file that hsm.pin_file names; docs/configuration.md shows a ceremony file.
`,
  config: `cofre config [--reference | --limits | --json] [--home DIR] [--config FILE]

Prints the configuration in force, defaults included, as YAML or JSON; with --reference, what every key means, as Markdown; with --limits, the digest of
quotas, references and limits of abuse, which two people approve (cofre change request limits.approve).
`,
};

/** Runs one command. @returns the exit code. */
export async function main(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const [command, ...rest] = argv;
  if (command === undefined || command === '--help' || command === '-h' || command === 'help') {
    process.stdout.write(usage);
    return command === undefined ? 2 : 0;
  }
  // Not for people: `serve` starts it where the configuration wants several processes.
  if (command === 'worker') return await (await import('./workers.ts')).runWorkerProcess();
  if (command === 'operator') return await (await import('./operator.ts')).operator(rest, env);
  if (command === 'keys') return await (await import('./keys-command.ts')).keys(rest, env);
  if (command === 'change') return await (await import('./change.ts')).change(rest, env);
  if (command === 'audit' || command === 'policy') {
    // Who reads only the first lines, as head does, hangs up: the rest is wanted by nobody.
    process.stdout.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') process.stderr.write(`cofre: standard output cannot be written (${error.code ?? 'unknown'})\n`);
      process.exit(1);
    });
    return command === 'audit' ? await (await import('./audit.ts')).audit(rest, env) : await (await import('./policy.ts')).policy(rest, env);
  }
  // Of its own: `cofre toString` is no command either.
  const text = Object.hasOwn(help, command) ? help[command] : undefined;
  if (text === undefined) {
    process.stderr.write(`cofre: there is no command of that name; cofre --help lists them\n`);
    return 2;
  }
  let values;
  try {
    ({ values } = parseArgs({ args: rest, options: { home: { type: 'string' }, config: { type: 'string' }, ceremony: { type: 'string' }, json: { type: 'boolean' }, reference: { type: 'boolean' }, limits: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } }));
  } catch {
    process.stderr.write(`cofre ${command}: an option is not understood; cofre ${command} --help lists them\n`);
    return 2;
  }
  if (values.help === true) {
    process.stdout.write(text);
    return 0;
  }
  // Empty is what a script passes whose variable is not set; it would mean the folder one happens to stand in.
  for (const name of ['home', 'config', 'ceremony'] as const) {
    if (values[name] !== '') continue;
    process.stderr.write(`cofre ${command}: --${name} is empty\n`);
    return 2;
  }
  const home = resolve(values.home ?? (env['COFRE_HOME'] || fileURLToPath(new URL('../../.cofre', import.meta.url))));
  try {
    const config = loadConfig({ home, file: values.config === undefined ? null : resolve(values.config), env });
    if (command === 'init') {
      if (values.ceremony === undefined) {
        process.stderr.write('cofre init: --ceremony FILE is needed\n');
        return 2;
      }
      const { initialize } = await import('./init.ts');
      await initialize({ home, config, file: resolve(values.ceremony), json: values.json === true, print: (line) => process.stdout.write(`${line}\n`) });
    } else if (command === 'config') {
      process.stdout.write(values.reference === true ? configurationReference() : values.limits === true ? `${digestOfLimits(config)}\n` : values.json === true ? `${JSON.stringify(config, null, 2)}\n` : toYaml(config));
    } else {
      const { serve } = await import('./serve.ts');
      await serve({ home, config, env, print: (line) => process.stdout.write(`${line}\n`) });
    }
    return 0;
  } catch (error) {
    // One line; the stack is for those who ask.
    process.stderr.write(`cofre: ${explain(error)}\n`);
    if (env['COFRE_DEBUG'] === '1' && error instanceof Error) process.stderr.write(`${error.stack ?? ''}\n`);
    return error instanceof ConfigError ? 2 : 1;
  }
}

process.exitCode = await main(process.argv.slice(2), process.env);
// All that matters has ended in order. What still holds the process, a connection to a database that has fallen silent, is not waited for.
setTimeout(() => process.exit(), 2000).unref();
