import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { developmentClients } from '../../platform-adapters/pki/development.ts';
import type { Caller } from '../../vault/caller.ts';
import { actions, loadPolicy, purposes, type Action, type Policy, type Purpose } from '../../vault/policy.ts';

const development = new URL('../../vault/policies/', import.meta.url).pathname;

function caller(tenant: string, service: string, trustDomain = 'cofre.dev'): Caller {
  return { spiffeId: `spiffe://${trustDomain}/tenant/${tenant}/service/${service}`, tenant, service, serial: '1', notAfter: new Date(8.64e15) };
}

/** A copy of the development set that a test may spoil. */
function directory(t: Test, files: Readonly<Record<string, string>> = {}): string {
  const made = mkdtempSync(join(tmpdir(), 'cofre-policy-'));
  t.teardown(() => rmSync(made, { recursive: true, force: true }));
  cpSync(development, made, { recursive: true });
  for (const [name, content] of Object.entries(files)) writeFileSync(join(made, name), content);
  return made;
}

/** Every question that can be asked of one caller: the action, with each purpose where it takes one. */
const questions = actions.flatMap((action): readonly (readonly [Action, Purpose | null])[] => (action.startsWith('detokenize') ? purposes.map((purpose) => [action, purpose]) : [[action, null]]));

function granted(policy: Policy, who: Caller, tenant = who.tenant): readonly string[] {
  return questions.filter(([action, purpose]) => policy.decide(who, action, purpose, tenant).allowed).map(([action, purpose]) => (purpose === null ? action : `${action} for ${purpose}`));
}

/** The whole development set: what is not here is denied. */
const grants: Readonly<Record<string, readonly string[]>> = {
  checkout: ['tokenize', 'tokenize_batch', 'validate', 'metadata', 'lifecycle', 'import'],
  getnet: ['detokenize for authorization', 'detokenize for capture', 'detokenize for refund', 'detokenize_batch for authorization', 'detokenize_batch for capture', 'detokenize_batch for refund'],
  'checkout-globex': ['tokenize', 'tokenize_batch', 'validate', 'metadata', 'lifecycle'],
  intruder: [],
  auditor: ['audit_read'],
  'operator-a': ['administer', 'approve'],
  'operator-b': ['administer', 'approve'],
};

t.test('each development caller may do exactly what the table says, in its own tenant', async (t) => {
  const policy = await loadPolicy(development);
  t.equal(questions.length, 18, 'ten actions without a purpose, two with four');
  t.same(Object.keys(grants), developmentClients.map(({ name }) => name));
  for (const { name, tenant, service } of developmentClients) t.same(granted(policy, caller(tenant, service)), grants[name], name);
});

t.test('a schema of before operators approved anything is taken, and nobody may approve', async (t) => {
  const schema = readFileSync(join(development, 'vault.cedarschema'), 'utf8').replace(', approve, custody', '');
  const platform = readFileSync(join(development, 'platform.cedar'), 'utf8').replace(/\/\/ What one of them asks[^]*?\};\n/u, '');
  t.notMatch(`${schema}${platform}`, /"?approve"? ?[,appliesTo]/u);
  const policy = await loadPolicy(directory(t, { 'vault.cedarschema': schema, 'platform.cedar': platform }));
  t.same(granted(policy, caller('platform', 'operator-a')), ['administer']);
});

t.test('nobody may do anything in the tenant of another', async (t) => {
  const policy = await loadPolicy(development);
  for (const { name, tenant, service } of developmentClients) {
    for (const other of ['acme', 'globex', 'platform', 'initech'].filter((candidate) => candidate !== tenant)) t.same(granted(policy, caller(tenant, service), other), [], `${name} in ${other}`);
  }
  t.same(policy.decide(caller('acme', 'checkout'), 'tokenize', null, 'globex'), { allowed: false, policyIds: ['own-tenant-only'] });
});

t.test('the rule of tenancy wins over a permit that forgets it', async (t) => {
  const everywhere = '@id("careless") permit (principal == Cofre::Caller::"spiffe://cofre.dev/tenant/acme/service/checkout", action == Cofre::Action::"tokenize", resource);';
  const policy = await loadPolicy(directory(t, { 'careless.cedar': everywhere }));
  t.same(policy.decide(caller('acme', 'checkout'), 'tokenize', null), { allowed: true, policyIds: ['acme-checkout-tokenizes', 'careless'] });
  t.same(policy.decide(caller('acme', 'checkout'), 'tokenize', null, 'globex'), { allowed: false, policyIds: ['own-tenant-only'] });
});

