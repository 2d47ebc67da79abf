-- Whether a card has a living token is asked of cards with many dead ones: the index tells, in as many bytes.
DROP INDEX tokens_of_card;
CREATE INDEX tokens_of_card ON tokens (tenant_id, card_token, status);
