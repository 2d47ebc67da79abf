import t from 'tap';
import { Abuse, type AbuseKind } from '../../vault/abuse.ts';

const shop = { spiffeId: 'spiffe://cofre.dev/tenant/acme/service/shop', tenant: 'acme' };
const other = { spiffeId: 'spiffe://cofre.dev/tenant/acme/service/other', tenant: 'acme' };
const opaque = 'tok_1q8nUQ0123456789abcdefghij0000';
/** Numeric tokens by their middle: they begin with the vault's prefix and never pass Luhn. */
const numeric = (stem: number): string => {
  const { source, luhn } = numericParts;
  for (let last = 1000; ; last += 1) {
    const text = `${source}${String(stem).padStart(12 - source.length, '0')}${last}`;
    if (!luhn(Buffer.from(text, 'latin1'), 0, 16)) return text;
  }
};
const numericParts = {
  source: ((await import('../../vault/numeric-token-prefix.json', { with: { type: 'json' } })).default as { prefix: string }).prefix,
  luhn: (await import('../../vault/pan.ts')).luhn,
};

function watch(): { abuse: Abuse; alerts: [AbuseKind, string, number][]; clock: { time: number } } {
  const alerts: [AbuseKind, string, number][] = [];
  const clock = { time: Date.parse('2026-11-24T10:00:00Z') };
  const abuse = new Abuse({
    limits: { unknownPerMinute: 5, sequential: 4 },
    now: () => new Date(clock.time),
    isHoney: (tenantId, token) => tenantId === 1 && token === 'tok_decoy',
    alert: (kind, { spiffeId }, count) => void alerts.push([kind, spiffeId, count]),
  });
  return { abuse, alerts, clock };
}

t.test('tokens that nobody has: more than the limit in a minute, of one caller, told once', async (t) => {
  const { abuse, alerts, clock } = watch();
  for (let n = 0; n < 5; n += 1) abuse.named(shop, 1, [`x${n}`], [`x${n}`]);
  for (let n = 0; n < 5; n += 1) abuse.named(other, 1, [`x${n}`], [`x${n}`]);
  t.same(alerts, []);
  abuse.named(shop, 1, [opaque], []);
  t.same(alerts, [], 'what is known does not count');
  abuse.named(shop, 1, ['x', opaque, 'y'], ['x', 'y']);
  abuse.named(shop, 1, ['x'], ['x']);
  t.same(alerts, [['unknown_tokens', shop.spiffeId, 7]]);
  clock.time += 61_000;
  for (let n = 0; n < 5; n += 1) abuse.named(shop, 1, ['x'], ['x']);
  t.equal(alerts.length, 1, 'a minute begins at nothing');
  abuse.named(shop, 1, ['x'], ['x']);
  t.equal(alerts.length, 2);
  clock.time -= 3_600_000;
  for (let n = 0; n < 6; n += 1) abuse.named(shop, 1, ['x'], ['x']);
  t.equal(alerts.length, 3, 'a clock that was set back does not silence it');
});

t.test('numeric tokens one after the other, known or not, singly or in a batch', async (t) => {
  for (const batch of [false, true]) {
    const { abuse, alerts } = watch();
    const tokens = [7000, 7001, 7003, 7010].map(numeric);
    if (batch) abuse.named(shop, 1, tokens, []);
    else for (const token of tokens) abuse.named(shop, 1, [token], []);
    t.same(alerts, [['sequential_tokens', shop.spiffeId, 4]]);
  }
  const { abuse, alerts } = watch();
  for (let n = 0; n < 50; n += 1) abuse.named(shop, 1, [numeric(7000)], []);
  t.same(alerts, [], 'the same one again is no series');
  for (const stem of [100_000, 5, 999_999, 6, 7, 400, 8, 9]) abuse.named(shop, 1, [numeric(stem)], []);
  t.same(alerts, [], 'neither is what jumps');
  for (const stem of [20, 19, 18, 17]) {
    abuse.named(shop, 1, [numeric(stem)], []);
    abuse.named(other, 1, [numeric(stem * 1_000_000)], []);
    abuse.named(shop, 1, [opaque], []);
  }
  t.same(alerts, [['sequential_tokens', shop.spiffeId, 4]], 'downwards, with others in between');
});

t.test('a series over the last four digits is one as well', async (t) => {
  const { abuse, alerts } = watch();
  const base = numeric(123).slice(0, -4);
  let named = 0;
  for (let last = 0; named < 4; last += 1) {
    const token = `${base}${String(last).padStart(4, '0')}`;
    if (numericParts.luhn(Buffer.from(token, 'latin1'), 0, 16)) continue;
    abuse.named(shop, 1, [token], [token]);
    named += 1;
  }
  t.same(alerts, [['sequential_tokens', shop.spiffeId, 4]]);
});

t.test('a honey token at its first naming, and of its tenant alone', async (t) => {
  const { abuse, alerts } = watch();
  abuse.named(shop, 2, ['tok_decoy'], ['tok_decoy']);
  t.same(alerts, []);
  abuse.named(shop, 1, [opaque, 'tok_decoy'], ['tok_decoy']);
  abuse.named(shop, 1, ['tok_decoy'], ['tok_decoy']);
  t.same(alerts, [['honey_token', shop.spiffeId, 1]]);
});

t.test('what others saw is told once a minute as well', async (t) => {
  const { abuse, alerts, clock } = watch();
  abuse.told('card_guessing', shop, 3);
  abuse.told('card_guessing', shop, 9);
  abuse.told('unusual_volume', shop, 5000);
  clock.time += 60_000;
  abuse.told('card_guessing', shop, 2);
  t.same(alerts, [['card_guessing', shop.spiffeId, 3], ['unusual_volume', shop.spiffeId, 5000], ['card_guessing', shop.spiffeId, 2]]);
});
