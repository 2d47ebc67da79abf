-- A new card is one row in one table with two unique indexes: its first token is its internal key.
-- Further tokens of a card live beside it. Every unique key begins with the tenant, so that both tables can be hash-distributed by it.

CREATE TABLE cards (
  tenant_id           integer     NOT NULL,
  token               text        COLLATE "C" NOT NULL,
  fingerprint         bytea       NOT NULL,
  fingerprint_version smallint    NOT NULL,
  card_id             bytea       NOT NULL,          -- 16 random bytes, stable for life
  sealed_pan          bytea       NOT NULL,          -- hsm/card-cipher.ts
  sealed_name         bytea,
  expiry              integer,                       -- YYYYMM
  brand               text        NOT NULL,
  bin                 text,
  last4               text        NOT NULL,
  pan_length          smallint    NOT NULL,
  format              smallint    NOT NULL,          -- of the token: 0 opaque
  status              smallint    NOT NULL,          -- of the token: 0 active, 1 suspended, 2 revoked
  row_version         integer     NOT NULL,
  token_expires_at    timestamptz,
  token_mac           bytea       NOT NULL,          -- vault/token-mac.ts, over what decides what this token opens
  metadata            jsonb,
  created_at          timestamptz NOT NULL,
  made_writer         bigint      NOT NULL,          -- the batch whose entry tells of this token's making
  made_batch          bigint      NOT NULL,
  PRIMARY KEY (tenant_id, token),
  UNIQUE (tenant_id, fingerprint)
);
-- Sealed values are short and do not compress.
ALTER TABLE cards ALTER COLUMN sealed_pan SET STORAGE PLAIN, ALTER COLUMN fingerprint SET STORAGE PLAIN, ALTER COLUMN token_mac SET STORAGE PLAIN;

-- Tokens of a card beyond its first.
CREATE TABLE tokens (
  tenant_id        integer     NOT NULL,
  token            text        COLLATE "C" NOT NULL,
  card_token       text        COLLATE "C" NOT NULL, -- cards.token
  format           smallint    NOT NULL,
  status           smallint    NOT NULL,
  row_version      integer     NOT NULL,
  token_expires_at timestamptz,
  token_mac        bytea       NOT NULL,
  metadata         jsonb,
  created_at       timestamptz NOT NULL,
  made_writer      bigint      NOT NULL,
  made_batch       bigint      NOT NULL,
  PRIMARY KEY (tenant_id, token),
  FOREIGN KEY (tenant_id, card_token) REFERENCES cards (tenant_id, token)
);
CREATE INDEX tokens_of_card ON tokens (tenant_id, card_token);

-- Idempotency-Key of tokenize: no body and no answer, only what is needed to know the request again and to rebuild the answer.
CREATE TABLE idempotency_keys (
  tenant_id   integer     NOT NULL,
  key_hash    bytea       NOT NULL,                  -- SHA-256 of caller, path and key
  request_mac bytea       NOT NULL,                  -- HMAC of the canonical request, the PAN replaced by its fingerprint
  token       text        COLLATE "C" NOT NULL,
  created     boolean     NOT NULL,                  -- whether that call made the token
  created_at  timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, key_hash)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys USING brin (created_at);

-- Detokenize calls of a caller for a purpose in one minute; debited in the transaction that commits the call's entry.
CREATE TABLE quota_usage (
  tenant_id integer     NOT NULL,
  subject   text        NOT NULL,                    -- caller and purpose
  minute    timestamptz NOT NULL,
  used      integer     NOT NULL,
  PRIMARY KEY (tenant_id, subject, minute)
);

-- The tokenizing role can put a card in and find it again. It has no SELECT on what is sealed: a stolen tokenizing host cannot
-- read back what the vault holds.
GRANT SELECT (tenant_id, token, fingerprint, fingerprint_version, card_id, expiry, brand, bin, last4, pan_length, format, status,
              row_version, token_expires_at, token_mac, metadata, created_at, made_writer, made_batch)
  ON cards TO {role:tokenize};
GRANT INSERT ON cards TO {role:tokenize};
GRANT UPDATE (expiry, sealed_name) ON cards TO {role:tokenize};
GRANT SELECT, INSERT ON tokens TO {role:tokenize};
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO {role:tokenize};

GRANT SELECT ON cards, tokens TO {role:detokenize};
GRANT SELECT, INSERT, UPDATE, DELETE ON quota_usage TO {role:detokenize};
