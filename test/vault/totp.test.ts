import t from 'tap';
import { acceptedStep, base32, hotp, stepAt, totpUri } from '../../vault/totp.ts';

const secret = Buffer.from('12345678901234567890', 'latin1');

t.test('RFC 4226 appendix D', async (t) => {
  const codes = ['755224', '287082', '359152', '969429', '338314', '254676', '287922', '162583', '399871', '520489'];
  for (const [counter, code] of codes.entries()) t.equal(hotp(secret, counter), code);
});

t.test('RFC 6238 appendix B, SHA-1', async (t) => {
  const vectors = [
    [59, '94287082'],
    [1_111_111_109, '07081804'],
    [1_111_111_111, '14050471'],
    [1_234_567_890, '89005924'],
    [2_000_000_000, '69279037'],
    [20_000_000_000, '65353130'],
  ] as const;
  for (const [seconds, code] of vectors) {
    t.equal(hotp(secret, stepAt(new Date(seconds * 1000)), 8), code);
    t.equal(acceptedStep(secret, code.slice(2), new Date(seconds * 1000), 0), stepAt(new Date(seconds * 1000)), 'of which six digits are the last six');
  }
});

t.test('a code serves for its step and the ones beside it, after the last that served', async (t) => {
  const at = new Date(1_111_111_111_000);
  const step = stepAt(at);
  for (const [of, accepted] of [[step - 2, null], [step - 1, step - 1], [step, step], [step + 1, step + 1], [step + 2, null]] as const) t.equal(acceptedStep(secret, hotp(secret, of), at, 0), accepted);
  t.equal(acceptedStep(secret, hotp(secret, step), at, step), null, 'not twice');
  t.equal(acceptedStep(secret, hotp(secret, step - 1), at, step), null, 'nor an earlier one after it');
  t.equal(acceptedStep(secret, hotp(secret, step + 1), at, step), step + 1);
  for (const text of ['', '12345', '1234567', 'abcdef', ' 94287', '９４２８７０']) t.equal(acceptedStep(secret, text, at, 0), null);
});

t.test('RFC 4648 section 10, without padding', async (t) => {
  for (const [text, encoded] of [['', ''], ['f', 'MY'], ['fo', 'MZXQ'], ['foo', 'MZXW6'], ['foob', 'MZXW6YQ'], ['fooba', 'MZXW6YTB'], ['foobar', 'MZXW6YTBOI']] as const) t.equal(base32(Buffer.from(text)), encoded);
  t.equal(base32(secret), 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ');
  t.match(totpUri(secret, 'spiffe://x/y'), /^otpauth:\/\/totp\/Cofre:spiffe%3A%2F%2Fx%2Fy\?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Cofre&algorithm=SHA1&digits=6&period=30$/u);
});
