import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import t from 'tap';

const ROOT = resolve(import.meta.dirname, '../..');

/** Every tracked text file; a clone without git (an image, an archive) has none of the faults looked for here that its origin had not. */
const FILES = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], { cwd: ROOT, encoding: 'utf8' })
  .split('\0')
  .filter((file) => file !== '' && existsSync(join(ROOT, file)) && statSync(join(ROOT, file)).isFile());

/** Published by card brands and payment providers for tests, with their sources; no issuer has given them to anybody. */
const TEST_CARDS = new Set((JSON.parse(readFileSync(join(ROOT, 'test/vectors/cards.json'), 'utf8')) as { cards: { pan: string }[] }).cards.map((card) => card.pan));

function passesLuhn(digits: string): boolean {
  const sum = digits
    .split('')
    .toReversed()
    .reduce((sum, digit, i) => {
      const n = Number(digit) * (i % 2 === 0 ? 1 : 2);
      return sum + (n > 9 ? n - 9 : n);
    }, 0);
  return sum % 10 === 0;
}

/** Numbers of 13 to 19 digits in a range of a card brand (ISO/IEC 7812: 3 to 6, and Mastercard's 2221-2720) that pass Luhn, written plain or in groups. */
function cardNumbersIn(text: string): string[] {
  return [...text.matchAll(/(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.]*\d)/g)].map((match) => match[0].replaceAll(/[ -]/g, '')).filter((digits) => /^(?:[3-6]|2[2-7])/.test(digits) && passesLuhn(digits));
}

t.test('the tree holds no card number but the well-known test cards', async (t) => {
  t.same(cardNumbersIn(`x 4111-1111-1111-1111 and ${'4111111111111'.concat('111')}`), ['4111111111111111', '4111111111111111'], 'a card number would be found');
  for (const file of FILES) {
    // The lock file's hashes hold digits at random.
    if (file === 'package-lock.json') continue;
    t.same(
      cardNumbersIn(readFileSync(join(ROOT, file), 'latin1')).filter((digits) => !TEST_CARDS.has(digits)),
      [],
      file,
    );
  }
});

t.test('no file names a registry host or a folder of one machine', async (t) => {
  // Written in parts, so that this file passes its own test.
  const registry = new RegExp(['registry', 'npmjs'].join('\\.') + '|"resolved":\\s*"http|' + ['registry', 'yarnpkg'].join('\\.'));
  const machine = new RegExp(`(?<![\\w.])/(?:${['work', 'root', 'home'].join('|')})/[a-z]\\w*/`);
  for (const file of FILES) {
    const text = readFileSync(join(ROOT, file), 'latin1');
    t.notMatch(text, registry, file);
    if (file !== 'package-lock.json') t.notMatch(text, machine, file);
  }
});
