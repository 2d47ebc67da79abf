import { isBuiltin } from 'node:module';
import { dirname, join } from 'node:path';

/** One import of a file: what it names, and whether it is of a value (types vanish before anything runs). */
export interface Import {
  readonly specifier: string;
  readonly value: boolean;
}

/**
 * Who may import values from where: the first row whose pattern fits the file's path decides. `files` are prefixes of paths in the repository, a file's own folder excepted, which is always free; `packages` are npm packages.
 * DESIGN, section 2: vault/bin reaches everything; the folders below do not know one another.
 */
export const RULES: readonly { readonly from: RegExp; readonly files: readonly string[]; readonly packages: readonly string[] }[] = [
  { from: /^vault\/bin\//, files: ['vault/', 'hsm/', 'audit/', 'platform-adapters/', 'network-policy/', 'compliance/'], packages: ['pg', 'pino', 'yaml', 'prom-client'] },
  // Pure: they import Node's own modules, and one another.
  { from: /^vault\/(pan|body|token|card-scan|sensitive-fields|token-view)\.ts$/, files: ['vault/', 'hsm/secret-bytes.ts'], packages: [] },
  {
    from: /^vault\/(server|routes|[a-z]+-routes|schemas|change-kinds)\.ts$/,
    files: ['vault/', 'audit/append.ts', 'hsm/errors.ts', 'hsm/key-lifecycle.ts', 'hsm/secret-bytes.ts', 'hsm/hmac-sha256.ts'],
    packages: ['fastify', '@fastify/swagger', '@fastify/type-provider-typebox', 'typebox'],
  },
  { from: /^vault\/policy\.ts$/, files: ['vault/', 'audit/append.ts', 'hsm/errors.ts', 'hsm/secret-bytes.ts', 'hsm/hmac-sha256.ts'], packages: ['@cedar-policy/cedar-wasm'] },
  { from: /^vault\/config(-reference)?\.ts$/, files: ['vault/', 'audit/append.ts', 'hsm/errors.ts', 'hsm/secret-bytes.ts', 'hsm/hmac-sha256.ts'], packages: ['yaml', 'typebox'] },
  { from: /^vault\//, files: ['vault/', 'audit/append.ts', 'hsm/errors.ts', 'hsm/secret-bytes.ts', 'hsm/hmac-sha256.ts'], packages: [] },
  { from: /^hsm\/pkcs11\.ts$/, files: ['hsm/'], packages: ['pkcs11js'] },
  { from: /^hsm\//, files: ['hsm/'], packages: [] },
  { from: /^audit\//, files: ['audit/'], packages: [] },
  { from: /^platform-adapters\/postgres\//, files: ['platform-adapters/linux/durable-file.ts', 'platform-adapters/linux/folder-lock.ts'], packages: ['pg'] },
  { from: /^platform-adapters\/pki\//, files: ['platform-adapters/linux/durable-file.ts', 'platform-adapters/linux/folder-lock.ts'], packages: [] },
  { from: /^platform-adapters\/telemetry\//, files: [], packages: ['prom-client', 'pino'] },
  { from: /^platform-adapters\/aws\//, files: [], packages: ['@aws-sdk/client-s3'] },
  { from: /^platform-adapters\//, files: [], packages: [] },
  { from: /^network-policy\//, files: [], packages: [] },
  { from: /^compliance\//, files: ['compliance/', 'audit/entry.ts', 'audit/merkle.ts', 'audit/checkpoint.ts', 'audit/tiles.ts', 'audit/note.ts', 'network-policy/flows.ts'], packages: [] },
];

/**
 * Returns every import of a TypeScript source: static, side effect, re-export and dynamic ones. Comments and the texts of strings are passed over.
 * A dynamic import or require whose argument is no plain string is returned with the specifier `(computed)`, since nobody can tell where it leads.
 */
export function importsOf(source: string): Import[] {
  const found: Import[] = [];
  const code = withoutCommentsAndStrings(source);
  for (const match of code.text.matchAll(/\b(import|export)\s+(type\b(?!\s*,|\s+from\b))?([\w\s{},*$]*?)\bfrom\s*"(\d+)"/g)) {
    const named = /^\s*\{([^}]*)\}\s*$/.exec(match[3]!)?.[1];
    const onlyTypes = match[2] !== undefined || (named !== undefined && named.trim() !== '' && named.split(',').every((name) => name.trim() === '' || /^type\s/.test(name.trim())));
    // With verbatimModuleSyntax, `import { type A }` leaves the import itself standing.
    found.push({ specifier: code.strings[Number(match[4])]!, value: match[2] === undefined && (!onlyTypes || named !== undefined) });
  }
  for (const match of code.text.matchAll(/\bimport\s*"(\d+)"/g)) found.push({ specifier: code.strings[Number(match[1])]!, value: true });
  for (const match of code.text.matchAll(/\b(?:import|require|require\.resolve)\s*\(\s*(?:"(\d+)"\s*[,)])?/g)) {
    // `import("x").Type` in a type position is rare and is held to the same rule.
    found.push({ specifier: match[1] === undefined ? '(computed)' : code.strings[Number(match[1])]!, value: true });
  }
  return found;
}

/** Returns why `file` (a path in the repository) may not import `specifier` for its value, or null if it may. */
export function violation(file: string, specifier: string): string | null {
  const rule = RULES.find((rule) => rule.from.test(file));
  if (rule === undefined) return `${file} lies in no folder of the design`;
  if (specifier === '(computed)') return `${file} imports a computed name`;
  if (isBuiltin(specifier)) return null;
  if (specifier.startsWith('.')) {
    const target = join(dirname(file), specifier);
    const own = dirname(file) === dirname(target) || target.startsWith(`${dirname(file)}/`);
    return own || rule.files.some((prefix) => target.startsWith(prefix)) ? null : `${file} imports ${target}`;
  }
  const name = specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
  return rule.packages.includes(name) ? null : `${file} imports ${name}`;
}

/** Replaces each string literal by `"n"`, an index into `strings`, and drops comments, so that patterns see code only. Template literals are dropped, their `${}` parts too, except where they are the only argument's start. */
function withoutCommentsAndStrings(source: string): { text: string; strings: string[] } {
  const strings: string[] = [];
  const text = source.replaceAll(
    /\/\/[^\n]*|\/\*[\s\S]*?\*\/|'((?:[^'\\\n]|\\.)*)'|"((?:[^"\\\n]|\\.)*)"|`(?:[^`\\]|\\[\s\S])*`|(?<=[=(,:[!&|?{};]\s*)\/(?:[^/\\\n[]|\\.|\[(?:[^\]\\\n]|\\.)*\])+\/[a-z]*/g,
    (whole, single?: string, double?: string) => {
      const string = single ?? double;
      if (string === undefined) return whole.startsWith('`') ? '``' : ' ';
      strings.push(string);
      return `"${strings.length - 1}"`;
    },
  );
  return { text, strings };
}
