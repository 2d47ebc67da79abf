-- Card numbers that share their first six and last four digits, by caller and day: how many distinct ones came, as the tokenizing processes
-- share it every few seconds (vault/guessing.ts). Only groups with several cards have a row.

CREATE TABLE guessed_groups (
  tenant_id  integer     NOT NULL,
  day        date        NOT NULL,                   -- of UTC
  card_group bytea       NOT NULL,                   -- keyed hash of caller, digits and day: no list of callers or bins
  seen       varbit      NOT NULL,                   -- Bloom filter of the cards' fingerprints
  shared_at  timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, day, card_group)
);
ALTER TABLE guessed_groups ALTER COLUMN seen SET STORAGE MAIN;
-- What each process reads is what was shared since it last looked.
CREATE INDEX guessed_groups_shared ON guessed_groups (shared_at, tenant_id, card_group);

GRANT SELECT, INSERT, DELETE ON guessed_groups TO {role:tokenize};
GRANT UPDATE (seen, shared_at) ON guessed_groups TO {role:tokenize};
