/** Who may do what under the development set, and what changes of it change: each answer compared with what the vault itself decides. */
import { join } from 'node:path';
import t from 'tap';
import { differenceOf, grantsOf, namedBy } from '../../vault/access-review.ts';
import { openPolicySet, readPolicyFiles, type PolicyFiles } from '../../vault/policy.ts';
import { grantsTable } from '../../vault/bin/policy/grants-table.ts';

const files = await readPolicyFiles(join(import.meta.dirname, '../../vault/policies'));
const spiffe = (tenant: string, service: string): string => `spiffe://cofre.dev/tenant/${tenant}/service/${service}`;
const open = async (more: Readonly<Record<string, string>> = {}, without: readonly string[] = []): Promise<Awaited<ReturnType<typeof openPolicySet>>> => {
  const changed: PolicyFiles = new Map([...files, ...Object.entries(more)].filter(([name]) => !without.includes(name)));
  return await openPolicySet(changed, 'a test');
};

t.test('of the development set', async (t) => {
  const named = namedBy(files);
  t.same(named, {
    callers: [spiffe('acme', 'checkout'), spiffe('acme', 'getnet'), spiffe('globex', 'checkout'), spiffe('platform', 'auditor'), spiffe('platform', 'operator-a'), spiffe('platform', 'operator-b')],
    tenants: ['acme', 'globex', 'platform'],
    services: [],
  });
  const grants = grantsOf(await open(), named);
  t.same(
    grants.filter(({ action }) => action === 'detokenize' || action === 'administer').map(({ caller, action, purpose, tenant, policies }) => [caller, action, purpose, tenant, policies]),
    [
      ...['authorization', 'capture', 'refund'].map((purpose) => [spiffe('acme', 'getnet'), 'detokenize', purpose, 'acme', ['acme-getnet-detokenizes']]),
      ...['a', 'b'].map((which) => [spiffe('platform', `operator-${which}`), 'administer', null, 'platform', ['operators-administer']]),
    ],
  );
  t.equal(grants.length, 6 + 6 + 5 + 1 + 2 * 2);
  t.same(grantsTable(grants).map((line) => line.split(/ {2,}/u)), [
    ['caller', 'cards of', 'may', 'by'],
    [spiffe('acme', 'checkout'), 'acme', 'tokenize, tokenize_batch, validate, metadata, lifecycle, import', 'acme-checkout-tokenizes'],
    [spiffe('acme', 'getnet'), 'acme', 'detokenize for authorization|capture|refund', 'acme-getnet-detokenizes'],
    [spiffe('acme', 'getnet'), 'acme', 'detokenize_batch for authorization|capture|refund', 'acme-getnet-detokenizes-batches'],
    [spiffe('globex', 'checkout'), 'globex', 'tokenize, tokenize_batch, validate, metadata, lifecycle', 'globex-checkout-tokenizes'],
    [spiffe('platform', 'auditor'), 'platform', 'audit_read', 'auditor-reads-the-log'],
    ...['a', 'b'].flatMap((which) => [
      [spiffe('platform', `operator-${which}`), 'platform', 'administer', 'operators-administer'],
      [spiffe('platform', `operator-${which}`), 'platform', 'approve', 'officers-approve'],
    ]),
  ]);
  t.same(grantsTable([]), []);
});

t.test('what is open to callers that no policy names is told of them', async (t) => {
  const set = await open({ 'open.cedar': '@id("anyone-validates") permit (principal, action == Cofre::Action::"validate", resource) when { principal.tenant == "globex" };' });
  const grants = grantsOf(set, namedBy(set.files));
  t.same(grants.filter(({ policies }) => policies.includes('anyone-validates')).map(({ caller, tenant }) => [caller, tenant]), [[spiffe('globex', 'checkout'), 'globex'], ['any other service of tenant globex', 'globex']]);
});

t.test('a caller whom a policy knows by its tenant or service alone is told of', async (t) => {
  const set = await open({
    'words.cedar': `@id("billing-detokenizes") permit (principal, action == Cofre::Action::"detokenize", resource == Cofre::Tenant::"acme") when { principal.service == "billing" && context.purpose == Cofre::Purpose::"refund" };
      @id("initech-validates") permit (principal, action == Cofre::Action::"validate", resource) when { ["initech"].contains(principal.tenant) };
      @id("checkout-reads") permit (principal, action == Cofre::Action::"metadata", resource) when { principal.service == "checkout" };`,
  });
  const grants = grantsOf(set, namedBy(set.files));
  const by = (id: string): string[] => grants.filter(({ policies }) => policies.includes(id)).map(({ caller, tenant }) => `${caller}: ${tenant}`);
  t.same(by('billing-detokenizes'), ['service billing of tenant acme: acme']);
  t.same(by('initech-validates'), ['any other service of tenant initech: initech']);
  t.same(by('checkout-reads').filter((line) => /acme|platform/u.test(line)), [`${spiffe('acme', 'checkout')}: acme`, 'service checkout of tenant platform: platform'], 'each once');
  t.same(differenceOf(grantsOf(await open(), namedBy(set.files)), grants).gained.filter(({ action }) => action === 'detokenize').map(({ caller, purpose }) => `${caller} ${purpose}`), ['service billing of tenant acme refund']);
});

t.test('a difference is what somebody gains or loses, and not how it is written', async (t) => {
  const named = namedBy(files);
  const before = grantsOf(await open(), named);
  const acme = files.get('acme.cedar')!;
  t.same(differenceOf(before, grantsOf(await open({ 'acme.cedar': acme.replace('acme-getnet-detokenizes"', 'another-name"') }), named)), { gained: [], lost: [] });
  const { gained, lost } = differenceOf(before, grantsOf(await open({ 'acme.cedar': acme.replace('Cofre::Purpose::"refund"', 'Cofre::Purpose::"chargeback"') }), named));
  t.same([gained, lost].map((grants) => grants.map(({ action, purpose }) => `${action} ${purpose}`)), [['detokenize chargeback'], ['detokenize refund']]);
  const without = differenceOf(before, grantsOf(await open({}, ['globex.cedar']), named));
  t.same([without.gained.length, without.lost.map(({ caller }) => caller)], [0, Array.from({ length: 5 }, () => spiffe('globex', 'checkout'))]);
});

t.test('a set that locks all operators out is refused', async (t) => {
  await t.rejects(open({}, ['platform.cedar']), { name: 'PolicySetError', message: /all operators would be locked out/u });
  await t.rejects(open({ 'forbid.cedar': '@id("no-administration") forbid (principal, action == Cofre::Action::"administer", resource);' }), { message: /all operators would be locked out/u });
  await t.resolves(open({ 'forbid.cedar': `@id("not-a") forbid (principal == Cofre::Caller::"${spiffe('platform', 'operator-a')}", action == Cofre::Action::"administer", resource);` }), 'one that is left is enough');
});
