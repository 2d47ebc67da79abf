/** The API's description: OpenAPI 3.1, complete, and true of what the vault takes and answers. */
import t from 'tap';
import { Compile } from 'typebox/schema';
import { startAppliance } from '../support/appliance.ts';
import type { Reply } from '../support/api-client.ts';
import { freshDatabase } from '../support/database.ts';
import { contractCodes, isProblem } from '../support/problem.ts';
import { cardText } from '../support/test-cards.ts';

interface Schema {
  readonly type?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly enum?: readonly string[];
  readonly const?: unknown;
  readonly items?: Schema;
  readonly additionalProperties?: unknown;
  readonly examples?: readonly unknown[];
}
interface Operation {
  readonly operationId: string;
  readonly summary: string;
  readonly parameters?: readonly { readonly name: string; readonly in: string; readonly required?: boolean; readonly schema: Schema }[];
  readonly requestBody?: { readonly required?: boolean; readonly content: Readonly<Record<string, { readonly schema: Schema }>> };
  readonly responses: Readonly<Record<string, { readonly description: string; readonly content: Readonly<Record<string, { readonly schema: Schema }>> }>>;
}
interface Description {
  readonly openapi: string;
  readonly info: { readonly title: string; readonly version: string };
  readonly components: { readonly securitySchemes: Readonly<Record<string, { readonly type: string }>> };
  readonly security: readonly Readonly<Record<string, readonly string[]>>[];
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
}

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database });
const checkout = appliance.client('checkout');
const getnet = appliance.client('getnet');
const served = await checkout.get('/openapi.json');
const description = served.json() as unknown as Description;
const operations = Object.entries(description.paths).flatMap(([path, item]) => Object.entries(item).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })));

const check = (schema: Schema, value: unknown): boolean => Compile(schema as Parameters<typeof Compile>[0]).Check(value);
const bodySchema = (operation: Operation): Schema => operation.requestBody!.content['application/json']!.schema;
const replySchema = (operation: Operation, status: string): Schema => {
  const { content } = operation.responses[status] ?? operation.responses['default']!;
  return (content['application/json'] ?? content['application/problem+json'])!.schema;
};

/** A value that the schema allows, from its own examples where it has some. */
function sample(schema: Schema): unknown {
  if (schema.examples?.[0] !== undefined) return schema.examples[0];
  if (schema.const !== undefined) return schema.const;
  if (schema.enum?.[0] !== undefined) return schema.enum[0];
  if (schema.type === 'object') return Object.fromEntries(Object.entries(schema.properties ?? {}).map(([name, member]) => [name, sample(member)]));
  if (schema.type === 'array') return [sample(schema.items!)];
  if (schema.type === 'boolean') return true;
  if (schema.type === 'integer') return 1;
  return 'sample';
}

await t.test('the description is OpenAPI 3.1 with mutual TLS, for whoever has a certificate', async (t) => {
  t.equal(served.status, 200);
  t.match(served.headers['content-type'], /^application\/json/u);
  t.match(description.openapi, /^3\.1\./u);
  t.equal(description.info.title, 'Cofre');
  t.match(description.info.version, /^\d+\.\d+\.\d+$/u);
  t.equal(description.components.securitySchemes['mutualTLS']?.type, 'mutualTLS');
  t.same(description.security, [{ mutualTLS: [] }]);
});

await t.test('it lists exactly the operations that are served, each once and with a name of its own', async (t) => {
  t.same(operations.map(({ method, path }) => `${method} ${path}`).sort(), ['DELETE /v1/tokens/{token}', 'GET /v1/tokens/{token}', 'POST /v1/detokenize', 'POST /v1/detokenize/batch', 'POST /v1/tokenize', 'POST /v1/tokenize/batch', 'POST /v1/tokens/{token}/resume', 'POST /v1/tokens/{token}/suspend', 'POST /v1/validate']);
  const names = operations.map(({ operation }) => operation.operationId);
  t.equal(new Set(names).size, names.length);
  for (const { operation } of operations) t.ok(operation.summary.length > 0);
  // And nothing is served beside them.
  for (const path of ['/v1/tokenize', '/v1/tokenize/batch', '/v1/detokenize', '/v1/detokenize/batch', '/v1/validate', '/v1/tokens/x', '/v1/tokens/x/suspend', '/v1/tokens/x/resume', '/v1/tokens/x/delete', '/openapi.json', '/', '/v1', '/docs', '/documentation/json']) {
    for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']) {
      const described = path === '/openapi.json' ? method === 'GET' : operations.some((one) => one.method === method && one.path.replace('{token}', 'x') === path);
      const reply = await checkout.call(method, path);
      if (described) t.not(reply.json()['code'], 'not_found', `${method} ${path}`);
      else isProblem(t, reply, 'not_found', `${method} ${path}`);
    }
  }
});

