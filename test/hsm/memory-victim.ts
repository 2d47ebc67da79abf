// A process that seals, opens and fingerprints test cards and wipes every Buffer that is its own, for the memory test. Cards are named by index (seed 78).
import { openKeyring } from '../../hsm/keyring.ts';
import { runCeremony } from '../../hsm/ceremony.ts';
import { secretBytes } from '../../hsm/secret-bytes.ts';
import { cardDigits, cardNumber } from '../support/cards.ts';
import { softToken } from '../support/softhsm.ts';
import { planFor } from './hsms.ts';
import { MemoryStore } from './memory-store.ts';
import { receipt } from './receipt.ts';

export const victimSeed = 78;
export const cards = 2_000;

if (import.meta.main) {
  const token = softToken({
    teardown(fn) {
      process.on('exit', fn);
    },
  });
  const custody = process.argv[2] === 'direct' ? 'direct' : 'envelope';
  const now = (): Date => new Date();
  await runCeremony(planFor(token.modulePath, token.tokenLabel, 'ed25519'), { pin: token.pin, now });
  const { modulePath, tokenLabel, pin } = token;
  const keyring = await openKeyring({ modulePath, tokenLabel, pin, custody, tenants: new Map([['acme', 'acme']]), store: new MemoryStore(), now, maxAwayMs: 60_000 });
  const { cipher, fingerprint } = keyring.forTenant('acme');
  const binding = { tenant: 'acme', cardId: Buffer.alloc(16, 7) };
  const digits = secretBytes(cardDigits);
  for (let index = 0; index < cards; index++) {
    cardNumber(index, digits, 0, victimSeed);
    const sealed = await cipher.seal('pan', digits, binding);
    await fingerprint.compute('acme', digits);
    digits.fill(0);
    const opened = await cipher.open(receipt(), 'pan', sealed, binding);
    if (process.argv[3] !== 'careless') opened.fill(0);
    if (index % 500 === 0) globalThis.gc?.({ type: 'minor' });
  }
  process.on('disconnect', () => process.exit(0));
  process.send!({ done: true });
}
