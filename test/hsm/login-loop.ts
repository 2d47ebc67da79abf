// A process that does nothing but log in to a SoftHSM2 token, for the test that others can start meanwhile: each login writes the token's file anew. Ends with its parent.
import { CKU, findSlot, initialize, loadPkcs11, openSession } from '../../hsm/pkcs11.ts';

if (import.meta.main) {
  const [modulePath, tokenLabel, pin] = process.argv.slice(2) as [string, string, string];
  const module = loadPkcs11(modulePath);
  initialize(module);
  const slot = findSlot(module, tokenLabel);
  process.send?.('logging in');
  process.on('disconnect', () => process.exit());
  for (;;) {
    const session = openSession(module, slot);
    try {
      module.C_Login(session, CKU.USER, pin);
    } catch {
      // Others write the file as well.
    }
    module.C_CloseSession(session);
    await new Promise((done) => setImmediate(done));
  }
}