t.test('the same names in another trust domain, or another service of the tenant, have no grant', async (t) => {
  const policy = await loadPolicy(development);
  t.same(granted(policy, caller('acme', 'checkout', 'other.dev')), []);
  t.same(granted(policy, caller('acme', 'checkout-2')), []);
  t.same(granted(policy, caller('globex', 'getnet')), []);
});

t.test('a decision names the policies behind it, and none where nothing permits', async (t) => {
  const policy = await loadPolicy(development);
  t.same(policy.decide(caller('acme', 'getnet'), 'detokenize', 'capture'), { allowed: true, policyIds: ['acme-getnet-detokenizes'] });
  t.same(policy.decide(caller('acme', 'getnet'), 'detokenize', 'chargeback'), { allowed: false, policyIds: [] });
  t.same(policy.policyIds, ['acme-checkout-tokenizes', 'acme-getnet-detokenizes', 'acme-getnet-detokenizes-batches', 'auditor-reads-the-log', 'globex-checkout-tokenizes', 'officers-approve', 'operators-administer', 'own-tenant-only']);
  t.match(policy.digest, /^[0-9a-f]{64}$/);
});

t.test('detokenize without a purpose is refused, and a purpose elsewhere changes nothing', async (t) => {
  const policy = await loadPolicy(development);
  t.notOk(policy.decide(caller('acme', 'getnet'), 'detokenize', null).allowed);
  t.ok(policy.decide(caller('acme', 'checkout'), 'tokenize', 'refund').allowed);
});

t.test('a remembered decision is of its whole input', async (t) => {
  const policy = await loadPolicy(development, { maxMemo: 3 });
  const getnet = caller('acme', 'getnet');
  for (let round = 0; round < 3; round += 1) {
    t.ok(policy.decide(getnet, 'detokenize', 'refund').allowed);
    t.notOk(policy.decide(getnet, 'detokenize', 'chargeback').allowed);
    t.same(policy.decide(getnet, 'detokenize_batch', 'refund').policyIds, ['acme-getnet-detokenizes-batches']);
    t.notOk(policy.decide(getnet, 'detokenize_batch', 'chargeback').allowed);
    t.notOk(policy.decide(getnet, 'detokenize', 'refund', 'globex').allowed);
    t.notOk(policy.decide({ ...getnet, tenant: 'globex' }, 'detokenize', 'refund', 'acme').allowed, 'the same id with another tenant');
    t.notOk(policy.decide({ ...getnet, spiffeId: `${getnet.spiffeId}2` }, 'detokenize', 'refund').allowed);
  }
  t.equal(policy.decide(getnet, 'detokenize', 'refund'), policy.decide({ ...getnet, serial: 'ff' }, 'detokenize', 'refund'), 'remembered, whatever the certificate');
});

const permit = (head: string, tail = ''): string => `@id("new") permit (${head})${tail};`;
const checkout = 'principal == Cofre::Caller::"spiffe://cofre.dev/tenant/acme/service/checkout"';

