/**
 * Counts which branches of the vault's modules run: a hook that strips their types, as Node itself does, and puts a counter into every branch. To be called before the modules are loaded.
 */
import { registerHooks, stripTypeScriptTypes } from 'node:module';
import { fileURLToPath } from 'node:url';
import { parse, type AnyNode, type Node } from 'acorn';

/** Counters of one execution, a byte each. They wrap, as AFL's do: what counts is that they differ. */
export const counters = new Uint8Array(16_384);
/** What the instrumented sources compare with: their strings and their byte constants, for inputs to be made of. */
export const words = new Set<string>();

let used = 0;
/** How many counters there are so far; modules that load later bring more. */
export const countersUsed = (): number => used;

/** From now on, modules whose file is in `folder` count. */
export function countBranchesOf(folder: string): void {
  (globalThis as unknown as { __counters: Uint8Array }).__counters = counters;
  registerHooks({
    load(url, context, nextLoad) {
      const loaded = nextLoad(url, context);
      if (loaded.format !== 'module-typescript' || !url.startsWith('file:') || !fileURLToPath(url).startsWith(folder)) return loaded;
      const source = stripTypeScriptTypes(Buffer.from(loaded.source as Uint8Array).toString('utf8'));
      return { format: 'module', source: withCounters(source), shortCircuit: true };
    },
  });
}

/** The source with a counter at the start of every function, block, case, and operand that may not run. */
export function withCounters(source: string): string {
  const opened = new Map<number, string>();
  const closed = new Map<number, string>();
  const count = (): string => {
    if (used === counters.length) throw new Error('more branches than counters');
    return `__c[${used++}]++`;
  };
  // Whoever is visited first lies outside: it opens first and closes last.
  const wrap = (node: Node, before: string, after: string): void => {
    opened.set(node.start, (opened.get(node.start) ?? '') + before);
    closed.set(node.end, after + (closed.get(node.end) ?? ''));
  };
  const expression = (node: Node): void => wrap(node, `(${count()},`, ')');
  const statement = (node: Node | null | undefined): void => {
    if (node !== null && node !== undefined && node.type !== 'BlockStatement') wrap(node, `{${count()};`, '}');
  };
  const visit = (node: AnyNode): void => {
    if (node.type === 'BlockStatement') opened.set(node.start + 1, (opened.get(node.start + 1) ?? '') + `${count()};`);
    else if (node.type === 'ArrowFunctionExpression' && node.expression) expression(node.body);
    else if (node.type === 'IfStatement') {
      statement(node.consequent);
      statement(node.alternate);
    } else if (node.type === 'ForStatement' || node.type === 'ForInStatement' || node.type === 'ForOfStatement' || node.type === 'WhileStatement' || node.type === 'DoWhileStatement') statement(node.body);
    else if (node.type === 'ConditionalExpression') {
      expression(node.consequent);
      expression(node.alternate);
    } else if (node.type === 'LogicalExpression') expression(node.right);
    else if (node.type === 'SwitchCase' && node.consequent[0] !== undefined) opened.set(node.consequent[0].start, `${count()};${opened.get(node.consequent[0].start) ?? ''}`);
    else if (node.type === 'Literal') {
      if (typeof node.value === 'string' && node.value.length > 0 && node.value.length <= 40) words.add(node.value);
      if (typeof node.value === 'number' && Number.isInteger(node.value) && node.value >= 0 && node.value < 256) words.add(String.fromCharCode(node.value));
    }
    for (const child of Object.values(node) as unknown[]) {
      for (const one of Array.isArray(child) ? (child as unknown[]) : [child]) if (typeof (one as AnyNode | null)?.type === 'string') visit(one as AnyNode);
    }
  };
  visit(parse(source, { ecmaVersion: 'latest', sourceType: 'module' }));

  let result = 'const __c = globalThis.__counters;';
  let at = 0;
  for (const place of [...new Set([...opened.keys(), ...closed.keys()])].sort((a, b) => a - b)) {
    result += source.slice(at, place) + (closed.get(place) ?? '') + (opened.get(place) ?? '');
    at = place;
  }
  return result + source.slice(at);
}
