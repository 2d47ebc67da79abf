import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { explain } from '../../vault/bin/explain.ts';
import { ConfigError } from '../../vault/config.ts';
import { HsmError } from '../../hsm/errors.ts';

/** What was thrown. */
async function thrownBy(work: () => unknown): Promise<unknown> {
  try {
    await work();
  } catch (error) {
    return error;
  }
  throw new Error('nothing was thrown');
}

t.test('a message of ours is its first line, whatever its class', async (t) => {
  t.equal(explain(new Error('the vault is shut')), 'the vault is shut');
  t.equal(explain(new ConfigError('file: key: is wrong\nand more')), 'file: key: is wrong');
  t.equal(explain(new HsmError('unavailable', 'no token has the configured label')), 'no token has the configured label');
  t.equal(explain('thrown as it is'), 'failed');
});

t.test('of a file that Node cannot use, its name and the code are told, not Node\'s words', async (t) => {
  const folder = t.testdir({});
  const none = join(folder, 'none');
  t.equal(explain(await thrownBy(() => readFileSync(none))), `${none}: cannot be used (ENOENT)`);
});

t.test('of anything else that is not ours, the class, the code and the place are told, not its words', async (t) => {
  const cases: readonly (readonly [what: string, work: () => unknown, wanted: RegExp])[] = [
    ['JSON', () => JSON.parse('{"hunter2": oops') as unknown, /^failed unexpectedly: SyntaxError(?: at \S+)? \(COFRE_DEBUG=1 tells more\)$/u],
    ['a URL', () => decodeURIComponent('hunter2%ZZ'), /^failed unexpectedly: URIError(?: at \S+)? \(/u],
    ['OpenSSL', () => new X509Certificate('hunter2'), /^failed unexpectedly: Error\(ERR_OSSL_PEM_NO_START_LINE\)(?: at \S+)? \(/u],
    ['V8', () => (JSON.parse('{}') as { hunter2: { x: number } }).hunter2.x, /^failed unexpectedly: TypeError(?: at \S+)? \(/u],
    ['Node', () => new URL('hunter2'), /^failed unexpectedly: TypeError\(ERR_INVALID_URL\)(?: at \S+)? \(/u],
    ['a folder read as a file, of which Node does not say the name', () => readFileSync(t.testdir({ hunter2: {} })), /^failed unexpectedly: Error\(EISDIR\)(?: at \S+)? \(/u],
    ['the network', () => new Promise((_, reject) => connect(9, '127.0.0.1').on('error', reject)), /^failed unexpectedly: Error\(ECONNREFUSED\)(?: at \S+)? \(/u],
    ['no words at all', () => { throw new AggregateError([]); }, /^failed unexpectedly: AggregateError(?: at \S+)? \(/u],
  ];
  for (const [what, work, wanted] of cases) {
    const line = explain(await thrownBy(work));
    t.match(line, wanted, what);
    t.notMatch(line, /hunter2|\n/u, what);
  }
});