t.test('a set with anything wrong is refused, with file and line', async (t) => {
  const table: readonly (readonly [string, string, RegExp])[] = [
    ['a syntax error', `// one\n\n${permit('principal, action resource')}`, /^new\.cedar:3: unexpected token/],
    ['an unknown action', permit(`${checkout}, action == Cofre::Action::"detokenise", resource`), /^new\.cedar:1: .*unrecognized action/],
    ['an unknown purpose', `// é: offsets are of bytes\n// é\n@id("new")\npermit (${checkout}, action == Cofre::Action::"detokenize", resource)\nwhen {\n  context.purpose == Cofre::Purpose::"refnud"\n};`, /^new\.cedar:6: .*not declared as a valid eid/],
    ['an unknown attribute', permit(`${checkout}, action, resource`, ' when { principal.team == "x" }'), /^new\.cedar:1: .*attribute `team`/],
    ['a comparison of types', permit(`${checkout}, action, resource`, ' when { principal.tenant == 7 }'), /^new\.cedar:1: .*not compatible/],
    ['a purpose where there is none', permit(`${checkout}, action == Cofre::Action::"tokenize", resource`, ' when { context.purpose == Cofre::Purpose::"refund" }'), /^new\.cedar:1: .*attribute `purpose`/],
    ['a policy that can never apply, only a warning of Cedar', permit(`${checkout}, action, resource`, ' when { false }'), /^new\.cedar:1: .*impossible/],
    ['mixed scripts in a name, only a warning of Cedar', permit(`${checkout}, action, resource`, ' when { principal.tenant == "аcme" }'), /^new\.cedar:1: .*script/],
    ['no @id', `permit (${checkout}, action == Cofre::Action::"validate", resource);`, /^new\.cedar:1: the policy has no @id$/],
    ['an empty @id', `@id\npermit (${checkout}, action == Cofre::Action::"validate", resource);`, /^new\.cedar:1: the policy has no @id$/],
    ['an @id that a log should not hold', `@id("4111 1111")\npermit (${checkout}, action == Cofre::Action::"validate", resource);`, /^new\.cedar:1: the @id is not/],
    ['an @id used in another file', `\n@id("own-tenant-only") forbid (principal, action, resource) when { principal.service == "x" };`, /^tenancy\.cedar:2: the @id "own-tenant-only" is used before, in new\.cedar:2$/],
    ['an @id used twice in a file', `${permit(`${checkout}, action == Cofre::Action::"validate", resource`)}\n${permit(`${checkout}, action == Cofre::Action::"metadata", resource`)}`, /^new\.cedar:2: the @id "new" is used before, in new\.cedar:1$/],
    ['a template', '@id("new") permit (principal == ?principal, action == Cofre::Action::"validate", resource);', /^new\.cedar: holds a template/],
  ];
  for (const [what, content, reason] of table) await t.rejects(loadPolicy(directory(t, { 'new.cedar': content })), { name: 'PolicySetError', message: reason }, what);
});

t.test('the line is right beyond the tenth policy of a file', async (t) => {
  const one = (id: string): string => `${id}permit (${checkout}, action == Cofre::Action::"validate", resource);`;
  const lines = Array.from({ length: 15 }, (_, index) => one(index === 11 ? '' : `@id("p${index}") `));
  await t.rejects(loadPolicy(directory(t, { 'many.cedar': lines.join('\n') })), { message: 'many.cedar:12: the policy has no @id' });
});

t.test('a set without schema or policies is refused', async (t) => {
  const without = directory(t);
  rmSync(join(without, 'vault.cedarschema'));
  await t.rejects(loadPolicy(without), { message: 'vault.cedarschema: is missing' });
  await t.rejects(loadPolicy(directory(t, { 'vault.cedarschema': 'namespace Cofre {\n  entity ;\n}' })), { message: /^vault\.cedarschema:2: / });
  const schema = readFileSync(join(development, 'vault.cedarschema'), 'utf8');
  await t.rejects(loadPolicy(directory(t, { 'vault.cedarschema': schema.replace(', audit_read', '').replace(', "chargeback"', '') })), { message: /^vault\.cedarschema: has no action audit_read\nvault\.cedarschema: has no purpose chargeback\n/ }, 'one of an older vault');
  await t.rejects(loadPolicy(directory(t, { 'vault.cedarschema': schema.replace('namespace Cofre', 'namespace Vault') })), { message: /^vault\.cedarschema: has no namespace Cofre\n/ });
  const empty = directory(t);
  for (const name of ['acme', 'globex', 'platform', 'tenancy']) rmSync(join(empty, `${name}.cedar`));
  await t.rejects(loadPolicy(empty), { message: /holds no \*\.cedar file$/ });
  await t.rejects(loadPolicy(join(empty, 'nowhere')), { code: 'ENOENT' });
});

/** What is left of a file that was cut to nothing, or whose policies were all commented out. */
const emptied = ['', '\n', ' \t\r\n', '// @id("new") permit (principal, action, resource);\n', '// one\n\n  // two'];

