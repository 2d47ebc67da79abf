/** `cofre init`: the key ceremony, from one reviewed file. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseCeremonyPlan, runCeremony } from '../../hsm/ceremony.ts';
import { ConfigError, readYaml } from '../config.ts';
import type { Config } from '../config.ts';
import { readPin } from './development.ts';

/**
 * Makes the keys of the ceremony file and prints the report.
 *
 * @throws ConfigError for a file that cannot be read; CeremonyError for a plan that is refused or a ceremony that did not finish.
 */
export async function initialize(options: { readonly home: string; readonly config: Config; readonly file: string; readonly json: boolean; readonly print: (line: string) => void }): Promise<void> {
  const { home, config, file, json, print } = options;
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new ConfigError(`${file}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`);
  }
  const given = readYaml(text, file);
  let plan;
  try {
    plan = parseCeremonyPlan(given);
  } catch (error) {
    throw new ConfigError(`${file}: ${(error as Error).message.split('\n')[0] ?? ''}`);
  }
  if (plan.token.label !== config.hsm.token_label || plan.token.module !== config.hsm.module) throw new ConfigError(`${file}: token: is not the HSM of the configuration (hsm.module, hsm.token_label)`);
  const pin = readPin(resolve(home, config.hsm.pin_file));
  try {
    const report = await runCeremony(plan, { pin, now: () => new Date() });
    if (json) {
      print(JSON.stringify(report, null, 2));
      return;
    }
    print(`plan sha256 ${report.planSha256}, token ${report.token.label} (serial ${report.token.serial}), ${report.at}`);
    for (const key of report.keys) print(`${key.label}\t${key.type}\t${key.publicKey === undefined ? 'non-extractable' : `public key sha256 ${key.publicKey.sha256}`}`);
  } finally {
    pin.fill(0);
  }
}
