/**
 * The API's shapes, once: what is validated, what is serialized and what `/openapi.json` says are the same objects.
 * Validation neither coerces nor drops anything (vault/server.ts turns both off): an unknown field is an error, not a silence.
 */
import { Type } from 'typebox';
import type { Static } from 'typebox';
import { errorCodes } from './errors.ts';
import { purposes } from './policy.ts';

const closed = { additionalProperties: false } as const;

/** An opaque token, or any text that a client believes to be one: its form is checked by `parseToken`, not here. */
const TokenText = Type.String({ maxLength: 1024, description: 'A token as tokenize gave it.' });
const Expiry = Type.String({ pattern: '^[0-9]{4}-(0[1-9]|1[0-2])$', description: 'Expiry month, YYYY-MM.', examples: ['2029-12'] });
/** Without half surrogate pairs, which no UTF-8 can hold, and without the one character that PostgreSQL's text and jsonb cannot. */
const MetadataText = Type.String({ maxLength: 256, pattern: '^[^\\u0000\\ud800-\\udfff]*$' });

/** Ten years. */
const maxTtlSeconds = 315_360_000;

export const TokenizeBody = Type.Object(
  {
    // The digits are taken out of the raw body before this is validated; what stands here then is as many x.
    pan: Type.String({ description: 'The card number: 12 to 19 digits that pass Luhn, without separators.', examples: ['4111111111111111'] }),
    expiry: Type.Optional(Expiry),
    cardholder: Type.Optional(Type.String({ minLength: 1, maxLength: 100, pattern: '^[^\\u0000-\\u001f\\u007f\\ud800-\\udfff]+$', description: 'The name on the card, at most 255 bytes of UTF-8; sealed like the card number.' })),
    format: Type.Optional(Type.Enum(['opaque', 'numeric'], { type: 'string', default: 'opaque', description: 'The form of the token. numeric: as long as the card number, with its last four digits, and never a card number itself; for card numbers of 15 digits and more.' })),
    reuse: Type.Optional(Type.Boolean({ default: true, description: 'true: the same card gives the same token. false: a new token each time; needs an Idempotency-Key.' })),
    ttl_seconds: Type.Optional(Type.Integer({ minimum: 1, maximum: maxTtlSeconds, description: 'After this time the token is expired. A token with an end is never answered to another call.' })),
    metadata: Type.Optional(
      // The names apart: as a pattern of the record, @fastify/swagger would leave them out of the description.
      Type.Record(Type.String(), Type.Union([MetadataText, Type.Integer({ minimum: Number.MIN_SAFE_INTEGER, maximum: Number.MAX_SAFE_INTEGER }), Type.Boolean()]), {
        maxProperties: 16,
        propertyNames: Type.String({ pattern: '^[A-Za-z0-9_.-]{1,40}$' }),
        description: 'Kept with the token, in the clear; replaces what was kept. Never put card data here.',
      }),
    ),
  },
  closed,
);

export const maxTokenizeItems = 1000;
/** Bytes of the largest body that any route takes, a thousand items of a kilobyte: a card with its name and metadata has a few hundred bytes. */
export const largestBody = 1024 * 1024;
export const maxDetokenizeTokens = 100;
/** What is said of an item in `TokenizeBatchBody` is checked item by item, so that one that does not fit is refused alone. */
export const UncheckedItems = Type.Object({ items: Type.Array(Type.Unknown(), { minItems: 1 }) }, closed);
export const TokenizeBatchBody = Type.Object({ items: Type.Array(TokenizeBody, { minItems: 1, maxItems: maxTokenizeItems, description: 'Cards; each is answered at its place, and refused alone.' }) }, closed);

