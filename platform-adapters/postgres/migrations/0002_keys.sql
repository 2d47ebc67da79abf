-- The registry of data and fingerprint keys. The keys themselves are encrypted by the HSM, or only named here (direct custody).
-- Every row carries a MAC by the HSM's control key over all columns but leased_seals (hsm/key-registry.ts says why): an edited row is refused by whoever reads it.

CREATE SEQUENCE key_ids AS bigint MINVALUE 1 MAXVALUE 4294967295 NO CYCLE;

CREATE TABLE key_registry (
  key_id       bigint      PRIMARY KEY CHECK (key_id BETWEEN 1 AND 4294967295),  -- stands in every sealed value, in four bytes
  kind         text        NOT NULL CHECK (kind IN ('data', 'fingerprint')),
  domain       text        NOT NULL,
  version      integer     NOT NULL CHECK (version >= 1),
  state        text        NOT NULL CHECK (state IN ('active', 'retired', 'destroyed')),
  material     bytea       NOT NULL,
  created_at   timestamptz NOT NULL,
  row_version  bigint      NOT NULL CHECK (row_version >= 1),
  mac          bytea       NOT NULL CHECK (octet_length(mac) = 32),
  leased_seals bigint      NOT NULL DEFAULT 0 CHECK (leased_seals BETWEEN 0 AND 4294967296),
  -- The highest version is the current key: of two processes that make one at the same moment, one wins.
  UNIQUE (kind, domain, version)
) WITH (fillfactor = 80);

-- A process that serves cards makes keys and leases seals. It changes no key and deletes none; states are the administrator's.
GRANT USAGE ON SEQUENCE key_ids TO {role:tokenize}, {role:detokenize}, {role:admin};
GRANT SELECT, INSERT, UPDATE (leased_seals) ON key_registry TO {role:tokenize}, {role:detokenize};
GRANT SELECT, INSERT, UPDATE (leased_seals, state, material, row_version, mac) ON key_registry TO {role:admin};