await t.test('every error code of the contract is documented, for every operation', async (t) => {
  for (const { path, operation } of operations) {
    const schema = operation.responses['default']!.content['application/problem+json']!.schema;
    t.same([...(schema.properties?.['code']?.enum ?? [])].sort(), [...contractCodes].sort(), path);
  }
});

await t.test('a request made from the description alone is taken, and its answer is as described', async (t) => {
  const described = (operation: Operation, reply: Reply, status: number, message: string): void => {
    t.equal(reply.status, status, message);
    t.ok(Object.hasOwn(operation.responses, String(status)), `${message}: the status is documented`);
    t.ok(check(replySchema(operation, String(status)), reply.json()), `${message}: the answer fits its schema`);
    const members = Object.keys(replySchema(operation, String(status)).properties ?? {});
    t.same(Object.keys(reply.json()).filter((name) => !members.includes(name)), [], `${message}: nothing undocumented`);
  };
  const named = (name: string): Operation => operations.find(({ operation }) => operation.operationId === name)!.operation;

  const body = sample(bodySchema(named('tokenize'))) as Record<string, unknown>;
  t.ok(check(bodySchema(named('tokenize')), body));
  const made = await checkout.post('/v1/tokenize', body);
  described(named('tokenize'), made, 201, 'tokenize');
  // A token with an end is never answered again.
  const { ttl_seconds: _, ...endless } = body;
  described(named('tokenize'), await checkout.post('/v1/tokenize', endless), 201, 'tokenize without an end');
  const known = await checkout.post('/v1/tokenize', endless);
  described(named('tokenize'), known, 200, 'tokenize again');
  const { token } = known.json();
  const batch = sample(bodySchema(named('tokenizeBatch')));
  t.ok(check(bodySchema(named('tokenizeBatch')), batch), 'the description of a batch tells of its items');
  described(named('tokenizeBatch'), await checkout.post('/v1/tokenize/batch', batch), 200, 'tokenize a batch');
  described(named('tokenizeBatch'), await checkout.post('/v1/tokenize/batch', { items: [{ pan: '1' }, { more: 1 }] }), 200, 'tokenize a batch of nothing good');
  described(named('detokenizeBatch'), await getnet.post('/v1/detokenize/batch', { ...(sample(bodySchema(named('detokenizeBatch'))) as object), tokens: [token, 'x'] }), 200, 'detokenize a batch');
  described(named('suspend'), await checkout.post(`/v1/tokens/${token as string}/suspend`, undefined), 200, 'suspend');
  described(named('resume'), await checkout.post(`/v1/tokens/${token as string}/resume`, undefined), 200, 'resume');

  described(named('validate'), await checkout.post('/v1/validate', { ...(sample(bodySchema(named('validate'))) as object), token }), 200, 'validate');
  described(named('validate'), await checkout.post('/v1/validate', sample(bodySchema(named('validate')))), 200, 'validate a malformed one');
  described(named('metadata'), await checkout.get(`/v1/tokens/${token as string}`), 200, 'metadata');
  described(named('detokenize'), await getnet.post('/v1/detokenize', { ...(sample(bodySchema(named('detokenize'))) as object), token }), 200, 'detokenize');
  described(named('delete'), await checkout.call('DELETE', `/v1/tokens/${token as string}`), 200, 'delete');
});

await t.test('what the description forbids is refused, and what it allows is not, as far as schemas go', async (t) => {
  const schema = bodySchema(operations.find(({ operation }) => operation.operationId === 'tokenize')!.operation);
  const pan = cardText(5);
  const bodies: object[] = [
    { pan }, { pan, expiry: '2030-01' }, { pan, expiry: '2030-1' }, { pan, expiry: 1 }, { pan, cardholder: 'ANA' }, { pan, cardholder: '' }, { pan, cardholder: 'x'.repeat(101) }, { pan, cardholder: '\u0001' }, { pan, cardholder: 'é😀' }, { pan, cardholder: '\ud83d' },
    { pan, format: 'opaque' }, { pan, format: 'other' }, { pan, reuse: true }, { pan, reuse: 1 }, { pan, metadata: {} }, { pan, metadata: { a: 'x', b: 1, c: true } }, { pan, metadata: { a: null } }, { pan, metadata: { 'ä': 1 } }, { pan, metadata: { a: '\u0000' } }, { pan, metadata: { a: 0.5 } }, { pan, metadata: [] }, { pan, more: 1 }, {},
  ];
  for (const body of bodies) {
    const reply = await checkout.post('/v1/tokenize', body);
    t.equal(check(schema, body), reply.status === 200 || reply.status === 201, JSON.stringify(body).replace(pan, '…').slice(0, 60));
    const problem = operations[0]!.operation.responses['default']!.content['application/problem+json']!.schema;
    if (reply.status >= 400) t.ok(check(problem, reply.json()), 'a refusal fits its schema');
  }
});
