/** The API's paths: each binds a shape (vault/schemas.ts) to an operation, and nothing else. */
import swagger from '@fastify/swagger';
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import { detokenize } from './detokenize.ts';
import type { DetokenizeDeps } from './detokenize.ts';
import { VaultError } from './errors.ts';
import { DetokenizeBody, DetokenizeReply, MetadataReply, ProblemReply, TokenParams, TokenizeBody, TokenizeHeaders, TokenizeReply, ValidateBody, ValidateReply } from './schemas.ts';
import { sendSecret } from './server.ts';
import type { RouteFacts } from './server.ts';
import { tokenize } from './tokenize.ts';
import type { TokenizeDeps } from './tokenize.ts';
import { metadata, validate } from './validate.ts';
import type { LookUpDeps } from './validate.ts';

export interface TokenizingRoutes {
  readonly tokenize: TokenizeDeps;
  readonly lookUp: LookUpDeps;
}

const singleBody = 16 * 1024;
const problem = { default: { description: 'A refusal or failure, as application/problem+json (RFC 9457).', content: { 'application/problem+json': { schema: ProblemReply } } } };

function facts(action: string, cards: RouteFacts['cards'] = 'none', audited = true): RouteFacts {
  return { action, cards, maxBodyBytes: singleBody, audited };
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
  });
  app.get('/openapi.json', { config: facts('openapi', 'none', false), schema: { hide: true } }, async (_request, reply) => await reply.type('application/json').send(JSON.stringify(app.swagger())));
}