const detokenizeMembers = {
  purpose: Type.Enum(purposes, { type: 'string', description: 'Why the card number is needed.' }),
  reference: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9._:/-]{1,64}$', description: 'The caller\'s own reference; it stands in the log.' })),
};
export const DetokenizeBody = Type.Object({ token: TokenText, ...detokenizeMembers }, closed);
export const DetokenizeBatchBody = Type.Object({ tokens: Type.Array(TokenText, { minItems: 1, maxItems: maxDetokenizeTokens }), ...detokenizeMembers }, closed);

export const ValidateBody = Type.Object({ token: TokenText }, closed);
export const TokenParams = Type.Object({ token: TokenText }, closed);
/** Headers that are read; all others are ignored. */
export const TokenizeHeaders = Type.Object({ 'idempotency-key': Type.Optional(Type.String({ pattern: '^[\\x21-\\x7e]{1,255}$', description: 'Makes a retry safe: the same key and request give the same answer for 24 hours.' })) });

const Nullable = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) => Type.Union([schema, Type.Null()]);
const Status = Type.Enum(['active', 'suspended', 'revoked', 'expired'], { type: 'string' });
const Format = Type.Enum(['opaque', 'numeric'], { type: 'string' });
const DateTime = Type.String({ format: 'date-time' });

const tokenMembers = {
  token: Type.String(),
  format: Format,
  status: Status,
  card_id: Type.String({ description: 'The card\'s own name, the same for all its tokens, stable for life.' }),
  brand: Type.String(),
  bin: Type.Optional(Type.String({ description: 'The first six digits, or up to eight where the vault is set to it and the card number has 16 digits and more; absent below 15 digits.' })),
  last4: Type.String(),
  length: Type.Integer({ description: 'Digits of the card number.' }),
  expiry: Nullable(Type.String()),
  created_at: DateTime,
  expires_at: Nullable(DateTime),
};

export const TokenizeReply = Type.Object({ ...tokenMembers, created: Type.Boolean({ description: 'Whether this call made the token.' }) });
export const MetadataReply = Type.Object({ ...tokenMembers, metadata: Nullable(Type.Record(Type.String(), Type.Union([Type.String(), Type.Integer(), Type.Boolean()]))) });
export const DetokenizeReply = Type.Object({ pan: Type.String(), expiry: Nullable(Type.String()), cardholder: Nullable(Type.String()) });
export const ValidateReply = Type.Object({
  valid: Type.Boolean(),
  status: Type.Enum(['active', 'suspended', 'revoked', 'expired', 'unknown', 'malformed'], { type: 'string' }),
  format: Type.Optional(Format),
  brand: Type.Optional(Type.String()),
  last4: Type.Optional(Type.String()),
  expiry: Type.Optional(Nullable(Type.String())),
  expires_at: Type.Optional(Nullable(DateTime)),
});
export const LifecycleReply = Type.Object({ ...tokenMembers, card_destroyed: Type.Optional(Type.Boolean({ description: 'Of a deletion: whether this was the card\'s last token, and the card is destroyed.' })) });
export const ItemProblem = Type.Object({ error: Type.Object({ code: Type.Enum([...errorCodes], { type: 'string' }), title: Type.String(), status: Type.Integer(), retryable: Type.Boolean() }) });
export const TokenizeBatchReply = Type.Object({ items: Type.Array(Type.Union([TokenizeReply, ItemProblem])) });
export const DetokenizeBatchReply = Type.Object({ items: Type.Array(Type.Union([DetokenizeReply, ItemProblem])) });
export const ProblemReply = Type.Object({
  type: Type.String(),
  title: Type.String(),
  status: Type.Integer(),
  code: Type.Enum([...errorCodes], { type: 'string' }),
  retryable: Type.Boolean({ description: 'Whether the very same request may succeed later.' }),
  request_id: Type.String(),
});

export type TokenizeFields = Static<typeof TokenizeBody>;
export type DetokenizeBatchFields = Static<typeof DetokenizeBatchBody>;
export type DetokenizeFields = Static<typeof DetokenizeBody>;
export type ValidateFields = Static<typeof ValidateBody>;
