import { globSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import t from 'tap';
import { importsOf, violation } from './imports.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const PRODUCT = globSync('{vault,hsm,audit,platform-adapters,network-policy,compliance}/**/*.ts', { cwd: ROOT });

function violationsIn(file: string, source: string): string[] {
  return importsOf(source)
    .filter((found) => found.value)
    .flatMap((found) => violation(file, found.specifier) ?? []);
}

t.test('every file of the product imports only what its place allows', async (t) => {
  t.ok(PRODUCT.length > 0);
  for (const file of PRODUCT) t.same(violationsIn(file, readFileSync(join(ROOT, file), 'utf8')), [], file);
});

t.test('a planted violation of each kind is found', async (t) => {
  const planted: [string, string, string][] = [
    ['vault/token.ts', "import { Pool } from 'pg'", 'vault/token.ts imports pg'],
    ['vault/tokenize.ts', "import pg from 'pg'", 'vault/tokenize.ts imports pg'],
    ['vault/tokenize.ts', "import { openKeyring } from '../hsm/keyring.ts'", 'vault/tokenize.ts imports hsm/keyring.ts'],
    ['vault/tokenize.ts', "import '../hsm/keyring.ts'", 'vault/tokenize.ts imports hsm/keyring.ts'],
    ['vault/tokenize.ts', "const k = await import('../hsm/keyring.ts')", 'vault/tokenize.ts imports hsm/keyring.ts'],
    ['vault/tokenize.ts', 'const k = await import(name)', 'vault/tokenize.ts imports a computed name'],
    ['vault/tokenize.ts', 'const k = await import(`../hsm/${name}`)', 'vault/tokenize.ts imports a computed name'],
    ['vault/tokenize.ts', "export * from '../hsm/keyring.ts'", 'vault/tokenize.ts imports hsm/keyring.ts'],
    ['vault/tokenize.ts', "export { openKeyring } from '../hsm/keyring.ts'", 'vault/tokenize.ts imports hsm/keyring.ts'],
    ['vault/tokenize.ts', "import {\n  type Keyring,\n  openKeyring,\n} from '../hsm/keyring.ts'", 'vault/tokenize.ts imports hsm/keyring.ts'],
    ['vault/tokenize.ts', "import { type Keyring } from '../hsm/keyring.ts'", 'vault/tokenize.ts imports hsm/keyring.ts'],
    ['hsm/keyring.ts', "import pkcs11js from 'pkcs11js'", 'hsm/keyring.ts imports pkcs11js'],
    ['hsm/keyring.ts', "const pkcs11js = require('pkcs11js')", 'hsm/keyring.ts imports pkcs11js'],
    ['hsm/keyring.ts', "import { append } from '../audit/append.ts'", 'hsm/keyring.ts imports audit/append.ts'],
    ['audit/store.ts', "import { VaultError } from '../vault/errors.ts'", 'audit/store.ts imports vault/errors.ts'],
    ['platform-adapters/postgres/key-store.ts', "import { x } from '../linux/hardening.ts'", 'platform-adapters/postgres/key-store.ts imports platform-adapters/linux/hardening.ts'],
    ['compliance/bundle.ts', "import { append } from '../audit/append.ts'", 'compliance/bundle.ts imports audit/append.ts'],
    ['vault/pan.ts', "import { type as x } from '@scope/package/deep'", 'vault/pan.ts imports @scope/package'],
  ];
  for (const [file, source, expected] of planted) t.same(violationsIn(file, `// before\n${source}\n`), [expected], source);
});

t.test('what is allowed passes: types, Node, the own folder, comments and texts', async (t) => {
  const allowed: [string, string][] = [
    ['vault/tokenize.ts', "import type { Keyring } from '../hsm/keyring.ts'"],
    ['vault/tokenize.ts', "export type { Keyring } from '../hsm/keyring.ts'"],
    ['vault/tokenize.ts', "import { createHash } from 'node:crypto'"],
    ['vault/tokenize.ts', "import { append } from '../audit/append.ts'\nimport { HsmError } from '../hsm/errors.ts'"],
    ['vault/tokenize.ts', "// import { Pool } from 'pg'\n/* import 'pg' */\nconst text = 'import \"pg\"'"],
    ['hsm/pkcs11.ts', "import pkcs11js from 'pkcs11js'"],
    ['vault/bin/cofre.ts', "import { openKeyring } from '../../hsm/keyring.ts'"],
    ['compliance/verify.ts', "import { root } from '../audit/merkle.ts'"],
  ];
  for (const [file, source] of allowed) t.same(violationsIn(file, source), [], source);
});
