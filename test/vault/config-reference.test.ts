import { readFileSync } from 'node:fs';
import t from 'tap';
import { configurationReference } from '../../vault/config-reference.ts';

void t.test('docs/configuration.md says what the schema says', (t) => {
  const written = readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8');
  t.equal(written, configurationReference(), 'made anew with: npx cofre config --reference > docs/configuration.md');
  t.end();
});

void t.test('every key of the configuration has a meaning and a default', (t) => {
  for (const row of configurationReference().split('\n').filter((line) => line.startsWith('| `'))) {
    t.match(row, /^\| `[a-z_.]+` \| `.+` \| [A-Z\w/].+ \|$/u, row.slice(0, 40));
    t.notMatch(row, 'undefined');
  }
  t.end();
});
