/** The API's paths: each binds a shape (vault/schemas.ts) to an operation, and nothing else. */
import swagger from '@fastify/swagger';
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { detokenize, detokenizeBatch } from './detokenize.ts';
import type { DetokenizeDeps } from './detokenize.ts';
import { VaultError, problemOfItem } from './errors.ts';
import type { ErrorCode } from './errors.ts';
import { changeToken } from './lifecycle.ts';
import type { LifecycleAction, LifecycleDeps } from './lifecycle.ts';
import type { Pan } from './pan.ts';
import {
  DetokenizeBatchBody,
  DetokenizeBatchReply,
  DetokenizeBody,
  DetokenizeReply,
  LifecycleReply,
  MetadataReply,
  ProblemReply,
  TokenParams,
  TokenizeBatchBody,
  TokenizeBatchReply,
  TokenizeBody,
  TokenizeHeaders,
  TokenizeReply,
  UncheckedItems,
  ValidateBody,
  ValidateReply,
  largestBody,
  maxDetokenizeTokens,
} from './schemas.ts';
import type { TokenizeFields } from './schemas.ts';
import { sendSecret } from './server.ts';
import type { RouteFacts } from './server.ts';
import { tokenize, tokenizeBatch } from './tokenize.ts';
import type { TokenizeDeps } from './tokenize.ts';
import { metadata, validate } from './validate.ts';
import type { LookUpDeps } from './validate.ts';

export interface TokenizingRoutes {
  readonly tokenize: TokenizeDeps;
  readonly lookUp: LookUpDeps;
  readonly lifecycle: LifecycleDeps;
}

const singleBody = 16 * 1024;
/** A hundred texts as long as any that the schema takes for a token. */
const tokensBody = 128 * 1024;
const problem = { default: { description: 'A refusal or failure, as application/problem+json (RFC 9457).', content: { 'application/problem+json': { schema: ProblemReply } } } };

function facts(action: string, cards: RouteFacts['cards'] = 'none', audited = true, maxBodyBytes = singleBody): RouteFacts {
  return { action, cards, maxBodyBytes, audited };
}

/** The items of a batch, each with its card number, or why it cannot be taken. */
function itemsOf(request: FastifyRequest, items: readonly unknown[]): ({ pan: Pan | null; input: TokenizeFields } | ErrorCode)[] {
  const { taken } = request;
  const check = request.compileValidationSchema(TokenizeBody, 'body');
  return items.map((item, index) => {
    const refused = taken?.refused.get(index);
    if (refused !== undefined) return refused;
    const pan = taken?.pans[index] ?? null;
    if (pan === 'absent' || !check(item)) return 'invalid_request';
    return { pan, input: item as TokenizeFields };
  });
}

