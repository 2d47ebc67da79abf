// A SoftHSM2 token of the test's own: a folder under the system's temporary one, initialized in this process.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CKF, CKU, findSlot, initialize, loadPkcs11, openSession } from '../../hsm/pkcs11.ts';
import type { Pkcs11Module } from '../../hsm/pkcs11.ts';

export interface SoftToken {
  readonly module: Pkcs11Module;
  readonly modulePath: string;
  readonly tokenLabel: string;
  readonly pin: Buffer;
  /** Holds softhsm2.conf and the token directory. */
  readonly folder: string;
  /** The token directory: move it away, and the HSM is away. */
  readonly tokens: string;
}

const modulePaths = [
  '/usr/lib/softhsm/libsofthsm2.so',
  '/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so',
  '/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so',
  '/usr/local/lib/softhsm/libsofthsm2.so',
];

/** Where SoftHSM2's library is on this machine. Throws where it is not installed. */
export function softHsmPath(): string {
  const path = [process.env['COFRE_PKCS11_MODULE'] ?? '', ...modulePaths].find((candidate) => candidate !== '' && existsSync(candidate));
  if (path === undefined) throw new Error('SoftHSM2 is not installed: apt-get install softhsm2');
  return path;
}

/**
 * Makes a token, points SOFTHSM2_CONF at it and initializes the library anew. One at a time in a process: the library reads its configuration when it is
 * initialized. The folder is removed when the test ends.
 */
export function softToken(t: { teardown(fn: () => void): void }, tokenLabel = 'cofre-test'): SoftToken {
  const folder = mkdtempSync(join(tmpdir(), 'cofre-softhsm-'));
  const tokens = join(folder, 'tokens');
  mkdirSync(tokens, { mode: 0o700 });
  const conf = join(folder, 'softhsm2.conf');
  writeFileSync(conf, `directories.tokendir = ${tokens}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n`, { mode: 0o600 });
  process.env['SOFTHSM2_CONF'] = conf;
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));

  const modulePath = softHsmPath();
  const module = loadPkcs11(modulePath);
  try {
    module.C_Finalize();
  } catch {
    // It was not initialized.
  }
  initialize(module);
  const free = module.C_GetSlotList(true).find((slot) => (module.C_GetTokenInfo(slot).flags & CKF.TOKEN_INITIALIZED) === 0);
  if (free === undefined) throw new Error('SoftHSM2 shows no free slot');
  // C_InitToken reads exactly 32 bytes of label (PKCS#11 v2.40 section 5.5).
  module.C_InitToken(free, 'test-so-pin', tokenLabel.padEnd(32));
  const session = openSession(module, findSlot(module, tokenLabel));
  module.C_Login(session, CKU.SO, 'test-so-pin');
  module.C_InitPIN(session, 'test-pin');
  module.C_Logout(session);
  module.C_CloseSession(session);
  return { module, modulePath, tokenLabel, pin: Buffer.from('test-pin'), folder, tokens };
}
