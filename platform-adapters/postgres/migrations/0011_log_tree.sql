-- The log after sequencing (audit/sequencer.ts): which batches stand where in the Merkle tree, its tiles, its signed checkpoints, and what
-- it is searched by. Entries stand in `batches` only: the tree holds their hashes, and their bundles are put together when they are read.

-- One row a log; the highest is the one in use. A restored vault starts a new one, which names its predecessor.
CREATE TABLE logs (
  log_id     integer     PRIMARY KEY CHECK (log_id >= 1),
  origin     text        NOT NULL UNIQUE,
  size       bigint      NOT NULL CHECK (size >= 1),
  root       bytea       NOT NULL CHECK (octet_length(root) = 32),
  started_at timestamptz NOT NULL,
  first_leaf bytea       NOT NULL                      -- audit/charter.ts: signed by the HSM, so that nobody else begins a log
);

-- How far each writer's chain is in the tree.
CREATE TABLE log_chains (
  writer      bigint      PRIMARY KEY,
  next        bigint      NOT NULL CHECK (next >= 0),  -- number of the batch that is expected
  previous    bytea       NOT NULL,                    -- header hash of the one before
  formed_at   timestamptz,                             -- of the one before
  state       smallint    NOT NULL CHECK (state BETWEEN 0 AND 3),  -- 0 open, 1 closed, 2 succeeded by another writer, 3 distrusted
  reason      text
);
CREATE INDEX log_chains_open ON log_chains (writer) WHERE state IN (0, 2);
-- The sequencer asks for new writers each second.
CREATE INDEX writers_started_at ON writers (started_at);

-- Where each batch stands: its batch leaf at first_index, its entries behind it.
CREATE TABLE log_batches (
  log_id      integer     NOT NULL REFERENCES logs (log_id),
  first_index bigint      NOT NULL,
  writer      bigint      NOT NULL,
  number      bigint      NOT NULL,
  entry_count integer     NOT NULL,
  formed_at   timestamptz NOT NULL,
  PRIMARY KEY (log_id, first_index),
  UNIQUE (writer, number)
);
CREATE INDEX log_batches_formed ON log_batches (formed_at);

-- C2SP tlog-tiles: up to 256 hashes of 32 bytes. The rightmost of a level grows until it is full.
CREATE TABLE log_tiles (
  log_id integer  NOT NULL REFERENCES logs (log_id),
  level  smallint NOT NULL CHECK (level BETWEEN 0 AND 63),
  tile   bigint   NOT NULL,
  hashes bytea    NOT NULL CHECK (octet_length(hashes) BETWEEN 32 AND 8192 AND octet_length(hashes) % 32 = 0),
  PRIMARY KEY (log_id, level, tile)
);
ALTER TABLE log_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- Signed notes of the HSM's log key. Thinned out with time: any of them proves the same as a later one and a consistency proof.
CREATE TABLE log_checkpoints (
  log_id    integer     NOT NULL REFERENCES logs (log_id),
  size      bigint      NOT NULL,
  note      text        NOT NULL,
  signed_at timestamptz NOT NULL,
  PRIMARY KEY (log_id, size)
);

-- Search. A token that an entry names, by the first eight bytes of its SHA-256, unless the entry tells of its making: the token's row knows that one.
CREATE TABLE log_tokens (
  token_key bigint  NOT NULL,
  log_id    integer NOT NULL,
  entry     bigint  NOT NULL,
  PRIMARY KEY (token_key, log_id, entry)
);
-- Blocks of 256 entries in which a caller, tenant, action, outcome, code or purpose occurs, by the first eight bytes of SHA-256 of its name and value.
CREATE TABLE log_facets (
  facet  bigint  NOT NULL,
  log_id integer NOT NULL,
  block  bigint  NOT NULL,
  PRIMARY KEY (facet, log_id, block)
);

GRANT SELECT ON logs, log_chains, log_batches, log_tiles, log_checkpoints TO {role:tokenize}, {role:detokenize}, {role:sequencer}, {role:admin};
GRANT SELECT ON log_tokens, log_facets TO {role:sequencer}, {role:admin};
GRANT INSERT ON logs, log_chains, log_batches, log_tiles, log_checkpoints, log_tokens, log_facets TO {role:sequencer};
GRANT UPDATE (size, root) ON logs TO {role:sequencer};
GRANT UPDATE (next, previous, formed_at, state, reason) ON log_chains TO {role:sequencer};
GRANT UPDATE (hashes) ON log_tiles TO {role:sequencer};
GRANT DELETE ON log_checkpoints TO {role:sequencer};
-- Which entry tells of a token's making.
GRANT SELECT (tenant_id, token, made_writer, made_batch) ON cards, tokens TO {role:admin};

-- The sequencer has a writer of its own, for what it finds.
GRANT INSERT ON writers, batches TO {role:sequencer};
CREATE POLICY sequencer_writers ON writers FOR INSERT TO {role:sequencer} WITH CHECK (role = 'sequencer');
CREATE POLICY sequencer_batches ON batches FOR INSERT TO {role:sequencer} WITH CHECK (EXISTS (SELECT 1 FROM writers w WHERE w.writer = batches.writer AND w.role = 'sequencer'));
