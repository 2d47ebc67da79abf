import { readFileSync } from 'node:fs';
import t from 'tap';
import { configurationReference } from '../../vault/config-reference.ts';
import { readConfig } from '../../vault/config.ts';

function keysOf(section: object, at: string): string[] {
  return Object.entries(section).flatMap(([key, value]: [string, unknown]) => (typeof value === 'object' && value !== null && !Array.isArray(value) ? keysOf(value, `${at}${key}.`) : [`${at}${key}`]));
}

void t.test('docs/configuration.md says what the schema says', (t) => {
  const written = readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8');
  t.equal(written, configurationReference(), 'made anew with: npx cofre config --reference > docs/configuration.md');
  t.end();
});

void t.test('every key of the configuration has a meaning and a default', (t) => {
  const rows = configurationReference().split('\n').filter((line) => line.startsWith('| `'));
  t.same(rows.map((row) => row.split('`')[1]), keysOf(readConfig('', 'cofre.config.yaml', {}), ''), 'each key that the defaults have, in their order');
  for (const row of rows) {
    t.match(row, /^\| `[a-z_.]+` \| `.+` \| [A-Z\w/].+ \|$/u, row.slice(0, 40));
    t.notMatch(row, 'undefined');
  }
  t.end();
});
