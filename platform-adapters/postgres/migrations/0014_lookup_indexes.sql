-- Of several indexes that begin with the tenant, the planner takes any as long as a table looks empty: it thinks that a tenant has one row, and the plan stays until the first ANALYZE.
-- So for what finds one row, one index can serve and no other. By token that is the primary key, which is the only one left that begins with the tenant; the statements by
-- fingerprint or by card ask for the tenant in a way that the primary key cannot serve. What a foreign key asks, in words of its own, is by token.
-- In part: of a card that was destroyed there is nothing to find, and a statement that says nothing of the fingerprint cannot use it.
CREATE UNIQUE INDEX cards_of_fingerprint ON cards (fingerprint, tenant_id) WHERE fingerprint IS NOT NULL;
ALTER TABLE cards DROP CONSTRAINT cards_tenant_id_fingerprint_key;
DROP INDEX tokens_of_card;
CREATE INDEX tokens_of_card ON tokens (card_token, status);
DROP INDEX tokens_reusable;
CREATE UNIQUE INDEX tokens_reusable ON tokens (card_token, format, tenant_id) WHERE reusable;