/** The paths of the tokenizing role. */
export function addTokenizingRoutes(app: FastifyInstance, deps: TokenizingRoutes): void {
  const typed = app.withTypeProvider<TypeBoxTypeProvider>();

  typed.post('/v1/tokenize', {
    config: facts('tokenize', 'single'),
    schema: { operationId: 'tokenize', summary: 'A card number in, a token out', body: TokenizeBody, headers: TokenizeHeaders, response: { 200: TokenizeReply, 201: TokenizeReply, ...problem } },
    async handler(request, reply) {
      using cards = request.taken;
      const pan = cards?.pans[0];
      if (pan === undefined || pan === 'absent') throw new VaultError('invalid_request');
      const answer = await tokenize(deps.tokenize, request.call, pan, request.body, request.headers['idempotency-key'] ?? null);
      return await reply.code(answer.created ? 201 : 200).send(answer);
    },
  });

  typed.post('/v1/tokenize/batch', {
    config: { ...facts('tokenize_batch', 'batch', true, largestBody), documentedBody: TokenizeBatchBody },
    schema: { operationId: 'tokenizeBatch', summary: 'Up to a thousand card numbers in, as many tokens out', body: UncheckedItems, headers: TokenizeHeaders, response: { 200: TokenizeBatchReply, ...problem } },
    // The description's serializer would try the branches of a union one by one, a thousand times.
    serializerCompiler: () => JSON.stringify,
    // Before a megabyte of anybody's is read.
    async onRequest({ call: { caller } }) {
      const decision = caller === null ? null : deps.tokenize.policy.decide(caller, 'tokenize_batch', null);
      if (decision?.allowed !== true) throw new VaultError('not_authorized', decision === null ? undefined : { facts: { decision } });
    },
    async handler(request) {
      using _cards = request.taken;
      const answers = await tokenizeBatch(deps.tokenize, request.call, itemsOf(request, request.body.items), request.headers['idempotency-key'] ?? null);
      return { items: answers.map((answer) => (typeof answer === 'string' ? { error: problemOfItem(answer) } : answer)) };
    },
  });

  typed.post('/v1/validate', {
    config: facts('validate'),
    schema: { operationId: 'validate', summary: 'Whether a token would open, and if not, why not', body: ValidateBody, response: { 200: ValidateReply, ...problem } },
    handler: async (request) => await validate(deps.lookUp, request.call, request.body.token),
  });

  typed.get('/v1/tokens/:token', {
    config: facts('metadata'),
    schema: { operationId: 'metadata', summary: 'What is kept about a token, masked', params: TokenParams, response: { 200: MetadataReply, ...problem } },
    handler: async (request) => await metadata(deps.lookUp, request.call, request.params.token),
  });

  const change = (method: 'POST' | 'DELETE', url: string, action: LifecycleAction, summary: string): void => {
    typed.route({
      method,
      url,
      config: facts(action),
      schema: { operationId: action, summary, params: TokenParams, response: { 200: LifecycleReply, ...problem } },
      handler: async (request) => await changeToken(deps.lifecycle, request.call, action, request.params.token),
    });
  };
  change('POST', '/v1/tokens/:token/suspend', 'suspend', 'The token does not open until it is resumed');
  change('POST', '/v1/tokens/:token/resume', 'resume', 'The token opens again');
  change('DELETE', '/v1/tokens/:token', 'delete', 'The token is no more; with the last one of a card the card is destroyed');
}

/** The paths of the detokenizing role. */
export function addDetokenizingRoutes(app: FastifyInstance, deps: DetokenizeDeps): void {
  const typed = app.withTypeProvider<TypeBoxTypeProvider>();

  typed.post('/v1/detokenize', {
    config: facts('detokenize'),
    schema: { operationId: 'detokenize', summary: 'A token in, the card number out, for a stated purpose', body: DetokenizeBody, response: { 200: DetokenizeReply, ...problem } },
    async handler(request, reply) {
      const body = await detokenize(deps, request.call, request.body);
      sendSecret(request, reply, body);
      return reply;
    },
  });

  typed.post('/v1/detokenize/batch', {
    config: facts('detokenize_batch', 'none', true, tokensBody),
    schema: { operationId: 'detokenizeBatch', summary: 'Up to a hundred tokens in, as many card numbers out, for a stated purpose', body: DetokenizeBatchBody, response: { 200: DetokenizeBatchReply, ...problem } },
    async preValidation(request) {
      const { tokens } = (typeof request.body === 'object' && request.body !== null ? request.body : {}) as { tokens?: unknown };
      if (Array.isArray(tokens) && tokens.length > maxDetokenizeTokens) throw new VaultError('too_many_items');
    },
    async handler(request, reply) {
      const body = await detokenizeBatch(deps, request.call, request.body);
      sendSecret(request, reply, body);
      return reply;
    },
  });
}

/** `/openapi.json`: OpenAPI 3.1, made from the very schemas that validate. To be called before the routes are added. */
export async function addOpenApi(app: FastifyInstance, version: string): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Cofre', version, description: 'PCI tokenization vault. Mutual TLS; the tenant comes from the caller\'s certificate.', license: { name: 'Apache-2.0', identifier: 'Apache-2.0' } },
      // The library's types know OpenAPI 3.0's security schemes only; mutualTLS came with 3.1.
      components: { securitySchemes: { mutualTLS: { type: 'mutualTLS' as 'http', scheme: '', description: 'A client certificate with exactly one SPIFFE URI.' } } },
      security: [{ mutualTLS: [] }],
    },
    transform: ({ schema, url, route }) => ({ schema: route.config?.documentedBody === undefined ? schema : { ...schema, body: route.config.documentedBody }, url }),
  });
  let description: string | null = null;
  app.get('/openapi.json', { config: facts('openapi', 'none', false), schema: { hide: true } }, async (_request, reply) => {
    description ??= JSON.stringify(app.swagger());
    return await reply.type('application/json').send(description);
  });
}
