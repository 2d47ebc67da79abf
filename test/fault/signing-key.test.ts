/** Somebody with the HSM's PIN deletes the key that signs the log, under a running vault. */
import { cpSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { labels } from '../../hsm/keyring.ts';
import { CKO, findOne, findSlot, initialize, loadPkcs11, login, openSession } from '../../hsm/pkcs11.ts';
import { readPin } from '../../vault/bin/development.ts';
import { startAppliance, until } from '../support/appliance.ts';
import { readLog } from '../support/log-reader.ts';
import { isProblem } from '../support/problem.ts';
import { softHsmPath } from '../support/softhsm.ts';
import { cardText } from '../support/test-cards.ts';

const appliance = await startAppliance(t, { config: { log: { max_unsigned: '4s', checkpoint_interval: '100ms' } } });
const checkout = appliance.client('checkout');
let nextCard = 0;
const tokenize = async (): Promise<number> => (await checkout.post('/v1/tokenize', { pan: cardText(nextCard++) })).status;
const readiness = async (): Promise<Record<string, { ok: boolean; detail: string }>> => (await (await fetch(`${appliance.telemetryUrl}/readyz`)).json()) as Record<string, { ok: boolean; detail: string }>;
const signed = async (): Promise<number> => Number(/^cofre_log_signed_size (\d+)$/mu.exec(await (await fetch(`${appliance.telemetryUrl}/metrics`)).text())?.[1] ?? 0);
const tokens = join(appliance.home, 'hsm/tokens');
const copy = join(appliance.home, 'hsm/tokens-copy');

await t.test('calls go on for as long as they may without a signature, readiness and an alert say what is wrong, and then calls are refused', { timeout: 120_000 }, async (t) => {
  t.equal(await tokenize(), 201);
  await until(async () => (await signed()) > 1, 'a checkpoint');
  cpSync(tokens, copy, { recursive: true });
  process.env['SOFTHSM2_CONF'] = join(appliance.home, 'hsm/softhsm2.conf');
  const module = loadPkcs11(softHsmPath());
  initialize(module);
  const session = { module, handle: openSession(module, findSlot(module, 'cofre-development')) };
  login(session, readPin(join(appliance.home, 'secrets/hsm-pin')));
  module.C_DestroyObject(session.handle, findOne(session, CKO.PRIVATE_KEY, labels.logSigning));
  module.C_Finalize();

  const statuses: number[] = [];
  await until(async () => (statuses.push(await tokenize()), statuses.at(-1) !== 201), 'the refusal');
  t.ok(statuses.length > 3);
  t.same(new Set(statuses.slice(0, -1)), new Set([201]), 'until then every call was served');
  isProblem(t, await checkout.post('/v1/tokenize', { pan: cardText(nextCard++) }), 'audit_unavailable');
  t.match(await readiness(), { ok: false, hsm: { ok: true }, checkpoints: { ok: false, detail: /^no signed checkpoint over what was committed for \d+ s$/u }, sequencer: { ok: true, detail: 'sequencing, but no checkpoint can be signed' } });
  t.match(appliance.messages().filter(({ msg }) => msg === 'no checkpoint could be signed').length, 1, 'said once');
  await until(async () => (await readLog(appliance)).some(({ value }) => value['action'] === 'log.alert' && (value['detail'] as Record<string, unknown>)['kind'] === 'unsigned'), 'the alert');
});

await t.test('with the key put back, a start goes on from what is there', { timeout: 120_000 }, async (t) => {
  const size = await signed();
  appliance.closeClients();
  t.same(await appliance.stop(), { code: 0, signal: null });
  rmSync(tokens, { recursive: true });
  cpSync(copy, tokens, { recursive: true });
  await appliance.start();
  const again = appliance.client('checkout');
  t.equal((await again.post('/v1/tokenize', { pan: cardText(nextCard++) })).status, 201);
  await until(async () => (await signed()) > size, 'a checkpoint over all');
  await until(async () => ((await readiness()) as unknown as { ok: boolean }).ok, 'readiness');
});
