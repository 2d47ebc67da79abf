-- Tokens of several formats, with an end, and the end of a card.

-- A card that was destroyed keeps its row, as the place of its tokens that are no more: without its fingerprint, expiry and sealed values.
ALTER TABLE cards ALTER COLUMN fingerprint DROP NOT NULL;
COMMENT ON COLUMN cards.format IS 'of the token: 0 opaque, 1 numeric';
COMMENT ON COLUMN cards.status IS 'of the token: 0 active, 1 suspended, 2 revoked, 3 expired and swept';

-- The card's token of a format that is answered again, where it is not the first one.
ALTER TABLE tokens ADD COLUMN reusable boolean NOT NULL DEFAULT false;
CREATE UNIQUE INDEX tokens_reusable ON tokens (tenant_id, card_token, format) WHERE reusable;

-- What the sweeper of tokens past their end looks through. Tokens without an end are not in them and cost nothing.
CREATE INDEX cards_ending ON cards (token_expires_at) WHERE token_expires_at IS NOT NULL AND status < 2;
CREATE INDEX tokens_ending ON tokens (token_expires_at) WHERE token_expires_at IS NOT NULL AND status < 2;

-- An Idempotency-Key tells of all tokens of its call, in their order: joined by commas, and a 1 or 0 for each that was made by it or not.
ALTER TABLE idempotency_keys ADD COLUMN tokens text COLLATE "C", ADD COLUMN created_tokens text;
UPDATE idempotency_keys SET tokens = token, created_tokens = CASE WHEN created THEN '1' ELSE '0' END;
ALTER TABLE idempotency_keys DROP COLUMN token, DROP COLUMN created;
ALTER TABLE idempotency_keys ALTER COLUMN tokens SET NOT NULL, ALTER COLUMN created_tokens SET NOT NULL;

-- Suspending, resuming and deleting, and the destruction of a card with its last token. What is sealed can be destroyed and not read.
GRANT UPDATE (fingerprint, sealed_pan, status, row_version, token_mac, metadata) ON cards TO {role:tokenize};
GRANT UPDATE (status, row_version, token_mac, metadata, reusable) ON tokens TO {role:tokenize};
