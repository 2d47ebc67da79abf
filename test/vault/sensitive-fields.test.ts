import * as fc from 'fast-check';
import t from 'tap';
import { isSensitiveName } from '../../vault/sensitive-fields.ts';

const isSensitive = (name: string): boolean => {
  const bytes = Buffer.from(`"${name}"`);
  return isSensitiveName(bytes, 1, bytes.length - 1);
};

t.test('names of sensitive authentication data are known in every spelling', async (t) => {
  for (const name of [
    'cvv', 'CVV', 'cvv2', 'CVV2', 'cvc', 'cvc2', 'cid', 'cav', 'cav2', 'csc', 'cvn2', 'cve', 'cvv_code', 'card_cvv', 'cardCvc', 'cvvValue', 'CVC-Number',
    'security_code', 'securityCode', 'card-security-code', 'SECURITY CODE', 'cardVerificationValue', 'card_verification_code', 'verification_value',
    'pin', 'PIN', 'pin_block', 'pinBlock', 'encrypted_pin_block', 'track', 'track1', 'track_2', 'Track2Data', 'track_data', 'track2EquivalentData',
    'magstripe', 'mag_stripe', 'magneticStripeData', 'c_v_v', 'card.cvv', 'payment[card][cvc]', 'card/pin', 'a.cvv.b', '.cvv', 'cvv.', '__cvv__',
    'CV2', 'card_cv2', 'cv2_number', 'codigo_seguranca', 'codigoDeSeguranca', 'cod_seguranca', 'codigo_seguridad', 'codigo_de_seguridad',
  ]) t.ok(isSensitive(name), name);
});

t.test('names that merely resemble them pass', async (t) => {
  for (const name of [
    '', '_', '.', 'pan', 'items', 'expiry', 'cardholder', 'format', 'reuse', 'ttl_seconds', 'metadata', 'token', 'tokens', 'purpose', 'reference',
    'pincode', 'pin_code', 'spin', 'pinned', 'tracking', 'tracking_number', 'trackId', 'soundtrack', 'racv', 'cvvx', 'xcvv', 'cave', 'decide', 'customer_id',
    'card', 'cards', 'code', 'security', 'brand', 'cv.v', 'c.vv', 'pi.n', 'placid', 'verification_code',
  ]) t.notOk(isSensitive(name), name);
});

t.test('names are compared, not only their hashes', async (t) => {
  t.ok(isSensitiveName(Buffer.from('cvv'), 0, 3));
  t.notOk(isSensitiveName(Buffer.of(0x63, 0x75, 0x76 + 31), 0, 3), 'the same hash as cvv');
});

t.test('any bytes can be asked about', async () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat(200), fc.nat(200), (bytes, start, end) => typeof isSensitiveName(bytes, start, Math.min(end, bytes.length)) === 'boolean'));
});