t.test('a file that holds no policy is refused, since its forbids would go with it', async (t) => {
  for (const text of emptied) {
    for (const name of ['acme', 'globex', 'platform', 'tenancy', 'new']) await t.rejects(loadPolicy(directory(t, { [`${name}.cedar`]: text })), { name: 'PolicySetError', message: `${name}.cedar: holds no policy` }, `${name}: ${JSON.stringify(text)}`);
  }
  await t.rejects(loadPolicy(directory(t, { 'acme.cedar': '', 'tenancy.cedar': '// none' })), { message: 'acme.cedar: holds no policy\ntenancy.cedar: holds no policy' }, 'each is named');
  await loadPolicy(directory(t, { 'notes.txt': '' }));
});

t.test('a file that cannot be read is named', async (t) => {
  const where = directory(t);
  mkdirSync(join(where, 'new.cedar'));
  await t.rejects(loadPolicy(where), { name: 'PolicySetError', message: 'new.cedar: cannot be read (EISDIR)' });
  rmSync(join(where, 'new.cedar'), { recursive: true });
  rmSync(join(where, 'vault.cedarschema'));
  mkdirSync(join(where, 'vault.cedarschema'));
  await t.rejects(loadPolicy(where), { name: 'PolicySetError', message: 'vault.cedarschema: cannot be read (EISDIR)' });
});

t.test('a set that opens cards to anyone is refused, however it says so', async (t) => {
  const detokenize = 'action == Cofre::Action::"detokenize", resource';
  const table: readonly (readonly [string, string, RegExp])[] = [
    ['outright', permit('principal, action, resource'), /"new" gives detokenize to callers that it does not name/],
    ['one action', permit(`principal, ${detokenize}`), /"new" gives detokenize to/],
    ['by a condition that always holds', permit(`principal, ${detokenize}`, ' when { principal.tenant == resource.name }'), /"new" gives detokenize to/],
    ['for one purpose', permit(`principal, ${detokenize}`, ' when { context.purpose == Cofre::Purpose::"chargeback" }'), /"new" gives detokenize to/],
    ['to all but one', permit(`principal, ${detokenize}`, ' unless { principal == Cofre::Caller::"spiffe://cofre.dev/tenant/acme/service/intruder" }'), /"new" gives detokenize to/],
    ['to a whole tenant by its attribute', permit(`principal, ${detokenize}`, ' when { principal.tenant == "acme" }'), /"new" gives detokenize to/],
    ['to a whole tenant by the resource', permit('principal, action == Cofre::Action::"detokenize_batch", resource == Cofre::Tenant::"globex"'), /"new" gives detokenize_batch to/],
    ['to a whole tenant that only a caller names', permit(`principal, ${detokenize}`, ' when { resource.name like "ini*" || principal == Cofre::Caller::"spiffe://cofre.dev/tenant/initech/service/a" }'), /"new" gives detokenize to/],
    ['to every tenant of a pattern', permit(`principal, ${detokenize}`, ' when { principal.tenant like "ini*" }'), /"new" gives detokenize to/],
    ['administration', permit('principal, action == Cofre::Action::"administer", resource'), /"new" gives administer to/],
    ['the log', permit('principal, action == Cofre::Action::"audit_read", resource'), /"new" gives audit_read to/],
    ['import', permit('principal, action == Cofre::Action::"import", resource'), /"new" gives import to/],
  ];
  for (const [what, content, reason] of table) await t.rejects(loadPolicy(directory(t, { 'new.cedar': content })), { name: 'PolicySetError', message: reason }, what);
});

t.test('what takes no card out may be given to a whole tenant', async (t) => {
  const policy = await loadPolicy(directory(t, { 'new.cedar': permit('principal, action in [Cofre::Action::"validate", Cofre::Action::"metadata"], resource == Cofre::Tenant::"acme"') }));
  t.same(granted(policy, caller('acme', 'intruder')), ['validate', 'metadata']);
});

/** Passes strict validation and fails in evaluation, but only for globex. */
const overflow = '@id("new") permit (principal == Cofre::Caller::"spiffe://cofre.dev/tenant/globex/service/checkout", action == Cofre::Action::"validate", resource) when { 9223372036854775807 + 1 == 0 };';

t.test('a policy that fails in evaluation refuses the call, whatever the others say, and is reported', async (t) => {
  const reports: string[] = [];
  const policy = await loadPolicy(directory(t, { 'new.cedar': overflow }), { report: (finding) => reports.push(finding) });
  t.same(policy.decide(caller('globex', 'checkout'), 'validate', null), { allowed: false, policyIds: ['new'] });
  t.same(reports, ['the evaluation of new failed']);
  t.ok(policy.decide(caller('acme', 'checkout'), 'validate', null).allowed, 'others are not touched');
});

