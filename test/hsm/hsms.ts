// The two HSMs that every test of the keyring runs against: SoftHSM2, and a strict token in memory with CloudHSM's manners. A ceremony has been held on each.
import type { Test } from 'tap';
import { parseCeremonyPlan, runCeremony } from '../../hsm/ceremony.ts';
import type { CeremonyPlan } from '../../hsm/ceremony.ts';
import { openKeyring } from '../../hsm/keyring.ts';
import type { Custody, Keyring, KeyringOptions } from '../../hsm/keyring.ts';
import { CKU, findSlot, initialize, openSession } from '../../hsm/pkcs11.ts';
import type { Pkcs11Module, SessionRef, SigningAlgorithm } from '../../hsm/pkcs11.ts';
import { softToken } from '../support/softhsm.ts';
import type { SoftToken } from '../support/softhsm.ts';
import { MemoryStore } from './memory-store.ts';
import { StrictToken } from './strict-token.ts';
import type { StrictTokenOptions } from './strict-token.ts';

export interface Hsm {
  readonly module: Pkcs11Module;
  readonly modulePath: string;
  readonly tokenLabel: string;
  readonly pin: Buffer;
  readonly signing: SigningAlgorithm;
  readonly soft: SoftToken | null;
  readonly strict: StrictToken | null;
}

export const softKind = 'SoftHSM2';
export const strictKind = 'a strict token';
export const kinds = [softKind, strictKind, 'a strict token that wants a zeroed IV'] as const;
export type HsmKind = (typeof kinds)[number];
export const custodies: readonly Custody[] = ['envelope', 'direct'];

export function planFor(modulePath: string, tokenLabel: string, signing: SigningAlgorithm): CeremonyPlan {
  return parseCeremonyPlan({
    ceremony: 'cofre/v1',
    purpose: 'development',
    token: { module: modulePath, label: tokenLabel, initialize: false },
    domains: ['acme', 'globex'],
    keys: { domain: 'aes-256', control: 'hmac-sha-256', log_signing: signing, evidence_signing: 'ecdsa-p256' },
    witnesses: ['a test'],
  });
}

/** A token without any key. */
export function bareHsm(t: Test, kind: HsmKind, options: StrictTokenOptions = {}): Hsm {
  if (kind === softKind) {
    const soft = softToken(t);
    return { module: soft.module, modulePath: soft.modulePath, tokenLabel: soft.tokenLabel, pin: soft.pin, signing: 'ed25519', soft, strict: null };
  }
  const strict = new StrictToken({ iv: kind === strictKind ? 'overwrite' : 'zeros-only', ...options });
  t.teardown(() => noneOf(strict.violations));
  return { module: strict, modulePath: '/nowhere/strict.so', tokenLabel: 'cofre-test', pin: Buffer.from('test-pin'), signing: 'ecdsa-p256', soft: null, strict };
}

/** A token after a ceremony for the domains acme and globex. */
export async function hsmOf(t: Test, kind: HsmKind, options: StrictTokenOptions = {}): Promise<Hsm> {
  const hsm = bareHsm(t, kind, options);
  await runCeremony(planFor(hsm.modulePath, hsm.tokenLabel, hsm.signing), { pin: hsm.pin, now: () => new Date(), module: hsm.module });
  return hsm;
}

// A teardown that throws fails its test; assertions are over by then.
function noneOf(violations: readonly string[]): void {
  if (violations.length > 0) throw new Error(`a rule was broken: ${violations.join('; ')}`);
}

export function memoryStore(t: Test): MemoryStore {
  const store = new MemoryStore();
  t.teardown(() => noneOf(store.violations));
  return store;
}

/** A keyring for tenants acme and globex, each its own domain, and acme-mx in acme's; closed when the test ends. */
export async function keyringOf(t: Test, hsm: Hsm, over: Partial<KeyringOptions> & Pick<KeyringOptions, 'custody' | 'store'>): Promise<Keyring> {
  const keyring = await openKeyring({
    modulePath: hsm.modulePath,
    module: hsm.module,
    tokenLabel: hsm.tokenLabel,
    pin: hsm.pin,
    tenants: new Map([
      ['acme', 'acme'],
      ['acme-mx', 'acme'],
      ['globex', 'globex'],
    ]),
    now: () => new Date(),
    maxAwayMs: 60_000,
    ...over,
  });
  t.teardown(() => keyring.close());
  return keyring;
}

/** A session behind everybody's back, not logged in by itself (a login is the whole process's). */
export function rawSession(hsm: Hsm): SessionRef & { close(): void } {
  initialize(hsm.module);
  const handle = openSession(hsm.module, findSlot(hsm.module, hsm.tokenLabel));
  try {
    hsm.module.C_Login(handle, CKU.USER, hsm.pin.toString());
  } catch {
    // Somebody is logged in already.
  }
  return { module: hsm.module, handle, close: () => hsm.module.C_CloseSession(handle) };
}
