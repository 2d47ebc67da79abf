-- The log before sequencing: writers, and the signed, chained batches that each of them commits (audit/chain.ts).

CREATE TABLE writers (
  writer      bigint      PRIMARY KEY,
  role        text        NOT NULL,
  certificate text        NOT NULL,                  -- C2SP signed note by the HSM's log key over the writer's public key
  started_at  timestamptz NOT NULL
);

CREATE TABLE batches (
  writer      bigint      NOT NULL REFERENCES writers (writer),
  number      bigint      NOT NULL CHECK (number >= 0),
  kind        smallint    NOT NULL,                  -- 0 entries, 1 tombstone
  formed_at   timestamptz NOT NULL,
  entry_count integer     NOT NULL,
  previous    bytea       NOT NULL,                  -- SHA-256 of the predecessor's signed header
  bundle      bytea       NOT NULL,                  -- the entries as a C2SP tlog-tiles entry bundle
  signature   bytea       NOT NULL,                  -- Ed25519 by the writer's key
  PRIMARY KEY (writer, number)
);
-- Compressing a bundle would cost the hot path more CPU than it saves in writes.
ALTER TABLE batches ALTER COLUMN bundle SET STORAGE EXTERNAL, ALTER COLUMN signature SET STORAGE PLAIN, ALTER COLUMN previous SET STORAGE PLAIN;

-- Append only: no role may update or delete, and a trigger says so even to the owner of the tables. Whoever drops the trigger is
-- caught by the chain and its signatures.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the log is append only';
END $$;
CREATE TRIGGER writers_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON writers FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER batches_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON batches FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON writers, batches TO {role:tokenize}, {role:detokenize}, {role:admin};
GRANT SELECT ON writers, batches TO {role:sequencer};