t.test('a request that does not fit the schema is refused and reported, not thrown', async (t) => {
  const reports: string[] = [];
  const policy = await loadPolicy(development, { report: (finding) => reports.push(finding) });
  t.same(policy.decide(caller('acme', 'getnet'), 'detokenize', 'curiosity' as Purpose), { allowed: false, policyIds: [] });
  t.same(policy.decide({ ...caller('acme', 'checkout'), tenant: 7 as never }, 'tokenize', null), { allowed: false, policyIds: [] });
  t.same(reports, ['the policy engine refused a request', 'the policy engine refused a request']);
});

t.test('a reload takes a good set at once, remembered decisions included', async (t) => {
  const where = directory(t);
  const policy = await loadPolicy(where);
  const { digest } = policy;
  const intruder = caller('acme', 'intruder');
  t.notOk(policy.decide(intruder, 'validate', null).allowed);
  t.ok(policy.decide(caller('acme', 'checkout'), 'tokenize', null).allowed);
  writeFileSync(join(where, 'acme.cedar'), permit('principal == Cofre::Caller::"spiffe://cofre.dev/tenant/acme/service/intruder", action == Cofre::Action::"validate", resource'));
  t.notOk(policy.decide(intruder, 'validate', null).allowed, 'not before');
  t.equal(await policy.reload(), null);
  t.same(policy.decide(intruder, 'validate', null), { allowed: true, policyIds: ['new'] });
  t.notOk(policy.decide(caller('acme', 'checkout'), 'tokenize', null).allowed, 'a grant taken away is gone');
  t.not(policy.digest, digest);
});

t.test('a reload refuses a bad set, says why, and the old one stays', async (t) => {
  const where = directory(t);
  const policy = await loadPolicy(where);
  const { digest, policyIds } = policy;
  const text = readFileSync(join(where, 'acme.cedar'), 'utf8');
  for (const [content, reason] of [
    [text.slice(0, -20), /^acme\.cedar:\d+: /],
    [permit('principal, action, resource'), /gives detokenize to callers/],
    ...emptied.map((empty) => [empty, /^acme\.cedar: holds no policy$/] as const),
  ] as const) {
    writeFileSync(join(where, 'acme.cedar'), content);
    t.match(await policy.reload(), reason);
    t.ok(policy.decide(caller('acme', 'checkout'), 'tokenize', null).allowed);
    t.notOk(policy.decide(caller('acme', 'intruder'), 'detokenize', 'refund').allowed);
    t.same([policy.digest, policy.policyIds], [digest, policyIds]);
  }
  rmSync(where, { recursive: true });
  t.equal(await policy.reload(), 'the policy directory cannot be read (ENOENT)');
  t.ok(policy.decide(caller('acme', 'getnet'), 'detokenize', 'refund').allowed);
});

t.test('decisions made while sets are reloaded are of one set or the other, never of none', async (t) => {
  const where = directory(t);
  const policy = await loadPolicy(where);
  const text = readFileSync(join(where, 'acme.cedar'), 'utf8');
  const checkoutOnly = text.slice(0, text.indexOf('@id("acme-getnet-detokenizes")'));
  const state = { reloading: true };
  const reloads = (async () => {
    for (let round = 0; round < 20; round += 1) {
      writeFileSync(join(where, 'acme.cedar'), round % 2 === 0 ? checkoutOnly : text);
      t.equal(await policy.reload(), null);
      const allowed = policy.decide(caller('acme', 'getnet'), 'detokenize', 'refund').allowed;
      t.equal(allowed, round % 2 === 1, 'the new set decides as soon as the reload is done');
    }
    state.reloading = false;
  })();
  let asked = 0;
  while (state.reloading) {
    if (!policy.decide(caller('acme', 'checkout'), 'tokenize', null).allowed || policy.decide(caller('acme', 'intruder'), 'tokenize', null).allowed) t.fail('a decision of no set');
    asked += 1;
    await new Promise((resolve) => setImmediate(resolve));
  }
  await reloads;
  t.ok(asked > 0);
});
